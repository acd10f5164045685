//! A minute in which the API server refuses, breaks off and hangs up on everybody.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    cluster::{Component, Kubectl},
    nodes::{Nodes, WITHIN},
    process::{self, Process},
    trouble::{Bad, Way},
};
use serde_json::Value;

use crate::{
    is_ready, items,
    workload::{busybox, deployment},
};

const BAD: &[Bad] = &[
    Bad::TooMany,
    Bad::Internal,
    Bad::Cut,
    Bad::Unavailable,
    Bad::Lost,
];
const MINUTE: Duration = Duration::from_secs(60);
/// What a program may ask in a second of that minute, on the mean. The controllers watch some thirty kinds.
const CONTROLLERS_MOST: usize = 10;
const OTHERS_MOST: usize = 3;
/// Where the nodes find this machine.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);

/// The containers of a Deployment's pods, by what they sleep.
fn sleepers(nodes: &Nodes, seconds: u32) -> Vec<Process> {
    let all = [1, 2].map(|number| process::in_cgroup(&format!("berth-{}", nodes.node(number))));
    let line = format!("sleep {seconds} ");
    all.into_iter()
        .flatten()
        .filter(|it| it.cmdline() == line)
        .collect()
}

/// What a list of pods says of their containers: which, and how often started again. Those that are ready.
fn containers(pods: &Value) -> Vec<(String, u64)> {
    let mut all: Vec<_> = items(pods)
        .filter(|pod| is_ready(pod))
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let id = status["containerID"].as_str().unwrap_or_default();
            (
                id.to_owned(),
                status["restartCount"].as_u64().unwrap_or(u64::MAX),
            )
        })
        .collect();
    all.sort();
    all
}

/// The names of all pods that there ever are, as a kubectl writes them down.
struct Ever(Child);

