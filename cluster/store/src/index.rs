//! Every key with its versions since the last compaction, in memory: which revision has what, without its values.
//!
//! Invariant: versions of a key stand in the order of their revisions. What is newer than [`Index::published`] is being written and nobody but the writer
//! sees it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;

use crate::{Error, FIRST_REVISION, KeyValue, Keys, LeaseId, Revision};

/// Which change of which revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub revision: Revision,
    /// From 0.
    pub sub: u32,
}

/// Where a version's value is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Here(Bytes),
    /// With its length and CRC-32C.
    Disk {
        len: u32,
        crc: u32,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub at: At,
    /// 0: the key is deleted here.
    pub create: Revision,
    pub version: u64,
    pub lease: LeaseId,
    pub place: Place,
}

impl Version {
    pub fn deleted(&self) -> bool {
        self.create == 0
    }

    pub fn key_value(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: self.create,
            mod_revision: self.at.revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// A version that nobody can ask for once everything before [`Garbage::until`] is compacted away.
#[derive(Debug)]
struct Garbage {
    /// By which revision.
    made: Revision,
    /// It is a deletion. Those are kept at the revision of the compaction itself: a watch may begin there.
    deletion: bool,
    key: Bytes,
    at: At,
}

impl Garbage {
    fn until(&self) -> Revision {
        self.made + Revision::from(self.deletion)
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// What was changed when, since the last compaction.
    log: VecDeque<(At, Bytes)>,
    /// In the order in which it was made.
    garbage: VecDeque<Garbage>,
    /// Of the last change, published or not.
    pub newest: Revision,
    pub published: Revision,
    pub compacted: Revision,
}

impl Index {
    pub fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            garbage: VecDeque::new(),
            newest: FIRST_REVISION,
            published: FIRST_REVISION,
            compacted: 0,
        }
    }

    /// The version of `key` as of `revision`, where there is one.
    pub fn get(&self, key: &[u8], revision: Revision) -> Option<&Version> {
        as_of(self.keys.get(key)?, revision)
    }

    /// In the order of the keys, as of `revision`.
    pub fn range<'a>(
        &'a self,
        keys: &'a Keys,
        revision: Revision,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Version)> {
        let bounds = match keys {
            Keys::One(one) => Some((Bound::Included(one.as_ref()), Bound::Included(one.as_ref()))),
            Keys::Range { from, to } if to.is_empty() => {
                Some((Bound::Included(from.as_ref()), Bound::Unbounded))
            }
            // BTreeMap::range panics where the bounds are turned about.
            Keys::Range { from, to } => (from < to)
                .then_some((Bound::Included(from.as_ref()), Bound::Excluded(to.as_ref()))),
        };
        bounds
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .filter_map(move |(key, versions)| Some((key, as_of(versions, revision)?)))
    }

    /// The change of `key` at `at`, and what was there before.
    pub fn change(&self, key: &[u8], at: At) -> Option<(&Version, Option<&Version>)> {
        let versions = self.keys.get(key)?;
        let n = versions.binary_search_by_key(&at, |v| v.at).ok()?;
        let previous = n.checked_sub(1).map(|n| &versions[n]);
        Some((&versions[n], previous.filter(|v| !v.deleted())))
    }

    /// The changes from revision `from` on, up to what is published.
    pub fn log_from(&self, from: Revision) -> impl Iterator<Item = &(At, Bytes)> {
        let start = self.log.partition_point(|(at, _)| at.revision < from);
        self.log
            .range(start..)
            .take_while(|(at, _)| at.revision <= self.published)
    }

    /// Adds the newest version of `key`.
    pub fn push(&mut self, key: Bytes, version: Version) {
        let at = version.at;
        debug_assert!(self.log.back().is_none_or(|(last, _)| *last < at));
        self.newest = at.revision;
        // Most keys have one version; the default of four would be the most of the index.
        let versions = self
            .keys
            .entry(key.clone())
            .or_insert_with(|| Vec::with_capacity(1));
        if let Some(last) = versions.last().filter(|last| !last.deleted()) {
            self.garbage.push_back(Garbage {
                made: at.revision,
                deletion: false,
                key: key.clone(),
                at: last.at,
            });
        }
        if version.deleted() {
            self.garbage.push_back(Garbage {
                made: at.revision,
                deletion: true,
                key: key.clone(),
                at,
            });
        }
        versions.push(version);
        self.log.push_back((at, key));
    }

    /// Their values have been written.
    pub fn settle(&mut self, key: &[u8], at: At, place: Place) {
        if let Some(versions) = self.keys.get_mut(key)
            && let Ok(n) = versions.binary_search_by_key(&at, |v| v.at)
        {
            versions[n].place = place;
        }
    }

