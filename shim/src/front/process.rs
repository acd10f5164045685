//! What runs beside the calls: processes are followed to their end, the other shim to its, and its log is read.

use std::{
    io::ErrorKind,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use berth_engine::Error;
use berth_proto::shim::api::{
    CloseIORequest, DeleteRequest, DeleteResponse, Empty, WaitRequest, WaitResponse,
};
use berth_shim_client::failure::line as shown;
use rustix::process::Pid;
use tokio::{
    io::AsyncReadExt,
    net::{UnixStream, unix::pipe::Receiver},
    pin, select,
    time::{sleep, timeout},
};

use super::{Front, client::Client, leftovers};
use crate::{clock, container::lock, journal, reaper::Exit};

/// How long a shim may take to tell of an end whose exit code can be seen already, since it has not reaped the process.
const WORD: Duration = Duration::from_secs(2);
/// How long where it has: some tell of no end while they make a container, and a busy machine takes its time for that.
const REAPED_WORD: Duration = Duration::from_secs(30);
/// What is said of a process whose end nobody told: it was killed.
const KILLED: i32 = 137;
/// An exec's last output: the shim itself waits for it as long as this.
const EXEC_DELETE: Duration = Duration::from_secs(15);
const CLOSE_IO: Duration = Duration::from_secs(5);
/// A shim that closes a connection and lives is connected to again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// Of a shim's log, as much goes into ours.
const MAX_LOG_BYTES: usize = 1 << 20;
/// From a process up to this one there are a shim and perhaps what it forks; no chain is longer.
const MAX_DEPTH: usize = 32;

#[derive(Debug)]
pub struct Watched {
    pub pid: i32,
    pub id: String,
    /// Empty: the container's init.
    pub exec_id: String,
}

/// Waits for a process's end and hands it to the reaper. It is told by the shim, whose child it is; where the shim does not tell, by the
/// kernel.
pub(super) async fn follow(
    front: Arc<Front>,
    client: Arc<Client>,
    process: Watched,
    pidfd: OwnedFd,
) {
    let Watched { pid, id, exec_id } = process;
    let request = WaitRequest {
        id: id.clone(),
        exec_id: exec_id.clone(),
        ..Default::default()
    };
    let what = format!("container {id}");
    // A pidfd is readable when its process has ended, and nothing is ever read of it.
    let pidfd = Receiver::from_owned_fd_unchecked(pidfd).ok();
    {
        let wait = client.call::<WaitResponse>("Wait", &what, &request, None);
        pin!(wait);
        let mut unreaped = None;
        let told = select! {
            told = &mut wait => Some(told),
            () = gone(&pidfd) => {
                unreaped = zombie_exit(pid);
                let patience = if unreaped.is_some() { WORD } else { REAPED_WORD };
                timeout(patience, &mut wait).await.ok()
            }
        };
        match told {
            Some(Ok(answer)) => {
                let at = answer
                    .exited_at
                    .as_ref()
                    .map(|at| at.seconds.saturating_mul(1_000_000_000) + i64::from(at.nanos))
                    .filter(|at| *at > 0)
                    .unwrap_or_else(clock::now_ns);
                front.reaper.note(
                    pid,
                    Exit {
                        code: answer.exit_status as i32,
                        at,
                    },
                );
            }
            untold => {
                if let Some(Err(error)) = untold {
                    journal!("{error}");
                }
                gone(&pidfd).await;
                let at = clock::now_ns();
                if unreaped.is_none() {
                    // Where the shim has died, the process was ours at the end and its exit is known.
                    sleep(WORD).await;
                }
                let code = unreaped.unwrap_or(KILLED);
                front.reaper.note_awaited(pid, Exit { code, at });
            }
        }
    }
    lock(&front.state).names.remove(&pid);
    if exec_id.is_empty() {
        return;
    }
    let request = DeleteRequest {
        id,
        exec_id,
        ..Default::default()
    };
    let deleted: Result<DeleteResponse, Error> = client
        .call("Delete", "a command", &request, Some(EXEC_DELETE))
        .await;
    match deleted {
        Ok(_) => {}
        // It went with its container.
        Err(Error::Shim {
            kind: ErrorKind::NotFound | ErrorKind::BrokenPipe,
            ..
        }) => {}
        Err(error) => journal!("{error}"),
    }
}

/// The exit code of a process that has ended and was not reaped: the last field of its /proc/PID/stat, in wait(2)'s form (Linux 3.5; for
/// who may trace it).
fn zombie_exit(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses, and may hold any.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    if fields.next()? != "Z" {
        return None;
    }
    let status: i32 = fields.last()?.parse().ok()?;
    match status & 0x7f {
        0 => Some(status >> 8 & 0xff),
        signal => Some(128 + signal),
    }
}

/// Waits for the end of the process.
async fn gone(process: &Option<Receiver>) {
    let Some(process) = process else {
        // No descriptor was left for it: the shim's word has to do.
        return std::future::pending().await;
    };
    let _ = process.readable().await;
}

/// The end of what a client had for a process.
pub async fn close_stdin(client: &Client, id: &str, exec_id: &str) -> Result<(), Error> {
    let request = CloseIORequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        stdin: true,
        ..Default::default()
    };
    let what = format!("stdin of {id}");
    let closed: Result<Empty, Error> = client
        .call("CloseIO", &what, &request, Some(CLOSE_IO))
        .await;
    match closed {
        // It has ended, and its stdin with it.
        Err(Error::Shim {
            kind: ErrorKind::NotFound | ErrorKind::BrokenPipe,
            ..
        }) => Ok(()),
        closed => closed.map(drop),
    }
}

