//! How fast nodes may lose their pods: by zone, and the slower the more of a zone is gone (BO-12). Pure.
//!
//! ```text
//!            some are ready, few are not           most are not ready
//!  Normal  ◀───────────────────────────▶  Partial  (slower; small zones: not at all)
//!    ▲                                       ▲
//!    └──────────────▶  Full  ◀───────────────┘   nobody is ready
//!                       │
//!        all zones are Full: nobody is evicted; when one node is back, all have their whole time again
//! ```
//!
//! Invariant: in any time `t` a zone is granted at most `1 + rate · t` nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Nodes a second, and where the lines are. Upstream's flags have the same names and defaults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    pub eviction: f64,
    pub secondary: f64,
    /// A zone of no more nodes than this is not evicted at all while most of it is gone.
    pub large_cluster: usize,
    /// The share of nodes that aren't ready from which on a zone is unhealthy.
    pub unhealthy_share: f64,
    /// From when a node isn't ready until it may be its turn: those that are cut off together fall silent one after another, and it is not known before the
    /// last of them how many they are.
    pub settle: Duration,
}

/// One node, as a pass finds it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub uid: String,
    pub zone: String,
    /// Not if it carries `node.kubernetes.io/exclude-disruption`.
    pub counts: bool,
    pub is_ready: bool,
    /// It isn't ready, and its pods haven't been told to go.
    pub waits: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Normal,
    Partial,
    Full,
}

impl State {
    fn of(ready: usize, not_ready: usize, rates: &Rates) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "there are no 2^52 nodes")]
        let share = not_ready as f64 / (ready + not_ready).max(1) as f64;
        match (ready, not_ready) {
            (0, 1..) => Self::Full,
            (_, 3..) if share >= rates.unhealthy_share => Self::Partial,
            _ => Self::Normal,
        }
    }

    fn rate(self, nodes: usize, rates: &Rates) -> f64 {
        match self {
            Self::Normal | Self::Full => rates.eviction,
            Self::Partial if nodes > rates.large_cluster => rates.secondary,
            Self::Partial => 0.0,
        }
    }
}

/// Fills with `rate` a second, up to one.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate,
            level: 1.0,
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(1.0);
        self.at = self.at.max(now);
    }

    /// What has flowed in until now did so at the old rate.
    fn set_rate(&mut self, rate: f64, now: Instant) {
        self.fill(now);
        self.rate = rate;
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there = self.rate > 0.0 && self.is_full();
        if there {
            self.level = 0.0;
        }
        there
    }

    fn is_full(&self) -> bool {
        // Many small sums are seldom exact.
        self.level > 1.0 - 1e-9
    }

    /// Until it gives again; none: not as long as the rate is 0.
    fn next(&self) -> Option<Duration> {
        (self.rate > 0.0)
            .then(|| Duration::from_secs_f64(((1.0 - self.level).max(0.0) / self.rate).min(3600.0)))
    }
}

#[derive(Debug)]
struct Zone {
    state: State,
    bucket: Bucket,
    /// Those that wait, by their turn, and since when.
    waiting: BTreeMap<u64, (String, Instant)>,
}

/// What a pass has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Uids of nodes whose turn it is.
    pub granted: Vec<String>,
    /// It was so that nobody was ready, and isn't any more: all nodes' time begins anew.
    pub reached_again: bool,
    /// When the next one's turn may come.
    pub next: Option<Duration>,
    /// Zones that are now in another state, and how many of their nodes aren't ready.
    pub turned: Vec<(String, State, usize)>,
}

#[derive(Debug)]
pub(super) struct Zones {
    rates: Rates,
    zones: BTreeMap<String, Zone>,
    nobody_is_ready: bool,
    /// The turn that the next one gets.
    turn: u64,
}

impl Zones {
    pub(super) fn new(rates: Rates) -> Self {
        Self {
            rates,
            zones: BTreeMap::new(),
            nobody_is_ready: false,
            turn: 0,
        }
    }

    /// No node of any zone is ready: nothing is evicted.
    pub(super) fn nobody_is_ready(&self) -> bool {
        self.nobody_is_ready
    }

