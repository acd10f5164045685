//! PodTopologyLabels: a pod that gets a node is labelled with the node's zone and region, so that what runs in it can be told.

use serde_json::{Map, Value};

use crate::{api::Api, failure::Failure, object};

const LABELS: [&str; 2] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// The labels that pods of `node` get; none where there is no such node, which may come later.
pub async fn of_node(api: &Api, node: &str) -> Result<Map<String, Value>, Failure> {
    let nodes = api.cache.shard("minions");
    let mut entry = nodes.get(node);
    if entry.is_none() {
        // It may have been made this moment.
        api.cache.fresh().await?;
        entry = nodes.get(node);
    }
    let labels = entry.iter().flat_map(|entry| &entry.labels);
    Ok(of(labels.map(|(key, value)| (&**key, &**value))))
}

fn of<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> Map<String, Value> {
    labels
        .filter(|(key, _)| LABELS.contains(key))
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect()
}

/// A pod that is made with its node.
pub async fn label(api: &Api, pod: &mut Value) -> Result<(), Failure> {
    let node = object::text(pod, "/spec/nodeName").to_owned();
    if !node.is_empty() {
        merge(pod, of_node(api, &node).await?);
    }
    Ok(())
}

/// Into the labels of `object`, over those that it has.
pub fn merge(object: &mut Value, labels: Map<String, Value>) {
    if labels.is_empty() {
        return;
    }
    let own = object::metadata(object)
        .entry("labels")
        .or_insert(Value::Null);
    match own {
        Value::Object(own) => own.extend(labels),
        other => *other = Value::Object(labels),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn zone_and_region_of_the_node_go_over_what_the_pod_says() {
        let node = [
            ("topology.kubernetes.io/zone", "a"),
            ("topology.kubernetes.io/region", "r"),
            ("disk", "fast"),
        ];
        for (before, after) in [
            (
                json!({"topology.kubernetes.io/zone": "b", "app": "x"}),
                json!({"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": "r", "app": "x"}),
            ),
            (
                Value::Null,
                json!({"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": "r"}),
            ),
        ] {
            let mut pod = json!({"metadata": {"labels": before}});
            merge(&mut pod, of(node.into_iter()));
            assert_eq!(pod["metadata"]["labels"], after);
        }
        let mut pod = json!({"metadata": {}});
        merge(&mut pod, of([].into_iter()));
        assert_eq!(pod, json!({"metadata": {}}));
    }
}
