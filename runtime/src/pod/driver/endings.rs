//! Work that has ended: the state is changed, and whoever waited is answered.

use std::{sync::Arc, time::Duration};

use berth_proto::{cri, shim::v1::pod as v1};
use berth_state::record;

use super::{
    Answer, Container, ContainerState, Driver, State, TakeDown, Watch,
    changes::{exit_of, listen, watch},
};
use crate::{
    error::Error,
    pod::{
        event::{Reply, Request, Work},
        exit_record,
        record::{ContainerRecord, Exit, PodLimits, PodPhase, now_ns},
        run,
        shim::Shim,
        stop, update,
    },
};

/// Exit code of a container whose command could not be started, where the shim names none.
const START_ERROR: i32 = 128;

impl Driver {
    pub(super) fn ended(&mut self, work: Work) {
        match work {
            Work::Ran(result) => self.ran(result),
            Work::Created { id, result } => self.created(id, result),
            Work::Started {
                id,
                result,
                said,
                took,
            } => self.started(id, result, said, took),
            Work::Updated {
                id,
                resources,
                result,
                reply,
            } => self.updated(&id, *resources, result, reply),
            Work::PodUpdated {
                limits,
                result,
                reply,
            } => self.pod_updated(*limits, result, reply),
            Work::Signalled { id, result } => self.signalled(&id, result),
            Work::Told { id } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.telling = false;
                }
            }
            Work::ContainersEnded(Ok(ended)) => self.containers_ended(ended),
            Work::ContainersEnded(Err(outcome)) => self.stopped(outcome),
            Work::Stopped(result) => self.stopped(stop::Outcome {
                result,
                began: true,
            }),
            Work::ContainerRemoved { id, result } => self.container_removed(id, result),
            Work::Removed(result) => self.removed(result),
        }
    }

    fn pod_updated(&mut self, limits: PodLimits, result: Result<(), Error>, reply: Reply<()>) {
        self.updating = false;
        match result {
            Ok(()) => {
                self.record.limits = Some(limits);
                self.write_pod();
                self.outbox.push(Answer::Done(reply));
            }
            Err(error) => {
                let change = Box::default();
                self.fail(Request::UpdatePod { change, reply }, error);
            }
        }
    }

    pub(super) fn ran(&mut self, result: Result<Box<run::Running>, Error>) {
        let State::Creating { waiters } = std::mem::replace(&mut self.state, State::Gone) else {
            return;
        };
        match result {
            Ok(running) => {
                self.record = running.record;
                self.become_ready(running.shim);
                for request in waiters {
                    self.asked(request);
                }
            }
            Err(e) => {
                // What is left is somebody's to remove: the pod stays, not ready.
                if matches!(e, Error::Undo { .. }) {
                    self.record.why = e.to_string();
                    self.record.phase = PodPhase::Stopping;
                    self.state = State::Broken;
                    self.write_pod();
                }
                tracing::warn!(pod_id = %self.pod.id, "run: {e}");
                self.fail_all(waiters, e);
            }
        }
    }

    pub fn become_ready(&mut self, shim: Shim) {
        let watch = Watch(tokio::spawn(watch(shim.clone(), self.handle.clone())).abort_handle());
        self.state = State::Ready {
            shim,
            _watch: watch,
        };
    }

    /// … once it is heard: it has not answered yet, and who its containers were is known from their records.
    pub fn become_silent(&mut self, shim: Shim, containers: Vec<ContainerRecord>) {
        let listening = listen(shim.clone(), self.handle.clone(), containers);
        let watch = Watch(tokio::spawn(listening).abort_handle());
        self.state = State::Ready {
            shim,
            _watch: watch,
        };
    }

    pub(super) fn created(&mut self, id: String, result: Result<Box<ContainerRecord>, Error>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let waiters = match std::mem::replace(&mut container.state, ContainerState::Created) {
            ContainerState::Creating { waiters } => waiters,
            _ => vec![],
        };
        match result {
            Ok(record) => {
                container.timeline = record.timeline.clone();
                container.record = Some(Arc::from(record));
                self.registry.add_container(&id, &self.pod.id);
                for request in waiters {
                    if let Request::Create { reply, .. } = request {
                        self.outbox.push(Answer::Created(reply, id.clone()));
                    }
                }
            }
            Err(e) => {
                tracing::warn!(pod_id = %self.pod.id, container_id = %id, "create: {e}");
                let left = record::read::<ContainerRecord>(&self.pod.node.container_record(&id));
                match (matches!(e, Error::Undo { .. }), left) {
                    (true, Ok(Some(record))) => {
                        container.record = Some(Arc::new(record));
                        container.state = ContainerState::Broken { why: e.to_string() };
                        self.registry.add_container(&id, &self.pod.id);
                    }
                    _ => drop(self.containers.remove(&id)),
                }
                self.fail_all(waiters, e);
            }
        }
    }

    pub(super) fn started(
        &mut self,
        id: String,
        result: Result<v1::ContainerState, Error>,
        said: Option<v1::InspectResponse>,
        took: Duration,
    ) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let started_at = result.as_ref().map_or(0, |told| told.started_at);
        container.timeline.set_ms("start", took.as_secs_f64() * 1e3);
        let waiters = match std::mem::replace(
            &mut container.state,
            ContainerState::Running {
                started_at,
                stop: None,
            },
        ) {
            ContainerState::Starting { waiters } => waiters,
            _ => vec![],
        };
        match result {
            Ok(_) => {
                // What the shim said while the call was under way may be newer.
                let said = std::mem::take(&mut self.said);
                self.apply(said);
                for request in waiters {
                    self.done(request);
                }
            }
            Err(e) => {
                tracing::warn!(pod_id = %self.pod.id, container_id = %id, "start: {e}");
                let said = said.unwrap_or_default();
                let told = said.containers.iter().find(|c| c.id == id).map(|c| {
                    (c.state.enum_value_or_default() == v1::TaskState::EXITED).then(|| exit_of(c))
                });
                let exit = match told {
                    Some(Some(exit)) => exit,
                    _ => Exit {
                        started_at: 0,
                        finished_at: now_ns(),
                        code: START_ERROR,
                        reason: "StartError".into(),
                        message: e.to_string(),
                    },
                };
                self.exited(&id, exit);
                self.fail_all(waiters, e);
            }
        }
    }

    pub(super) fn updated(
        &mut self,
        id: &str,
        resources: cri::LinuxContainerResources,
        result: Result<(), Error>,
        reply: Reply<()>,
    ) {
        if let Some(container) = self.containers.get_mut(id) {
            container.updating = false;
        }
        if let Err(error) = result {
            let request = Request::Update {
                id: id.to_owned(),
                resources: Box::new(resources),
                by: update::By::Caller,
                reply,
            };
            return self.fail(request, error);
        }
        let record = self.containers.get_mut(id).and_then(|container| {
            let mut record = ContainerRecord::clone(container.record.as_ref()?);
            record.resources = resources;
            let record = Arc::new(record);
            container.record = Some(record.clone());
            Some(record)
        });
        if let Some(record) = record {
            self.write_container(&record);
        }
        self.outbox.push(Answer::Done(reply));
    }

    pub(super) fn signalled(&mut self, id: &str, result: Result<(), Error>) {
        let Err(e) = result else { return };
        if let Some(Container {
            state: ContainerState::Running { stop, .. },
            ..
        }) = self.containers.get_mut(id)
        {
            // Without a shim the container's end is found out otherwise.
            if e.code() != tonic::Code::Unavailable
                && let Some(stop) = stop.take()
            {
                self.fail_all(stop.waiters, e);
            }
        }
    }

    /// Their end can be seen, and is told, before the pod is taken down.
    fn containers_ended(&mut self, ended: stop::Ended) {
        if let Some(said) = ended.last {
            self.apply(said);
        }
        let why = match self.record.why.as_str() {
            "" => "its pod was stopped".to_owned(),
            why => why.to_owned(),
        };
        self.bury_containers(&why);
        if let State::Stopping { take_down, .. } = &mut self.state {
            *take_down = TakeDown::Ended { alive: ended.alive };
        }
    }

    pub(super) fn stopped(&mut self, outcome: stop::Outcome) {
        let State::Stopping {
            shim,
            watch,
            waiters,
            ..
        } = std::mem::replace(&mut self.state, State::Stopped { clean: true })
        else {
            return;
        };
        match outcome.result {
            Ok(()) => {
                self.record.phase = PodPhase::Stopped;
                // Its address is somebody else's from now on.
                self.record.attachment = None;
                self.write_pod();
                for request in waiters {
                    self.asked(request);
                }
            }
            Err(e) => {
                tracing::warn!(pod_id = %self.pod.id, "stop: {e}");
                self.state = match (outcome.began, shim, watch) {
                    (false, Some(shim), Some(_watch)) => State::Ready { shim, _watch },
                    _ => State::Stopped { clean: false },
                };
                self.fail_all(waiters, e);
            }
        }
    }

    /// No shim holds them any more: what has not ended by its own account has ended with it.
    pub(super) fn bury_containers(&mut self, why: &str) {
        let left: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, c)| {
                matches!(
                    c.state,
                    ContainerState::Created | ContainerState::Running { .. }
                )
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in left {
            let exit = exit_record::read_or_unknown(&self.pod, &id, why);
            self.exited(&id, exit);
        }
    }

    pub(super) fn container_removed(&mut self, id: String, result: Result<(), Error>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let ContainerState::Removing { waiters, exit } =
            std::mem::replace(&mut container.state, ContainerState::Created)
        else {
            return;
        };
        match result {
            Ok(()) => {
                self.containers.remove(&id);
                self.registry.remove_container(&id);
                self.pod.node.cpu.forget(&id);
                for request in waiters {
                    self.asked(request);
                }
            }
            Err(e) => {
                tracing::warn!(pod_id = %self.pod.id, container_id = %id, "remove: {e}");
                container.state = match exit {
                    Some(exit) => ContainerState::Exited(exit),
                    None => ContainerState::Broken { why: e.to_string() },
                };
                self.fail_all(waiters, e);
            }
        }
    }

    pub(super) fn removed(&mut self, result: Result<(), Error>) {
        let State::Removing { waiters } =
            std::mem::replace(&mut self.state, State::Stopped { clean: true })
        else {
            return;
        };
        match result {
            Ok(()) => {
                self.state = State::Gone;
                self.pod.node.cpu.forget(&self.pod.id);
                for id in self.containers.keys() {
                    self.pod.node.cpu.forget(id);
                }
                self.outbox.extend(waiters.into_iter().map(Answer::Gone));
            }
            Err(e) => {
                tracing::warn!(pod_id = %self.pod.id, "remove: {e}");
                let node = self.pod.node.clone();
                let gone: Vec<String> = self
                    .containers
                    .keys()
                    .filter(|id| !node.container_record(id).exists())
                    .cloned()
                    .collect();
                for id in gone {
                    self.containers.remove(&id);
                    self.registry.remove_container(&id);
                }
                self.fail_all(waiters, e);
            }
        }
    }
}
