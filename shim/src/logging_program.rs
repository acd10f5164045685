//! `binary://`: a program of the node that writes a container's log, by containerd's contract (its `core/runtime/v2/logging`): descriptor 3
//! is the container's stdout, 4 its stderr, and 5 is closed by the program when it is ready. It finds `CONTAINER_ID` and
//! `CONTAINER_NAMESPACE` in its environment, and nothing else of ours.

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::Signal,
};
use tokio::{
    net::unix::pipe::{Receiver, Sender},
    sync::oneshot,
    time::timeout,
};

use crate::{
    container::signal_process, error::Error, journal, reaper::Exit, stdio_uri::Outside,
    stream::set_nonblocking,
};

/// How long the program may take until it closes its descriptor 5.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to write down the last of a log, after the end of its input: containerd's own figure.
const LAST_LINES: Duration = Duration::from_secs(12);

#[derive(Debug)]
pub struct Logger {
    name: String,
    pidfd: OwnedFd,
    exited: oneshot::Receiver<Exit>,
}

/// Runs it. Answers what leads to its descriptors 3 and 4.
pub async fn start(
    outside: &Outside,
    id: &str,
    path: &Path,
    args: &[String],
) -> Result<(Sender, Sender, Logger), Error> {
    let name = format!("logging program {}", path.display());
    let step = || format!("start logging program {}", path.display());
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io(step()));
    let ((stdout, ours), (stderr, ours_too), (ready, readies)) = (pipe()?, pipe()?, pipe()?);
    let mut command = Command::new(path);
    command
        .args(args)
        .env_clear()
        .env("CONTAINER_ID", id)
        .env("CONTAINER_NAMESPACE", &outside.namespace)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mapping = [(stdout, 3), (stderr, 4), (readies, 5)];
    let mapping = mapping.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command
        .fd_mappings(mapping.into())
        .map_err(|error| Error::io(step())(std::io::Error::other(error)))?;
    let making = outside.reaper.making();
    // On this thread, which is also the reaper's: a program that can't be executed is waited for by the standard library itself.
    let child = command.spawn().map_err(Error::io(step()))?;
    let pid = child.id() as i32;
    let exited = making.register(pid);
    let pidfd = berth_kernel::pidfd::open(pid).map_err(Error::io(step()))?;
    // Our copies of its ends: what it closes is to be seen.
    drop((child, command));
    let mut logger = Logger {
        name,
        pidfd,
        exited,
    };
    let sender = |fd: OwnedFd| {
        set_nonblocking(&fd)?;
        Sender::from_owned_fd_unchecked(fd)
    };
    let open = || -> std::io::Result<_> {
        set_nonblocking(&ready)?;
        Ok((
            sender(ours)?,
            sender(ours_too)?,
            Receiver::from_owned_fd_unchecked(ready)?,
        ))
    };
    let (stdout, stderr, ready) = open().map_err(Error::io(step()))?;
    if timeout(READY, ready.readable()).await.is_err() {
        logger.kill();
        return Err(Error::Io {
            step: format!("wait for {} to close its descriptor 5", logger.name),
            source: std::io::ErrorKind::TimedOut.into(),
        });
    }
    // Ready by a byte or by closing it; by its end, too.
    if let Ok(exit) = logger.exited.try_recv() {
        return Err(Error::invalid(
            logger.name,
            format!("it ended with {} before it was ready", exit.code),
        ));
    }
    Ok((stdout, stderr, logger))
}

impl Logger {
    /// Its input has ended: lets it write the rest, but not for ever.
    pub async fn finish(mut self) {
        if timeout(LAST_LINES, &mut self.exited).await.is_err() {
            journal!(
                "{} goes on {} s after the end of its container and is killed",
                self.name,
                LAST_LINES.as_secs()
            );
            self.kill();
        }
    }

    fn kill(&self) {
        if let Err(error) = signal_process(&self.pidfd, Signal::KILL.as_raw(), || {
            format!("kill {}", self.name)
        }) {
            journal!("{error}");
        }
    }
}
