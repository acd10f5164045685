//! The only thread that writes.
//!
//! It takes all who wait, works their transactions out one after the other, writes them as one batch, publishes them and answers. A failed write
//! leaves open what is on the disk: from then on the store refuses to write, and the next start finds out.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    boot, broken,
    disk::{Batch, Disk, settled},
    mark::Mark,
};
use crate::{
    Durability, Error, Lease, LeaseId, Revision, Txn, TxnAnswer,
    core::{Change, Core},
    index::{At, Index},
    leases::{self, Leases},
};

/// How many are written together at most, and about how much: more would make the first wait without sparing the last much.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 4 << 20;

/// When at the latest what is relaxed is synced.
const RELAXED: Duration = Duration::from_secs(1);

/// Versions that a compaction removes between two groups of writes.
const SWEPT: usize = 256;

type Answer<T> = oneshot::Sender<Result<T, Error>>;

pub(super) enum Ask {
    Txn(Txn, Answer<TxnAnswer>),
    Compact(Revision, Answer<()>),
    Grant(u64, Answer<Lease>),
    Revoke(LeaseId, Answer<()>),
}

pub(super) struct Writer {
    pub core: Arc<Core>,
    pub disk: Disk,
    mark: Mark,
    /// Since when something written is not synced.
    unsynced: Option<Instant>,
    ticked: Instant,
    /// Why nothing can be written any more.
    failed: Option<String>,
}

/// Is told why it was not written, where it was not.
type Waiting<'a> = Box<dyn FnOnce(Option<&str>) + 'a>;

/// What is written together, and who waits for it.
struct Group<'a> {
    batch: Batch<'a>,
    changes: Vec<Change>,
    /// Up to which revision it compacts.
    compacted: Revision,
    synced: bool,
    waiting: Vec<Waiting<'a>>,
}

impl Writer {
    /// `boot`: the machine's, now.
    pub fn open(directory: &Path, boot: &str) -> Result<Self, Error> {
        let fresh = !directory.join("db").exists();
        // Before the store: one without a mark is none that was ever acknowledged.
        let mark = Mark::open(directory, fresh)?;
        berth_failpoint::site!("store.open.marked").map_err(|e| broken("open the store", e))?;
        let disk = Disk::open(directory, boot)?;
        let core = recover(&disk, &mark, boot)?;
        Ok(Self {
            core: Arc::new(core),
            disk,
            mark,
            unsynced: None,
            ticked: Instant::now(),
            failed: None,
        })
    }

    pub fn run(mut self, asks: &Receiver<Ask>) {
        loop {
            let sweeping = self.failed.is_none() && self.core.index().has_garbage();
            let first = match sweeping {
                true => match asks.try_recv() {
                    Ok(ask) => Some(ask),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => break,
                },
                false => match asks.recv_timeout(leases::TICK) {
                    Ok(ask) => Some(ask),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                },
            };
            self.group(first, asks);
            if sweeping {
                self.sweep();
            }
            self.tick();
        }
        self.sync();
        self.core.watchers.end("the store is closed");
    }

    fn group(&mut self, first: Option<Ask>, asks: &Receiver<Ask>) {
        let Some(first) = first else { return };
        let disk = self.disk.clone();
        let mut group = Group {
            batch: disk.batch(),
            changes: Vec::new(),
            compacted: 0,
            synced: false,
            waiting: Vec::new(),
        };
        let mut next = Some(first);
        while let Some(ask) = next {
            self.work_out(ask, &mut group);
            let full = group.waiting.len() >= GROUP || group.batch.bytes >= GROUP_BYTES;
            next = if full { None } else { asks.try_recv().ok() };
        }
        self.commit(group);
    }

