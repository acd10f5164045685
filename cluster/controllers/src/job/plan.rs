//! From a job and its pods to the one step that comes next.
//!
//! ```text
//!   a pod ends ──▶ its uid stands in uncountedTerminatedPods ──▶ its finalizer goes ──▶ it is in the counters
//!                            (Step::Status)                        (Step::Untrack)        (Step::Status)
//! ```
//!
//! Every step is one kind of write, and what comes after it is worked out anew from what is there then: whoever is killed between two writes, or has only done
//! some of one step's, goes on where that was. An index stands in `completedIndexes` in place of a uid.
//!
//! Invariant: a pod's finalizer goes only when the pod stands in the status, or need not.
//! Invariant: nothing to do is [`Step::Rest`]; a job that has been brought there stays there until it, a pod or the time changes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec, JobStatus},
    core::v1::Pod,
};

use super::{
    failures::{self, Failures},
    indexes::Indexes,
    pods::{NewPod, ended_at, failures_before, index, least_first, restarts},
    policy::{Failure, enough},
    report::{BY_POLICY, Report, Told, Verdict, WILL_COMPLETE, WILL_FAIL, is_true},
    tally::{Tally, Terms, number},
};
use crate::pod::{is_active, is_terminating, phase};

/// Pods that one step makes or ends at most (as upstream).
pub(super) const AT_ONCE: usize = 500;

/// What there is.
pub(super) struct Situation<'a> {
    pub job: &'a Job,
    /// Those that it controls.
    pub pods: &'a [Arc<Pod>],
    pub failures: &'a Failures,
    pub now: Timestamp,
    /// Pods could not be made or ended just now: only what there is is counted.
    pub hands_off: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step {
    Make(Vec<NewPod>),
    /// They are too many: they go without being counted.
    Discard(Vec<Arc<Pod>>),
    /// The job is over for them: they are deleted, then counted.
    Stop(Vec<Arc<Pod>>),
    Status(Box<JobStatus>, Vec<Told>),
    /// They are counted: they may go.
    Untrack(Vec<Arc<Pod>>),
    /// Nothing, for so long.
    Rest(Option<Duration>),
}

pub(super) fn next(of: &Situation) -> Step {
    let Some(spec) = &of.job.spec else {
        return Step::Rest(None);
    };
    let terms = Terms::of(of.job, spec);
    let tally = Tally::of(&terms, of.job, of.pods);
    let verdict = verdict(&terms, &tally, of);
    if verdict.is_some() && !of.hands_off && !tally.active.is_empty() {
        return Step::Stop(tally.active.into_iter().cloned().collect());
    }
    let manages = verdict.is_none() && !of.hands_off && !terms.is_deleted;
    // one that could not be stopped can still end by itself
    let verdict = verdict.filter(|_| tally.active.is_empty());
    let mut report = Report::of(&terms, &tally, of);
    report.count(verdict.as_ref());
    report.conclude(verdict.as_ref());
    // One that stands there as failed can no longer succeed: only then another is made in its place.
    if report.records {
        return report.into_step();
    }
    let mut wake = None;
    if manages && !report.has_more {
        match manage(&terms, &tally, of) {
            Manage::Do(step) => return step,
            Manage::Wait(wait) => wake = wait,
        }
    }
    // what the job ends with may be known by a pod that is about to go
    if verdict.is_some() && report.status.conditions != report.before.conditions {
        return report.into_step();
    }
    if !report.untrack.is_empty() {
        return Step::Untrack(report.untrack);
    }
    if report.differs() {
        return report.into_step();
    }
    let deadline = match verdict {
        None if !terms.suspended => left_to_deadline(spec, of),
        _ => None,
    };
    Step::Rest([wake, deadline].into_iter().flatten().min())
}

fn start(job: &Job) -> Option<Timestamp> {
    Some(job.status.as_ref()?.start_time.as_ref()?.0)
}

/// None without one. Zero: it is past.
fn left_to_deadline(spec: &JobSpec, of: &Situation) -> Option<Duration> {
    let allowed = SignedDuration::from_secs(spec.active_deadline_seconds?);
    let left = allowed.saturating_sub(of.now.duration_since(start(of.job)?));
    Some(Duration::try_from(left).unwrap_or_default())
}

