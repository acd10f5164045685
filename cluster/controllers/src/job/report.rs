//! A job's status as it should be.

use std::{collections::HashSet, sync::Arc};

use berth_recorder::Level;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    indexes::Indexes,
    plan::{Situation, Step},
    pods::{index, is_tracked, uid},
    tally::{Tally, Terms, Uncounted, count, number},
};
use crate::pod::{is_ready, phase};

/// Uids that the status holds at most: about 20 KB (as upstream).
const UNCOUNTED: usize = 500;

pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
pub(super) const WILL_COMPLETE: &str = "SuccessCriteriaMet";
pub(super) const WILL_FAIL: &str = "FailureTarget";
const SUSPENDED: &str = "Suspended";
pub(super) const BY_POLICY: &str = "SuccessPolicy";

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub level: Level,
    pub reason: String,
    pub message: String,
}

/// How the job ends.
pub(super) struct Verdict {
    pub(super) succeeds: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Verdict {
    pub(super) fn fails(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self {
            succeeds: false,
            reason: reason.to_owned(),
            message: message.into(),
        })
    }

    pub(super) fn succeeds(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self {
            succeeds: true,
            reason: reason.to_owned(),
            message: message.into(),
        })
    }

    /// Some have succeeded, which is enough: that the others are ended is no failure of theirs.
    fn is_by_policy(&self) -> bool {
        self.succeeds && self.reason == BY_POLICY
    }

    pub(super) fn of(condition: &JobCondition, succeeds: bool) -> Self {
        Self {
            succeeds,
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
        }
    }
}

pub(super) fn is_true<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|one| one.type_ == type_ && one.status == "True")
}

/// Its last condition.
pub(crate) fn finished(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    is_true(status, COMPLETE).or_else(|| is_true(status, FAILED))
}

/// Appends or changes a condition; one that is not there is not appended as false. Whether anything has changed.
fn ensure(list: &mut Vec<JobCondition>, new: JobCondition) -> bool {
    match list.iter_mut().find(|one| one.type_ == new.type_) {
        Some(old)
            if old.status == new.status
                && old.reason == new.reason
                && old.message == new.message =>
        {
            false
        }
        Some(old) => {
            *old = new;
            true
        }
        None if new.status == "False" => false,
        None => {
            list.push(new);
            true
        }
    }
}

/// The status as it should be.
pub(super) struct Report<'a> {
    pub(super) terms: &'a Terms<'a>,
    pub(super) tally: &'a Tally<'a>,
    pub(super) of: &'a Situation<'a>,
    pub(super) before: JobStatus,
    pub(super) status: JobStatus,
    pub(super) told: Vec<Told>,
    pub(super) untrack: Vec<Arc<Pod>>,
    /// It names pods or indexes that it did not before.
    pub(super) records: bool,
    /// There are pods that the status has no room for.
    pub(super) has_more: bool,
}

/// What is the same is written the same.
fn normal(status: Option<&JobStatus>) -> JobStatus {
    let mut status = status.cloned().unwrap_or_default();
    let pods = status.uncounted_terminated_pods.get_or_insert_default();
    for list in [&mut pods.succeeded, &mut pods.failed] {
        *list = list.take().filter(|list| !list.is_empty());
    }
    for number in [
        &mut status.active,
        &mut status.succeeded,
        &mut status.failed,
    ] {
        *number = number.filter(|number| *number != 0);
    }
    status.conditions = status.conditions.filter(|list| !list.is_empty());
    status.completed_indexes = status.completed_indexes.filter(|text| !text.is_empty());
    status
}

impl<'a> Report<'a> {
    pub(super) fn of(terms: &'a Terms, tally: &'a Tally, of: &'a Situation) -> Self {
        let before = normal(of.job.status.as_ref());
        let mut status = before.clone();
        if status.start_time.is_none() && !terms.suspended {
            status.start_time = Some(Time(of.now));
        }
        status.active = Some(number(tally.active.len()));
        let ready = tally.active.iter().filter(|pod| is_ready(pod)).count();
        status.ready = Some(number(ready));
        status.terminating = Some(number(tally.terminating));
        Self {
            terms,
            tally,
            of,
            before,
            status,
            told: Vec::new(),
            untrack: Vec::new(),
            records: false,
            has_more: false,
        }
    }

    pub(super) fn into_step(self) -> Step {
        Step::Status(Box::new(normal(Some(&self.status))), self.told)
    }

    pub(super) fn differs(&self) -> bool {
        let mut before = self.before.clone();
        // a server may leave out what is empty
        if before.failed_indexes.is_none() {
            before.failed_indexes = self.status.failed_indexes.clone().filter(String::is_empty);
        }
        normal(Some(&self.status)) != before
    }

