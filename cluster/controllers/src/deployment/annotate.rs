//! What stands in annotations: the revisions of a Deployment (DP-07, DP-08), and what its ReplicaSets were scaled to.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::sizes::{Bounds, Size};
use crate::replicaset::replicas;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Those that a ReplicaSet does not have from its Deployment.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];
/// Of the history of revisions, in bytes: the oldest are let go.
const HISTORY_BYTES: usize = 2000;

type Annotations = BTreeMap<String, String>;

/// 0 where it says none, or nothing that is a number.
pub(super) fn revision(set: &ReplicaSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    let revision = annotations.and_then(|annotations| annotations.get(REVISION));
    revision
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

pub(super) fn size(set: &ReplicaSet) -> Size {
    let number = |name: &str| {
        let annotations = set.metadata.annotations.as_ref()?;
        let number = annotations.get(name)?.parse().ok();
        number.filter(|number: &i32| *number >= 0)
    };
    let status = set.status.as_ref();
    let replicas = set.spec.as_ref().map_or(0, replicas);
    let observed = status.and_then(|status| status.observed_generation);
    let told = status.filter(|_| observed >= set.metadata.generation);
    Size {
        replicas,
        pods: told.map(|told| told.replicas.max(replicas)),
        available: status
            .and_then(|status| status.available_replicas)
            .unwrap_or(0),
        desired: number(DESIRED_REPLICAS),
        most: number(MAX_REPLICAS),
    }
}

/// Whether that changed anything.
fn put(annotations: &mut Annotations, name: &str, value: String) -> bool {
    if annotations.get(name) == Some(&value) {
        return false;
    }
    annotations.insert(name.to_owned(), value);
    true
}

/// Whether that changed anything.
pub(super) fn scaled(set: &mut ReplicaSet, bounds: &Bounds) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let desired = put(annotations, DESIRED_REPLICAS, bounds.replicas.to_string());
    put(annotations, MAX_REPLICAS, bounds.most().to_string()) || desired
}

/// What the newest ReplicaSet has from its Deployment, and its revision, which is more than that of all others: one that is gone back to has had another one before.
/// Whether that changed anything.
pub(super) fn newest(set: &mut ReplicaSet, deployment: Option<&Annotations>, next: i64) -> bool {
    let had = revision(set);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (name, value) in deployment.into_iter().flatten() {
        if !OWN.contains(&name.as_str()) {
            changed |= put(annotations, name, value.clone());
        }
    }
    if had >= next {
        return changed;
    }
    if annotations.contains_key(REVISION) {
        let before = annotations.get(REVISION_HISTORY).map_or("", String::as_str);
        let mut revisions: Vec<&str> = before.split(',').filter(|one| !one.is_empty()).collect();
        let had = had.to_string();
        revisions.push(&had);
        let length = |revisions: &[&str]| revisions.iter().map(|one| one.len() + 1).sum::<usize>();
        while length(&revisions) > HISTORY_BYTES {
            revisions.remove(0);
        }
        let history = revisions.join(",");
        annotations.insert(REVISION_HISTORY.into(), history);
    }
    put(annotations, REVISION, next.to_string());
    true
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(annotations: Value) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap()
    }

    fn annotations(set: &ReplicaSet) -> Value {
        json!(set.metadata.annotations)
    }

    #[test]
    fn the_newest_has_what_the_deployment_says_and_the_next_revision() {
        let deployment: Annotations = serde_json::from_value(json!({
            "kubernetes.io/change-cause": "a reason", REVISION: "7", OWN[0]: "{}", DESIRED_REPLICAS: "1",
        }))
        .unwrap();
        let mut new = set(json!({"kept": "yes"}));
        assert!(newest(&mut new, Some(&deployment), 3));
        let expected =
            json!({"kept": "yes", "kubernetes.io/change-cause": "a reason", REVISION: "3"});
        assert_eq!(annotations(&new), expected);
        assert!(!newest(&mut new, Some(&deployment), 3));
        // older ones were deleted: it keeps its own
        assert!(!newest(&mut new, Some(&deployment), 2));
        // it is gone back to
        assert!(newest(&mut new, None, 5));
        assert!(newest(&mut new, None, 8));
        assert_eq!(annotations(&new)[REVISION_HISTORY], "3,5");
        assert_eq!(revision(&new), 8);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut one = set(json!({}));
        for revision in 1..3000 {
            newest(&mut one, None, revision);
        }
        let history = annotations(&one)[REVISION_HISTORY]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            history.len() <= HISTORY_BYTES && history.ends_with(",2997,2998"),
            "{history}"
        );
    }

    #[test]
    fn what_is_there_is_known_once_it_was_told_of_the_newest_size() {
        for (generation, observed, told, expected) in [
            (2, 2, 5, Some(5)),
            (2, 2, 1, Some(3)),
            (2, 1, 5, None),
            (1, 0, 0, None),
        ] {
            let set: ReplicaSet = serde_json::from_value(json!({
                "metadata": {"generation": generation}, "spec": {"replicas": 3, "selector": {}},
                "status": {"replicas": told, "observedGeneration": observed},
            }))
            .unwrap();
            assert_eq!(size(&set).pods, expected, "{generation} {observed} {told}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        let bounds = Bounds {
            replicas: 4,
            surge: 1,
            unavailable: 1,
            is_rolling: true,
        };
        let mut one = set(json!({DESIRED_REPLICAS: "-1", MAX_REPLICAS: "many", REVISION: "x"}));
        assert_eq!(
            (size(&one).desired, size(&one).most, revision(&one)),
            (None, None, 0)
        );
        assert!(scaled(&mut one, &bounds));
        assert_eq!((size(&one).desired, size(&one).most), (Some(4), Some(5)));
        assert!(!scaled(&mut one, &bounds));
    }
}
