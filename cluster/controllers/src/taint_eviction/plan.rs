//! When a pod has to leave a node for its taints. Pure.
//!
//! Invariant: a toleration of `n` seconds ends no earlier than `n` seconds after this process has seen both the taint and the pod on the node. Only its own
//! clock, which never jumps, counts: `timeAdded` is another machine's.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

/// These two stand for the same silence: one taking the other's place does not begin it anew.
const REACH: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];
/// A toleration longer than this is for ever: clocks end.
const LONGEST: u64 = 100 * 365 * 24 * 3600;

/// One that was taken away and put back is another one.
type Identity = (String, String, Option<Timestamp>);

/// The NoExecute taints of one node.
#[derive(Debug, Default, Clone)]
pub(super) struct Tainted {
    taints: BTreeMap<Identity, (Taint, Instant)>,
    /// Since when there has been one of [`REACH`] without a break.
    silent: Option<Instant>,
}

impl Tainted {
    /// What the node has now; whether that is something else than before.
    pub(super) fn look(&mut self, node: &Node, now: Instant) -> bool {
        let mut found = BTreeMap::new();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        for taint in taints.into_iter().flatten() {
            if taint.effect != "NoExecute" {
                continue;
            }
            let identity = (
                taint.key.clone(),
                taint.value.clone().unwrap_or_default(),
                taint.time_added.as_ref().map(|time| time.0),
            );
            let since = self.taints.get(&identity).map_or(now, |(_, since)| *since);
            found.insert(identity, (taint.clone(), since));
        }
        let changed = !found.keys().eq(self.taints.keys());
        self.taints = found;
        let is_silent = self
            .taints
            .keys()
            .any(|(key, ..)| REACH.contains(&key.as_str()));
        self.silent = is_silent.then(|| self.silent.unwrap_or(now));
        changed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taints.is_empty()
    }

