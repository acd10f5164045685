//! What is where on the disk: three trees of one database.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `index` | revision, number within it (big endian) | what was changed: create revision (0: deleted), version, lease, length and CRC-32C of the value, the key |
//! | `values` | the same | the value, where it isn't empty |
//! | `state` | `format`; `compacted`; `lease/` and its id | 1; a revision; its TTL in seconds |
//! | | `boot`; `begins` | in which of the machine's boots it was written; after which revision it goes on there, if in another than before |
//!
//! Both large trees grow at their end only, so that the merging below moves whole tables and rewrites few. A start reads `index` and never
//! `values`.

use std::path::Path;

use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, LsmError, OwnedWriteBatch, PersistMode, Readable,
};

use super::{broken, is_of_contents, versions};
use crate::{
    Error, LeaseId, Revision,
    core::{Backing, Change, Values},
    index::{At, Place, Version},
};

/// The only one there is.
const FORMAT: u64 = 1;

/// Blocks that were read and may be read again. Small: the API server keeps what it serves.
const CACHE_BYTES: u64 = 4 << 20;
/// What waits in memory, and in the log, to become a table.
const VALUES_BYTES: u64 = 8 << 20;
const INDEX_BYTES: u64 = 2 << 20;
/// fjall makes each log file 64 MiB long (of holes); more than two don't help.
const LOGS_BYTES: u64 = 128 << 20;

#[derive(Clone)]
pub(super) struct Disk {
    database: Database,
    index: Keyspace,
    values: Keyspace,
    state: Keyspace,
}

/// What is found at a start.
pub(super) struct Found {
    pub compacted: Revision,
    /// What comes next is newer than this.
    pub begins: Revision,
    pub boot: Option<Bytes>,
    pub leases: Vec<(LeaseId, u64)>,
}

impl Disk {
    /// `boot`: the machine's, for a store that is made now.
    pub fn open(directory: &Path, boot: &str) -> Result<Self, Error> {
        let path = directory.join("db");
        let failed = |e: fjall::Error| match e {
            fjall::Error::Locked => broken("open the store", "another process has it"),
            e => unread("open the store", &path.display().to_string(), e),
        };
        versions::check(&path)?;
        let database = Database::builder(&path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(LOGS_BYTES)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let tree = |name, bytes| {
            database
                .keyspace(name, || {
                    KeyspaceCreateOptions::default()
                        .max_memtable_size(bytes)
                        // What is asked for is there.
                        .expect_point_read_hits(true)
                })
                .map_err(failed)
        };
        let disk = Self {
            index: tree("index", INDEX_BYTES)?,
            values: tree("values", VALUES_BYTES)?,
            state: tree("state", INDEX_BYTES)?,
            database: database.clone(),
        };
        disk.check_format(&path, boot)?;
        Ok(disk)
    }

    fn check_format(&self, path: &Path, boot: &str) -> Result<(), Error> {
        match self.number(b"format")? {
            Some(FORMAT) => Ok(()),
            Some(other) => Err(broken(
                "open the store",
                format!(
                    "{} has format {other}, this program knows {FORMAT}",
                    path.display()
                ),
            )),
            None if self.index.is_empty().map_err(read)? => {
                let mut batch = self
                    .database
                    .batch()
                    .durability(Some(PersistMode::SyncData));
                batch.insert(&self.state, *b"format", FORMAT.to_le_bytes());
                batch.insert(&self.state, *b"boot", boot);
                batch.commit().map_err(written)
            }
            None => Err(Error::Corrupt {
                what: path.display().to_string(),
                why: "it doesn't say its format".to_owned(),
            }),
        }
    }

    fn number(&self, key: &[u8]) -> Result<Option<u64>, Error> {
        let Some(value) = self.state.get(key).map_err(read)? else {
            return Ok(None);
        };
        Ok(Some(number(&value, || text(key))?))
    }

    fn boot(&self) -> Result<Option<Bytes>, Error> {
        let boot = self.state.get(b"boot").map_err(read)?;
        Ok(boot.map(|boot| Bytes::copy_from_slice(&boot)))
    }

    pub fn found(&self) -> Result<Found, Error> {
        let compacted = self.number(b"compacted")?.unwrap_or(0);
        let mut leases = Vec::new();
        for lease in self.state.prefix(b"lease/") {
            let (key, value) = lease.into_inner().map_err(read)?;
            let id = key
                .strip_prefix(b"lease/")
                .and_then(|id| <[u8; 8]>::try_from(id).ok())
                .map(LeaseId::from_be_bytes)
                .ok_or_else(|| damaged(text(&key), "it is no lease's id"))?;
            leases.push((id, number(&value, || text(&key))?));
        }
        Ok(Found {
            compacted,
            begins: self.number(b"begins")?.unwrap_or(0),
            boot: self.boot()?,
            leases,
        })
    }

    /// Every version, in the order of the revisions.
    pub fn versions(&self) -> impl Iterator<Item = Result<(Bytes, Version), Error>> {
        self.index.iter().map(|record| {
            let (at, value) = record.into_inner().map_err(read)?;
            decode(&at, &value)
                .ok_or_else(|| damaged(format!("record {}", text(&at)), "it can't be read"))
        })
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            disk: self,
            batch: self.database.batch(),
            bytes: 0,
        }
    }

