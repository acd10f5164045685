//! The cases, and what they have in common.

mod keys;
mod leases;
mod watches;

use std::{sync::Arc, time::Duration};

use berth_store::{
    Error, EventKind, KeyValue, Keys, Op, RangeAnswer, RangeRequest, Revision, Store, Txn,
    TxnAnswer, Watch, WatchBatch, WatchRequest,
};
use bytes::Bytes;
use futures_util::StreamExt;

pub use keys::*;
pub use leases::*;
pub use watches::*;

type Any = Arc<dyn Store>;

/// Longer than anything takes that happens at all.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
    Op::Put {
        key: bytes(key),
        value: bytes(value),
        lease: 0,
    }
}

pub fn leased(key: &str, lease: u64) -> Op {
    Op::Put {
        key: bytes(key),
        value: bytes("leased"),
        lease,
    }
}

pub fn delete(key: &str) -> Op {
    Op::Delete(Keys::One(bytes(key)))
}

pub fn then(ops: impl Into<Vec<Op>>) -> Txn {
    Txn {
        then: ops.into(),
        ..Txn::default()
    }
}

async fn write(store: &Any, ops: impl Into<Vec<Op>>) -> TxnAnswer {
    store.txn(then(ops)).await.unwrap()
}

pub fn all() -> RangeRequest {
    RangeRequest {
        keys: Keys::prefix("/"),
        revision: 0,
        limit: 0,
        keys_only: false,
        count_only: false,
    }
}

async fn get(store: &Any, key: &str) -> Option<KeyValue> {
    let keys = Keys::One(bytes(key));
    let found = store.range(RangeRequest { keys, ..all() }).await.unwrap();
    found.kvs.into_iter().next()
}

fn names(answer: &RangeAnswer) -> Vec<String> {
    answer
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect()
}

async fn watch(store: &Any, from: Revision) -> Watch {
    store
        .watch(WatchRequest {
            keys: Keys::prefix("/"),
            from,
            previous: false,
        })
        .await
        .unwrap()
}

async fn next(watch: &mut Watch) -> Option<Result<WatchBatch, Error>> {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("the watch tells nothing")
}

/// `count` events, and what is seen of each: kind, key, value, revision. Looks that the revisions are told whole and in order.
async fn told(watch: &mut Watch, count: usize) -> Vec<(EventKind, String, String, Revision)> {
    let mut seen = Vec::new();
    let mut upto = 0;
    while seen.len() < count {
        let batch = next(watch).await.expect("the watch ended").unwrap();
        assert!(batch.revision >= upto, "{} after {upto}", batch.revision);
        for event in batch.events {
            let kv = event.kv;
            assert!(
                kv.mod_revision > upto,
                "{} is told after {upto}",
                kv.mod_revision
            );
            assert!(kv.mod_revision <= batch.revision);
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            seen.push((event.kind, text(&kv.key), text(&kv.value), kv.mod_revision));
        }
        upto = batch.revision;
    }
    assert_eq!(seen.len(), count, "{seen:?}");
    assert!(seen.is_sorted_by_key(|event| event.3), "{seen:?}");
    seen
}
