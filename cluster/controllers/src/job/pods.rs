//! What a job reads of its pods, and how it makes them.

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerStatus, EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    condition, owner,
    pod::{node_of, phase, ready_since},
};

/// Keeps a pod until it is counted.
pub(crate) const TRACKED: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The server adds five characters to a prefix, of 63 that there may be.
const LONGEST_PREFIX: usize = 58;

pub(crate) fn is_tracked(pod: &Pod) -> bool {
    let mut finalizers = pod.metadata.finalizers.iter().flatten();
    finalizers.any(|one| one == TRACKED)
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn annotation(pod: &Pod, name: &str) -> Option<u32> {
    let value = pod.metadata.annotations.as_ref()?.get(name)?;
    let value: u32 = value.parse().ok()?;
    (value <= i32::MAX.unsigned_abs()).then_some(value)
}

pub(super) fn index(pod: &Pod) -> Option<u32> {
    annotation(pod, INDEX)
}

/// Of its index before it: those that count, and those that its policy ignores.
pub(super) fn failures_before(pod: &Pod) -> (u32, u32) {
    let count = |name| annotation(pod, name).unwrap_or(0);
    (count(FAILURES), count(IGNORED_FAILURES))
}

pub(super) fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let all = containers.into_iter().chain(init).flatten();
    all.map(|status| status.restart_count)
        .fold(0, i32::saturating_add)
}

/// When it ended: by its containers, else by when it was no longer ready, else by when it was deleted, else, at the latest, by when it was made.
pub(super) fn ended_at(pod: &Pod) -> Timestamp {
    by_containers(pod)
        .or_else(|| not_ready_since(pod))
        .or_else(|| {
            let deleted = pod.metadata.deletion_timestamp.as_ref()?;
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            let grace = SignedDuration::from_secs(grace);
            deleted.0.checked_sub(grace).ok()
        })
        .or_else(|| Some(pod.metadata.creation_timestamp.as_ref()?.0))
        .unwrap_or_default()
}

/// The last of its containers; sidecars end after the others. None while one has not ended.
fn by_containers(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let is_sidecar = |status: &&ContainerStatus| {
        let init = pod.spec.iter().flat_map(|spec| &spec.init_containers);
        init.flatten().any(|container| {
            container.name == status.name && container.restart_policy.as_deref() == Some("Always")
        })
    };
    let sidecars = status.init_container_statuses.iter().flatten();
    let containers = status.container_statuses.iter().flatten();
    let mut last = None;
    for status in containers.chain(sidecars.filter(is_sidecar)) {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        last = last.max(Some(ended.finished_at.as_ref()?.0));
    }
    last
}

fn not_ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition::of_pod(pod, "Ready")?;
    (ready.status == "False").then_some(ready.last_transition_time.as_ref()?.0)
}

/// What there is least to lose by ending comes first.
pub(super) fn least_first(pod: &Pod) -> impl Ord + use<> {
    let has_node = node_of(pod).is_some();
    let phase = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let ready = ready_since(pod);
    // one whose time is not known counts as the youngest
    let young = |time: Option<Timestamp>| (time.is_some(), Reverse(time));
    let status = pod.status.as_ref();
    let containers = status.iter().flat_map(|status| &status.container_statuses);
    let most_restarts = containers.flatten().map(|one| one.restart_count).max();
    (
        has_node,
        phase,
        ready.is_some(),
        young(ready.flatten()),
        Reverse(most_restarts.unwrap_or(0)),
        young(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
    )
}

/// A pod that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NewPod {
    /// Of an indexed job.
    pub index: Option<u32>,
    /// With a back-off limit per index: how often its index has failed, and how often that was ignored.
    pub failures: Option<(u32, u32)>,
}

