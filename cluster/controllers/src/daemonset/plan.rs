//! What is to be done on each node: pure, of what is there.
//!
//! ```text
//! wanted, none there ─▶ made
//! ended ─▶ deleted (a failed one not before its back-off), and made anew
//! too many ─▶ the oldest stays; while it surges, one old and one new
//! unwanted ─▶ deleted
//! RollingUpdate: old ones are deleted (or, with surge, new ones made beside them), within maxUnavailable (maxSurge)
//! ```
//!
//! Invariant (DS-01): at most one pod a node, and while it surges one more of the new template.
//! Invariant (DS-05): a roll makes no more nodes unavailable than maxUnavailable, and makes no more than maxSurge beside old ones that are available.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSetSpec, RollingUpdateDaemonSet},
    core::v1::Pod,
};

use super::place::Place;
use crate::{
    percent::{self, Round},
    pod, revision,
};

/// What is there: of each node its place and the pods on it or meant for it. Also of nodes that are not there any more.
pub(super) struct Seen {
    pub places: BTreeMap<String, Place>,
    pub pods: BTreeMap<String, Vec<Arc<Pod>>>,
}

/// How it is kept.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// Of the pods of the template that is wanted.
    pub hash: String,
    pub min_ready_seconds: i32,
    /// None: `OnDelete` (DS-06).
    pub rolling: Option<RollingUpdateDaemonSet>,
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Plan {
    /// On these nodes.
    pub make: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of them that have failed, and the nodes: they are not deleted at any rate.
    pub failed: Vec<(String, Arc<Pod>)>,
    pub succeeded: Vec<Arc<Pod>>,
}

impl Way {
    pub(super) fn of(spec: &DaemonSetSpec, hash: &str, now: Timestamp) -> Self {
        let strategy = spec.update_strategy.as_ref();
        let type_ = strategy.and_then(|strategy| strategy.type_.as_deref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.clone());
        Self {
            hash: hash.to_owned(),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            rolling: (type_ != Some("OnDelete")).then(|| rolling.unwrap_or_default()),
            now,
        }
    }

    pub(super) fn is_new(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(revision::LABEL)) == Some(&self.hash)
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        pod::is_available(pod, self.min_ready_seconds, self.now)
    }

    /// Of so many nodes: `(surge, unavailable)`. Both round up, and at least one of them is something.
    fn bounds(&self, wanted: i32) -> (i32, i32) {
        let Some(rolling) = &self.rolling else {
            return (0, 0);
        };
        let surge = percent::of(rolling.max_surge.as_ref(), wanted, Round::Up);
        let unavailable = percent::of(rolling.max_unavailable.as_ref(), wanted, Round::Up);
        if surge == 0 && unavailable == 0 {
            (0, 1)
        } else {
            (surge, unavailable)
        }
    }

    fn may_surge(&self) -> bool {
        self.bounds(1).0 > 0
    }
}

/// The oldest that has a node first.
pub(super) fn by_age(pods: &mut [Arc<Pod>]) {
    pods.sort_by_cached_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            pod::node_of(pod).is_none(),
            created.is_none(),
            created,
            pod.metadata.name.clone(),
        )
    });
}

/// What every node is to have, whatever the template.
pub(super) fn keep(way: &Way, seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    for (node, place) in &seen.places {
        let pods = seen.pods.get(node).map_or(&[][..], Vec::as_slice);
        let alive = || pods.iter().filter(|pod| !pod::is_deleted(pod));
        match place {
            Place::Unwanted => plan.delete.extend(alive().cloned()),
            Place::Wanted if pods.is_empty() => plan.make.push(node.clone()),
            Place::Wanted | Place::Left => {
                let mut running = Vec::new();
                for pod in alive() {
                    match pod::phase(pod) {
                        "Failed" => plan.failed.push((node.clone(), pod.clone())),
                        "Succeeded" => plan.succeeded.push(pod.clone()),
                        _ => running.push(pod.clone()),
                    }
                }
                let ends = running.is_empty() && !pods.iter().any(|pod| is_failed(pod));
                if way.may_surge() && ends && *place == Place::Wanted {
                    // one that is being deleted is not waited for
                    plan.make.push(node.clone());
                }
                by_age(&mut running);
                plan.delete.extend(excess(way, running));
            }
        }
    }
    // the pod collector takes those of nodes that are gone, but not those that never got there
    for (node, pods) in &seen.pods {
        if !seen.places.contains_key(node) {
            let unbound = pods.iter().filter(|pod| pod::node_of(pod).is_none());
            plan.delete
                .extend(unbound.filter(|pod| !pod::is_deleted(pod)).cloned());
        }
    }
    plan
}

