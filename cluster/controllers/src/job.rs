//! Jobs: as many pods succeed as are asked for, each of them is counted once, and no more than allowed run at a time (JB-01 … JB-06).
//!
//! `plan` says what comes next; this does it, and asks again. A pod's tracking finalizer keeps it until it is counted. Pods that have one although nobody will
//! count them any more (their job is gone or over) are freed of it under keys of their own.

mod failures;
mod indexes;
mod plan;
mod pods;
mod policy;
mod report;
mod tally;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_recorder::Level;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

pub(crate) use self::report::finished;
use self::{
    failures::Failures,
    plan::{AT_ONCE, Situation, Step, next},
    pods::{NewPod, TRACKED, is_tracked, uid},
    tally::newly_ended,
};
use crate::{
    Cache, Context, Error, Key, Merge, Queue,
    controller::{Controller, Next},
    crew::told,
    owner,
    pod::is_deleted,
};

/// Writes of one job under way.
const WRITES: usize = 32;
/// Steps at one go; then other jobs have their turn.
const STEPS: usize = 16;
/// Before the name of a pod in a key: no name has a slash.
const POD: &str = "pod/";
const MANAGER: &str = "kubernetes.io/job-controller";

pub(crate) struct Jobs {
    context: Arc<Context>,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    /// With the uid of the job that they are of.
    failures: Mutex<HashMap<Key, (String, Failures)>>,
}

fn is_job(owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference) -> bool {
    owner.kind == "Job" && owner.api_version == "batch/v1"
}

/// Whom somebody else manages.
fn is_foreign(job: &Job) -> bool {
    let manager = job
        .spec
        .as_ref()
        .and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

fn selector(job: &Job) -> Option<Selector> {
    let selector = job.spec.as_ref()?.selector.clone()?;
    Selector::try_from(selector).ok()
}

fn selects(selector: &Selector, pod: &Pod) -> bool {
    let empty = Default::default();
    selector.matches(pod.metadata.labels.as_ref().unwrap_or(&empty))
}

/// Whether it has a finalizer that no job will take from it.
fn is_left(jobs: &Cache<Job>, pod: &Pod) -> bool {
    if !is_tracked(pod) {
        return false;
    }
    let Some(owner) = owner::controller_of(&pod.metadata) else {
        return true;
    };
    if !is_job(owner) {
        return false;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match jobs.get(&Key::new(namespace, &owner.name)) {
        Some(job) if job.metadata.uid.as_deref() == Some(&owner.uid) => {
            !is_foreign(&job) && finished(&job).is_some()
        }
        _ => true,
    }
}

fn left_key(pod: &Pod) -> Key {
    let key = Key::of(pod);
    Key::new(&key.namespace, &format!("{POD}{}", key.name))
}

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";
    const ACCOUNT: &'static str = "job-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let (jobs, pods) = (context.cache::<Job>(), context.cache::<Pod>());
        let (known, wants) = (pods.clone(), queue.clone());
        jobs.on_change(move |old, new| {
            let Some(job) = new.or(old) else { return };
            wants.add(Key::of(&**job));
            if new.is_none_or(|job| finished(job).is_some()) {
                let pods = known.controlled_by(job.metadata.uid.as_deref().unwrap_or_default());
                for pod in pods.iter().filter(|pod| is_tracked(pod)) {
                    wants.add(left_key(pod));
                }
            }
        });
        let known = jobs.clone();
        pods.on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                let owner = owner::controller_of(&pod.metadata).filter(|owner| is_job(owner));
                if let Some(owner) = owner {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                    queue.add(Key::new(namespace, &owner.name));
                }
            }
            let Some(pod) = new else { return };
            if is_left(&known, pod) {
                queue.add(left_key(pod));
            }
            let changed = old.is_none_or(|old| {
                old.metadata.labels != pod.metadata.labels
                    || old.metadata.owner_references != pod.metadata.owner_references
            });
            if changed && owner::controller_of(&pod.metadata).is_none() {
                // who may want it
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                for job in known.in_namespace(namespace) {
                    if selector(&job).is_some_and(|selector| selects(&selector, pod)) {
                        queue.add(Key::of(&*job));
                    }
                }
            }
        });
        Self {
            context,
            jobs,
            pods,
            failures: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        if let Some(pod) = key.name.strip_prefix(POD) {
            return self.free(&Key::new(&key.namespace, pod)).await;
        }
        let mut failed = None;
        for step in 0..STEPS {
            let job = self.jobs.get(key);
            let Some(job) = job.filter(|job| !is_foreign(job) && finished(job).is_none()) else {
                self.failures().remove(key);
                return failed.map_or(Ok(Next::Settled), Err);
            };
            let mode = job
                .spec
                .as_ref()
                .and_then(|spec| spec.completion_mode.as_deref());
            if mode.is_some_and(|mode| !matches!(mode, "Indexed" | "NonIndexed")) {
                let message = "Skipped Job sync because completion mode is unknown".into();
                self.tell(&job, Level::Warning, "UnknownCompletionMode", message);
                return Ok(Next::Settled);
            }
            if step == 0 {
                self.claim(&job).await?;
            }
            match self.next(key, &job, failed.is_some()) {
                Step::Rest(wait) => {
                    return match (failed, wait) {
                        (Some(error), _) => Err(error),
                        (None, Some(wait)) => Ok(Next::After(wait.max(Duration::from_millis(1)))),
                        (None, None) => Ok(Next::Settled),
                    };
                }
                Step::Make(new) => failed = self.make(&job, &new).await.err(),
                Step::Discard(pods) => failed = self.delete(&job, &pods, true).await.err(),
                Step::Stop(pods) => failed = self.delete(&job, &pods, false).await.err(),
                Step::Status(status, told) => {
                    let mut new = (*job).clone();
                    new.status = Some(*status);
                    self.context.update_status(&new).await?;
                    for told in told {
                        self.tell(&job, told.level, &told.reason, told.message);
                    }
                }
                Step::Untrack(pods) => {
                    all(pods.iter().map(|pod| self.untrack(pod)).collect()).await?;
                }
            }
        }
        failed.map_or(Ok(Next::After(Duration::ZERO)), Err)
    }
}

