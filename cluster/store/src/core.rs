//! What the embedded store and the one in memory have in common: how a transaction is worked out, a range answered, a watch led from the past
//! into the present.
//!
//! # Synchronization
//! One writer. It works out transactions into the index (newer than what is published, so no reader sees them), writes them, publishes them and
//! feeds the watchers, in this order. A watch enters the watchers under their lock and reads there what is published: it is told each
//! revision once.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Instant,
};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};

use crate::{
    Compare, Error, Event, EventKind, Is, KeyValue, Keys, LeaseId, MAX_OPS, MAX_REQUEST_BYTES, Op,
    OpAnswer, RangeAnswer, RangeRequest, Revision, Target, Txn, TxnAnswer, Watch, WatchBatch,
    WatchRequest,
    index::{At, Index, Place, Version},
    leases::Leases,
    watchers::{Reader, Watchers},
};

/// What one step of a watch of the past takes at most: events, and about so many bytes.
const PAST_EVENTS: usize = 512;
const PAST_BYTES: usize = 1 << 20;

/// The values that are not in the index, as they were when it was made.
pub(crate) trait Values: Send {
    /// `None`: it has been compacted away.
    fn get(&self, at: At, len: u32, crc: u32) -> Result<Option<Bytes>, Error>;
}

/// Makes [`Values`]: while the index is locked, so that both are of one moment.
pub(crate) trait Backing: Send + Sync {
    fn values(&self) -> Box<dyn Values>;
}

/// One change of a revision.
#[derive(Debug)]
pub(crate) struct Change {
    pub at: At,
    pub version: Version,
    pub event: Event,
}

#[derive(Debug)]
pub(crate) struct Core {
    index: RwLock<Index>,
    leases: Mutex<Leases>,
    pub watchers: Watchers,
}

impl Core {
    pub fn new(index: Index, leases: Leases) -> Self {
        Self {
            index: RwLock::new(index),
            leases: Mutex::new(leases),
            watchers: Watchers::default(),
        }
    }

    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's alone.
    pub fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn range(
        &self,
        request: &RangeRequest,
        backing: &dyn Backing,
    ) -> Result<RangeAnswer, Error> {
        let (found, mut answer, values) = {
            let index = self.index();
            let revision = index.readable(request.revision, index.published)?;
            let (found, answer) = find(&index, request, revision, index.published);
            (found, answer, backing.values())
        };
        answer.kvs = load(found, request, values.as_ref())?;
        Ok(answer)
    }