impl NewPod {
    pub fn of(&self, job: &Job) -> Option<Pod> {
        let template = &job.spec.as_ref()?.template;
        let from = template.metadata.clone().unwrap_or_default();
        let name = job.metadata.name.as_deref()?;
        let mut spec = template.spec.clone()?;
        let mut labels = from.labels.unwrap_or_default();
        let mut annotations = from.annotations.unwrap_or_default();
        let mut prefix = format!("{name}-");
        if let Some(index) = self.index {
            labels.insert(INDEX.to_owned(), index.to_string());
            annotations.insert(INDEX.to_owned(), index.to_string());
            prefix = indexed_prefix(name, index);
            spec.hostname = Some(format!("{name}-{index}"));
            let init = spec.init_containers.iter_mut().flatten();
            for container in init.chain(&mut spec.containers) {
                let environment = container.env.get_or_insert_default();
                if !environment.iter().any(|one| one.name == INDEX_VARIABLE) {
                    environment.push(index_variable());
                }
            }
        }
        if let Some((counted, ignored)) = self.failures {
            annotations.insert(FAILURES.to_owned(), counted.to_string());
            if ignored > 0 {
                annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
            }
        }
        let mut finalizers = from.finalizers.unwrap_or_default();
        if !finalizers.iter().any(|one| one == TRACKED) {
            finalizers.push(TRACKED.to_owned());
        }
        let some = |map: BTreeMap<_, _>| (!map.is_empty()).then_some(map);
        Some(Pod {
            metadata: ObjectMeta {
                generate_name: Some(prefix),
                namespace: job.metadata.namespace.clone(),
                labels: some(labels),
                annotations: some(annotations),
                finalizers: Some(finalizers),
                owner_references: Some(vec![owner::reference(job)]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        })
    }
}

fn indexed_prefix(name: &str, index: u32) -> String {
    let end = format!("-{index}-");
    // names are ASCII
    let room = LONGEST_PREFIX.saturating_sub(end.len()).min(name.len());
    format!("{}{end}", &name[..room])
}

fn index_variable() -> EnvVar {
    EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn pod(value: Value) -> Pod {
        from_value(value).expect("a pod")
    }

    #[test]
    fn a_pod_has_ended_when_its_last_container_has() {
        let ended = |at: &str| json!({"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": {"exitCode": 0, "finishedAt": at}}});
        let mut one = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"containerStatuses": [ended("2026-01-01T00:00:05Z"), ended("2026-01-01T00:00:07Z")]},
        });
        assert_eq!(
            ended_at(&pod(one.clone())).to_string(),
            "2026-01-01T00:00:07Z"
        );
        one["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(
            ended_at(&pod(one.clone())).to_string(),
            "2026-01-01T00:00:00Z"
        );
        one["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
        one["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        assert_eq!(
            ended_at(&pod(one.clone())).to_string(),
            "2026-01-01T00:00:30Z"
        );
        one["status"]["conditions"] = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:20Z"}]);
        assert_eq!(ended_at(&pod(one)).to_string(), "2026-01-01T00:00:20Z");
    }

    #[test]
    fn the_pod_with_least_to_lose_goes_first() {
        let pods = [
            json!({"spec": {"containers": []}, "status": {"phase": "Pending"}}),
            json!({"spec": {"containers": [], "nodeName": "n"}, "status": {"phase": "Pending"}}),
            json!({"spec": {"containers": [], "nodeName": "n"}, "status": {"phase": "Running"}, "metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}}),
            json!({"spec": {"containers": [], "nodeName": "n"}, "status": {"phase": "Running"}, "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"spec": {"containers": [], "nodeName": "n"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T00:00:00Z"}]}}),
            json!({"spec": {"containers": [], "nodeName": "n"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        ];
        let pods: Vec<Pod> = pods.into_iter().map(pod).collect();
        assert!(pods.is_sorted_by_key(least_first));
    }

    #[test]
    fn a_pod_of_an_index_is_told_which() {
        let job: Job = from_value(json!({
            "metadata": {"name": "j".repeat(60), "namespace": "n", "uid": "u"},
            "spec": {"completionMode": "Indexed", "completions": 3, "template": {
                "metadata": {"labels": {"a": "b"}, "finalizers": ["mine/own"]},
                "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "mine"}]}]},
            }},
        }))
        .expect("a job");
        let new = NewPod {
            index: Some(12),
            failures: Some((2, 0)),
        };
        let pod = serde_json::to_value(new.of(&job).expect("a pod")).expect("JSON");
        let prefix = pod["metadata"]["generateName"].as_str().expect("a prefix");
        assert!(prefix.len() == 58 && prefix.ends_with("j-12-"), "{prefix}");
        assert_eq!(
            pod["metadata"]["labels"],
            json!({"a": "b", "batch.kubernetes.io/job-completion-index": "12"})
        );
        assert_eq!(
            pod["metadata"]["annotations"],
            json!({"batch.kubernetes.io/job-completion-index": "12", "batch.kubernetes.io/job-index-failure-count": "2"})
        );
        assert_eq!(pod["metadata"]["finalizers"], json!(["mine/own", TRACKED]));
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(pod["spec"]["hostname"], format!("{}-12", "j".repeat(60)));
        assert_eq!(
            pod["spec"]["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"],
            "metadata.labels['batch.kubernetes.io/job-completion-index']"
        );
        assert_eq!(
            pod["spec"]["initContainers"][0]["env"],
            json!([{"name": "JOB_COMPLETION_INDEX", "value": "mine"}])
        );
    }
}
