//! What changes by itself: the shim's word on its containers, and time.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_proto::shim::v1::pod as v1;

use super::{ContainerState, Driver, State};
use crate::{
    error::Error,
    pod::{
        event::Event,
        record::{ContainerPhase, ContainerRecord, Exit, now_ns},
        recovery,
        registry::Handle,
        shim::Shim,
    },
};

/// How long one question for changes stays open. The shim answers as soon as anything changes.
const CHANGES_PATIENCE: Duration = Duration::from_secs(60);
/// A broken connection to a living shim is made anew within these pauses; a dead one refuses at once.
const RECONNECT_PAUSES_MS: [u64; 5] = [0, 10, 50, 250, 1000];

impl Driver {
    /// Brings the containers to what the shim says. It may say the same again, or leave states out: only its last word counts.
    pub(super) fn apply(&mut self, said: v1::InspectResponse) {
        if said.generation < self.said.generation {
            return;
        }
        for told in &said.containers {
            let Some(container) = self.containers.get_mut(&told.id) else {
                continue;
            };
            container.pid = told.pid;
            match (told.state.enum_value_or_default(), &mut container.state) {
                (
                    v1::TaskState::EXITED,
                    ContainerState::Created | ContainerState::Running { .. },
                ) => {
                    let exit = exit_of(told);
                    self.exited(&told.id, exit);
                }
                (v1::TaskState::RUNNING, state @ ContainerState::Created) => {
                    *state = ContainerState::Running {
                        started_at: told.started_at,
                        stop: None,
                    };
                }
                (v1::TaskState::RUNNING, ContainerState::Running { started_at, .. })
                    if told.started_at != 0 =>
                {
                    *started_at = told.started_at;
                }
                _ => {}
            }
        }
        let paused_out = said.sandbox_state.enum_value_or_default() == v1::TaskState::EXITED;
        self.said = said;
        if paused_out && let State::Ready { shim, .. } = &self.state {
            let shim = shim.clone();
            self.begin_stopping("the process that holds its namespaces ended".into(), None);
            if let State::Stopping { shim: seat, .. } = &mut self.state {
                *seat = Some(shim);
            }
        }
    }

    /// What was taken for what it had been before the daemon started is known now.
    pub(super) fn heard(&mut self, settled: Vec<(ContainerRecord, ContainerState)>) {
        for (record, state) in settled {
            let id = record.id.clone();
            let Some(container) = self.containers.get_mut(&id) else {
                // it may have been removed meanwhile
                let is_there = self.pod.node.container_record(&id).exists();
                if is_there && matches!(self.state, State::Ready { .. }) {
                    recovery::insert(self, record, state);
                    self.registry.add_container(&id, &self.pod.id);
                }
                continue;
            };
            let ContainerState::Running {
                started_at: known,
                stop,
            } = &mut container.state
            else {
                continue;
            };
            match state {
                ContainerState::Running { started_at, .. } => *known = started_at,
                ContainerState::Exited(exit) => self.exited(&id, exit),
                state => {
                    let waiters = stop.take().map(|stop| stop.waiters);
                    container.state = state;
                    for request in waiters.into_iter().flatten() {
                        self.asked(request);
                    }
                }
            }
        }
    }