fn verdict(terms: &Terms, tally: &Tally, of: &Situation) -> Option<Verdict> {
    let spec = terms.spec;
    let empty = JobStatus::default();
    let status = of.job.status.as_ref().unwrap_or(&empty);
    if let Some(condition) = is_true(status, WILL_COMPLETE) {
        return Some(Verdict::of(condition, true));
    }
    if let Some(condition) = is_true(status, WILL_FAIL) {
        return Some(Verdict::of(condition, false));
    }
    if spec.pod_failure_policy.is_some() {
        let mut failed = of.pods.iter().filter(|pod| terms.has_failed(pod));
        let why = failed.find_map(|pod| match terms.failure(pod) {
            Failure::FailsJob(why) => Some(why),
            _ => None,
        });
        if let Some(why) = why {
            return Verdict::fails("PodFailurePolicy", why);
        }
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    let limit = spec
        .backoff_limit
        .unwrap_or(if per_index { i32::MAX } else { 6 });
    if number(tally.failed) > limit || restarted_too_often(spec, of.pods, limit) {
        let message = "Job has reached the specified backoff limit";
        return Verdict::fails("BackoffLimitExceeded", message);
    }
    if !terms.suspended && left_to_deadline(spec, of).is_some_and(|left| left.is_zero()) {
        let message = "Job was active longer than specified deadline";
        return Verdict::fails("DeadlineExceeded", message);
    }
    if let Some(completions) = terms.indexes {
        if let Some(failed) = tally.failed_indexes.as_ref().map(Indexes::count) {
            if spec
                .max_failed_indexes
                .is_some_and(|most| number(failed) > most)
            {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                return Verdict::fails("MaxFailedIndexesExceeded", message);
            }
            if failed > 0 && failed + tally.succeeded >= completions as usize {
                return Verdict::fails("FailedIndexes", "Job has failed indexes");
            }
        }
        let met = enough(
            spec.success_policy.as_ref(),
            &tally.succeeded_indexes,
            completions,
        );
        if let Some(met) = met {
            return Verdict::succeeds(BY_POLICY, met);
        }
    }
    let enough = match terms.completions {
        Some(completions) => tally.succeeded >= completions,
        None => tally.succeeded > 0,
    };
    if enough && tally.active.is_empty() {
        let message = "Reached expected number of succeeded pods";
        return Verdict::succeeds("CompletionsReached", message);
    }
    None
}

/// Where containers are restarted in their pods, their restarts are what is limited.
fn restarted_too_often(spec: &JobSpec, pods: &[Arc<Pod>], limit: i32) -> bool {
    let policy = spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = pods
        .iter()
        .filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    running
        .map(|pod| restarts(pod))
        .fold(0, i32::saturating_add)
        >= limit.max(1)
}

enum Manage {
    Do(Step),
    Wait(Option<Duration>),
}

/// As many pods as there should be.
fn manage(terms: &Terms, tally: &Tally, of: &Situation) -> Manage {
    let active = tally.active.len();
    let wanted = match terms.completions {
        _ if terms.suspended => 0,
        // whoever runs may end, but nobody begins any more
        None if tally.succeeded > 0 => active,
        None => terms.parallelism,
        Some(completions) => completions
            .saturating_sub(tally.succeeded)
            .min(terms.parallelism),
    };
    let mut too_many = too_many(terms, tally, active.saturating_sub(wanted));
    if !too_many.is_empty() {
        too_many.truncate(AT_ONCE);
        return Manage::Do(Step::Discard(too_many));
    }
    if terms.suspended {
        return Manage::Wait(None);
    }
    let terminating = if terms.only_failed {
        tally.terminating
    } else {
        0
    };
    let missing = wanted.saturating_sub(terminating + active).min(AT_ONCE);
    if missing == 0 {
        return Manage::Wait(None);
    }
    if terms.spec.backoff_limit_per_index.is_none()
        && let Some(wait) = of.failures.wait(of.now)
    {
        return Manage::Wait(Some(wait));
    }
    let Some(completions) = terms.indexes else {
        return Manage::Do(Step::Make(vec![NewPod::default(); missing]));
    };
    let mut soonest: Option<Duration> = None;
    let mut new = Vec::new();
    for index in pending(terms, tally, of, completions).take(missing) {
        let last = tally.kept.get(&index);
        let wait = last.and_then(|last| {
            let (counted, ignored) = failures_before(last);
            let failures = counted.saturating_add(ignored).saturating_add(1);
            failures::wait(failures, ended_at(last), of.now)
        });
        match wait {
            Some(wait) => soonest = Some(soonest.map_or(wait, |other| other.min(wait))),
            None => new.push(NewPod {
                index: Some(index),
                failures: terms
                    .spec
                    .backoff_limit_per_index
                    .map(|_| failures_after(terms, last)),
            }),
        }
    }
    if new.is_empty() {
        return Manage::Wait(soonest);
    }
    Manage::Do(Step::Make(new))
}

fn failures_after(terms: &Terms, last: Option<&&Pod>) -> (u32, u32) {
    let Some(last) = last else { return (0, 0) };
    let (counted, ignored) = failures_before(last);
    if terms.failure(last).is_counted() {
        (counted.saturating_add(1), ignored)
    } else {
        (counted, ignored.saturating_add(1))
    }
}

/// The lowest indexes that nobody works on.
fn pending(
    terms: &Terms,
    tally: &Tally,
    of: &Situation,
    completions: u32,
) -> impl Iterator<Item = u32> + use<> {
    let works = |pod: &&Arc<Pod>| is_active(pod) || terms.only_failed && is_terminating(pod);
    let worked_on: Indexes = of
        .pods
        .iter()
        .filter(works)
        .filter_map(|pod| index(pod))
        .collect();
    let mut taken = tally.succeeded_indexes.with(&worked_on);
    if let Some(failed) = &tally.failed_indexes {
        taken = taken.with(failed);
    }
    taken.missing(completions)
}

/// Active pods of no index or one that another has, and so many others that `at_least` go, those with least to lose.
fn too_many(terms: &Terms, tally: &Tally, at_least: usize) -> Vec<Arc<Pod>> {
    let mut active = tally.active.clone();
    active.sort_by_cached_key(|pod| least_first(pod));
    let mut out = Vec::new();
    if terms.indexes.is_some() {
        // the last of an index has most to lose
        let mut seen = HashSet::new();
        let mut left = Vec::new();
        for pod in active.into_iter().rev() {
            match terms.index(pod) {
                Some(index) if seen.insert(index) => left.push(pod),
                _ => out.push(pod.clone()),
            }
        }
        left.reverse();
        active = left;
    }
    let more = at_least.saturating_sub(out.len());
    out.extend(active.into_iter().take(more).cloned());
    out
}
