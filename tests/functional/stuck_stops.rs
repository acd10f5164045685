//! REL-01: pods that don't want to end.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::ContainerState;
use berth_tests::{BUSYBOX, Node, cgroup, container, process, sh};
use tokio::task::JoinSet;

const IGNORES_TERM: &str = "trap '' TERM HUP INT; touch /ready; while :; do sleep 0.1; done";

async fn ready(node: &Node, id: &str) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(10);
    while node
        .cri
        .exec_raw(id, &["test", "-e", "/ready"])
        .await?
        .exit_code
        != 0
    {
        ensure!(Instant::now() < limit, "{id} does not get ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What the CRI says of a container is what the kernel has.
async fn true_to_the_kernel(node: &Node, id: &str) -> Result<()> {
    let state = node.cri.status(id).await?.state();
    let lives = process::init_of(id).is_some();
    ensure!(
        lives || state != ContainerState::ContainerRunning,
        "{id} is {state:?} without a process"
    );
    Ok(())
}

#[test]
fn a_hundred_and_fifty_stops_at_once_each_end_in_time_half_of_them_given_up_rel_01() -> Result<()> {
    const STOPS: u64 = 150;
    Node::test(async |node| {
        let pod = node.run(node.pod("stubborn")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &sh(IGNORES_TERM)))
            .await?;
        ready(node, &id).await?;
        let begin = Instant::now();
        let mut stops = JoinSet::new();
        for number in 0..STOPS {
            // From 60 s down to 1 s; every other client gives up after some ms.
            let grace = 60 - 59 * number / (STOPS - 1);
            let patience = match number % 2 {
                0 => Duration::from_secs(60),
                _ => Duration::from_millis(20 + number),
            };
            let (cri, id) = (node.cri.within(patience), id.clone());
            stops.spawn(async move { (number, cri.stop(&id, grace as i64).await) });
        }
        let mut given_up = 0;
        while let Some(done) = stops.join_next().await {
            let (number, answer) = done?;
            match answer {
                Ok(()) => {}
                Err(status) if number % 2 == 1 => {
                    ensure!(
                        matches!(
                            status.code(),
                            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
                        ),
                        "{status:?}"
                    );
                    given_up += 1;
                }
                Err(status) => anyhow::bail!("stop {number}: {status:?}"),
            }
        }
        let took = begin.elapsed();
        ensure!(
            given_up > STOPS / 4,
            "only {given_up} clients gave up: the test proves little"
        );
        // The shortest grace is one second.
        ensure!(took < Duration::from_secs(8), "{took:?}");
        let status = node.cri.status(&id).await?;
        ensure!(status.exit_code == 137, "{status:?}");
        true_to_the_kernel(node, &id).await?;
        node.cri.remove(&id).await?;
        Ok(())
    })
}

/// On cgroup v1 SIGKILL waits for the thaw: that a stop hangs is told, and the pod goes when it can.
#[test]
fn a_frozen_container_holds_up_its_own_stop_alone_and_goes_with_the_thaw_rel_01() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("frozen")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let neighbour = node
            .start_container(&pod, container("b", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let init = process::init_of(&id).context("no process")?.pid;
        let dir = cgroup::directory(init, "freezer")?;
        let (file, freeze, thaw) = match cgroup::unified() {
            true => (dir.join("cgroup.freeze"), "1", "0"),
            false => (dir.join("freezer.state"), "FROZEN", "THAWED"),
        };
        fs::write(&file, freeze)?;
        let begin = Instant::now();
        let mut stops = JoinSet::new();
        for number in 0..10 {
            let (cri, id) = (node.cri.clone(), id.clone());
            stops.spawn(async move { cri.stop(&id, number % 2).await });
        }
        // Others are not held up meanwhile.
        let asked = Instant::now();
        node.cri.pods(None).await?;
        ensure!(node.cri.exec(&neighbour, &["echo", "on"]).await? == "on");
        ensure!(
            asked.elapsed() < Duration::from_secs(3),
            "{:?}",
            asked.elapsed()
        );
        while let Some(done) = stops.join_next().await {
            if let Err(status) = done? {
                ensure!(status.code() == tonic::Code::DeadlineExceeded, "{status:?}");
                ensure!(status.message().contains(&id[..12]), "{status:?}");
            }
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(25),
            "{:?}",
            begin.elapsed()
        );
        true_to_the_kernel(node, &id).await?;
        // Where it was killed frozen, as v2 does it, the cgroup may be gone.
        let _ = fs::write(&file, thaw);
        let ended = node.cri.exits_within(&id, Duration::from_secs(15)).await?;
        ensure!(ended.exit_code == 137);
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        Ok(())
    })
}