    /// Everything written so far is on the disk.
    pub fn sync(&self) -> Result<(), Error> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(written)
    }

    pub fn size(&self) -> Result<u64, Error> {
        self.database.disk_space().map_err(read)
    }
}

impl Backing for Disk {
    fn values(&self) -> Box<dyn Values> {
        Box::new(Snapshot {
            snapshot: self.database.snapshot(),
            values: self.values.clone(),
        })
    }
}

struct Snapshot {
    snapshot: fjall::Snapshot,
    values: Keyspace,
}

impl Values for Snapshot {
    fn get(&self, at: At, len: u32, crc: u32) -> Result<Option<Bytes>, Error> {
        let Some(value) = self.snapshot.get(&self.values, key(at)).map_err(read)? else {
            return Ok(None);
        };
        if value.len() != len as usize || crc32c::crc32c(&value) != crc {
            return Err(damaged(
                format!("the value of revision {}", at.revision),
                "its checksum is another",
            ));
        }
        // A copy: a part of a block would keep the whole of it in memory.
        Ok(Some(Bytes::copy_from_slice(&value)))
    }
}

/// What is written at once: all of it or nothing.
pub(super) struct Batch<'a> {
    disk: &'a Disk,
    batch: OwnedWriteBatch,
    pub bytes: usize,
}

impl Batch<'_> {
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub fn change(&mut self, change: &Change) {
        let kv = &change.event.kv;
        let record = encode(&change.version, &kv.key, &kv.value);
        self.bytes += record.len() + kv.value.len();
        self.batch.insert(&self.disk.index, key(change.at), record);
        if !kv.value.is_empty() {
            self.batch
                .insert(&self.disk.values, key(change.at), &kv.value[..]);
        }
    }

    pub fn forget(&mut self, at: At) {
        self.batch.remove(&self.disk.index, key(at));
        self.batch.remove(&self.disk.values, key(at));
    }

    pub fn compacted(&mut self, revision: Revision) {
        self.batch
            .insert(&self.disk.state, *b"compacted", revision.to_le_bytes());
    }

    /// From now on it is written in this boot, after `revision`; of what was before, only what is now can be asked for.
    pub fn begins(&mut self, revision: Revision, boot: &str) {
        self.compacted(revision);
        self.batch
            .insert(&self.disk.state, *b"begins", revision.to_le_bytes());
        self.batch.insert(&self.disk.state, *b"boot", boot);
    }

    pub fn granted(&mut self, id: LeaseId, ttl: u64) {
        self.batch
            .insert(&self.disk.state, lease(id), ttl.to_le_bytes());
    }

    pub fn revoked(&mut self, id: LeaseId) {
        self.batch.remove(&self.disk.state, lease(id));
    }

    /// Unless `synced`, it has only left the process.
    pub fn commit(self, synced: bool) -> Result<(), Error> {
        let mode = match synced {
            true => PersistMode::SyncData,
            false => PersistMode::Buffer,
        };
        self.batch.durability(Some(mode)).commit().map_err(written)
    }
}

/// Where the value of a change is once it is written.
pub(super) fn settled(value: &[u8]) -> Place {
    Place::Disk {
        len: value.len() as u32,
        crc: crc32c::crc32c(value),
    }
}

fn key(at: At) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&at.revision.to_be_bytes());
    key[8..].copy_from_slice(&at.sub.to_be_bytes());
    key
}

fn lease(id: LeaseId) -> Vec<u8> {
    [b"lease/", &id.to_be_bytes()[..]].concat()
}

