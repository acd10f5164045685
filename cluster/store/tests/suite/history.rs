//! Random histories, against a model that keeps a copy of everything at each revision (REL-22).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use berth_store::{
    Compare, Embedded, EventKind, Is, KeyValue, Keys, Memory, Op, OpAnswer, RangeAnswer,
    RangeRequest, Revision, Store, Target, Txn, WatchRequest,
};
use bytes::Bytes;
use futures_util::StreamExt;
use proptest::prelude::*;

use crate::{cases::bytes, etcd};

/// Every revision's keys, whole.
struct Model {
    at: BTreeMap<Revision, BTreeMap<Bytes, KeyValue>>,
    compacted: Revision,
    events: Vec<(Revision, EventKind, Bytes, Bytes, Option<Bytes>)>,
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Txn),
    /// So many revisions back, and how many at most.
    Range(Keys, u64, usize),
    /// So many revisions back.
    Compact(u64),
    Reopen,
}

impl Model {
    fn new() -> Self {
        Self {
            at: [(berth_store::FIRST_REVISION, BTreeMap::new())].into(),
            compacted: 0,
            events: Vec::new(),
        }
    }

    fn newest(&self) -> Revision {
        *self.at.last_key_value().unwrap().0
    }

    fn now(&self) -> &BTreeMap<Bytes, KeyValue> {
        self.at.last_key_value().unwrap().1
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.now().get(&compare.key);
        let of = |field: fn(&KeyValue) -> u64| kv.map_or(0, field);
        let order = match &compare.target {
            Target::CreateRevision(n) => of(|kv| kv.create_revision).cmp(n),
            Target::ModRevision(n) => of(|kv| kv.mod_revision).cmp(n),
            Target::Version(n) => of(|kv| kv.version).cmp(n),
            Target::Lease(n) => of(|kv| kv.lease).cmp(n),
            Target::Value(value) => match kv {
                Some(kv) => kv.value.cmp(value),
                None => return false,
            },
        };
        match compare.is {
            Is::Equal => order.is_eq(),
            Is::NotEqual => order.is_ne(),
            Is::Greater => order.is_gt(),
            Is::Less => order.is_lt(),
        }
    }

    fn txn(&mut self, txn: &Txn) -> (bool, Revision, Vec<OpAnswer>) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let mut now = self.now().clone();
        let revision = self.newest() + 1;
        let events = self.events.len();
        let mut answers = Vec::new();
        for op in ops {
            answers.push(match op {
                Op::Put { key, value, lease } => {
                    let old = now.get(key).cloned();
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.as_ref().map_or(revision, |kv| kv.create_revision),
                        mod_revision: revision,
                        version: old.as_ref().map_or(1, |kv| kv.version + 1),
                        lease: *lease,
                    };
                    now.insert(key.clone(), kv);
                    let before = old.as_ref().map(|kv| kv.value.clone());
                    self.events.push((
                        revision,
                        EventKind::Put,
                        key.clone(),
                        value.clone(),
                        before,
                    ));
                    OpAnswer::Put(old)
                }
                Op::Delete(keys) => {
                    let gone: Vec<_> = now
                        .values()
                        .filter(|kv| keys.has(&kv.key))
                        .cloned()
                        .collect();
                    for kv in &gone {
                        now.remove(&kv.key);
                        self.events.push((
                            revision,
                            EventKind::Delete,
                            kv.key.clone(),
                            Bytes::new(),
                            Some(kv.value.clone()),
                        ));
                    }
                    OpAnswer::Delete(gone)
                }
                Op::Range(_) => unreachable!("none is made"),
            });
        }
        if self.events.len() > events {
            self.at.insert(revision, now);
        }
        (succeeded, self.newest(), answers)
    }

    fn range(&self, keys: &Keys, revision: Revision, limit: usize) -> RangeAnswer {
        let found: Vec<_> = self.at[&revision]
            .values()
            .filter(|kv| keys.has(&kv.key))
            .cloned()
            .collect();
        let count = found.len() as u64;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let kvs: Vec<_> = found.into_iter().take(limit).collect();
        RangeAnswer {
            more: (kvs.len() as u64) < count,
            kvs,
            count,
            revision: self.newest(),
        }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    // Few, and some within others, so that they meet.
    prop_oneof![
        Just("/a"),
        Just("/a/b"),
        Just("/a0"),
        Just("/b"),
        Just("/b/c"),
        Just("/c")
    ]
    .prop_map(bytes)
}

fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![
        key().prop_map(Keys::One),
        key().prop_map(Keys::prefix),
        (key(), key()).prop_map(|(from, to)| Keys::Range { from, to }),
        key().prop_map(|from| Keys::Range {
            from,
            to: Bytes::new()
        }),
        Just(Keys::prefix("/")),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (key(), "[a-c]{0,3}").prop_map(|(key, value)| Op::Put { key, value: bytes(value), lease: 0 }),
        1 => key().prop_map(|key| Op::Delete(Keys::One(key))),
        1 => keys().prop_map(Op::Delete),
    ];
    prop::collection::vec(op, 0..4).prop_map(|ops| {
        // What changes a key twice is refused, and has its own test.
        let mut kept: Vec<Op> = Vec::new();
        for op in ops {
            let meets = kept.iter().any(|other| match (&op, other) {
                (Op::Put { key: a, .. }, Op::Put { key: b, .. }) => a == b,
                (Op::Put { key, .. }, Op::Delete(keys))
                | (Op::Delete(keys), Op::Put { key, .. }) => keys.has(key),
                _ => false,
            });
            if !meets {
                kept.push(op);
            }
        }
        kept
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let is = prop_oneof![
        Just(Is::Equal),
        Just(Is::NotEqual),
        Just(Is::Greater),
        Just(Is::Less)
    ];
    let target = prop_oneof![
        (0..30u64).prop_map(Target::CreateRevision),
        (0..30u64).prop_map(Target::ModRevision),
        (0..5u64).prop_map(Target::Version),
        "[a-c]{0,2}".prop_map(|value| Target::Value(bytes(value))),
        Just(Target::Lease(0)),
    ];
    (key(), is, target).prop_map(|(key, is, target)| Compare { key, is, target })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (prop::collection::vec(compare(), 0..2), ops(), ops()).prop_map(|(compares, then, otherwise)| {
            Step::Txn(Txn { compares, then, otherwise, ..Txn::default() })
        }),
        5 => (keys(), 0..6u64, 0..4usize).prop_map(|(keys, back, limit)| Step::Range(keys, back, limit)),
        1 => (0..5u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// Deletions at the very revision of a compaction are gone, too: etcd until August 2024 (etcd#18089), Debian's 3.4 among them.
const FORGETS_DELETIONS: bool = true;
const KEEPS_DELETIONS: bool = false;

/// What the store says to `steps` is what the model says, and a watch from each revision that is left tells the same events.
async fn check(
    mut open: impl AsyncFnMut(Option<Arc<dyn Store>>) -> Arc<dyn Store>,
    steps: &[Step],
    forgets_deletions: bool,
) {
    let mut store = open(None).await;
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Txn(txn) => {
                let answer = store.txn(txn.clone()).await.unwrap();
                let said = (answer.succeeded, answer.revision, answer.answers);
                assert_eq!(said, model.txn(txn), "{txn:?}");
            }
            Step::Range(keys, back, limit) => {
                let revision = model.newest().saturating_sub(*back).max(1);
                let asked = RangeRequest {
                    keys: keys.clone(),
                    revision,
                    limit: *limit,
                    keys_only: false,
                    count_only: false,
                };
                match store.range(asked).await {
                    Ok(found) => {
                        assert!(revision >= model.compacted);
                        assert_eq!(found, model.range(keys, revision, *limit), "at {revision}");
                    }
                    Err(berth_store::Error::Compacted { compacted, .. }) => {
                        assert_eq!(compacted, model.compacted);
                        assert!(revision < compacted);
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            Step::Compact(back) => {
                let revision = model.newest().saturating_sub(*back);
                let done = store.compact(revision).await;
                assert_eq!(done.is_ok(), revision > model.compacted, "{done:?}");
                model.compacted = model.compacted.max(revision);
            }
            Step::Reopen => store = open(Some(store)).await,
        }
    }
    let mut last = model.newest();
    if forgets_deletions {
        last = last.max(model.compacted + 1);
    }
    for from in [model.compacted + 1, last] {
        let expected: Vec<_> = model
            .events
            .iter()
            .filter(|event| event.0 >= from.max(2))
            .cloned()
            .map(|mut event| {
                // Compacted away, though the revision itself can still be watched.
                event.4 = event.4.filter(|_| event.0 > model.compacted);
                event
            })
            .collect();
        let mut watch = store
            .watch(WatchRequest {
                keys: Keys::prefix("/"),
                from: from.max(2),
                previous: true,
            })
            .await
            .unwrap();
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            let told = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
            let told = told.unwrap_or_else(|_| panic!("of {expected:?} only {seen:?} is told"));
            for event in told.unwrap().unwrap().events {
                let before = event.previous.map(|kv| kv.value);
                let kv = event.kv;
                seen.push((kv.mod_revision, event.kind, kv.key, kv.value, before));
            }
        }
        assert_eq!(seen, expected, "from {from}");
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_history_in_memory_is_as_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        run(check(async |was| was.unwrap_or_else(|| Arc::new(Memory::new()) as Arc<dyn Store>), &steps, KEEPS_DELETIONS));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Closed and opened again wherever it falls.
    #[test]
    fn any_history_on_the_disk_is_as_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        run(check(async |was| {
            drop(was);
            Arc::new(Embedded::open(directory.path()).unwrap()) as Arc<dyn Store>
        }, &steps, KEEPS_DELETIONS));
    }
}

proptest! {
    // The model itself is held against etcd.
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_etcd_is_as_the_model_says(steps in prop::collection::vec(step(), 20..60)) {
        run(async {
            let server = etcd::Server::start().await;
            check(async |_| server.store(), &steps, FORGETS_DELETIONS).await;
        });
    }
}
