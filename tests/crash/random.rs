//! REL-21: random calls from many clients on few pods, some cancelled, against a small model of what the CRI allows.
//!
//! `BERTH_TEST_RANDOM_SECONDS` sets how long (25; 600 is what a release is to pass), `BERTH_TEST_SEED` repeats a run that is printed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::ContainerState;
use berth_tests::{BUSYBOX, Cri, Node, Pod, container};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::Mutex;
use tonic::Code;

const CLIENTS: usize = 32;
const PODS: usize = 5;
const SECONDS: u64 = 25;

/// What is known of a slot: the pod or container that was last made there.
#[derive(Debug, Default)]
struct Slot {
    pod: Option<Pod>,
    container: Option<String>,
    attempt: u32,
}

/// Codes that a call may be answered with when others work on the same pod at the same time. Anything else is a bug.
fn legal(call: &str, code: Code) -> bool {
    match call {
        // Nothing may be wrong with these, whatever the state.
        "stop" | "remove" | "stop_pod" | "remove_pod" | "list" => false,
        "status" | "pod_status" | "stats" => code == Code::NotFound,
        // What another client stopped or let end is not made twice by the same attempt.
        "run" => matches!(
            code,
            Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted
        ),
        _ => matches!(
            code,
            Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted
        ),
    }
}

async fn client(
    seed: u64,
    cri: Cri,
    slots: Arc<Vec<Mutex<Slot>>>,
    configs: Arc<Vec<berth_proto::cri::PodSandboxConfig>>,
    calls: Arc<AtomicU64>,
    end: Instant,
) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    while Instant::now() < end {
        let at = random.random_range(0..slots.len());
        let (pod, id, attempt) = {
            let slot = slots[at].lock().await;
            (
                slot.pod.clone(),
                slot.container.clone().unwrap_or_else(|| "f".repeat(64)),
                slot.attempt,
            )
        };
        let pod_id = pod
            .as_ref()
            .map_or_else(|| "e".repeat(64), |pod| pod.id.clone());
        let (name, number) = (
            ["a", "b"][random.random_range(0..2usize)],
            random.random_range(0..100u32),
        );
        let call = match number {
            0..15 => "run",
            15..35 => "create",
            35..50 => "start",
            50..58 => "exec",
            58..64 => "status",
            64..70 => "pod_status",
            70..75 => "list",
            75..78 => "stats",
            78..86 => "stop",
            86..93 => "remove",
            93..97 => "stop_pod",
            _ => "remove_pod",
        };
        let work = async {
            match call {
                "run" => {
                    let mut config = configs[at].clone();
                    config.metadata.as_mut().expect("it has some").attempt = attempt;
                    let made = cri.run_pod(&config).await?;
                    slots[at].lock().await.pod = Some(Pod { id: made, config });
                }
                "create" => {
                    let config = container(name, BUSYBOX, &["sleep", "1000"]);
                    let made = cri.create(&pod_id, &config, &configs[at]).await?;
                    slots[at].lock().await.container = Some(made);
                }
                "start" => cri.start(&id).await?,
                "exec" => drop(cri.exec_within(&id, &["true"], 5).await?),
                "status" => drop(cri.status(&id).await?),
                "pod_status" => drop(cri.pod_status(&pod_id).await?),
                "list" => {
                    cri.pods(None).await?;
                    cri.containers(None).await?;
                }
                "stats" => drop(cri.stats(&id).await?),
                "stop" => cri.stop(&id, 0).await?,
                "remove" => cri.remove(&id).await?,
                "stop_pod" => cri.stop_pod(&pod_id).await?,
                _ => {
                    cri.remove_pod(&pod_id).await?;
                    slots[at].lock().await.attempt += 1;
                }
            }
            Ok::<_, tonic::Status>(())
        };
        calls.fetch_add(1, Ordering::Relaxed);
        if random.random_range(0..5u32) == 0 {
            // The client hangs up in the middle.
            let _ =
                tokio::time::timeout(Duration::from_millis(random.random_range(1..60)), work).await;
        } else if let Err(status) = work.await
            && !legal(call, status.code())
        {
            bail!("seed {seed}: {call} was answered with {status:?}");
        }
    }
    Ok(())
}

#[test]
fn random_calls_are_only_answered_as_the_cri_allows_rel_21() -> Result<()> {
    Node::test(async |node| {
        node.cri.pull(BUSYBOX).await?;
        let seed: u64 = std::env::var("BERTH_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(rand::random);
        println!("BERTH_TEST_SEED={seed}");
        let duration = Duration::from_secs(match std::env::var("BERTH_TEST_RANDOM_SECONDS") {
            Ok(seconds) => seconds
                .parse()
                .context("BERTH_TEST_RANDOM_SECONDS is no number")?,
            Err(_) => SECONDS,
        });
        let end = Instant::now() + duration;
        let slots = Arc::new(
            (0..PODS)
                .map(|_| Mutex::new(Slot::default()))
                .collect::<Vec<_>>(),
        );
        let configs: Vec<_> = (0..PODS)
            .map(|number| node.pod(&format!("pod-{number}")))
            .collect();
        for config in &configs {
            for name in ["a", "b"] {
                std::fs::create_dir_all(std::path::Path::new(&config.log_directory).join(name))?;
            }
        }
        let (configs, calls) = (Arc::new(configs), Arc::new(AtomicU64::new(0)));
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(client(
                seed.wrapping_add(number as u64),
                node.cri.clone(),
                slots.clone(),
                configs.clone(),
                calls.clone(),
                end,
            ));
        }
        while let Some(done) = clients.join_next().await {
            done??;
        }
        ensure!(
            calls.load(Ordering::Relaxed) > 200,
            "only {} calls in {duration:?}",
            calls.load(Ordering::Relaxed)
        );
        // Cancelled work comes to its end; then views and kernel agree (the invariants look).
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut names = std::collections::BTreeSet::new();
        for pod in node.cri.pods(None).await? {
            let metadata = pod.metadata.unwrap_or_default();
            ensure!(
                names.insert((metadata.name.clone(), metadata.attempt)),
                "two pods have the name {} and attempt {}",
                metadata.name,
                metadata.attempt
            );
        }
        for item in node.cri.containers(None).await? {
            ensure!(item.state() != ContainerState::ContainerUnknown);
        }
        Ok(())
    })
}
