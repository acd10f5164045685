//! Keys that wait to be looked at, each once: as many as there are objects, at most.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

#[derive(Debug)]
pub struct Queue<K> {
    keys: Mutex<BTreeSet<K>>,
    wakes: Notify,
}

impl<K: Ord> Default for Queue<K> {
    fn default() -> Self {
        Self {
            keys: Mutex::default(),
            wakes: Notify::new(),
        }
    }
}

impl<K: Ord> Queue<K> {
    pub fn add(&self, key: K) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(key);
        self.wakes.notify_one();
    }

    /// One that is added while it is being looked at comes again.
    pub async fn next(&self) -> K {
        loop {
            let first = self
                .keys
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_first();
            match first {
                Some(key) => return key,
                None => self.wakes.notified().await,
            }
        }
    }
}
