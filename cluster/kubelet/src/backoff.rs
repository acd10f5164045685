//! How long to wait before something that failed is tried again: 10 s, doubling up to 5 min; forgotten after 10 min without a failure (PO-08).

use std::collections::HashMap;

const SECOND: i64 = 1_000_000_000;
pub(crate) const FIRST: i64 = 10 * SECOND;
pub(crate) const MOST: i64 = 300 * SECOND;
/// Upstream: twice the longest.
pub(crate) const FORGOTTEN_AFTER: i64 = 2 * MOST;

/// Times are nanoseconds since the epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoffs(HashMap<String, Entry>);

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: i64,
    /// When it was last tried.
    tried: i64,
}

impl Backoffs {
    /// Until when to wait after the failure at `failed`; `None`: no longer. A failure in the future, after the clock was set back, is one of now.
    pub fn until(&self, key: &str, failed: i64, now: i64) -> Option<i64> {
        let entry = self.0.get(key)?;
        if failed - entry.tried > FORGOTTEN_AFTER {
            return None;
        }
        let until = failed.min(now) + entry.delay;
        (until > now).then_some(until)
    }

    /// It is tried again now, because of the failure at `failed`: the next wait is longer.
    pub fn tried(&mut self, key: &str, failed: i64, now: i64) {
        let entry = self.0.entry(key.to_owned()).or_insert(Entry {
            delay: 0,
            tried: now,
        });
        entry.delay = match entry.delay {
            0 => FIRST,
            _ if failed - entry.tried > FORGOTTEN_AFTER => FIRST,
            delay => (2 * delay).min(MOST),
        };
        entry.tried = now;
    }

    /// The wait that holds, for telling.
    pub fn delay_seconds(&self, key: &str) -> i64 {
        self.0.get(key).map_or(0, |entry| entry.delay / SECOND)
    }

    pub fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_ten_seconds_to_five_minutes_and_begin_anew_after_ten() {
        let mut backoffs = Backoffs::default();
        let mut now = 1_000_000 * SECOND;
        assert_eq!(
            backoffs.until("a", now, now),
            None,
            "the first failure is no reason to wait"
        );
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            backoffs.tried("a", now, now);
            assert_eq!(backoffs.delay_seconds("a"), expected);
            let failed = now + SECOND;
            let until = failed + expected * SECOND;
            assert_eq!(backoffs.until("a", failed, failed), Some(until));
            assert_eq!(backoffs.until("a", failed, until - 1), Some(until));
            assert_eq!(backoffs.until("a", failed, until), None);
            now = until;
        }
        assert_eq!(backoffs.until("b", now, now), None, "others don't wait");
        let failed = now + FORGOTTEN_AFTER + 1;
        assert_eq!(backoffs.until("a", failed, failed), None);
        backoffs.tried("a", failed, failed);
        assert_eq!(backoffs.delay_seconds("a"), 10);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nobody_wait_longer_than_the_delay() {
        let mut backoffs = Backoffs::default();
        let now = 1_000_000 * SECOND;
        backoffs.tried("a", now, now);
        let back = now - 86_400 * SECOND;
        let until = backoffs.until("a", now + SECOND, back).expect("it waits");
        assert_eq!(until - back, FIRST);
    }
}
