//! `Task.Pause` and `Task.Resume`: a container's processes stand still, and go on.
//!
//! # Synchronization
//! `Container::paused` is set before the freezer is and cleared after it: who has sent a SIGKILL and sees it cleared has no freezer to
//! fear. `order` keeps a resume from overtaking the pause that it ends.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use crate::{
    checkpoint,
    container::{Container, Phase},
    error::Error,
    pod::{Pod, blocking},
};

impl Pod {
    /// Freezes the container's cgroup. Idempotent.
    pub async fn pause(&self, container: &Arc<Container>) -> Result<(), Error> {
        let _order = container.order.lock().await;
        let not_now = |state: &str| Error::State {
            action: "pause container",
            id: container.id.clone(),
            state: state.into(),
        };
        match container.phase() {
            Phase::Created => return Err(not_now("not started")),
            Phase::Exited { .. } => return Err(not_now("ended")),
            Phase::Running { .. } => {}
        }
        let before = container.paused.swap(true, SeqCst);
        let frozen = container.clone();
        let paused = blocking("Pause", move || Ok(frozen.cgroup("pause")?.pause()?)).await;
        if paused.is_err() {
            // It has been thawed again.
            container.paused.store(false, SeqCst);
        } else if !before {
            self.events.paused(&container.id);
            self.changed();
        }
        paused
    }

    /// Lets a container go on that stands still, paused or after a checkpoint. One that does not is no error.
    pub async fn resume(&self, container: &Arc<Container>) -> Result<(), Error> {
        checkpoint::resume(self, container).await?;
        if !container.paused.load(SeqCst) {
            return Ok(());
        }
        let _order = container.order.lock().await;
        let frozen = container.clone();
        blocking("Resume", move || Ok(frozen.cgroup("resume")?.resume()?)).await?;
        if container.paused.swap(false, SeqCst) {
            self.events.resumed(&container.id);
            self.changed();
        }
        Ok(())
    }
}
