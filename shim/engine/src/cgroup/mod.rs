//! One interface over cgroup v1 and v2, and over who makes them: we ourselves in the file system, or systemd.
//!
//! - `hierarchy`: which hierarchies this machine has, found once
//! - `devices`: v2's device rules
//! - `limits`: what an OCI resource becomes, as a list of files and values
//! - `oom`: word of a cgroup that runs out of memory
//! - `systemd`: the systemd driver: scopes and slices instead of directories
//! - `stats`: the figures that the kubelet asks for; `block_io` those of block devices, `pressure` those of stalls
//!
//! A [`Cgroup`] is a path from the root of the hierarchies, and exists in every one of them under the same path, the named and
//! the controller-less ones too: whoever audits the machine finds all that is ours by walking any of them. A machine with both
//! (hybrid) counts as v1: its controllers are there.
//!
//! The files are read and written directly. cgroups-rs 0.5 was weighed and left out: each `Cgroup::load` parses mountinfo
//! again and opens every controller, its v1 `memory.swap` fails where there is no swap accounting, and it brings a D-Bus client
//! (zbus, with its own executor threads) into a shim that is to be small and, before its runtime starts, single-threaded.
//!
//! A path in systemd's form (`slice:prefix:name`, which containerd's CRI makes of every parent in `.slice`) is the cgroup that systemd would
//! make of it: made without systemd by [`Cgroup::at`], and as a unit by [`Cgroup::by_systemd`].

mod block_io;
mod devices;
mod hierarchy;
mod limits;
mod oom;
mod pressure;
mod stats;
mod systemd;

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use berth_kernel::pidfd;
use berth_systemd::Started;
use oci_spec::runtime::LinuxResources;

pub use block_io::DeviceIo;
pub(crate) use hierarchy::unescape;
use hierarchy::{Hierarchies, Hierarchy};
pub use oom::OOM_BUFFER_BYTES;
pub use pressure::{Pressure, Stall};
pub use stats::{HugePages, Limited, Stats};

/// How long [`Cgroup::kill`] keeps killing: an uninterruptible process (NFS, a dying disk) can outlast any bound, and the
/// caller must hear of it.
const KILL_FOR: Duration = Duration::from_secs(5);

/// How long [`Cgroup::pause`] waits: a process in an uninterruptible wait freezes only after it.
const PAUSE_FOR: Duration = Duration::from_secs(5);

/// How long a freezer may take before killing goes on without it.
const FREEZE_FOR: Duration = Duration::from_millis(100);

/// How long [`Cgroup::remove`] retries: the kernel answers EBUSY for a moment after the last process is gone.
const REMOVE_FOR: Duration = Duration::from_secs(2);

/// First and longest wait between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

/// The longest cgroup path; a component may have 255 bytes, as in any file system.
const MAX_PATH_BYTES: usize = 3072;

/// How deep a walk below a cgroup goes: a container may make cgroups of its own, and must not be able to exhaust our stack.
const MAX_DEPTH: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cgroup path {path:?}: {reason}")]
    Path { path: String, reason: &'static str },
    #[error("{step} {path}: {source}")]
    Io {
        step: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("no cgroup hierarchy is mounted on this machine")]
    NoHierarchy,
    #[error("cgroup {path} still has {procs} processes after {waited_ms} ms of SIGKILL")]
    Busy {
        path: String,
        procs: usize,
        waited_ms: u64,
    },
    #[error(
        "cgroup {path} was not frozen after {waited_ms} ms: a process of it waits in the kernel, uninterruptible"
    )]
    Unfrozen { path: String, waited_ms: u64 },
    /// The systemd driver: what systemd, D-Bus or this machine had against it.
    #[error("cgroup {path}: {reason}")]
    Systemd { path: String, reason: String },
    #[error("cgroup {path}: {what} limits are not built")]
    Unsupported { path: String, what: &'static str },
    #[error("set {file} of cgroup {path} to {value:?}: {source}")]
    Limit {
        path: String,
        file: String,
        value: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.display().to_string();
        move |source| Error::Io { step, path, source }
    }
}

