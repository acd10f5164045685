//! Disruption budgets.

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};

use super::{Hollow, QUICK, condition, controllers, eventually, has_taints};

fn budget_says(server: &Server, name: &str, wanted: &Value) -> Result<()> {
    eventually(&format!("{name} says {wanted}"), || {
        let budget = server.json(&["get", "pdb", name])?;
        let status = &budget["status"];
        let is_right = wanted
            .as_object()
            .into_iter()
            .flatten()
            .all(|(key, value)| status[key] == *value);
        Ok(
            (is_right && status["observedGeneration"] == budget["metadata"]["generation"])
                .then_some(()),
        )
    })
}

/// BO-10
#[test]
fn a_drain_takes_no_more_than_the_budget_allows() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    for name in ["n1", "n2"] {
        hollow.join(name, "a")?;
    }
    let _controllers = controllers(&server, QUICK)?;
    let at_once = json!({"terminationGracePeriodSeconds": 0});
    hollow.pod("a", "n1", "10.0.0.1", &at_once)?;
    hollow.pod("b", "n1", "10.0.0.2", &at_once)?;
    server.kubectl(&[
        "create",
        "pdb",
        "web",
        "--selector=app=web",
        "--min-available=1",
    ])?;
    budget_says(
        &server,
        "web",
        &json!({"expectedPods": 2, "currentHealthy": 2, "desiredHealthy": 1, "disruptionsAllowed": 1}),
    )?;
    let drain = ["drain", "n1", "--force", "--timeout=8s"];
    let refused = server.refused(&drain, "")?;
    ensure!(
        refused.contains("Cannot evict pod as it would violate the pod's disruption budget"),
        "{refused}"
    );
    has_taints(&server, "n1", &["unschedulable:NoSchedule"])?;
    let left = server.json(&["get", "pods"])?;
    ensure!(
        left["items"].as_array().is_some_and(|all| all.len() == 1),
        "{left}"
    );
    budget_says(
        &server,
        "web",
        &json!({"expectedPods": 1, "currentHealthy": 1, "disruptionsAllowed": 0}),
    )?;
    // Another one takes its place elsewhere, and the last may go.
    hollow.pod("c", "n2", "10.0.0.3", &at_once)?;
    budget_says(
        &server,
        "web",
        &json!({"expectedPods": 2, "disruptionsAllowed": 1}),
    )?;
    server.kubectl(&["drain", "n1", "--force"])?;
    let left = server.kubectl(&["get", "pods", "-o", "name"])?;
    ensure!(left.trim() == "pod/c", "{left}");

    // A share is one of how many there should be, not of those that there are.
    let template = json!({"metadata": {"labels": {"app": "set"}}, "spec": {"containers": [{"name": "c", "image": "example/c:1"}]}});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set", "namespace": "default"},
        "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "set"}}, "template": template},
    });
    let set = hollow.ask("POST", "/apis/apps/v1/namespaces/default/replicasets", &set)?;
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": set["metadata"]["uid"], "controller": true});
    for at in 0..3 {
        let meta = json!({"labels": {"app": "set"}, "ownerReferences": [owner]});
        hollow.pod(
            &format!("set-{at}"),
            "n2",
            &format!("10.0.1.{at}"),
            &json!({"metadata": meta}),
        )?;
    }
    server.kubectl(&[
        "create",
        "pdb",
        "share",
        "--selector=app=set",
        "--min-available=50%",
    ])?;
    budget_says(
        &server,
        "share",
        &json!({"expectedPods": 4, "currentHealthy": 3, "desiredHealthy": 2, "disruptionsAllowed": 1}),
    )?;
    server.kubectl(&["scale", "replicaset", "set", "--replicas=6"])?;
    budget_says(
        &server,
        "share",
        &json!({"expectedPods": 6, "currentHealthy": 3, "desiredHealthy": 3, "disruptionsAllowed": 0}),
    )?;
    hollow.says("set-0", "10.0.1.0", false)?;
    budget_says(
        &server,
        "share",
        &json!({"currentHealthy": 2, "disruptionsAllowed": 0}),
    )?;
    let budget = server.json(&["get", "pdb", "share"])?;
    ensure!(
        condition(&budget, "DisruptionAllowed")["reason"] == "InsufficientPods",
        "{budget}"
    );
    Ok(())
}
