//! A cluster with one job, whose controller can be killed between any two writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, from_value, json};

use super::super::{
    failures::Failures,
    finished,
    plan::{Situation, Step, next},
    pods::{NewPod, is_tracked, uid},
    report::Told,
    tally::newly_ended,
};
use crate::pod::{is_active, is_deleted, is_terminal};

/// Writes after which a history must have come to rest.
pub(super) const MOST_WRITES: usize = 10_000;

/// A cluster with one job. Nobody but the controller writes the job's status.
pub(super) struct World {
    pub(super) job: Job,
    /// By uid, which is also the name.
    pub(super) pods: BTreeMap<String, Pod>,
    /// What the controller has seen of them.
    pub(super) cache: BTreeMap<String, Pod>,
    pub(super) failures: Failures,
    pub(super) seconds: i64,
    pub(super) made: Vec<(String, Option<u32>)>,
    pub(super) discarded: BTreeSet<String>,
    pub(super) told: Vec<Told>,
    pub(super) writes: usize,
}

/// Of one reconcile: so many writes until the controller is killed.
pub(super) type Budget = Option<usize>;

impl World {
    pub(super) fn new(spec: Value) -> Self {
        let mut job: Job = from_value(json!({
            "metadata": {"name": "j", "namespace": "n", "uid": "job"},
            "spec": {"template": {"metadata": {}, "spec": {"containers": [], "restartPolicy": "Never"}}},
        }))
        .expect("a job");
        let mut whole = serde_json::to_value(&job.spec).expect("JSON");
        for (key, value) in spec.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        job.spec = from_value(whole).expect("a spec");
        Self {
            job,
            pods: BTreeMap::new(),
            cache: BTreeMap::new(),
            failures: Failures::default(),
            seconds: 1_000_000,
            made: Vec::new(),
            discarded: BTreeSet::new(),
            told: Vec::new(),
            writes: 0,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_second(self.seconds).expect("a time")
    }

    pub(super) fn spec(&self) -> &k8s_openapi::api::batch::v1::JobSpec {
        self.job.spec.as_ref().expect("a spec")
    }

    pub(super) fn status(&self) -> k8s_openapi::api::batch::v1::JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    pub(super) fn succeeded(&self) -> i32 {
        self.status().succeeded.unwrap_or(0)
    }

    pub(super) fn failed(&self) -> i32 {
        self.status().failed.unwrap_or(0)
    }

    pub(super) fn has(&self, condition: &str) -> bool {
        let conditions = self.status().conditions.unwrap_or_default();
        conditions
            .iter()
            .any(|one| one.type_ == condition && one.status == "True")
    }

    pub(super) fn reason(&self) -> String {
        let condition = finished(&self.job).expect("it is finished");
        condition.reason.clone().unwrap_or_default()
    }

    pub(super) fn next(&mut self) -> Step {
        let pods: Vec<Arc<Pod>> = self.cache.values().cloned().map(Arc::new).collect();
        let (succeeded, failed) = newly_ended(&self.job, &pods);
        self.failures.see(&succeeded, &failed);
        next(&Situation {
            job: &self.job,
            pods: &pods,
            failures: &self.failures,
            now: self.now(),
            hands_off: false,
        })
    }

    /// Whether it has come to rest; else it was killed, and what it had in memory is gone.
    pub(super) fn reconcile(&mut self, mut budget: Budget) -> bool {
        while finished(&self.job).is_none() {
            let step = self.next();
            let mut may = |world: &mut Self| match &mut budget {
                Some(0) => {
                    world.failures = Failures::default();
                    world.cache = world.pods.clone();
                    false
                }
                Some(left) => {
                    *left -= 1;
                    true
                }
                None => true,
            };
            self.writes += 1;
            assert!(self.writes < MOST_WRITES, "it does not come to rest");
            match step {
                Step::Rest(_) => return true,
                Step::Make(all) => {
                    assert!(!all.is_empty());
                    for new in all {
                        if !may(self) {
                            return false;
                        }
                        self.make(&new);
                    }
                }
                Step::Discard(pods) => {
                    assert!(!pods.is_empty());
                    for pod in pods {
                        if !may(self) {
                            return false;
                        }
                        if is_tracked(&pod) {
                            self.discarded.insert(uid(&pod).to_owned());
                            self.untrack(uid(&pod));
                        }
                        if !may(self) {
                            return false;
                        }
                        self.delete(uid(&pod));
                        self.see(uid(&pod));
                    }
                }
                Step::Stop(pods) => {
                    assert!(!pods.is_empty());
                    for pod in pods {
                        if !may(self) {
                            return false;
                        }
                        self.delete(uid(&pod));
                        self.see(uid(&pod));
                    }
                }
                Step::Status(status, told) => {
                    if !may(self) {
                        return false;
                    }
                    assert_ne!(
                        self.job.status.as_ref(),
                        Some(&*status),
                        "nothing is written twice"
                    );
                    self.job.status = Some(*status);
                    self.told.extend(told);
                }
                Step::Untrack(pods) => {
                    assert!(!pods.is_empty());
                    for pod in pods {
                        if !may(self) {
                            return false;
                        }
                        self.untrack(uid(&pod));
                    }
                }
            }
        }
        true
    }

    pub(super) fn see(&mut self, uid: &str) {
        match self.pods.get(uid) {
            Some(pod) => self.cache.insert(uid.to_owned(), pod.clone()),
            None => self.cache.remove(uid),
        };
    }

    pub(super) fn see_all(&mut self) {
        self.cache = self.pods.clone();
    }

    pub(super) fn make(&mut self, new: &NewPod) {
        let mut pod = new.of(&self.job).expect("a template");
        let uid = format!("p{:05}", self.made.len());
        pod.metadata.uid = Some(uid.clone());
        pod.metadata.name = Some(uid.clone());
        pod.metadata.creation_timestamp = Some(Time(self.now()));
        pod.status.get_or_insert_default().phase = Some("Pending".into());
        self.made.push((uid.clone(), new.index));
        self.pods.insert(uid.clone(), pod);
        self.see(&uid);
        let active = self.pods.values().filter(|pod| is_active(pod)).count();
        let most = self.spec().parallelism.unwrap_or(1);
        assert!(
            active <= usize::try_from(most).expect("a number"),
            "more than parallelism are active"
        );
    }

    pub(super) fn delete(&mut self, uid: &str) {
        let now = Time(self.now());
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.metadata.deletion_timestamp.get_or_insert(now);
        }
        self.collect(uid);
    }

