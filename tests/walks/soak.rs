//! Random operations while parts of the cluster are killed at random: at the end the cluster is as its objects say, on every node.
//! `BERTH_TEST_SOAK_SECONDS` says for how long (20), `BERTH_TEST_SEED` which (the time).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use berth_tests::nodes::Nodes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::{
    condition, is_ready, items,
    workload::{self, busybox, sleeper},
};

const NODES: u8 = 2;
const DEPLOYMENTS: u64 = 3;

fn variable(name: &str, default: u64) -> Result<u64> {
    let value = std::env::var(name);
    value.map_or(Ok(default), |value| {
        value.parse().with_context(|| name.to_owned())
    })
}

fn deployment(name: &str, replicas: u64, turn: u64) -> Value {
    let mut made = workload::deployment(name, replicas, &sleeper());
    made["spec"]["template"]["metadata"]["labels"]["turn"] = turn.to_string().into();
    made
}

/// What was asked for last: of each deployment replicas and turn, of each job completions.
#[derive(Debug, Default)]
struct Wanted {
    deployments: BTreeMap<String, (u64, u64)>,
    jobs: BTreeMap<String, u64>,
}

/// One operation, and what it was. What the server does not take, since it has just been killed, is tried again.
fn operate(
    nodes: &mut Nodes,
    chance: &mut StdRng,
    wanted: &mut Wanted,
    number: u64,
) -> Result<String> {
    let node = 1 + chance.random_range(0..NODES);
    Ok(match chance.random_range(0..12) {
        0..=3 => {
            let name = format!("d{}", chance.random_range(0..DEPLOYMENTS));
            let (replicas, turn) = (chance.random_range(0..5), number);
            let keeps = wanted.deployments.get(&name).map(|(_, turn)| *turn);
            let turn = keeps
                .filter(|_| chance.random_range(0..2) == 0)
                .unwrap_or(turn);
            wanted.deployments.insert(name.clone(), (replicas, turn));
            nodes.eventually("a deployment", || {
                nodes.apply(&deployment(&name, replicas, turn)).map(Some)
            })?;
            format!("{name}: {replicas} of turn {turn}")
        }
        4 | 5 => {
            let (name, completions) = (format!("j{number}"), 1 + chance.random_range(0..4));
            wanted.jobs.insert(name.clone(), completions);
            let job = workload::job(&name, completions, busybox(&["sleep", "0.3"]));
            nodes.eventually("a job", || nodes.apply(&job).map(Some))?;
            format!("{name}: {completions}")
        }
        6 => {
            let Some(name) = wanted.jobs.keys().next().cloned() else {
                return Ok("no job to delete".into());
            };
            wanted.jobs.remove(&name);
            nodes.eventually("a job goes", || {
                let arguments = ["delete", "job", &name, "--ignore-not-found", "--wait=false"];
                Ok(Some(nodes.kubectl.kubectl(&arguments)?))
            })?;
            format!("{name} is deleted")
        }
        7 => {
            let pods = nodes.kubectl.json(&["get", "pods"])?;
            let all: Vec<&str> = items(&pods)
                .filter(|pod| pod["metadata"]["labels"]["app"].is_string())
                .filter_map(|pod| pod["metadata"]["name"].as_str())
                .collect();
            if all.is_empty() {
                return Ok("no pod to delete".into());
            }
            let name = all[chance.random_range(0..all.len())];
            nodes.ask(&["delete", "pod", name, "--wait=false"])?;
            format!("pod {name} is deleted")
        }
        8 | 9 => {
            let program = ["kubelet", "berthd"][chance.random_range(0..2)];
            nodes.kill_9(node, program)?;
            format!("{program} of {node} is killed")
        }
        10 => {
            nodes.kill_up()?;
            nodes.up()?;
            "berth up is killed and starts again".into()
        }
        _ => {
            let name = nodes.node(node);
            let verb = ["cordon", "uncordon"][chance.random_range(0..2)];
            nodes.eventually("a cordon", || {
                Ok(Some(nodes.kubectl.kubectl(&[verb, &name])?))
            })?;
            format!("{verb} {name}")
        }
    })
}