impl Ever {
    fn watch(kubectl: &Kubectl, to: &Path) -> Result<Self> {
        let arguments = [
            "get",
            "pods",
            "--watch",
            "--output=jsonpath={.metadata.name}{'\\n'}",
        ];
        let child = kubectl
            .command(&arguments)?
            .stdin(Stdio::null())
            .stdout(fs::File::create(to)?)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Ever {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The node's kubelet gets to the server by this way from now on.
fn reroute(nodes: &Nodes, number: u8) -> Result<Way> {
    let dir = nodes.node_dir(number);
    let own = dir.join("own.kubeconfig");
    fs::copy(dir.join("kubelet.kubeconfig"), &own)?;
    let kubectl = Kubectl {
        kubeconfig: own,
        ..nodes.kubectl.clone()
    };
    let way = Way::lay(kubectl.proxy()?, HOST, BAD)?;
    // it makes its kubeconfig of this one when it starts
    way.write_kubeconfig(&dir.join("bootstrap.kubeconfig"))?;
    nodes.kill_9(number, "kubelet")?;
    Ok(way)
}

#[test]
fn a_minute_of_a_server_that_refuses_and_hangs_up_harms_no_container_ar_02_bo_15_cp_11()
-> Result<()> {
    Nodes::test_with(2, &["--api-only"], |nodes| {
        let mut ways = Vec::new();
        let mut parts = Vec::new();
        for name in ["controllers", "scheduler"] {
            let way = Way::lay(nodes.kubectl.proxy()?, Ipv4Addr::LOCALHOST, BAD)?;
            let kubeconfig = nodes.dir.join(format!("{name}.kubeconfig"));
            way.write_kubeconfig(&kubeconfig)?;
            let alone = ["--leader-elect=false"];
            parts.push(Component::start_in(&nodes.dir, &kubeconfig, name, &alone)?);
            ways.push((name.to_owned(), way));
        }
        for number in [1, 2] {
            ways.push((format!("kubelet {number}"), reroute(nodes, number)?));
        }
        let names = nodes.dir.join("names");
        let _ever = Ever::watch(&nodes.kubectl, &names)?;
        nodes.apply(&deployment("web", 4, &busybox(&["sleep", "100001"])))?;
        nodes.apply(&deployment("frail", 1, &busybox(&["sleep", "100002"])))?;
        let web = ["pods", "-l", "app=web"];
        let pods = nodes.until(&web, "four run", |pods| containers(pods).len() == 4)?;
        let before = containers(&pods);
        nodes.until(&["pods", "-l", "app=frail"], "it runs", |pods| {
            containers(pods).len() == 1
        })?;
        let steady = sleepers(nodes, 100_001);
        ensure!(steady.len() == 4, "{steady:?}");
        let frail = sleepers(nodes, 100_002);
        ensure!(frail.len() == 1, "{frail:?}");
        for (name, way) in &ways {
            nodes.eventually(name, || Ok((way.watches() > 0).then_some(())))?;
        }

        let asked: Vec<usize> = ways.iter().map(|(_, way)| way.asked()).collect();
        let begun = Instant::now();
        ways.iter().for_each(|(_, way)| way.worsen());
        process::kill_9(frail[0].pid);
        nodes
            .kubectl
            .kubectl(&["scale", "deployment/web", "--replicas=6"])?;
        let mut is_back = false;
        while begun.elapsed() < MINUTE || !is_back {
            for one in &steady {
                let now = Process::read(one.pid);
                ensure!(now.is_some_and(|now| now.is(one)), "{one:?} has ended");
            }
            let now = sleepers(nodes, 100_002);
            is_back |= now.iter().any(|now| !now.is(&frail[0]));
            ensure!(
                begun.elapsed() < MINUTE + WITHIN,
                "the container that died is not started again"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        let seconds = usize::try_from(begun.elapsed().as_secs())?;
        ways.iter().for_each(|(_, way)| way.improve());
        for ((name, way), before) in ways.iter().zip(asked) {
            let asked = way.asked() - before;
            println!(
                "{name}: {asked} requests in {seconds} s, {} refused",
                way.refused()
            );
            let most = match name.as_str() {
                "controllers" => CONTROLLERS_MOST,
                _ => OTHERS_MOST,
            };
            ensure!(
                asked <= most * seconds,
                "{name}: {asked} requests in {seconds} s"
            );
            ensure!(way.refused() > 0, "{name} was refused nothing");
        }

        let pods = nodes.until(&web, "six run", |pods| containers(pods).len() == 6)?;
        let after = containers(&pods);
        ensure!(
            items(&pods).count() == 6 && after.iter().all(|(_, restarts)| *restarts == 0),
            "{after:?}"
        );
        ensure!(
            before.iter().all(|it| after.contains(it)),
            "{before:?}, then {after:?}"
        );
        nodes.until(
            &["pods", "-l", "app=frail"],
            "its restart is told",
            |pods| {
                let now = containers(pods);
                items(pods).count() == 1 && now.len() == 1 && now[0].1 == 1
            },
        )?;
        nodes.until(&["deployment/web"], "it is counted", |it| {
            it["status"]["availableReplicas"] == 6 && it["status"]["replicas"] == 6
        })?;
        // nothing was done twice: neither by the controllers nor on the nodes
        let ever = nodes.eventually("all seven have been seen", || {
            let text = fs::read_to_string(&names)?;
            let ever: std::collections::BTreeSet<&str> = text.lines().collect();
            Ok((ever.len() >= 7).then_some(ever.len()))
        })?;
        ensure!(ever == 7, "{}", fs::read_to_string(&names)?);
        let mut sandboxes = 0;
        for number in [1, 2] {
            let list = nodes.berth(number, &["--output", "json", "pod", "list"])?;
            let list: Value = serde_json::from_str(&list).context(list)?;
            sandboxes += list.as_array().map_or(0, Vec::len);
        }
        ensure!(sandboxes == 7, "{sandboxes} pods at the runtimes");
        ensure!(sleepers(nodes, 100_001).len() == 6 && sleepers(nodes, 100_002).len() == 1);
        Ok(())
    })
}
