//! The streams of a process that another shim makes. It is given paths and opens them itself: those of our pipes in /proc, so that no
//! fifo lies about.

use std::os::fd::{AsRawFd, OwnedFd};

use berth_engine::{Error, Stdio};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{Receiver, Sender},
    runtime::Handle,
};

use super::client::Name;

/// One read of what goes into a process: people type, or pipe a file.
const READ_BYTES: usize = 8 << 10;

/// What is absent is told by this where another stream is there: not every shim takes an empty path then.
const NOWHERE: &str = "/dev/null";

/// The other shim's ends. Kept until it has answered that it opened them.
#[derive(Debug)]
pub struct Streams {
    given: Stdio,
    /// Our reading end of what the process is to get, and the pipe that the shim reads.
    input: Option<(OwnedFd, OwnedFd)>,
}

impl Streams {
    pub fn lay(name: &Name, mut stdio: Stdio) -> Result<Streams, Error> {
        // The shim opens both ends of its stdin, so that it does not end with a client: it is closed by CloseIO and by nothing else. So
        // the end of ours has to be noticed here, and is noticed by reading.
        let input = match stdio.stdin.take() {
            None => None,
            Some(ours) => {
                let (theirs, feed) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| {
                    name.error(
                        "make a pipe for it",
                        std::io::Error::from(errno).kind(),
                        errno,
                    )
                })?;
                stdio.stdin = Some(theirs);
                Some((ours, feed))
            }
        };
        Ok(Streams {
            given: stdio,
            input,
        })
    }

    /// stdin, stdout, stderr
    pub fn paths(&self, tty: bool) -> [String; 3] {
        let path = |fd: &Option<OwnedFd>| match fd {
            Some(fd) => format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()),
            None => String::new(),
        };
        let Stdio {
            stdin,
            stdout,
            stderr,
        } = &self.given;
        let mut paths = [path(stdin), path(stdout), path(stderr)];
        if paths.iter().any(|path| !path.is_empty()) {
            let outputs = if tty { 1..2 } else { 1..3 };
            for path in &mut paths[outputs] {
                if path.is_empty() {
                    *path = NOWHERE.into();
                }
            }
        }
        paths
    }

    /// Lets the input flow; `close` is called at its end. The other shim has opened what it was given.
    pub fn open(
        self,
        runtime: &Handle,
        close: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let Some((ours, feed)) = self.input else {
            return Ok(());
        };
        for fd in [&ours, &feed] {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        let _entered = runtime.enter();
        let source = Receiver::from_owned_fd(ours)?;
        let sink = Sender::from_owned_fd(feed)?;
        runtime.spawn(async move {
            if carry(source, sink).await {
                close.await;
            }
        });
        Ok(())
    }
}

/// Carries until the client's end is closed (true), or the process takes nothing any more (false).
async fn carry(source: Receiver, mut sink: Sender) -> bool {
    let mut buffer = Vec::new();
    loop {
        if source.readable().await.is_err() {
            return true;
        }
        buffer.resize(READ_BYTES, 0);
        match source.try_read(&mut buffer) {
            Ok(0) => return true,
            Ok(read) => {
                if sink.write_all(&buffer[..read]).await.is_err() {
                    return false;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
        // An input is silent most of its time.
        buffer = Vec::new();
    }
}