/// A cgroup by its path from the root of the hierarchies (`/kubepods/pod1/c1`), in every hierarchy of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
    /// systemd's, as the unit that the path ends with.
    is_unit: bool,
}

impl Cgroup {
    /// Names a cgroup; makes nothing. The path must be absolute and not the root, without `..`, NUL or empty components; or of systemd's
    /// form, `slice:prefix:name`.
    pub fn at(path: &str) -> Result<Cgroup, Error> {
        if !path.starts_with('/')
            && let Some(path) = systemd::path_of(path)
        {
            return Cgroup::at(&path);
        }
        let refuse = |reason| {
            let path: String = path.chars().take(256).collect();
            Err(Error::Path { path, reason })
        };
        if path.len() > MAX_PATH_BYTES {
            return refuse("longer than 3072 bytes");
        }
        let Some(relative) = path.strip_prefix('/') else {
            return refuse("must be absolute, as /parent/name, or slice:prefix:name");
        };
        for component in relative.split('/') {
            match component {
                "" => return refuse("has an empty component"),
                "." | ".." => return refuse("has a . or .. component"),
                c if c.len() > 255 => return refuse("has a component longer than 255 bytes"),
                c if c.bytes().any(|b| b.is_ascii_control()) => {
                    return refuse("has a control character");
                }
                // The kernel's own files of a cgroup live in the same directory.
                c if c.starts_with("cgroup.") => {
                    return refuse("has a component that starts with cgroup.");
                }
                _ => {}
            }
        }
        Ok(Cgroup {
            path: path.to_owned(),
            is_unit: false,
        })
    }

    /// Names a cgroup that systemd makes: `slice:prefix:name`, or the path of a slice or scope. It needs cgroup v2 and systemd as PID 1, which
    /// whatever makes or changes it asks for.
    pub fn by_systemd(path: &str) -> Result<Cgroup, Error> {
        let cgroup = Cgroup::at(path)?;
        if berth_systemd::name::unit_of(&cgroup.path).is_none() {
            return Err(Error::Path {
                path: cgroup.path,
                reason: "is no unit of systemd; with the systemd driver it must be slice:prefix:name",
            });
        }
        Ok(Cgroup {
            is_unit: true,
            ..cgroup
        })
    }

    /// [`Cgroup::by_systemd`] or [`Cgroup::at`].
    pub fn by(systemd: bool, path: &str) -> Result<Cgroup, Error> {
        match systemd {
            true => Cgroup::by_systemd(path),
            false => Cgroup::at(path),
        }
    }

