//! REL-10: exec probes that time out, fork twice and leave children behind. `BERTH_TEST_PROBES` sets how many (240).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::NamespaceMode;
use berth_tests::{
    BUSYBOX, Node, container, process,
    request::{ContainerRequest, PodRequest},
    sh,
};
use tokio::task::JoinSet;

const PROBES: usize = 240;
const LANES: usize = 6;
/// Over a probe's own time: for a busy machine, and for who holds the pipes after the command's end.
const SLACK: Duration = Duration::from_secs(5);

#[test]
fn probes_return_in_time_and_leave_no_zombie_rel_10() -> Result<()> {
    Node::test(async |node| {
        let probes = std::env::var("BERTH_TEST_PROBES");
        let probes: usize = probes.map_or(Ok(PROBES), |probes| probes.parse())?;
        let shared = |namespaces: &mut berth_proto::cri::NamespaceOption| {
            namespaces.pid = NamespaceMode::Pod.into();
        };
        let pod = node.run(node.pod("probed").namespaces(shared)).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).security(|security| {
            shared(security.namespace_options.get_or_insert_default());
        });
        let id = node.start_container(&pod, config).await?;
        let shim = process::shims().first().context("no shim")?.pid;
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let (cri, id) = (node.cri.clone(), id.clone());
            lanes.spawn(async move {
                for number in 0..probes / LANES {
                    let (script, timeout) = [
                        ("exit 3", 5),
                        // Forks twice, and what is left has no tie to it but the pipes.
                        ("(setsid sh -c 'sleep 2 & sleep 2' &); echo out", 5),
                        ("(sleep 1 > /dev/null 2>&1 &); (true &); echo out", 5),
                        // Every tenth is ended by its time, with a child that ignores what can be ignored.
                        ("trap '' TERM HUP; sleep 30 & sleep 30", 1),
                    ][match (lane + number) % 10 {
                        9 => 3,
                        other => other % 3,
                    }];
                    let begin = Instant::now();
                    let answer = cri.exec_within(&id, &sh(script), timeout).await;
                    let took = begin.elapsed();
                    let limit = Duration::from_secs(timeout as u64) + SLACK;
                    ensure!(took < limit, "{script:?} took {took:?}");
                    match (timeout, answer) {
                        (1, Err(status)) => {
                            ensure!(status.code() == tonic::Code::DeadlineExceeded, "{status:?}")
                        }
                        (1, Ok(answer)) => anyhow::bail!("{script:?} was not ended: {answer:?}"),
                        (_, answer) => {
                            let answer = answer?;
                            let out = answer.exit_code == 0 && answer.stdout[..] == *b"out\n";
                            ensure!(out || answer.exit_code == 3, "{script:?}: {answer:?}");
                        }
                    }
                }
                Ok(())
            });
        }
        while let Some(done) = lanes.join_next().await {
            done??;
        }
        // The pause and the shim are the parents of what was left: neither keeps what is dead.
        let zombies = || {
            let ours = process::descendants(&[shim].into());
            let dead = ours.into_iter().filter(|process| process.state == 'Z');
            dead.collect::<Vec<_>>()
        };
        ensure!(
            process::eventually(Duration::from_secs(5), || zombies().is_empty()),
            "{:?}",
            zombies()
        );
        // What a timeout ends is ended whole.
        let left = || {
            process::in_cgroup(&id)
                .iter()
                .any(|process| process.cmdline().contains("sleep 30"))
        };
        ensure!(
            process::eventually(Duration::from_secs(5), || !left()),
            "{:?}",
            process::in_cgroup(&id)
        );
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        node.remove_all().await
    })
}
