//! How long a job waits before it makes a pod in place of one that failed: ten seconds, twice as long with each more in a row, ten minutes at most.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::pods::{ended_at, uid};

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// Those of a job since its last success. Only this process's memory has it, as upstream: another one begins anew.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    in_a_row: u32,
    last: Option<Timestamp>,
    /// Uids of pods that are in these numbers and will be seen again until their counting is done.
    seen: HashSet<String>,
}

impl Failures {
    /// Of all pods that have ended and are not counted in the job's status.
    pub fn see(&mut self, succeeded: &[&Pod], failed: &[&Pod]) {
        let fresh = |pods: &[&Pod]| -> Vec<Timestamp> {
            let pods = pods.iter().filter(|pod| !self.seen.contains(uid(pod)));
            pods.map(|pod| ended_at(pod)).collect()
        };
        let (successes, failures) = (fresh(succeeded), fresh(failed));
        self.seen = succeeded
            .iter()
            .chain(failed)
            .map(|pod| uid(pod).to_owned())
            .collect();
        let since = successes.iter().max();
        if since.is_some() {
            self.in_a_row = 0;
            self.last = None;
        }
        let after = failures
            .iter()
            .filter(|at| since.is_none_or(|since| *at > since));
        self.in_a_row = self
            .in_a_row
            .saturating_add(u32::try_from(after.clone().count()).unwrap_or(u32::MAX));
        self.last = after.max().copied().or(self.last);
    }

    /// Until the next pod may be made.
    pub fn wait(&self, now: Timestamp) -> Option<Duration> {
        wait(self.in_a_row, self.last?, now)
    }
}

/// After so many failures in a row.
pub(super) fn wait(failures: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let doubled = failures.checked_sub(1)?.min(16);
    let whole = FIRST.saturating_mul(1 << doubled).min(LONGEST);
    let passed = now.duration_since(last);
    // a clock that has gone back makes it no longer than the whole
    let passed = Duration::try_from(passed).unwrap_or_default();
    whole.checked_sub(passed).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn pod(uid: &str, second: i64) -> Pod {
        let at = Timestamp::from_second(second).expect("a time");
        from_value(json!({"metadata": {"uid": uid, "creationTimestamp": at}})).expect("a pod")
    }

    fn left(failures: &Failures, second: i64) -> Option<u64> {
        let now = Timestamp::from_second(second).expect("a time");
        failures.wait(now).map(|left| left.as_secs())
    }

    #[test]
    fn failures_in_a_row_double_the_wait() {
        let mut failures = Failures::default();
        assert_eq!(left(&failures, 0), None);
        let (a, b, c) = (pod("a", 100), pod("b", 105), pod("c", 110));
        failures.see(&[], &[&a]);
        assert_eq!(left(&failures, 100), Some(10));
        // the same one is no second
        failures.see(&[], &[&a]);
        assert_eq!(left(&failures, 108), Some(2));
        assert_eq!(left(&failures, 111), None);
        failures.see(&[], &[&a, &c, &b]);
        assert_eq!(left(&failures, 110), Some(40));
        assert_eq!(left(&failures, 50), Some(40));
        failures.see(&[&pod("d", 200)], &[&pod("e", 190), &pod("f", 205)]);
        assert_eq!(left(&failures, 205), Some(10));
        failures.see(&[&pod("g", 300)], &[]);
        assert_eq!(left(&failures, 300), None);
    }

    #[test]
    fn no_wait_is_longer_than_ten_minutes() {
        let at = Timestamp::UNIX_EPOCH;
        for (failures, seconds) in [(1, 10), (2, 20), (6, 320), (7, 600), (u32::MAX, 600)] {
            assert_eq!(wait(failures, at, at), Some(Duration::from_secs(seconds)));
        }
        assert_eq!(wait(0, at, at), None);
    }
}
