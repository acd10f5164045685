//! What stock containerd's own client asks of the shim, and hears of it.

use std::{
    fs,
    io::Write,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::{LinuxContainerResources, UpdateContainerResourcesRequest};
use berth_tests::{
    Node, cgroup, container,
    containerd::{Containerd, IMAGE, Listener},
    process,
    request::ContainerRequest,
    sh,
};

use crate::under_containerd::{mounts, on_the_host_network, pod, shims_of};

const RUNTIME: &str = "io.containerd.berth.v2";
const SOON: Duration = Duration::from_secs(10);
/// Longer than an event's way is waited for: it is told again.
const STILL: Duration = Duration::from_secs(6);

/// `ctr run` of a container with its cgroup below the test's own; `options` come before the image.
fn run(
    containerd: &Containerd,
    node: &Node,
    id: &str,
    options: &[&str],
    command: &[&str],
) -> Result<String> {
    let cgroup = format!("{}/{id}", node.cgroup_parent);
    let mut arguments = vec!["run", "--runtime", RUNTIME, "--cgroup", &cgroup];
    arguments.extend(options);
    arguments.extend([IMAGE, id]);
    arguments.extend(command);
    containerd.ctr(&arguments)
}

/// Waits until so many topics were heard; they must be these.
fn heard(listener: &Listener, expected: &[&str]) -> Result<()> {
    process::eventually(SOON, || listener.topics().len() >= expected.len());
    ensure!(listener.topics() == expected, "{:?}", listener.tasks());
    Ok(())
}

#[test]
fn events_of_a_container_are_heard_in_order_also_by_a_containerd_that_stood_still() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let listener = containerd.listen()?;
        run(
            &containerd,
            node,
            "c1",
            &["-d", "--memory-limit", "16777216"],
            &sh("sleep 1000; tail /dev/zero; sleep 1000"),
        )?;
        let pid = process::init_of("c1").context("no process")?.pid;
        containerd.ctr(&["tasks", "exec", "--exec-id", "e1", "c1", "true"])?;
        containerd.ctr(&["tasks", "pause", "c1"])?;
        containerd.ctr(&["tasks", "resume", "c1"])?;
        let mut expected = vec![
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "paused",
            "resumed",
        ];
        heard(&listener, &expected)?;

        containerd.freeze(true);
        let sleeping = process::in_cgroup("c1").into_iter().find(|p| p.pid != pid);
        process::kill_9(sleeping.context("no sleep")?.pid);
        let greedy_is_dead = || {
            let events = cgroup::value(pid, "memory", "memory.oom_control", "memory.events");
            events.is_ok_and(|text| cgroup::counter(&text, "oom_kill ").unwrap_or(0) > 0)
        };
        let died = process::eventually(SOON, greedy_is_dead);
        process::kill_9(pid);
        std::thread::sleep(STILL);
        containerd.freeze(false);
        ensure!(died, "nothing was killed for want of memory");
        expected.extend(["oom", "exit"]);
        heard(&listener, &expected)?;
        let (_, exit) = listener.tasks().pop().context("no event")?;
        ensure!(exit["exit_status"] == 137 && exit["pid"] == pid, "{exit}");

        let _ = containerd.ctr(&["tasks", "delete", "c1"]);
        expected.push("delete");
        heard(&listener, &expected)?;
        containerd.ctr(&["containers", "delete", "c1"])?;
        Ok(())
    })
}

#[test]
fn a_task_whose_shim_was_killed_is_told_as_killed_and_leaves_nothing_rel_07() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let listener = containerd.listen()?;
        run(
            &containerd,
            node,
            "c1",
            &["-d"],
            &sh("sleep 1000 & sleep 1000"),
        )?;
        let shim = shims_of("c1").pop().context("no shim")?;
        process::kill_9(shim.pid);
        heard(&listener, &["create", "start", "exit", "delete"])?;
        for (topic, event) in &listener.tasks()[2..] {
            ensure!(event["exit_status"] == 137, "{topic}: {event}");
        }
        ensure!(process::eventually(SOON, || process::in_cgroup("c1").is_empty()));
        let left = || cgroup::tree(&format!("{}/c1", node.cgroup_parent));
        ensure!(
            process::eventually(SOON, || left().is_empty()),
            "{:?}",
            left()
        );
        ensure!(mounts(node).is_empty(), "{:?}", mounts(node));
        containerd.ctr(&["containers", "delete", "c1"])?;
        Ok(())
    })
}

#[test]
fn output_goes_where_a_log_uri_says() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let log = node.dir.join("out.log");
        let uri = format!("file://{}", log.display());
        let options = ["-d", "--log-uri", &uri];
        run(
            &containerd,
            node,
            "c1",
            &options,
            &sh("echo out; echo err >&2"),
        )?;
        let text = || fs::read_to_string(&log).unwrap_or_default();
        ensure!(
            process::eventually(SOON, || text().len() == 8),
            "{:?}",
            text()
        );

        let program = node.dir.join("logger");
        let out = node.dir.join("logged");
        let script = format!(
            "#!/bin/sh\nexec 5>&-\n{{ echo \"$CONTAINER_ID of $CONTAINER_NAMESPACE\"; cat <&3; }} > {0}.tmp; mv {0}.tmp {0}\n",
            out.display()
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        let uri = format!("binary://{}", program.display());
        run(
            &containerd,
            node,
            "c2",
            &["-d", "--log-uri", &uri],
            &sh("echo hello"),
        )?;
        let logged = || fs::read_to_string(&out).unwrap_or_default();
        ensure!(process::eventually(SOON, || !logged().is_empty()));
        ensure!(logged() == "c2 of default\nhello\n", "{:?}", logged());

        let refused = run(
            &containerd,
            node,
            "c3",
            &["-d", "--log-uri", "npipe:///x"],
            &["true"],
        );
        let error = refused.map_or_else(|error| error.to_string(), |_| String::new());
        ensure!(error.contains("npipe"), "{error:?}");
        for id in ["c1", "c2"] {
            let gone = || containerd.ctr(&["tasks", "delete", id]).is_ok();
            ensure!(process::eventually(SOON, gone), "{id}");
        }
        for id in ["c1", "c2", "c3"] {
            let _ = containerd.ctr(&["containers", "delete", id]);
        }
        ensure!(process::eventually(SOON, || process::shims().is_empty()));
        Ok(())
    })
}

