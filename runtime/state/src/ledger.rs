//! The ledger: each kernel object is written down before it is made and struck off after it is gone.
//!
//! One file an owner, one line an object, in the order of making:
//!
//! ```text
//! berth-ledger 1
//! +netns /run/berth/netns/4f… 1c0ffee5
//! -link berth4f0123456789 9abcdef0
//! ```
//!
//! The first byte is the entry's state, `+` while the object may be there and `-` once it is gone; the last word is the crc32c of what stands
//! between. So striking overwrites one byte of a block that is already there, which needs no space on a full disk (on ext4 and tmpfs; a
//! copy-on-write file system would need some), and the last strike removes the file, which needs none either.
//!
//! There is no fsync: what the ledger names does not outlive the kernel, so the ledger must survive a killed daemon only, and the page
//! cache does that. A line that was cut by it (or by a full disk) was never answered for, so its object was never made: it is passed over by
//! readers and cut off before the next line.
//!
//! # Synchronization
//! Operations on one owner take turns by a lock in the process; one daemon a state directory (see [`crate::Lock`]) is the only writer. Readers
//! in other processes see whole lines, or a cut last line that they pass over.

mod page;

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use page::{HEADER, MAX_BYTES, Page, Scan, content, encode, open};
use serde::{Deserialize, Serialize};

/// Struck lines are left in a file until there are this many and they are the greater part.
const MAX_STRUCK: usize = 32;
/// Owners share this many locks, so that two of them seldom wait for each other.
const LOCKS: usize = 64;
/// Longer owners are refused (ids have 64 bytes).
const MAX_OWNER_BYTES: usize = 200;

/// A kernel object (or a directory that must go with it) that Berth made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum Object {
    /// A shim process, by its socket.
    Shim(PathBuf),
    /// A pinned network namespace.
    Netns(PathBuf),
    /// A mount point.
    Mount(PathBuf),
    /// A cgroup, relative to the root of each hierarchy.
    Cgroup(PathBuf),
    /// A writable snapshot, by its directory.
    Snapshot(PathBuf),
    /// An address lease.
    Lease(IpAddr),
    /// The host's end of a veth pair.
    Link(String),
    Fifo(PathBuf),
    /// A directory of a pod's or a container's own (bundle, logs that we made, …).
    Dir(PathBuf),
    /// An unfinished download or unpack.
    Ingest(PathBuf),
    /// What CNI plugins made for a pod, by the record that DEL needs.
    Cni(PathBuf),
    /// A switch of the host (a file below /proc/sys) that we turned on, and turn off again.
    Sysctl(PathBuf),
}

impl Object {
    /// The kind's word in the ledger and in the audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Shim(_) => "shim",
            Self::Netns(_) => "netns",
            Self::Mount(_) => "mount",
            Self::Cgroup(_) => "cgroup",
            Self::Snapshot(_) => "snapshot",
            Self::Lease(_) => "lease",
            Self::Link(_) => "link",
            Self::Fifo(_) => "fifo",
            Self::Dir(_) => "dir",
            Self::Ingest(_) => "ingest",
            Self::Cni(_) => "cni",
            Self::Sysctl(_) => "sysctl",
        }
    }

    /// The path, address or link name.
    pub fn name(&self) -> OsString {
        match self {
            Self::Shim(path)
            | Self::Netns(path)
            | Self::Mount(path)
            | Self::Cgroup(path)
            | Self::Snapshot(path)
            | Self::Fifo(path)
            | Self::Dir(path)
            | Self::Ingest(path)
            | Self::Cni(path)
            | Self::Sysctl(path) => path.clone().into_os_string(),
            Self::Lease(ip) => ip.to_string().into(),
            Self::Link(name) => name.into(),
        }
    }

    fn from_parts(kind: &str, name: OsString) -> Option<Self> {
        Some(match kind {
            "shim" => Self::Shim(name.into()),
            "netns" => Self::Netns(name.into()),
            "mount" => Self::Mount(name.into()),
            "cgroup" => Self::Cgroup(name.into()),
            "snapshot" => Self::Snapshot(name.into()),
            "lease" => Self::Lease(name.to_str()?.parse().ok()?),
            "link" => Self::Link(name.into_string().ok()?),
            "fifo" => Self::Fifo(name.into()),
            "dir" => Self::Dir(name.into()),
            "ingest" => Self::Ingest(name.into()),
            "cni" => Self::Cni(name.into()),
            "sysctl" => Self::Sysctl(name.into()),
            _ => return None,
        })
    }
}