    pub(super) fn untrack(&mut self, uid: &str) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.metadata.finalizers = None;
        }
        self.collect(uid);
        self.see(uid);
    }

    /// The server lets go whom nothing keeps.
    pub(super) fn collect(&mut self, uid: &str) {
        let may_go = |pod: &Pod| is_deleted(pod) && is_terminal(pod) && !is_tracked(pod);
        if self.pods.get(uid).is_some_and(may_go) {
            self.pods.remove(uid);
        }
    }

    pub(super) fn end(&mut self, uid: &str, phase: &str) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.status.get_or_insert_default().phase = Some(phase.to_owned());
        }
        self.collect(uid);
    }

    /// One of those that have not ended.
    pub(super) fn pick(&self, at: usize) -> Option<String> {
        let running: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| !is_terminal(pod))
            .collect();
        let (uid, _) = running.get(at % running.len().max(1))?;
        Some((*uid).clone())
    }

    pub(super) fn act(&mut self, op: &Op) {
        self.seconds += 1;
        match op {
            Op::Reconcile(budget) => {
                self.reconcile(*budget);
            }
            Op::End(at, phase) => {
                if let Some(uid) = self.pick(*at) {
                    self.end(&uid, phase);
                }
            }
            Op::Delete(at) => {
                if let Some(uid) = self.pick(*at) {
                    self.delete(&uid);
                }
            }
            Op::See(at) => {
                let all: BTreeSet<String> =
                    self.pods.keys().chain(self.cache.keys()).cloned().collect();
                if let Some(uid) = all.iter().nth(at % all.len().max(1)) {
                    self.see(uid);
                }
            }
            Op::SeeAll => self.see_all(),
            Op::Later(seconds) => self.seconds += seconds,
            Op::Suspend(suspend) => {
                self.job.spec.as_mut().expect("a spec").suspend = Some(*suspend)
            }
        }
    }

    /// Everything that runs ends well, everything is seen, and time goes by, until the job is finished.
    pub(super) fn run_out(&mut self) {
        self.job.spec.as_mut().expect("a spec").suspend = Some(false);
        for _ in 0..200 {
            self.seconds += 1000;
            self.see_all();
            assert!(self.reconcile(None));
            self.rests();
            if finished(&self.job).is_some() {
                return;
            }
            let running: Vec<String> = self
                .pods
                .iter()
                .filter(|(_, pod)| !is_terminal(pod))
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in running {
                let how = if is_deleted(&self.pods[&uid]) {
                    "Failed"
                } else {
                    "Succeeded"
                };
                self.end(&uid, how);
            }
        }
        panic!("the job is not finished: {:?}", self.job.status);
    }

    /// Whoever comes anew to what is settled does nothing.
    pub(super) fn rests(&mut self) {
        if finished(&self.job).is_none() {
            self.failures = Failures::default();
            let step = self.next();
            assert!(matches!(step, Step::Rest(_)), "{step:?}");
        }
    }

    /// No pod is lost, none is counted twice.
    pub(super) fn check_counted(&self) {
        assert!(
            self.pods.values().all(|pod| !is_tracked(pod)),
            "pods are still tracked"
        );
        let uncounted = self.status().uncounted_terminated_pods.unwrap_or_default();
        assert_eq!(uncounted, Default::default());
        let counted = self.succeeded() + self.failed();
        let made = i32::try_from(self.made.len() - self.discarded.len()).expect("a number");
        assert_eq!(
            counted, made,
            "each pod is counted once: {:?}",
            self.job.status
        );
    }
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    Reconcile(Budget),
    End(usize, &'static str),
    Delete(usize),
    See(usize),
    SeeAll,
    Later(i64),
    Suspend(bool),
}
