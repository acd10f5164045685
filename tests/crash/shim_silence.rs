//! Shims that do not answer for a while: a machine that swaps, a frozen cgroup, SIGSTOP. That is no death.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerState, PodSandboxState};
use berth_tests::{BUSYBOX, Node, container, process, sh};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn shim_of(pod: &str) -> Result<process::Process> {
    let mut shims = process::shims().into_iter();
    shims
        .find(|shim| shim.cmdline().contains(pod))
        .context("no shim")
}

fn signal(to: &process::Process, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(to.pid), signal)?)
}

#[test]
fn a_shim_that_does_not_answer_while_the_daemon_starts_loses_no_container() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("silent")).await?;
        let other = node.run(node.pod("other")).await?;
        let sleeps = || container("a", BUSYBOX, &["sleep", "1000"]);
        let stays = node.start_container(&pod, sleeps()).await?;
        let ends = node
            .start_container(&pod, container("ends", BUSYBOX, &sh("sleep 2; exit 42")))
            .await?;
        let created = container("created", BUSYBOX, &["sleep", "1000"]);
        let created = node.create(&pod, &created).await?;
        let neighbour = node.start_container(&other, sleeps()).await?;
        let before = process::init_of(&stays).context("no init")?;
        let shim = shim_of(&pod.id)?;

        signal(&shim, Signal::SIGSTOP)?;
        node.daemon.kill_9();
        node.restart().await?;
        // what is known of it is what was so before
        let state = async |id: &str| anyhow::Ok(node.cri.status(id).await?.state());
        ensure!(node.cri.exec(&neighbour, &["echo", "here"]).await? == "here");
        ensure!(node.cri.pod_status(&pod.id).await?.state() == PodSandboxState::SandboxReady);
        ensure!(state(&stays).await? == ContainerState::ContainerRunning);

        signal(&shim, Signal::SIGCONT)?;
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let status = node.cri.status(&ends).await?;
            if status.state() == ContainerState::ContainerExited {
                ensure!(status.exit_code == 42, "{status:?}");
                break;
            }
            ensure!(Instant::now() < limit, "it is not heard again: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            process::init_of(&stays).is_some_and(|now| now.is(&before)),
            "the container was restarted"
        );
        ensure!(state(&stays).await? == ContainerState::ContainerRunning);
        ensure!(node.cri.status(&stays).await?.started_at > 0);
        ensure!(node.cri.exec(&stays, &["echo", "here"]).await? == "here");
        ensure!(state(&created).await? == ContainerState::ContainerCreated);
        node.cri.start(&created).await?;
        ensure!(node.cri.exec(&created, &["echo", "hi"]).await? == "hi");
        Ok(())
    })
}

#[test]
fn a_pod_whose_shim_never_answers_again_can_be_stopped_and_removed_rel_03() -> Result<()> {
    Node::test(async |node| {
        for daemon_restarts in [false, true] {
            let pod = node.run(node.pod("silent")).await?;
            let other = node.run(node.pod("other")).await?;
            let sleeps = || container("a", BUSYBOX, &["sleep", "1000"]);
            let id = node.start_container(&pod, sleeps()).await?;
            let stays = node.start_container(&other, sleeps()).await?;
            let shim = shim_of(&pod.id)?;
            signal(&shim, Signal::SIGSTOP)?;
            if daemon_restarts {
                node.daemon.kill_9();
                node.restart().await?;
            }
            node.cri.stop_pod(&pod.id).await?;
            let status = node.cri.status(&id).await?;
            ensure!(
                status.state() == ContainerState::ContainerExited && status.exit_code != 0,
                "{status:?}"
            );
            ensure!(
                process::in_cgroup(&id).is_empty(),
                "its processes are still there"
            );
            node.cri.remove_pod(&pod.id).await?;
            ensure!(process::shims().iter().all(|now| !now.is(&shim)));
            ensure!(node.cri.exec(&stays, &["echo", "here"]).await? == "here");
            node.remove_all().await?;
        }
        Ok(())
    })
}
