//! The shim under stock containerd: its CRI with `runtime_type = "io.containerd.berth.v2"`, and its own client.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerState, LinuxContainerSecurityContext, NamespaceMode, PodSandboxConfig,
};
use berth_tests::{
    Node, cgroup, container,
    containerd::{Containerd, IMAGE},
    process::{self, Process},
    request::{ContainerRequest, PodRequest},
    sh,
};

const RUNTIME: &str = "io.containerd.berth.v2";
/// For what ends by itself: containerd hears of it from the shim.
const SOON: Duration = Duration::from_secs(10);

/// How long containerd is away.
const AWAY: Duration = Duration::from_secs(4);

/// A pod on the host's network, so that it takes no plugin, with its cgroups below the test's own.
pub(crate) fn pod(node: &Node, name: &str) -> PodSandboxConfig {
    let parent = node.cgroup_parent.clone();
    node.pod(name)
        .linux(|linux| linux.cgroup_parent = parent)
        .on_the_host_network()
}

pub(crate) fn on_the_host_network(security: &mut LinuxContainerSecurityContext) {
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
}

pub(crate) fn shims_of(id: &str) -> Vec<Process> {
    process::shims()
        .into_iter()
        .filter(|shim| shim.cmdline().contains(id))
        .collect()
}

/// Mounts of this test's containerd for containers.
pub(crate) fn mounts(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = node.dir.join("containerd/run");
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| Path::new(at).starts_with(&below))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_pod_of_stock_containerd_has_one_shim_and_outlives_a_kill_of_containerd_cri_04_bo_15()
-> Result<()> {
    Node::test(async |node| {
        let mut containerd = Containerd::start(&node.dir).await?;
        let mut cri = containerd.cri().await?;
        let config = pod(node, "harbour");
        let pod = cri.run_pod(&config).await?;
        let mut ids = Vec::new();
        for name in ["a", "b"] {
            let asked = container(
                name,
                IMAGE,
                &sh("echo hello; trap 'exit 3' TERM; sleep 1000 & wait"),
            )
            .security(on_the_host_network);
            std::fs::create_dir_all(Path::new(&config.log_directory).join(name))?;
            let id = cri.create(&pod, &asked, &config).await?;
            cri.start(&id).await?;
            ids.push(id);
        }
        ensure!(shims_of(&pod).len() == 1, "{:?}", shims_of(&pod));
        for id in &ids {
            ensure!(shims_of(id).is_empty(), "a shim of its own for {id}");
        }
        ensure!(cri.exec(&ids[0], &["echo", "inside"]).await? == "inside");
        let stats = cri.stats(&ids[0]).await?;
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
        ensure!(memory.is_some_and(|bytes| bytes.value > 0), "{memory:?}");

        let pid = process::init_of(&ids[0]).context("no process of a")?.pid;
        // An exec is under way, and one of them ends while nobody listens.
        let (asking, id) = (cri.clone(), ids[0].clone());
        let under_way =
            tokio::spawn(async move { asking.exec(&id, &["sleep", "1000"]).await.is_err() });
        let in_exec = || process::in_cgroup(&ids[0]).len() > 2;
        ensure!(process::eventually(SOON, in_exec), "no exec");
        containerd.kill_9();
        process::kill_9(process::init_of(&ids[1]).context("no process of b")?.pid);
        let killed_at = SystemTime::now().duration_since(UNIX_EPOCH)?;
        ensure!(under_way.await?, "an exec outlives its containerd");
        // Long enough for the time of its end to be told from the time of the telling.
        tokio::time::sleep(AWAY).await;
        containerd.restart().await?;
        cri = containerd.cri().await?;
        let status = cri.status(&ids[0]).await?;
        ensure!(
            status.state() == ContainerState::ContainerRunning,
            "{status:?}"
        );
        ensure!(process::init_of(&ids[0]).map(|init| init.pid) == Some(pid));
        ensure!(cri.exec(&ids[0], &["echo", "still"]).await? == "still");
        let status = cri.wait_exit(&ids[1]).await?;
        ensure!(status.exit_code == 137, "{status:?}");
        let finished_at = Duration::from_nanos(status.finished_at as u64);
        ensure!(
            finished_at.abs_diff(killed_at) < AWAY / 2,
            "{finished_at:?}, killed at {killed_at:?}"
        );

        cri.stop(&ids[0], 10).await?;
        let status = cri.status(&ids[0]).await?;
        ensure!(status.exit_code == 3, "{status:?}");
        cri.remove(&ids[0]).await?;
        cri.stop_pod(&pod).await?;
        cri.remove_pod(&pod).await?;
        ensure!(
            process::eventually(SOON, || shims_of(&pod).is_empty()),
            "{:?} is left",
            shims_of(&pod)
        );
        ensure!(mounts(node).is_empty(), "{:?}", mounts(node));
        Ok(())
    })
}

