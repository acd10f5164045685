//! What a node's conditions and taints should be. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::condition;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions with the taint that each means: condition, status, taint.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Those that a kubelet posts. NetworkUnavailable is others'.
const POSTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What its condition Ready says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    No,
    Unknown,
    /// Nobody has said anything yet.
    Unsaid,
}

impl Ready {
    pub(super) fn of(node: &Node) -> Self {
        match condition::of_node(node, "Ready") {
            Some(ready) if ready.status == "True" => Self::Yes,
            Some(ready) if ready.status == "False" => Self::No,
            Some(_) => Self::Unknown,
            None => Self::Unsaid,
        }
    }
}

/// The conditions of a node that is silent, those that have to be written.
pub(super) fn silent_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let now = Some(Time(now));
    let unknown = |kind: &&str| match condition::of_node(node, kind) {
        Some(known) if known.status == "Unknown" => None,
        Some(known) => Some(NodeCondition {
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: now.clone(),
            ..known.clone()
        }),
        None => Some(NodeCondition {
            type_: (*kind).into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: now.clone(),
        }),
    };
    POSTED.iter().filter_map(unknown).collect()
}

/// Whether pods without a toleration have to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evict {
    /// No node does: nobody is reached, so it is more likely that we aren't.
    Nobody,
    /// This one hasn't been let yet: too many at once.
    NotYet,
    Now,
}

/// The NoExecute taint that it should have; `None`: it stays as it is.
fn no_execute(node: &Node, evict: Evict) -> Option<Option<&'static str>> {
    let has = taints(node)
        .iter()
        .any(|taint| taint.effect == "NoExecute" && is_reach(taint));
    let wanted = match Ready::of(node) {
        Ready::Yes => None,
        Ready::Unsaid => return None,
        _ if evict == Evict::Nobody => None,
        _ if !has && evict == Evict::NotYet => None,
        Ready::No => Some(NOT_READY),
        Ready::Unknown => Some(UNREACHABLE),
    };
    Some(wanted)
}

/// Pods have to leave, and no taint says so yet.
pub(super) fn waits_for_eviction(node: &Node) -> bool {
    matches!(Ready::of(node), Ready::No | Ready::Unknown)
        && !taints(node)
            .iter()
            .any(|taint| taint.effect == "NoExecute" && is_reach(taint))
}

fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

fn is_reach(taint: &Taint) -> bool {
    taint.key == NOT_READY || taint.key == UNREACHABLE
}

/// All its taints as they should be; none: they are.
pub(super) fn taints_wanted(node: &Node, evict: Evict, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = TAINTS
        .iter()
        .filter(|(kind, status, _)| {
            condition::of_node(node, kind).is_some_and(|known| known.status == *status)
        })
        .map(|(_, _, taint)| (*taint, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    // What nobody has said anything of is not ready (TaintNodesByCondition).
    let unsaid = Ready::of(node) == Ready::Unsaid;
    let execute = no_execute(node, evict);
    if let Some(Some(key)) = execute {
        wanted.push((key, "NoExecute"));
    }
    let is_ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" if unsaid && taint.key == NOT_READY => false,
        "NoSchedule" => {
            taint.key == UNSCHEDULABLE || TAINTS.iter().any(|(.., key)| *key == taint.key)
        }
        "NoExecute" => execute.is_some() && is_reach(taint),
        _ => false,
    };
    let (ours, others): (Vec<&Taint>, Vec<&Taint>) =
        taints(node).iter().partition(|taint| is_ours(taint));
    let known: BTreeMap<_, _> = ours
        .iter()
        .map(|taint| ((taint.key.as_str(), taint.effect.as_str()), *taint))
        .collect();
    let is_right =
        ours.len() == wanted.len() && wanted.iter().all(|wanted| known.contains_key(wanted));
    if is_right {
        return None;
    }
    let mut all: Vec<Taint> = others.into_iter().cloned().collect();
    all.extend(wanted.into_iter().map(|(key, effect)| {
        known.get(&(key, effect)).map_or_else(
            || Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            },
            |taint| (*taint).clone(),
        )
    }));
    Some(all)
}

