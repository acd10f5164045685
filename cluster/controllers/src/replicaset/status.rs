//! What a ReplicaSet's status says.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::replicas;
use crate::{Error, crew, pod};

const REPLICA_FAILURE: &str = "ReplicaFailure";

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub active: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

impl Counted {
    pub(super) fn of(spec: &ReplicaSetSpec, pods: &[Arc<Pod>], now: Timestamp) -> Self {
        let labels = spec.template.as_ref().and_then(|template| {
            let metadata = template.metadata.as_ref()?;
            metadata.labels.as_ref()
        });
        let mut counted = Self::default();
        for pod in pods {
            if pod::is_terminating(pod) {
                counted.terminating += 1;
            }
            if !pod::is_active(pod) {
                continue;
            }
            counted.active += 1;
            let has = |key: &String, value: &String| {
                let labels = pod.metadata.labels.as_ref();
                labels.and_then(|labels| labels.get(key)) == Some(value)
            };
            if labels
                .into_iter()
                .flatten()
                .all(|(key, value)| has(key, value))
            {
                counted.fully_labeled += 1;
            }
            if pod::is_ready(pod) {
                counted.ready += 1;
            }
            if pod::is_available(pod, spec.min_ready_seconds.unwrap_or(0), now) {
                counted.available += 1;
            }
        }
        counted
    }
}

/// Numbers that are 0 are left out where upstream leaves them out.
pub(super) fn status(
    set: &ReplicaSet,
    spec: &ReplicaSetSpec,
    counted: &Counted,
    failed: Option<&Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    ReplicaSetStatus {
        replicas: counted.active,
        fully_labeled_replicas: some(counted.fully_labeled),
        ready_replicas: some(counted.ready),
        available_replicas: some(counted.available),
        terminating_replicas: Some(counted.terminating),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, spec, counted, failed, now),
    }
}

fn conditions(
    set: &ReplicaSet,
    spec: &ReplicaSetSpec,
    counted: &Counted,
    failed: Option<&Error>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let told = set
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let mut conditions = told.unwrap_or_default();
    let failure = conditions
        .iter()
        .position(|condition| condition.type_ == REPLICA_FAILURE);
    match (failed, failure) {
        // it says since when and why first: what follows is most likely the same
        (Some(error), None) => {
            let reason = if counted.active < replicas(spec) {
                "FailedCreate"
            } else {
                "FailedDelete"
            };
            conditions.push(ReplicaSetCondition {
                type_: REPLICA_FAILURE.into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(crew::told(error)),
                last_transition_time: Some(Time(now)),
            });
        }
        (None, Some(at)) => drop(conditions.remove(at)),
        _ => {}
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn set(conditions: Value) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "generation": 3},
            "spec": {
                "replicas": 3, "minReadySeconds": 30, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": []}},
            },
            "status": {"replicas": 0, "conditions": conditions},
        }))
        .unwrap()
    }

    fn pod(labels: Value, ready_since: Option<&str>, more: Value) -> Arc<Pod> {
        let mut value = json!({"metadata": {"labels": labels}, "status": {"phase": "Running"}});
        if let Some(since) = ready_since {
            value["status"]["conditions"] =
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]);
        }
        for (key, more) in more.as_object().into_iter().flatten() {
            for (field, more) in more.as_object().into_iter().flatten() {
                value[key][field] = more.clone();
            }
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn pods_are_counted_by_what_they_are() {
        let full = json!({"app": "web", "tier": "front", "more": "yes"});
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:59:00Z"}});
        let pods = [
            pod(full.clone(), Some("2026-01-01T00:00:00Z"), json!({})),
            pod(full.clone(), Some("2026-01-01T00:59:45Z"), json!({})),
            pod(json!({"app": "web"}), None, json!({})),
            pod(full.clone(), Some("2026-01-01T00:00:00Z"), deleted),
            pod(full, None, json!({"status": {"phase": "Failed"}})),
        ];
        let set = set(json!([]));
        let spec = set.spec.as_ref().unwrap();
        let counted = Counted::of(spec, &pods, now());
        let expected = Counted {
            active: 3,
            fully_labeled: 2,
            ready: 2,
            available: 1,
            terminating: 1,
        };
        assert_eq!(counted, expected);
        let status = status(&set, spec, &counted, None, now());
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            json!({
                "replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1,
                "terminatingReplicas": 1, "observedGeneration": 3,
            })
        );
    }

    #[test]
    fn a_failure_is_told_until_it_is_over() {
        let error = Error::Other("exceeded quota: q".into());
        let healthy = set(json!([]));
        let spec = healthy.spec.as_ref().unwrap();
        let fewer = Counted {
            active: 1,
            ..Counted::default()
        };
        let failed = conditions(&healthy, spec, &fewer, Some(&error), now()).unwrap();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].reason.as_deref(), Some("FailedCreate"));
        assert_eq!(failed[0].message.as_deref(), Some("exceeded quota: q"));
        let mut ill = healthy.clone();
        ill.status.as_mut().unwrap().conditions = Some(failed.clone());
        let other = Error::Other("something else".into());
        let later = "2026-01-01T02:00:00Z".parse().unwrap();
        assert_eq!(
            conditions(&ill, spec, &fewer, Some(&other), later),
            Some(failed)
        );
        assert_eq!(conditions(&ill, spec, &fewer, None, later), None);
        let more = Counted {
            active: 4,
            ..Counted::default()
        };
        let failed = conditions(&healthy, spec, &more, Some(&error), now()).unwrap();
        assert_eq!(failed[0].reason.as_deref(), Some("FailedDelete"));
    }
}