fn is_as_wanted(deployment: &Value, (replicas, turn): (u64, u64), pods: &Value) -> bool {
    let name = &deployment["metadata"]["name"];
    let own: Vec<&Value> = items(pods)
        .filter(|pod| pod["metadata"]["labels"]["app"] == *name)
        .collect();
    deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
        && deployment["status"]["availableReplicas"]
            .as_u64()
            .unwrap_or(0)
            == replicas
        && own.len() as u64 == replicas
        && own.iter().all(|pod| {
            is_ready(pod) && pod["metadata"]["labels"]["turn"] == turn.to_string().as_str()
        })
}

#[test]
fn whatever_was_done_and_killed_the_cluster_is_as_its_objects_say() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = variable("BERTH_TEST_SEED", now)?;
    let seconds = variable("BERTH_TEST_SOAK_SECONDS", 20)?;
    let mut done = vec![format!("BERTH_TEST_SEED={seed}")];
    let outcome = Nodes::test(NODES, |nodes| {
        let (mut chance, mut wanted) = (StdRng::seed_from_u64(seed), Wanted::default());
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut number = 0;
        while Instant::now() < until {
            done.push(operate(nodes, &mut chance, &mut wanted, number)?);
            number += 1;
            std::thread::sleep(Duration::from_millis(chance.random_range(0..800)));
        }
        for number in 1..=NODES {
            let name = nodes.node(number);
            nodes.eventually("all take pods", || {
                Ok(Some(nodes.kubectl.kubectl(&["uncordon", &name])?))
            })?;
        }
        nodes.eventually("all is as it was asked for", || {
            let pods = nodes.kubectl.json(&["get", "pods"])?;
            let deployments = nodes.kubectl.json(&["get", "deployments"])?;
            let jobs = nodes.kubectl.json(&["get", "jobs"])?;
            for deployment in items(&deployments) {
                let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
                let want = wanted.deployments.get(name).copied();
                let want = want.with_context(|| format!("nobody asked for {name}"))?;
                ensure!(
                    is_as_wanted(deployment, want, &pods),
                    "{name}: {want:?} {:#}\nof its pods: {:#}",
                    deployment["status"],
                    items(&pods)
                        .filter(|pod| pod["metadata"]["labels"]["app"] == name)
                        .filter(|pod| !is_ready(pod))
                        .cloned()
                        .collect::<Value>()
                );
            }
            for job in items(&jobs) {
                let name = job["metadata"]["name"].as_str().unwrap_or_default();
                let want = wanted.jobs.get(name);
                let succeeded = job["status"]["succeeded"].as_u64();
                let over = condition(job, "Complete").is_some_and(|it| it["status"] == "True");
                ensure!(
                    over && succeeded.as_ref() == want,
                    "{name}: {want:?} {:#}",
                    job["status"]
                );
            }
            let (found, asked) = (items(&deployments).count(), wanted.deployments.len());
            ensure!(found == asked && items(&jobs).count() == wanted.jobs.len());
            // and nothing beside: each pod belongs to something that there is
            let stray: Vec<&Value> = items(&pods)
                .filter(|pod| {
                    let job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"].as_str();
                    let of_job = job.is_some_and(|job| wanted.jobs.contains_key(job));
                    !of_job && !pod["metadata"]["labels"]["app"].is_string()
                })
                .map(|pod| &pod["metadata"]["name"])
                .collect();
            ensure!(stray.is_empty(), "{stray:?}");
            Ok(Some(()))
        })?;
        for number in 1..=NODES {
            let name = nodes.node(number);
            nodes.eventually("a node runs what the API says, and no more", || {
                let pods = nodes.kubectl.json(&["get", "pods"])?;
                let mut here: Vec<&str> = items(&pods)
                    .filter(|pod| pod["spec"]["nodeName"] == name.as_str() && is_ready(pod))
                    .filter_map(|pod| pod["metadata"]["name"].as_str())
                    .collect();
                here.sort_unstable();
                let listed = nodes.berth(number, &["--output", "json", "pod", "list"])?;
                let listed: Value = serde_json::from_str(&listed)?;
                let mut running: Vec<&str> = listed
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|pod| pod["state"] == "ready" || pod["state"] == "Ready")
                    .filter_map(|pod| pod["name"].as_str())
                    .collect();
                running.sort_unstable();
                ensure!(running == here, "{running:?} instead of {here:?}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    });
    outcome.with_context(|| done.join("\n"))
}
