//! A running container's processes, written down by CRIU (`criu dump`): its own program, run as a child of this worker.
//!
//! What the container has from outside stays outside: network and shared pid namespaces, binds, cgroups and the standard streams are
//! named to CRIU as external, by the words that a restore will name them by.
//!
//! CRIU is never killed while it may have changed the registers of a process: where its time is up it may not write any more
//! (RLIMIT_FSIZE), which it meets as it meets a full disk, by putting the processes back. Only one that does not end even then is killed.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use berth_kernel::{pidfd, signals};
use nix::sys::signal::{Signal, killpg};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Resource, Rlimit, prlimit},
};

use crate::{
    Error,
    cgroup::Cgroup,
    init::load_spec,
    record::Record,
    request::{CheckpointRequest, cut},
};

/// The file of the images' directory that says by which words the standard streams are to be given back, as runc has it.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";
/// What the pod's namespaces are called in the images.
pub(crate) const NET: &str = "extNetNs";
pub(crate) const PID: &str = "extPidNs";
const LOG: &str = "dump.log";
/// What CRIU says before it has a log.
const STDERR: &str = "criu.stderr";
/// How long CRIU may take to put the processes back when its time is up.
const UNDO_FOR: Duration = Duration::from_secs(5);
/// CRIU's log is some 100 KiB; the reason is among its last words.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// A disk with less than this left is full: memory comes in larger pieces.
const FULL_BYTES: u64 = 256 << 10;
/// Lines of the log that make a reason: what, and for whom.
const REASON_LINES: usize = 2;

/// Dumps the container's processes into `request.images`.
pub(crate) fn dump(request: &CheckpointRequest, init: &OwnedFd) -> Result<(), Error> {
    let record = Record::read(&request.directory)?
        .ok_or_else(|| Error::UnknownContainer(request.id.clone()))?;
    let spec = load_spec(&request.id, &record.bundle)?;
    let freezer = Cgroup::at(&record.cgroup)?.freezer()?;
    let outside = outside(request.pid, &spec)?;
    // /proc/<pid> above was init's, if init still is now.
    if pidfd::send_signal(init, 0).is_err() {
        return Err(Error::Checkpoint {
            id: request.id.clone(),
            reason: "it is not running".into(),
        });
    }
    let descriptors = request.images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&outside.streams).map_err(|e| Error::Zygote(e.to_string()))?;
    write_private(&descriptors, &text)?;

    let mut command = Command::new(&request.criu);
    command
        .arg("dump")
        .args(["--tree", &request.pid.to_string()])
        .arg("--images-dir")
        .arg(&request.images)
        .arg("--work-dir")
        .arg(&request.work)
        .args(["--log-file", LOG, "-v4"])
        .args(["--manage-cgroups=ignore", "--tcp-established"])
        .args(["--ext-unix-sk", "--file-locks", "--link-remap"])
        .arg("--freeze-cgroup")
        .arg(freezer)
        .arg("--timeout")
        .arg(request.timeout_ms.div_ceil(1000).to_string());
    if request.leave_running {
        command.arg("--leave-running");
    }
    for external in &outside.external {
        command.arg("--external").arg(external);
    }
    let run = Run {
        id: &request.id,
        act: "checkpoint",
        criu: &request.criu,
        disk: &request.images,
        work: &request.work,
        log: LOG,
        timeout: Duration::from_millis(request.timeout_ms),
    };
    self::run(&run, command)
}

/// One run of CRIU.
pub(crate) struct Run<'a> {
    pub id: &'a str,
    /// "checkpoint", "restore"
    pub act: &'static str,
    pub criu: &'a Path,
    /// A directory of the disk that it fills.
    pub disk: &'a Path,
    pub work: &'a Path,
    /// In `work`.
    pub log: &'a str,
    pub timeout: Duration,
}