    fn condition(&self, type_: &str, status: &str, reason: &str, message: &str) -> JobCondition {
        JobCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(Time(self.of.now)),
            last_transition_time: Some(Time(self.of.now)),
        }
    }

    fn tell(&mut self, level: Level, reason: &str, message: &str) {
        self.told.push(Told {
            level,
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Moves those whose finalizer is gone into the counters, and notes those whose finalizer may go.
    pub(super) fn count(&mut self, verdict: Option<&Verdict>) {
        let (terms, tally) = (self.terms, self.tally);
        let tracked: HashSet<&str> = self
            .of
            .pods
            .iter()
            .filter(|pod| is_tracked(pod))
            .map(|pod| uid(pod))
            .collect();
        let pods = self
            .status
            .uncounted_terminated_pods
            .take()
            .unwrap_or_default();
        let mut succeeded = pods.succeeded.unwrap_or_default();
        let mut failed = pods.failed.unwrap_or_default();
        for (list, counter) in [
            (&mut succeeded, &mut self.status.succeeded),
            (&mut failed, &mut self.status.failed),
        ] {
            let before = list.len();
            list.retain(|uid| tracked.contains(uid.as_str()));
            let counted = number(before - list.len());
            *counter = Some(counter.unwrap_or(0).saturating_add(counted));
        }
        let had = Uncounted::of(Some(&self.before));
        let mut pods: Vec<_> = self.of.pods.iter().filter(|pod| is_tracked(pod)).collect();
        if terms.indexes.is_some() {
            pods.sort_by_key(|pod| index(pod));
        }
        let mut indexes = Indexes::default();
        for pod in pods {
            if !self.may_go(pod, verdict) {
                continue;
            }
            let has_failed = match verdict {
                Some(verdict) if verdict.is_by_policy() => phase(pod) == "Failed",
                Some(verdict) if !verdict.succeeds => true,
                _ => terms.has_failed(pod),
            };
            let has_succeeded = phase(pod) == "Succeeded" && !had.failed.contains(uid(pod));
            let index = terms.index(pod).filter(|_| has_succeeded);
            let index = index.filter(|index| !tally.succeeded_before.contains(*index));
            let succeeds = has_succeeded && terms.indexes.is_none() && !had.has(pod);
            let fails = !has_succeeded
                && has_failed
                && terms.is_valid(pod)
                && !had.has(pod)
                && terms.failure(pod).is_counted();
            if index.is_some() || succeeds || fails {
                if indexes.count() + succeeded.len() + failed.len() >= UNCOUNTED {
                    self.has_more = true;
                    continue;
                }
                self.records = true;
                if let Some(index) = index {
                    indexes = indexes.with(&[index].into_iter().collect());
                } else if succeeds {
                    succeeded.push(uid(pod).to_owned());
                } else {
                    failed.push(uid(pod).to_owned());
                }
            }
            self.untrack.push(pod.clone());
        }
        if terms.indexes.is_some() {
            let all = tally.succeeded_before.with(&indexes);
            self.status.succeeded = Some(number(all.count()));
            self.status.completed_indexes = Some(all.to_string());
            self.status.failed_indexes = tally.failed_indexes.as_ref().map(Indexes::to_string);
        }
        let uncounted = self
            .status
            .uncounted_terminated_pods
            .get_or_insert_default();
        uncounted.succeeded = Some(succeeded);
        uncounted.failed = Some(failed);
    }

    fn may_go(&self, pod: &Pod, verdict: Option<&Verdict>) -> bool {
        if self.terms.is_deleted || verdict.is_some() || phase(pod) == "Succeeded" {
            return true;
        }
        let is_kept = || {
            let index = self.terms.index(pod)?;
            let kept = self.tally.kept.get(&index)?;
            Some(uid(kept) == uid(pod))
        };
        self.terms.has_failed(pod) && is_kept() != Some(true)
    }

    pub(super) fn conclude(&mut self, verdict: Option<&Verdict>) {
        let mut conditions = self.status.conditions.take().unwrap_or_default();
        match verdict {
            Some(verdict) => {
                let (first, last) = if verdict.succeeds {
                    (WILL_COMPLETE, COMPLETE)
                } else {
                    (WILL_FAIL, FAILED)
                };
                let (reason, message) = (&verdict.reason, &verdict.message);
                let is_said = conditions
                    .iter()
                    .any(|one| one.type_ == first && one.status == "True");
                if !is_said {
                    ensure(
                        &mut conditions,
                        self.condition(first, "True", reason, message),
                    );
                } else if self.is_all_counted() {
                    ensure(
                        &mut conditions,
                        self.condition(last, "True", reason, message),
                    );
                    if verdict.succeeds {
                        self.status.completion_time = Some(Time(self.of.now));
                        self.tell_complete();
                    } else {
                        self.tell(Level::Warning, reason, message);
                    }
                }
            }
            None if self.of.hands_off || self.terms.is_deleted => {}
            None if self.terms.suspended => {
                let new = self.condition(SUSPENDED, "True", "JobSuspended", "Job suspended");
                if ensure(&mut conditions, new) {
                    self.status.start_time = None;
                    self.tell(Level::Normal, "Suspended", "Job suspended");
                }
            }
            None => {
                let new = self.condition(SUSPENDED, "False", "JobResumed", "Job resumed");
                if ensure(&mut conditions, new) {
                    self.status.start_time = Some(Time(self.of.now));
                    self.tell(Level::Normal, "Resumed", "Job resumed");
                }
            }
        }
        self.status.conditions = Some(conditions).filter(|list| !list.is_empty());
    }

    fn is_all_counted(&self) -> bool {
        let pods = self.status.uncounted_terminated_pods.as_ref();
        let is_empty = |list: Option<&Vec<String>>| list.is_none_or(Vec::is_empty);
        !self.has_more
            && self.untrack.is_empty()
            && self.tally.terminating == 0
            && pods.is_none_or(|pods| {
                is_empty(pods.succeeded.as_ref()) && is_empty(pods.failed.as_ref())
            })
    }

    fn tell_complete(&mut self) {
        let completions = self.terms.completions;
        if completions.is_some_and(|wanted| count(self.status.succeeded) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            self.tell(Level::Warning, "TooManySucceededPods", message);
        }
        self.tell(Level::Normal, "Completed", "Job completed");
    }
}