/// Numbers in seven bits a byte, the lowest first: most are small.
fn encode(version: &Version, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(24 + key.len());
    let age = version.at.revision - version.create;
    for number in [
        if version.deleted() { 0 } else { age + 1 },
        version.version,
        version.lease,
        value.len() as u64,
    ] {
        let mut rest = number;
        while rest >= 0x80 {
            record.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        record.push(rest as u8);
    }
    record.extend(crc32c::crc32c(value).to_le_bytes());
    record.extend(key);
    record
}

fn decode(at: &[u8], record: &[u8]) -> Option<(Bytes, Version)> {
    let at: [u8; 12] = at.try_into().ok()?;
    let revision = Revision::from_be_bytes(at[..8].try_into().ok()?);
    let sub = u32::from_be_bytes(at[8..].try_into().ok()?);
    let mut rest = record;
    let mut number = || {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, left) = rest.split_first()?;
            rest = left;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    };
    let (age, version, lease, len) = (number()?, number()?, number()?, number()?);
    let (crc, key) = rest.split_first_chunk::<4>()?;
    let create = match age {
        0 => 0,
        age => revision.checked_sub(age - 1)?,
    };
    let version = Version {
        at: At { revision, sub },
        create,
        version,
        lease,
        place: Place::Disk {
            len: u32::try_from(len).ok()?,
            crc: u32::from_le_bytes(*crc),
        },
    };
    Some((Bytes::copy_from_slice(key), version))
}

fn number(value: &[u8], what: impl FnOnce() -> String) -> Result<u64, Error> {
    Ok(u64::from_le_bytes(value.try_into().map_err(|_| {
        damaged(what(), "it is no number of eight bytes")
    })?))
}

fn text(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

fn damaged(what: String, why: &str) -> Error {
    Error::Corrupt {
        what,
        why: why.to_owned(),
    }
}

/// A disk that is full or may not be read is no damage: whoever removed the store for it would lose all that is in it.
fn unread(act: &'static str, what: &str, e: fjall::Error) -> Error {
    match e {
        fjall::Error::Io(e) => broken(act, format!("{what}: {e}")),
        fjall::Error::Storage(LsmError::Io(e)) if !is_of_contents(&e) => {
            broken(act, format!("{what}: {e}"))
        }
        e => damaged(what.to_owned(), &e.to_string()),
    }
}

fn read(e: fjall::Error) -> Error {
    unread("read the store", "the store", e)
}

fn written(e: fjall::Error) -> Error {
    match e {
        fjall::Error::Io(e) | fjall::Error::Storage(LsmError::Io(e)) => {
            broken("write to the store", e)
        }
        e => broken("write to the store", e),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_no_damage_and_a_file_that_ends_too_early_is() {
        let storage = |kind: io::ErrorKind| fjall::Error::Storage(LsmError::Io(kind.into()));
        for kind in [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::ReadOnlyFilesystem,
        ] {
            let said = unread("open the store", "/db", storage(kind));
            assert!(matches!(said, Error::Broken { .. }), "{said}");
            assert!(said.to_string().contains("/db: "), "{said}");
        }
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof] {
            let said = unread("open the store", "/db", storage(kind));
            assert!(matches!(said, Error::Corrupt { .. }), "{said}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for (create, version, lease, revision) in [
            (1, 1, 0, 1),
            (7, 300, u64::MAX >> 1, 70_000),
            (0, 0, 0, 9),
            (u64::MAX, 1, 1, u64::MAX),
        ] {
            let written = Version {
                at: At { revision, sub: 3 },
                create,
                version,
                lease,
                place: settled(b"value"),
            };
            let record = encode(&written, b"/registry/pods/a", b"value");
            let (name, found) = decode(&key(written.at), &record).unwrap();
            assert_eq!(name, "/registry/pods/a");
            assert_eq!(format!("{found:?}"), format!("{written:?}"));
        }
    }

    #[test]
    fn a_record_cut_anywhere_before_its_key_is_no_record() {
        let version = Version {
            at: At {
                revision: 1 << 40,
                sub: 0,
            },
            create: 1,
            version: 1 << 20,
            lease: 1 << 60,
            place: settled(b"v"),
        };
        let record = encode(&version, b"k", b"v");
        for len in 0..record.len() - 1 {
            assert!(decode(&key(version.at), &record[..len]).is_none(), "{len}");
        }
        assert!(decode(b"short", &record).is_none());
        assert!(decode(&key(version.at), &[0xff; 64]).is_none());
    }
}
