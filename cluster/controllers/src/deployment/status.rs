//! What a Deployment's status says: numbers of its ReplicaSets, and whether it is available and makes progress (DP-12).

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{
        Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::sizes::Bounds;
use crate::replicaset::replicas;

const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// None where no deadline is set: `i32::MAX` says so, too.
pub(super) fn deadline(spec: &DeploymentSpec) -> Option<Duration> {
    let seconds = spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

pub(super) fn condition<'a>(
    status: &'a DeploymentStatus,
    type_: &str,
) -> Option<&'a DeploymentCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

fn reason<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a str> {
    condition(status, type_)?.reason.as_deref()
}

/// What is new in a condition: `True`, a reason and a message.
pub(super) struct Said<'a> {
    pub type_: &'a str,
    pub status: &'a str,
    pub reason: &'a str,
    pub message: String,
}

/// Sets a condition, unless it says the same for the same reason. The time of its transition stays while its status does.
pub(super) fn say(status: &mut DeploymentStatus, said: Said<'_>, now: Timestamp) {
    if condition(status, said.type_).is_some_and(|known| {
        known.status == said.status && known.reason.as_deref() == Some(said.reason)
    }) {
        return;
    }
    renew(status, said, now);
}

/// Sets a condition even if it says the same, as of now.
fn renew(status: &mut DeploymentStatus, said: Said<'_>, now: Timestamp) {
    let known = condition(status, said.type_).filter(|known| known.status == said.status);
    let since = known.and_then(|known| known.last_transition_time.clone());
    put(
        status,
        DeploymentCondition {
            type_: said.type_.to_owned(),
            status: said.status.to_owned(),
            reason: Some(said.reason.to_owned()),
            message: Some(said.message),
            last_update_time: Some(Time(now)),
            last_transition_time: since.or(Some(Time(now))),
        },
    );
}

fn put(status: &mut DeploymentStatus, condition: DeploymentCondition) {
    forget(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn forget(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
    if status.conditions.as_ref().is_some_and(Vec::is_empty) {
        status.conditions = None;
    }
}

/// While it is paused no progress is expected (DP-09); from when it goes on the deadline runs anew.
pub(super) fn pause(status: &mut DeploymentStatus, spec: &DeploymentSpec, now: Timestamp) {
    if deadline(spec).is_none() || reason(status, PROGRESSING) == Some(TIMED_OUT) {
        return;
    }
    let was = reason(status, PROGRESSING) == Some(PAUSED);
    let (reason, message) = match (spec.paused == Some(true), was) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return,
    };
    let said = Said {
        type_: PROGRESSING,
        status: "Unknown",
        reason,
        message: message.into(),
    };
    say(status, said, now);
}

/// All of them, and which of them is of the template that the Deployment has.
#[derive(Clone, Copy)]
pub(super) struct Sets<'a> {
    pub all: &'a [Arc<ReplicaSet>],
    pub new: Option<&'a ReplicaSet>,
}

/// The numbers, and whether it is available. The other conditions are as they were.
pub(super) fn counted(
    deployment: &Deployment,
    bounds: &Bounds,
    sets: Sets<'_>,
    now: Timestamp,
) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    let told = || sets.all.iter().filter_map(|set| set.status.as_ref());
    let sum = |numbers: &mut dyn Iterator<Item = i32>| numbers.fold(0, i32::saturating_add);
    let sizes = &mut sets
        .all
        .iter()
        .filter_map(|set| set.spec.as_ref())
        .map(replicas);
    let wanted = sum(sizes);
    let available = sum(&mut told().filter_map(|status| status.available_replicas));
    let updated = sets.new.and_then(|new| new.status.as_ref());
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(&mut told().map(|status| status.replicas))),
        updated_replicas: some(updated.map_or(0, |status| status.replicas)),
        ready_replicas: some(sum(&mut told().filter_map(|status| status.ready_replicas))),
        available_replicas: some(available),
        unavailable_replicas: some(wanted.saturating_sub(available).max(0)),
        terminating_replicas: terminating(sets.all),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let (is, reason, message) = if available >= bounds.least_available() {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    let said = Said {
        type_: AVAILABLE,
        status: is,
        reason,
        message: message.into(),
    };
    say(&mut status, said, now);
    status
}

