//! What pods are to those that keep them: ready, available, active; and which of them goes first.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::condition;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Empty while its status says none.
pub(crate) fn phase(pod: &Pod) -> &str {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// It is being deleted.
pub(crate) fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// It has not ended, and is not asked to.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleted(pod)
}

/// It was asked to end, and may still run.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && is_deleted(pod)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Ready, and for so long that it counts.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready_seconds <= 0
            || available_from(pod, min_ready_seconds).is_some_and(|from| from <= now))
}

/// The node that it is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// When the first of those that are ready, but not for long enough, counts as available: so long from now.
pub(crate) fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Duration> {
    if min_ready_seconds <= 0 {
        return None;
    }
    pods.into_iter()
        .filter(|pod| is_ready(pod) && !is_deleted(pod))
        .filter_map(|pod| available_from(pod, min_ready_seconds))
        .filter(|from| *from > now)
        .map(|from| Duration::try_from(from.duration_since(now)).unwrap_or_default())
        .min()
}

fn available_from(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)??;
    since
        .checked_add(SignedDuration::from_secs(min_ready_seconds.into()))
        .ok()
}

/// Since when, if it says so.
pub(crate) fn ready_since(pod: &Pod) -> Option<Option<Timestamp>> {
    let ready = condition::of_pod(pod, "Ready").filter(|ready| ready.status == "True")?;
    Some(ready.last_transition_time.as_ref().map(|time| time.0))
}

/// Brings those to the front that are missed least, in upstream's order: without a node, not running yet, not ready, of the lowest deletion cost, beside most
/// others of their kind (`beside`), ready for the shortest time, restarted most often, the youngest.
///
/// Times are compared by their magnitude, so that among pods of about one age chance decides, by their uids.
pub(crate) fn first_to_go(pods: &mut [Arc<Pod>], beside: impl Fn(&Pod) -> usize, now: Timestamp) {
    pods.sort_by_cached_key(|pod| {
        let (restarts, of_sidecars) = restarts(pod);
        let progress = match phase(pod) {
            "Unknown" => 1,
            "Running" => 2,
            _ => 0,
        };
        let ready = ready_since(pod);
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            node_of(pod).is_some(),
            progress,
            ready.is_some(),
            deletion_cost(pod),
            Reverse(beside(pod)),
            ready.map(|since| magnitude(since, now)),
            (Reverse(restarts), Reverse(of_sidecars)),
            magnitude(created, now),
            pod.metadata.uid.clone(),
        )
    });
}

/// How many binary digits the age has, in nanoseconds; without a time it is the youngest.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    since.map_or(0, |since| {
        let age = now.duration_since(since).as_nanos().max(0);
        i128::BITS - age.leading_zeros() + 1
    })
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations.and_then(|annotations| annotations.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The most that a container was restarted, and a sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    let most = |statuses: Option<&Vec<k8s_openapi::api::core::v1::ContainerStatus>>,
                counts: &dyn Fn(&str) -> bool| {
        let statuses = statuses.into_iter().flatten();
        let counted = statuses.filter(|status| counts(&status.name));
        counted
            .map(|status| status.restart_count)
            .max()
            .unwrap_or(0)
    };
    let is_sidecar = |name: &str| {
        let containers = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.init_containers.as_ref());
        containers.into_iter().flatten().any(|container| {
            container.name == name && container.restart_policy.as_deref() == Some("Always")
        })
    };
    let status = pod.status.as_ref();
    let of = |of: fn(&PodStatus) -> Option<&Vec<_>>| status.and_then(of);
    (
        most(of(|status| status.container_statuses.as_ref()), &|_| true),
        most(
            of(|status| status.init_container_statuses.as_ref()),
            &is_sidecar,
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn pod(value: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn ready_at(name: &str, at: &str) -> Arc<Pod> {
        pod(json!({
            "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]},
        }))
    }

    #[test]
    fn a_pod_is_available_once_it_was_ready_for_long_enough() {
        let pod = ready_at("a", "2026-01-01T00:59:50Z");
        for (seconds, available, next) in [
            (0, true, None),
            (10, true, None),
            (11, false, Some(1)),
            (60, false, Some(50)),
        ] {
            assert_eq!(is_available(&pod, seconds, now()), available, "{seconds}");
            let next = next.map(Duration::from_secs);
            assert_eq!(next_available([&*pod], seconds, now()), next, "{seconds}");
        }
        let bare = Pod::default();
        assert!(!is_available(&bare, 0, now()) && is_active(&bare));
        assert_eq!(next_available([&bare], 5, now()), None);
    }

    #[test]
    fn whoever_ended_or_is_asked_to_end_is_not_active() {
        for (value, active, terminating) in [
            (json!({"status": {"phase": "Running"}}), true, false),
            (json!({"status": {"phase": "Failed"}}), false, false),
            (json!({"status": {"phase": "Succeeded"}}), false, false),
            (
                json!({"metadata": {"deletionTimestamp": NOW}, "status": {"phase": "Running"}}),
                false,
                true,
            ),
            (
                json!({"metadata": {"deletionTimestamp": NOW}, "status": {"phase": "Failed"}}),
                false,
                false,
            ),
        ] {
            let pod = pod(value.clone());
            assert_eq!(is_active(&pod), active, "{value}");
            assert_eq!(is_terminating(&pod), terminating, "{value}");
        }
    }

    #[test]
    fn those_that_are_missed_least_go_first() {
        let running = |name: &str, more: Value| {
            let mut value = serde_json::to_value(&*ready_at(name, "2026-01-01T00:00:10Z")).unwrap();
            json_patch_merge(&mut value, &more);
            pod(value)
        };
        let mut pods = vec![
            running("oldest", json!({})),
            running(
                "costs",
                json!({"metadata": {"annotations": {DELETION_COST: "5"}}}),
            ),
            running(
                "restarted",
                json!({"status": {"containerStatuses": [
                    {"name": "c", "restartCount": 3, "image": "i", "imageID": "i", "ready": true},
                ]}}),
            ),
            ready_at("fresh", "2026-01-01T00:59:59Z"),
            running("doubled", json!({"spec": {"nodeName": "crowded"}})),
            running("unready", json!({"status": {"conditions": []}})),
            running("pending", json!({"status": {"phase": "Pending"}})),
            pod(json!({"metadata": {"name": "unassigned"}, "status": {"phase": "Pending"}})),
            running(
                "cheap",
                json!({"metadata": {"annotations": {DELETION_COST: "-1"}}}),
            ),
        ];
        let crowded = |pod: &Pod| usize::from(node_of(pod) == Some("crowded"));
        first_to_go(&mut pods, crowded, now());
        let names: Vec<_> = pods
            .iter()
            .filter_map(|pod| pod.metadata.name.as_deref())
            .collect();
        assert_eq!(
            names,
            [
                "unassigned",
                "pending",
                "unready",
                "cheap",
                "doubled",
                "fresh",
                "restarted",
                "oldest",
                "costs"
            ]
        );
    }

    fn json_patch_merge(value: &mut Value, more: &Value) {
        match (value, more) {
            (Value::Object(value), Value::Object(more)) => {
                for (key, more) in more {
                    json_patch_merge(value.entry(key.clone()).or_insert(Value::Null), more);
                }
            }
            (value, more) => *value = more.clone(),
        }
    }
}
