//! What is told of pods, written to the API: one writer, of each pod only the newest, and only what changed. Of a pod that was deleted and is gone
//! from the node, the last status and then its end.
//!
//! # Synchronization
//! Workers tell and never wait. An entry that is told of while it is being written is written once more. A pod that comes up is told of several times
//! within a few milliseconds: that it is pending waits for a moment, and what comes after it takes its place.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

use super::{API, Cluster, Failed, within};
use crate::{
    Desired,
    qos::Class,
    status::{DISRUPTION, OWN_CONDITIONS, RESIZE_CONDITIONS},
};

/// Written at once.
const AT_ONCE: usize = 8;
/// So long a pod that is pending has for its next step before it is told of.
const PENDING: Duration = Duration::from_millis(100);
/// Between two tries: the first, and at most. An entry is tried until it is written or its pod is gone: there is one a pod.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(10);
/// Between two looks whether all is written.
const WRITTEN_EVERY: Duration = Duration::from_millis(20);
/// What the server refuses is tried again now and then: who may what can change.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// Fields of a status that are told as gone when they are.
const CLEARED: [&str; 9] = [
    "reason",
    "message",
    "podIP",
    "podIPs",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];
/// Lists that the server would merge by their keys, old addresses with new ones.
const REPLACED: [&str; 2] = ["podIPs", "hostIPs"];
#[derive(Debug)]
pub struct Statuses {
    cluster: Cluster,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// The uids of mirrors, by the full names of static pods.
    mirrors: Mutex<BTreeMap<String, String>>,
    wake: Notify,
}

/// By the pod's uid on this node.
#[derive(Debug)]
struct Entry {
    namespace: String,
    name: String,
    is_static: bool,
    generation: Option<i64>,
    /// What is to be written.
    status: Option<PodStatus>,
    /// What was written last: to this uid.
    written: Option<(String, PodStatus)>,
    /// The pod is to be deleted once that is done.
    is_gone: bool,
    is_busy: bool,
    wait: Duration,
    due: Instant,
    /// Nothing of it that can't wait until then.
    held: Option<Instant>,
    /// It was told of a resize at some time, by this kubelet or by one before it.
    was_resized: bool,
}

impl Entry {
    fn due(&self) -> Instant {
        self.held.map_or(self.due, |held| held.max(self.due))
    }
}

/// One act of the writer.
#[derive(Debug, Clone)]
struct Act {
    /// On this node.
    id: String,
    namespace: String,
    name: String,
    /// In the API.
    uid: String,
    status: Option<(PodStatus, Value)>,
    deletes: bool,
}

enum Done {
    Written,
    /// Nothing is left to write to.
    Forget,
    Again(Duration),
}

