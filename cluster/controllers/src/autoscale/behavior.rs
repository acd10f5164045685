//! How fast a target may grow and shrink: what was wished and done lately holds back what is wished now.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Shrinking waits for so long that nobody has wished for more (as upstream).
const DOWN_WINDOW_SECONDS: i32 = 300;
/// Without a behavior: to twice as many at one go, or to four.
const UP_FACTOR: i32 = 2;
const UP_AT_LEAST: i32 = 4;
/// No window or period is longer (the API server's rule).
const LONGEST: SignedDuration = SignedDuration::from_secs(3600);

/// A reason and a message of a condition.
pub(super) type Said = (&'static str, &'static str);

/// What a rule says of a change in so many seconds.
#[derive(Debug, Clone, Copy)]
struct Policy {
    percent: bool,
    value: i32,
    seconds: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Select {
    Most,
    Least,
    None,
}

#[derive(Debug, Clone)]
struct Rules {
    window_seconds: i32,
    select: Select,
    policies: Vec<Policy>,
}

impl Rules {
    fn of(rules: Option<&HPAScalingRules>, window_seconds: i32, default: &[Policy]) -> Self {
        let policies = rules.and_then(|rules| rules.policies.as_ref());
        let select = rules.and_then(|rules| rules.select_policy.as_deref());
        let window = rules.and_then(|rules| rules.stabilization_window_seconds);
        Self {
            window_seconds: window.unwrap_or(window_seconds),
            select: match select {
                Some("Disabled") => Select::None,
                Some("Min") => Select::Least,
                _ => Select::Most,
            },
            policies: policies.map_or_else(
                || default.to_vec(),
                |policies| {
                    let policies = policies.iter().map(|policy| Policy {
                        percent: policy.type_ == "Percent",
                        value: policy.value,
                        seconds: policy.period_seconds,
                    });
                    policies.collect()
                },
            ),
        }
    }
}

/// What a behavior says, with upstream's defaults for the rest.
#[derive(Debug, Clone)]
pub(super) struct Behavior {
    up: Rules,
    down: Rules,
}

impl Behavior {
    pub fn of(behavior: &HorizontalPodAutoscalerBehavior) -> Self {
        let policy = |percent, value| Policy {
            percent,
            value,
            seconds: 15,
        };
        Self {
            up: Rules::of(
                behavior.scale_up.as_ref(),
                0,
                &[policy(false, 4), policy(true, 100)],
            ),
            down: Rules::of(
                behavior.scale_down.as_ref(),
                DOWN_WINDOW_SECONDS,
                &[policy(true, 100)],
            ),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub min: i32,
    pub max: i32,
    pub current: i32,
}

/// What comes of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    pub replicas: i32,
    /// Of condition AbleToScale.
    pub able: Said,
    /// Of condition ScalingLimited, and whether it is.
    pub limited: (bool, Said),
}

/// Of one autoscaler, in memory only (as upstream).
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    wishes: Vec<(Timestamp, i32)>,
    grown: Vec<(Timestamp, i32)>,
    shrunk: Vec<(Timestamp, i32)>,
}

fn before(now: Timestamp, seconds: i32) -> Timestamp {
    let window = SignedDuration::from_secs(i64::from(seconds));
    now.checked_sub(window).unwrap_or(Timestamp::MIN)
}

const WITHIN: Said = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const TOO_MANY: Said = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: Said = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const TOO_FAST_UP: Said = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const TOO_FAST_DOWN: Said = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const READY: Said = ("ReadyForNewScale", "recommended size matches current size");
const UP_WAITS: Said = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_WAITS: Said = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

impl History {
    /// At first sight what there is counts as wished for.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.wishes.is_empty() {
            self.wishes.push((now, current));
        }
    }

    fn forget(&mut self, now: Timestamp) {
        let oldest = now.checked_sub(LONGEST).unwrap_or(Timestamp::MIN);
        for list in [&mut self.wishes, &mut self.grown, &mut self.shrunk] {
            list.retain(|(at, _)| *at >= oldest);
        }
    }

    /// Brings a wish within what is allowed just now, and remembers it.
    pub fn settle(
        &mut self,
        behavior: Option<&Behavior>,
        bounds: Bounds,
        wish: i32,
        now: Timestamp,
    ) -> Settled {
        self.forget(now);
        let (steady, waits) = match behavior {
            Some(behavior) => self.steady(behavior, bounds.current, wish, now),
            None => {
                let since = before(now, DOWN_WINDOW_SECONDS);
                let lately = self.wishes.iter().filter(|(at, _)| *at >= since);
                let highest = lately.map(|(_, wish)| *wish).max();
                (
                    highest.map_or(wish, |highest| highest.max(wish)),
                    DOWN_WAITS,
                )
            }
        };
        self.wishes.push((now, wish));
        let (replicas, why) = match behavior {
            Some(behavior) => self.limit(behavior, bounds, steady, now),
            None => plain(bounds, steady),
        };
        Settled {
            replicas,
            able: if steady == wish { READY } else { waits },
            limited: (replicas != steady, why),
        }
    }

    /// Neither above all that was wished lately nor below it, but what there is.
    fn steady(&self, behavior: &Behavior, current: i32, wish: i32, now: Timestamp) -> (i32, Said) {
        let since = |rules: &Rules| {
            let since = before(now, rules.window_seconds);
            let lately = self.wishes.iter().filter(move |(at, _)| *at > since);
            lately.map(|(_, wish)| *wish)
        };
        let lowest = since(&behavior.up).fold(wish, i32::min);
        let highest = since(&behavior.down).fold(wish, i32::max);
        let waits = if wish >= current {
            UP_WAITS
        } else {
            DOWN_WAITS
        };
        (current.max(lowest).min(highest), waits)
    }

    fn limit(&self, behavior: &Behavior, bounds: Bounds, wish: i32, now: Timestamp) -> (i32, Said) {
        if wish > bounds.current {
            let rate = self
                .rate(&behavior.up, true, bounds.current, now)
                .max(bounds.current);
            let (most, why) = if bounds.max > rate {
                (rate, TOO_FAST_UP)
            } else {
                (bounds.max, TOO_MANY)
            };
            if wish > most {
                return (most, why);
            }
        } else if wish < bounds.current {
            let rate = self
                .rate(&behavior.down, false, bounds.current, now)
                .min(bounds.current);
            let (least, why) = if bounds.min < rate {
                (rate, TOO_FAST_DOWN)
            } else {
                (bounds.min, TOO_FEW)
            };
            if wish < least {
                return (least, why);
            }
        }
        (wish, WITHIN)
    }

    /// To how many the policies let it grow or shrink.
    fn rate(&self, rules: &Rules, up: bool, current: i32, now: Timestamp) -> i32 {
        if rules.select == Select::None {
            return current;
        }
        let since = |list: &[(Timestamp, i32)], seconds: i32| {
            let since = before(now, seconds);
            let lately = list.iter().filter(|(at, _)| *at > since);
            lately.map(|(_, by)| i64::from(*by)).sum::<i64>()
        };
        let limits = rules.policies.iter().map(|policy| {
            let change = since(&self.shrunk, policy.seconds) - since(&self.grown, policy.seconds);
            let began = i64::from(current) + change;
            let by = if up {
                i64::from(policy.value)
            } else {
                -i64::from(policy.value)
            };
            if policy.percent {
                // away from none: one that may grow a little may grow by one
                let part = began as f64 * (1.0 + by as f64 / 100.0);
                if up { part.ceil() as i64 } else { part as i64 }
            } else {
                began + by
            }
        });
        let limit = if up == (rules.select == Select::Most) {
            limits.max()
        } else {
            limits.min()
        };
        let limit = limit.unwrap_or(i64::from(current));
        i32::try_from(limit.clamp(0, i64::from(i32::MAX))).unwrap_or(i32::MAX)
    }

    /// It was done.
    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        let (list, by) = if to > from {
            (&mut self.grown, to - from)
        } else {
            (&mut self.shrunk, from - to)
        };
        list.push((now, by));
    }
}

