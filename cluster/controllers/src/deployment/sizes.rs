//! How many pods each ReplicaSet of a Deployment shall have next: numbers alone.
//!
//! Invariant (DP-15): nothing here makes pods more than replicas + surge, unless they are already. Upstream's controller promises that of sizes alone: while a ReplicaSet
//! has yet to end pods, another grows. Here none grows before all have told that they have seen their sizes.
//! Invariant (DP-02): a roll takes no available pods where fewer than replicas − unavailable would be left: a ReplicaSet ends first what is not ready.

use k8s_openapi::api::apps::v1::DeploymentSpec;

use crate::percent::{self, Round};

/// A ReplicaSet, as far as its size goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    /// That it shall have.
    pub replicas: i32,
    /// That it has told of, or shall have if that is more; none if it has not told since its size was changed.
    pub pods: Option<i32>,
    /// That it has told of.
    pub available: i32,
    /// How many the Deployment was to have when this was last scaled, by the annotation.
    pub desired: Option<i32>,
    /// The same with surge.
    pub most: Option<i32>,
}

/// Within which a Deployment is rolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub replicas: i32,
    /// Pods more than that (DP-13).
    pub surge: i32,
    /// Pods that may be missing.
    pub unavailable: i32,
    pub is_rolling: bool,
}

impl Bounds {
    pub(super) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self {
                replicas,
                surge: 0,
                unavailable: 0,
                is_rolling: false,
            };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        let surge = percent::of(surge, replicas, Round::Up);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let unavailable = percent::of(unavailable, replicas, Round::Down);
        // of few pods a small share is none, and with neither nothing would ever roll
        let unavailable = if surge == 0 && unavailable == 0 {
            1
        } else {
            unavailable
        };
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
            is_rolling: true,
        }
    }

    pub(super) fn most(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    pub(super) fn least_available(&self) -> i32 {
        self.replicas - self.unavailable
    }

    /// For a ReplicaSet that is about to be made, beside `others`.
    pub(super) fn first_size(&self, others: &[Size]) -> i32 {
        if self.is_rolling {
            room(self, others).min(self.replicas)
        } else {
            self.replicas
        }
    }
}

fn total(sizes: &[Size]) -> i32 {
    sizes
        .iter()
        .fold(0, |sum, size| sum.saturating_add(size.replicas))
}

/// For more pods: none while any may yet end some.
fn room(bounds: &Bounds, sizes: &[Size]) -> i32 {
    let pods = sizes
        .iter()
        .try_fold(0_i32, |sum, size| Some(sum.saturating_add(size.pods?)));
    pods.map_or(0, |pods| bounds.most().saturating_sub(pods).max(0))
}

/// Of those that stay: where it tells of more than it shall have, some are about to end.
fn available(sizes: &[Size]) -> i32 {
    let stay = sizes.iter().map(|size| size.available.min(size.replicas));
    stay.fold(0, i32::saturating_add)
}

/// The next step of rolling to the one at `new`: more of it where there is room, or else fewer of the others. `sizes` are in the order of their age, oldest first.
pub(super) fn roll(bounds: &Bounds, sizes: &[Size], new: usize) -> Vec<i32> {
    let mut next: Vec<i32> = sizes.iter().map(|size| size.replicas).collect();
    let Some(this) = sizes.get(new).copied() else {
        return next;
    };
    if this.replicas > bounds.replicas {
        next[new] = bounds.replicas;
        return next;
    }
    let more = (bounds.most() - total(sizes)).clamp(0, bounds.replicas - this.replicas);
    if more > 0 {
        next[new] += more.min(room(bounds, sizes));
        return next;
    }
    // those of the new one that are not available yet stand for what may be missing
    let missing = (this.replicas - this.available).max(0);
    let mut spare = total(sizes) - bounds.least_available() - missing;
    if spare <= 0 {
        return next;
    }
    // what is not available is missed by nobody: it goes first, or it would block all
    let others = || (0..sizes.len()).filter(|at| *at != new);
    for at in others() {
        let ill = (next[at] - sizes[at].available).clamp(0, spare);
        next[at] -= ill;
        spare -= ill;
    }
    let mut spare = (available(sizes) - bounds.least_available()).max(0);
    for at in others() {
        let well = next[at].clamp(0, spare);
        next[at] -= well;
        spare -= well;
    }
    next
}

