//! Threads that may change their network namespace.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use tokio::sync::{Mutex as Turn, Semaphore, oneshot};

use crate::Error;

/// Workers at a time. Links are made under one lock of the kernel (RTNL), so more of them would only wait for each other there.
const MAX_WORKERS: usize = 8;
/// A worker parses at most one netlink datagram at a time, on the heap.
pub const STACK_BYTES: usize = 512 << 10;

/// Runs each operation in a thread of its own, which ends with it: a thread that could not come back from a pod's namespace
/// must never serve another call, as one of a pool would.
#[derive(Debug, Clone)]
pub struct Workers {
    permits: Arc<Semaphore>,
    turns: Arc<Mutex<HashMap<String, Weak<Turn<()>>>>>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_WORKERS)),
            turns: Arc::default(),
        }
    }
}

impl Workers {
    /// Runs `work` when it is the turn of `key`. Dropped before that, it never runs; dropped after, it runs to its end and keeps its turn until then.
    pub async fn run<T, F>(&self, key: &str, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Error> + Send + 'static,
    {
        let failed = |why: String| Error::Worker {
            pod_id: key.to_owned(),
            why,
        };
        let turn = self.turn(key).lock_owned().await;
        let permit = self
            .permits
            .clone()
            .acquire_owned()
            .await
            .map_err(|e| failed(e.to_string()))?;
        let (told, outcome) = oneshot::channel();
        thread::Builder::new()
            .name("berth-net".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = work();
                drop((turn, permit));
                // Nobody waits any more: the ledger knows what was made.
                let _ = told.send(result);
            })
            .map_err(|e| failed(format!("start a thread: {e}")))?;
        outcome.await.map_err(|_| failed("it panicked".into()))?
    }

    /// Whose turn it is on `key`: who holds the lock.
    pub fn turn(&self, key: &str) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }
}