fn is_failed(pod: &Pod) -> bool {
    pod::phase(pod) == "Failed" && !pod::is_deleted(pod)
}

/// Those that are too many on one node. `running`: the oldest first.
fn excess(way: &Way, running: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    if running.len() <= 1 {
        return Vec::new();
    }
    if !way.may_surge() {
        return running.into_iter().skip(1).collect();
    }
    let (mut new, mut old, mut excess) = (None, None, Vec::new());
    for pod in running {
        let kept = if way.is_new(&pod) { &mut new } else { &mut old };
        if kept.is_none() {
            *kept = Some(pod);
        } else {
            excess.push(pod);
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pod::is_ready(&old) || way.is_available(&new))
    {
        excess.push(old);
    }
    excess
}

/// The next step to the template that is wanted: of what [`keep`] lets alone.
pub(super) fn roll(way: &Way, seen: &Seen) -> Plan {
    if way.rolling.is_none() {
        return Plan::default();
    }
    let wanted = || {
        seen.places
            .iter()
            .filter(|(_, place)| **place == Place::Wanted)
    };
    let count = i32::try_from(wanted().count()).unwrap_or(i32::MAX);
    let (surge, unavailable) = way.bounds(count);
    let mut nodes: BTreeMap<&str, &[Arc<Pod>]> = BTreeMap::new();
    nodes.extend(wanted().map(|(node, _)| (node.as_str(), &[][..])));
    nodes.extend(
        seen.pods
            .iter()
            .map(|(node, pods)| (node.as_str(), pods.as_slice())),
    );
    if surge == 0 {
        replace(way, &nodes, unavailable)
    } else {
        surging(way, seen, &nodes, surge, count)
    }
}

/// Of one node: the one of the new template, and the old one.
#[derive(Default)]
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

/// None if there is more than one of either: then [`keep`] has to do with it first.
fn pair<'a>(way: &Way, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let mut pair = Pair::default();
    for pod in pods.iter().filter(|pod| !pod::is_deleted(pod)) {
        let one = if way.is_new(pod) {
            &mut pair.new
        } else {
            &mut pair.old
        };
        if one.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// Old ones first (DS-05): each is deleted, and made anew when it is gone.
fn replace(way: &Way, nodes: &BTreeMap<&str, &[Arc<Pod>]>, may_be_unavailable: i32) -> Plan {
    let (mut plan, mut candidates, mut unavailable) = (Plan::default(), Vec::new(), 0);
    for pods in nodes.values() {
        match pair(way, pods).map(|pair| (pair.new, pair.old)) {
            Some((Some(new), None)) if way.is_available(new) => {}
            Some((None, Some(old))) if way.is_available(old) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                // nothing is lost with it
                plan.delete.push(old.clone());
                unavailable += 1;
            }
            _ => unavailable += 1,
        }
    }
    let more = usize::try_from(may_be_unavailable - unavailable).unwrap_or(0);
    plan.delete.extend(candidates.into_iter().take(more));
    plan
}

/// New ones beside the old; an old one goes when its new one is available.
fn surging(
    way: &Way,
    seen: &Seen,
    nodes: &BTreeMap<&str, &[Arc<Pod>]>,
    may_surge: i32,
    wanted: i32,
) -> Plan {
    let mut plan = Plan::default();
    let (mut candidates, mut leave) = (Vec::new(), Vec::new());
    let (mut surging, mut available) = (0, 0);
    for (node, pods) in nodes {
        let Some(Pair { new, old }) = pair(way, pods) else {
            surging += 1;
            continue;
        };
        if old.or(new).is_some_and(|pod| way.is_available(pod)) {
            available += 1;
        }
        let is_wanted = seen.places.get(*node) == Some(&Place::Wanted);
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) => match (is_wanted, way.is_available(old)) {
                (true, true) => candidates.push((*node).to_owned()),
                (true, false) => plan.make.push((*node).to_owned()),
                (false, true) => leave.push(old.clone()),
                (false, false) => plan.delete.push(old.clone()),
            },
            (Some(new), Some(old)) if way.is_available(new) => plan.delete.push(old.clone()),
            (Some(_), Some(_)) => surging += 1,
        }
    }
    // those on nodes that are not wanted any more go once as many are available elsewhere
    let more = usize::try_from(available - wanted).unwrap_or(0);
    plan.delete.extend(leave.into_iter().take(more));
    let more = usize::try_from(may_surge - surging).unwrap_or(0);
    plan.make.extend(candidates.into_iter().take(more));
    plan
}

#[cfg(test)]
mod tests;