    /// Works `txn` out. Its changes are in the index, but not published.
    pub fn txn(&self, txn: &Txn, backing: &dyn Backing) -> Result<(TxnAnswer, Vec<Change>), Error> {
        let mut index = self.index_mut();
        let mut leases = self.leases();
        let values = backing.values();
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = succeeded && holds(&index, compare, values.as_ref())?;
        }
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        // Whatever can fail is looked at before the first change.
        for op in ops {
            match op {
                Op::Put { lease, .. } if *lease != 0 && !leases.has(*lease) => {
                    return Err(Error::NoLease { id: *lease });
                }
                Op::Range(range) => {
                    index.readable(range.revision, index.newest)?;
                }
                _ => {}
            }
        }
        let before = index.newest;
        let mut changes = Changes::new(&mut index, &mut leases, values.as_ref());
        changes.blind = txn.blind;
        let mut answers = Vec::with_capacity(ops.len());
        for op in ops {
            match changes.make(op) {
                Ok(answer) => answers.push(answer),
                Err(e) => {
                    // Reading a value failed. The keys' leases may have been moved already: that costs a key its early end, not its life.
                    index.forget_after(before);
                    return Err(e);
                }
            }
        }
        let changes = changes.made;
        let answer = TxnAnswer {
            succeeded,
            revision: index.newest,
            answers,
        };
        Ok((answer, changes))
    }

    /// Takes the lease away and deletes what hangs on it.
    pub fn revoke(&self, id: LeaseId, backing: &dyn Backing) -> Result<Vec<Change>, Error> {
        let mut index = self.index_mut();
        let mut leases = self.leases();
        let keys = leases.revoke(id)?;
        let values = backing.values();
        let mut changes = Changes::new(&mut index, &mut leases, values.as_ref());
        for key in keys {
            if let Err(e) = changes.make(&Op::Delete(Keys::One(key))) {
                let before = changes.revision - 1;
                index.forget_after(before);
                return Err(e);
            }
        }
        Ok(changes.made)
    }

    /// Everyone may see `changes`, which are those that were worked out last.
    pub fn publish(&self, mut changes: Vec<Change>, backing: &dyn Backing) {
        let Some(newest) = changes.last().map(|change| change.at.revision) else {
            return;
        };
        self.index_mut().published = newest;
        // Asked for now: who enters from here on reads these changes himself.
        if self.watchers.want_previous() {
            self.look_back(&mut changes, backing);
        }
        let mut events: Vec<Event> = Vec::new();
        let mut revision = 0;
        for change in changes {
            if change.at.revision != revision && !events.is_empty() {
                self.watchers.feed(revision, &events);
                events.clear();
            }
            revision = change.at.revision;
            events.push(change.event);
        }
        self.watchers.feed(revision, &events);
    }

    /// Finds what blind puts have replaced. What can't be read is left out, as where it is compacted away: the watch goes on.
    fn look_back(&self, changes: &mut [Change], backing: &dyn Backing) {
        let (index, values) = (self.index(), backing.values());
        for change in changes {
            let event = &mut change.event;
            if event.previous.is_some() || event.kv.version < 2 {
                continue;
            }
            let Some((_, Some(old))) = index.change(&event.kv.key, change.at) else {
                continue;
            };
            match value(old, values.as_ref()) {
                Ok(found) => {
                    event.previous = found.map(|value| old.key_value(event.kv.key.clone(), value));
                }
                Err(error) => tracing::warn!(%error, "a watch is not told what was there before"),
            }
        }
    }

    /// Those that have expired.
    pub fn expired(&self) -> Vec<LeaseId> {
        self.leases().expired(Instant::now())
    }

    pub fn watch(
        self: &Arc<Self>,
        request: WatchRequest,
        backing: Arc<dyn Backing>,
    ) -> Result<Watch, Error> {
        let next = {
            let index = self.index();
            match request.from {
                0 => index.published + 1,
                from if from < index.compacted => {
                    return Err(Error::Compacted {
                        asked: from,
                        compacted: index.compacted,
                    });
                }
                from => from,
            }
        };
        // What is asked for from now on is entered now: what is written before the first read of the stream is told too.
        let reader = self.enter(&request, next);
        let state = Following {
            core: self.clone(),
            backing,
            request,
            next,
            reader,
            ended: false,
        };
        Ok(stream::unfold(state, Following::next).boxed())
    }

    fn enter(&self, request: &WatchRequest, next: Revision) -> Option<Reader> {
        self.watchers
            .enter(&request.keys, request.previous, next, || {
                self.index().published
            })
    }

    /// A batch of what happened from `next` on.
    fn past(
        &self,
        request: &WatchRequest,
        next: Revision,
        backing: &dyn Backing,
    ) -> Result<WatchBatch, Error> {
        let (found, upto, values) = {
            let index = self.index();
            if next < index.compacted {
                return Err(Error::Compacted {
                    asked: next,
                    compacted: index.compacted,
                });
            }
            let mut found = Vec::new();
            let mut bytes = 0;
            let mut upto = index.published;
            for (at, key) in index.log_from(next) {
                // Whole revisions only.
                if (found.len() >= PAST_EVENTS || bytes >= PAST_BYTES)
                    && found
                        .last()
                        .is_some_and(|(_, last, _): &(Bytes, Version, _)| {
                            last.at.revision < at.revision
                        })
                {
                    upto = at.revision - 1;
                    break;
                }
                if !request.keys.has(key) {
                    continue;
                }
                if let Some((version, previous)) = index.change(key, *at) {
                    // As etcd: what was there before the revision of the compaction is gone, whether it has been swept or not.
                    let previous = previous.filter(|_| at.revision > index.compacted);
                    bytes += key.len() + length(version) + previous.map_or(0, length);
                    found.push((key.clone(), version.clone(), previous.cloned()));
                }
            }
            (found, upto, backing.values())
        };
        let mut events = Vec::with_capacity(found.len());
        for (key, version, previous) in found {
            let previous = match previous {
                Some(previous) if request.previous => value(&previous, values.as_ref())?
                    .map(|value| previous.key_value(key.clone(), value)),
                _ => None,
            };
            events.push(match version.deleted() {
                true => deletion(key, version.at.revision, previous),
                false => Event {
                    kind: EventKind::Put,
                    kv: version.key_value(
                        key,
                        value(&version, values.as_ref())?.ok_or_else(|| Error::Compacted {
                            asked: next,
                            compacted: self.index().compacted,
                        })?,
                    ),
                    previous,
                },
            });
        }
        Ok(WatchBatch {
            revision: upto,
            events,
        })
    }
}