    fn work_out(&mut self, ask: Ask, group: &mut Group<'_>) {
        let failed = self.failed.clone();
        let refused = || match &failed {
            Some(why) => Err(broken("write to the store", why)),
            None => Ok(()),
        };
        match ask {
            Ask::Txn(txn, answer) => {
                let done = refused().and_then(|()| self.core.txn(&txn, &self.disk));
                let done = done.map(|(done, changes)| {
                    group.synced |= !changes.is_empty() && txn.durability == Durability::Synced;
                    group.add(changes);
                    done
                });
                group.answer(answer, done);
            }
            Ask::Compact(revision, answer) => {
                let done = match refused().and_then(|()| self.core.index().compactable(revision)) {
                    Ok(()) if revision <= group.compacted => Err(Error::Compacted {
                        asked: revision,
                        compacted: group.compacted,
                    }),
                    done => done,
                };
                if done.is_ok() {
                    group.batch.compacted(revision);
                    group.compacted = revision;
                }
                group.answer(answer, done);
            }
            Ask::Grant(ttl, answer) => {
                let done = refused().map(|()| {
                    let mut leases = self.core.leases();
                    let id = leases::new_id(|id| leases.has(id));
                    group.batch.granted(id, ttl);
                    leases.grant(id, ttl, Instant::now())
                });
                group.answer(answer, done);
            }
            Ask::Revoke(id, answer) => {
                let done = refused().and_then(|()| self.revoke(id, group));
                group.answer(answer, done);
            }
        }
    }

    fn revoke(&self, id: LeaseId, group: &mut Group<'_>) -> Result<(), Error> {
        let changes = self.core.revoke(id, &self.disk)?;
        group.batch.revoked(id);
        group.add(changes);
        Ok(())
    }

    fn commit(&mut self, group: Group<'_>) {
        let Group {
            batch,
            changes,
            compacted,
            synced,
            waiting,
        } = group;
        if !batch.is_empty() {
            match write(batch, synced) {
                Ok(()) => {
                    self.written(changes, synced);
                    // Nobody may be refused what the disk could still tell.
                    if compacted > 0 {
                        self.core.index_mut().compact(compacted);
                    }
                }
                Err(e) => self.fail(&e),
            }
        }
        // Those who were not written and those who had nothing to write but saw what was not written.
        let failed = self.failed.clone();
        for waiting in waiting {
            waiting(failed.as_deref());
        }
    }

    fn written(&mut self, changes: Vec<Change>, synced: bool) {
        {
            let mut index = self.core.index_mut();
            for change in &changes {
                let kv = &change.event.kv;
                index.settle(&kv.key, change.at, settled(&kv.value));
            }
        }
        let newest = changes.last().map(|change| change.at.revision);
        self.core.publish(changes, &self.disk);
        if synced {
            self.unsynced = None;
            if let Some(newest) = newest {
                self.set_mark(newest);
            }
        } else {
            self.unsynced.get_or_insert_with(Instant::now);
        }
    }

    fn set_mark(&mut self, revision: Revision) {
        if revision > self.mark.revision
            && let Err(e) = self.mark.set(revision)
        {
            // What it should tell of is written: the store works on and knows less about itself.
            tracing::warn!(error = %e, "the store's mark");
        }
    }

    fn fail(&mut self, e: &Error) {
        let why = format!("{e}; it is read only until it is opened again");
        tracing::error!(error = %e, "the store can't be written any more");
        let mut index = self.core.index_mut();
        let published = index.published;
        index.forget_after(published);
        self.failed = Some(why);
    }

    fn sync(&mut self) {
        if self.failed.is_some() || self.unsynced.is_none() {
            return;
        }
        let published = self.core.index().published;
        match self.disk.sync() {
            Ok(()) => {
                self.unsynced = None;
                self.set_mark(published);
            }
            Err(e) => self.fail(&e),
        }
    }

    /// Removes a part of what a compaction left to be removed.
    fn sweep(&mut self) {
        let garbage = self.core.index().garbage(SWEPT);
        let disk = self.disk.clone();
        let mut batch = disk.batch();
        for at in &garbage {
            batch.forget(*at);
        }
        let swept = berth_failpoint::site!("store.sweep.chosen")
            .map_err(|e| broken("sweep the store", e))
            .and_then(|()| batch.commit(false));
        match swept {
            Ok(()) => self.core.index_mut().swept(garbage.len()),
            Err(e) => self.fail(&e),
        }
        self.unsynced.get_or_insert_with(Instant::now);
    }