/// Whether the Deployment was given another size since: then it is scaled, not rolled.
pub(super) fn is_scaled(bounds: &Bounds, sizes: &[Size]) -> bool {
    let active = sizes.iter().filter(|size| size.replicas > 0);
    active
        .filter_map(|size| size.desired)
        .any(|desired| desired != bounds.replicas)
}

/// Sizes for a Deployment that was given another size, or is paused: each has its share of what comes or goes, so that a roll that is under way is neither hastened
/// nor undone. `known` is how many pods the Deployment told of. `sizes` are in the order of their age, oldest first.
///
/// None: they would grow, and what is there is not known yet.
pub(super) fn scale(
    bounds: &Bounds,
    sizes: &[Size],
    new: Option<usize>,
    known: i32,
) -> Option<Vec<i32>> {
    let next = shares(bounds, sizes, new, known);
    let grows = next
        .iter()
        .fold(0_i32, |sum, next| sum.saturating_add(*next))
        > total(sizes);
    let is_known = sizes.iter().all(|size| size.pods.is_some());
    (is_known || !grows).then_some(next)
}

fn shares(bounds: &Bounds, sizes: &[Size], new: Option<usize>, known: i32) -> Vec<i32> {
    let mut next: Vec<i32> = sizes.iter().map(|size| size.replicas).collect();
    let active: Vec<usize> = (0..sizes.len())
        .filter(|at| sizes[*at].replicas > 0)
        .collect();
    match active.as_slice() {
        [] => {
            // the newest, if there is any
            if let Some(at) = new.or(sizes.len().checked_sub(1)) {
                next[at] = bounds.replicas;
            }
            return next;
        }
        [only] => {
            next[*only] = bounds.replicas;
            return next;
        }
        _ => {}
    }
    if new.is_some_and(|new| is_saturated(bounds, &sizes[new])) {
        for at in active {
            if Some(at) != new {
                next[at] = 0;
            }
        }
        return next;
    }
    if !bounds.is_rolling {
        return next;
    }
    let allowed = if bounds.replicas > 0 {
        bounds.most()
    } else {
        0
    };
    let change = allowed - total(sizes);
    if change == 0 {
        return next;
    }
    // the largest first; of the same size, the younger one when they grow, the older one when they shrink
    let mut order = active;
    order.sort_by_key(|at| {
        let age = if change > 0 { sizes.len() - at } else { *at };
        (std::cmp::Reverse(sizes[*at].replicas), age)
    });
    let mut rest = change;
    for at in &order {
        let share = share(bounds, &sizes[*at], known);
        let share = if change > 0 {
            share.clamp(0, rest)
        } else {
            share.clamp(rest, 0)
        };
        next[*at] += share;
        rest -= share;
    }
    // what rounding left over
    if let Some(largest) = order.first() {
        next[*largest] = (next[*largest] + rest).max(0);
    }
    next
}

fn is_saturated(bounds: &Bounds, size: &Size) -> bool {
    size.replicas == bounds.replicas
        && size.desired == Some(bounds.replicas)
        && size.available == bounds.replicas
}

fn share(bounds: &Bounds, size: &Size, known: i32) -> i32 {
    if bounds.replicas == 0 {
        return -size.replicas;
    }
    let before = size.most.filter(|most| *most > 0).unwrap_or(known);
    if before <= 0 {
        return 0;
    }
    let (size, most, before) = (
        i64::from(size.replicas),
        i64::from(bounds.most()),
        i64::from(before),
    );
    // halves are rounded up
    let scaled = (2 * size * most + before).div_euclid(2 * before);
    i32::try_from(scaled - size).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
