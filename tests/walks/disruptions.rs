//! Nodes that are drained, or cut off.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;
use serde_json::{Value, json};

use crate::{by_node, condition, items, ready};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      containers:
      - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 3, selector: {matchLabels: {app: web}}}
"#;

#[test]
fn a_drained_node_gives_its_pods_away_a_few_at_a_time_bo_10() -> Result<()> {
    Nodes::test(3, |nodes| {
        nodes.apply(WEB)?;
        let pods = ["pods", "-l", "app=web"];
        let before = nodes.until(&pods, "four run", |pods| ready(pods) == 4)?;
        nodes.until(&["pdb/web"], "one may go", |it| {
            it["status"]["disruptionsAllowed"] == 1
        })?;
        let drained = by_node(&before).into_iter().max_by_key(|(_, count)| *count);
        let (drained, _) = drained.unwrap_or_default();
        nodes
            .kubectl
            .kubectl(&["drain", &drained, "--ignore-daemonsets", "--timeout=60s"])?;
        nodes.until(&pods, "four run elsewhere", |pods| {
            let now = by_node(pods);
            now.values().sum::<usize>() == 4 && !now.contains_key(&drained)
        })?;
        nodes.kubectl.kubectl(&["uncordon", &drained])?;
        nodes
            .kubectl
            .kubectl(&["scale", "deployment", "web", "--replicas=6"])?;
        nodes.until(&pods, "the drained one takes pods again", |pods| {
            by_node(pods).contains_key(&drained)
        })?;
        Ok(())
    })
}

#[test]
fn a_node_that_is_cut_off_loses_its_pods_and_has_none_twice_when_it_is_back_bo_12_ar_01()
-> Result<()> {
    // twice what lies between two renewals of a lease: a busy machine's nodes are none that are cut off
    let quick = ["--node-monitor-grace-period", "20s"];
    Nodes::test_with(3, &quick, |nodes| {
        nodes.apply(WEB)?;
        let pods = ["pods", "-l", "app=web"];
        let before = nodes.until(&pods, "four run", |pods| ready(pods) == 4)?;
        ensure!(by_node(&before).len() == 3, "{:?}", by_node(&before));
        let cut = nodes.node(3);
        nodes.plug(3, false)?;
        nodes.until(&[&format!("node/{cut}")], "it is not heard of", |node| {
            condition(node, "Ready").is_some_and(|it| it["status"] == "Unknown")
        })?;
        nodes.until(&pods, "four run elsewhere", |pods| {
            let mut now = by_node(pods);
            now.remove(&cut);
            now.values().sum::<usize>() == 4
        })?;
        nodes.plug(3, true)?;
        nodes.until(&[&format!("node/{cut}")], "it is ready again", |node| {
            condition(node, "Ready").is_some_and(|it| it["status"] == "True")
                && node["spec"]["taints"].is_null()
        })?;
        // what it had is gone from the API and from the node
        nodes.until(&pods, "there are four", |pods| items(pods).count() == 4)?;
        let now = nodes.kubectl.json(&["get", "pods", "-l", "app=web"])?;
        let here = items(&now)
            .filter(|pod| pod["spec"]["nodeName"] == cut.as_str())
            .count();
        nodes.eventually("its runtime has what the API says", || {
            let listed = nodes.berth(3, &["--output", "json", "pod", "list"])?;
            let listed: serde_json::Value = serde_json::from_str(&listed)?;
            Ok((listed.as_array().map_or(0, Vec::len) == here).then_some(()))
        })?;
        Ok(())
    })
}

/// SH-01: whoever was not heard for a while, and comes back with nothing new to tell.
#[test]
fn a_node_that_is_called_silent_says_soon_that_it_is_not() -> Result<()> {
    Nodes::test(1, |nodes| {
        let name = nodes.node(1);
        let node = ["node", &name];
        let ready = |node: &Value| condition(node, "Ready").cloned().unwrap_or_default();
        let before = nodes.until(&node, "it is ready", |node| ready(node)["status"] == "True")?;
        let unknown = json!({
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "lastTransitionTime": ready(&before)["lastTransitionTime"],
        });
        let patch = json!({"status": {"conditions": [unknown]}}).to_string();
        let says = ["patch", "node", &name, "--subresource=status", "-p", &patch];
        nodes.kubectl.kubectl(&says)?;
        nodes.until(&node, "it says that it is ready", |node| {
            ready(node)["status"] == "True"
        })?;
        Ok(())
    })
}