    pub(super) fn pass(&mut self, nodes: &[Seen], now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for node in nodes {
            // A zone is there even where no node of it counts.
            let (ready, not_ready) = counts.entry(&node.zone).or_default();
            *ready += usize::from(node.counts && node.is_ready);
            *not_ready += usize::from(node.counts && !node.is_ready);
        }
        let states: BTreeMap<&str, State> = counts
            .iter()
            .map(|(zone, (ready, not_ready))| (*zone, State::of(*ready, *not_ready, &self.rates)))
            .collect();
        let was = self.nobody_is_ready;
        self.nobody_is_ready =
            !states.is_empty() && states.values().all(|state| *state == State::Full);
        outcome.reached_again = was && !self.nobody_is_ready;

        let rates = self.rates;
        self.zones.retain(|zone, known| {
            // A zone that goes and comes doesn't get more for it.
            states.contains_key(zone.as_str()) || {
                known.bucket.set_rate(rates.eviction, now);
                !known.bucket.is_full()
            }
        });
        for (zone, state) in &states {
            let (ready, not_ready) = counts.get(zone).copied().unwrap_or_default();
            let rate = if self.nobody_is_ready {
                0.0
            } else {
                state.rate(ready + not_ready, &self.rates)
            };
            let known = self
                .zones
                .entry((*zone).to_owned())
                .or_insert_with(|| Zone {
                    state: State::Normal,
                    bucket: Bucket::new(rate, now),
                    waiting: BTreeMap::new(),
                });
            known.bucket.set_rate(rate, now);
            if known.state != *state {
                known.state = *state;
                outcome.turned.push(((*zone).to_owned(), *state, not_ready));
            }
        }
        for (name, zone) in &mut self.zones {
            let waits: BTreeSet<&str> = nodes
                .iter()
                .filter(|node| node.waits && node.zone == *name)
                .map(|node| node.uid.as_str())
                .collect();
            zone.waiting
                .retain(|_, (uid, _)| waits.contains(uid.as_str()));
            let known: BTreeSet<String> =
                zone.waiting.values().map(|(uid, _)| uid.clone()).collect();
            for uid in waits.into_iter().filter(|uid| !known.contains(*uid)) {
                zone.waiting.insert(self.turn, (uid.to_owned(), now));
                self.turn += 1;
            }
            // Who has just been reached again hasn't been silent yet.
            if self.nobody_is_ready || outcome.reached_again {
                continue;
            }
            while let Some(first) = zone.waiting.first_entry() {
                let settled = now.saturating_duration_since(first.get().1);
                let next = if settled < self.rates.settle {
                    Some(self.rates.settle - settled)
                } else if zone.bucket.take(now) {
                    outcome.granted.push(first.remove().0);
                    continue;
                } else {
                    zone.bucket.next()
                };
                outcome.next = outcome.next.into_iter().chain(next).min();
                break;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATES: Rates = Rates {
        eviction: 0.1,
        secondary: 0.01,
        large_cluster: 50,
        unhealthy_share: 0.55,
        settle: Duration::ZERO,
    };

    fn seen(at: usize, zone: &str, is_ready: bool) -> Seen {
        Seen {
            uid: format!("uid-{zone}-{at}"),
            zone: zone.into(),
            counts: true,
            is_ready,
            waits: !is_ready,
        }
    }

    fn some(zone: &str, ready: usize, not_ready: usize) -> Vec<Seen> {
        (0..ready + not_ready)
            .map(|at| seen(at, zone, at < ready))
            .collect()
    }

    #[test]
    fn a_zone_is_worse_the_more_of_it_is_gone() {
        for (ready, not_ready, state) in [
            (3, 0, State::Normal),
            (0, 0, State::Normal),
            (1, 2, State::Normal),
            (0, 1, State::Full),
            (2, 3, State::Partial),
            (3, 3, State::Normal),
            (45, 55, State::Partial),
            (46, 54, State::Normal),
        ] {
            assert_eq!(
                State::of(ready, not_ready, &RATES),
                state,
                "{ready} {not_ready}"
            );
        }
    }

    #[test]
    fn one_after_another_loses_its_pods_in_the_order_of_silence() {
        let begin = Instant::now();
        let mut zones = Zones::new(RATES);
        let mut nodes = some("a", 3, 0);
        assert_eq!(zones.pass(&nodes, begin), Outcome::default());
        nodes.push(seen(8, "a", false));
        let outcome = zones.pass(&nodes, begin);
        assert_eq!(outcome.granted, ["uid-a-8"]);
        nodes[3].waits = false;
        nodes.push(seen(7, "a", false));
        let outcome = zones.pass(&nodes, begin);
        assert!(outcome.granted.is_empty());
        assert_eq!(outcome.next, Some(Duration::from_secs(10)));
        let outcome = zones.pass(&nodes, begin + Duration::from_secs(10));
        assert_eq!(outcome.granted, ["uid-a-7"]);
    }

    #[test]
    fn while_nobody_is_ready_nobody_is_evicted_and_then_all_have_their_time_again() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut zones = Zones::new(RATES);
        zones.pass(&[some("a", 4, 0), some("b", 1, 0)].concat(), begin);
        let down = [some("a", 0, 4), some("b", 0, 1)].concat();
        for seconds in 0..100 {
            let outcome = zones.pass(&down, at(seconds));
            assert!(
                outcome.granted.is_empty() && zones.nobody_is_ready(),
                "{outcome:?}"
            );
        }
        let outcome = zones.pass(&[some("a", 1, 3), some("b", 0, 1)].concat(), at(100));
        assert!(
            outcome.reached_again && outcome.granted.is_empty(),
            "{outcome:?}"
        );
        // One zone alone is gone: its pods go elsewhere, at the usual rate.
        let outcome = zones.pass(&[some("a", 4, 0), some("b", 0, 1)].concat(), at(101));
        assert_eq!(outcome.granted, ["uid-b-0"]);
    }

    #[test]
    fn most_of_a_small_zone_waits_and_of_a_large_one_goes_slowly() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut zones = Zones::new(RATES);
        let small = some("a", 2, 8);
        for hours in 0..5 {
            let outcome = zones.pass(&small, at(hours * 3600));
            assert!(
                outcome.granted.is_empty() && outcome.next.is_none(),
                "{outcome:?}"
            );
        }
        let mut zones = Zones::new(RATES);
        let mut large = some("a", 20, 80);
        let mut granted = 0;
        for seconds in 0..=1000 {
            for uid in zones.pass(&large, at(seconds)).granted {
                granted += 1;
                large
                    .iter_mut()
                    .filter(|node| node.uid == uid)
                    .for_each(|node| node.waits = false);
            }
        }
        assert_eq!(granted, 11, "one at once, then one in 100 s");
    }

    #[test]
    fn who_falls_silent_one_after_another_is_looked_at_together() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut zones = Zones::new(Rates {
            settle: Duration::from_secs(10),
            ..RATES
        });
        for silent in 0..=4 {
            let ready = 4 - usize::try_from(silent).expect("few");
            let outcome = zones.pass(&some("a", ready, 4 - ready), at(silent * 2));
            assert!(outcome.granted.is_empty(), "{silent}: {outcome:?}");
        }
        assert!(zones.nobody_is_ready());
        let mut zones = Zones::new(Rates {
            settle: Duration::from_secs(10),
            ..RATES
        });
        let outcome = zones.pass(&some("a", 4, 1), at(0));
        assert_eq!(outcome.next, Some(Duration::from_secs(10)));
        assert_eq!(zones.pass(&some("a", 4, 1), at(10)).granted, ["uid-a-4"]);
    }