    /// It is a unit: its directory goes when systemd likes.
    pub fn is_by_systemd(&self) -> bool {
        self.is_unit
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn unit(&self) -> Option<&str> {
        self.is_unit.then(|| self.name())
    }

    /// The one above it; none: it is right below the root.
    pub fn parent(&self) -> Option<Cgroup> {
        let (above, _) = self.path.rsplit_once('/')?;
        (!above.is_empty()).then(|| Cgroup {
            path: above.to_owned(),
            is_unit: self.is_unit,
        })
    }

    /// The path from the root of the hierarchies.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directories, one a hierarchy.
    pub fn directories(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(Hierarchies::of_this_machine()?
            .all()
            .map(|h| h.directory(&self.path))
            .collect())
    }

    /// Whether this machine's controllers are v2's.
    pub fn is_unified(&self) -> bool {
        Hierarchies::of_this_machine().is_ok_and(|hierarchies| hierarchies.v2().is_some())
    }

    /// On a v1 machine its directory in each hierarchy, with the name under which /sys/fs/cgroup has that hierarchy.
    pub(crate) fn v1_places(&self) -> Result<Option<Vec<(String, PathBuf)>>, Error> {
        let hierarchies = Hierarchies::of_this_machine()?;
        if hierarchies.v2().is_some() {
            return Ok(None);
        }
        let v1 = hierarchies.all().filter(|h| !h.is_any_v2());
        Ok(Some(
            v1.map(|h| (h.name(), h.directory(&self.path))).collect(),
        ))
    }

    /// Makes a container's, limited, and answers as [`Cgroup::apply`]. By systemd the calling process is in it afterwards, and has to stay until another
    /// is: it is the worker that makes the container.
    pub fn make(&self, resources: Option<&LinuxResources>) -> Result<Vec<String>, Error> {
        if let Some(unit) = self.unit() {
            systemd::start_scope(self, unit, resources)?;
        }
        // What systemd has made lacks the controllers that it does not know.
        self.create()?;
        resources.map_or_else(|| Ok(Vec::new()), |resources| self.apply(resources))
    }

    /// Makes a pod's where it is missing, and changes its limits: all of them, or none.
    pub fn ensure(&self, resources: &LinuxResources) -> Result<Vec<String>, Error> {
        let started = match self.unit() {
            None => Started::Exists,
            Some(unit) => systemd::start_slice(self, unit, resources)?,
        };
        self.create()?;
        match started {
            Started::Started => self.apply(resources),
            Started::Exists => self.change(resources),
        }
    }

    /// Makes it, and what is missing above it, in every hierarchy. Idempotent. On an error nothing is undone: [`Cgroup::remove`].
    pub fn create(&self) -> Result<(), Error> {
        for hierarchy in Hierarchies::of_this_machine()?.all() {
            hierarchy.create(&self.path)?;
        }
        Ok(())
    }

    /// Writes limits; what is not named stays. Answers a note for each that this machine has no controller for and that does
    /// not weaken anyone's limit (hugepages, a swap limit without swap accounting).
    pub fn apply(&self, resources: &LinuxResources) -> Result<Vec<String>, Error> {
        limits::apply(self, Hierarchies::of_this_machine()?, resources)
    }

    /// [`Cgroup::apply`] to a cgroup in use: where one limit is refused, those that were written before it are put back.
    pub fn change(&self, resources: &LinuxResources) -> Result<Vec<String>, Error> {
        let tell = || match self.unit() {
            None => Ok(()),
            Some(unit) => systemd::change(self, unit, resources),
        };
        limits::change(self, Hierarchies::of_this_machine()?, resources, tell)
    }

    /// Moves a process in, in every hierarchy. Dear: the kernel holds up every fork and exit of the machine for it, and waits
    /// for an RCU grace period first, some 2 ms on an idle machine and 10 and more on a busy one.
    pub fn add(&self, pid: i32) -> Result<(), Error> {
        for hierarchy in Hierarchies::of_this_machine()?.all() {
            hierarchy.add(&self.path, pid)?;
        }
        Ok(())
    }

    /// Opens what a new process needs to be in this cgroup from its start, without the price of [`Cgroup::add`].
    pub(crate) fn entrance(&self) -> Result<Entrance, Error> {
        let mut entrance = Entrance::default();
        for hierarchy in Hierarchies::of_this_machine()?.all() {
            let directory = hierarchy.directory(&self.path);
            if hierarchy.is_any_v2() {
                let opened = File::open(&directory).map_err(Error::io("open", &directory))?;
                entrance.born_in = Some(opened);
            } else {
                let tasks = directory.join("tasks");
                let opened = fs::OpenOptions::new().write(true).open(&tasks);
                entrance
                    .tasks
                    .push(opened.map_err(Error::io("open", &tasks))?);
            }
        }
        Ok(entrance)
    }

    /// Moves a process in, but only in those hierarchies that limit nothing (named ones, and v2 beside v1).
    pub(crate) fn add_to_uncontrolled(&self, pid: i32) -> Result<(), Error> {
        for hierarchy in Hierarchies::of_this_machine()?
            .all()
            .filter(|h| h.limits_nothing())
        {
            hierarchy.add(&self.path, pid)?;
        }
        Ok(())
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        let directories = self.directories().unwrap_or_default();
        directories.iter().any(|directory| directory.exists())
    }

    /// The processes in it and below it. A cgroup that does not exist has none.
    pub fn procs(&self) -> Result<Vec<i32>, Error> {
        let primary = Hierarchies::of_this_machine()?.primary();
        let mut procs = Vec::new();
        walk(&primary.directory(&self.path), 0, &mut |directory| {
            read_procs(directory, &mut procs)
        })?;
        Ok(procs)
    }

    /// Signals every process in it and below it. A cgroup that does not exist has none.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.signal_each(signal).map(drop)
    }

