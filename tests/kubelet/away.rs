//! A runtime that is away for longer than anybody likes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, process};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    member::{Member, NODE, condition},
    scene::container,
};

/// The node's status is looked at every 10 s, a probe asks every second, a pod's worker looks again after a minute.
const AWAY: Duration = Duration::from_secs(61);

const SLEEPER: &str = "  containers: [{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]";
const PROBED: &str = "  initContainers: [{name: s, image: busybox, imagePullPolicy: IfNotPresent, restartPolicy: Always, command: [sleep, '1000']}]\n  \
     containers: [{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000'], \
     livenessProbe: {exec: {command: ['true']}, timeoutSeconds: 60, periodSeconds: 1, failureThreshold: 1}, readinessProbe: {exec: {command: ['true']}, timeoutSeconds: 60, periodSeconds: 1, failureThreshold: 1}}]";

/// The ids of a pod's containers, by name, and that none was started again.
fn ids(pod: &Value) -> Result<BTreeMap<String, Value>> {
    let mut ids = BTreeMap::new();
    for list in ["containerStatuses", "initContainerStatuses"] {
        for one in pod["status"][list].as_array().into_iter().flatten() {
            ensure!(one["restartCount"] == 0, "{pod:#}");
            let name = one["name"].as_str().context("no name")?;
            ids.insert(name.to_owned(), one["containerID"].clone());
        }
    }
    Ok(ids)
}

fn id_of(pod: &Value, name: &str) -> Result<String> {
    let id = container(&pod["status"], name)["containerID"].as_str();
    let id = id.and_then(|id| id.rsplit('/').next());
    Ok(id.context("no container")?.to_owned())
}

fn is_down(node: &Value) -> bool {
    let all = node["status"]["conditions"].as_array();
    let ready = all.into_iter().flatten().find(|one| one["type"] == "Ready");
    ready.is_some_and(|one| {
        let why = one["message"].as_str().unwrap_or_default();
        one["status"] == "False"
            && one["reason"] == "KubeletNotReady"
            && why.starts_with("container runtime is down: ")
    })
}

#[test]
fn a_runtime_that_is_away_for_a_minute_restarts_nothing_and_all_is_caught_up_with_bo_15_rel_23()
-> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let names = ["stays", "probed", "goes", "dies"];
        for name in names {
            let spec = if name == "probed" { PROBED } else { SLEEPER };
            member.apply(name, spec)?;
        }
        let mut before = BTreeMap::new();
        for name in names {
            before.insert(name, member.wait_ready(name).await?);
        }
        let kept = ["stays", "probed"];
        let pids: Vec<i32> = kept
            .iter()
            .map(|name| {
                let init = process::init_of(&id_of(&before[name], "a")?);
                Ok(init.context("it does not run")?.pid)
            })
            .collect::<Result<_>>()?;
        let dies = process::init_of(&id_of(&before["dies"], "a")?).context("it does not run")?;

        node.daemon.kill_9();
        let since = Instant::now();
        member.apply("comes", SLEEPER)?;
        member
            .server
            .kubectl(&["delete", "pod", "goes", "--wait=false"])?;
        process::kill_9(dies.pid);
        member.wait("node", NODE, "not ready", is_down).await?;
        tokio::time::sleep(AWAY.saturating_sub(since.elapsed())).await;
        // nobody has died of it, nor been told of as if they had
        for (name, pid) in kept.iter().zip(&pids) {
            ensure!(process::Process::read(*pid).is_some(), "{name} is gone");
            let now = member.server.json(&["get", "pod", name])?;
            ensure!(ids(&now)? == ids(&before[name])?, "{now:#}");
        }
        let node_now = member.server.json(&["get", "node", NODE])?;
        ensure!(is_down(&node_now), "{node_now:#}");

        node.restart().await?;
        member
            .wait("node", NODE, "ready", |it| condition(it, "Ready") == "True")
            .await?;
        ids(&member.wait_ready("comes").await?)?;
        member
            .until("the pod that was deleted is gone", || {
                let said = member.server.ask(&["get", "pod", "goes"], "")?;
                Ok(!said.ok && said.stderr.contains("NotFound"))
            })
            .await?;
        let again = |it: &Value| {
            let one = container(&it["status"], "a");
            one["restartCount"] == 1 && one["ready"] == true
        };
        member.wait("pod", "dies", "up again", again).await?;
        for (name, pid) in kept.iter().zip(&pids) {
            let now = member.wait_ready(name).await?;
            ensure!(ids(&now)? == ids(&before[name])?, "{now:#}");
            ensure!(process::Process::read(*pid).is_some(), "{name} is gone");
        }
        let killing: Value = member.server.json(&["get", "events"])?;
        let killing = killing["items"].as_array().into_iter().flatten();
        let mut killing = killing.filter(|one| {
            let of = one["involvedObject"]["name"].as_str();
            one["reason"] == "Killing" && of.is_some_and(|of| kept.contains(&of))
        });
        ensure!(killing.next().is_none(), "somebody was killed");
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}

#[test]
fn a_runtime_that_hangs_makes_its_node_not_ready_and_is_waited_for_rel_23() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        member.apply("stays", PROBED)?;
        let before = member.wait_ready("stays").await?;
        let pid = node.daemon.pid().and_then(Pid::from_raw);
        let pid = pid.context("no daemon")?;
        kill_process(pid, Signal::STOP)?;
        let told = member.wait("node", NODE, "not ready", is_down).await;
        kill_process(pid, Signal::CONT)?;
        told?;
        member
            .wait("node", NODE, "ready", |it| condition(it, "Ready") == "True")
            .await?;
        let after = member.wait_ready("stays").await?;
        ensure!(ids(&after)? == ids(&before)?, "{after:#}");
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}
