//! What goes wrong between Berth and systemd: names of the other driver's, a bus that is not there or does not answer, and kill -9.

use std::{
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup, container, cri::refused, daemon::bin_dir, process, request::PodRequest,
    systemd,
};
use tonic::Code;

use crate::driver::by_systemd;

const BUS: &str = "/run/dbus/system_bus_socket";
/// The client's own patience, and the making of a container around it.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_parent_of_the_other_drivers_form_is_refused_and_leaves_nothing_sec_eng_11() -> Result<()> {
    by_systemd(async |node| {
        for (parent, says) in [
            ("/kubepods/pod1", "driver is systemd"),
            ("/system.slice/../kubepods.slice", "where systemd has"),
            ("/kubepods-pod1.slice", "where systemd has"),
            ("kubepods-pod1.scope", "driver is systemd"),
            ("-.slice", "slice's name"),
        ] {
            let config = node
                .pod("wrong")
                .linux(|linux| linux.cgroup_parent = parent.into());
            refused(
                node.cri.run_pod(&config).await,
                Code::InvalidArgument,
                &["cgroup_parent", says],
            )?;
        }
        systemd::gone("kubepods*")
    })
}

/// berthd's bus is `$DIR/bus`, a link that a test can turn.
fn with_a_bus_of_its_own(test: impl AsyncFnOnce(&mut Node) -> Result<()>) -> Result<()> {
    if systemd::is_missing() {
        return Ok(());
    }
    let setup = Setup {
        by_systemd: true,
        environment: vec![(
            "DBUS_SYSTEM_BUS_ADDRESS".into(),
            "unix:path=$DIR/bus".into(),
        )],
        before: Some(|dir| Ok(symlink(BUS, dir.join("bus"))?)),
        ..Setup::default()
    };
    Node::test_with(setup, test)
}

fn turn(bus: &Path, to: &Path) -> Result<()> {
    std::fs::remove_file(bus)?;
    Ok(symlink(to, bus)?)
}

#[test]
fn a_bus_that_is_not_there_or_hangs_fails_the_container_in_time_and_leaves_nothing() -> Result<()> {
    with_a_bus_of_its_own(async |node| {
        let bus = node.dir.join("bus");
        let pod = node.run(node.pod("unheard")).await?;
        let before = node
            .start_container(&pod, container("before", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let hung = node.dir.join("hung");
        let _listener = UnixListener::bind(&hung)?;
        for (to, says) in [
            (node.dir.join("nowhere"), "no D-Bus at"),
            (hung, "no answer within"),
        ] {
            turn(&bus, &to)?;
            let began = Instant::now();
            let config = container("unheard", BUSYBOX, &["sleep", "1000"]);
            refused(
                node.cri.create(&pod.id, &config, &pod.config).await,
                Code::FailedPrecondition,
                &["berth-", ".scope", says],
            )?;
            ensure!(began.elapsed() < SOON, "{says}: {:?}", began.elapsed());
            ensure!(node.cri.containers(None).await?.len() == 1, "{says}");
            // Those that are there need no bus.
            ensure!(node.cri.exec(&before, &["echo", "on"]).await? == "on");
        }
        turn(&bus, Path::new(BUS))?;
        let id = node
            .start_container(&pod, container("unheard", BUSYBOX, &["sleep", "1000"]))
            .await?;
        ensure!(process::init_of(&id).is_some());
        // of this test's own slice: others have theirs beside it
        let slice = node.cgroup_parent.trim_start_matches('/');
        let slice = format!("{}-", slice.trim_end_matches(".slice"));
        let mut scopes = Vec::new();
        for scope in systemd::units("berth-*.scope")? {
            if systemd::property(&scope, "Slice")?.starts_with(&slice) {
                scopes.push(scope);
            }
        }
        ensure!(scopes.len() == 2, "{scopes:?}");
        Ok(())
    })
}

#[test]
fn a_daemon_that_is_to_have_systemd_and_can_not_says_what_is_missing() -> Result<()> {
    if systemd::is_missing() {
        return Ok(());
    }
    let dir = tempdir()?;
    let config = dir.join("config.toml");
    std::fs::write(&config, "[cgroup]\ndriver = \"systemd\"\n")?;
    let output = Command::new(bin_dir()?.join("berthd"))
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(dir.join("lib"))
        .arg("--state")
        .arg(dir.join("run"))
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    std::fs::remove_dir_all(&dir)?;
    for part in ["cgroup.driver", "no D-Bus at /nonexistent", "cgroupfs"] {
        ensure!(!output.status.success() && said.contains(part), "{said}");
    }
    Ok(())
}

fn tempdir() -> Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("berth-systemd-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

#[test]
fn kill_9_of_shim_and_daemon_leaves_no_unit_rel_07() -> Result<()> {
    by_systemd(async |node| {
        let mut ids = Vec::new();
        for name in ["one", "two"] {
            let pod = node.run(node.pod(name)).await?;
            let id = node
                .start_container(&pod, container(name, BUSYBOX, &["sleep", "1000"]))
                .await?;
            ids.push((pod.id, id));
        }
        node.daemon.kill_9();
        let init = process::init_of(&ids[0].1).context("a container died with the daemon")?;
        let shim = process::Process::read(init.parent).context("no shim")?;
        process::kill_9(shim.pid);
        node.restart().await?;
        ensure!(
            process::eventually(Duration::from_secs(10), || process::init_of(&ids[0].1)
                .is_none()),
            "the container of a killed shim lives"
        );
        ensure!(process::init_of(&ids[1].1).is_some(), "the other does not");
        for (pod, container) in &ids {
            node.cri.stop_pod(pod).await?;
            node.cri.remove_pod(pod).await?;
            systemd::gone(&format!("*{container}*"))?;
            systemd::gone(&format!("*{pod}*"))?;
        }
        Ok(())
    })
}