/// The labels that old clients look for, where they aren't what the new ones say.
pub(super) fn labels_wanted(node: &Node) -> BTreeMap<&'static str, String> {
    const PAIRS: [(&str, &str); 2] = [
        ("kubernetes.io/os", "beta.kubernetes.io/os"),
        ("kubernetes.io/arch", "beta.kubernetes.io/arch"),
    ];
    let Some(labels) = &node.metadata.labels else {
        return BTreeMap::new();
    };
    PAIRS
        .into_iter()
        .filter_map(|(now, before)| Some((before, labels.get(now)?)))
        .filter(|(before, value)| labels.get(*before) != Some(value))
        .map(|(before, value)| (before, value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: &Value, conditions: &[(&str, &str)]) -> Node {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status}))
            .collect();
        serde_json::from_value(
            json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}),
        )
        .expect("a node")
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        let mut keys: Vec<_> = taints
            .iter()
            .map(|taint| {
                format!(
                    "{}:{}",
                    taint.key.trim_start_matches("node.kubernetes.io/"),
                    taint.effect
                )
            })
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn taints_follow_conditions() {
        let other = json!({"key": "env_role", "value": "yes", "effect": "NoExecute"});
        let reach =
            |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "effect": "NoExecute"});
        let blocked = json!({"key": NOT_READY, "effect": "NoSchedule"});
        type Row<'a> = (
            &'a str,
            Value,
            &'a [(&'a str, &'a str)],
            Evict,
            Option<&'a [&'a str]>,
        );
        let table: [Row<'_>; 13] = [
            (
                "all is well",
                json!({}),
                &[("Ready", "True")],
                Evict::NotYet,
                None,
            ),
            (
                "new and unsaid keeps what admission gave it",
                json!({"taints": [blocked]}),
                &[],
                Evict::NotYet,
                None,
            ),
            (
                "ready loses it",
                json!({"taints": [blocked]}),
                &[("Ready", "True")],
                Evict::NotYet,
                Some(&[]),
            ),
            (
                "others' taints stay",
                json!({"taints": [blocked, other]}),
                &[("Ready", "True")],
                Evict::Now,
                Some(&["env_role:NoExecute"]),
            ),
            (
                "cordoned",
                json!({"unschedulable": true}),
                &[("Ready", "True")],
                Evict::NotYet,
                Some(&["unschedulable:NoSchedule"]),
            ),
            (
                "pressures",
                json!({}),
                &[
                    ("Ready", "True"),
                    ("MemoryPressure", "True"),
                    ("DiskPressure", "True"),
                    ("PIDPressure", "True"),
                    ("NetworkUnavailable", "True"),
                ],
                Evict::NotYet,
                Some(&[
                    "disk-pressure:NoSchedule",
                    "memory-pressure:NoSchedule",
                    "network-unavailable:NoSchedule",
                    "pid-pressure:NoSchedule",
                ]),
            ),
            (
                "silent, and must wait",
                json!({}),
                &[("Ready", "Unknown")],
                Evict::NotYet,
                Some(&["unreachable:NoSchedule"]),
            ),
            (
                "silent, and its turn",
                json!({}),
                &[("Ready", "Unknown")],
                Evict::Now,
                Some(&["unreachable:NoExecute", "unreachable:NoSchedule"]),
            ),
            (
                "one taint for the other at once",
                json!({"taints": [reach("not-ready")]}),
                &[("Ready", "Unknown")],
                Evict::NotYet,
                Some(&["unreachable:NoExecute", "unreachable:NoSchedule"]),
            ),
            (
                "and back",
                json!({"taints": [reach("unreachable")]}),
                &[("Ready", "False")],
                Evict::NotYet,
                Some(&["not-ready:NoExecute", "not-ready:NoSchedule"]),
            ),
            (
                "all are silent: nobody leaves",
                json!({"taints": [reach("unreachable")]}),
                &[("Ready", "Unknown")],
                Evict::Nobody,
                Some(&["unreachable:NoSchedule"]),
            ),
            (
                "it is back",
                json!({"taints": [reach("unreachable")]}),
                &[("Ready", "True")],
                Evict::Now,
                Some(&[]),
            ),
            (
                "twice the same key is mended",
                json!({"taints": [blocked, blocked]}),
                &[("Ready", "False")],
                Evict::NotYet,
                Some(&["not-ready:NoSchedule"]),
            ),
        ];
        for (what, spec, conditions, evict, wanted) in table {
            let mut node = node(&spec, conditions);
            let found = taints_wanted(&node, evict, Timestamp::UNIX_EPOCH);
            assert_eq!(
                found.as_deref().map(keys),
                wanted.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect()),
                "{what}"
            );
            // What was written is what was wanted.
            if found.is_some() {
                node.spec.get_or_insert_default().taints = found;
                assert_eq!(
                    taints_wanted(&node, evict, Timestamp::UNIX_EPOCH),
                    None,
                    "{what}"
                );
            }
        }
    }

    #[test]
    fn a_silent_node_says_unknown_once() {
        let mut silent = node(
            &json!({}),
            &[
                ("Ready", "True"),
                ("MemoryPressure", "Unknown"),
                ("NetworkUnavailable", "False"),
            ],
        );
        let written = silent_conditions(&silent, Timestamp::UNIX_EPOCH);
        let said: Vec<_> = written
            .iter()
            .map(|one| {
                (
                    one.type_.as_str(),
                    one.reason.as_deref().unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                ("Ready", "NodeStatusUnknown"),
                ("DiskPressure", "NodeStatusNeverUpdated"),
                ("PIDPressure", "NodeStatusNeverUpdated"),
            ]
        );
        silent.status.get_or_insert_default().conditions = Some(written);
        silent
            .status
            .as_mut()
            .and_then(|status| status.conditions.as_mut())
            .expect("conditions")
            .push(NodeCondition {
                type_: "MemoryPressure".into(),
                status: "Unknown".into(),
                ..NodeCondition::default()
            });
        assert!(silent_conditions(&silent, Timestamp::UNIX_EPOCH).is_empty());
    }

    #[test]
    fn old_labels_follow_the_new_ones() {
        let mut node = node(&json!({}), &[]);
        assert!(labels_wanted(&node).is_empty());
        node.metadata.labels = Some(BTreeMap::from([
            ("kubernetes.io/os".into(), "linux".into()),
            ("kubernetes.io/arch".into(), "amd64".into()),
            ("beta.kubernetes.io/os".into(), "linux".into()),
        ]));
        assert_eq!(
            labels_wanted(&node),
            BTreeMap::from([("beta.kubernetes.io/arch", "amd64".to_owned())])
        );
    }
}
