//! On which nodes a DaemonSet has a pod, and what its pods have so that they get and stay there (DS-07).

use berth_scheduler::Demands;
use k8s_openapi::api::{
    apps::v1::DaemonSetSpec,
    core::v1::{
        Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
        Taint, Toleration,
    },
};

use crate::pod;

const NODE_FIELD: &str = "metadata.name";
/// What a node may have that keeps no daemon away, and ends none: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Of those that use the node's network: they may be what makes it available.
const TOLERATED_WITH_HOST_NETWORK: (&str, &str) =
    ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a node is to a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is to have a pod.
    Wanted,
    /// It is to have none, but one that is there may stay.
    Left,
    Unwanted,
}

/// Says of each node what it is.
#[derive(Debug)]
pub(super) struct Places {
    demands: Demands,
    /// The only one, if the template names one.
    node: Option<String>,
}

impl Places {
    pub(super) fn of(spec: &DaemonSetSpec) -> Self {
        let mut pod = spec.template.spec.clone().unwrap_or_default();
        tolerate(&mut pod);
        Self {
            node: pod.node_name.take().filter(|name| !name.is_empty()),
            demands: Demands::of(&pod),
        }
    }

    pub(super) fn place(&self, node: &Node) -> Place {
        let is_named = |name| node.metadata.name.as_ref() == Some(name);
        if !self.node.as_ref().is_none_or(is_named) || !self.demands.take(node) {
            return Place::Unwanted;
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let repels = |effects: &[&str]| {
            taints.into_iter().flatten().any(|taint: &Taint| {
                effects.contains(&taint.effect.as_str()) && !self.demands.tolerate(taint)
            })
        };
        if repels(&["NoExecute"]) {
            Place::Unwanted
        } else if repels(&["NoSchedule"]) {
            Place::Left
        } else {
            Place::Wanted
        }
    }
}

/// Adds what every daemon tolerates. One that it has of the same key and effect is replaced.
pub(super) fn tolerate(spec: &mut PodSpec) {
    let with_network = (spec.host_network == Some(true)).then_some(TOLERATED_WITH_HOST_NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(with_network) {
        let one = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |known: &Toleration| {
            known.key == one.key
                && known.effect == one.effect
                && known.operator == one.operator
                && known.value.as_deref().unwrap_or_default().is_empty()
        };
        match tolerations.iter_mut().find(|known| same(known)) {
            Some(known) => *known = one,
            None => tolerations.push(one),
        }
    }
}

/// Asks the scheduler for this node and no other. What the template requires of nodes was looked at when the node was chosen.
pub(super) fn bind(spec: &mut PodSpec, node: &str) {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let nodes = affinity.node_affinity.get_or_insert_default();
    nodes.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: NODE_FIELD.into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
            match_expressions: None,
        }],
    });
}

/// Where a pod is, or is to be.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let bound = pod::node_of(pod).unwrap_or_default();
    if !bound.is_empty() {
        return Some(bound);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
    let nodes = affinity.node_affinity.as_ref()?;
    let required = nodes
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == NODE_FIELD && field.operator == "In");
    match named.next()?.values.as_deref()? {
        [node] => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(pod: Value) -> DaemonSetSpec {
        serde_json::from_value(json!({"selector": {}, "template": {"spec": pod}})).unwrap()
    }

    fn node(name: &str, taints: &[(&str, &str)]) -> Node {
        let taint = |(key, effect): &(&str, &str)| json!({"key": key, "effect": effect});
        let taints: Vec<_> = taints.iter().map(taint).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"zone": "a"}}, "spec": {"taints": taints},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_wanted_by_its_labels_its_name_and_its_taints() {
        let plain = json!({"containers": []});
        let own = [("own", "NoSchedule")];
        let ends = [("own", "NoExecute")];
        let prefers = [("own", "PreferNoSchedule")];
        let of_conditions: Vec<_> = TOLERATED.to_vec();
        let no_network = [TOLERATED_WITH_HOST_NETWORK];
        for (pod, taints, expected) in [
            (plain.clone(), &[][..], Place::Wanted),
            (plain.clone(), &own, Place::Left),
            (plain.clone(), &ends, Place::Unwanted),
            (plain.clone(), &prefers, Place::Wanted),
            (plain.clone(), &of_conditions, Place::Wanted),
            (plain.clone(), &no_network, Place::Left),
            (
                json!({"containers": [], "hostNetwork": true}),
                &no_network,
                Place::Wanted,
            ),
            (
                json!({"containers": [], "tolerations": [{"key": "own", "operator": "Exists"}]}),
                &own,
                Place::Wanted,
            ),
            (
                json!({"containers": [], "nodeSelector": {"zone": "a"}}),
                &[],
                Place::Wanted,
            ),
            (
                json!({"containers": [], "nodeSelector": {"zone": "b"}}),
                &[],
                Place::Unwanted,
            ),
            (
                json!({"containers": [], "nodeName": "n1"}),
                &[],
                Place::Wanted,
            ),
            (
                json!({"containers": [], "nodeName": "n2"}),
                &[],
                Place::Unwanted,
            ),
        ] {
            let places = Places::of(&spec(pod.clone()));
            assert_eq!(
                places.place(&node("n1", taints)),
                expected,
                "{pod} {taints:?}"
            );
        }
    }

    /// DS-07.
    #[test]
    fn pods_have_their_node_and_what_they_tolerate() {
        let mut pod = spec(json!({
            "containers": [],
            "tolerations": [
                {"key": "own", "operator": "Exists"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            ],
            "affinity": {"podAntiAffinity": {}, "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": []}]},
                "preferredDuringSchedulingIgnoredDuringExecution": [],
            }},
        }))
        .template
        .spec
        .unwrap();
        tolerate(&mut pod);
        bind(&mut pod, "n1");
        let tolerations = pod.tolerations.as_ref().unwrap();
        assert_eq!(tolerations.len(), 1 + TOLERATED.len());
        assert!(
            tolerations
                .iter()
                .all(|one| one.toleration_seconds.is_none())
        );
        let pod = Pod {
            spec: Some(pod),
            ..Pod::default()
        };
        assert_eq!(node_of(&pod), Some("n1"));
        let affinity = pod.spec.as_ref().unwrap().affinity.as_ref().unwrap();
        assert!(affinity.pod_anti_affinity.is_some());
        assert_eq!(node_of(&Pod::default()), None);
    }
}