impl Statuses {
    pub fn new(cluster: Cluster) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            entries: Mutex::default(),
            mirrors: Mutex::default(),
            wake: Notify::new(),
        })
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tell(&self, pod: &Desired, status: &PodStatus) {
        self.with(pod, |entry| {
            entry.generation = pod.pod.metadata.generation;
            entry.held = match status.phase.as_deref() {
                Some("Pending") => entry.held.or_else(|| Some(Instant::now() + PENDING)),
                _ => None,
            };
            entry.was_resized |= tells_of_a_resize(status);
            entry.status = Some(status.clone());
        });
    }

    /// Nothing of the pod is left on the node.
    pub fn gone(&self, pod: &Desired) {
        if pod.source != API {
            self.entries().remove(&pod.uid);
            return;
        }
        // One that was never deleted is told of no more, and no more.
        if pod.deletion().is_none() {
            self.entries().remove(&pod.uid);
            return;
        }
        self.with(pod, |entry| {
            entry.is_gone = true;
            entry.held = None;
        });
    }

    /// The pod won't be run here.
    pub fn refused(&self, pod: &Desired, reason: &str, message: String) {
        let mut status = pod.pod.status.clone().unwrap_or_default();
        status.phase = Some("Failed".into());
        status.reason = Some(reason.to_owned());
        status.message = Some(message);
        status.qos_class = Some(Class::of(pod).as_str().to_owned());
        status.start_time.get_or_insert_with(|| {
            let now = jiff::Timestamp::now().as_second();
            Time(jiff::Timestamp::from_second(now).unwrap_or_default())
        });
        self.tell(pod, &status);
    }

    /// The mirrors that there are now: full names, and uids in the API.
    pub fn mirrored(&self, mirrors: BTreeMap<String, String>) {
        let mut known = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == mirrors {
            return;
        }
        // A new mirror has heard of nothing.
        for entry in self.entries().values_mut().filter(|entry| entry.is_static) {
            let uid = mirrors.get(&format!("{}/{}", entry.namespace, entry.name));
            if let Some((to, status)) = &entry.written
                && uid.is_some_and(|uid| uid != to)
                && entry.status.is_none()
            {
                entry.status = Some(status.clone());
            }
        }
        *known = mirrors;
        self.wake.notify_one();
    }

    /// Waits until all that was told is written, so long at most.
    pub(crate) async fn written(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let is_waiting = |entry: &Entry| entry.is_busy || entry.status.is_some() || entry.is_gone;
        while Instant::now() < until && self.entries().values().any(is_waiting) {
            tokio::time::sleep(WRITTEN_EVERY).await;
        }
    }

    fn with(&self, pod: &Desired, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries();
        let entry = entries.entry(pod.uid.clone()).or_insert_with(|| Entry {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            is_static: pod.source != API,
            generation: None,
            status: None,
            written: None,
            is_gone: false,
            is_busy: false,
            wait: AGAIN,
            due: Instant::now(),
            held: None,
            was_resized: pod.pod.status.as_ref().is_some_and(tells_of_a_resize),
        });
        change(entry);
        self.wake.notify_one();
    }

    /// Writes until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let statuses = self.as_ref();
        let mut acts = FuturesUnordered::new();
        loop {
            let (due, next) = statuses.due(AT_ONCE - acts.len());
            for act in due {
                acts.push(async move {
                    let done = statuses.act(&act).await;
                    statuses.done(act, done);
                });
            }
            let has_room = acts.len() < AT_ONCE;
            let wait = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(()) = acts.next() => {}
                () = self.wake.notified(), if has_room => {}
                () = wait, if has_room => {}
            }
        }
    }

    /// At most so many acts whose time has come, and when the next one's comes: both by one look at the clock, or what falls due between two would be
    /// forgotten.
    fn due(&self, room: usize) -> (Vec<Act>, Option<Instant>) {
        let now = Instant::now();
        let mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut acts, mut next) = (Vec::new(), None);
        for (id, entry) in self.entries().iter_mut() {
            let has_work = entry.status.is_some() || entry.is_gone;
            if entry.is_busy || !has_work {
                continue;
            }
            let due = entry.due();
            if due > now {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
                continue;
            }
            if acts.len() == room {
                continue;
            }
            let uid = match entry.is_static {
                false => id.clone(),
                // its mirror is not there yet
                true => match mirrors.get(&format!("{}/{}", entry.namespace, entry.name)) {
                    Some(uid) => uid.clone(),
                    None => continue,
                },
            };
            let before = entry.written.as_ref();
            let before = before
                .filter(|(to, _)| *to == uid)
                .map(|(_, status)| status);
            entry.held = None;
            let new = entry.status.take();
            let status = new.filter(|new| Some(new) != before).map(|new| {
                let patch = patch(&uid, &new, entry.generation, entry.was_resized);
                (new, patch)
            });
            if status.is_none() && !entry.is_gone {
                continue;
            }
            entry.is_busy = true;
            acts.push(Act {
                id: id.clone(),
                namespace: entry.namespace.clone(),
                name: entry.name.clone(),
                uid,
                status,
                deletes: entry.is_gone,
            });
        }
        (acts, next)
    }

    async fn act(&self, act: &Act) -> Done {
        let api = self.cluster.pods(&act.namespace);
        let refused = |failed: &Failed, what: &str| {
            tracing::warn!(pod = %format!("{}/{}", act.namespace, act.name), %failed, "its {what} is not written");
        };
        if let Some((_, patch)) = &act.status {
            let params = PatchParams::default();
            let patch = Patch::Strategic(patch);
            let got: Result<Pod, _> = within(api.patch_status(&act.name, &params, &patch)).await;
            match got {
                Ok(_) => {}
                Err(Failed::NotFound) => return Done::Forget,
                // of another uid: the pod that this was told of is no more
                Err(Failed::Conflict) => return self.conflicted(act).await,
                Err(failed @ Failed::Refused(_)) => {
                    refused(&failed, "status");
                    if !act.deletes {
                        return Done::Again(REFUSED_AGAIN);
                    }
                }
                Err(failed) => {
                    refused(&failed, "status");
                    return Done::Again(Duration::ZERO);
                }
            }
        }
        if !act.deletes {
            return Done::Written;
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(act.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match within(api.delete(&act.name, &params)).await {
            // A finalizer may hold it; that is not ours to wait for.
            Ok(_) | Err(Failed::NotFound) => Done::Forget,
            Err(Failed::Conflict) => self.conflicted(act).await,
            Err(failed @ Failed::Refused(_)) => {
                refused(&failed, "end");
                Done::Again(REFUSED_AGAIN)
            }
            Err(failed) => {
                refused(&failed, "end");
                Done::Again(Duration::ZERO)
            }
        }
    }

    /// Another pod has the name now; or this one was written by too many at once, and is tried again.
    async fn conflicted(&self, act: &Act) -> Done {
        let api = self.cluster.pods(&act.namespace);
        match within(api.get_opt(&act.name)).await {
            Ok(pod) if pod.as_ref().and_then(|pod| pod.metadata.uid.as_ref()) != Some(&act.uid) => {
                Done::Forget
            }
            _ => Done::Again(AGAIN),
        }
    }

    fn done(&self, act: Act, done: Done) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&act.id) else {
            return;
        };
        entry.is_busy = false;
        match done {
            Done::Forget if !entry.is_static => {
                entries.remove(&act.id);
            }
            Done::Written | Done::Forget => {
                entry.wait = AGAIN;
                if let Some((status, _)) = act.status {
                    entry.written = Some((act.uid, status));
                }
            }
            Done::Again(wait) => {
                // what was told meanwhile is newer
                if entry.status.is_none() {
                    entry.status = act.status.map(|(status, _)| status);
                }
                let wait = wait.max(entry.wait);
                entry.due = Instant::now() + wait;
                entry.wait = (entry.wait * 2).min(AGAIN_MOST);
            }
        }
    }
}

