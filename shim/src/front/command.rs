//! The other shim as a command: `start` leaves it serving, `delete` cleans up after a dead one.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_engine::Error;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::Deserialize;
use tokio::{runtime::Handle, time::timeout};

use super::client::{Address, Name, printable};
use crate::reaper::Reaper;

/// `start` forks, listens and answers: milliseconds, or seconds where a virtual machine boots.
pub const START: Duration = Duration::from_secs(20);
/// `delete` kills and unmounts what one container has left.
pub const DELETE: Duration = Duration::from_secs(10);
/// Until the loop has reaped a command that has ended.
const REAPED: Duration = Duration::from_secs(5);
/// Of what a command prints; it blocks where it prints more, since nobody reads before it has ended: a pipe holds as much.
const MAX_PRINTED: u64 = 64 << 10;
/// `sockaddr_un.sun_path` without its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The newest answer of `start` that is understood.
const BOOTSTRAP_VERSION: &str = "3";

/// What every action of one pod's shim is called with.
#[derive(Debug, Clone)]
pub struct Calling {
    pub name: Name,
    pub program: PathBuf,
    pub namespace: String,
    /// Our own socket: where events go. In the environment of all that the shim starts, too, which is how that is found again.
    pub events: PathBuf,
    pub publish_binary: String,
}

/// Who reaps this process's children, where that is not the caller.
#[derive(Debug, Clone, Copy)]
pub struct Reaping<'a> {
    pub reaper: &'a Arc<Reaper>,
    pub runtime: &'a Handle,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Refers to a process that is no more.
    pub pidfd: OwnedFd,
    /// None: somebody else has reaped it.
    pub success: Option<bool>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Calling {
    /// Runs `action` for `id` in its bundle. Without `reaping` this thread reaps.
    pub fn run(
        &self,
        action: &'static str,
        id: &str,
        bundle: &Path,
        (stdin, deadline): (&[u8], Duration),
        reaping: Option<Reaping<'_>>,
    ) -> Result<Ran, Error> {
        let step = || format!("run its action `{action}`");
        let failed = |error: io::Error| self.name.error(step(), error.kind(), error);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
        let ((input, to_input), (out, to_out), (err, to_err)) = (pipe()?, pipe()?, pipe()?);
        if stdin.len() as u64 >= MAX_PRINTED {
            return Err(self.name.error(
                step(),
                ErrorKind::InvalidInput,
                "its options are too long",
            ));
        }
        File::from(to_input).write_all(stdin).map_err(failed)?;
        let mut command = Command::new(&self.program);
        command
            .args(["-namespace", &self.namespace, "-id", id])
            .arg("-address")
            .arg(&self.events)
            .args(["-publish-binary", &self.publish_binary]);
        if action == "delete" {
            command.arg("-bundle").arg(bundle);
        }
        command
            .arg(action)
            .current_dir(bundle)
            .env("TTRPC_ADDRESS", &self.events)
            .env("GRPC_ADDRESS", &self.events)
            .env("NAMESPACE", &self.namespace)
            .env("MAX_SHIM_VERSION", BOOTSTRAP_VERSION)
            .process_group(0)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(to_out))
            .stderr(Stdio::from(to_err));
        let held_off = reaping.map(|by| (by.reaper.hold_off(), by.reaper.making()));
        let mut child = command.spawn().map_err(failed)?;
        // The command's ends of the pipes go with it: what it left running holds copies, and is not waited for.
        drop(command);
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|errno| failed(errno.into()))?;
        let exit = held_off.map(|(_guard, making)| making.register(pid.as_raw_nonzero().get()));
        let in_time = ends_within(&pidfd, deadline).map_err(failed)?;
        if !in_time {
            // Its group, and so what it started unless that has left the group: such is found by its environment later.
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = ends_within(&pidfd, deadline);
        }
        let success = match (exit, reaping) {
            (Some(exit), Some(by)) => {
                let exit = by.runtime.block_on(async { timeout(REAPED, exit).await });
                exit.ok().and_then(Result::ok).map(|exit| exit.code == 0)
            }
            _ => child.wait().ok().map(|status| status.success()),
        };
        let stderr = String::from_utf8_lossy(&what_is_there(err).map_err(failed)?).into_owned();
        if !in_time {
            let said = printable(&stderr);
            let reason = format!(
                "it had not ended after {} ms{}{said}",
                deadline.as_millis(),
                if said.is_empty() { "" } else { ": " }
            );
            return Err(self.name.error(step(), ErrorKind::TimedOut, reason));
        }
        let stdout = what_is_there(out).map_err(failed)?;
        Ok(Ran {
            pidfd,
            success,
            stdout,
            stderr,
        })
    }
}