/// Notices the shim's end: a connection of its own on which nothing is ever said.
pub async fn guard(front: Arc<Front>, socket: String) {
    while let Ok(mut connection) = UnixStream::connect(&socket).await {
        let _ = connection.read(&mut [0; 64]).await;
        sleep(AGAIN).await;
    }
    let lost = tokio::task::spawn_blocking(move || front.lose());
    let _ = lost.await;
}

/// The shim's log, a line at a time. What is more than can be of use is read and dropped: the shim must not wait for us.
pub async fn drain_log(mut source: Receiver, name: String) {
    let mut left = MAX_LOG_BYTES;
    let mut buffer = vec![0; 4096];
    while let Ok(read) = source.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        if left == 0 {
            continue;
        }
        for line in String::from_utf8_lossy(&buffer[..read]).lines() {
            journal!("{name} says: {}", shown(line));
        }
        left = left.saturating_sub(read);
        if left == 0 {
            journal!("{name} has said {MAX_LOG_BYTES} bytes; the rest is dropped");
        }
    }
}

/// Whether a process descends from this one.
pub fn is_below_us(pid: Pid) -> bool {
    let own = std::process::id() as i32;
    let mut at = pid.as_raw_nonzero().get();
    for _ in 0..MAX_DEPTH {
        if at <= 1 {
            return false;
        }
        let Ok(status) = std::fs::read_to_string(format!("/proc/{at}/status")) else {
            return false;
        };
        let parent = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .and_then(|parent| parent.trim().parse().ok());
        match parent {
            Some(parent) if parent == own => return true,
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

/// Names within this shim: nobody else gives any.
pub fn exec_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("berth-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until no process of the shim is left, or the time is up.
pub fn wait_for_none(events: &Path, patience: Duration) {
    let until = Instant::now() + patience;
    while !leftovers::processes(events).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a runtime says of a command that it can't run is the container's own failure, with the exit code that a shell gives it. There is
/// no field for it: it is told from runc's and crun's words.
pub fn command_error(error: Error) -> Error {
    let Error::Shim {
        reason,
        kind: ErrorKind::Other,
        ..
    } = &error
    else {
        return error;
    };
    let exit_code = if reason.contains("executable file") && reason.contains("not found")
        || reason.contains("exec: ") && reason.contains("no such file or directory")
    {
        127
    } else if reason.contains("exec: ") && reason.contains("permission denied")
        || reason.contains("exec: ") && reason.contains("exec format error")
        || reason.contains("exec: ") && reason.contains("is a directory")
    {
        126
    } else {
        return error;
    };
    Error::Command {
        exit_code,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::client::Name;

    #[test]
    fn a_command_that_can_not_be_run_is_told_from_a_failure_of_the_shim() {
        for (reason, code) in [
            (
                r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "x": executable file not found in $PATH: unknown"#,
                Some(127),
            ),
            (
                "executable file `x` not found in $PATH: No such file or directory: OCI command not found: unknown",
                Some(127),
            ),
            (
                r#"unable to start container process: exec: "/etc": permission denied"#,
                Some(126),
            ),
            (
                r#"unable to start container process: exec: "/x": stat /x: no such file or directory"#,
                Some(127),
            ),
            (
                "unable to apply cgroup configuration: permission denied",
                None,
            ),
            ("cannot enter namespace: no such file or directory", None),
        ] {
            let error = command_error(Name("s".into()).error("Start", ErrorKind::Other, reason));
            let found = match error {
                Error::Command { exit_code, .. } => Some(exit_code),
                _ => None,
            };
            assert_eq!(found, code, "{reason}");
        }
    }

    #[test]
    fn the_exit_code_of_a_process_that_nobody_has_reaped_is_the_kernels() {
        for (script, code) in [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137)] {
            let mut child = std::process::Command::new("sh")
                .args(["-c", script])
                .spawn()
                .unwrap();
            let pid = child.id() as i32;
            let began = Instant::now();
            let found = loop {
                match zombie_exit(pid) {
                    None if began.elapsed() < Duration::from_secs(5) => {}
                    found => break found,
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(found, Some(code), "{script}");
            child.wait().unwrap();
            assert_eq!(zombie_exit(pid), None);
        }
    }

    #[test]
    fn only_what_descends_from_this_process_is_below_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        assert!(is_below_us(Pid::from_child(&child)));
        assert!(!is_below_us(Pid::INIT));
        assert!(!is_below_us(
            Pid::from_raw(std::process::id() as i32).unwrap()
        ));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
