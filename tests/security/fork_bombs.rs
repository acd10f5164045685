//! REL-17: fork bombs in pods whose cgroup has a limit of processes, as a kubelet sets it (podPidsLimit).

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::ContainerState;
use berth_tests::{
    BUSYBOX, Node, c_program, cgroup, container, process,
    request::{ContainerRequest, PodRequest, bind},
};

/// Forks, and its children do, and none of them ends where it can't.
const BOMB: &str = "
#include <unistd.h>
int main(void) { for (;;) if (fork() < 0) usleep(20000); }
";
const BOMBS: usize = 3;
const LIMIT: u32 = 96;

/// The directory that has `pids.max` of the cgroup `path`, made as a kubelet makes it.
fn limited(path: &str) -> Result<()> {
    let root = match cgroup::unified() {
        true => Path::new("/sys/fs/cgroup").to_owned(),
        false => Path::new("/sys/fs/cgroup/pids").to_owned(),
    };
    let dir = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    fs::write(dir.join("pids.max"), LIMIT.to_string()).with_context(|| dir.display().to_string())
}

#[test]
fn fork_bombs_fill_their_pod_alone_and_are_stopped_rel_17() -> Result<()> {
    Node::test(async |node| {
        let calm = node.run(node.pod("calm")).await?;
        let calm = node
            .start_container(&calm, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let volume = node.volume("bomb")?;
        c_program::compile(BOMB, &volume.join("bomb"), c_program::STATIC)?;
        let mut bombs = vec![];
        for number in 0..BOMBS {
            let parent = node.own_cgroup_parent(&format!("bomb-{number}"));
            limited(&parent)?;
            let pod = node.pod(&format!("bomb-{number}"));
            let pod = node
                .run(pod.linux(|linux| linux.cgroup_parent = parent.clone()))
                .await?;
            let config =
                container("bomb", BUSYBOX, &["/volume/bomb"]).mount(bind(&volume, "/volume"));
            let id = node.start_container(&pod, config).await?;
            bombs.push((pod, id, parent));
        }
        for (_, id, _) in &bombs {
            let full = || process::in_cgroup(id).len() > LIMIT as usize / 2;
            ensure!(
                process::eventually(Duration::from_secs(20), full),
                "it is no bomb"
            );
        }
        // An exec there fails or runs, and says so in time; all else works on.
        for (_, id, _) in &bombs {
            for _ in 0..3 {
                let begin = Instant::now();
                if let Err(status) = node.cri.exec_within(id, &["true"], 5).await {
                    ensure!(status.message().len() > 10, "{status:?}");
                }
                ensure!(
                    begin.elapsed() < Duration::from_secs(15),
                    "{:?}",
                    begin.elapsed()
                );
            }
            let processes = process::in_cgroup(id).len();
            ensure!(processes <= LIMIT as usize, "{processes} processes");
        }
        let begin = Instant::now();
        ensure!(node.cri.exec(&calm, &["echo", "calm"]).await? == "calm");
        node.cri.pods(None).await?;
        ensure!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        for (pod, id, _) in &bombs {
            let begin = Instant::now();
            node.cri.stop(id, 1).await?;
            ensure!(
                begin.elapsed() < Duration::from_secs(15),
                "{:?}",
                begin.elapsed()
            );
            let status = node.cri.status(id).await?;
            ensure!(
                status.state() == ContainerState::ContainerExited,
                "{status:?}"
            );
            let gone = || process::in_cgroup(id).is_empty();
            ensure!(
                process::eventually(Duration::from_secs(10), gone),
                "{:?}",
                process::in_cgroup(id)
            );
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        for (_, _, parent) in &bombs {
            cgroup::remove(parent)?;
        }
        Ok(())
    })
}