    /// When a pod has to leave that was first seen on the node at `arrived`.
    pub(super) fn leaves(&self, tolerations: &[Toleration], arrived: Instant) -> Leaves {
        let mut first = Leaves::Never;
        for (taint, since) in self.taints.values() {
            let since = (*since).max(arrived);
            let mut end = match tolerated(taint, tolerations) {
                Tolerated::Never => return Leaves::Now,
                Tolerated::Always => continue,
                Tolerated::For(time) => since + time,
            };
            if let (Some(silent), Some(at)) =
                (self.silent, REACH.iter().position(|key| *key == taint.key))
            {
                let other = Taint {
                    key: REACH[1 - at].into(),
                    ..taint.clone()
                };
                if let Tolerated::For(time) = tolerated(&other, tolerations) {
                    end = end.min(silent.max(arrived) + time);
                }
            }
            first = first.min(Leaves::At(end));
        }
        first
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaves {
    Now,
    At(Instant),
    Never,
}

enum Tolerated {
    Never,
    For(Duration),
    Always,
}

/// By all tolerations that match together: the shortest counts.
fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> Tolerated {
    let mut matching = tolerations
        .iter()
        .filter(|toleration| tolerates(toleration, taint))
        .peekable();
    if matching.peek().is_none() {
        return Tolerated::Never;
    }
    match matching.filter_map(|one| one.toleration_seconds).min() {
        None => Tolerated::Always,
        Some(seconds) => {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            Tolerated::For(Duration::from_secs(seconds.min(LONGEST)))
        }
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let value = text(&taint.value);
    match text(&toleration.operator).as_str() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == value,
        compares @ ("Lt" | "Gt") => {
            let number = |text: &str| text.parse::<i64>().ok();
            match (number(&value), number(&text(&toleration.value))) {
                (Some(value), Some(bound)) if compares == "Lt" => value < bound,
                (Some(value), Some(bound)) => value > bound,
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn node(taints: &Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}}))
            .expect("a node")
    }

    fn tolerations(all: &Value) -> Vec<Toleration> {
        serde_json::from_value(all.clone()).expect("tolerations")
    }

    #[test]
    fn who_tolerates_what() {
        let taint = Taint {
            key: "k".into(),
            value: Some("7".into()),
            effect: "NoExecute".into(),
            ..Taint::default()
        };
        for (toleration, wanted) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (
                json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}),
                false,
            ),
            (json!({"key": "k", "value": "7"}), true),
            (
                json!({"key": "k", "value": "8", "operator": "Equal"}),
                false,
            ),
            (json!({"key": "j", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Gt", "value": "6"}), true),
            (json!({"key": "k", "operator": "Lt", "value": "6"}), false),
            (json!({"key": "k", "operator": "Near", "value": "7"}), false),
        ] {
            let found = tolerations(&json!([toleration]));
            assert_eq!(tolerates(&found[0], &taint), wanted, "{toleration}");
        }
    }

    #[test]
    fn a_silence_is_one_whatever_it_is_called() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let both = tolerations(&json!([
            {"key": REACH[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": REACH[1], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        ]));
        let mut tainted = Tainted::default();
        assert!(tainted.look(
            &node(&json!([{"key": REACH[0], "effect": "NoExecute"}])),
            at(0)
        ));
        assert_eq!(tainted.leaves(&both, begin), Leaves::At(at(300)));
        assert!(tainted.look(
            &node(&json!([{"key": REACH[1], "effect": "NoExecute"}])),
            at(200)
        ));
        assert_eq!(tainted.leaves(&both, begin), Leaves::At(at(300)));
        assert_eq!(
            tainted.leaves(&both, at(250)),
            Leaves::At(at(550)),
            "it came later"
        );
        assert!(tainted.look(&node(&json!([])), at(210)));
        assert_eq!(tainted.leaves(&both, begin), Leaves::Never);
        tainted.look(
            &node(&json!([{"key": REACH[1], "effect": "NoExecute"}])),
            at(220),
        );
        assert_eq!(tainted.leaves(&both, begin), Leaves::At(at(520)));
    }

    #[test]
    fn a_taint_put_back_is_another_one() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let some = tolerations(&json!([{"operator": "Exists", "tolerationSeconds": 10}]));
        let taint =
            |added: &str| node(&json!([{"key": "k", "effect": "NoExecute", "timeAdded": added}]));
        let mut tainted = Tainted::default();
        tainted.look(&taint("2026-01-01T00:00:00Z"), at(0));
        assert!(!tainted.look(&taint("2026-01-01T00:00:00Z"), at(5)));
        assert_eq!(tainted.leaves(&some, begin), Leaves::At(at(10)));
        assert!(tainted.look(&taint("2026-01-01T00:00:09Z"), at(9)));
        assert_eq!(tainted.leaves(&some, begin), Leaves::At(at(19)));
        assert_eq!(tainted.leaves(&[], begin), Leaves::Now);
        assert_eq!(
            tainted.leaves(
                &tolerations(&json!([{"operator": "Exists", "tolerationSeconds": i64::MAX}])),
                begin
            ),
            Leaves::At(at(9) + Duration::from_secs(LONGEST))
        );
    }

    proptest! {
        /// Taints come and go; whenever a pod has to leave, there is a taint that it does not tolerate, or has tolerated for its whole time.
        #[test]
        fn no_toleration_ends_early(
            changes in prop::collection::vec((0_u64..40, prop::collection::btree_set(0_usize..4, 0..4)), 1..30),
            seconds in prop::collection::vec(prop::option::of(0_u64..60), 4),
            arrived in 0_u64..100,
        ) {
            let begin = Instant::now();
            let arrived = begin + Duration::from_secs(arrived);
            let all: Vec<Value> = seconds
                .iter()
                .enumerate()
                .map(|(at, seconds)| json!({"key": format!("k{at}"), "operator": "Exists", "tolerationSeconds": seconds}))
                .collect();
            let all = tolerations(&json!(all));
            let mut since: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut tainted = Tainted::default();
            let mut now = begin;
            for (passed, keys) in changes {
                now += Duration::from_secs(passed);
                since.retain(|key, _| keys.contains(key));
                for key in &keys {
                    since.entry(*key).or_insert(now);
                }
                let taints: Vec<Value> = keys.iter().map(|key| json!({"key": format!("k{key}"), "effect": "NoExecute"})).collect();
                tainted.look(&node(&json!(taints)), now);
                let wanted = since
                    .iter()
                    .filter_map(|(key, since)| Some((*since).max(arrived) + Duration::from_secs(seconds[*key]?)))
                    .min();
                prop_assert_eq!(tainted.leaves(&all, arrived), wanted.map_or(Leaves::Never, Leaves::At));
            }
        }
    }
}
