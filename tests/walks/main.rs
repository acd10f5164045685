//! Walks through a whole cluster, as a person at a real kubectl takes them: `berth up` with nodes that run real containers.

mod autoscale;
mod batch;
mod cluster;
mod daemons;
mod deployments;
mod disruptions;
mod identity;
mod joining;
mod placement;
mod services;
mod soak;
mod trouble;
mod workload;

use std::collections::BTreeMap;

use serde_json::Value;

/// The items of a list.
fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|it| it["type"] == "Ready");
    pod["metadata"]["deletionTimestamp"].is_null() && ready.any(|it| it["status"] == "True")
}

/// How many pods of a list are ready.
fn ready(pods: &Value) -> usize {
    items(pods).filter(|pod| is_ready(pod)).count()
}

/// How many ready pods of a list each node has.
fn by_node(pods: &Value) -> BTreeMap<String, usize> {
    let mut nodes = BTreeMap::new();
    for pod in items(pods).filter(|pod| is_ready(pod)) {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        *nodes.entry(node.to_owned()).or_default() += 1;
    }
    nodes
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.find(|it| it["type"] == kind)
}
