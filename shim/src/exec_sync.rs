//! ExecSync: runs a command in a container and answers with its whole output ([`crate::exec_output`]). What probes do, thousands of
//! times a day, so it leaves nothing behind: no thread, no fifo, no file.
//!
//! Bounds:
//! - Of each stream the first 16 MiB are kept; the rest is read and dropped, so the command is not stopped by it (SEC-CRI-01).
//! - At the timeout, and where its caller is gone, the command, its session and all its descendants are killed.
//! - When the command has ended, what it left running may hold its pipes: the answer does not wait for that (REL-10).

use std::{
    collections::HashMap,
    future::pending,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_engine::{Error as EngineError, Exec, Stdio};
use berth_proto::shim::v1::pod::{ExecSyncRequest, ExecSyncResponse};
use oci_spec::runtime::Process;
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, getsid, kill_process},
};
use tokio::{
    net::unix::pipe::Receiver,
    select,
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    container::{Container, lock},
    error::Error,
    exec::must_run,
    exec_output::{MAX_ANSWER_BYTES, Output, Outputs},
    journal,
    pod::{Pod, blocking},
    reaper::Exit,
};

/// Bytes kept of a stream, whatever the request says.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// One read: what a pipe holds.
const READ_BYTES: usize = 64 << 10;
/// The first read.
const MIN_READ_BYTES: usize = 4 << 10;
/// After the command's end: how long a silent pipe is waited for.
const DRAIN_SILENCE: Duration = Duration::from_millis(500);
/// The same where another shim carries the output: what the command has written may still be on its way through it.
const CARRIED_SILENCE: Duration = Duration::from_secs(2);
/// After the command's end: how long a pipe that somebody still writes to is read.
const DRAIN_TOTAL: Duration = Duration::from_secs(5);
/// After SIGKILL: a process in uninterruptible sleep (a dead network file system) may not end at all.
const KILLED_WAIT: Duration = Duration::from_secs(1);
/// How long a container that can't be entered may take until its end is known.
const ENDING_WAIT: Duration = Duration::from_millis(200);
/// Rounds of killing: each may find what was forked during the one before.
const KILL_ROUNDS: usize = 8;

/// Exit code of a command that was killed at its timeout.
const KILLED: i32 = 137;

/// Calls that their callers can end: ttrpc has no word for that. As many as [`Outputs`] admits, since each is struck off with its
/// handler.
#[derive(Debug, Default)]
pub struct Calls(Mutex<HashMap<String, oneshot::Sender<()>>>);

/// A call's place in [`Calls`]. Dropped with its handler, which ends the call, too.
#[derive(Debug)]
pub struct Caller<'a> {
    calls: &'a Calls,
    id: String,
    /// Of a call without a name.
    _here: Option<oneshot::Sender<()>>,
}

impl Calls {
    /// What tells [`run`] that its caller is gone, and what must be kept until then.
    pub fn enter(&self, id: String) -> (Caller<'_>, oneshot::Receiver<()>) {
        let (here, gone) = oneshot::channel();
        let mut caller = Caller {
            calls: self,
            id,
            _here: None,
        };
        if caller.id.is_empty() {
            caller._here = Some(here);
        } else {
            lock(&self.0).insert(caller.id.clone(), here);
        }
        (caller, gone)
    }

    pub fn cancel(&self, id: &str) {
        let here = lock(&self.0).remove(id);
        drop(here);
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.calls.cancel(&self.id);
    }
}

/// One stream on its way.
#[derive(Debug)]
struct Capture {
    source: Option<Receiver>,
    kept: Output,
    limit: usize,
    truncated: bool,
    buffer: Vec<u8>,
}

impl Capture {
    fn new(fd: OwnedFd, limit: usize) -> Result<Capture, Error> {
        let source = Receiver::from_owned_fd(fd).map_err(Error::io("watch an exec's output"))?;
        Ok(Capture {
            source: Some(source),
            kept: Output::default(),
            limit,
            truncated: false,
            buffer: Vec::new(),
        })
    }

