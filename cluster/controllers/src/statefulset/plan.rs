//! What is to be done about a StatefulSet's pods next: pure, of what is there.
//!
//! ```text
//! OrderedReady  one after another, from the lowest: missing ─▶ made; each waits until the one before is available
//!               then those beyond its size go, the highest first, one at a time
//! Parallel      all at once
//! then          RollingUpdate: the highest that is old is deleted, down to the partition; each waits until the one before is available
//! ```
//!
//! Invariant: `OrderedReady` makes none while one of a lower ordinal is not available, and deletes none while another is on its way.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSetSpec, core::v1::Pod};

use crate::{
    percent::{self, Round},
    pod, revision, slow_start,
};

/// How it is kept.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub start: i32,
    pub replicas: i32,
    pub is_parallel: bool,
    /// None: `OnDelete`.
    pub rolling: Option<Rolling>,
    pub min_ready_seconds: i32,
    /// The name of the revision that is wanted.
    pub newest: String,
    pub now: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rolling {
    /// So many from the lowest stay as they are.
    pub partition: i32,
    /// None: one, and one that is ill may be replaced at once.
    pub max_unavailable: Option<i32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Act {
    Make(i32),
    /// The claims that a pod waits for.
    Claims(Arc<Pod>),
    /// That its name, its volumes and its claims' owners are as they should be. Whether the set is to have it.
    Settle(Arc<Pod>, bool),
    Delete(Arc<Pod>),
}

impl Way {
    pub(super) fn of(spec: &StatefulSetSpec, newest: &str, now: Timestamp) -> Self {
        let replicas = spec.replicas.unwrap_or(1).max(0);
        let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start);
        let strategy = spec.update_strategy.as_ref();
        let type_ = strategy.and_then(|strategy| strategy.type_.as_deref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        Self {
            start: start.unwrap_or(0).max(0),
            replicas,
            is_parallel: spec.pod_management_policy.as_deref() == Some("Parallel"),
            rolling: (type_ != Some("OnDelete")).then(|| Rolling {
                partition: rolling
                    .and_then(|rolling| rolling.partition)
                    .unwrap_or(0)
                    .max(0),
                max_unavailable: unavailable
                    .map(|value| percent::of(Some(value), replicas, Round::Down).max(1)),
            }),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            newest: newest.to_owned(),
            now,
        }
    }

    pub(super) fn end(&self) -> i32 {
        self.start.saturating_add(self.replicas)
    }

    pub(super) fn has(&self, ordinal: i32) -> bool {
        (self.start..self.end()).contains(&ordinal)
    }

    /// Whether the pod of this place stays of the revision that was before.
    pub(super) fn is_held_back(&self, ordinal: i32) -> bool {
        self.rolling
            .is_some_and(|rolling| ordinal < self.start.saturating_add(rolling.partition))
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        pod::is_available(pod, self.min_ready_seconds, self.now)
    }

    /// Whether the next one may come.
    fn is_well(&self, pod: &Pod) -> bool {
        !pod::is_deleted(pod) && pod::phase(pod) == "Running" && self.is_available(pod)
    }

    fn is_missed(&self, pod: Option<&Arc<Pod>>) -> bool {
        pod.is_none_or(|pod| pod::is_deleted(pod) || !self.is_available(pod))
    }

    fn is_new(&self, pod: &Pod) -> bool {
        revision_of(pod) == Some(&self.newest)
    }
}

pub(super) fn revision_of(pod: &Pod) -> Option<&String> {
    pod.metadata.labels.as_ref()?.get(revision::LABEL)
}

/// `pods` by their ordinals.
pub(super) fn plan(way: &Way, pods: &BTreeMap<i32, Arc<Pod>>) -> Vec<Act> {
    let mut acts = Vec::new();
    let goes_on = if way.is_parallel {
        all_at_once(way, pods, &mut acts)
    } else {
        one_by_one(way, pods, &mut acts)
    };
    if goes_on {
        roll(way, pods, &mut acts);
    }
    acts
}

/// Whether nothing is waited for.
fn one_by_one(way: &Way, pods: &BTreeMap<i32, Arc<Pod>>, acts: &mut Vec<Act>) -> bool {
    for ordinal in way.start..way.end() {
        let Some(pod) = pods.get(&ordinal) else {
            acts.push(Act::Make(ordinal));
            return false;
        };
        if pod::is_terminal(pod) {
            if !pod::is_deleted(pod) {
                acts.push(Act::Delete(pod.clone()));
            }
            return false;
        }
        if pod::phase(pod) == "Pending" {
            acts.push(Act::Claims(pod.clone()));
        }
        if !way.is_well(pod) {
            return false;
        }
        acts.push(Act::Settle(pod.clone(), true));
    }
    let beyond = || {
        pods.iter()
            .filter(|(ordinal, _)| !way.has(**ordinal))
            .map(|(_, pod)| pod)
    };
    acts.extend(beyond().map(|pod| Act::Settle(pod.clone(), false)));
    let Some(highest) = beyond().next_back() else {
        return true;
    };
    // one that is ill holds up the others, but not itself; and what has ended, nobody
    let ill = beyond().find(|pod| !pod::is_terminal(pod) && way.is_missed(Some(pod)));
    let is_first_ill = ill.is_some_and(|ill| Arc::ptr_eq(ill, highest));
    let may_go = pod::is_terminal(highest) || way.is_well(highest) || is_first_ill;
    if may_go && !pod::is_deleted(highest) {
        acts.push(Act::Delete(highest.clone()));
    }
    false
}

/// Whether all places were looked at.
fn all_at_once(way: &Way, pods: &BTreeMap<i32, Arc<Pod>>, acts: &mut Vec<Act>) -> bool {
    for ordinal in way.start..way.end() {
        // the rest comes with the next look
        if acts.len() >= slow_start::MOST && acts.iter().any(|act| matches!(act, Act::Make(_))) {
            return false;
        }
        match pods.get(&ordinal) {
            None => acts.push(Act::Make(ordinal)),
            Some(pod) if pod::is_terminal(pod) => {
                if !pod::is_deleted(pod) {
                    acts.push(Act::Delete(pod.clone()));
                }
            }
            Some(pod) => {
                if pod::phase(pod) == "Pending" {
                    acts.push(Act::Claims(pod.clone()));
                }
                acts.push(Act::Settle(pod.clone(), true));
            }
        }
    }
    for (_, pod) in pods.iter().filter(|(ordinal, _)| !way.has(**ordinal)) {
        acts.push(Act::Settle(pod.clone(), false));
        if !pod::is_deleted(pod) {
            acts.push(Act::Delete(pod.clone()));
        }
    }
    true
}

fn roll(way: &Way, pods: &BTreeMap<i32, Arc<Pod>>, acts: &mut Vec<Act>) {
    let Some(rolling) = way.rolling else { return };
    let from = way.start.saturating_add(rolling.partition);
    let is_old = |pod: &Arc<Pod>| !way.is_new(pod) && !pod::is_deleted(pod);
    let Some(most) = rolling.max_unavailable else {
        for ordinal in (from..way.end()).rev() {
            let pod = pods.get(&ordinal);
            if let Some(old) = pod.filter(|pod| is_old(pod)) {
                delete(acts, old);
                return;
            }
            if way.is_missed(pod) {
                return;
            }
        }
        return;
    };
    let missed = (way.start..way.end())
        .filter(|ordinal| way.is_missed(pods.get(ordinal)))
        .count();
    let more = usize::try_from(most).unwrap_or(0).saturating_sub(missed);
    let old = (from..way.end())
        .rev()
        .filter_map(|ordinal| pods.get(&ordinal));
    for pod in old.filter(|pod| is_old(pod)).take(more) {
        delete(acts, pod);
    }
}

/// Once.
fn delete(acts: &mut Vec<Act>, pod: &Arc<Pod>) {
    let act = Act::Delete(pod.clone());
    if !acts.contains(&act) {
        acts.push(act);
    }
}

#[cfg(test)]
mod tests;
