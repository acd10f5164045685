//! A container's way from its bundle to its end, and what can be done with it meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::{machine, process};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::yard::{KINDS, SOON, Yard, refs, topics};

#[test]
fn signals_end_a_container_and_its_end_is_told_by_wait_and_delete() -> Result<()> {
    Yard::each(|yard| {
        let trap = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
        for (name, words, code) in [
            ("term", vec!["kill", "ID"], 3),
            ("nine", vec!["kill", "ID", "KILL"], 137),
            ("all", vec!["kill", "--all", "ID", "9"], 137),
        ] {
            let (id, pid) = yard.detached(name, &[], trap)?;
            ensure!(process::Process::read(pid).is_some());
            // The shell sets its trap.
            std::thread::sleep(Duration::from_millis(300));
            let state = yard.json(&["state", &id])?;
            ensure!(
                state["status"] == "running" && state["pid"] == pid,
                "{state}"
            );
            let words: Vec<&str> = words
                .iter()
                .map(|w| if *w == "ID" { &id } else { *w })
                .collect();
            yard.ok(&words)?;
            let waited = yard.berth(&["wait", &id, "-o", "json"])?;
            ensure!(waited.status.code() == Some(code), "{name}: {waited:?}");
            let state = yard.json(&["state", &id])?;
            ensure!(
                state["status"] == "stopped" && state["exitStatus"] == code,
                "{state}"
            );
            ensure!(state["exitedAt"].is_string(), "{state}");
            let deleted = yard.json(&["delete", &id])?;
            ensure!(deleted["exitStatus"] == code, "{deleted}");
            yard.fails(&["state", &id], &[&id, "berth shim ps"])?;
        }
        // In the foreground the signal is handed on.
        let id = yard.id("front");
        let bundle = yard.bundle("front", &[], &["sh", "-c", trap])?;
        let words = yard.words("run", &id, &bundle, &[]);
        let mut child = yard
            .command(&refs(&words))?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .context("no stdout")?
            .read_exact(&mut ready)?;
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
        ensure!(child.wait()?.code() == Some(3));
        Ok(())
    })
}