/// Runs CRIU to its end, or to the end of its time.
pub(crate) fn run(run: &Run<'_>, mut command: Command) -> Result<(), Error> {
    let Run { id, act, .. } = run;
    let stderr = run.work.join(STDERR);
    let said = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&stderr)
        .map_err(Error::io(format!("make {}", stderr.display())))?;
    // So that a write which is too much is an error of CRIU's and not its death.
    signals::ignore(Signal::SIGXFSZ as i32).map_err(Error::io("ignore SIGXFSZ"))?;
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        // What it forks goes with it.
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| Error::Criu {
        path: run.criu.to_owned(),
        reason: format!("can't be run: {error}"),
    })?;
    let pid = child.id() as i32;
    let process = pidfd::open(pid).map_err(Error::io("open CRIU's process"))?;
    let in_time = ends_within(&process, run.timeout)?;
    if !in_time {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        // Gone meanwhile: so much the better.
        let _ = prlimit(Pid::from_raw(pid), Resource::Fsize, none);
        if !ends_within(&process, UNDO_FOR)? {
            let _ = killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let status = child.wait().map_err(Error::io("wait for CRIU"))?;
    if status.success() {
        let _ = fs::remove_file(&stderr);
        return Ok(());
    }
    if !in_time {
        let seconds = run.timeout.as_secs_f64().ceil();
        let step = format!("{act} container {id}: CRIU was not done within {seconds} s");
        return Err(Error::errno(step)(Errno::TIMEDOUT));
    }
    let reasons = match reasons(&run.work.join(run.log)) {
        found if found.is_empty() => reasons(&stderr),
        found => found,
    };
    let reason = match reasons.as_slice() {
        [] => format!("it ended with {status} and gave no reason"),
        lines => lines.join("; "),
    };
    // Not by its words: its log is on that disk too.
    let left = rustix::fs::statvfs(run.disk).map(|disk| disk.f_bavail * disk.f_frsize);
    if left.is_ok_and(|bytes| bytes < FULL_BYTES) {
        let step = cut(format!("{act} container {id}: CRIU: {reason}"));
        return Err(Error::errno(step)(Errno::NOSPC));
    }
    Err(Error::Checkpoint {
        id: (*id).to_owned(),
        reason: cut(format!(
            "{act}: CRIU: {reason} (`criu check` tells whether this CRIU knows this kernel)"
        )),
    })
}

/// Whether the process ends in time. It is not reaped.
fn ends_within(process: &OwnedFd, time: Duration) -> Result<bool, Error> {
    let until = std::time::Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        });
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::errno("wait for CRIU")(error)),
        }
    }
}

/// The last errors of a log of CRIU's, each without its time. Earlier ones are often of what it can do without, and its very last one says
/// no more than that it failed.
fn reasons(log: &Path) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|file| file.take(MAX_LOG_BYTES).read_to_end(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&text);
    let errors = text.lines().filter_map(|line| {
        let error = &line[line.find("Error (")?..];
        (!error.ends_with(" FAILED.")).then(|| error.to_owned())
    });
    let errors: Vec<String> = errors.collect();
    errors[errors.len().saturating_sub(REASON_LINES)..].to_vec()
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, bytes))
        .map_err(Error::io(format!("write {}", path.display())))
}

/// What of a container is not its own.
#[derive(Debug, Default)]
struct Outside {
    /// As `--external` wants it.
    external: Vec<String>,
    /// By which words stdin, stdout and stderr are to be given back; empty: they are the container's own.
    streams: Vec<String>,
}

fn outside(pid: i32, spec: &Spec) -> Result<Outside, Error> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))
    };
    let linux = spec.linux().clone().unwrap_or_default();
    let mut outside = Outside::default();
    for (kind, file, word) in [
        (LinuxNamespaceType::Network, "net", NET),
        (LinuxNamespaceType::Pid, "pid", PID),
    ] {
        let given = linux.namespaces().iter().flatten().any(|namespace| {
            namespace.typ() == kind
                && namespace
                    .path()
                    .as_ref()
                    .is_some_and(|path| !path.as_os_str().is_empty())
        });
        if given {
            let path = format!("/proc/{pid}/ns/{file}");
            let inode = fs::metadata(&path).map_err(Error::io(format!("look at {path}")))?;
            let inode = inode.ino();
            outside.external.push(format!("{file}[{inode}]:{word}"));
        }
    }
    let mounts = mounts(&read("mountinfo")?);
    for mount in &mounts {
        if is_external(mount, spec, &linux) {
            let at = mount.at.display();
            outside.external.push(format!("mnt[{at}]:{at}"));
        }
    }
    for number in 0..3 {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
        // A process may have closed them.
        let Ok(name) = fs::read_link(&path) else {
            outside.streams.push(String::new());
            continue;
        };
        let name = name.display().to_string();
        match stream(&path, &read(&format!("fdinfo/{number}"))?, &mounts) {
            Some(external) => {
                if !outside.external.contains(&external) {
                    outside.external.push(external.clone());
                }
                outside.streams.push(external);
            }
            None if name.starts_with("pipe:[") => outside.streams.push(name),
            // A file of its own.
            None => outside.streams.push(String::new()),
        }
    }
    Ok(outside)
}

/// A stream that CRIU can't find in the container: a terminal of the shim's, or a file of another mount namespace.
fn stream(path: &Path, info: &str, mounts: &[Mounted]) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let meta = fs::metadata(path).ok()?;
    let mount: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim()
        .parse()
        .ok()?;
    let kind = meta.file_type();
    if kind.is_fifo() || kind.is_socket() || mounts.iter().any(|known| known.id == mount) {
        return None;
    }
    let terminal = kind.is_char_device() && (136..=143).contains(&rustix::fs::major(meta.rdev()));
    Some(match terminal {
        true => format!("tty[{:x}:{:x}]", meta.rdev(), meta.dev()),
        false => format!("file[{mount:x}:{:x}]", meta.ino()),
    })
}

