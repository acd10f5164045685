//! When something of a node was last seen to change.
//!
//! Invariant: only this process's clock, which never jumps, says how long a node has been silent. What nodes write into their leases and conditions is
//! compared with what they wrote before, never with a clock: theirs may be wrong by days.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};

use crate::condition;

/// What a node shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sign {
    /// `lastHeartbeatTime` of its condition Ready; none: nobody has ever posted one.
    heartbeat: Option<Option<Timestamp>>,
    /// `renewTime` of its lease.
    renewed: Option<Timestamp>,
}

impl Sign {
    pub(super) fn of(node: &Node, lease: Option<&Lease>) -> Self {
        let ready = condition::of_node(node, "Ready");
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        Self {
            heartbeat: ready.map(|ready| ready.last_heartbeat_time.as_ref().map(|time| time.0)),
            renewed: spec.and_then(|spec| spec.renew_time.as_ref().map(|time| time.0)),
        }
    }
}

/// How long a node may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grace {
    pub running: Duration,
    /// Until it says for the first time how it does.
    pub startup: Duration,
}

#[derive(Debug)]
pub(super) struct Pulse {
    sign: Sign,
    /// The one before: a cache that is behind what was read afresh shows it again.
    before: Option<Sign>,
    changed: Instant,
}

impl Pulse {
    pub(super) fn new(sign: Sign, now: Instant) -> Self {
        Self {
            sign,
            before: None,
            changed: now,
        }
    }

    /// Any change is life, also one back in its own time.
    pub(super) fn look(&mut self, sign: Sign, now: Instant) {
        if sign != self.sign && self.before.as_ref() != Some(&sign) {
            self.before = Some(std::mem::replace(&mut self.sign, sign));
            self.changed = now;
        }
    }

    /// What was before does not count: nobody looked.
    pub(super) fn restart(&mut self, now: Instant) {
        self.changed = now;
    }

    pub(super) fn is_silent(&self, now: Instant, grace: Grace) -> bool {
        let grace = match self.sign.heartbeat {
            Some(_) => grace.running,
            None => grace.startup,
        };
        now.saturating_duration_since(self.changed) > grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Grace = Grace {
        running: Duration::from_secs(50),
        startup: Duration::from_secs(60),
    };

    fn sign(heartbeat: Option<i64>, renewed: Option<i64>) -> Sign {
        let at = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
        Sign {
            heartbeat: heartbeat.map(|seconds| Some(at(seconds))),
            renewed: renewed.map(at),
        }
    }

    #[test]
    fn any_change_is_life_whatever_the_nodes_clock_says() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        // Its clock is a day ahead, then years behind.
        let mut pulse = Pulse::new(sign(Some(5), Some(86_400)), begin);
        assert!(!pulse.is_silent(at(50), GRACE));
        assert!(pulse.is_silent(at(51), GRACE));
        pulse.look(sign(Some(5), Some(86_400)), at(40));
        assert!(pulse.is_silent(at(51), GRACE), "nothing has changed");
        pulse.look(sign(Some(5), Some(3)), at(51));
        assert!(!pulse.is_silent(at(101), GRACE));
        pulse.look(sign(Some(6), Some(3)), at(100));
        assert!(!pulse.is_silent(at(150), GRACE), "its status counts, too");
        assert!(pulse.is_silent(at(151), GRACE));
        pulse.restart(at(151));
        assert!(!pulse.is_silent(at(201), GRACE));
    }

    #[test]
    fn a_cache_that_is_behind_shows_no_life() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (cached, fresh) = (sign(Some(1), Some(1)), sign(Some(1), Some(2)));
        let mut pulse = Pulse::new(cached.clone(), begin);
        pulse.look(fresh.clone(), at(10));
        for seconds in (11..60).step_by(2) {
            pulse.look(cached.clone(), at(seconds));
            pulse.look(fresh.clone(), at(seconds + 1));
        }
        assert!(pulse.is_silent(at(61), GRACE));
    }

    #[test]
    fn who_has_never_posted_a_status_has_longer() {
        let begin = Instant::now();
        let pulse = Pulse::new(sign(None, None), begin);
        assert!(!pulse.is_silent(begin + Duration::from_secs(60), GRACE));
        assert!(pulse.is_silent(begin + Duration::from_secs(61), GRACE));
        // Our clock can't go back, but two threads may ask in another order.
        let before = begin.checked_sub(Duration::from_secs(1)).unwrap_or(begin);
        assert!(!pulse.is_silent(before, GRACE));
    }
}