#[test]
fn a_container_is_paused_counted_measured_and_limited() -> Result<()> {
    Yard::each(|yard| {
        let (id, pid) = yard.detached("work", &[], "sleep 1001 & sleep 1002 & wait")?;
        let count = || -> Result<usize> {
            let pids = yard.json(&["pids", &id])?;
            Ok(pids.as_array().map_or(0, Vec::len))
        };
        ensure!(process::eventually(SOON, || count().is_ok_and(|count| count == 3)));
        let pids = yard.json(&["pids", &id])?;
        ensure!(
            pids.as_array()
                .is_some_and(|pids| pids.contains(&pid.into())),
            "{pids}"
        );

        yard.ok(&["pause", &id])?;
        ensure!(yard.json(&["state", &id])?["status"] == "paused");
        yard.ok(&["resume", &id])?;
        ensure!(yard.json(&["state", &id])?["status"] == "running");

        let stats = yard.json(&["stats", &id])?;
        ensure!(stats["pids"] == 3, "{stats}");
        for figure in ["cpuUsageNs", "memoryUsageBytes"] {
            ensure!(
                stats[figure].as_u64().is_some_and(|value| value > 0),
                "{stats}"
            );
        }
        let limit = 64 << 20;
        yard.ok(&["update", &id, "--memory", &limit.to_string()])?;
        ensure!(yard.json(&["stats", &id])?["memoryLimitBytes"] == limit);
        let limits = yard.dir.join("limits.json");
        fs::write(&limits, r#"{"memory": {"limit": 50331648}}"#)?;
        yard.ok(&["update", &id, "--resources", &limits.display().to_string()])?;
        ensure!(yard.json(&["stats", &id])?["memoryLimitBytes"] == 48 << 20);
        yard.fails(&["update", &id], &["no limit"])?;
        let table = yard.ok(&["stats", &id])?;
        ensure!(table.contains("memory limit"), "{table}");
        yard.ok(&["delete", "--force", &id])?;
        Ok(())
    })
}

#[test]
fn containers_of_a_group_share_a_shim_and_its_events() -> Result<()> {
    Yard::each(|yard| {
        let group = yard.id("pod");
        let mut listener = yard
            .command(&["events", &group, "-o", "json"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let socket = || fs::read_dir(yard.state().join("e")).map_or(0, Iterator::count) == 1;
        ensure!(process::eventually(SOON, socket), "nobody listens");
        yard.fails(&["events", &group], &["another process"])?;
        let names = ["pod", "a", "b"];
        let mut ids = Vec::new();
        for name in names {
            ids.push(yard.detached(name, &["--group", &group], "sleep 1000")?.0);
        }
        let list = yard.json(&["ps"])?;
        let list = list.as_array().context("no list")?;
        let pids: BTreeSet<i64> = list
            .iter()
            .filter_map(|one| one["shimPid"].as_i64())
            .collect();
        ensure!(list.len() == 3 && pids.len() == 1, "{list:?}");
        ensure!(yard.shims().len() == 1, "{:?}", yard.shims());
        ensure!(
            list.iter()
                .all(|one| one["group"] == group && one["status"] == "running")
        );
        yard.ok(&["exec", &ids[1], "--", "true"])?;
        for id in ids.iter().rev() {
            yard.ok(&["kill", id, "9"])?;
            let _ = yard.berth(&["wait", id])?;
            yard.ok(&["delete", id])?;
        }
        ensure!(process::eventually(SOON, || yard.shims().is_empty()));
        std::thread::sleep(Duration::from_millis(500));
        kill(Pid::from_raw(listener.id() as i32), Signal::SIGTERM)?;
        let mut text = String::new();
        listener
            .stdout
            .take()
            .context("no stdout")?
            .read_to_string(&mut text)?;
        ensure!(listener.wait()?.success());
        let told = topics(&text, &yard.namespace);
        let of = |name: &str| -> Vec<&str> {
            let end = format!(" {name}");
            told.iter()
                .filter_map(|topic| topic.strip_suffix(end.as_str()))
                .collect()
        };
        for name in ["pod", "b"] {
            ensure!(
                of(name)
                    == [
                        "/tasks/create",
                        "/tasks/start",
                        "/tasks/exit",
                        "/tasks/delete"
                    ],
                "{told:?}"
            );
        }
        ensure!(
            of("a")
                == [
                    "/tasks/create",
                    "/tasks/start",
                    "/tasks/exec-added",
                    "/tasks/exec-started",
                    "/tasks/exit",
                    "/tasks/exit",
                    "/tasks/delete"
                ],
            "{told:?}"
        );
        Ok(())
    })
}

#[test]
fn create_and_start_are_two_steps_and_ps_tells_all_of_them() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("steps");
        let out = yard.dir.join("out");
        nix::unistd::mkfifo(&out, nix::sys::stat::Mode::S_IRWXU)?;
        let mut reader = File::options().read(true).write(true).open(&out)?;
        let bundle = yard.bundle("steps", &[], &["sh", "-c", "echo given; sleep 1000"])?;
        let uri = out.display().to_string();
        // runc's shim takes both outputs or none.
        let uris = ["--stdout", &uri, "--stderr", &uri];
        let words = yard.words("create", &id, &bundle, &uris);
        yard.ok(&refs(&words))?;
        ensure!(yard.json(&["state", &id])?["status"] == "created");
        yard.fails(&refs(&words), &["is there already", "delete --force"])?;
        yard.ok(&["start", &id])?;
        let mut given = [0; 6];
        reader.read_exact(&mut given)?;
        ensure!(&given == b"given\n");
        let table = yard.ok(&["ps"])?;
        for part in ["SHIM PID", &id, yard.kind.program, "running"] {
            ensure!(table.contains(part), "{table}");
        }
        ensure!(yard.json(&["ps"])?[0]["version"] == yard.kind.version);
        // A container that runs is not deleted; its shim says so, and stays.
        yard.fails(&["delete", &id], &["Delete", yard.kind.program])?;
        // With another in it the shim does not end; by `shutdown --now` it does.
        yard.ok(&["shutdown", &id])?;
        ensure!(yard.json(&["state", &id])?["status"] == "running");
        yard.ok(&["delete", "--force", &id])?;
        Ok(())
    })
}

#[test]
fn each_form_of_the_bootstrap_answer_leads_to_a_container() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    for (max, version) in [("0", 2), ("2", 2), ("3", 3)] {
        let id = yard.id(&format!("v{max}"));
        let bundle = yard.bundle("any", &[], &["sleep", "1000"])?;
        let words = yard.words("run", &id, &bundle, &["--detach", "--max-version", max]);
        yard.ok(&refs(&words))?;
        ensure!(yard.json(&["ps"])?[0]["version"] == version, "{max}");
        yard.ok(&["delete", "--force", &id])?;
    }
    yard.nothing_is_left()
}
