//! A pod on every node.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;
use serde_json::json;

use crate::{by_node, items, workload::sleeper};

pub fn apply(nodes: &Nodes, strategy: &str, turn: &str) -> Result<String> {
    nodes.apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "agent"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "updateStrategy": {"type": strategy},
            "template": {"metadata": {"labels": {"app": "agent", "turn": turn}}, "spec": sleeper()},
        },
    }))
}

#[test]
fn every_node_has_one_pod_of_a_daemon_set_ds_01_ds_02_ds_03_ds_04_ds_05_ds_06() -> Result<()> {
    Nodes::test(3, |nodes| {
        let daemon = |strategy: &str, turn: &str| apply(nodes, strategy, turn);
        let pods = ["pods", "-l", "app=agent"];
        let on_each = |pods: &serde_json::Value| {
            by_node(pods) == nodes.names().into_iter().map(|name| (name, 1)).collect()
        };
        daemon("RollingUpdate", "1")?;
        let first = nodes.until(&pods, "one on each", on_each)?;

        // one that dies is made again
        let victim = items(&first)
            .next()
            .map(|pod| pod["metadata"]["name"].clone());
        let victim = victim
            .as_ref()
            .and_then(|it| it.as_str())
            .unwrap_or_default()
            .to_owned();
        nodes.kubectl.kubectl(&["delete", "pod", &victim])?;
        nodes.until(&pods, "one on each again", |pods| {
            on_each(pods) && items(pods).all(|pod| pod["metadata"]["name"] != victim.as_str())
        })?;

        // a new template: all are replaced; or, with OnDelete, only who is deleted
        let turns = |pods: &serde_json::Value, turn: &str| {
            items(pods)
                .filter(|pod| pod["metadata"]["labels"]["turn"] == turn)
                .count()
        };
        daemon("RollingUpdate", "2")?;
        nodes.until(&pods, "all are of the second turn", |pods| {
            on_each(pods) && turns(pods, "2") == 3
        })?;
        daemon("OnDelete", "3")?;
        nodes.until(&["daemonset/agent"], "it has been seen", |it| {
            it["status"]["observedGeneration"] == it["metadata"]["generation"]
        })?;
        let now = nodes.kubectl.json(&["get", "pods", "-l", "app=agent"])?;
        ensure!(turns(&now, "2") == 3, "{now:#}");
        let one = items(&now)
            .next()
            .and_then(|pod| pod["metadata"]["name"].as_str())
            .unwrap_or_default();
        nodes.kubectl.kubectl(&["delete", "pod", one])?;
        nodes.until(&pods, "one is of the third turn", |pods| {
            on_each(pods) && turns(pods, "3") == 1
        })?;

        // a node that does not match any more loses its pod, one that does gets one
        let gone = nodes.node(2);
        let leaves = json!({"key": "leaves", "operator": "DoesNotExist"});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [leaves]}],
        }}});
        let patch = json!({"spec": {
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {"spec": {"affinity": affinity}},
        }})
        .to_string();
        nodes
            .kubectl
            .kubectl(&["patch", "daemonset", "agent", "-p", &patch])?;
        nodes.until(&pods, "one on each", on_each)?;
        nodes
            .kubectl
            .kubectl(&["label", "node", &gone, "leaves=yes"])?;
        nodes.until(&pods, "none on the one that leaves", |pods| {
            by_node(pods).len() == 2
                && items(pods).all(|pod| pod["spec"]["nodeName"] != gone.as_str())
        })?;
        nodes
            .kubectl
            .kubectl(&["label", "node", &gone, "leaves-"])?;
        nodes.until(&pods, "one on each", on_each)?;
        Ok(())
    })
}