/// One file an owner (a pod, a container, a pull) under `dir`. Cheap to clone; safe from several threads.
#[derive(Debug, Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    hash: RandomState,
    locks: [Mutex<()>; LOCKS],
}

impl Ledger {
    /// Opens the ledger in `dir`, making it (0700). A damaged file is set aside in `dir/damaged`, not fatal: its whole lines stay in force.
    pub fn open(dir: &Path) -> io::Result<Self> {
        crate::dir::ensure_private(dir)?;
        let ledger = Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                hash: RandomState::new(),
                locks: [const { Mutex::new(()) }; LOCKS],
            }),
        };
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            ledger.mend(&path).map_err(|e| at("mend", &path, e))?;
        }
        Ok(ledger)
    }

    /// Puts a file of the last run in order.
    fn mend(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        if name == "damaged" {
            return Ok(());
        }
        if name.as_bytes().starts_with(b".") {
            return fs::remove_file(path);
        }
        let page = match Page::load(path) {
            Ok(Some(page)) => page,
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                crate::record::quarantine(&self.inner.dir, path, &e.to_string());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        if page.damaged > 0 {
            crate::record::quarantine(
                &self.inner.dir,
                path,
                &format!(
                    "{} lines are damaged; the others stay in force",
                    page.damaged
                ),
            );
            return page.rewrite(path);
        }
        match page.held.is_empty() {
            false => Ok(()),
            true => fs::remove_file(path),
        }
    }

    /// Writes down that `owner` is about to make `object`. Idempotent. On an error nothing is written down: don't make the object.
    pub fn intend(&self, owner: &str, object: &Object) -> io::Result<()> {
        let path = self.path(owner)?;
        let _turn = self.turn(owner);
        self.append(&path, object)
            .map_err(|e| at("write down an object in", &path, e))
    }

    fn append(&self, path: &Path, object: &Object) -> io::Result<()> {
        let mut line = Vec::with_capacity(192);
        encode(object, &mut line);
        let file = open(
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .mode(0o600),
            path,
        )?;
        let scan = Scan::of(&content(&file)?, &line)?;
        if scan.found.is_some() {
            return Ok(());
        }
        // On a full disk the old file goes on being good.
        if scan.struck > MAX_STRUCK.max(scan.held)
            && let Some(page) = Page::load(path)?
            && page.damaged == 0
            && page.rewrite(path).is_ok()
        {
            return self.append(path, object);
        }
        if scan.end > MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("more than {MAX_BYTES} bytes"),
            ));
        }
        if scan.torn {
            file.set_len(scan.end)?;
        }
        if scan.end == 0 {
            line.splice(0..0, HEADER.iter().copied());
        }
        file.write_all_at(&line, scan.end).inspect_err(|_| {
            // A cut line would be passed over; cutting it off just gives its space back.
            let _ = if scan.end == 0 {
                fs::remove_file(path)
            } else {
                file.set_len(scan.end)
            };
        })
    }

    /// Strikes `object` off: it is gone. Idempotent. The owner's file goes with its last entry. Works on a full disk.
    pub fn strike(&self, owner: &str, object: &Object) -> io::Result<()> {
        let path = self.path(owner)?;
        let _turn = self.turn(owner);
        (|| {
            let file = match open(OpenOptions::new().read(true).write(true), &path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            let mut line = Vec::with_capacity(192);
            encode(object, &mut line);
            let scan = Scan::of(&content(&file)?, &line)?;
            match scan.found {
                None => Ok(()),
                Some(_) if scan.held == 1 => fs::remove_file(&path),
                Some(offset) => file.write_all_at(b"-", offset),
            }
        })()
        .map_err(|e| at("strike off an object in", &path, e))
    }

    /// What `owner` still has, in the order of making.
    pub fn outstanding(&self, owner: &str) -> io::Result<Vec<Object>> {
        let path = self.path(owner)?;
        let _turn = self.turn(owner);
        let page = Page::load(&path)
            .map_err(|e| at("read", &path, e))?
            .unwrap_or_default();
        Ok(page.held)
    }

    /// Who has anything outstanding, sorted.
    pub fn owners(&self) -> io::Result<Vec<String>> {
        Ok(read_all(&self.inner.dir)?
            .entries
            .into_iter()
            .map(|(owner, _)| owner)
            .collect())
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    fn path(&self, owner: &str) -> io::Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        if owner.is_empty()
            || owner.len() > MAX_OWNER_BYTES
            || owner.starts_with('.')
            || owner == "damaged"
            || !owner.bytes().all(plain)
        {
            let shown: String = owner.chars().take(80).collect();
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{shown:?} can't own a ledger entry: letters, digits and -_.: only, at most {MAX_OWNER_BYTES} bytes"
                ),
            ));
        }
        Ok(self.inner.dir.join(owner))
    }

    fn turn(&self, owner: &str) -> MutexGuard<'_, ()> {
        let lock = self.inner.hash.hash_one(owner) as usize % LOCKS;
        // The lock guards no memory: a thread that panicked left the file as a kill would have.
        self.inner.locks[lock]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn at(what: &str, path: &Path, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        // Callers look at the errno (ENOSPC), so it must stay on top.
        Some(_) => {
            tracing::debug!(%error, path = %path.display(), "could not {what} the ledger");
            error
        }
        None => io::Error::new(
            error.kind(),
            format!("{what} the ledger {}: {error}", path.display()),
        ),
    }
}

