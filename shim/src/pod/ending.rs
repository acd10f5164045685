//! The end of containers: what is due then, in which order; and what asks for it.

use std::{sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{KILL_WAIT, Pod, Sandbox, blocking, still_alive};
use crate::{
    container::{Container, Ended, Phase, StartError, lock},
    error::Error,
    exit_record::ExitRecord,
    journal,
    reaper::Exit,
    rootfs,
};

/// How long a killed container's pipes are read when somebody outside of it holds them open.
const LOG_DRAIN: Duration = Duration::from_secs(2);
/// A failed exit record is tried again: the container's death can't be told before it is written. After this many, it is told without.
const RECORD_TRIES: u32 = 5;
const RECORD_RETRY: Duration = Duration::from_millis(100);

impl Pod {
    /// Waits for a container's end and does all that is due then, in this order: end what it left running, take the last of its output,
    /// write the record, and only then tell.
    pub(super) async fn see_off(
        self: Arc<Self>,
        container: Arc<Container>,
        exited: oneshot::Receiver<Exit>,
    ) {
        let Ok(exit) = exited.await else { return };
        let cgroup = container.cgroup.clone();
        let kill_rest = !container.own_pid_namespace;
        let pod = self.clone();
        let memory = blocking("look at a cgroup", move || {
            let Some(cgroup) = cgroup else {
                return Ok((0, None));
            };
            let deaths = pod.oom_accounts.close(&cgroup)?;
            if kill_rest {
                cgroup.kill()?;
            }
            Ok((deaths.kills, deaths.limited))
        });
        let (oom_kills, limited) = memory.await.unwrap_or_else(|error| {
            journal!("end of container {}: {error}", container.id);
            (0, None)
        });
        let oom_killed = oom_kills > 0 || self.engine.oom_killed(&container.id);
        let io = lock(&container.io).take();
        if let Some(io) = io {
            io.drain(LOG_DRAIN).await;
        }
        // A start under way may be why it ended.
        let _order = container.order.lock().await;
        let started_at = match container.phase() {
            Phase::Running { started_at } => started_at,
            Phase::Created | Phase::Exited { .. } => 0,
        };
        let start_error = lock(&container.start_error).clone();
        let ended = match start_error {
            Some(StartError { exit_code, message }) => Ended {
                exit_code,
                at: exit.at,
                reason: "StartError",
                message,
            },
            None => Ended {
                exit_code: exit.code,
                at: exit.at,
                reason: match exit.code {
                    0 => "Completed",
                    _ if oom_killed => "OOMKilled",
                    _ => "Error",
                },
                message: match (self.engine.lost(), limited) {
                    (Some(lost), _) => lost,
                    (None, Some(limited)) if exit.code != 0 => limited.to_string(),
                    (None, _) => String::new(),
                },
            },
        };
        self.record(&container, started_at, &ended).await;
        if let Err(error) = berth_failpoint::site!("shim.exit.tell") {
            journal!("failpoint shim.exit.tell: {error}");
        }
        self.tell_oom(&container, oom_kills);
        container.set_phase(Phase::Exited {
            started_at,
            ended: ended.clone(),
        });
        self.events.exited(&container, &ended);
        self.changed();
    }

    async fn record(&self, container: &Container, started_at: i64, ended: &Ended) {
        let (Sandbox::Created { setup }
        | Sandbox::Running { setup, .. }
        | Sandbox::Stopped { setup, .. }) = self.sandbox()
        else {
            return;
        };
        if setup.options.exits_dir.is_empty() {
            return;
        }
        let record = ExitRecord {
            id: container.id.clone(),
            pid: container.pid,
            exit_code: ended.exit_code,
            reason: ended.reason.into(),
            message: ended.message.clone(),
            created_at: container.created_at,
            started_at,
            finished_at: ended.at,
        };
        for attempt in 1..=RECORD_TRIES {
            match record.write(setup.options.exits_dir.as_ref()) {
                Ok(()) => return,
                Err(error) => journal!(
                    "exit record of container {} (try {attempt}): {error}",
                    container.id
                ),
            }
            sleep(RECORD_RETRY).await;
        }
    }

    /// SIGKILL to init and, where that does not end the rest, to everything in its cgroup.
    pub(super) async fn kill_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        container.signal(Signal::KILL.as_raw())?;
        self.resume(container).await?;
        if !container.own_pid_namespace {
            self.signal_all(&container.id, Signal::KILL.as_raw())
                .await?;
        }
        Ok(())
    }

    pub(super) fn log_warnings(&self) {
        for warning in self.engine.warnings() {
            journal!("warning: {warning}");
        }
    }

    pub async fn signal_all(&self, id: &str, signal: i32) -> Result<(), Error> {
        let (engine, id) = (self.engine.clone(), id.to_owned());
        blocking("kill", move || Ok(engine.kill(&id, signal, true)?)).await
    }

    /// Removes a container that has ended, or was never started. Answers its pid and how it ended.
    pub async fn delete(self: &Arc<Self>, id: &str) -> Result<(i32, Ended), Error> {
        let container = self.container(id)?;
        match container.phase() {
            Phase::Running { .. } => {
                return Err(Error::State {
                    action: "delete container",
                    id: id.into(),
                    state: "running".into(),
                });
            }
            Phase::Created => self.kill_container(&container).await?,
            Phase::Exited { .. } => {}
        }
        let ended = timeout(KILL_WAIT, container.ended())
            .await
            .map_err(|_| still_alive(format!("container {id}")))??;
        let _order = container.order.lock().await;
        // A delete beside this one may have been faster.
        self.container(id)?;
        let (engine, engine_id) = (self.engine.clone(), id.to_owned());
        blocking("delete", move || Ok(engine.delete(&engine_id)?)).await?;
        self.log_warnings();
        if container.mounted {
            rootfs::unmount(&container.bundle)?;
        }
        berth_failpoint::site!("shim.delete.removed")
            .map_err(Error::io("failpoint shim.delete.removed"))?;
        lock(&self.containers).remove(id);
        self.outside.streams.forget(&container.fifos);
        self.events.deleted(&container, &ended);
        self.changed();
        Ok((container.pid, ended))
    }
}