    /// Reads once; never answers when the stream has ended. Cancel-safe.
    async fn read(&mut self) {
        let Some(source) = &self.source else {
            return pending().await;
        };
        if source.readable().await.is_err() {
            self.source = None;
            return;
        }
        let wanted = self.kept.len().clamp(MIN_READ_BYTES, READ_BYTES);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        match source.try_read(&mut self.buffer) {
            Ok(0) => self.source = None,
            Ok(read) => self.keep(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.source = None,
        }
    }

    /// Keeps of the first `read` bytes of the buffer what there is room for.
    fn keep(&mut self, read: usize) {
        let room = (self.limit - self.kept.len()).min(read);
        self.truncated |= room < read;
        if let Err(error) = self.kept.append(&self.buffer[..room]) {
            // What is there is there; no more memory is asked for.
            journal!("keep an exec's output: {error}");
            self.truncated = true;
            self.limit = self.kept.len();
        }
    }
}

/// Runs the command. `gone` resolves when the caller is: then nobody needs the command any more.
pub async fn run(
    pod: Arc<Pod>,
    container: Arc<Container>,
    request: ExecSyncRequest,
    gone: oneshot::Receiver<()>,
) -> Result<ExecSyncResponse, Error> {
    must_run(&container)?;
    if request.args.is_empty() {
        return Err(Error::invalid("command", "it is empty"));
    }
    let deadline = (request.timeout_ms > 0)
        .then(|| Instant::now().checked_add(Duration::from_millis(request.timeout_ms)))
        .flatten();
    let limit = match request.output_limit as usize {
        0 => MAX_OUTPUT_BYTES,
        limit => limit.min(MAX_OUTPUT_BYTES),
    };
    let place = pod.outputs.admit()?;
    let (process, mut out, mut err, mut exited) =
        begin(&pod, &container, request.args, limit).await?;

    let patience = match pod.engine.carries_streams() {
        true => CARRIED_SILENCE,
        false => DRAIN_SILENCE,
    };
    let mut exit: Option<Exit> = None;
    let mut timed_out = false;
    let mut wanted = true;
    let mut drained_by: Option<Instant> = None;
    let mut gone = std::pin::pin!(gone);
    let at_deadline = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => pending().await,
        }
    };
    let mut at_deadline = std::pin::pin!(at_deadline);
    while exit.is_none() || out.source.is_some() || err.source.is_some() {
        let silence = async {
            match drained_by {
                Some(by) => sleep_until(by.min(Instant::now() + patience)).await,
                None => pending().await,
            }
        };
        select! {
            biased;
            ended = &mut exited, if exit.is_none() => {
                exit = Some(ended.map_err(|_| Error::Lost("the reaper"))?);
                drained_by = Some(Instant::now() + DRAIN_TOTAL);
            }
            () = &mut at_deadline => {
                timed_out = exit.is_none();
                break;
            }
            _ = &mut gone => {
                timed_out = exit.is_none();
                wanted = false;
                break;
            }
            () = out.read() => {}
            () = err.read() => {}
            () = silence => break,
        }
    }
    if timed_out {
        kill_tree(&container, process.pid, &process.pidfd).await;
        if let Ok(Ok(ended)) = timeout(KILLED_WAIT, &mut exited).await {
            exit = Some(ended);
        } else {
            journal!(
                "exec {} in container {} is still alive after SIGKILL",
                process.pid,
                container.id
            );
        }
    }
    let mut response = ExecSyncResponse {
        exit_code: if timed_out {
            KILLED
        } else {
            exit.map_or(KILLED, |exit| exit.code)
        },
        timed_out,
        truncated: out.truncated || err.truncated,
        stdout_size: out.kept.len() as u64,
        stderr_size: err.kept.len() as u64,
        ..Default::default()
    };
    let whole = out.kept.len() + err.kept.len() <= MAX_ANSWER_BYTES;
    let share = if whole {
        MAX_ANSWER_BYTES
    } else {
        MAX_ANSWER_BYTES / 2
    };
    let read = |kept: &Output| {
        kept.read(0, share)
            .map_err(Error::io("read an exec's output"))
    };
    (response.stdout, response.stderr) = (read(&out.kept)?, read(&err.kept)?);
    // Of a command that was killed at its timeout nobody fetches the rest.
    if !whole && !timed_out && wanted {
        response.output_token = Outputs::keep(&pod, place, out.kept, err.kept);
    }
    Ok(response)
}

