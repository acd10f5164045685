//! An API server that answers 429 and 500 for a while: `berth controllers` and `berth scheduler` get to it through a proxy which does that. In the end all is as it
//! should be, and nothing was done twice.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use berth_tests::{
    cluster::{Component, Server},
    trouble::{Bad, Way},
};
use serde_json::{Value, json};

use crate::workloads::hollow::Hollow;

const WITHIN: Duration = Duration::from_secs(90);
/// Requests that are refused before the server is well again.
const REFUSALS: usize = 100;

fn deployment(name: &str, replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "10m"}}}],
            }},
        },
    })
}

fn apply(server: &Server, object: &Value) -> Result<()> {
    server
        .kubectl_with(&["apply", "-f", "-"], &object.to_string())
        .map(drop)
}

fn until(server: &Server, what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + WITHIN;
    while !is()? {
        if Instant::now() > until {
            let log = |name: &str| std::fs::read_to_string(server.dir().join(name));
            bail!(
                "not within {} s: {what}\ncontrollers: {:?}\nscheduler: {:?}",
                WITHIN.as_secs(),
                log("controllers.log"),
                log("scheduler.log")
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// All its pods are of its newest template, ready and counted, and there are no others.
fn is_rolled(server: &Server, name: &str, replicas: u64) -> Result<bool> {
    let deployment = server.json(&["get", "deployment", name])?;
    let status = &deployment["status"];
    let counts = ["replicas", "updatedReplicas", "availableReplicas"];
    let pods = server.json(&["get", "pods", "-l", &format!("app={name}")])?;
    Ok(
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && counts.iter().all(|count| status[*count] == replicas)
            && pods["items"].as_array().map(Vec::len) == usize::try_from(replicas).ok(),
    )
}

#[test]
fn a_server_that_refuses_for_a_while_is_waited_for_and_nothing_is_done_twice() -> Result<()> {
    let server = Server::start("memory")?;
    let room = json!({"cpu": "4", "memory": "4Gi", "pods": "20"});
    for name in ["n1", "n2"] {
        apply(
            &server,
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
        )?;
        let status = json!({"status": {"allocatable": room, "capacity": room, "conditions": [{"type": "Ready", "status": "True"}]}});
        let status = status.to_string();
        let patch = [
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
        ];
        server.kubectl(&[&patch[..], &[&status]].concat())?;
    }
    let hollow = Hollow::start_beside_a_scheduler(&server)?;
    let bad = &[Bad::TooMany, Bad::Internal];
    let way = Way::lay(server.proxy()?, Ipv4Addr::LOCALHOST, bad)?;
    let kubeconfig = server.dir().join("troubled");
    way.write_kubeconfig(&kubeconfig)?;
    let alone = "--leader-elect=false";
    let names = "--controllers=deployment-controller,replicaset-controller";
    let _controllers = Component::start_at(&server, &kubeconfig, "controllers", &[alone, names])?;
    let _scheduler = Component::start_at(&server, &kubeconfig, "scheduler", &[alone])?;
    apply(&server, &deployment("web", 6, "example/c:1"))?;
    until(&server, "six pods are ready", || {
        is_rolled(&server, "web", 6)
    })?;

    hollow.begin();
    way.worsen();
    apply(&server, &deployment("web", 6, "example/c:2"))?;
    apply(&server, &deployment("late", 3, "example/c:1"))?;
    // it fits nowhere, and has to be told so in the end
    let mut large = deployment("large", 1, "example/c:1");
    large["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] =
        "64".into();
    apply(&server, &large)?;
    until(&server, "enough is refused", || {
        Ok(way.refused() >= REFUSALS)
    })?;
    way.improve();

    until(&server, "it is rolled", || is_rolled(&server, "web", 6))?;
    until(&server, "the late one is there", || {
        is_rolled(&server, "late", 3)
    })?;
    until(&server, "the large one is told why it waits", || {
        let pods = server.json(&["get", "pods", "-l", "app=large"])?;
        let conditions = pods["items"][0]["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        Ok(conditions.any(|it| it["type"] == "PodScheduled" && it["reason"] == "Unschedulable"))
    })?;
    let counts = hollow.counts();
    // six and two more, three, one; five of the first are ready all the time
    ensure!(counts.most <= 12 && counts.least_ready >= 5, "{counts:?}");
    for (app, ever) in [("web", 12), ("late", 3), ("large", 1)] {
        ensure!(
            hollow.ever("app", app) == ever,
            "{app}: {} pods instead of {ever}",
            hollow.ever("app", app)
        );
    }
    Ok(())
}
