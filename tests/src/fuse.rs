//! A FUSE file system that stops answering, as a network file system does whose server is gone.
//!
//! A request that was read from /dev/fuse and never answered is waited for uninterruptibly (`request_wait_answer` in fs/fuse/dev.c): not
//! even SIGKILL ends the process. Closing the descriptor aborts the connection and lets everybody go.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What is asked (include/uapi/linux/fuse.h, 7.31).
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;
/// What needs no answer.
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const VERSION: (u32, u32) = (7, 31);
const IN_HEADER_LEN: usize = 40;
const S_IFDIR: u32 = 0o040_000;
/// More than the least that the kernel wants to be read with (FUSE_MIN_READ_BUFFER).
const BUFFER_LEN: usize = 64 << 10;

/// One that answers for its root alone, until it is told to be silent altogether. Dropped: everybody is let go, and it is unmounted.
#[derive(Debug)]
pub struct Silent {
    at: PathBuf,
    state: Arc<State>,
    device: Option<File>,
}

#[derive(Debug, Default)]
struct State {
    silent: AtomicBool,
    unanswered: AtomicUsize,
}

impl Silent {
    /// Mounts it at a directory. `None`: this machine has no FUSE.
    pub fn mount(at: &Path) -> Result<Option<Self>> {
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK)
            .open("/dev/fuse");
        let Ok(device) = device else {
            return Ok(None);
        };
        let mode = std::fs::metadata(at)?.permissions().mode() & 0o7777 | S_IFDIR;
        let data = format!(
            "fd={},rootmode={mode:o},user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        mount(
            Some("silent"),
            at,
            Some("fuse"),
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
            Some(data.as_str()),
        )
        .with_context(|| format!("mount FUSE at {}", at.display()))?;
        let state = Arc::<State>::default();
        let (serving, shared) = (device.try_clone()?, state.clone());
        let silent = Self {
            at: at.to_owned(),
            state,
            device: Some(device),
        };
        // Ends with its descriptor's connection; the clone is closed by then.
        std::thread::spawn(move || serve(serving, &shared));
        Ok(Some(silent))
    }

    /// From now on not even the root's attributes are told.
    pub fn be_silent(&self) {
        self.state.silent.store(true, Ordering::SeqCst);
    }

    /// How many requests wait for ever.
    pub fn unanswered(&self) -> usize {
        self.state.unanswered.load(Ordering::SeqCst)
    }

    /// Lets everybody go, with ENOTCONN.
    pub fn abort(&mut self) -> Result<()> {
        let Some(device) = self.device.take() else {
            return Ok(());
        };
        drop(device);
        // Ends the thread, whose clone keeps the connection.
        umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", self.at.display()))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.abort();
    }
}

fn serve(mut device: File, state: &State) {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let mut wanted = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&device),
            nix::poll::PollFlags::POLLIN,
        )];
        let _ = nix::poll::poll(&mut wanted, nix::poll::PollTimeout::NONE);
        let length = match device.read(&mut buffer) {
            Ok(length) if length >= IN_HEADER_LEN => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            // A request that was interrupted before it was read.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => continue,
            // ENODEV: the connection is aborted.
            _ => return,
        };
        let request = &buffer[..length];
        let number =
            |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap_or_default());
        let (opcode, unique) = (number(4), &request[8..16]);
        let silent = state.silent.load(Ordering::SeqCst);
        let (errno, body) = match opcode {
            INIT => (0, init()),
            FORGET | INTERRUPT | BATCH_FORGET => continue,
            opcode if silent || opcode == LOOKUP => {
                state.unanswered.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            GETATTR => (0, attributes()),
            // fuse_kstatfs
            STATFS => (0, vec![0; 80]),
            _ => (nix::libc::ENOSYS, vec![]),
        };
        let mut answer = (body.len() as u32 + 16).to_ne_bytes().to_vec();
        answer.extend_from_slice(&(-errno).to_ne_bytes());
        answer.extend_from_slice(unique);
        answer.extend_from_slice(&body);
        let _ = device.write_all(&answer);
    }
}

/// fuse_init_out
fn init() -> Vec<u8> {
    let mut out = [VERSION.0, VERSION.1, 4096, 0]
        .map(u32::to_ne_bytes)
        .concat();
    // max_background and congestion_threshold in one, max_write, time_gran.
    out.extend([12 | 9 << 16, 4096, 1].map(u32::to_ne_bytes).concat());
    out.resize(64, 0);
    out
}

/// fuse_attr_out of the root: valid for no time, so that each look is a request.
fn attributes() -> Vec<u8> {
    let mut out = vec![0; 16];
    // ino, size, blocks and three times; their nanoseconds.
    out.extend(1u64.to_ne_bytes());
    out.extend([0; 40]);
    out.extend([0; 12]);
    // mode, nlink, uid, gid, rdev, blksize, flags.
    out.extend(
        [S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0]
            .map(u32::to_ne_bytes)
            .concat(),
    );
    out
}