fn tells_of_a_resize(status: &PodStatus) -> bool {
    let mut all = status.conditions.iter().flatten();
    all.any(|one| RESIZE_CONDITIONS.contains(&one.type_.as_str()))
}

/// A strategic merge patch of `pods/status` that leaves others' conditions alone, for the pod of this uid only.
fn patch(uid: &str, status: &PodStatus, generation: Option<i64>, was_resized: bool) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    let Some(fields) = value.as_object_mut() else {
        return Value::Null;
    };
    for name in CLEARED {
        fields.entry(name).or_insert(Value::Null);
    }
    for name in REPLACED {
        if let Some(Value::Array(list)) = fields.get_mut(name) {
            list.push(json!({"$patch": "replace"}));
        }
    }
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        let is_told =
            |kind: &Value| *kind == DISRUPTION || OWN_CONDITIONS.iter().any(|own| *kind == *own);
        conditions.retain(|one| is_told(&one["type"]));
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for name in ["reason", "message"] {
                condition.entry(name).or_insert(Value::Null);
            }
            if let Some(generation) = generation {
                condition.insert("observedGeneration".into(), generation.into());
            }
        }
        for kind in RESIZE_CONDITIONS {
            let is_there = conditions.iter().any(|one| one["type"] == kind);
            if !is_there && was_resized {
                conditions.push(json!({"$patch": "delete", "type": kind}));
            }
        }
    }
    if let Some(generation) = generation {
        fields.insert("observedGeneration".into(), generation.into());
    }
    // what is told of resizes is not ours
    for name in ["resize", "nominatedNodeName", "resourceClaimStatuses"] {
        fields.remove(name);
    }
    json!({"metadata": {"uid": uid}, "status": value})
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    use super::*;

    #[test]
    fn a_resize_that_is_over_is_told_of_no_more() {
        let status = PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "PodResizeInProgress".into(),
                status: "True".into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        };
        let patch = patch("u", &status, Some(2), true);
        let conditions = &patch["status"]["conditions"];
        assert_eq!(conditions[0]["type"], "PodResizeInProgress");
        assert_eq!(
            conditions[1],
            json!({"$patch": "delete", "type": "PodResizePending"})
        );
        assert_eq!(conditions.as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_patch_clears_what_is_gone_and_leaves_the_conditions_of_others() {
        let condition = |kind: &str, reason: Option<&str>| PodCondition {
            type_: kind.into(),
            status: "True".into(),
            reason: reason.map(str::to_owned),
            ..PodCondition::default()
        };
        let status = PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![
                condition("Ready", None),
                condition("example.com/gate", Some("Mine")),
            ]),
            pod_ip: Some("10.0.0.2".into()),
            pod_ips: Some(vec![PodIP {
                ip: "10.0.0.2".into(),
            }]),
            ..PodStatus::default()
        };
        let patch = patch("u", &status, Some(3), false);
        assert_eq!(patch["metadata"], json!({"uid": "u"}));
        let status = &patch["status"];
        assert_eq!(
            status["conditions"],
            json!([{"type": "Ready", "status": "True", "reason": null, "message": null, "observedGeneration": 3}])
        );
        assert_eq!(
            status["podIPs"],
            json!([{"ip": "10.0.0.2"}, {"$patch": "replace"}])
        );
        for gone in ["reason", "message", "containerStatuses", "hostIPs"] {
            assert!(
                status.as_object().unwrap().contains_key(gone) && status[gone].is_null(),
                "{gone}"
            );
        }
        assert_eq!(status["observedGeneration"], 3);
    }
}
