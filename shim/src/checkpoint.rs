//! Task.Checkpoint: CRIU writes a container's processes down, and the container goes on.
//!
//! # Synchronization
//! `Container::checkpoint` is held from the beginning until the container goes on. The pause after a dump ends by Task.Resume, by a
//! SIGKILL, which a frozen process would not die of, or by its time: a caller that is gone can't hold a container.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use berth_engine::{Checkpoint, Restore};
use berth_proto::shim::{
    api::CheckpointTaskRequest,
    runc_options::CheckpointOptions as RuncOptions,
    v1::pod::{CheckpointOptions, CreateOptions},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    container::{Container, Phase, lock},
    error::Error,
    journal,
    pod::{Pod, blocking, unpack},
};

/// Where the caller names no other: found on PATH.
const CRIU: &str = "criu";
/// Where the caller gives none. Memory of some GiB goes to a disk in less.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest pause that a caller can ask for.
const MAX_HOLD: Duration = Duration::from_secs(3600);

/// Writes the container's processes into the directory `request.path`.
pub async fn checkpoint(
    pod: Arc<Pod>,
    container: Arc<Container>,
    request: CheckpointTaskRequest,
) -> Result<(), Error> {
    let not_now = |state: &str| Error::State {
        action: "checkpoint container",
        id: container.id.clone(),
        state: state.to_owned(),
    };
    if !matches!(container.phase(), Phase::Running { .. }) {
        return Err(not_now("not running"));
    }
    if container.tty {
        // A terminal's other end is the shim's; what a restore would connect it to is not built.
        return Err(Error::Unbuilt("Checkpoint of a container with a terminal"));
    }
    let alone = container.checkpoint.clone().try_lock_owned();
    let alone = alone.map_err(|_| not_now("being checkpointed already"))?;
    let ours: Option<CheckpointOptions> =
        unpack(&request.options, "berth.shim.v1.CheckpointOptions")?;
    let stock: Option<RuncOptions> =
        unpack(&request.options, "containerd.runc.v1.CheckpointOptions")?;
    let (ours, stock) = (ours.unwrap_or_default(), stock.unwrap_or_default());
    let images = match (request.path.as_str(), stock.image_path.as_str()) {
        ("", path) | (path, _) => PathBuf::from(path),
    };
    let work = match (ours.work_path.as_str(), stock.work_path.as_str()) {
        ("", "") => images.clone(),
        ("", path) | (path, _) => PathBuf::from(path),
    };
    for path in [&images, &work] {
        if !path.is_absolute() || !path.is_dir() {
            return Err(Error::invalid(
                format!("path {:?} of a checkpoint", path.display().to_string()),
                "it is no absolute path of a directory",
            ));
        }
    }
    let hold = Duration::from_millis(ours.hold_ms).min(MAX_HOLD);
    let plan = Checkpoint {
        id: container.id.clone(),
        criu: match ours.criu.as_str() {
            "" => CRIU.into(),
            path => path.into(),
        },
        images,
        work,
        timeout: match ours.timeout_ms {
            0 => DEFAULT_TIMEOUT,
            ms => Duration::from_millis(ms),
        },
        leave_running: !stock.exit,
    };
    let leave_running = plan.leave_running;
    container.no_hold.store(false, Ordering::Relaxed);
    let engine = pod.engine.clone();
    let path = plan.images.display().to_string();
    let dumped = blocking("checkpoint", move || Ok(engine.checkpoint(plan)?)).await;
    if let Err(error) = dumped {
        freeze_again(&container).await?;
        return Err(error);
    }
    pod.events.checkpointed(&container.id, &path);
    // Paused by its caller before, as containerd's client does: it stays so, until Resume.
    if container.paused.load(Ordering::Relaxed) {
        return Ok(());
    }
    if !leave_running {
        return Ok(());
    }
    if hold.is_zero() || container.no_hold.load(Ordering::Relaxed) {
        return thaw(&pod, &container.id).await;
    }
    let (release, released) = oneshot::channel();
    *lock(&container.held) = Some(release);
    tokio::spawn(async move {
        // Its other end is kept by the container: an error says the same.
        let in_time = timeout(hold, released).await.is_ok();
        if !in_time {
            journal!(
                "container {} goes on: nobody resumed it for {} ms",
                container.id,
                hold.as_millis()
            );
        }
        lock(&container.held).take();
        while let Err(error) = thaw(&pod, &container.id).await {
            journal!("container {} can't go on: {error}", container.id);
            sleep(THAW_RETRY).await;
        }
        drop(alone);
    });
    Ok(())
}

/// A dump that fails lets its processes go on: not those that somebody has paused before.
async fn freeze_again(container: &Arc<Container>) -> Result<(), Error> {
    let _order = container.order.lock().await;
    if !container.paused.load(Ordering::Relaxed) {
        return Ok(());
    }
    let frozen = container.clone();
    blocking("pause", move || Ok(frozen.cgroup("pause")?.pause()?)).await
}

/// What a container is to be restored from.
pub fn restore(images: &str, options: &CreateOptions) -> Result<Restore, Error> {
    if options.criu.is_empty() {
        return Err(Error::Unbuilt(
            "Task.Create from a checkpoint without berth.shim.v1.CreateOptions",
        ));
    }
    let (images, work) = (
        PathBuf::from(images),
        PathBuf::from(&options.restore_work_path),
    );
    for path in [&images, &work] {
        if !path.is_absolute() || !path.is_dir() {
            return Err(Error::invalid(
                format!("path {:?} of a checkpoint", path.display().to_string()),
                "it is no absolute path of a directory",
            ));
        }
    }
    Ok(Restore {
        criu: PathBuf::from(&options.criu),
        images,
        work,
        timeout: match options.restore_timeout_ms {
            0 => DEFAULT_TIMEOUT,
            ms => Duration::from_millis(ms),
        },
    })
}

/// A write to a file of the freezer fails for want of memory, if at all.
const THAW_RETRY: Duration = Duration::from_secs(1);

/// Ends the pause after a checkpoint. No pause: no error.
pub async fn resume(pod: &Pod, container: &Container) -> Result<(), Error> {
    // For a dump under way: its caller's successor has come, and knows of no archive.
    container.no_hold.store(true, Ordering::Relaxed);
    let release = lock(&container.held).take();
    let Some(release) = release else {
        return Ok(());
    };
    // Its task thaws too, which is no harm: the answer is to be true.
    let _ = release.send(());
    thaw(pod, &container.id).await
}

async fn thaw(pod: &Pod, id: &str) -> Result<(), Error> {
    let (engine, id) = (pod.engine.clone(), id.to_owned());
    blocking("resume", move || Ok(engine.resume(&id)?)).await
}
