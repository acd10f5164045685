//! From the store into the shards.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use berth_store::{
    Error, EventKind, KeyValue, Keys, RangeRequest, Revision, WatchBatch, WatchRequest,
};
use futures_util::StreamExt;

use super::{Cache, Change, Entry, shard_of};
use crate::{catalog::REGISTRY, custom};

/// Hears of every change, in the order of revisions, before lists show it. It must not block.
pub trait Observer: fmt::Debug + Send + Sync {
    fn changed(&self, storage: &str, change: &Arc<Change>);
}

/// Between two attempts to load everything.
const RETRY: Duration = Duration::from_millis(200);
/// Objects of one answer of the store while everything is loaded.
const PAGE: usize = 2000;

impl Cache {
    /// Loads everything and follows the store; begins anew where the store's watch ends. Never returns.
    pub async fn run(self: Arc<Self>) {
        loop {
            match self.follow().await {
                Ok(()) => tracing::warn!("the store's watch ended: everything is loaded anew"),
                Err(error) => {
                    tracing::warn!(%error, "the watch cache: everything is loaded anew");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self) -> Result<(), Error> {
        let revision = self.load().await?;
        // All keys, not ours alone: so every revision is told, and lists know how far the cache is.
        let mut watch = self
            .store
            .watch(WatchRequest {
                keys: Keys::Range {
                    from: vec![0].into(),
                    to: Vec::new().into(),
                },
                from: revision + 1,
                previous: false,
            })
            .await?;
        while let Some(batch) = watch.next().await {
            self.take(batch?);
        }
        Ok(())
    }

    async fn load(&self) -> Result<Revision, Error> {
        let mut shards: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for shard in self.shards() {
            shards.insert(shard.storage.clone(), Vec::new());
        }
        let Keys::Range { mut from, to } = Keys::prefix(REGISTRY) else {
            return Ok(0);
        };
        let mut revision = 0;
        loop {
            let page = self
                .store
                .range(RangeRequest {
                    keys: Keys::Range {
                        from: from.clone(),
                        to: to.clone(),
                    },
                    revision,
                    limit: PAGE,
                    keys_only: false,
                    count_only: false,
                })
                .await?;
            if revision == 0 {
                revision = page.revision.max(1);
            }
            for kv in &page.kvs {
                if let Some((storage, entry)) = self.entry(kv) {
                    shards.entry(storage).or_default().push(entry);
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    from = next.into();
                }
                _ => break,
            }
        }
        for (storage, entries) in shards {
            let changes = self.shard(&storage).reload(revision, entries);
            self.tell(&storage, &changes);
        }
        // Shards that come later begin here.
        self.revision.send_replace(revision);
        Ok(revision)
    }

    fn take(&self, batch: WatchBatch) {
        let mut shards: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for event in batch.events {
            let revision = event.kv.mod_revision;
            let path = std::str::from_utf8(&event.kv.key).ok().and_then(shard_of);
            let Some((storage, path)) = path else {
                continue;
            };
            let (storage, path) = (storage.to_owned(), path.to_owned());
            let entry = match event.kind {
                EventKind::Delete => None,
                EventKind::Put => match self.entry(&event.kv) {
                    Some((_, entry)) => Some(entry),
                    // What can't be read is not served as something else.
                    None => continue,
                },
            };
            shards
                .entry(storage)
                .or_default()
                .push((path, revision, entry));
        }
        for (storage, changes) in shards {
            let changes = self.shard(&storage).apply(changes);
            self.tell(&storage, &changes);
        }
        self.revision.send_replace(batch.revision);
    }

    fn entry(&self, kv: &KeyValue) -> Option<(String, Entry)> {
        let key = std::str::from_utf8(&kv.key).ok()?;
        let (storage, path) = shard_of(key)?;
        let value = match &self.cipher {
            Some(cipher) => match cipher.open_value(&kv.key, kv.value.clone()) {
                Ok(value) => value,
                Err(error) => {
                    tracing::error!(%error, "an object is left out");
                    return None;
                }
            },
            None => kv.value.clone(),
        };
        let catalog = self.served.now();
        let resource = catalog.by_storage(storage).map(Arc::as_ref);
        let entry = match Entry::of_kept(resource, path, kv.mod_revision, &value) {
            Ok(entry) => entry,
            Err(error) => {
                tracing::error!(key, %error, "an object is left out: it is no JSON");
                return None;
            }
        };
        Some((storage.to_owned(), entry))
    }

    fn tell(&self, storage: &str, changes: &[Arc<Change>]) {
        if storage == custom::STORAGE && !changes.is_empty() {
            // What is served follows at once, so that the next request finds it.
            custom::serve(&self.served, &self.shard(storage));
        }
        let observers = self
            .observers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            for observer in observers.iter() {
                observer.changed(storage, change);
            }
        }
    }
}