fn plain(bounds: Bounds, wish: i32) -> (i32, Said) {
    let rate = bounds.current.saturating_mul(UP_FACTOR).max(UP_AT_LEAST);
    let (most, why) = if bounds.max > rate {
        (rate, TOO_FAST_UP)
    } else {
        (bounds.max, TOO_MANY)
    };
    if wish < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wish > most {
        (most, why)
    } else {
        (wish, WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, from_value, json};

    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("a time")
    }

    fn behavior(value: Value) -> Behavior {
        Behavior::of(&from_value(value).expect("a behavior"))
    }

    const fn bounds(current: i32) -> Bounds {
        Bounds {
            min: 1,
            max: 100,
            current,
        }
    }

    #[test]
    fn without_a_behavior_it_grows_by_twice_and_shrinks_after_five_minutes() {
        let mut history = History::default();
        history.begin(3, second(0));
        let settled = history.settle(None, bounds(3), 50, second(0));
        assert_eq!(
            (settled.replicas, settled.limited),
            (6, (true, TOO_FAST_UP))
        );
        assert_eq!(history.settle(None, bounds(1), 50, second(1)).replicas, 4);
        let settled = history.settle(None, bounds(50), 2, second(300));
        assert_eq!((settled.replicas, settled.able), (50, DOWN_WAITS));
        let settled = history.settle(None, bounds(50), 2, second(302));
        assert_eq!(
            (settled.replicas, settled.able, settled.limited),
            (2, READY, (false, WITHIN))
        );
        assert_eq!(
            history
                .settle(
                    None,
                    Bounds {
                        min: 5,
                        ..bounds(50)
                    },
                    2,
                    second(700)
                )
                .limited,
            (true, TOO_FEW)
        );
        assert_eq!(
            history.settle(None, bounds(90), 200, second(700)).limited,
            (true, TOO_MANY)
        );
    }

    #[test]
    fn policies_bound_what_changes_in_their_time() {
        let slow = behavior(json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [
                {"type": "Percent", "value": 50, "periodSeconds": 60}, {"type": "Pods", "value": 1, "periodSeconds": 60},
            ], "selectPolicy": "Min"},
        }));
        let mut history = History::default();
        let settled = history.settle(Some(&slow), bounds(10), 20, second(0));
        assert_eq!(
            (settled.replicas, settled.limited),
            (12, (true, TOO_FAST_UP))
        );
        history.scaled(10, 12, second(0));
        assert_eq!(
            history
                .settle(Some(&slow), bounds(12), 20, second(30))
                .replicas,
            12
        );
        assert_eq!(
            history
                .settle(Some(&slow), bounds(12), 20, second(61))
                .replicas,
            14
        );
        let settled = history.settle(Some(&slow), bounds(12), 1, second(200));
        assert_eq!(
            (settled.replicas, settled.limited),
            (11, (true, TOO_FAST_DOWN))
        );
        let never = behavior(
            json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}}),
        );
        assert_eq!(
            History::default()
                .settle(Some(&never), bounds(12), 1, second(0))
                .replicas,
            12
        );
        let quick = behavior(json!({"scaleDown": {"stabilizationWindowSeconds": 0}}));
        assert_eq!(
            History::default()
                .settle(Some(&quick), bounds(12), 1, second(0))
                .replicas,
            1
        );
        // four more, or twice as many
        assert_eq!(
            History::default()
                .settle(Some(&quick), bounds(1), 99, second(0))
                .replicas,
            5
        );
        assert_eq!(
            History::default()
                .settle(Some(&quick), bounds(12), 99, second(0))
                .replicas,
            24
        );
    }

    #[test]
    fn windows_hold_back_both_ways() {
        let both = behavior(
            json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 60}}),
        );
        let mut history = History::default();
        history.begin(5, second(0));
        let settled = history.settle(Some(&both), bounds(5), 8, second(10));
        assert_eq!((settled.replicas, settled.able), (5, UP_WAITS));
        assert_eq!(
            history
                .settle(Some(&both), bounds(5), 7, second(61))
                .replicas,
            7
        );
        let settled = history.settle(Some(&both), bounds(8), 3, second(69));
        assert_eq!((settled.replicas, settled.able), (8, DOWN_WAITS));
        assert_eq!(
            history
                .settle(Some(&both), bounds(8), 3, second(130))
                .replicas,
            3
        );
    }

    proptest! {
        #[test]
        fn never_out_of_bounds_nor_faster_than_allowed(
            wishes in prop::collection::vec((0_i64..120, 0_i32..300), 1..60), min in 1_i32..5, more in 0_i32..50,
            pods in 1_i32..10, seconds in 1_i32..120, window in 0_i32..200, has_behavior: bool,
        ) {
            let rules = json!({"stabilizationWindowSeconds": window, "policies": [{"type": "Pods", "value": pods, "periodSeconds": seconds}]});
            let some = behavior(json!({"scaleUp": rules, "scaleDown": rules}));
            let behavior = has_behavior.then_some(&some);
            let (max, mut current, mut time) = (min + more, min, 0);
            let mut history = History::default();
            let mut changes: Vec<(i64, i32)> = Vec::new();
            for (passed, wish) in wishes {
                time += passed;
                history.begin(current, second(time));
                let settled = history.settle(behavior, Bounds { min, max, current }, wish, second(time));
                prop_assert!((min..=max).contains(&settled.replicas));
                // it never goes away from what is wished
                prop_assert!(settled.replicas == current || (settled.replicas > current) == (settled.replicas > min && wish > current) || behavior.is_none());
                if settled.replicas != current {
                    history.scaled(current, settled.replicas, second(time));
                    changes.push((time, settled.replicas - current));
                    current = settled.replicas;
                    if has_behavior {
                        let lately = changes.iter().filter(|(at, _)| *at > time - i64::from(seconds));
                        let net: i32 = lately.map(|(_, by)| *by).sum();
                        let by = changes.last().map_or(0, |(_, by)| *by);
                        prop_assert!(if by > 0 { net <= pods } else { net >= -pods }, "{changes:?}");
                    }
                }
            }
            prop_assert!(history.wishes.len() <= 61);
        }
    }
}