/// A line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub id: u64,
    /// major:minor
    pub device: String,
    /// What of the file system is mounted.
    pub root: PathBuf,
    pub at: PathBuf,
    /// Of the mount, not of the file system.
    pub flags: String,
    /// It passes mounts on, or takes them.
    pub peers: bool,
    pub kind: String,
}

pub(crate) fn mounts(mountinfo: &str) -> Vec<Mounted> {
    let lines = mountinfo.lines().filter_map(|line| {
        // 36 35 98:0 /root /mount/point options … - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let id = left.next()?.parse().ok()?;
        let device = left.nth(1)?.to_owned();
        let (root, at, flags) = (left.next()?, left.next()?, left.next()?);
        Some(Mounted {
            id,
            device,
            root: crate::cgroup::unescape(root),
            at: crate::cgroup::unescape(at),
            flags: flags.to_owned(),
            peers: left.next().is_some(),
            kind: right.split(' ').next()?.to_owned(),
        })
    });
    lines.collect()
}

/// Whether a mount is the node's. A file system that was made for the container goes into the images, with what is in it where that
/// is nowhere else (tmpfs).
pub(crate) fn is_external(mount: &Mounted, spec: &Spec, linux: &Linux) -> bool {
    if mount.at == Path::new("/") || matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
        return mount.at != Path::new("/");
    }
    let names = |paths: &Option<Vec<String>>| {
        paths
            .iter()
            .flatten()
            .any(|path| Path::new(path) == mount.at)
    };
    let own = spec.mounts().iter().flatten().any(|asked| {
        let bind = asked.typ().as_deref() == Some("bind")
            || asked
                .options()
                .iter()
                .flatten()
                .any(|option| option == "bind" || option == "rbind");
        // A v1 cgroup is a tmpfs with binds in it.
        let kind = match asked.typ().as_deref() {
            Some("cgroup") => "tmpfs",
            kind => kind.unwrap_or_default(),
        };
        !bind && asked.destination() == &mount.at && kind == mount.kind
    });
    let hidden = mount.kind == "tmpfs" && names(linux.masked_paths());
    !(own || hidden || names(linux.readonly_paths()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MOUNTINFO: &str = "\
500 400 0:50 / / rw,relatime - overlay berth rw
501 500 0:51 / /proc rw - proc proc rw
502 500 0:52 / /dev rw - tmpfs tmpfs rw
503 502 0:53 / /dev/pts rw - devpts devpts rw
504 502 0:30 / /dev/shm rw - tmpfs shm rw
505 500 0:54 / /sys/fs/cgroup ro - tmpfs tmpfs rw
506 505 0:23 /a/b /sys/fs/cgroup/memory ro - cgroup cgroup rw
507 500 8:1 /hosts /etc/hosts rw - ext4 /dev/vda rw
508 500 8:1 /v /with\\040space rw - ext4 /dev/vda rw
509 501 0:5 /null /proc/kcore rw - devtmpfs dev rw
510 501 0:55 / /proc/acpi ro - tmpfs tmpfs rw
511 501 0:51 /sys /proc/sys ro - proc proc rw
";

    #[test]
    fn what_was_made_for_the_container_is_its_own_and_the_rest_is_outside() {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts" },
                { "destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["rbind"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/h" },
            ],
            "linux": { "maskedPaths": ["/proc/kcore", "/proc/acpi"], "readonlyPaths": ["/proc/sys"] },
        }))
        .unwrap();
        let linux = spec.linux().clone().unwrap();
        let mounts = mounts(MOUNTINFO);
        assert_eq!(mounts.len(), 12);
        let external: Vec<_> = mounts
            .iter()
            .filter(|mount| is_external(mount, &spec, &linux))
            .map(|mount| mount.at.to_str().unwrap())
            .collect();
        assert_eq!(
            external,
            [
                "/dev/shm",
                "/sys/fs/cgroup/memory",
                "/etc/hosts",
                "/with space",
                "/proc/kcore"
            ]
        );
    }

    #[test]
    fn the_reason_is_the_last_errors_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        fs::write(
            &log,
            "(00.01) Version: 4.2\n(00.1) Error (criu/u.c:1): rlimit\n(00.1) Error (criu/x.c:1): a\nWarn  (criu/y.c:2): no\n\
             (00.2) Error (criu/z.c:3): b\n(00.3) Error (criu/cr-dump.c:4): Dumping FAILED.\n",
        )
        .unwrap();
        assert_eq!(
            reasons(&log),
            ["Error (criu/x.c:1): a", "Error (criu/z.c:3): b"]
        );
        assert!(reasons(&dir.path().join("none")).is_empty());
    }
}
