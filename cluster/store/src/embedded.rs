//! The store inside the server's own process, on fjall (a log-structured merge tree).
//!
//! Each value is written once, under its revision ([`disk`]); which revision of a key is the newest is in memory ([`crate::index`]) and found again at
//! the start from the small records beside the values. One thread writes ([`writer`]): whoever waits together is written together, with one fdatasync. What
//! was acknowledged is marked ([`mark`]), so that a log which lost its end is not taken for a shorter one. After the machine's own end no revision is given
//! a second time ([`boot`]).

mod boot;
mod disk;
mod mark;
mod versions;
mod writer;

use std::{
    fmt, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Error, Lease, LeaseId, RangeAnswer, RangeRequest, Revision, Status, Store, Txn, TxnAnswer,
    Watch, WatchRequest,
    core::{self, Core},
    leases,
};
use disk::Disk;
use writer::{Ask, Writer};

/// Who may wait for the writer at once; others wait for their turn to wait.
const WAITING: usize = 1024;

/// Ranges of more values than this are read beside the runtime's threads.
const INLINE: usize = 64;

/// Dropped, it writes what waits and closes.
pub struct Embedded {
    core: Arc<Core>,
    disk: Disk,
    path: PathBuf,
    turns: Semaphore,
    asks: Option<mpsc::Sender<Ask>>,
    writer: Option<JoinHandle<()>>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in `directory` and makes it where there is none (0700, files 0600). Reads every record but the values, whose checksums are looked at when they are read. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: something that was acknowledged is missing or damaged. [`Error::Broken`]: the directory can't be used, or another process has it.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        Self::open_in(directory, boot::id())
    }

    fn open_in(directory: &Path, boot: String) -> Result<Self, Error> {
        prepare(directory)?;
        let path = directory.to_owned();
        let (asks, asked) = mpsc::channel();
        let (opened, wait) = mpsc::channel();
        // fjall's threads are started from this one, and so make their files with its umask.
        let thread = std::thread::Builder::new()
            .name("berth-store".to_owned())
            .spawn(move || {
                let writer = match private_files().and_then(|()| Writer::open(&path, &boot)) {
                    Ok(writer) => writer,
                    Err(e) => {
                        let _ = opened.send(Err(e));
                        return;
                    }
                };
                let _ = opened.send(Ok((writer.core.clone(), writer.disk.clone())));
                drop(opened);
                writer.run(&asked);
            })
            .map_err(|e| broken("start the store's thread", e))?;
        let (core, disk) = wait
            .recv()
            .map_err(|_| broken("open the store", "its thread ended"))??;
        Ok(Self {
            core,
            disk,
            path: directory.to_owned(),
            turns: Semaphore::new(WAITING),
            asks: Some(asks),
            writer: Some(thread),
        })
    }

    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Ask,
    ) -> Result<T, Error> {
        let closed = || broken("write", "the store is closed");
        let _turn = self.turns.acquire().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        self.asks
            .as_ref()
            .and_then(|asks| asks.send(ask(answer)).ok())
            .ok_or_else(closed)?;
        answered.await.map_err(|_| closed())?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The directory, 0700 whatever it was.
fn prepare(directory: &Path) -> Result<(), Error> {
    let act = "prepare the store's directory";
    let broken = |e| broken(act, format!("{}: {e}", directory.display()));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| broken(e.to_string()))?;
    let found = directory
        .symlink_metadata()
        .map_err(|e| broken(e.to_string()))?;
    if !found.is_dir() {
        return Err(broken("it is no directory".to_owned()));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(broken(format!("it belongs to user {}", found.uid())));
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
        .map_err(|e| broken(e.to_string()))
}

/// Files that this thread, and those that it starts, make are 0600: with a umask of its own (unshare(2), CLONE_FS).
fn private_files() -> Result<(), Error> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
        .map_err(|e| broken("give the store's thread a umask of its own", e))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Whether what is wrong is what the files hold, and not the machine at this time: no room, no right, too many open files.
fn is_of_contents(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

fn broken(act: &'static str, why: impl fmt::Display) -> Error {
    Error::Broken {
        act,
        why: why.to_string(),
    }
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, Error> {
        if request.count_only
            || request.keys_only
            || matches!(request.keys, crate::Keys::One(_))
            || (1..=INLINE).contains(&request.limit)
        {
            return self.core.range(&request, &self.disk);
        }
        let (core, disk) = (self.core.clone(), self.disk.clone());
        tokio::task::spawn_blocking(move || core.range(&request, &disk))
            .await
            .map_err(|e| broken("read a range", e))?
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, Error> {
        core::check(&txn)?;
        self.ask(|answer| Ask::Txn(txn, answer)).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        self.core.watch(request, Arc::new(self.disk.clone()))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(|answer| Ask::Compact(revision, answer)).await
    }

    async fn lease_grant(&self, ttl: u64) -> Result<Lease, Error> {
        let ttl = ttl.clamp(1, leases::MAX_TTL);
        self.ask(|answer| Ask::Grant(ttl, answer)).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Lease, Error> {
        self.core.leases().keep_alive(id, Instant::now())
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.ask(|answer| Ask::Revoke(id, answer)).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.core.index().published)
    }

    async fn status(&self) -> Result<Status, Error> {
        let (revision, compacted) = {
            let index = self.core.index();
            (index.published, index.compacted)
        };
        Ok(Status {
            revision,
            compacted,
            size: self.disk.size()?,
        })
    }
}