    /// Answers how many processes there were.
    fn signal_each(&self, signal: i32) -> Result<usize, Error> {
        // A pid may have been reused between reading it and opening it: only what is in the cgroup afterwards is meant.
        let opened: Vec<(i32, OwnedFd)> = self
            .procs()?
            .into_iter()
            .filter_map(|pid| Some((pid, pidfd::open(pid).ok()?)))
            .collect();
        if opened.is_empty() {
            return Ok(0);
        }
        let still = self.procs()?;
        for (pid, process) in &opened {
            if !still.contains(pid) {
                continue;
            }
            match pidfd::send_signal(process, signal) {
                Err(error)
                    if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) =>
                {
                    return Err(Error::io("signal a process of", Path::new(&self.path))(
                        error,
                    ));
                }
                _ => {}
            }
        }
        Ok(still.len())
    }

    /// SIGKILLs every process in it and below it, until there is none. Bounded: [`Error::Busy`] after five seconds.
    pub fn kill(&self) -> Result<(), Error> {
        let primary = Hierarchies::of_this_machine()?.primary();
        let directory = primary.directory(&self.path);
        let began = Instant::now();
        let mut backoff = BACKOFF.0;
        for round in 0.. {
            // cgroup.kill (v2, Linux 5.14) reaches every descendant at once. Without it, a fork bomb is outrun by freezing it;
            // the first round does without, since most cgroups hold a process or two.
            let left = if primary.is_v2() && fs::write(directory.join("cgroup.kill"), "1").is_ok() {
                self.procs()?.len()
            } else if round == 0 {
                self.signal_each(libc_sigkill())?
            } else {
                self.freeze(primary);
                let left = self.signal_each(libc_sigkill());
                primary.thaw(&self.path)?;
                left?
            };
            if left == 0 {
                return Ok(());
            }
            let waited = began.elapsed();
            if waited > KILL_FOR {
                let waited_ms = waited.as_millis() as u64;
                return Err(Error::Busy {
                    path: self.path.clone(),
                    procs: left,
                    waited_ms,
                });
            }
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        unreachable!("the loop above ends by returning")
    }

    /// Its directory in the hierarchy that has the freezer.
    pub(crate) fn freezer(&self) -> Result<PathBuf, Error> {
        let primary = Hierarchies::of_this_machine()?.primary();
        Ok(primary.directory(&self.path))
    }

    fn freeze(&self, primary: &Hierarchy) -> bool {
        primary.freeze(&self.path, Instant::now() + FREEZE_FOR)
    }

    /// Freezes every process in it and below it. One that can't be frozen in five seconds leaves all of them running: [`Error::Unfrozen`].
    pub fn pause(&self) -> Result<(), Error> {
        let primary = Hierarchies::of_this_machine()?.primary();
        if primary.freeze(&self.path, Instant::now() + PAUSE_FOR) {
            return Ok(());
        }
        primary.thaw(&self.path)?;
        Err(Error::Unfrozen {
            path: self.path.clone(),
            waited_ms: PAUSE_FOR.as_millis() as u64,
        })
    }

    /// Undoes [`Cgroup::pause`]. Idempotent.
    pub fn resume(&self) -> Result<(), Error> {
        Hierarchies::of_this_machine()?.primary().thaw(&self.path)
    }

    /// Removes it and what is below, in every hierarchy. Idempotent. Its processes must be gone.
    pub fn remove(&self) -> Result<(), Error> {
        if let Some(unit) = self.unit() {
            systemd::gone(self, unit);
        }
        for directory in self.directories()? {
            remove_tree(&directory)?;
        }
        Ok(())
    }

    /// The figures of it and what is below. Absent controllers count as zero.
    pub fn stats(&self) -> Result<Stats, Error> {
        stats::read(self, Hierarchies::of_this_machine()?)
    }

    /// How many processes of it the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        stats::oom_kills(self, Hierarchies::of_this_machine()?)
    }

    /// Which cgroup's limit left no memory for a process of this one that was killed for it: this one or one above it. `None`: it was
    /// the whole node that had none, or this is v1, which does not tell.
    pub fn oom_limit(&self) -> Result<Option<Limited>, Error> {
        stats::oom_limit(self, Hierarchies::of_this_machine()?)
    }

    /// Whether one below this one has met its limit, also one that is gone. `false` on v1, which does not tell.
    pub fn limit_met_below(&self) -> Result<bool, Error> {
        Ok(stats::limit_met_below(
            self,
            Hierarchies::of_this_machine()?,
        ))
    }

    /// v2's `memory.max` in bytes; 0: it has none.
    pub fn memory_limit(&self) -> Result<u64, Error> {
        stats::memory_limit(self, Hierarchies::of_this_machine()?)
    }
}

