//! The work queue: keys, each at most once, and none with two workers.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{Cache, Key, Kind};

/// The first wait after a failure; it doubles with each. Upstream's, as the greatest.
const BACKOFF: Duration = Duration::from_millis(5);
const BACKOFF_MOST: Duration = Duration::from_secs(1000);

/// Keys that wait for a worker. Clones are of one queue.
#[derive(Debug, Clone, Default)]
pub struct Queue(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    /// Wanted: in `ready`, or of a key that is worked and will be worked again.
    wanted: HashSet<Key>,
    worked: HashSet<Key>,
    /// Of each key the earliest time only.
    later: BTreeSet<(Instant, Key)>,
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) {
        if !self.wanted.insert(key.clone()) || self.worked.contains(&key) {
            return;
        }
        self.ready.push_back(key);
    }

    fn add_at(&mut self, key: Key, at: Instant) {
        if let Some(before) = self.due.get(&key) {
            if *before <= at {
                return;
            }
            self.later.remove(&(*before, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.later.insert((at, key));
    }

    /// What has become due is ready. When the next one is.
    fn ripen(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                return Some(*at);
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once, however often it is added before a worker takes it; once more if it is being worked.
    pub fn add(&self, key: Key) {
        self.state().add(key);
        self.0.changed.notify_one();
    }

    /// Adds each object of the kind whenever it comes, changes or goes.
    pub(crate) fn follow<K: Kind>(&self, cache: &Cache<K>) {
        let queue = self.clone();
        cache.on_change(move |old, new| {
            if let Some(object) = new.or(old) {
                queue.add(Key::of(&**object));
            }
        });
    }

    /// Not before `wait` is over. Of several such wishes for a key the earliest counts.
    pub fn add_after(&self, key: Key, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        self.state().add_at(key, Instant::now() + wait);
        self.0.changed.notify_one();
    }

    /// After a failure: the longer, the more there were one after another.
    pub(crate) fn add_failed(&self, key: Key) -> Duration {
        let mut state = self.state();
        let failures = state.failures.entry(key.clone()).or_default();
        let wait = BACKOFF
            .saturating_mul(1 << (*failures).min(20))
            .min(BACKOFF_MOST);
        *failures = failures.saturating_add(1);
        state.add_at(key, Instant::now() + wait);
        drop(state);
        self.0.changed.notify_one();
        wait
    }

    pub(crate) fn forget(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// The next key; it is this worker's until [`Queue::done`].
    pub(crate) async fn next(&self) -> Key {
        loop {
            let due = {
                let mut state = self.state();
                let due = state.ripen(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.wanted.remove(&key);
                    state.worked.insert(key.clone());
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.0.changed.notify_one();
                    }
                    return key;
                }
                due
            };
            match due {
                Some(due) => tokio::select! {
                    () = self.0.changed.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => self.0.changed.notified().await,
            }
        }
    }

    pub(crate) fn done(&self, key: &Key) {
        let mut state = self.state();
        state.worked.remove(key);
        if state.wanted.contains(key) {
            state.ready.push_back(key.clone());
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Keys that wait for a worker now.
    pub fn len(&self) -> usize {
        self.state().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    fn next(queue: &Queue) -> Option<Key> {
        queue.next().now_or_never()
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_by_one_and_once_more_if_added_meanwhile_cp_03_cp_07() {
        let queue = Queue::default();
        for _ in 0..3 {
            queue.add(key("a"));
        }
        queue.add(key("b"));
        assert_eq!(next(&queue), Some(key("a")));
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(next(&queue), Some(key("b")));
        assert_eq!(next(&queue), None, "a is being worked");
        queue.done(&key("b"));
        assert_eq!(next(&queue), None);
        queue.done(&key("a"));
        assert_eq!(next(&queue), Some(key("a")));
        queue.done(&key("a"));
        assert_eq!(next(&queue), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_until_one_succeeds_cp_09() {
        let queue = Queue::default();
        let mut before = Instant::now();
        for wait in [5, 10, 20, 40, 80] {
            queue.add_failed(key("a"));
            assert_eq!(queue.next().await, key("a"));
            assert_eq!(before.elapsed().as_millis(), wait);
            before = Instant::now();
            queue.done(&key("a"));
        }
        queue.forget(&key("a"));
        assert_eq!(queue.add_failed(key("a")), BACKOFF);
        for _ in 0..64 {
            queue.add_failed(key("b"));
        }
        assert_eq!(queue.add_failed(key("b")), BACKOFF_MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_times_the_earliest_counts() {
        let queue = Queue::default();
        let began = Instant::now();
        queue.add_after(key("a"), Duration::from_secs(30));
        queue.add_after(key("a"), Duration::from_secs(10));
        queue.add_after(key("a"), Duration::from_secs(20));
        queue.add_after(key("b"), Duration::from_secs(15));
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(began.elapsed().as_secs(), 10);
        queue.done(&key("a"));
        assert_eq!(queue.next().await, key("b"));
        assert_eq!(began.elapsed().as_secs(), 15);
        queue.done(&key("b"));
        assert!(queue.state().later.is_empty() && queue.state().due.is_empty());
    }

    #[tokio::test]
    async fn many_workers_see_every_key_and_none_twice_at_once() {
        let queue = Queue::default();
        let seen = Arc::new(Mutex::new((HashSet::new(), HashMap::<Key, usize>::new())));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (queue, seen) = (queue.clone(), seen.clone());
            workers.spawn(async move {
                loop {
                    let key = queue.next().await;
                    assert!(seen.lock().unwrap().0.insert(key.clone()), "two at once");
                    tokio::task::yield_now().await;
                    let mut guard = seen.lock().unwrap();
                    guard.0.remove(&key);
                    *guard.1.entry(key.clone()).or_default() += 1;
                    drop(guard);
                    queue.done(&key);
                }
            });
        }
        for round in 0..100 {
            for number in 0..20 {
                queue.add(key(&format!("{number}")));
            }
            if round % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        while !queue.is_empty() || !queue.state().worked.is_empty() {
            tokio::task::yield_now().await;
        }
        workers.abort_all();
        while let Some(ended) = workers.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()));
        }
        assert_eq!(seen.lock().unwrap().1.len(), 20);
    }
}
