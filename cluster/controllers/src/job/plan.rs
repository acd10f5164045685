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

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use berth_recorder::Level;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    failures::{self, Failures},
    indexes::Indexes,
    pods::{
        NewPod, ended_at, failures_before, index, is_active, is_deleted, is_ready, is_terminating,
        is_tracked, least_first, phase, restarts, uid,
    },
    policy::{Failure, enough},
};

/// Uids that the status holds at most: about 20 KB (as upstream).
const UNCOUNTED: usize = 500;
/// Pods that one step makes or ends at most (as upstream).
pub(super) const AT_ONCE: usize = 500;

pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
const WILL_COMPLETE: &str = "SuccessCriteriaMet";
const WILL_FAIL: &str = "FailureTarget";
const SUSPENDED: &str = "Suspended";
const BY_POLICY: &str = "SuccessPolicy";

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

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub level: Level,
    pub reason: String,
    pub message: String,
}

/// How the job ends.
struct Verdict {
    succeeds: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn fails(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self {
            succeeds: false,
            reason: reason.to_owned(),
            message: message.into(),
        })
    }

    fn succeeds(reason: &str, message: impl Into<String>) -> Option<Self> {
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

    fn of(condition: &JobCondition, succeeds: bool) -> Self {
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

fn count(value: Option<i32>) -> usize {
    value
        .and_then(|value| usize::try_from(value).ok())
        .unwrap_or(0)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A job's spec, with what it does not say filled in.
struct Terms<'a> {
    spec: &'a JobSpec,
    parallelism: usize,
    /// None: any success is enough.
    completions: Option<usize>,
    indexes: Option<u32>,
    suspended: bool,
    only_failed: bool,
    is_deleted: bool,
}

impl<'a> Terms<'a> {
    fn of(job: &'a Job, spec: &'a JobSpec) -> Self {
        let completions = spec
            .completions
            .map(|count| u32::try_from(count).unwrap_or(0));
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        Self {
            spec,
            parallelism: spec
                .parallelism
                .map_or(1, |count| usize::try_from(count).unwrap_or(0)),
            completions: completions.map(|count| count as usize),
            indexes: indexed.then(|| completions.unwrap_or(0)),
            suspended: spec.suspend.unwrap_or(false),
            only_failed: spec.pod_failure_policy.is_some()
                || spec.pod_replacement_policy.as_deref() == Some("Failed"),
            is_deleted: job.metadata.deletion_timestamp.is_some(),
        }
    }

    /// One that is deleted counts as failed, for it may never come to say so itself.
    fn has_failed(&self, pod: &Pod) -> bool {
        phase(pod) == "Failed" || !self.only_failed && is_deleted(pod) && phase(pod) != "Succeeded"
    }

    fn failure(&self, pod: &Pod) -> Failure {
        Failure::of(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Of an indexed job, the pod's index if it is one.
    fn index(&self, pod: &Pod) -> Option<u32> {
        let completions = self.indexes?;
        index(pod).filter(|index| *index < completions)
    }

    /// Whether it counts at all.
    fn is_valid(&self, pod: &Pod) -> bool {
        self.indexes.is_none() || self.index(pod).is_some()
    }

    /// With a limit per index: whether this pod's failure is its index's last.
    fn fails_index(&self, pod: &Pod, limit: i32) -> bool {
        self.has_failed(pod)
            && match self.failure(pod) {
                Failure::FailsIndex => true,
                Failure::Ignored => false,
                Failure::Counts | Failure::FailsJob(_) => {
                    failures_before(pod).0 >= limit.unsigned_abs()
                }
            }
    }
}

/// What of the pods counts.
struct Tally<'a> {
    active: Vec<&'a Arc<Pod>>,
    terminating: usize,
    /// With finalizer and not in the status.
    new_succeeded: Vec<&'a Pod>,
    new_failed: Vec<&'a Pod>,
    succeeded: usize,
    /// Without those that its policy ignores.
    failed: usize,
    succeeded_before: Indexes,
    succeeded_indexes: Indexes,
    /// With a limit per index.
    failed_indexes: Option<Indexes>,
    /// With a limit per index: the last failed pod of an index that is to be tried again, kept until the next one has its number of failures.
    kept: BTreeMap<u32, &'a Pod>,
}

/// Those that stand there.
struct Uncounted<'a> {
    succeeded: HashSet<&'a str>,
    failed: HashSet<&'a str>,
}

impl<'a> Uncounted<'a> {
    fn of(status: Option<&'a JobStatus>) -> Self {
        let pods = status.and_then(|status| status.uncounted_terminated_pods.as_ref());
        let uids = |list: Option<&'a Vec<String>>| {
            list.into_iter().flatten().map(String::as_str).collect()
        };
        Self {
            succeeded: uids(pods.and_then(|pods| pods.succeeded.as_ref())),
            failed: uids(pods.and_then(|pods| pods.failed.as_ref())),
        }
    }

    fn has(&self, pod: &Pod) -> bool {
        self.succeeded.contains(uid(pod)) || self.failed.contains(uid(pod))
    }
}

impl<'a> Tally<'a> {
    fn of(terms: &Terms, job: &'a Job, pods: &'a [Arc<Pod>]) -> Self {
        let status = job.status.as_ref();
        let uncounted = Uncounted::of(status);
        let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).collect();
        let new: Vec<&Pod> = pods
            .iter()
            .map(|pod| &**pod)
            .filter(|pod| is_tracked(pod) && terms.is_valid(pod) && !uncounted.has(pod))
            .collect();
        let with =
            |which: &dyn Fn(&Pod) -> bool| new.iter().copied().filter(|pod| which(pod)).collect();
        let new_succeeded: Vec<&Pod> = with(&|pod| phase(pod) == "Succeeded");
        let new_failed: Vec<&Pod> = with(&|pod| terms.has_failed(pod));
        let failures = new_failed
            .iter()
            .filter(|pod| terms.failure(pod).is_counted());
        let mut tally = Self {
            terminating: pods.iter().filter(|pod| is_terminating(pod)).count(),
            succeeded: count(status.and_then(|status| status.succeeded))
                + uncounted.succeeded.len()
                + new_succeeded.len(),
            failed: count(status.and_then(|status| status.failed))
                + uncounted.failed.len()
                + failures.count(),
            active,
            new_succeeded,
            new_failed,
            succeeded_before: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            kept: BTreeMap::new(),
        };
        if let Some(completions) = terms.indexes {
            tally.count_indexes(terms, status, &uncounted, completions, pods);
        }
        tally
    }

    fn count_indexes(
        &mut self,
        terms: &Terms,
        status: Option<&JobStatus>,
        uncounted: &Uncounted,
        completions: u32,
        pods: &'a [Arc<Pod>],
    ) {
        let before =
            |text: Option<&String>| Indexes::parse(text.map_or("", String::as_str), completions);
        let tracked = || pods.iter().map(|pod| &**pod).filter(|pod| is_tracked(pod));
        self.succeeded_before = before(status.and_then(|status| status.completed_indexes.as_ref()));
        let fresh = tracked()
            .filter(|pod| phase(pod) == "Succeeded" && !uncounted.failed.contains(uid(pod)))
            .filter_map(|pod| terms.index(pod))
            .collect();
        self.succeeded_indexes = self.succeeded_before.with(&fresh);
        self.succeeded = self.succeeded_indexes.count();
        let Some(limit) = terms.spec.backoff_limit_per_index else {
            return;
        };
        let fresh = tracked()
            .filter(|pod| terms.fails_index(pod, limit))
            .filter_map(|pod| terms.index(pod))
            // another of its pods was faster
            .filter(|index| !self.succeeded_indexes.contains(*index))
            .collect();
        let failed = before(status.and_then(|status| status.failed_indexes.as_ref())).with(&fresh);
        let active: Indexes = self
            .active
            .iter()
            .filter_map(|pod| terms.index(pod))
            .collect();
        for pod in tracked().filter(|pod| terms.has_failed(pod)) {
            let Some(index) = terms.index(pod) else {
                continue;
            };
            if self.succeeded_indexes.contains(index)
                || failed.contains(index)
                || active.contains(index)
            {
                continue;
            }
            let failures = |pod: &Pod| {
                let (counted, ignored) = failures_before(pod);
                counted.saturating_add(ignored)
            };
            let is_later =
                |last: &&Pod| failures(last) <= failures(pod) && ended_at(pod) >= ended_at(last);
            if self.kept.get(&index).is_none_or(is_later) {
                self.kept.insert(index, pod);
            }
        }
        self.failed_indexes = Some(failed);
    }
}

