//! CheckpointContainer: a running container's processes and files as an archive, in the form that checkpointctl, CRI-O and containerd
//! read. The container goes on running.
//!
//! ```text
//!   scratch ─▶ dump (the shim, by CRIU; the container stands still from here) ─▶ rootfs-diff.tar ─▶ resume ─▶ archive ─▶ linked
//! ```
//!
//! The archive has no name until it is whole: neither an error nor a daemon that dies leaves one. What lies in
//! `<root>/checkpoints/<container id>` meanwhile is removed by whoever made it, or by the next daemon ([`sweep`]), which also lets the
//! container go on ([`left_paused`]).

mod archive;
mod diff;
pub mod restore;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_state::dir::ensure_private;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, linkat, openat},
    io::Errno,
};

use crate::{
    error::Error,
    failpoint,
    node::Node,
    pod::{Pod, record::ContainerRecord, shim::Shim},
};

/// Where a request gives no time: as long as the kubelet waits for its runtime.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// The most that a request can ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// A dump that lost its daemon may still be writing into what is to be removed.
const SWEEP_TRIES: u32 = 50;
const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// What is to be done.
#[derive(Debug)]
pub struct Checkpoint {
    pub pod: Arc<Pod>,
    pub shim: Shim,
    pub container: Arc<ContainerRecord>,
    /// ns since the epoch
    pub started_at: i64,
    pub location: PathBuf,
    pub timeout: Duration,
}

/// When the request's time is up.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    fn check(&self) -> io::Result<()> {
        if self.left().is_zero() {
            return Err(Errno::TIMEDOUT.into());
        }
        Ok(())
    }
}

/// Writes the archive, or leaves nothing.
pub async fn checkpoint(plan: Checkpoint) -> Result<(), Error> {
    let deadline = Deadline {
        at: Instant::now() + plan.timeout,
        timeout: plan.timeout,
    };
    let node = plan.pod.node.clone();
    let target = Target::open(&plan.location)?;
    let criu = criu(&node)?;
    let scratch = Scratch::make(&node, &plan.container.id)?;
    let done = write(&plan, &criu, &scratch, target, deadline).await;
    // Tens of thousands of pages, perhaps: off the event loop.
    let removed = tokio::task::spawn_blocking(move || scratch.remove())
        .await
        .map_err(|_| Error::Panicked("remove what a checkpoint left"))?;
    if let Err(e) = removed {
        tracing::error!(container = %plan.container.id, "{e}");
    }
    done.map_err(|e| in_time(e, &plan.container.id, deadline))
}

