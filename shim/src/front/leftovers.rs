//! What another shim has left when it is done with, or dead: its processes, its socket, and what its `delete` knows of.
//!
//! A shim may fork as it likes, so its processes are found by what all of them inherit: the address of our socket in their environment.
//! A container's processes have an environment of their own.

use std::{
    fs,
    io::{self, ErrorKind, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

use super::{
    client::Name,
    command::{Calling, DELETE},
};
use crate::{bootstrap::dial, error::Error, journal};

/// How long processes are killed until none is found.
const KILL_FOR: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// What a cleanup has to know, since it works from the bundle alone.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    pub program: PathBuf,
    pub publish_binary: String,
    /// Path of the other shim's socket; empty until it has said it.
    pub socket: String,
}

impl Record {
    fn path(dir: &Path) -> PathBuf {
        dir.join("shim.json")
    }

    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        let (path, temporary) = (Self::path(dir), dir.join(".shim.json"));
        let step = || format!("write {}", path.display());
        let bytes = serde_json::to_vec(self).map_err(|error| Error::io(step())(error))?;
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(Error::io(step()))
    }

    /// None: there is no other shim in this pod.
    fn read(dir: &Path) -> Result<Option<Record>, Error> {
        let path = Self::path(dir);
        let step = || format!("read {}", path.display());
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::invalid(path.display().to_string(), error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(step())(error)),
        }
    }
}

/// Kills whatever runs with `socket` as its address for events, this process excepted.
pub fn end_processes(socket: &Path) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let found = processes(socket);
        if found.is_empty() {
            return Ok(());
        }
        for pid in &found {
            let Ok(pidfd) = pidfd_open(*pid, PidfdFlags::empty()) else {
                continue;
            };
            // Looked at again through a descriptor that holds it: meanwhile the number may have become another's.
            if has_address(*pid, socket) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        if began.elapsed() > KILL_FOR {
            return Err(Error::StillAlive {
                what: format!(
                    "processes {found:?} of the shim behind {}",
                    socket.display()
                ),
                waited_ms: KILL_FOR.as_millis() as u64,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// Processes of the other shim that are there.
pub fn processes(socket: &Path) -> Vec<Pid> {
    let own = std::process::id() as i32;
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(Pid::from_raw)
        .filter(|pid| has_address(*pid, socket))
        .collect()
}

fn has_address(pid: Pid, socket: &Path) -> bool {
    let wanted = format!("TTRPC_ADDRESS={}", socket.display());
    // One that has ended has no environment any more.
    fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).is_ok_and(|environ| {
        environ
            .split(|b| *b == 0)
            .any(|one| one == wanted.as_bytes())
    })
}

/// Removes the socket of a shim that no longer listens on it.
pub fn remove_socket(path: &str) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket
        && matches!(dial(Path::new(path)), Err(Errno::CONNREFUSED))
        && let Err(error) = fs::remove_file(path)
    {
        journal!("remove {path}: {error}");
    }
}

/// For the pod of `bundle`, whose front is dead: ends the other shim, and lets it clean up after each of its containers. `events` is
/// the front's own socket.
pub fn clean(bundle: &Path, namespace: &str, pod_id: &str, events: &Path) -> Vec<Error> {
    let dir = super::directory(bundle);
    let record = match Record::read(&dir) {
        Ok(Some(record)) => record,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    errors.extend(end_processes(events).err());
    let calling = Calling {
        name: Name(record.program.display().to_string()),
        program: record.program.clone(),
        namespace: namespace.to_owned(),
        events: events.to_owned(),
        publish_binary: record.publish_binary.clone(),
    };
    let containers = fs::read_dir(bundle.join("containers"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for container in containers.chain([dir.join(pod_id)]) {
        if !container.join("config.json").exists() {
            continue;
        }
        let Some(id) = container.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        // Not its last word: what it leaves is killed and removed by cgroup and mount point after this.
        match calling.run("delete", id, &container, (b"", DELETE), None) {
            Ok(ended) => {
                if let Err(failure) = ended.output() {
                    journal!("{}: `delete` of {id}: {failure}", calling.name.0);
                }
            }
            Err(error) => journal!("delete of {id}: {error}"),
        }
    }
    errors.extend(end_processes(events).err());
    if !record.socket.is_empty() {
        remove_socket(&record.socket);
    }
    errors
}

/// A directory that is there already is as good.
pub fn ensure_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error: io::Error| Error::io(format!("make {}", path.display()))(error))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shims_processes_are_found_by_the_address_that_they_inherit_and_no_others_rel_03() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a");
        let start = |address: &str| {
            Command::new("/bin/sh")
                .args(["-c", "sleep 1000 & wait"])
                .env("TTRPC_ADDRESS", dir.path().join(address))
                .spawn()
                .unwrap()
        };
        let (mut ours, mut other) = (start("a"), start("ab"));
        while processes(&socket).len() < 2 {
            std::thread::sleep(POLL);
        }
        end_processes(&socket).unwrap();
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        end_processes(&dir.path().join("ab")).unwrap();
        other.wait().unwrap();
    }
}