#[test]
fn stdin_ends_with_its_client_and_a_terminal_has_its_clients_size() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let cgroup = format!("{}/c1", node.cgroup_parent);
        // Ends by CloseIO alone: cat reads until then.
        let mut cat = containerd
            .client(&[
                "run",
                "--rm",
                "--runtime",
                RUNTIME,
                "--cgroup",
                &cgroup,
                IMAGE,
                "c1",
                "cat",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        cat.stdin
            .take()
            .context("no stdin")?
            .write_all(b"through\n")?;
        let output = cat.wait_with_output()?;
        ensure!(
            output.status.success() && output.stdout == b"through\n",
            "{output:?}"
        );

        let (ours, theirs) = terminal(33, 77)?;
        let stdio = || theirs.try_clone().map(Stdio::from);
        let mut ctr = containerd.client(&[
            "run",
            "--rm",
            "-t",
            "--runtime",
            RUNTIME,
            "--cgroup",
            &cgroup,
            IMAGE,
            "c2",
            "sh",
            "-c",
            // The size comes by a call of its own, beside the start.
            "until [ \"$(stty size)\" = '33 77' ]; do sleep 0.05; done; exit 5",
        ]);
        let mut child = ctr
            .stdin(stdio()?)
            .stdout(stdio()?)
            .stderr(stdio()?)
            .spawn()?;
        drop((theirs, ctr));
        let mut ended = None;
        let has_ended = process::eventually(SOON, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some()
        });
        if !has_ended {
            let _ = child.kill();
            bail!("the terminal never had the size of its client");
        }
        drop(ours);
        ensure!(
            ended.and_then(|status| status.code()) == Some(5),
            "{ended:?}"
        );
        Ok(())
    })
}

/// A terminal of this size: our end and theirs.
fn terminal(rows: u16, columns: u16) -> Result<(OwnedFd, OwnedFd)> {
    let size = nix::pty::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pair = nix::pty::openpty(Some(&size), None)?;
    Ok((pair.master, pair.slave))
}

#[test]
fn pids_figures_limits_and_checkpoints_go_through_containerd() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        run(
            &containerd,
            node,
            "c1",
            &["-d"],
            &sh("sleep 1000 & sleep 1000 & wait"),
        )?;
        ensure!(process::eventually(SOON, || process::in_cgroup("c1").len() == 3));
        let list = containerd.ctr(&["tasks", "ps", "c1"])?;
        for process in process::in_cgroup("c1") {
            ensure!(
                list.contains(&process.pid.to_string()),
                "{} of {list}",
                process.pid
            );
        }
        let metrics = containerd.ctr(&["tasks", "metrics", "--format", "json", "c1"])?;
        let metrics: serde_json::Value = serde_json::from_str(&metrics)?;
        if !cgroup::unified() {
            ensure!(metrics["pids"]["current"] == 3, "{metrics}");
            ensure!(
                metrics["memory"]["usage"]["usage"].as_u64() > Some(0),
                "{metrics}"
            );
        }
        // With CRIU that works here it is an image; without, an error that says why, and the container goes on.
        match containerd.ctr(&["tasks", "checkpoint", "c1"]) {
            Ok(_) => {}
            Err(error) => {
                let error = error.to_string();
                ensure!(error.to_lowercase().contains("criu"), "{error}");
            }
        }
        ensure!(
            process::in_cgroup("c1").len() == 3,
            "{:?}",
            process::in_cgroup("c1")
        );
        containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "--all", "c1"])?;
        ensure!(process::eventually(SOON, || process::in_cgroup("c1").is_empty()));
        let _ = containerd.ctr(&["tasks", "delete", "c1"]);
        containerd.ctr(&["containers", "delete", "c1"])?;

        let cri = containerd.cri().await?;
        let config = pod(node, "limited");
        let pod = cri.run_pod(&config).await?;
        let asked = container("a", IMAGE, &sh("sleep 1000"))
            .security(on_the_host_network)
            .resources(|resources| resources.memory_limit_in_bytes = 64 << 20);
        fs::create_dir_all(std::path::Path::new(&config.log_directory).join("a"))?;
        let id = cri.create(&pod, &asked, &config).await?;
        cri.start(&id).await?;
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(LinuxContainerResources {
                memory_limit_in_bytes: 96 << 20,
                ..Default::default()
            }),
            ..Default::default()
        };
        cri.runtime().update_container_resources(request).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let limit = cgroup::value(pid, "memory", "memory.limit_in_bytes", "memory.max")?;
        ensure!(limit == (96 << 20).to_string(), "{limit}");
        cri.remove(&id).await?;
        cri.stop_pod(&pod).await?;
        cri.remove_pod(&pod).await?;
        Ok(())
    })
}