/// Pods that have ended and are not in the status: those that have succeeded, and those that have not.
pub(super) fn newly_ended<'a>(job: &'a Job, pods: &'a [Arc<Pod>]) -> (Vec<&'a Pod>, Vec<&'a Pod>) {
    let Some(spec) = &job.spec else {
        return (Vec::new(), Vec::new());
    };
    let tally = Tally::of(&Terms::of(job, spec), job, pods);
    (tally.new_succeeded, tally.new_failed)
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

/// The status as it should be.
struct Report<'a> {
    terms: &'a Terms<'a>,
    tally: &'a Tally<'a>,
    of: &'a Situation<'a>,
    before: JobStatus,
    status: JobStatus,
    told: Vec<Told>,
    untrack: Vec<Arc<Pod>>,
    /// It names pods or indexes that it did not before.
    records: bool,
    /// There are pods that the status has no room for.
    has_more: bool,
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
    fn of(terms: &'a Terms, tally: &'a Tally, of: &'a Situation) -> Self {
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

    fn into_step(self) -> Step {
        Step::Status(Box::new(normal(Some(&self.status))), self.told)
    }

    fn differs(&self) -> bool {
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
    fn count(&mut self, verdict: Option<&Verdict>) {
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

    fn conclude(&mut self, verdict: Option<&Verdict>) {
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