    /// What is due by the clock.
    fn tick(&mut self) {
        let now = Instant::now();
        if now - self.ticked < leases::TICK {
            return;
        }
        self.ticked = now;
        if self
            .unsynced
            .is_some_and(|since| now - since >= RELAXED / 2)
        {
            self.sync();
        }
        if self.failed.is_none() {
            let expired = self.core.expired();
            if !expired.is_empty() {
                let disk = self.disk.clone();
                let mut group = Group {
                    batch: disk.batch(),
                    changes: Vec::new(),
                    compacted: 0,
                    synced: false,
                    waiting: Vec::new(),
                };
                for id in expired {
                    if let Err(e) = self.revoke(id, &mut group) {
                        tracing::warn!(lease = id, error = %e, "revoke an expired lease");
                    }
                }
                self.commit(group);
            }
        }
        let published = self.core.index().published;
        self.core.watchers.progress(published);
    }
}

impl<'a> Group<'a> {
    fn add(&mut self, changes: Vec<Change>) {
        for change in &changes {
            self.batch.change(change);
        }
        self.changes.extend(changes);
    }

    fn answer<T: 'a>(&mut self, answer: Answer<T>, done: Result<T, Error>) {
        self.waiting.push(Box::new(move |failed| {
            // Who asked may be gone.
            let _ = answer.send(written(done, failed));
        }));
    }
}

fn written<T>(done: Result<T, Error>, failed: Option<&str>) -> Result<T, Error> {
    match failed {
        Some(why) => done.and_then(|_| Err(broken("write to the store", why))),
        None => done,
    }
}

fn write(batch: Batch<'_>, synced: bool) -> Result<(), Error> {
    let site = |e| broken("write to the store", e);
    berth_failpoint::site!("store.commit.worked_out").map_err(site)?;
    batch.commit(synced)?;
    berth_failpoint::site!("store.commit.written").map_err(site)
}

/// The index, from what is on the disk.
fn recover(disk: &Disk, mark: &Mark, boot: &str) -> Result<Core, Error> {
    let mut found = disk.found()?;
    let corrupt = |why: String| Error::Corrupt {
        what: "the store".to_owned(),
        why,
    };
    let mut index = Index::new();
    // Since the last compaction nothing is missing: neither a revision nor a part of one.
    let base = found.compacted.max(crate::FIRST_REVISION);
    let mut last = At {
        revision: base,
        sub: 0,
    };
    for version in disk.versions() {
        let (key, version) = version?;
        let at = version.at;
        if at.revision > base {
            let follows = match at.sub {
                0 => at.revision == last.revision + 1,
                sub => at.revision == last.revision && sub == last.sub + 1,
            };
            if !follows {
                return Err(corrupt(format!("after {last:?} comes {at:?}")));
            }
            last = at;
        }
        index.push(key, version);
    }
    index.newest = index.newest.max(found.begins);
    if index.newest < mark.revision {
        return Err(corrupt(format!(
            "it ends at revision {}, and writes up to {} have been acknowledged",
            index.newest, mark.revision
        )));
    }
    if index.newest < found.compacted {
        return Err(corrupt(format!(
            "it ends at revision {}, before its compaction at {}",
            index.newest, found.compacted
        )));
    }
    let before = found.boot.filter(|before| !before.is_empty());
    if before.is_none_or(|before| before != boot.as_bytes()) {
        index.newest += boot::GAP;
        found.compacted = index.newest;
        let mut batch = disk.batch();
        batch.begins(index.newest, boot);
        write(batch, true)?;
    }
    index.published = index.newest;
    if found.compacted > 0 {
        index.compact(found.compacted);
    }
    let mut leases = Leases::default();
    let now = Instant::now();
    for (id, ttl) in found.leases {
        leases.grant(id, ttl.min(leases::MAX_TTL), now);
    }
    for (key, lease) in index.leased() {
        if !leases.has(lease) {
            return Err(corrupt(format!("lease {lease:x} of a key is missing")));
        }
        leases.moved(key, 0, lease);
    }
    Ok(Core::new(index, leases))
}