/// The ledger as a process that only looks sees it.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Owners with what they have outstanding, sorted.
    pub entries: Vec<(String, Vec<Object>)>,
    /// Files that could not be read or held damaged lines, with the reason.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Reads every owner's file below `dir` and changes nothing. No directory is an empty ledger.
pub(crate) fn read_all(dir: &Path) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let files = match fs::read_dir(dir) {
        Ok(files) => files,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(snapshot),
        Err(e) => return Err(e),
    };
    for file in files {
        let path = file?.path();
        let Some(owner) = path.file_name().and_then(OsStr::to_str) else {
            snapshot
                .damaged
                .push((path, "its name is not UTF-8".into()));
            continue;
        };
        if owner == "damaged" || owner.starts_with('.') {
            continue;
        }
        match Page::load(&path) {
            Ok(None) => {}
            Ok(Some(page)) => {
                if page.damaged > 0 {
                    snapshot
                        .damaged
                        .push((path.clone(), format!("{} damaged lines", page.damaged)));
                }
                if !page.held.is_empty() {
                    snapshot.entries.push((owner.to_owned(), page.held));
                }
            }
            Err(e) => snapshot.damaged.push((path, e.to_string())),
        }
    }
    snapshot.entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        os::unix::{ffi::OsStringExt, fs::PermissionsExt},
        time::Instant,
    };

    use nix::libc;

    use proptest::prelude::*;

    use super::*;

    fn every_kind() -> Vec<Object> {
        let odd = PathBuf::from(OsString::from_vec(
            b"/run/a b/%41/\n\xff\x00/\xc3\xbc".to_vec(),
        ));
        vec![
            Object::Shim("/run/berth/s/0123456789abcdef".into()),
            Object::Netns(odd.clone()),
            Object::Mount("/run/berth/pods/x/shm".into()),
            Object::Cgroup("berth-pods/x".into()),
            Object::Snapshot(odd),
            Object::Lease("10.88.0.2".parse().unwrap()),
            Object::Lease("fd00::2".parse().unwrap()),
            Object::Link("berth0123456789".into()),
            Object::Fifo("".into()),
            Object::Dir("/".into()),
            Object::Ingest("ingest/1".into()),
            Object::Cni("/var/lib/berth/cni/x.json".into()),
        ]
    }

    #[test]
    fn every_kind_of_object_is_kept_in_order_until_it_is_struck_and_the_file_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let objects = every_kind();
        for object in objects.iter().chain(&objects) {
            ledger.intend("a", object).unwrap();
        }
        assert_eq!(
            fs::metadata(dir.path().join("a"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        assert_eq!(
            Ledger::open(dir.path()).unwrap().outstanding("a").unwrap(),
            objects
        );
        for (n, object) in objects.iter().enumerate() {
            assert_eq!(ledger.outstanding("a").unwrap(), objects[n..]);
            assert_eq!(ledger.owners().unwrap(), ["a"]);
            ledger.strike("a", object).unwrap();
            ledger.strike("a", object).unwrap();
        }
        assert!(!dir.path().join("a").exists());
        assert!(ledger.owners().unwrap().is_empty());
        assert!(ledger.outstanding("a").unwrap().is_empty());
    }

    #[test]
    fn owners_that_are_paths_are_refused_sec_cri_09() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let object = Object::Dir("/x".into());
        for owner in [
            "",
            "..",
            ".a",
            "a/b",
            "a\0",
            "a b",
            "ü",
            "damaged",
            &"x".repeat(1 << 20),
        ] {
            assert_eq!(
                ledger.intend(owner, &object).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                ledger.strike(owner, &object).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                ledger.outstanding(owner).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_cut_at_any_byte_keeps_its_whole_lines_and_takes_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let ledger = Ledger::open(dir.path()).unwrap();
        let objects = every_kind();
        for object in &objects {
            ledger.intend("a", object).unwrap();
        }
        let whole = fs::read(&file).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&file, &whole[..cut]).unwrap();
            let lines = whole[..cut]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
                .saturating_sub(1);
            assert_eq!(
                ledger.outstanding("a").unwrap(),
                objects[..lines],
                "cut at {cut}"
            );
            let next = Object::Dir("/next".into());
            ledger.intend("a", &next).unwrap();
            let reopened = Ledger::open(dir.path()).unwrap().outstanding("a").unwrap();
            assert_eq!(
                reopened,
                [&objects[..lines], &[next]].concat(),
                "cut at {cut}"
            );
            assert!(!dir.path().join("damaged").exists(), "a cut is no damage");
        }
    }

    #[test]
    fn damage_in_the_middle_costs_that_line_alone_and_a_foreign_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let objects = every_kind();
        for object in &objects {
            ledger.intend("a", object).unwrap();
        }
        let mut content = fs::read(dir.path().join("a")).unwrap();
        let second_line = content
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'\n')
            .nth(1)
            .unwrap()
            .0;
        content[second_line + 9] ^= 1;
        fs::write(dir.path().join("a"), &content).unwrap();
        fs::write(dir.path().join("foreign"), "#!/bin/sh\n").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();

        let seen = read_all(dir.path()).unwrap();
        assert_eq!(seen.entries.len(), 1);
        assert_eq!(seen.damaged.len(), 3, "{:?}", seen.damaged);

        let ledger = Ledger::open(dir.path()).unwrap();
        let mut rest = objects.clone();
        rest.remove(1);
        assert_eq!(ledger.outstanding("a").unwrap(), rest);
        assert_eq!(ledger.owners().unwrap(), ["a"]);
        let mut damaged: Vec<_> = fs::read_dir(dir.path().join("damaged"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        damaged.sort();
        assert_eq!(damaged, ["a", "directory", "foreign"]);
        assert!(read_all(dir.path()).unwrap().damaged.is_empty());
    }

    #[test]
    fn a_full_disk_refuses_new_entries_whole_and_lets_every_entry_be_struck() {
        let disk = crate::tests::full_disk::small_tmpfs(64 << 10);
        let dir = disk.path().join("ledger");
        let ledger = Ledger::open(&dir).unwrap();
        let objects: Vec<_> = (0..50)
            .map(|n| Object::Dir(format!("/var/{n}").into()))
            .collect();
        for object in &objects {
            ledger.intend("a", object).unwrap();
        }
        disk.fill();
        let long = Object::Dir(format!("/{}", "x".repeat(8000)).into());
        assert_eq!(
            ledger.intend("a", &long).unwrap_err().raw_os_error(),
            Some(libc::ENOSPC)
        );
        assert_eq!(
            ledger.intend("new", &long).unwrap_err().raw_os_error(),
            Some(libc::ENOSPC)
        );
        assert_eq!(ledger.outstanding("a").unwrap(), objects);
        assert_eq!(ledger.owners().unwrap(), ["a"]);
        assert!(!dir.join("new").exists());
        for object in &objects {
            ledger.strike("a", object).unwrap();
        }
        assert!(ledger.owners().unwrap().is_empty());
        assert!(!dir.join("a").exists());
    }

    #[test]
    fn an_owner_that_never_ends_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let stays = Object::Link("berth0".into());
        ledger.intend("network", &stays).unwrap();
        for n in 0..2000 {
            let object = Object::Ingest(format!("/ingest/{n}").into());
            ledger.intend("network", &object).unwrap();
            ledger.strike("network", &object).unwrap();
        }
        assert_eq!(ledger.outstanding("network").unwrap(), [stays]);
        assert!(fs::metadata(dir.path().join("network")).unwrap().len() < 8192);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn owners_work_side_by_side_and_one_owner_from_many_threads() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let ledger = ledger.clone();
                scope.spawn(move || {
                    for n in 0..100 {
                        for owner in [format!("own{thread}"), "shared".into()] {
                            let object = Object::Dir(format!("/{thread}/{n}").into());
                            ledger.intend(&owner, &object).unwrap();
                            if n % 3 != 0 {
                                ledger.strike(&owner, &object).unwrap();
                            }
                        }
                    }
                });
            }
        });
        let reopened = Ledger::open(dir.path()).unwrap();
        assert_eq!(reopened.outstanding("shared").unwrap().len(), 8 * 34);
        for thread in 0..8 {
            assert_eq!(
                reopened.outstanding(&format!("own{thread}")).unwrap().len(),
                34
            );
        }
    }

    #[test]
    fn entries_are_cheap() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let objects: Vec<_> = (0..20)
            .map(|n| {
                Object::Mount(format!("/run/berth/pods/{}/containers/{n}", "4f".repeat(32)).into())
            })
            .collect();
        let rounds = 100;
        let start = Instant::now();
        for _ in 0..rounds {
            for object in &objects {
                ledger.intend("a", object).unwrap();
            }
            for object in &objects {
                ledger.strike("a", object).unwrap();
            }
        }
        let each = start.elapsed() / (rounds * objects.len() as u32 * 2);
        println!("{each:?} an entry (aim: 20 µs in a release build)");
    }

    proptest! {
        /// Operations with reopening and cut tails (a killed writer, a full disk) give what a map gives.
        #[test]
        fn any_sequence_of_operations_equals_a_model(ops in proptest::collection::vec((0u8..4, 0u8..3, 0u8..6, 1usize..30), 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let mut ledger = Ledger::open(dir.path()).unwrap();
            let mut model: BTreeMap<String, Vec<Object>> = BTreeMap::new();
            for (op, owner, object, bytes) in ops {
                let owner = format!("o{owner}");
                let object = every_kind().swap_remove(object as usize);
                let held = model.entry(owner.clone()).or_default();
                match op {
                    0 => {
                        ledger.intend(&owner, &object).unwrap();
                        if !held.contains(&object) {
                            held.push(object);
                        }
                    }
                    1 => {
                        ledger.strike(&owner, &object).unwrap();
                        held.retain(|o| *o != object);
                    }
                    2 => ledger = Ledger::open(dir.path()).unwrap(),
                    _ => {
                        // A line that was being written when the writer died.
                        let mut line = Vec::new();
                        encode(&object, &mut line);
                        let path = dir.path().join(&owner);
                        let mut content = fs::read(&path).unwrap_or_else(|_| HEADER.to_vec());
                        if content.ends_with(b"\n") {
                            content.extend_from_slice(&line[..bytes.min(line.len() - 1)]);
                            fs::write(&path, content).unwrap();
                        }
                    }
                }
                for (owner, held) in &model {
                    prop_assert_eq!(&ledger.outstanding(owner).unwrap(), held);
                }
                let owners: Vec<String> = model.iter().filter(|(_, held)| !held.is_empty()).map(|(owner, _)| owner.clone()).collect();
                prop_assert_eq!(ledger.owners().unwrap(), owners);
            }
        }
    }
}