    /// Takes back everything newer than `revision`, which was never published.
    pub fn forget_after(&mut self, revision: Revision) {
        let is_newer = |(at, _): &(At, _)| at.revision > revision;
        while self.log.back().is_some_and(is_newer)
            && let Some((at, key)) = self.log.pop_back()
        {
            if let Some(versions) = self.keys.get_mut(&key) {
                versions.retain(|version| version.at != at);
                if versions.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
        self.garbage.retain(|garbage| garbage.made <= revision);
        self.newest = revision;
    }

    /// Whether a range at `revision` can be answered, and which it is (0: now).
    pub fn readable(&self, revision: Revision, newest: Revision) -> Result<Revision, Error> {
        match revision {
            0 => Ok(newest),
            asked if asked > newest => Err(Error::Future { asked, newest }),
            asked if asked < self.compacted => Err(Error::Compacted {
                asked,
                compacted: self.compacted,
            }),
            asked => Ok(asked),
        }
    }

    pub fn compactable(&self, revision: Revision) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted {
                asked: revision,
                compacted: self.compacted,
            });
        }
        if revision > self.newest {
            return Err(Error::Future {
                asked: revision,
                newest: self.newest,
            });
        }
        Ok(())
    }

    pub fn compact(&mut self, revision: Revision) {
        self.compacted = revision;
        let gone = self.log.partition_point(|(at, _)| at.revision < revision);
        self.log.drain(..gone);
        // It is as long as it ever was.
        if self.log.capacity() > 2 * self.log.len() + 1024 {
            self.log.shrink_to_fit();
        }
    }

    /// Whether there are versions that nobody can ask for any more.
    pub fn has_garbage(&self) -> bool {
        self.garbage
            .front()
            .is_some_and(|garbage| garbage.until() <= self.compacted)
    }

    /// The first `max` of them, which stay until [`Index::swept`].
    pub fn garbage(&self, max: usize) -> Vec<At> {
        self.garbage
            .iter()
            .take_while(|garbage| garbage.until() <= self.compacted)
            .take(max)
            .map(|garbage| garbage.at)
            .collect()
    }

    /// The first `count` of [`Index::garbage`] are gone.
    pub fn swept(&mut self, count: usize) {
        for garbage in self.garbage.drain(..count) {
            if let Some(versions) = self.keys.get_mut(&garbage.key) {
                versions.retain(|version| version.at != garbage.at);
                versions.shrink_to_fit();
                if versions.is_empty() {
                    self.keys.remove(&garbage.key);
                }
            }
        }
    }

    /// The keys as they are now, with the leases they hang on.
    pub fn leased(&self) -> impl Iterator<Item = (&Bytes, LeaseId)> {
        self.keys.iter().filter_map(|(key, versions)| {
            let last = versions.last()?;
            (!last.deleted() && last.lease != 0).then_some((key, last.lease))
        })
    }
}

fn as_of(versions: &[Version], revision: Revision) -> Option<&Version> {
    // Mostly it is the last one.
    let n = versions
        .iter()
        .rposition(|version| version.at.revision <= revision)?;
    Some(&versions[n]).filter(|version| !version.deleted())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(index: &mut Index, key: &'static str, revision: Revision) {
        version(index, key, revision, FIRST_REVISION);
    }

    fn version(index: &mut Index, key: &'static str, revision: Revision, create: Revision) {
        index.push(
            Bytes::from_static(key.as_bytes()),
            Version {
                at: At { revision, sub: 0 },
                create,
                version: 1,
                lease: 0,
                place: Place::Here(Bytes::new()),
            },
        );
        index.published = revision;
    }

    fn keys(index: &Index, revision: Revision) -> Vec<(String, Revision)> {
        index
            .range(&Keys::prefix(""), revision)
            .map(|(key, version)| {
                (
                    String::from_utf8_lossy(key).into_owned(),
                    version.at.revision,
                )
            })
            .collect()
    }

    #[test]
    fn a_compaction_leaves_what_can_still_be_asked_for() {
        let mut index = Index::new();
        put(&mut index, "a", 2);
        put(&mut index, "b", 3);
        put(&mut index, "a", 4);
        version(&mut index, "b", 5, 0);
        put(&mut index, "a", 6);
        for (compacted, left) in [(3, 0), (4, 1), (5, 2), (6, 4)] {
            index.compact(compacted);
            assert_eq!(index.garbage(10).len() as u64, left, "at {compacted}");
        }
        assert_eq!(keys(&index, 6), [("a".to_owned(), 6)]);
        let garbage = index.garbage(2).len();
        index.swept(garbage);
        assert_eq!(keys(&index, 6), [("a".to_owned(), 6)]);
        while index.has_garbage() {
            let garbage = index.garbage(1).len();
            index.swept(garbage);
        }
        assert_eq!(index.keys.len(), 1, "the deleted key is gone");
        assert_eq!(keys(&index, 6), [("a".to_owned(), 6)]);
    }

    #[test]
    fn what_was_never_published_is_taken_back_as_if_it_had_never_been() {
        let mut index = Index::new();
        put(&mut index, "a", 2);
        put(&mut index, "b", 3);
        version(&mut index, "b", 4, 0);
        put(&mut index, "a", 5);
        put(&mut index, "a", 6);
        put(&mut index, "c", 7);
        version(&mut index, "a", 8, 0);
        index.forget_after(4);
        index.published = 4;
        assert_eq!(keys(&index, 9), [("a".to_owned(), 2)]);
        put(&mut index, "a", 5);
        index.compact(5);
        let until: Vec<_> = index
            .garbage
            .iter()
            .map(|g| (g.until(), g.at.revision))
            .collect();
        assert_eq!(until, [(4, 3), (5, 4), (5, 2)]);
    }

    #[test]
    fn bounds_turned_about_are_an_empty_range() {
        let mut index = Index::new();
        put(&mut index, "a", 2);
        let keys = Keys::Range {
            from: Bytes::from_static(b"z"),
            to: Bytes::from_static(b"a"),
        };
        assert_eq!(index.range(&keys, 2).count(), 0);
    }
}