/// None if one of them has not told how many there are.
fn terminating(sets: &[Arc<ReplicaSet>]) -> Option<i32> {
    let told = sets.iter().filter_map(|set| set.status.as_ref());
    told.filter(|status| {
        status.observed_generation.unwrap_or(0) != 0 || status.terminating_replicas.is_some()
    })
    .map(|status| status.terminating_replicas)
    .try_fold(0, |sum: i32, number| Some(sum.saturating_add(number?)))
}

pub(super) fn is_complete(
    deployment: &Deployment,
    bounds: &Bounds,
    status: &DeploymentStatus,
) -> bool {
    let all = Some(bounds.replicas).filter(|replicas| *replicas != 0);
    status.updated_replicas == all
        && status.replicas == all
        && status.available_replicas == all
        && status.observed_generation >= deployment.metadata.generation
}

/// Says in `status` whether the roll is done, goes on, or has made no progress for too long.
pub(super) fn progress(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    bounds: &Bounds,
    sets: Sets<'_>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let before = deployment.status.clone().unwrap_or_default();
    if let Some(deadline) = deadline(spec) {
        let was_complete = reason(&before, PROGRESSING) == Some(COMPLETE);
        if !(was_complete && status.replicas == status.updated_replicas) {
            progress_within(deployment, bounds, sets, &before, status, deadline, now);
        }
    } else {
        forget(status, PROGRESSING);
    }
    match failure(sets) {
        Some(failure) => {
            let known = condition(status, REPLICA_FAILURE).is_some_and(|known| {
                known.status == failure.status && known.reason == failure.reason
            });
            if !known {
                put(status, failure);
            }
        }
        None => forget(status, REPLICA_FAILURE),
    }
}

fn progress_within(
    deployment: &Deployment,
    bounds: &Bounds,
    sets: Sets<'_>,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    deadline: Duration,
    now: Timestamp,
) {
    let what = match sets.new.and_then(|new| new.metadata.name.as_deref()) {
        Some(name) => format!("ReplicaSet \"{name}\""),
        None => {
            let name = deployment.metadata.name.as_deref().unwrap_or_default();
            format!("Deployment \"{name}\"")
        }
    };
    let said = |status, reason, how: &str| Said {
        type_: PROGRESSING,
        status,
        reason,
        message: format!("{what} {how}"),
    };
    if is_complete(deployment, bounds, status) {
        let said = said("True", COMPLETE, "has successfully progressed.");
        say(status, said, now);
    } else if has_progressed(before, status) {
        // also if it did before: from now the deadline runs anew
        renew(
            status,
            said("True", "ReplicaSetUpdated", "is progressing."),
            now,
        );
    } else if is_late(status, deadline, now) {
        say(
            status,
            said("False", TIMED_OUT, "has timed out progressing."),
            now,
        );
    }
}

fn has_progressed(before: &DeploymentStatus, status: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| {
        status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
    };
    status.updated_replicas > before.updated_replicas
        || old(status) < old(before)
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas
}

fn is_late(status: &DeploymentStatus, deadline: Duration, now: Timestamp) -> bool {
    match reason(status, PROGRESSING) {
        // it was done before, and what is new has not begun
        None | Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        Some(_) => due(status, deadline).is_some_and(|due| due < now),
    }
}

fn due(status: &DeploymentStatus, deadline: Duration) -> Option<Timestamp> {
    let progressing = condition(status, PROGRESSING)?;
    let since = progressing.last_update_time.as_ref()?.0;
    since
        .checked_add(SignedDuration::try_from(deadline).ok()?)
        .ok()
}

/// When its progress is to be looked at again, if nothing changes before.
pub(super) fn looked_at_again(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    bounds: &Bounds,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = deadline(spec)?;
    if spec.paused == Some(true)
        || is_complete(deployment, bounds, status)
        || matches!(
            reason(status, PROGRESSING),
            None | Some(TIMED_OUT | COMPLETE)
        )
    {
        return None;
    }
    let rest = due(status, deadline)?.duration_since(now);
    // times are whole seconds: a second later it is late for certain
    let rest = Duration::try_from(rest).unwrap_or_default();
    Some(rest + Duration::from_secs(1))
}

/// Of the new one first.
fn failure(sets: Sets<'_>) -> Option<DeploymentCondition> {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let failed = conditions
            .iter()
            .find(|condition| condition.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: failed.type_.clone(),
            status: failed.status.clone(),
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            last_update_time: failed.last_transition_time.clone(),
            last_transition_time: failed.last_transition_time.clone(),
        })
    };
    let new = sets.new.and_then(failure);
    new.or_else(|| sets.all.iter().find_map(|set| failure(set)))
}

#[cfg(test)]
mod tests;