type Begun = (
    berth_engine::Process,
    Capture,
    Capture,
    oneshot::Receiver<Exit>,
);

/// Starts the command as the container's own process, with other arguments and without a console.
async fn begin(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    args: Vec<String>,
    limit: usize,
) -> Result<Begun, Error> {
    let mut process: Process = serde_json::from_str(&container.process)
        .map_err(|error| Error::invalid("process of the spec", error))?;
    process
        .set_args(Some(args))
        .set_terminal(Some(false))
        .set_console_size(None);
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("make a pipe"));
    let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
    let captures = (Capture::new(out, limit)?, Capture::new(err, limit)?);
    let stdio = Stdio {
        stdin: None,
        stdout: Some(stdout),
        stderr: Some(stderr),
    };
    let request = Exec {
        container_id: container.id.clone(),
        process,
        stdio,
        tty: false,
    };
    let making = pod.reaper.making();
    let engine = pod.engine.clone();
    let made = blocking("exec", move || Ok(engine.exec(request)?)).await;
    if let Err(Error::Engine(EngineError::Command { message, .. })) = &made {
        journal!("exec in container {}: {message}", container.id);
    }
    if matches!(
        made,
        Err(Error::Engine(
            EngineError::Io { .. } | EngineError::Shim { .. }
        ))
    ) && tokio::time::timeout(ENDING_WAIT, container.ended())
        .await
        .is_ok()
    {
        // It ended under the command: the kernel then refuses to enter it (ESRCH) or to fork in it (ENOMEM).
        must_run(container)?;
    }
    let process = made?;
    let exited = making.register(process.pid);
    Ok((process, captures.0, captures.1, exited))
}

/// Kills the command, its session and its descendants, until none is found.
///
/// A process that was orphaned and has left the session escapes, as it does under any runtime; it stays in the container's cgroup
/// and ends with the container.
async fn kill_tree(container: &Arc<Container>, pid: i32, pidfd: &OwnedFd) {
    let cgroup = container.cgroup.clone();
    let own = getsid(None).ok();
    // The session is the command's own when it leads one; it may also be one that others share.
    let session = Pid::from_raw(pid).filter(|pid| Some(*pid) != own);
    // Descendants first: with the command's death they would be adopted and not be told apart.
    let mut found = descendants(pid);
    let _ = berth_kernel::pidfd::send_signal(pidfd, Signal::KILL.as_raw());
    let killed = blocking("kill of an exec", move || {
        for _ in 0..KILL_ROUNDS {
            let members = cgroup
                .as_ref()
                .map(|cgroup| cgroup.procs())
                .transpose()?
                .unwrap_or_default();
            let of_session = members.into_iter().filter(|member| {
                session.is_some()
                    && Pid::from_raw(*member).and_then(|member| getsid(Some(member)).ok())
                        == session
            });
            found.extend(of_session);
            found.retain(|member| *member != pid);
            if found.is_empty() {
                break;
            }
            for member in std::mem::take(&mut found) {
                found.extend(descendants(member));
                if let Some(member) = Pid::from_raw(member) {
                    // Gone already: what was wanted.
                    let _ = kill_process(member, Signal::KILL);
                }
            }
        }
        Ok(())
    });
    if let Err(error) = killed.await {
        journal!(
            "kill what exec {pid} in container {} has left: {error}",
            container.id
        );
    }
}

/// Children and theirs, by the kernel's own list (CONFIG_PROC_CHILDREN, Linux 4.2).
fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", all[at]))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let children =
                std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|child| child.parse::<i32>().ok()),
            );
        }
        at += 1;
    }
    all.remove(0);
    all
}
