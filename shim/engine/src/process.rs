//! What becomes of a forked process before its command, the same for a container's init and for an exec: streams, limits, working
//! directory, user. Each step comes before the one that would forbid it; [`crate::confine`] has those that are left.

use std::{
    fs,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use berth_kernel::descriptors;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oci_spec::runtime::{PosixRlimitType, Process};
use rustix::{
    fs::{Mode, OFlags},
    thread::CapabilitySets,
};

use crate::{Error, confine};

/// Opens the node's `/proc`, for what must not be read or written through the container's (SEC-ENG-05).
pub(crate) fn open_proc() -> Result<OwnedFd, Error> {
    rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::errno("open /proc"))
}

/// The process to come inherits it from this worker; where the spec says nothing, it is that of the container's init. One below
/// our own needs CAP_SYS_RESOURCE: then it stays as it is.
pub(crate) fn adjust_oom_score(init: Option<i32>, process: &Process) -> Result<(), Error> {
    let value = match (process.oom_score_adj(), init) {
        (Some(value), _) => value.to_string(),
        (None, Some(init)) => {
            let path = format!("/proc/{init}/oom_score_adj");
            fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?
        }
        (None, None) => return Ok(()),
    };
    match fs::write("/proc/self/oom_score_adj", value.trim()) {
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {
            Err(Error::io("set oom_score_adj")(error))
        }
        _ => Ok(()),
    }
}

/// Takes effect with the execve to come. AppArmor's file of this very process, through the node's /proc: the container's may be
/// anything.
pub(crate) fn set_apparmor(process: &Process, proc: &OwnedFd) -> Result<(), Error> {
    let Some(profile) = process
        .apparmor_profile()
        .as_ref()
        .filter(|profile| !profile.is_empty())
    else {
        return Ok(());
    };
    let step = || Error::errno(format!("set AppArmor profile {profile:?}"));
    let file = rustix::fs::openat(
        proc,
        "thread-self/attr/apparmor/exec",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step())?;
    rustix::io::write(&file, format!("exec {profile}").as_bytes()).map_err(step())?;
    Ok(())
}

/// A session of its own, the streams in their places, and every other descriptor but those in `kept` closed.
pub(crate) fn take_streams(
    stdio: [OwnedFd; 3],
    tty: bool,
    kept: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    rustix::process::setsid().map_err(Error::errno("start a session"))?;
    let [stdin, stdout, stderr] = stdio;
    if tty {
        rustix::process::ioctl_tiocsctty(&stdin).map_err(Error::errno("take the terminal"))?;
    }
    let streams = || Error::io("set up the standard streams");
    nix::unistd::dup2_stdin(&stdin).map_err(|e| streams()(e.into()))?;
    nix::unistd::dup2_stdout(&stdout).map_err(|e| streams()(e.into()))?;
    nix::unistd::dup2_stderr(&stderr).map_err(|e| streams()(e.into()))?;
    // Their owners must not close numbers that are gone.
    std::mem::forget((stdin, stdout, stderr));
    descriptors::close_all_but(kept).map_err(Error::io("close what is not the container's"))
}

/// Lifts those limits that are below what a spec asks for, while this process may: root of a user namespace may not. [`settle`] sets
/// them.
pub(crate) fn raise_limits(process: &Process) -> Result<(), Error> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        let step = || Error::io(format!("raise {resource:?} to {}", limit.hard()));
        let (soft, hard) = getrlimit(resource).map_err(|e| step()(e.into()))?;
        if hard < limit.hard() {
            setrlimit(resource, soft, limit.hard()).map_err(|e| step()(e.into()))?;
        }
    }
    Ok(())
}

/// Limits, umask, working directory and user. The process holds the widened capabilities afterwards.
pub(crate) fn settle(process: &Process, capabilities: &confine::Request) -> Result<(), Error> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        setrlimit(resource, limit.soft(), limit.hard()).map_err(|e| {
            Error::io(format!(
                "set {resource:?} to {} and {}",
                limit.soft(),
                limit.hard()
            ))(e.into())
        })?;
    }
    if let Some(umask) = process.user().umask() {
        rustix::process::umask(Mode::from_raw_mode(umask));
    }
    let entered = enter(process.cwd())?;
    become_user(process, capabilities)?;
    if !entered {
        // A directory that only its user may enter (a FUSE or NFS mount that turns root away).
        let cwd = process.cwd();
        rustix::process::chdir(cwd).map_err(Error::errno(format!(
            "enter working directory {}",
            cwd.display()
        )))?;
    }
    ensure_inside(process.cwd())
}

/// Tries the working directory as root; false: to be tried again as the user.
fn enter(cwd: &Path) -> Result<bool, Error> {
    match rustix::process::chdir(if cwd.as_os_str().is_empty() {
        Path::new("/")
    } else {
        cwd
    }) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Ok(false),
        Err(error) => Err(Error::errno(format!(
            "enter working directory {}",
            cwd.display()
        ))(error)),
    }
}

/// The kernel prints a directory outside of the root as unreachable, and a deleted one not at all.
fn ensure_inside(cwd: &Path) -> Result<(), Error> {
    let step = || {
        Error::errno(format!(
            "working directory {} is not inside the container's root",
            cwd.display()
        ))
    };
    let now = rustix::process::getcwd(Vec::new()).map_err(step())?;
    if now.to_bytes().first() == Some(&b'/') {
        Ok(())
    } else {
        Err(step()(rustix::io::Errno::XDEV))
    }
}

fn become_user(process: &Process, capabilities: &confine::Request) -> Result<(), Error> {
    let user = process.user();
    let step = |what: &str| Error::errno(format!("{what} of user {}:{}", user.uid(), user.gid()));
    let gid = rustix::process::Gid::from_raw(user.gid());
    let groups: Vec<_> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| rustix::process::Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).map_err(step("set the groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("set the group"))?;
    // The last steps need capabilities that a change of user takes away.
    let kept = rustix::thread::capabilities(None)
        .map_err(step("read the capabilities"))?
        .permitted
        & (capabilities.permitted | capabilities.effective | confine::needed());
    rustix::thread::set_keep_capabilities(true)
        .map_err(step("keep capabilities over the change"))?;
    let uid = rustix::process::Uid::from_raw(user.uid());
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("set the user"))?;
    rustix::thread::set_keep_capabilities(false)
        .map_err(step("keep capabilities over the change"))?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(step("set the capabilities"))
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}
