//! REL-08: containers and commands that end before anybody looked. `BERTH_TEST_EXITS` sets how many (40).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerEventType as Type, ContainerState, GetEventsRequest, NamespaceMode,
};
use berth_tests::{
    BUSYBOX, Node, container,
    request::{ContainerRequest, PodRequest},
    sh,
};
use tokio::task::JoinSet;

const EXITS: usize = 40;
/// Of the events that are still to come when all calls have been answered.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn the_shortest_lives_are_told_whole_and_in_order_rel_08() -> Result<()> {
    Node::test(async |node| {
        let exits = std::env::var("BERTH_TEST_EXITS");
        let exits: usize = exits.map_or(Ok(EXITS), |exits| exits.parse())?;
        node.cri.pull(BUSYBOX).await?;
        let mut events = node
            .cri
            .runtime()
            .get_container_events(GetEventsRequest {})
            .await?
            .into_inner();
        let reader = tokio::spawn(async move {
            let mut told: BTreeMap<String, Vec<(Type, i64)>> = BTreeMap::new();
            while let Ok(Ok(Some(event))) = tokio::time::timeout(PATIENCE, events.message()).await {
                let of = told.entry(event.container_id.clone()).or_default();
                of.push((event.container_event_type(), event.created_at));
            }
            told
        });
        let mut lives = JoinSet::new();
        // The second pod shares its processes: there the pause is whose child an orphan becomes.
        for (name, shared) in [("own", false), ("shared", true)] {
            let pid = if shared {
                NamespaceMode::Pod
            } else {
                NamespaceMode::Container
            };
            let pod = node
                .pod(name)
                .namespaces(|namespaces| namespaces.pid = pid.into());
            let pod = node.run(pod).await?;
            for lane in 0..2 {
                let mut ids = vec![];
                for number in 0..exits / 4 {
                    let name = format!("c{lane}-{number}");
                    let config = container(&name, BUSYBOX, &sh(&format!("exit {number}")));
                    let config = config.security(|security| {
                        security.namespace_options.get_or_insert_default().pid = pid.into();
                    });
                    std::fs::create_dir_all(
                        node.log_path(&pod, &config)
                            .parent()
                            .context("a directory")?,
                    )?;
                    ids.push(config);
                }
                let (cri, pod) = (node.cri.clone(), pod.clone());
                lives.spawn(async move {
                    let mut ended = vec![];
                    for (number, config) in ids.iter().enumerate() {
                        let id = cri.create(&pod.id, config, &pod.config).await?;
                        cri.start(&id).await?;
                        let status = cri.wait_exit(&id).await?;
                        ensure!(status.exit_code == number as i32, "{status:?}");
                        ensure!(
                            status.created_at <= status.started_at
                                && status.started_at <= status.finished_at,
                            "{status:?}"
                        );
                        cri.remove(&id).await?;
                        ended.push(id);
                    }
                    Ok(ended)
                });
            }
        }
        let mut ids = vec![];
        while let Some(done) = lives.join_next().await {
            ids.extend(done??);
        }
        let told = reader.await?;
        for id in &ids {
            let of = told
                .get(id)
                .with_context(|| format!("nothing is told of {id}"))?;
            let kinds: Vec<Type> = of.iter().map(|(kind, _)| *kind).collect();
            ensure!(
                kinds
                    == [
                        Type::ContainerCreatedEvent,
                        Type::ContainerStartedEvent,
                        Type::ContainerStoppedEvent,
                        Type::ContainerDeletedEvent
                    ],
                "{id}: {kinds:?}"
            );
            ensure!(of.is_sorted_by_key(|(_, at)| *at), "{id}: {of:?}");
        }
        ensure!(ids.len() >= exits / 4 * 4);
        Ok(())
    })
}

#[test]
fn execs_that_race_the_end_of_their_container_are_answered_rel_08() -> Result<()> {
    const ROUNDS: usize = 8;
    const EXECS: usize = 6;
    Node::test(async |node| {
        let pod = node.run(node.pod("race")).await?;
        for round in 0..ROUNDS {
            let life = format!("sleep 0.{}; exit 42", round + 1);
            let config = container(&format!("c{round}"), BUSYBOX, &sh(&life));
            let id = node.start_container(&pod, config).await?;
            let mut execs = JoinSet::new();
            for _ in 0..EXECS {
                let (cri, id) = (node.cri.clone(), id.clone());
                execs.spawn(async move {
                    let mut answers = 0;
                    // Instant ones, one after the other, and one in each that has to be ended.
                    loop {
                        let begin = Instant::now();
                        let command = if answers == 3 {
                            sh("sleep 100")
                        } else {
                            sh("exit 7")
                        };
                        let answer = cri.exec_raw(&id, &command).await;
                        ensure!(
                            begin.elapsed() < Duration::from_secs(10),
                            "{:?}",
                            begin.elapsed()
                        );
                        match answer {
                            Ok(answer) if answer.exit_code == 7 => answers += 1,
                            Ok(answer) => {
                                ensure!(matches!(answer.exit_code, 137 | 255), "{answer:?}");
                                return Ok(());
                            }
                            Err(status) => {
                                ensure!(
                                    status.code() != tonic::Code::Unknown
                                        && status.message().len() > 10,
                                    "{status:?}"
                                );
                                return Ok(());
                            }
                        }
                    }
                });
            }
            while let Some(done) = execs.join_next().await {
                done??;
            }
            let status = node.cri.wait_exit(&id).await?;
            ensure!(
                status.exit_code == 42 && status.state() == ContainerState::ContainerExited,
                "{status:?}"
            );
        }
        Ok(())
    })
}