    pub(super) fn exited(&mut self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut container.state, ContainerState::Exited(exit.clone()));
        if let Some(record) = &mut container.record {
            let changed = Arc::make_mut(record);
            changed.phase = ContainerPhase::Exited;
            changed.exit = Some(exit);
            changed.timeline = container.timeline.clone();
            let record = record.clone();
            self.write_container(&record);
        }
        if let ContainerState::Running { stop, .. } = before {
            self.begin_telling(id);
            for request in stop.into_iter().flat_map(|stop| stop.waiters) {
                self.asked(request);
            }
        }
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.containers
            .values()
            .filter_map(|c| match &c.state {
                ContainerState::Running {
                    stop: Some(stop), ..
                } => Some(stop.deadline.next()),
                _ => None,
            })
            .min()
    }

    pub(super) fn passed(&mut self) {
        let now = Instant::now();
        let shim = self.shim();
        let mut kill = vec![];
        let mut hung = vec![];
        for (id, container) in &mut self.containers {
            let ContainerState::Running { stop: seat, .. } = &mut container.state else {
                continue;
            };
            let Some(stop) = seat else { continue };
            if stop.deadline.give_up_at <= now {
                hung.extend(seat.take().map(|stop| (id.clone(), stop)));
            } else if stop.deadline.kill_at.is_some_and(|at| at <= now) {
                stop.deadline.kill_at = None;
                kill.push(id.clone());
            }
        }
        if let Some(shim) = shim {
            for id in kill {
                self.kill(id, nix::libc::SIGKILL, shim.clone());
            }
        }
        for (id, stop) in hung {
            let stuck = Error::Stuck {
                what: format!("stop container {id}"),
                stage: "killed, waiting for its end",
                since: stop.since.elapsed(),
            };
            self.fail_all(stop.waiters, stuck);
        }
    }
}

pub fn exit_of(told: &v1::ContainerState) -> Exit {
    let finished_at = match told.finished_at {
        0 => now_ns(),
        at => at,
    };
    Exit {
        started_at: told.started_at,
        finished_at,
        code: told.exit_code,
        reason: told.reason.clone(),
        message: told.message.clone(),
    }
}

/// Tells the driver each time the pod changes, until the shim is gone for good.
pub(super) async fn watch(mut shim: Shim, handle: Arc<Handle>) {
    let mut generation = 0;
    loop {
        let error = match shim.changes(generation, CHANGES_PATIENCE).await {
            Ok(said) => {
                generation = said.generation;
                if handle.tell(Event::Said(said)).await.is_err() {
                    return;
                }
                continue;
            }
            // Nothing changed for a while.
            Err(Error::Silent { .. }) => continue,
            Err(error) => error,
        };
        let Some(new) = reconnect(&handle.pod.id, &shim.socket).await else {
            let _ = handle.tell(Event::Lost(error.to_string())).await;
            return;
        };
        (shim, generation) = (new.clone(), 0);
        if handle.tell(Event::Reconnected(new)).await.is_err() {
            return;
        }
    }
}

/// Waits until a shim that did not answer is heard, tells what its containers have come to, and goes on as [`watch`].
pub(super) async fn listen(mut shim: Shim, handle: Arc<Handle>, containers: Vec<ContainerRecord>) {
    let said = loop {
        match shim.inspect().await {
            Ok(said) => break said,
            Err(Error::Silent { .. }) => {}
            Err(error) => {
                let Some(new) = reconnect(&handle.pod.id, &shim.socket).await else {
                    let _ = handle.tell(Event::Lost(error.to_string())).await;
                    return;
                };
                shim = new.clone();
                if handle.tell(Event::Reconnected(new)).await.is_err() {
                    return;
                }
            }
        }
    };
    tracing::info!(pod_id = %handle.pod.id, "its shim is heard again");
    let settled = recovery::settle(&handle.pod, &shim, &said, containers).await;
    if handle.tell(Event::Heard(settled)).await.is_ok() {
        watch(shim, handle).await;
    }
}

/// None: it is dead, or talks rubbish. One that is silent is waited for, however long: that is no death.
async fn reconnect(pod_id: &str, socket: &Path) -> Option<Shim> {
    let mut pauses = RECONNECT_PAUSES_MS.into_iter();
    while let Some(pause) = pauses.next() {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if nobody_listens(socket).await {
            return None;
        }
        let answered = async {
            let shim = Shim::connect(pod_id, socket).await?;
            shim.inspect().await.map(|_| shim)
        };
        match answered.await {
            Ok(shim) => return Some(shim),
            Err(Error::Silent { .. }) => pauses = RECONNECT_PAUSES_MS.into_iter(),
            Err(_) => {}
        }
    }
    None
}

/// Whether the socket refuses: then its shim is dead, and won't come back.
async fn nobody_listens(socket: &Path) -> bool {
    use std::io::ErrorKind;
    match tokio::net::UnixStream::connect(socket).await {
        Ok(_) => false,
        Err(e) => matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound),
    }
}
