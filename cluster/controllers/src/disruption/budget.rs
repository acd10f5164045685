//! How many pods of a budget may be disrupted now. Pure.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;

use crate::pod;

/// A pod that was let go has to be on its way out within it; else it stays, and counts again.
pub(super) const DELETION: Duration = Duration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

/// Whether the number of pods that there should be has to be asked of those that made them; else it is that of those that there are.
pub(super) fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Of `all`; a share is rounded up.
fn scaled(amount: &IntOrString, all: i32) -> Result<i32, String> {
    let text = match amount {
        IntOrString::Int(number) => return Ok(*number),
        IntOrString::String(text) => text,
    };
    let percent: Option<i64> = text
        .strip_suffix('%')
        .and_then(|number| number.parse().ok());
    let percent = percent.filter(|percent| (0..=100).contains(percent));
    let percent = percent
        .ok_or_else(|| format!("{text:?} is neither a number nor a percentage up to 100%"))?;
    let share = (i64::from(all) * percent + 99) / 100;
    Ok(i32::try_from(share).unwrap_or(i32::MAX))
}

/// How many have to be healthy, of those that there should be.
pub(super) fn desired(spec: &PodDisruptionBudgetSpec, expected: i32) -> Result<i32, String> {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => Ok((expected - scaled(most, expected)?).max(0)),
        (None, Some(least)) => scaled(least, expected),
        (None, None) => Ok(0),
    }
}

/// Pods that an eviction has let go and that are not on their way out yet, and since when this process knows of it. The server's clock, which has written the
/// time, may be another than ours: it only tells one eviction from the next.
#[derive(Debug, Default)]
pub(super) struct Disrupted(BTreeMap<String, (Timestamp, Instant)>);

#[derive(Debug, Default, PartialEq)]
pub(super) struct Counted {
    pub pods: BTreeMap<String, Time>,
    pub healthy: i32,
    /// When the next of `pods` counts again.
    pub recheck: Option<Instant>,
    /// They were let go, and did not go.
    pub stayed: Vec<String>,
}

