//! REL-02: exits while the daemon is killed again and again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use berth_proto::cri::ContainerState;
use berth_tests::{
    BUSYBOX, Node, Setup, container,
    machine::patient,
    request::{ContainerRequest, bind},
    sh,
};

const PODS: usize = 10;
const CONTAINERS: usize = 200;

#[test]
fn no_exit_is_lost_while_the_daemon_is_killed_every_300_ms_rel_02() -> Result<()> {
    Node::test_with(
        Setup {
            no_restart: true,
            ..Default::default()
        },
        async |node| {
            let mut pods = Vec::new();
            for number in 0..PODS {
                pods.push(node.run(node.pod(&format!("pod-{number}"))).await?);
            }
            // All are made before the first starts to count, then let go at once: who opens a fifo to read waits for a writer.
            let volume = node.volume("gate")?;
            let gate = volume.join("gate");
            nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o644))?;
            node.cri.pull(BUSYBOX).await?;
            // Two at a time, as a kubelet works on several pods.
            let make = |half: usize| {
                let (node, volume, pods) = (&*node, &volume, &pods);
                async move {
                    let mut made = Vec::new();
                    for number in (half..CONTAINERS).step_by(2) {
                        let (delay_ms, code) =
                            (number * 5_000 / CONTAINERS, (number * 5 + 1) % 256);
                        let script = format!(
                            ": < /gate/gate; sleep {}.{:03}; exit {code}",
                            delay_ms / 1000,
                            delay_ms % 1000
                        );
                        let config = container(&format!("c{number}"), BUSYBOX, &sh(&script))
                            .mount(bind(volume, "/gate"));
                        let id = node.start_container(&pods[number % PODS], config).await?;
                        made.push((id, (code as i32, delay_ms)));
                    }
                    anyhow::Ok(made)
                }
            };
            let (even, odd) = tokio::try_join!(make(0), make(1))?;
            let expected: BTreeMap<String, (i32, usize)> = even.into_iter().chain(odd).collect();
            // Before, not after: two hundred wake up, and this process may be the last of them to go on.
            let opened = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)?
                .as_nanos() as i64;
            let open = std::fs::File::options()
                .read(true)
                .write(true)
                .open(&gate)?;
            let begin = Instant::now();
            let mut kills = 0;
            while begin.elapsed() < Duration::from_millis(6_000) {
                tokio::time::sleep(Duration::from_millis(300)).await;
                node.daemon.kill_9();
                kills += 1;
                node.daemon.spawn()?;
            }
            drop(open);
            node.restart().await?;
            ensure!(kills >= 8, "only {kills} kills: the test proves little");
            // Two hundred at once take their time; a machine that is slow more, but less than until all was asked for.
            let latest_ms = patient(Duration::from_millis(2_500)).min(Duration::from_secs(5));
            let latest_ms = latest_ms.as_millis() as i64;
            for (id, (code, delay_ms)) in &expected {
                let status = node.cri.wait_exit(id).await?;
                ensure!(
                    status.exit_code == *code,
                    "{id} ended with {}, not {code} ({})",
                    status.exit_code,
                    status.reason
                );
                ensure!(
                    status.reason == if *code == 0 { "Completed" } else { "Error" },
                    "{id}: {}",
                    status.reason
                );
                // The time is that of the exit, not that of its finding.
                let late_ms = (status.finished_at - opened) / 1_000_000 - *delay_ms as i64;
                ensure!(
                    (-50..latest_ms).contains(&late_ms),
                    "{id} ended {late_ms} ms after its time"
                );
            }
            let listed = node.cri.containers(None).await?;
            ensure!(
                listed.len() == CONTAINERS
                    && listed
                        .iter()
                        .all(|item| item.state() == ContainerState::ContainerExited)
            );
            Ok(())
        },
    )
}
