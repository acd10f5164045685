//! `delete`: what is left of a pod whose shim is dead is ended and removed. It works from the bundle alone, and goes on after
//! an error: the rest must not be left for it. Idempotent.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_engine::{Engine, Launched, cgroup::Cgroup};
use berth_proto::shim::api::DeleteResponse;
use nix::mount::{MntFlags, umount2};
use rustix::{io::Errno, process::Signal};

use crate::{
    bootstrap::{self, dial},
    bundle,
    cli::{Flags, print_message},
    clock,
    error::Error,
    front, group, journal, serve,
};

/// What is said of a task whose shim did not live to see its end.
const KILLED: u32 = 137;
/// How long a shim that hangs is waited for after SIGKILL.
const SHIM_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

pub fn delete(flags: &Flags) -> Result<(), Error> {
    let bundle = fs::canonicalize(&flags.bundle).map_err(Error::io(format!(
        "find the bundle {}",
        flags.bundle.display()
    )))?;
    let mut first_error = None;
    let mut note = |step: Result<(), Error>| {
        if let Err(error) = step {
            journal!("delete {}: {error}", flags.id);
            first_error.get_or_insert(error);
        }
    };
    let socket = bootstrap::socket_path(flags)?;
    // A container's shim is its pod's: others may live in it. With a spec that can't be read none was ever started.
    let own = group::of(flags).is_ok_and(|pod| pod == flags.id);
    if own {
        note(end_shim(&socket));
    }
    if own {
        for error in front::clean(&bundle, &flags.namespace, &flags.id, &socket) {
            note(Err(error));
        }
    }
    let engine = Launched::for_cleanup(serve::engine_config(&bundle));
    // containerd 2 calls this once a pod, and its containers' bundles lie elsewhere.
    let mut bundles = vec![bundle.clone()];
    match engine.known() {
        Ok(ids) => ids.iter().for_each(|id| {
            bundles.extend(engine.bundle(id).filter(|of| !of.starts_with(&bundle)));
            note(engine.delete(id).map_err(Error::from));
            for warning in engine.warnings() {
                journal!("warning: {warning}");
            }
        }),
        Err(error) => note(Err(error.into())),
    }
    // A shim that died within a create may have left a cgroup that the engine has no record of.
    for spec_dir in spec_dirs(&bundle) {
        note(remove_cgroup(&spec_dir));
    }
    for bundle in &bundles {
        note(unmount_below(bundle));
    }
    if own {
        note(match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", socket.display()))(error))
            }
            _ => Ok(()),
        });
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: clock::timestamp(clock::now_ns()),
        ..Default::default()
    };
    print_message(&response)
}

/// A shim that lives but does not answer is ended: whoever calls `delete` has given it up. The listener's peer is the process that listens.
fn end_shim(socket: &Path) -> Result<(), Error> {
    let step = || format!("end the shim at {}", socket.display());
    let connection = match dial(socket) {
        Ok(connection) => connection,
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Error::io(step())(errno)),
    };
    let peer = rustix::net::sockopt::socket_peercred(&connection).map_err(Error::io(step()))?;
    let pidfd = match rustix::process::pidfd_open(peer.pid, rustix::process::PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(Error::io(step())(errno)),
    };
    // Checked through the descriptor's process: it can't have become another one since.
    let name =
        fs::read_to_string(format!("/proc/{}/comm", peer.pid.as_raw_nonzero())).unwrap_or_default();
    if !name.starts_with(&bootstrap::NAME[..15]) {
        return Ok(());
    }
    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).map_err(Error::io(step()))?;
    drop(connection);
    let began = Instant::now();
    while !matches!(dial(socket), Err(Errno::CONNREFUSED | Errno::NOENT)) {
        if began.elapsed() > SHIM_WAIT {
            return Err(Error::StillAlive {
                what: step(),
                waited_ms: SHIM_WAIT.as_millis() as u64,
            });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// The pod's containers under our runtime, the pause of a front, or the one container of the bundle itself.
fn spec_dirs(bundle: &Path) -> Vec<PathBuf> {
    let containers = fs::read_dir(bundle.join("containers"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let fronts = fs::read_dir(bundle.join("front"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    containers
        .chain(fronts)
        .chain([bundle.to_owned()])
        .filter(|dir| dir.join("config.json").exists())
        .collect()
}

fn remove_cgroup(spec_dir: &Path) -> Result<(), Error> {
    let spec = match bundle::read(spec_dir) {
        Ok(spec) => spec,
        // No container was ever made of it, and it would be as broken at the next try.
        Err(error @ Error::Invalid { .. }) => {
            journal!("{error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let Some(path) = spec
        .pointer("/linux/cgroupsPath")
        .and_then(|path| path.as_str())
    else {
        return Ok(());
    };
    let cgroup = Cgroup::at(path)?;
    cgroup.kill()?;
    Ok(cgroup.remove()?)
}

/// Root filesystems, and what is mounted in them. The newest first: mounts lie on each other.
fn unmount_below(bundle: &Path) -> Result<(), Error> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read the mount table"))?;
    let roots = ["containers", "front", "rootfs", "shm"].map(|name| bundle.join(name));
    let targets = table
        .lines()
        .filter_map(mount_point)
        .filter(|at| roots.iter().any(|root| at.starts_with(root)));
    for target in targets.collect::<Vec<_>>().into_iter().rev() {
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Gone already, with what it lay on.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Error::io(format!("unmount {}", target.display()))(
                    io::Error::from(errno),
                ));
            }
        }
    }
    Ok(())
}

/// The fifth field, with the kernel's octal escapes undone.
fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?.as_bytes();
    let mut path = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = (field[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(octal.unwrap_or(field[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    Some(PathBuf::from(
        <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(path),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        for (line, path) in [
            (
                "36 35 98:0 / /mnt/a rw,noatime - ext3 /dev/root rw",
                "/mnt/a",
            ),
            (
                "36 35 98:0 / /mnt/with\\040blank\\134 rw - ext3 /dev/root rw",
                "/mnt/with blank\\",
            ),
        ] {
            assert_eq!(mount_point(line).unwrap(), Path::new(path));
        }
    }
}