/// A watch, before and after it has caught up.
struct Following {
    core: Arc<Core>,
    backing: Arc<dyn Backing>,
    request: WatchRequest,
    /// The first revision not told yet.
    next: Revision,
    /// Where it has caught up.
    reader: Option<Reader>,
    ended: bool,
}

impl Following {
    async fn next(mut self) -> Option<(Result<WatchBatch, Error>, Self)> {
        if self.ended {
            return None;
        }
        if self.reader.is_none() {
            self.reader = self.core.enter(&self.request, self.next);
        }
        let told = match &self.reader {
            Some(reader) => future::poll_fn(|cx| reader.poll(cx)).await?,
            None => {
                let core = self.core.clone();
                let (request, next, backing) =
                    (self.request.clone(), self.next, self.backing.clone());
                tokio::task::spawn_blocking(move || core.past(&request, next, backing.as_ref()))
                    .await
                    .unwrap_or_else(|e| {
                        Err(Error::Broken {
                            act: "read the past for a watch",
                            why: e.to_string(),
                        })
                    })
            }
        };
        match &told {
            Ok(batch) => self.next = batch.revision + 1,
            Err(_) => self.ended = true,
        }
        Some((told, self))
    }
}

/// The changes of one revision, as they are worked out.
struct Changes<'a> {
    index: &'a mut Index,
    leases: &'a mut Leases,
    values: &'a dyn Values,
    revision: Revision,
    made: Vec<Change>,
    /// What is replaced is not read.
    blind: bool,
}

impl<'a> Changes<'a> {
    fn new(index: &'a mut Index, leases: &'a mut Leases, values: &'a dyn Values) -> Self {
        Self {
            revision: index.newest + 1,
            index,
            leases,
            values,
            made: Vec::new(),
            blind: false,
        }
    }

    fn at(&self) -> At {
        At {
            revision: self.revision,
            sub: self.made.len() as u32,
        }
    }

    fn make(&mut self, op: &Op) -> Result<OpAnswer, Error> {
        Ok(match op {
            Op::Put { key, value, lease } => {
                OpAnswer::Put(self.put(key.clone(), value.clone(), *lease)?)
            }
            Op::Delete(keys) => {
                let gone: Vec<_> = self
                    .index
                    .range(keys, Revision::MAX)
                    .map(|(key, version)| (key.clone(), version.clone()))
                    .collect();
                let mut deleted = Vec::with_capacity(gone.len());
                for (key, version) in gone {
                    deleted.push(self.delete(key, &version)?);
                }
                OpAnswer::Delete(deleted)
            }
            Op::Range(request) => {
                let revision = self.index.readable(request.revision, self.index.newest)?;
                let (found, mut answer) = find(self.index, request, revision, self.index.newest);
                answer.kvs = load(found, request, self.values)?;
                OpAnswer::Range(answer)
            }
        })
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: LeaseId) -> Result<Option<KeyValue>, Error> {
        let at = self.at();
        let old = self.index.get(&key, Revision::MAX).cloned();
        let previous = match &old {
            Some(old) if !self.blind => {
                Some(old.key_value(key.clone(), present(old, self.values)?))
            }
            _ => None,
        };
        let version = Version {
            at,
            create: old.as_ref().map_or(at.revision, |old| old.create),
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease,
            place: Place::Here(value.clone()),
        };
        self.leases
            .moved(&key, old.as_ref().map_or(0, |old| old.lease), lease);
        self.index.push(key.clone(), version.clone());
        self.made.push(Change {
            at,
            event: Event {
                kind: EventKind::Put,
                kv: version.key_value(key, value),
                previous: previous.clone(),
            },
            version,
        });
        Ok(previous)
    }

    fn delete(&mut self, key: Bytes, old: &Version) -> Result<KeyValue, Error> {
        let at = self.at();
        let previous = old.key_value(key.clone(), present(old, self.values)?);
        let version = Version {
            at,
            create: 0,
            version: 0,
            lease: 0,
            place: Place::Here(Bytes::new()),
        };
        self.leases.moved(&key, old.lease, 0);
        self.index.push(key.clone(), version.clone());
        self.made.push(Change {
            at,
            version,
            event: deletion(key, at.revision, Some(previous.clone())),
        });
        Ok(previous)
    }
}