/// The way into a cgroup for a process that is about to be made. A thread that writes "0" to v1's `tasks` moves itself, and
/// clone3 with CLONE_INTO_CGROUP gives birth in a v2 cgroup: neither takes the lock that `cgroup.procs` takes.
#[derive(Debug, Default)]
pub(crate) struct Entrance {
    pub born_in: Option<File>,
    tasks: Vec<File>,
}

impl Entrance {
    /// Moves the calling thread, which must be its process's only one, into the v1 cgroups.
    pub(crate) fn enter(&self) -> io::Result<()> {
        for mut tasks in &self.tasks {
            io::Write::write_all(&mut tasks, b"0")?;
        }
        Ok(())
    }
}

fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}

/// Calls `visit` for a directory and every directory below it, the deepest first. What vanishes meanwhile is skipped.
fn walk(
    directory: &Path,
    depth: usize,
    visit: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    if depth < MAX_DEPTH {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), depth + 1, visit)?;
            }
        }
    }
    visit(directory)
}

fn read_procs(directory: &Path, into: &mut Vec<i32>) -> Result<(), Error> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        // 0 is a process that this pid namespace can't see.
        Ok(text) => into.extend(
            text.lines()
                .filter_map(|line| line.parse().ok())
                .filter(|pid: &i32| *pid > 0),
        ),
        // A directory that was removed meanwhile, or a threaded one, whose processes its parent lists.
        Err(error) if matches!(error.raw_os_error(), Some(2 | 19 | 95)) => {}
        Err(error) => return Err(Error::io("read cgroup.procs of", directory)(error)),
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    let began = Instant::now();
    let mut backoff = BACKOFF.0;
    loop {
        // The usual cgroup has nothing below it.
        let failed = match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        let _ = walk(directory, 0, &mut |below| {
            let _ = fs::remove_dir(below);
            Ok(())
        });
        if began.elapsed() > REMOVE_FOR {
            return Err(Error::io("remove", directory)(failed));
        }
        if !directory.exists() {
            return Ok(());
        }
        thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn scratch(name: &str) -> Cgroup {
        Cgroup::at(&format!("/berth-test-cgroup-{}-{name}", std::process::id())).unwrap()
    }

    #[test]
    fn a_path_that_could_name_another_cgroup_is_refused() {
        for (path, why) in [
            ("", "absolute"),
            ("pod", "absolute"),
            ("/", "empty"),
            ("/a//b", "empty"),
            ("/a/", "empty"),
            ("/a/../b", ".."),
            ("/a/./b", "."),
            ("/a\0b", "control"),
            ("/a\nb", "control"),
            ("/a/cgroup.procs", "cgroup."),
            ("system:berth:c1", "slice:prefix:name"),
            ("a.slice:b", "slice:prefix:name"),
            ("a.slice:b:c:d", "slice:prefix:name"),
            ("a.slice:b:", "slice:prefix:name"),
            ("a--b.slice:b:c", "slice:prefix:name"),
            ("a.slice:../b:c", "slice:prefix:name"),
            ("...slice:b:c\nd", "control"),
            (&format!("/{}", "x".repeat(300)), "255"),
            (&"/x".repeat(2000), "3072"),
        ] {
            // SEC-ENG-11
            let refused = Cgroup::at(path).unwrap_err().to_string();
            assert!(refused.contains(why), "{path:?}: {refused}");
        }
    }

    #[test]
    fn what_systemd_makes_is_a_unit_and_nothing_else_sec_eng_11() {
        for (path, unit) in [
            ("a-b.slice:berth:c1", "/a.slice/a-b.slice/berth-c1.scope"),
            ("/a.slice/a-b.slice", "/a.slice/a-b.slice"),
        ] {
            let cgroup = Cgroup::by_systemd(path).unwrap();
            assert_eq!(cgroup.path(), unit);
            assert_ne!(cgroup, Cgroup::at(path).unwrap());
        }
        for (path, says) in [
            ("/kubepods/pod1/c1", "slice:prefix:name"),
            ("kubepods", "absolute"),
            ("/a.slice/../b.slice", ".."),
        ] {
            let refused = Cgroup::by_systemd(path).unwrap_err().to_string();
            assert!(refused.contains(says), "{path}: {refused}");
        }
        let above = Cgroup::at("/a/b").unwrap().parent().unwrap();
        assert_eq!((above.path(), above.parent()), ("/a", None));
    }

    #[test]
    fn a_cgroup_is_made_in_every_hierarchy_and_removed_from_all() {
        let cgroup = scratch("made");
        let below = Cgroup::at(&format!("{}/a/b", cgroup.path())).unwrap();
        below.create().unwrap();
        below.create().unwrap();
        for directory in below.directories().unwrap() {
            assert!(directory.is_dir(), "{directory:?}");
        }
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
        assert!(!cgroup.exists());
    }

    #[test]
    fn kill_ends_every_process_in_and_below_and_signal_reaches_them() {
        let cgroup = scratch("kill");
        let below = Cgroup::at(&format!("{}/below", cgroup.path())).unwrap();
        below.create().unwrap();
        let mut children: Vec<_> = (0..3)
            .map(|_| Command::new("sleep").arg("1000").spawn().unwrap())
            .collect();
        cgroup.add(children[0].id() as i32).unwrap();
        below.add(children[1].id() as i32).unwrap();
        below.add(children[2].id() as i32).unwrap();
        let mut procs = cgroup.procs().unwrap();
        procs.sort_unstable();
        let mut expected: Vec<_> = children.iter().map(|c| c.id() as i32).collect();
        expected.sort_unstable();
        assert_eq!(procs, expected);
        for pid in &expected {
            let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(
                membership.lines().all(|line| line.contains(cgroup.path())),
                "{membership}"
            );
        }
        assert_eq!(cgroup.stats().unwrap().pids, 3);
        cgroup.signal(0).unwrap();
        cgroup.kill().unwrap();
        for child in &mut children {
            assert!(!child.wait().unwrap().success());
        }
        cgroup.kill().unwrap();
        cgroup.remove().unwrap();
    }
}