#[test]
fn what_a_killed_shim_leaves_is_removed_by_its_delete_rel_07() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let cri = containerd.cri().await?;
        let config = pod(node, "wreck");
        let pod = cri.run_pod(&config).await?;
        let asked = container("a", IMAGE, &sh("sleep 1000")).security(on_the_host_network);
        std::fs::create_dir_all(Path::new(&config.log_directory).join("a"))?;
        let id = cri.create(&pod, &asked, &config).await?;
        cri.start(&id).await?;
        let shim = shims_of(&pod).pop().context("no shim")?;
        process::kill_9(shim.pid);
        let status = cri.wait_exit(&id).await?;
        // Ours says 137, its CRI 255: unknown.
        ensure!(status.exit_code != 0, "{status:?}");
        ensure!(
            process::eventually(SOON, || process::in_cgroup(&id).is_empty()),
            "{:?}",
            process::in_cgroup(&id)
        );
        cri.remove(&id).await?;
        cri.stop_pod(&pod).await?;
        cri.remove_pod(&pod).await?;
        ensure!(mounts(node).is_empty(), "{:?}", mounts(node));
        Ok(())
    })
}

#[test]
fn ctr_runs_pauses_measures_and_ends_a_container() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let parent = &node.cgroup_parent;
        let cgroup = format!("{parent}/c1");
        let said = containerd.ctr(&[
            "run",
            "--rm",
            "--runtime",
            RUNTIME,
            "--cgroup",
            &format!("{parent}/c0"),
            IMAGE,
            "c0",
            "sh",
            "-c",
            "echo $0 hello; exit 0",
        ])?;
        ensure!(said == "sh hello\n", "{said:?}");
        let failed = containerd.ctr(&[
            "run",
            "--rm",
            "--runtime",
            RUNTIME,
            "--cgroup",
            &format!("{parent}/c2"),
            IMAGE,
            "c2",
            "sh",
            "-c",
            "exit 7",
        ]);
        ensure!(failed.is_err(), "its exit code is lost");

        containerd.ctr(&[
            "run",
            "-d",
            "--runtime",
            RUNTIME,
            "--cgroup",
            &cgroup,
            IMAGE,
            "c1",
            "sleep",
            "1000",
        ])?;
        let pid = process::init_of("c1").context("no process")?.pid;
        containerd.ctr(&["tasks", "pause", "c1"])?;
        let list = containerd.ctr(&["tasks", "list"])?;
        ensure!(list.contains("PAUSED"), "{list}");
        if !cgroup::unified() {
            let state = cgroup::value(pid, "freezer", "freezer.state", "")?;
            ensure!(state == "FROZEN", "{state}");
        }
        containerd.ctr(&["tasks", "resume", "c1"])?;
        let list = containerd.ctr(&["tasks", "list"])?;
        ensure!(list.contains("RUNNING"), "{list}");
        let metrics = containerd.ctr(&["tasks", "metrics", "c1"])?;
        ensure!(metrics.contains("memory.usage"), "{metrics}");
        let said = containerd.ctr(&["tasks", "exec", "--exec-id", "e1", "c1", "echo", "there"])?;
        ensure!(said == "there\n", "{said:?}");
        containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "c1"])?;
        ensure!(process::eventually(SOON, || process::in_cgroup("c1").is_empty()));
        containerd
            .ctr(&["tasks", "delete", "c1"])
            .or_else(|error| {
                // It tells the task's exit code by its own.
                let gone = containerd.ctr(&["tasks", "list"])?;
                ensure!(!gone.contains("c1"), "{error}: {gone}");
                Ok(gone)
            })?;
        containerd.ctr(&["containers", "delete", "c1"])?;
        ensure!(
            process::eventually(SOON, || process::shims().is_empty()),
            "{:?}",
            process::shims()
        );
        ensure!(mounts(node).is_empty(), "{:?}", mounts(node));
        Ok(())
    })
}
