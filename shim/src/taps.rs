//! Clients that are attached to a running process: each gets a copy of its output, and may write to its stdin.
//!
//! Decisions:
//! - A client's fifo is written where the log is, and never waited for. One that is full for want of a reader is closed: its client sees
//!   the end of the stream, not a stream with a hole in it, and the log has everything.
//! - Nothing from before the attach is told: that is what the log is for.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{Mode, OFlags, open},
    pipe::fcntl_setpipe_size,
};
use tokio::task::AbortHandle;

use crate::{cri_log::Stream, error::Error};

/// Attached to one process at a time; each holds up to three descriptors and two pipes' worth of bytes.
pub const MAX_TAPS: usize = 32;

/// What a client may be behind, as far as the kernel allows (it halves what a user without privilege asks for, or keeps 64 KiB): a
/// megabyte is a screen that scrolls for some seconds.
const TAP_BYTES: usize = 1 << 20;

/// Where one client's copies go.
#[derive(Debug, Default)]
pub struct Tap {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    input: Option<AbortHandle>,
}

impl Tap {
    /// Opens the fifos; an empty path: not wanted. Their readers must be there (ENXIO).
    pub fn open(stdout: &str, stderr: &str) -> Result<Tap, Error> {
        let open = |path: &str| -> Result<Option<OwnedFd>, Error> {
            if path.is_empty() {
                return Ok(None);
            }
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fifo =
                open(path, flags, Mode::empty()).map_err(Error::io(format!("open fifo {path}")))?;
            // Less room is no failure.
            let _ = fcntl_setpipe_size(&fifo, TAP_BYTES);
            Ok(Some(fifo))
        };
        Ok(Tap {
            stdout: open(stdout)?,
            stderr: open(stderr)?,
            input: None,
        })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

/// A process's clients, by their own names.
#[derive(Debug, Default)]
pub struct Taps(Mutex<BTreeMap<String, Tap>>);

impl Taps {
    pub fn insert(&self, id: &str, tap: Tap) -> Result<(), Error> {
        let mut taps = self.lock();
        if taps.len() >= MAX_TAPS {
            return Err(Error::invalid(
                "attach",
                format!("{MAX_TAPS} clients are attached already"),
            ));
        }
        if taps.contains_key(id) {
            return Err(Error::invalid(
                "attach",
                format!("{id} is attached already"),
            ));
        }
        taps.insert(id.to_owned(), tap);
        Ok(())
    }

    /// The task that carries a client's input; it ends with the client.
    pub fn feed(&self, id: &str, input: AbortHandle) {
        match self.lock().get_mut(id) {
            Some(tap) => tap.input = Some(input),
            // Detached meanwhile.
            None => input.abort(),
        }
    }

    /// One that is not there is no error: its process may have ended.
    pub fn remove(&self, id: &str) {
        let tap = self.lock().remove(id);
        drop(tap);
    }

    /// Ends every client's streams.
    pub fn close(&self) {
        let taps = std::mem::take(&mut *self.lock());
        drop(taps);
    }

    /// Gives every client its copy.
    pub fn spread(&self, stream: Stream, bytes: &[u8]) {
        for tap in self.lock().values_mut() {
            let fifo = match stream {
                Stream::Stdout => &mut tap.stdout,
                Stream::Stderr => &mut tap.stderr,
            };
            let Some(open) = fifo else { continue };
            let whole = loop {
                match rustix::io::write(&*open, bytes) {
                    Err(rustix::io::Errno::INTR) => {}
                    written => break written == Ok(bytes.len()),
                }
            };
            if !whole {
                *fifo = None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Tap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, OpenOptions},
        io::Read,
        os::unix::fs::OpenOptionsExt,
        path::Path,
    };

    use super::*;

    fn fifo(path: &Path) -> File {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut options = OpenOptions::new();
        options.custom_flags(OFlags::NONBLOCK.bits() as i32);
        options.read(true).open(path).unwrap()
    }

    #[test]
    fn each_client_gets_its_copy_and_one_that_does_not_read_sees_an_end_and_no_hole() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let (mut reader, mut lazy) = (fifo(&one), fifo(&two));
        let taps = Taps::default();
        for (id, path) in [("one", &one), ("two", &two)] {
            let tap = Tap::open(path.to_str().unwrap(), "").unwrap();
            taps.insert(id, tap).unwrap();
        }
        let chunk = vec![b'x'; 32 << 10];
        let mut read = 0;
        let mut buffer = vec![0; 64 << 10];
        // More than any pipe holds.
        for _ in 0..2 * TAP_BYTES / chunk.len() {
            taps.spread(Stream::Stdout, &chunk);
            taps.spread(Stream::Stderr, b"nobody asked for it");
            read += reader.read(&mut buffer).unwrap();
        }
        assert_eq!(read, 2 * TAP_BYTES, "the one that reads has lost bytes");
        let mut all = Vec::new();
        // To its end, which a nonblocking reader sees only where the writer has closed.
        lazy.read_to_end(&mut all).unwrap();
        assert!(!all.is_empty() && all.len() <= TAP_BYTES && all.iter().all(|b| *b == b'x'));
        taps.remove("one");
        taps.remove("one");
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn clients_are_bounded_and_have_names_of_their_own() {
        let taps = Taps::default();
        for at in 0..MAX_TAPS {
            taps.insert(&at.to_string(), Tap::default()).unwrap();
        }
        assert!(taps.insert("more", Tap::default()).is_err());
        taps.remove("0");
        assert!(taps.insert("1", Tap::default()).is_err());
        taps.insert("more", Tap::default()).unwrap();
        assert!(Tap::open("/no/such/fifo", "").is_err());
    }
}
