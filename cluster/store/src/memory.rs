use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Error, Lease, LeaseId, RangeAnswer, RangeRequest, Revision, Status, Store, Txn, TxnAnswer,
    Watch, WatchRequest,
    core::{self, Backing, Core, Values},
    index::{At, Index},
    leases::{self, Leases},
};

/// A store that ends with its process: for tests. It must be made within a tokio runtime, which expires its leases.
#[derive(Debug)]
pub struct Memory {
    core: Arc<Core>,
    /// Held by who writes.
    writer: Arc<Mutex<()>>,
}

/// All values are in the index.
struct Nowhere;

impl Values for Nowhere {
    fn get(&self, _: At, _: u32, _: u32) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }
}

impl Backing for Nowhere {
    fn values(&self) -> Box<dyn Values> {
        Box::new(Nowhere)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    pub fn new() -> Self {
        let core = Arc::new(Core::new(Index::new(), Leases::default()));
        let writer = Arc::new(Mutex::new(()));
        tokio::spawn(expire(Arc::downgrade(&core), writer.clone()));
        Self { core, writer }
    }

    fn revoke(core: &Core, writer: &Mutex<()>, id: LeaseId) -> Result<(), Error> {
        let _writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = core.revoke(id, &Nowhere)?;
        core.publish(changes, &Nowhere);
        Ok(())
    }
}

async fn expire(core: Weak<Core>, writer: Arc<Mutex<()>>) {
    let mut tick = tokio::time::interval(leases::TICK);
    loop {
        tick.tick().await;
        let Some(core) = core.upgrade() else { return };
        for id in core.expired() {
            // It may have been revoked meanwhile.
            let _ = Memory::revoke(&core, &writer, id);
        }
        let published = core.index().published;
        core.watchers.progress(published);
    }
}

#[async_trait]
impl Store for Memory {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, Error> {
        self.core.range(&request, &Nowhere)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, Error> {
        core::check(&txn)?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, changes) = self.core.txn(&txn, &Nowhere)?;
        self.core.publish(changes, &Nowhere);
        Ok(answer)
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        self.core.watch(request, Arc::new(Nowhere))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = self.core.index_mut();
        index.compactable(revision)?;
        index.compact(revision);
        let garbage = index.garbage(usize::MAX).len();
        index.swept(garbage);
        Ok(())
    }

    async fn lease_grant(&self, ttl: u64) -> Result<Lease, Error> {
        let ttl = ttl.clamp(1, leases::MAX_TTL);
        let mut leases = self.core.leases();
        let id = leases::new_id(|id| leases.has(id));
        Ok(leases.grant(id, ttl, Instant::now()))
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Lease, Error> {
        self.core.leases().keep_alive(id, Instant::now())
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        Self::revoke(&self.core, &self.writer, id)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.core.index().published)
    }

    async fn status(&self) -> Result<Status, Error> {
        let index = self.core.index();
        Ok(Status {
            revision: index.published,
            compacted: index.compacted,
            size: 0,
        })
    }
}