impl Disrupted {
    pub(super) fn count(
        &mut self,
        told: Option<&BTreeMap<String, Time>>,
        pods: &[Arc<Pod>],
        now: Instant,
    ) -> Counted {
        let mut counted = Counted::default();
        let mut seen = BTreeMap::new();
        for pod in pods {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let name = pod.name_any();
            if let Some(time) = told.and_then(|told| told.get(&name)) {
                let known = self.0.get(&name).filter(|(before, _)| *before == time.0);
                let since = known.map_or(now, |(_, since)| *since);
                if since + DELETION > now {
                    let end = since + DELETION;
                    counted.recheck = Some(counted.recheck.map_or(end, |next| next.min(end)));
                    seen.insert(name.clone(), (time.0, since));
                    counted.pods.insert(name, time.clone());
                    continue;
                }
                counted.stayed.push(name);
            }
            counted.healthy += i32::from(pod::is_ready(pod));
        }
        self.0 = seen;
        counted
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The status that it should have; none: it has it.
pub(super) fn status(
    budget: &PodDisruptionBudget,
    counted: &Counted,
    expected: i32,
    desired: i32,
    now: Timestamp,
) -> Option<PodDisruptionBudgetStatus> {
    // Where no pod is expected none has come yet: the first ones are safe until they are counted.
    let allowed = if expected > 0 {
        (counted.healthy - desired).max(0)
    } else {
        0
    };
    let before = budget.status.clone().unwrap_or_default();
    let (verdict, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let generation = budget.metadata.generation;
    let condition = condition(&before, verdict, reason, "", generation, now);
    let wanted = PodDisruptionBudgetStatus {
        current_healthy: Some(counted.healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!counted.pods.is_empty()).then(|| counted.pods.clone()),
        observed_generation: generation,
        conditions: Some(conditions(&before, condition)),
    };
    let mut plain = before;
    plain.disrupted_pods = plain.disrupted_pods.filter(|pods| !pods.is_empty());
    (plain != wanted).then_some(wanted)
}

/// Nothing may be disrupted as long as it isn't known how many there are.
pub(super) fn failed(
    budget: &PodDisruptionBudget,
    why: &str,
    now: Timestamp,
) -> Option<PodDisruptionBudgetStatus> {
    let before = budget.status.clone().unwrap_or_default();
    let condition = condition(
        &before,
        "False",
        "SyncFailed",
        why,
        before.observed_generation,
        now,
    );
    let wanted = PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        conditions: Some(conditions(&before, condition)),
        ..before.clone()
    };
    (before != wanted).then_some(wanted)
}

fn condition(
    before: &PodDisruptionBudgetStatus,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let known = before
        .conditions
        .iter()
        .flatten()
        .find(|one| one.type_ == ALLOWED);
    let since = known.filter(|known| known.status == status);
    Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: since.map_or(Time(now), |known| known.last_transition_time.clone()),
    }
}

fn conditions(before: &PodDisruptionBudgetStatus, condition: Condition) -> Vec<Condition> {
    let mut all = before.conditions.clone().unwrap_or_default();
    match all.iter_mut().find(|one| one.type_ == ALLOWED) {
        Some(known) => *known = condition,
        None => all.push(condition),
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn budget(spec: &Value) -> PodDisruptionBudget {
        serde_json::from_value(
            json!({"metadata": {"name": "b", "namespace": "d", "generation": 3}, "spec": spec}),
        )
        .expect("a budget")
    }

    fn pod(name: &str, ready: bool, ends: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"name": name, "deletionTimestamp": ends.then_some("2026-01-01T00:00:00Z")},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn how_many_have_to_be_healthy() {
        for (spec, expected, wanted) in [
            (json!({"minAvailable": 2}), 5, Ok(2)),
            (json!({"minAvailable": "50%"}), 5, Ok(3)),
            (json!({"minAvailable": "0%"}), 5, Ok(0)),
            (json!({"maxUnavailable": 1}), 5, Ok(4)),
            (json!({"maxUnavailable": "30%"}), 10, Ok(7)),
            (json!({"maxUnavailable": "25%"}), 5, Ok(3)),
            (json!({"maxUnavailable": 7}), 5, Ok(0)),
            (json!({"maxUnavailable": "half"}), 5, Err(())),
            (json!({"minAvailable": "101%"}), 5, Err(())),
            (json!({}), 5, Ok(0)),
        ] {
            let budget = budget(&spec);
            let spec = budget.spec.expect("a spec");
            assert_eq!(desired(&spec, expected).map_err(drop), wanted);
        }
    }

    #[test]
    fn who_was_let_go_does_not_count_until_it_had_its_time() {
        let begin = Instant::now();
        // The server's clock is years ahead.
        let told = BTreeMap::from([(
            "a".to_owned(),
            Time("2099-01-01T00:00:00Z".parse().expect("a time")),
        )]);
        let pods = [
            pod("a", true, false),
            pod("b", true, false),
            pod("c", false, false),
            pod("d", true, true),
        ];
        let mut disrupted = Disrupted::default();
        let counted = disrupted.count(Some(&told), &pods, begin);
        assert_eq!((counted.healthy, counted.pods.len()), (1, 1));
        assert_eq!(counted.recheck, Some(begin + DELETION));
        let counted = disrupted.count(Some(&told), &pods, begin + DELETION);
        assert_eq!(
            (counted.healthy, counted.pods.len(), counted.recheck),
            (2, 0, None)
        );
        assert_eq!(counted.stayed, ["a"]);
        let gone = disrupted.count(Some(&told), &pods[1..], begin);
        assert_eq!((gone.healthy, gone.pods.len()), (1, 0), "it is gone");
        assert!(disrupted.is_empty());
    }

    #[test]
    fn a_status_is_written_once() {
        let mut budget = budget(&json!({"minAvailable": 1}));
        let counted = Counted {
            healthy: 3,
            ..Counted::default()
        };
        let now = Timestamp::UNIX_EPOCH;
        let written = status(&budget, &counted, 3, 1, now).expect("it is new");
        assert_eq!(written.disruptions_allowed, Some(2));
        assert_eq!(
            written.conditions.as_ref().expect("one")[0].reason,
            "SufficientPods"
        );
        assert_eq!(written.observed_generation, Some(3));
        budget.status = Some(written);
        assert_eq!(status(&budget, &counted, 3, 1, Timestamp::MAX), None);
        let less = Counted {
            healthy: 1,
            ..Counted::default()
        };
        let written = status(&budget, &less, 3, 1, now).expect("it has changed");
        assert_eq!(
            written.conditions.as_ref().expect("one")[0].reason,
            "InsufficientPods"
        );
        budget.status = Some(written);
        let written =
            failed(&budget, "found no controllers for pod \"p\"", now).expect("it has changed");
        assert_eq!(written.disruptions_allowed, Some(0));
        budget.status = Some(written);
        assert_eq!(
            failed(&budget, "found no controllers for pod \"p\"", now),
            None
        );
    }

    proptest! {
        /// However many are let go at once: what is left is no fewer than what there has to be.
        #[test]
        fn what_is_allowed_leaves_what_is_desired(
            ready in prop::collection::vec(any::<bool>(), 0..30), percent in 0_i32..=100, least in any::<bool>(), absent in 0_i32..5,
        ) {
            let key = if least { "minAvailable" } else { "maxUnavailable" };
            let budget = budget(&json!({key: format!("{percent}%")}));
            let expected = i32::try_from(ready.len()).expect("few") + absent;
            let pods: Vec<_> = ready.iter().enumerate().map(|(at, ready)| pod(&at.to_string(), *ready, false)).collect();
            let counted = Disrupted::default().count(None, &pods, Instant::now());
            let desired = desired(budget.spec.as_ref().expect("a spec"), expected).expect("a number");
            let status = status(&budget, &counted, expected, desired, Timestamp::UNIX_EPOCH).expect("it is new");
            let allowed = status.disruptions_allowed.expect("a number");
            prop_assert!(allowed >= 0 && (allowed == 0 || counted.healthy - allowed >= desired));
        }
    }
}
