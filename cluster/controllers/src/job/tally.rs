//! What of a job's pods counts.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec, JobStatus},
    core::v1::Pod,
};

use super::{
    indexes::Indexes,
    pods::{ended_at, failures_before, index, is_tracked, uid},
    policy::Failure,
};
use crate::pod::{is_active, is_deleted, is_terminating, phase};

pub(super) fn count(value: Option<i32>) -> usize {
    value
        .and_then(|value| usize::try_from(value).ok())
        .unwrap_or(0)
}

pub(super) fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A job's spec, with what it does not say filled in.
pub(super) struct Terms<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) parallelism: usize,
    /// None: any success is enough.
    pub(super) completions: Option<usize>,
    pub(super) indexes: Option<u32>,
    pub(super) suspended: bool,
    pub(super) only_failed: bool,
    pub(super) is_deleted: bool,
}

impl<'a> Terms<'a> {
    pub(super) fn of(job: &'a Job, spec: &'a JobSpec) -> Self {
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
    pub(super) fn has_failed(&self, pod: &Pod) -> bool {
        phase(pod) == "Failed" || !self.only_failed && is_deleted(pod) && phase(pod) != "Succeeded"
    }

    pub(super) fn failure(&self, pod: &Pod) -> Failure {
        Failure::of(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Of an indexed job, the pod's index if it is one.
    pub(super) fn index(&self, pod: &Pod) -> Option<u32> {
        let completions = self.indexes?;
        index(pod).filter(|index| *index < completions)
    }

    /// Whether it counts at all.
    pub(super) fn is_valid(&self, pod: &Pod) -> bool {
        self.indexes.is_none() || self.index(pod).is_some()
    }

    /// With a limit per index: whether this pod's failure is its index's last.
    pub(super) fn fails_index(&self, pod: &Pod, limit: i32) -> bool {
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
pub(super) struct Tally<'a> {
    pub(super) active: Vec<&'a Arc<Pod>>,
    pub(super) terminating: usize,
    /// With finalizer and not in the status.
    pub(super) new_succeeded: Vec<&'a Pod>,
    pub(super) new_failed: Vec<&'a Pod>,
    pub(super) succeeded: usize,
    /// Without those that its policy ignores.
    pub(super) failed: usize,
    pub(super) succeeded_before: Indexes,
    pub(super) succeeded_indexes: Indexes,
    /// With a limit per index.
    pub(super) failed_indexes: Option<Indexes>,
    /// With a limit per index: the last failed pod of an index that is to be tried again, kept until the next one has its number of failures.
    pub(super) kept: BTreeMap<u32, &'a Pod>,
}

/// Those that stand there.
pub(super) struct Uncounted<'a> {
    pub(super) succeeded: HashSet<&'a str>,
    pub(super) failed: HashSet<&'a str>,
}

impl<'a> Uncounted<'a> {
    pub(super) fn of(status: Option<&'a JobStatus>) -> Self {
        let pods = status.and_then(|status| status.uncounted_terminated_pods.as_ref());
        let uids = |list: Option<&'a Vec<String>>| {
            list.into_iter().flatten().map(String::as_str).collect()
        };
        Self {
            succeeded: uids(pods.and_then(|pods| pods.succeeded.as_ref())),
            failed: uids(pods.and_then(|pods| pods.failed.as_ref())),
        }
    }

    pub(super) fn has(&self, pod: &Pod) -> bool {
        self.succeeded.contains(uid(pod)) || self.failed.contains(uid(pod))
    }
}

impl<'a> Tally<'a> {
    pub(super) fn of(terms: &Terms, job: &'a Job, pods: &'a [Arc<Pod>]) -> Self {
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
