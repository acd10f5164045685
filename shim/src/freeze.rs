//! `Task.Pause` and `Task.Resume`: a container's processes stand still, and go on.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{
    container::{Container, Phase},
    error::Error,
    pod::{Pod, blocking},
};

impl Pod {
    /// Freezes the container's cgroup. Idempotent.
    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let _order = container.order.lock().await;
        must_run(&container, "pause container")?;
        let frozen = container.clone();
        blocking("Pause", move || Ok(frozen.cgroup("pause")?.pause()?)).await?;
        if !container.paused.swap(true, Relaxed) {
            self.events.paused(id);
            self.changed();
        }
        Ok(())
    }

    /// Lets a paused container go on. Idempotent.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let _order = container.order.lock().await;
        must_run(&container, "resume container")?;
        let frozen = container.clone();
        blocking("Resume", move || Ok(frozen.cgroup("resume")?.resume()?)).await?;
        if container.paused.swap(false, Relaxed) {
            self.events.resumed(id);
            self.changed();
        }
        Ok(())
    }
}

fn must_run(container: &Arc<Container>, action: &'static str) -> Result<(), Error> {
    match container.phase() {
        Phase::Running { .. } => Ok(()),
        phase => Err(Error::State {
            action,
            id: container.id.clone(),
            state: match phase {
                Phase::Created => "not started".into(),
                _ => "ended".into(),
            },
        }),
    }
}
