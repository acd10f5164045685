//! A fifo whose client has not come yet when all of its output is in it.
//!
//! containerd makes a fifo, opens it for reading in a thread beside, and asks for the process meanwhile: on a busy machine a short command has
//! ended before that thread runs. If the fifo's last holder went then, what is in it would go along, and the client would wait in its open
//! for a writer that never comes. So one end stays open until somebody reads, for a bounded time.

use std::{cell::Cell, io, os::fd::AsRawFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
};
use tokio::{
    net::unix::pipe::Sender,
    time::{Instant, sleep},
};

use crate::journal;

/// Far longer than a thread waits for a processor; a client that has not come by then has forgotten it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel tells nobody that a fifo has got a reader.
const LOOK: Duration = Duration::from_millis(10);
/// Fifos that are kept at a time, each for one descriptor.
const MAX_KEPT: usize = 64;

thread_local! {
    static KEPT: Cell<usize> = const { Cell::new(0) };
}

/// Closes a fifo when its client is there. Does not wait for it.
pub fn leave(fifo: Sender) {
    if KEPT.get() >= MAX_KEPT {
        journal!("output is lost: {MAX_KEPT} fifos wait for their clients already");
        return;
    }
    KEPT.set(KEPT.get() + 1);
    tokio::spawn(async move {
        if let Err(error) = wait(fifo, PATIENCE).await {
            journal!("output is lost: wait for the client of a fifo: {error}");
        }
        KEPT.set(KEPT.get() - 1);
    });
}

/// Whether a reader came in time.
async fn wait(fifo: Sender, patience: Duration) -> io::Result<bool> {
    // Ours reads, too: without it the kernel says whether another one does (pipe(7): POLLERR). What is written stays while an end is open.
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let writer = open(path, flags, Mode::empty())?;
    drop(fifo);
    let until = Instant::now() + patience;
    loop {
        let mut sources = [PollFd::new(&writer, PollFlags::empty())];
        poll(&mut sources, Some(&Timespec::default()))?;
        if !sources[0].revents().contains(PollFlags::ERR) {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::stdio_uri::fifo_out;

    async fn fifo(dir: &Path) -> (PathBuf, Sender) {
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut sender = fifo_out(path.to_str().unwrap()).unwrap();
        sender.write_all(b"late").await.unwrap();
        (path, sender)
    }

    #[tokio::test]
    async fn who_comes_late_reads_all_of_it_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, sender) = fifo(dir.path()).await;
        leave(sender);
        sleep(Duration::from_millis(100)).await;
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path));
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        assert_eq!(read.expect("it never ends").unwrap().unwrap(), "late");
        sleep(2 * LOOK).await;
        assert_eq!(KEPT.get(), 0);
    }

    #[tokio::test]
    async fn who_never_comes_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (path, sender) = fifo(dir.path()).await;
        assert!(!wait(sender, Duration::from_millis(50)).await.unwrap());
        // Nobody holds it any more.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let alone = open(&path, flags, Mode::empty()).unwrap_err();
        assert_eq!(alone, rustix::io::Errno::NXIO);
    }

    #[tokio::test]
    async fn more_than_some_are_let_go_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, sender) = fifo(dir.path()).await;
        KEPT.set(MAX_KEPT);
        leave(sender);
        KEPT.set(0);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        assert!(open(&path, flags, Mode::empty()).is_err());
    }
}