fn deletion(key: Bytes, revision: Revision, previous: Option<KeyValue>) -> Event {
    Event {
        kind: EventKind::Delete,
        kv: KeyValue {
            key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: revision,
            version: 0,
            lease: 0,
        },
        previous,
    }
}

/// Refuses what is wrong whatever is in the store. Both branches count, as with etcd.
pub(crate) fn check(txn: &Txn) -> Result<(), Error> {
    let limit = |what, is, limit| match is > limit {
        true => Err(Error::Limit { what, is, limit }),
        false => Ok(()),
    };
    limit("compares", txn.compares.len(), MAX_OPS)?;
    if txn.compares.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for ops in [&txn.then, &txn.otherwise] {
        limit("operations", ops.len(), MAX_OPS)?;
        let mut bytes = 0;
        let mut puts = std::collections::BTreeSet::new();
        for op in ops {
            match op {
                Op::Put { key, value, .. } => {
                    bytes += key.len() + value.len();
                    if !puts.insert(key) {
                        return Err(Error::ChangedTwice { key: text(key) });
                    }
                }
                Op::Delete(_) | Op::Range(_) => {}
            }
            match op {
                Op::Put { key, .. } | Op::Delete(Keys::One(key)) if key.is_empty() => {
                    return Err(Error::EmptyKey);
                }
                _ => {}
            }
        }
        limit("bytes", bytes, MAX_REQUEST_BYTES)?;
        for op in ops {
            if let Op::Delete(keys) = op
                && let Some(key) = puts.iter().find(|key| keys.has(key))
            {
                return Err(Error::ChangedTwice { key: text(key) });
            }
        }
    }
    Ok(())
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

fn holds(index: &Index, compare: &Compare, values: &dyn Values) -> Result<bool, Error> {
    let version = index.get(&compare.key, Revision::MAX);
    let order = match &compare.target {
        Target::CreateRevision(asked) => version.map_or(0, |v| v.create).cmp(asked),
        Target::ModRevision(asked) => version.map_or(0, |v| v.at.revision).cmp(asked),
        Target::Version(asked) => version.map_or(0, |v| v.version).cmp(asked),
        Target::Lease(asked) => version.map_or(0, |v| v.lease).cmp(asked),
        // What isn't there equals and differs from no value: etcd's rule.
        Target::Value(asked) => match version {
            Some(version) => present(version, values)?.cmp(asked),
            None => return Ok(false),
        },
    };
    Ok(match compare.is {
        Is::Equal => order.is_eq(),
        Is::NotEqual => order.is_ne(),
        Is::Greater => order.is_gt(),
        Is::Less => order.is_lt(),
    })
}

fn find(
    index: &Index,
    request: &RangeRequest,
    revision: Revision,
    now: Revision,
) -> (Vec<(Bytes, Version)>, RangeAnswer) {
    let mut found = Vec::new();
    let mut count = 0;
    let limit = match (request.count_only, request.limit) {
        (true, _) => 0,
        (false, 0) => usize::MAX,
        (false, limit) => limit,
    };
    for (key, version) in index.range(&request.keys, revision) {
        count += 1;
        if found.len() < limit {
            found.push((key.clone(), version.clone()));
        }
    }
    let answer = RangeAnswer {
        kvs: Vec::new(),
        count,
        more: !request.count_only && count > found.len() as u64,
        revision: now,
    };
    (found, answer)
}

fn load(
    found: Vec<(Bytes, Version)>,
    request: &RangeRequest,
    values: &dyn Values,
) -> Result<Vec<KeyValue>, Error> {
    found
        .into_iter()
        .map(|(key, version)| {
            let value = match request.keys_only {
                true => Bytes::new(),
                false => present(&version, values)?,
            };
            Ok(version.key_value(key, value))
        })
        .collect()
}

fn length(version: &Version) -> usize {
    match &version.place {
        Place::Here(value) => value.len(),
        Place::Disk { len, .. } => *len as usize,
    }
}

fn value(version: &Version, values: &dyn Values) -> Result<Option<Bytes>, Error> {
    match &version.place {
        Place::Here(value) => Ok(Some(value.clone())),
        Place::Disk { len: 0, .. } => Ok(Some(Bytes::new())),
        Place::Disk { len, crc } => values.get(version.at, *len, *crc),
    }
}

/// The value of a version that can't have been compacted away.
fn present(version: &Version, values: &dyn Values) -> Result<Bytes, Error> {
    value(version, values)?.ok_or_else(|| Error::Corrupt {
        what: format!("the value of revision {}", version.at.revision),
        why: "it is missing".to_owned(),
    })
}
