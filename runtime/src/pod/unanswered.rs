//! Whether the file systems of a container's volumes answer, asked where the question can wait for ever.
//!
//! Who looks at a path of a network or FUSE file system whose server is gone waits uninterruptibly, for hours. In one of the daemon's few
//! blocking threads that would be everybody's wait; so each create asks in a thread of its own first, and is refused when no answer comes.
//!
//! # Synchronization
//!
//! A path whose question has outlived [`PATIENCE`] stands in [`SILENT`] until its thread is answered, and is not asked again meanwhile: a
//! kubelet that tries for days costs one thread a volume.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use berth_proto::cri;
use tokio::sync::{Semaphore, oneshot};

use crate::error::Error;

/// A slow server answers within some seconds; a kubelet waits for a create for two minutes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Threads that ask: more than a node has volumes that hang.
const MOST: usize = 64;
static ASKING: Semaphore = Semaphore::const_new(MOST);
/// A thread here makes two system calls.
const STACK_BYTES: usize = 64 << 10;

static SILENT: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());

fn silent() -> MutexGuard<'static, BTreeMap<PathBuf, Instant>> {
    SILENT.lock().unwrap_or_else(|e| e.into_inner())
}

/// Ends within [`PATIENCE`]: with an error that names the mount whose file system does not answer.
pub async fn ask(config: &cri::ContainerConfig) -> Result<(), Error> {
    let paths: Vec<PathBuf> = config
        .mounts
        .iter()
        .filter(|mount| berth_spec::volume_image(mount).is_none())
        .map(|mount| PathBuf::from(&mount.host_path))
        .collect();
    if paths.is_empty() {
        return Ok(());
    }
    let stuck = |path: &Path, since: Instant| Error::Stuck {
        what: format!(
            "mount of {} (its file system does not answer: is its server there?)",
            path.display()
        ),
        stage: "look at the host path",
        since: since.elapsed(),
    };
    for path in &paths {
        if let Some(since) = silent().get(path) {
            return Err(stuck(path, *since));
        }
    }
    let since = Instant::now();
    let at = Arc::new(Mutex::new(None));
    let answered = tokio::time::timeout(PATIENCE, asked(paths, at.clone())).await;
    if let Ok(answered) = answered {
        return answered;
    }
    let at = held(&at);
    match &*at {
        Some(path) => {
            // Under its lock: the thread takes it out again when it has its answer.
            silent().insert(path.clone(), since);
            Err(stuck(path, since))
        }
        None => Err(Error::ResourceExhausted(format!(
            "the file systems of {MOST} containers' volumes are waited for already: are their servers there?"
        ))),
    }
}

/// The path that is being looked at.
type At = Arc<Mutex<Option<PathBuf>>>;

fn held(at: &At) -> MutexGuard<'_, Option<PathBuf>> {
    at.lock().unwrap_or_else(|e| e.into_inner())
}

/// Looks at each, in a thread that is left behind where one does not answer.
async fn asked(paths: Vec<PathBuf>, at: At) -> Result<(), Error> {
    let Ok(permit) = ASKING.acquire().await else {
        return Ok(());
    };
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new()
        .name("host paths".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _permit = permit;
            for path in paths {
                *held(&at) = Some(path.clone());
                // What is wrong with it the mount itself tells.
                if std::fs::metadata(&path).is_ok() {
                    let _ = nix::sys::statfs::statfs(&path);
                }
                *held(&at) = None;
                silent().remove(&path);
            }
            let _ = answer.send(());
        })
        .map_err(Error::io("start a thread for", "host paths"))?;
    // An error: it panicked, which is no word on a path.
    let _ = answered.await;
    Ok(())
}
