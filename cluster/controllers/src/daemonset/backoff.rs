//! A node whose kubelet refuses a pod would have it refused as fast as it is made: failed ones are deleted ever later.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::Key;

/// Upstream's.
const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(15 * 60);
/// For so long after the last one it is remembered.
const REMEMBERED: Duration = Duration::from_secs(2 * 15 * 60);

/// By DaemonSet and node. What is forgotten with the process costs a pod that is made a little early.
#[derive(Debug, Default)]
pub(super) struct Backoff(Mutex<HashMap<(Key, String), (Duration, Instant)>>);

impl Backoff {
    /// Whether a failed pod may be deleted now; if not, when.
    pub(super) fn may_delete(&self, set: &Key, node: &str, now: Instant) -> Result<(), Duration> {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.retain(|_, (_, since)| now.duration_since(*since) < REMEMBERED);
        let key = (set.clone(), node.to_owned());
        let next = match waits.get(&key) {
            Some((wait, since)) => {
                let rest = wait.saturating_sub(now.duration_since(*since));
                if !rest.is_zero() {
                    return Err(rest);
                }
                (*wait * 2).min(MOST)
            }
            None => FIRST,
        };
        waits.insert(key, (next, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_fails_again_and_again_waits_ever_longer() {
        let backoff = Backoff::default();
        let (set, mut now) = (Key::new("n", "s"), Instant::now());
        for seconds in [1, 2, 4, 8] {
            assert_eq!(backoff.may_delete(&set, "a", now), Ok(()));
            let wait = Duration::from_secs(seconds);
            assert_eq!(backoff.may_delete(&set, "a", now), Err(wait));
            now += wait;
        }
        assert_eq!(backoff.may_delete(&set, "b", now), Ok(()), "another node");
        for _ in 0..20 {
            assert_eq!(backoff.may_delete(&set, "a", now), Ok(()));
            now += MOST;
        }
        now += REMEMBERED;
        assert_eq!(backoff.may_delete(&set, "a", now), Ok(()));
        assert_eq!(backoff.may_delete(&set, "a", now), Err(FIRST));
        assert_eq!(backoff.0.lock().unwrap().len(), 1);
    }
}