    #[test]
    fn who_is_excluded_says_nothing_of_its_zone() {
        let mut zones = Zones::new(RATES);
        let mut nodes = some("a", 1, 4);
        nodes
            .iter_mut()
            .filter(|node| !node.is_ready)
            .for_each(|node| node.counts = false);
        assert_eq!(zones.pass(&nodes, Instant::now()).granted.len(), 1);
    }

    proptest! {
        #[test]
        fn never_above_the_rate(
            passes in prop::collection::vec((0_u64..20_000, prop::collection::vec((0_usize..12, 0_u8..3, any::<bool>()), 1..40)), 1..60)
        ) {
            let mut now = Instant::now();
            let begin = now;
            let mut zones = Zones::new(RATES);
            let mut granted: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
            for (millis, nodes) in passes {
                now += Duration::from_millis(millis);
                let mut nodes: Vec<Seen> = nodes
                    .into_iter()
                    .map(|(at, zone, is_ready)| seen(at, &zone.to_string(), is_ready))
                    .collect();
                nodes.sort_by(|a, b| a.uid.cmp(&b.uid));
                nodes.dedup_by(|a, b| a.uid == b.uid);
                let outcome = zones.pass(&nodes, now);
                prop_assert!(outcome.granted.is_empty() || nodes.iter().any(|node| node.is_ready), "nobody is ready");
                for uid in outcome.granted {
                    let node = nodes.iter().find(|node| node.uid == uid);
                    prop_assert!(node.is_some_and(|node| node.waits), "{uid} does not wait");
                    granted.entry(node.expect("it is there").zone.clone()).or_default().push(now - begin);
                }
            }
            for times in granted.values() {
                for (from, first) in times.iter().enumerate() {
                    for (to, last) in times.iter().enumerate().skip(from) {
                        #[expect(clippy::cast_precision_loss, reason = "few")]
                        let count = (to - from + 1) as f64;
                        let most = 1.0 + RATES.eviction * (*last - *first).as_secs_f64();
                        prop_assert!(count <= most + 1e-6, "{count} in {:?}", *last - *first);
                    }
                }
            }
        }
    }
}
