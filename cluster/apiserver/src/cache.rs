//! Every object in memory, as bytes, and what changed last: lists and watches are answered from here, and the store is spared.
//!
//! ```text
//!   store ── one watch over all keys ── feed ─┬─ shard (pods) ──┬─ objects, by key
//!                                             │                 ├─ the last changes (bounded)
//!                                             │                 └─ watchers: a bounded queue each
//!                                             ├─ shard (services/specs)
//!                                             └─ observers (RBAC's index, the collectors)
//! ```
//!
//! # Synchronization
//! The feed alone changes shards. It takes a shard's lock once for all the changes that a batch has for it, and says how far it is when the whole batch
//! is in. So whoever holds a shard's lock sees all changes up to the greater of the feed's revision and the shard's own, and none beyond.

mod change;
mod feed;
mod shard;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use berth_store::{Revision, Store};
use tokio::sync::watch;

pub use change::{Change, ChangeKind, Entry, parts_of};
pub use feed::Observer;
pub use shard::{Shard, WatchScope};

use crate::{catalog::Served, cipher::Cipher, failure::Failure};

/// How long a request waits for the cache to see a revision that the store has; upstream's blockTimeout.
const FRESH_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Cache {
    store: Arc<dyn Store>,
    served: Arc<Served>,
    cipher: Option<Arc<Cipher>>,
    shards: RwLock<BTreeMap<String, Arc<Shard>>>,
    /// Everything up to it is in; 0: nothing yet.
    revision: Arc<watch::Sender<Revision>>,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
}

impl Cache {
    pub fn new(store: Arc<dyn Store>, served: Arc<Served>, cipher: Option<Arc<Cipher>>) -> Self {
        Self {
            store,
            served,
            cipher,
            shards: RwLock::default(),
            revision: Arc::new(watch::Sender::new(0)),
            observers: RwLock::default(),
        }
    }

    /// It hears of every change from the next load on: add them before [`Cache::run`].
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(observer);
    }

    /// Of what is kept below this storage prefix; made at need.
    pub fn shard(&self, storage: &str) -> Arc<Shard> {
        let known = self
            .shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(storage)
            .cloned();
        known.unwrap_or_else(|| {
            let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
            shards
                .entry(storage.to_owned())
                .or_insert_with(|| {
                    // Nothing of it was there when everything was loaded, so its changes are complete since then.
                    Arc::new(Shard::new(storage, self.revision.clone()))
                })
                .clone()
        })
    }

    pub fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Whether the objects are loaded.
    pub fn is_loaded(&self) -> bool {
        self.revision() > 0
    }

    /// Waits until everything is loaded.
    pub async fn reach_first(&self) {
        let _ = self.revision.subscribe().wait_for(|&now| now > 0).await;
    }

    /// Waits until everything is in that was acknowledged before the call.
    ///
    /// # Errors
    /// 504 where the cache does not come up to it in time.
    pub async fn fresh(&self) -> Result<Revision, Failure> {
        let revision = self.store.revision().await?;
        self.reach(revision).await
    }

    /// Waits until everything up to `revision` is in.
    ///
    /// # Errors
    /// 504 where that is not so in time: upstream's `Too large resource version`.
    pub async fn reach(&self, revision: Revision) -> Result<Revision, Failure> {
        let mut seen = self.revision.subscribe();
        let reached = tokio::time::timeout(
            FRESH_WITHIN,
            seen.wait_for(|&now| now > 0 && now >= revision),
        )
        .await;
        match reached {
            Ok(Ok(now)) => Ok(*now),
            _ => Err(Failure::future_revision(revision, self.revision())),
        }
    }
}

/// Which shard a key is of, and what comes behind: `services/specs` and `GROUP/PLURAL` have two parts, all others one.
pub fn shard_of(key: &str) -> Option<(&str, &str)> {
    let path = key.strip_prefix(crate::catalog::REGISTRY)?;
    let first = path.find('/')?;
    let end = if path[..first].contains('.') || &path[..first] == "services" {
        first + 1 + path[first + 1..].find('/')?
    } else {
        first
    };
    Some((&path[..end], &path[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_its_shard() {
        for (key, shard) in [
            ("/registry/pods/a/b", Some(("pods", "a/b"))),
            ("/registry/minions/n", Some(("minions", "n"))),
            (
                "/registry/services/specs/a/b",
                Some(("services/specs", "a/b")),
            ),
            (
                "/registry/example.com/foos/a/b",
                Some(("example.com/foos", "a/b")),
            ),
            ("/registry/pods", None),
            ("/other/pods/a/b", None),
        ] {
            assert_eq!(shard_of(key), shard, "{key}");
        }
    }
}