/// Makes all of them, several at a time. The first failure, if there is one.
async fn all(writes: Vec<impl Future<Output = Result<(), Error>> + Send>) -> Result<(), Error> {
    let mut results = stream::iter(writes).buffer_unordered(WRITES);
    let mut first = Ok(());
    while let Some(result) = results.next().await {
        first = first.and(result);
    }
    first
}

impl Jobs {
    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (String, Failures)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, job: &Job, level: Level, reason: &str, message: String) {
        self.context.event(job, Self::NAME, level, reason, message);
    }

    fn next(&self, key: &Key, job: &Job, hands_off: bool) -> Step {
        let job_uid = job.metadata.uid.as_deref().unwrap_or_default();
        let pods = self.pods.controlled_by(job_uid);
        let mut all = self.failures();
        let (of, failures) = all.entry(key.clone()).or_default();
        if of != job_uid {
            *of = job_uid.to_owned();
            *failures = Failures::default();
        }
        let (succeeded, failed) = newly_ended(job, &pods);
        failures.see(&succeeded, &failed);
        next(&Situation {
            job,
            pods: &pods,
            failures,
            now: self.context.now(),
            hands_off,
        })
    }

    /// Pods that its selector takes and nobody controls become its own; those that it no longer takes are let go.
    async fn claim(&self, job: &Job) -> Result<(), Error> {
        let Some(selector) = selector(job) else {
            return Ok(());
        };
        let job_uid = job.metadata.uid.as_deref().unwrap_or_default();
        let mut stray = self.pods.controlled_by(job_uid);
        stray.retain(|pod| !selects(&selector, pod) && !is_deleted(pod));
        let releases = stray.iter().map(|pod| {
            let patch = json!({"metadata": {
                "uid": uid(pod),
                "ownerReferences": [{"$patch": "delete", "uid": job_uid}],
                "$deleteFromPrimitiveList/finalizers": [TRACKED],
            }});
            self.patch(pod, patch)
        });
        all(releases.collect()).await?;
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
        let mut free = self.pods.in_namespace(namespace);
        free.retain(|pod| {
            owner::controller_of(&pod.metadata).is_none()
                && selects(&selector, pod)
                && !is_deleted(pod)
        });
        if free.is_empty() {
            return Ok(());
        }
        // nothing is adopted for a job that is about to go
        let now = self.context.read::<Job>(&Key::of(job)).await?;
        if now.metadata.uid != job.metadata.uid || now.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let adoptions = free.iter().map(|pod| {
            let patch = json!({"metadata": {
                "uid": uid(pod),
                "ownerReferences": [owner::reference(job)],
                "finalizers": [TRACKED],
            }});
            self.patch(pod, patch)
        });
        all(adoptions.collect()).await
    }

    /// A pod that is gone is no failure.
    async fn patch(&self, pod: &Pod, patch: Value) -> Result<(), Error> {
        let key = Key::of(pod);
        match self
            .context
            .patch::<Pod>(&key, &patch, Merge::Strategic)
            .await
        {
            Ok(_) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn untrack(&self, pod: &Pod) -> Result<(), Error> {
        let patch = json!({"metadata": {
            "uid": uid(pod),
            "$deleteFromPrimitiveList/finalizers": [TRACKED],
        }});
        self.patch(pod, patch).await
    }

    /// Slowly at first: where one is refused (a quota), the others would be as well.
    async fn make(&self, job: &Job, new: &[NewPod]) -> Result<(), Error> {
        debug_assert!(new.len() <= AT_ONCE);
        let (mut left, mut batch) = (new, 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            all(now.iter().map(|new| self.make_one(job, new)).collect()).await?;
            (left, batch) = (later, batch * 2);
        }
        Ok(())
    }

    async fn make_one(&self, job: &Job, new: &NewPod) -> Result<(), Error> {
        let Some(pod) = new.of(job) else {
            return Err(Error::Other(format!(
                "Job {} has no pod template",
                Key::of(job)
            )));
        };
        match self.context.create(&pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", Key::of(&*pod).name);
                self.tell(job, Level::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error creating: {}", told(&error));
                self.tell(job, Level::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(&self, job: &Job, pods: &[Arc<Pod>], uncounted: bool) -> Result<(), Error> {
        all(pods
            .iter()
            .map(|pod| self.delete_one(job, pod, uncounted))
            .collect())
        .await
    }

    async fn delete_one(&self, job: &Job, pod: &Pod, uncounted: bool) -> Result<(), Error> {
        if uncounted && is_tracked(pod) {
            self.untrack(pod).await?;
        }
        match self.context.delete(pod, None).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", Key::of(pod).name);
                self.tell(job, Level::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {error}");
                self.tell(job, Level::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// Takes the finalizer from a pod that nobody will count.
    async fn free(&self, key: &Key) -> Result<Next, Error> {
        if let Some(pod) = self.pods.get(key)
            && is_left(&self.jobs, &pod)
        {
            self.untrack(&pod).await?;
        }
        Ok(Next::Settled)
    }
}
