//! Where the API server keeps its objects.
//!
//! [`Store`] has etcd's semantics (etcd API v3): one revision for all keys, ranges at a revision, transactions with compares, watches from a
//! revision, compaction, leases. Whatever keeps the bytes, the answers are the same: one suite holds for all of them.
//!
//! [`Memory`] and [`Embedded`] share their logic ([`core`](mod@core): an index of all keys and versions in memory, the watchers, the leases) and differ in where
//! the values are; [`Etcd`] asks a real etcd.

mod core;
mod embedded;
mod etcd;
pub mod facade;
mod index;
mod leases;
mod memory;
mod watchers;
mod wire;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use memory::Memory;

/// Of an empty store, as etcd's: the first change is at 2.
pub const FIRST_REVISION: Revision = 1;

/// Operations of one branch of a transaction: etcd's `--max-txn-ops`.
pub const MAX_OPS: usize = 128;

/// Keys and values of one transaction: etcd's `--max-request-bytes`.
pub const MAX_REQUEST_BYTES: usize = 1_572_864;

/// Events that may wait for the reader of a watch, and bytes of their values: enough for a burst, and a reader that is behind by more lists sooner than it reads
/// them all.
pub const MAX_WAITING_EVENTS: usize = 10_000;
pub const MAX_WAITING_BYTES: usize = 32 << 20;

/// Counts the transactions that changed something, from [`FIRST_REVISION`]. 0 is "none", or "the newest".
pub type Revision = u64;

/// A lease's id; 0 is none.
pub type LeaseId = u64;

/// A key with its value as of `mod_revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// When the key was last made.
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// 1 when it was made, one more with each put.
    pub version: u64,
    pub lease: LeaseId,
}

/// Which keys: one, or those in `[from, to)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    One(Bytes),
    /// `to` empty: all from `from` on.
    Range {
        from: Bytes,
        to: Bytes,
    },
}

impl Keys {
    /// Those that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let from: Bytes = prefix.into();
        let mut to = from.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                break;
            }
        }
        Self::Range {
            from,
            to: to.into(),
        }
    }

    pub fn has(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Range { from, to } => {
                key >= from.as_ref() && (to.is_empty() || key < to.as_ref())
            }
        }
    }
}

#[derive(Debug, Clone)]
pub struct RangeRequest {
    pub keys: Keys,
    /// As of which revision; 0: now.
    pub revision: Revision,
    /// At most so many; 0: all.
    pub limit: usize,
    /// Without their values.
    pub keys_only: bool,
    pub count_only: bool,
}

/// In the order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeAnswer {
    pub kvs: Vec<KeyValue>,
    /// How many keys there are, whatever the limit.
    pub count: u64,
    /// There are more than `limit`.
    pub more: bool,
    /// The store's revision when it answered.
    pub revision: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// 0: there is no such key.
    CreateRevision(Revision),
    ModRevision(Revision),
    Version(u64),
    Value(Bytes),
    Lease(LeaseId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub key: Bytes,
    pub is: Is,
    pub target: Target,
}

#[derive(Debug, Clone)]
pub enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        lease: LeaseId,
    },
    Delete(Keys),
    Range(RangeRequest),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpAnswer {
    /// What was there before.
    Put(Option<KeyValue>),
    /// What is deleted.
    Delete(Vec<KeyValue>),
    Range(RangeAnswer),
}

/// When a change is on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it is answered. Those that wait together are written together.
    #[default]
    Synced,
    /// Within a second: what is renewed anyway (Leases, Events). A kill of the process loses nothing, a power cut the last second.
    Relaxed,
}

/// All or nothing, at one revision. No key may be changed twice.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    /// Done where all compares hold.
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
    pub durability: Durability,
    /// Nobody looks at what the puts replace: it is not read for them, and [`OpAnswer::Put`] has nothing. Watches that want it are told all the same.
    pub blind: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnAnswer {
    pub succeeded: bool,
    /// The store's revision afterwards: the transaction's own where it changed something.
    pub revision: Revision,
    pub answers: Vec<OpAnswer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// A change. `kv` of a deletion has no value, and the revision of the deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub kv: KeyValue,
    pub previous: Option<KeyValue>,
}

#[derive(Debug, Clone)]
pub struct WatchRequest {
    pub keys: Keys,
    /// The first revision to tell; 0: what comes next.
    pub from: Revision,
    /// With [`Event::previous`].
    pub previous: bool,
}

/// All events of one revision or of several, never a part of a revision's; none at all: everything up to `revision` has been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// Ends with the first error. A reader that is too slow gets [`Error::Slow`]; nothing is left out without being told.
pub type Watch = BoxStream<'static, Result<WatchBatch, Error>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    /// As granted, in seconds.
    pub ttl: u64,
    /// Left, in seconds.
    pub left: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub revision: Revision,
    pub compacted: Revision,
    /// Bytes on the disk.
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// etcd: "mvcc: required revision has been compacted".
    #[error(
        "revision {asked} is asked for, and everything before {compacted} has been compacted away: list again"
    )]
    Compacted {
        asked: Revision,
        compacted: Revision,
    },
    /// etcd: "mvcc: required revision is a future revision".
    #[error("revision {asked} is asked for, and the newest is {newest}")]
    Future { asked: Revision, newest: Revision },
    #[error("a transaction changes {key} twice")]
    ChangedTwice { key: String },
    #[error("no lease {id:x}")]
    NoLease { id: LeaseId },
    #[error("a transaction has {is} {what}, and {limit} are allowed")]
    Limit {
        what: &'static str,
        is: usize,
        limit: usize,
    },
    #[error("a transaction names an empty key")]
    EmptyKey,
    /// Nothing of it is served.
    #[error(
        "{what} is damaged: {why}; restore it from a copy, or remove it to start with an empty store"
    )]
    Corrupt { what: String, why: String },
    #[error("a watch was not read for so long that {waiting} events wait: list and watch again")]
    Slow { waiting: usize },
    #[error("{act}: {why}")]
    Broken { act: &'static str, why: String },
}

#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, Error>;

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, Error>;

    /// Of an event at the revision of the last compaction nothing is told of what was there before (etcd#10681).
    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error>;

    /// Forgets what was before `revision`; keys that are there stay.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// `ttl` in seconds.
    async fn lease_grant(&self, ttl: u64) -> Result<Lease, Error>;

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Lease, Error>;

    /// Deletes what hangs on it.
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error>;

    /// Of the newest write that was acknowledged, whoever wrote it. Asked by every list that must be up to date: as quick as a read of one key.
    async fn revision(&self) -> Result<Revision, Error>;

    async fn status(&self) -> Result<Status, Error>;
}