async fn write(
    plan: &Checkpoint,
    criu: &Path,
    scratch: &Scratch,
    target: Target,
    deadline: Deadline,
) -> Result<(), Error> {
    let id = &plan.container.id;
    let (images, work) = (scratch.images(), scratch.work());
    failpoint::at(|| berth_failpoint::site!("checkpoint.scratch"))?;
    plan.shim
        .checkpoint(id, criu, (&images, &work), deadline.left())
        .await?;
    let files = match failpoint::at(|| berth_failpoint::site!("checkpoint.dumped")) {
        Ok(()) => {
            let upper = plan.pod.node.images.snapshot_upperdir(id)?;
            let diff = scratch.diff();
            blocking(move || diff::write(&upper, &diff, deadline)).await
        }
        failed => failed,
    };
    // In any case, and before anything else takes its time.
    let resumed = plan.shim.resume(id).await;
    files?;
    resumed?;
    failpoint::at(|| berth_failpoint::site!("checkpoint.resumed"))?;
    let parts = archive::Parts {
        facts: archive::Facts::of(&plan.pod, &plan.container, plan.started_at),
        spec: plan.pod.container_dir(id).join("config.json"),
        images,
        work,
        diff: scratch.diff(),
    };
    blocking(move || {
        archive::write(&parts, target.file.as_fd(), deadline)
            .map_err(Error::io("write", &target.location))?;
        failpoint::at(|| berth_failpoint::site!("checkpoint.written"))?;
        target.publish()
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Panicked("checkpoint"))?
}

/// A deadline that passed while files were written.
fn in_time(error: Error, id: &str, deadline: Deadline) -> Error {
    match error {
        Error::Io { act, source, .. } if source.kind() == io::ErrorKind::TimedOut => Error::Stuck {
            what: format!("checkpoint container {id}"),
            stage: act,
            since: deadline.timeout,
        },
        error => error,
    }
}

/// CRIU's program: as configured, else by PATH.
fn criu(node: &Node) -> Result<PathBuf, Error> {
    const INSTALL: &str = "install CRIU (package `criu`), or name it in key `checkpoint.criu`";
    let configured = &node.config.checkpoint.criu;
    let is_program = |path: &Path| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if !configured.as_os_str().is_empty() {
        return match is_program(configured) {
            true => Ok(configured.clone()),
            false => Err(Error::FailedPrecondition(format!(
                "CRIU binary not found: key `checkpoint.criu` names {}, which is no program; {INSTALL}",
                configured.display()
            ))),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("criu"))
        .find(|path| is_program(path))
        .ok_or_else(|| {
            Error::FailedPrecondition(format!(
                "CRIU binary not found: a container can't be checkpointed without it; {INSTALL}"
            ))
        })
}

/// The archive to be: a file without a name in the directory that it is to be in.
#[derive(Debug)]
struct Target {
    location: PathBuf,
    directory: OwnedFd,
    file: OwnedFd,
}

impl Target {
    fn open(location: &Path) -> Result<Self, Error> {
        let wrong = |why: &str| {
            let shown: String = location.display().to_string().chars().take(256).collect();
            Error::InvalidArgument(format!("location {shown:?}: {why}"))
        };
        let plain = location.is_absolute()
            && !location
                .components()
                .any(|part| part == std::path::Component::ParentDir);
        let text = location.as_os_str().as_encoded_bytes();
        let (Some(parent), Some(_), true) = (location.parent(), location.file_name(), plain) else {
            return Err(wrong(
                "it must be the absolute path of a file, without `..`",
            ));
        };
        if text.ends_with(b"/") || text.ends_with(b"/.") {
            return Err(wrong("it names a directory"));
        }
        if text.contains(&0) {
            return Err(wrong("it has a NUL in it"));
        }
        let directory = match openat(
            CWD,
            parent,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(wrong("its directory is not there"));
            }
            Err(Errno::NAMETOOLONG | Errno::LOOP) => return Err(wrong("it leads nowhere")),
            Err(error) => return Err(Error::io("open", parent)(error.into())),
        };
        let name = location.file_name().unwrap_or_default();
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(Errno::NAMETOOLONG) => return Err(wrong("its name is too long")),
            Err(error) => return Err(Error::io("look at", location)(error.into())),
            Ok(_) => return Err(already(location)),
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match openat(&directory, ".", flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                return Err(Error::FailedPrecondition(format!(
                    "location {}: its file system has no files without a name (O_TMPFILE), so an archive could be left there half \
                     written: name a place on a local disk",
                    location.display()
                )));
            }
            Err(error) => return Err(Error::io("make a file in", parent)(error.into())),
        };
        Ok(Self {
            location: location.to_owned(),
            directory,
            file,
        })
    }

    /// Gives it its name. One that has come there meanwhile stays.
    fn publish(self) -> Result<(), Error> {
        let write = |error: Errno| Error::io("write", &self.location)(error.into());
        rustix::fs::fsync(&self.file).map_err(write)?;
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let name = self.location.file_name().unwrap_or_default();
        match linkat(CWD, file, &self.directory, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(already(&self.location)),
            Err(error) => return Err(Error::io("name", &self.location)(error.into())),
        }
        let directory = openat(
            &self.directory,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(write)?;
        rustix::fs::fsync(directory).map_err(write)
    }
}

fn already(location: &Path) -> Error {
    Error::AlreadyExists(format!(
        "location {}: something is there already, and is not overwritten",
        location.display()
    ))
}

/// Where checkpoints under way keep their parts.
fn scratches(node: &Node) -> PathBuf {
    node.config.root.join("checkpoints")
}

/// The directory of one checkpoint under way. There is one a container.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn make(node: &Node, id: &str) -> Result<Self, Error> {
        let all = scratches(node);
        ensure_private(&all).map_err(Error::io("prepare", &all))?;
        let scratch = Self(all.join(id));
        match fs::create_dir(&scratch.0) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::FailedPrecondition(format!(
                    "checkpoint container {id}: it is being checkpointed already"
                )));
            }
            Err(e) => return Err(Error::io("make", &scratch.0)(e)),
        }
        for dir in [scratch.images(), scratch.work()] {
            if let Err(e) = fs::create_dir(&dir) {
                let _ = scratch.remove();
                return Err(Error::io("make", dir)(e));
            }
        }
        Ok(scratch)
    }

    /// CRIU's images.
    fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// CRIU's log and figures.
    fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    fn diff(&self) -> PathBuf {
        self.0.join(archive::ROOTFS_DIFF)
    }

    fn remove(&self) -> Result<(), Error> {
        remove(&self.0)
    }
}

impl Drop for Scratch {
    /// What could not be removed goes with the next daemon.
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

fn remove(dir: &Path) -> Result<(), Error> {
    for _ in 0..SWEEP_TRIES {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(SWEEP_PAUSE);
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", dir)(e));
            }
            _ => return Ok(()),
        }
    }
    Err(Error::io("remove", dir)(Errno::NOTEMPTY.into()))
}

/// Whether this container was being checkpointed when the last daemon ended: it may stand still.
pub fn left_paused(node: &Node, id: &str) -> bool {
    scratches(node).join(id).exists()
}

/// Removes what checkpoints left that the last daemon did not end.
pub fn sweep(node: &Node) -> Result<(), Error> {
    remove(&scratches(node))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use tonic::Code;

    use super::*;

    #[test]
    fn an_archive_has_no_name_until_it_is_whole_and_takes_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("a.tar");
        drop(Target::open(&at).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Target::open(&at).unwrap().publish().unwrap();
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o600);
        let late = Target::open(&dir.path().join("b.tar")).unwrap();
        fs::write(dir.path().join("b.tar"), "theirs").unwrap();
        assert_eq!(late.publish().unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(
            fs::read_to_string(dir.path().join("b.tar")).unwrap(),
            "theirs"
        );
    }

    #[test]
    fn a_location_that_is_no_new_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("there"), "").unwrap();
        symlink("/nowhere/at/all", at("dangling")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        let long = "x".repeat(300);
        for (location, code) in [
            (PathBuf::new(), Code::InvalidArgument),
            ("relative.tar".into(), Code::InvalidArgument),
            ("/".into(), Code::InvalidArgument),
            (at("../up.tar"), Code::InvalidArgument),
            (at("missing/a.tar"), Code::InvalidArgument),
            (at("there/a.tar"), Code::InvalidArgument),
            (at("a.tar/"), Code::InvalidArgument),
            (at(&long), Code::InvalidArgument),
            (at("nul\0"), Code::InvalidArgument),
            (at("there"), Code::AlreadyExists),
            (at("directory"), Code::AlreadyExists),
            (at("dangling"), Code::AlreadyExists),
            ("/proc/a.tar".into(), Code::FailedPrecondition),
        ] {
            let refused = Target::open(&location).unwrap_err();
            assert_eq!(refused.code(), code, "{location:?}: {refused}");
        }
    }
}