/// Whether the process has ended in time.
pub fn ends_within(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What a pipe holds now.
fn what_is_there(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    fcntl_setfl(pipe.as_fd(), fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
    let mut bytes = Vec::new();
    match File::from(pipe).take(MAX_PRINTED).read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(bytes),
    }
}

#[derive(Deserialize)]
struct Bootstrap {
    version: i64,
    address: String,
    protocol: String,
}

/// What `start` has printed: an address alone, which is a shim of task API 2, or a JSON object that says more.
pub fn address(printed: &[u8]) -> Result<Address, String> {
    let shown = || {
        let text: String = String::from_utf8_lossy(printed).chars().take(200).collect();
        format!("{text:?}")
    };
    let text = std::str::from_utf8(printed)
        .map_err(|_| format!("it printed {}, which is no text", shown()))?
        .trim();
    let (version, address) = if text.starts_with('{') {
        let bootstrap: Bootstrap = serde_json::from_str(text)
            .map_err(|error| format!("it printed {}: {error}", shown()))?;
        if bootstrap.protocol != "ttrpc" {
            let protocol: String = bootstrap.protocol.chars().take(100).collect();
            return Err(format!("it speaks {protocol:?}, not ttrpc"));
        }
        (bootstrap.version, bootstrap.address)
    } else {
        (2, text.to_owned())
    };
    let version = match version {
        2 => 2,
        3 => 3,
        other => {
            return Err(format!(
                "its bootstrap version is {other}; known are 2 and 3"
            ));
        }
    };
    match address.strip_prefix("unix://") {
        Some(path)
            if path.starts_with('/')
                && path.len() <= MAX_SOCKET_PATH_BYTES
                && !path.contains(char::is_control) =>
        {
            Ok(Address {
                socket: path.to_owned(),
                version,
            })
        }
        _ => Err(format!(
            "it printed {}, in which there is no address of a unix socket",
            shown()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_start_is_an_address_or_a_bootstrap_of_a_known_version() {
        let json = |version: i64, protocol: &str| {
            format!(r#"{{"version":{version},"address":"unix:///s","protocol":"{protocol}"}}"#)
        };
        for (printed, version) in [
            ("unix:///s".to_owned(), 2),
            (" unix:///s\n".to_owned(), 2),
            (json(2, "ttrpc"), 2),
            (json(3, "ttrpc"), 3),
        ] {
            let socket = "/s".to_owned();
            assert_eq!(
                address(printed.as_bytes()),
                Ok(Address { socket, version }),
                "{printed}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_not_understood_is_refused_with_the_reason_sec_eng_14() {
        for (printed, reason) in [
            (&b""[..], "no address"),
            (b"\xff\xfe", "no text"),
            (b"hello", "no address"),
            (b"unix://relative", "no address"),
            (b"vsock://3:1024", "no address"),
            (b"{", "it printed"),
            (br#"{"version":2}"#, "address"),
            (
                br#"{"version":4,"address":"unix:///s","protocol":"ttrpc"}"#,
                "version is 4",
            ),
            (
                br#"{"version":-1,"address":"unix:///s","protocol":"ttrpc"}"#,
                "version is -1",
            ),
            (
                br#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#,
                "\"grpc\", not ttrpc",
            ),
        ] {
            let error = address(printed).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let long = format!("unix:///{}", "x".repeat(200));
        assert!(address(long.as_bytes()).is_err());
    }

    fn calling(program: &Path) -> Calling {
        Calling {
            name: Name("test".into()),
            program: program.into(),
            namespace: "n".into(),
            events: "/nowhere".into(),
            publish_binary: String::new(),
        }
    }

    fn script(dir: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("shim");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_command_is_not_waited_for_by_what_it_has_left_running_rel_03() {
        let dir = tempfile::tempdir().unwrap();
        let shim = script(dir.path(), "cat; sleep 3 & echo no >&2; exit 3");
        let began = Instant::now();
        let ran = calling(&shim)
            .run(
                "start",
                "i",
                dir.path(),
                (b"in", Duration::from_secs(10)),
                None,
            )
            .unwrap();
        assert!(began.elapsed() < Duration::from_secs(2));
        assert_eq!((ran.success, &ran.stdout[..]), (Some(false), &b"in"[..]));
        assert_eq!(ran.stderr, "no\n");
    }

    #[test]
    fn a_command_that_hangs_is_ended_and_named_with_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let shim = script(dir.path(), "echo here >&2; sleep 100");
        let deadline = Duration::from_millis(300);
        let error = calling(&shim)
            .run("start", "i", dir.path(), (b"", deadline), None)
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("shim test: run its action `start`"), "{text}");
        assert!(text.contains("300 ms: here"), "{text}");
    }
}
