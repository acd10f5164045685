//! Work that begins: the state is changed first, then the task is spawned.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Container, ContainerState, Driver, State, Stop};
use crate::{
    error::Error,
    pod::{
        Pod, create,
        event::{Reply, Request, Work},
        record::{ContainerPhase, ContainerRecord, PodPhase, Timeline},
        shim::Shim,
        stop::{self, Deadline},
        teardown,
    },
};

impl Driver {
    pub(super) fn begin(&mut self, work: impl Future<Output = Work> + Send + 'static) {
        self.work.spawn(work);
    }

    pub(super) fn begin_create(&mut self, plan: create::Plan, reply: Reply<String>, shim: Shim) {
        let (pod, id) = (self.pod.clone(), plan.id.clone());
        let config = Arc::new(plan.config.clone());
        let request = Request::Create {
            plan: Box::new(plan.clone()),
            replacing: false,
            reply,
        };
        let max = self.pod.node.config.limits.containers_per_pod;
        if self.containers.len() >= max {
            return self.fail(
                request,
                Error::ResourceExhausted(format!(
                    "pod {} has {max} containers, the most that key `limits.containers_per_pod` allows",
                    self.pod.id
                )),
            );
        }
        self.containers.insert(
            id.clone(),
            Container {
                config,
                record: None,
                state: ContainerState::Creating {
                    waiters: vec![request],
                },
                timeline: Timeline::default(),
                pid: 0,
                updating: false,
            },
        );
        self.begin(async move {
            let result = create::create(&pod, &shim, plan).await.map(Box::new);
            Work::Created { id, result }
        });
    }

    /// Sends the stop signal, or SIGKILL where there is no grace, and sets the clock.
    pub(super) fn begin_signal(&mut self, id: &str, grace: Duration, request: Request) {
        let Some(shim) = self.shim() else {
            // Its shim is dead, and the pod's take-down under way.
            return self.defer(request);
        };
        let Some(Container {
            record: Some(record),
            state: ContainerState::Running { stop, .. },
            ..
        }) = self.containers.get_mut(id)
        else {
            return self.defer(request);
        };
        let now = Instant::now();
        if let Some(stop) = stop {
            stop.deadline.shorten(now, grace);
            stop.waiters.push(request);
            return;
        }
        let mut deadline = Deadline::new(now, grace);
        let signal = match grace {
            Duration::ZERO => {
                deadline.kill_at = None;
                nix::libc::SIGKILL
            }
            _ => record.stop_signal,
        };
        *stop = Some(Stop {
            since: now,
            deadline,
            waiters: vec![request],
        });
        self.kill(id.to_owned(), signal, shim);
    }

    pub(super) fn kill(&mut self, id: String, signal: i32, shim: Shim) {
        let all = signal == nix::libc::SIGKILL;
        self.begin(async move {
            let result = shim.kill(&id, signal, all).await;
            Work::Signalled { id, result }
        });
    }

    pub(super) fn begin_remove_container(&mut self, id: String, request: Option<Request>) {
        let shim = self.shim();
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let exit = match &container.state {
            ContainerState::Exited(exit) => Some(exit.clone()),
            _ => None,
        };
        container.state = ContainerState::Removing {
            waiters: request.into_iter().collect(),
            exit,
        };
        if let Some(record) = &container.record {
            let mut record = ContainerRecord::clone(record);
            record.phase = ContainerPhase::Removing;
            self.write_container(&record);
        }
        let pod = self.pod.clone();
        self.begin(async move {
            let result = stop::remove_container(pod, shim, id.clone()).await;
            Work::ContainerRemoved { id, result }
        });
    }

    pub(super) fn begin_stopping(&mut self, why: String, request: Option<Request>) {
        let lost = !why.is_empty();
        let (shim, watch) = match std::mem::replace(&mut self.state, State::Gone) {
            State::Ready { shim, _watch } if !lost => (Some(shim), Some(_watch)),
            _ => (None, None),
        };
        if lost {
            self.record.why = why;
        }
        self.state = State::Stopping {
            shim,
            watch,
            waiters: request.into_iter().collect(),
            begun: false,
        };
    }

    /// Takes the stopping pod down once nothing else is under way in it.
    pub(super) fn begin_take_down(&mut self) {
        if self.containers.values().any(|c| c.state.busy()) {
            return;
        }
        let State::Stopping {
            shim,
            begun: begun @ false,
            ..
        } = &mut self.state
        else {
            return;
        };
        *begun = true;
        let (pod, shim) = (self.pod.clone(), shim.clone());
        let containers = self.containers.keys().cloned().collect();
        self.record.phase = PodPhase::Stopping;
        self.write_pod();
        self.begin(async move { Work::Stopped(stop::pod(pod, shim, containers).await) });
    }

    pub(super) fn begin_removing(&mut self, request: Request) {
        self.state = State::Removing {
            waiters: vec![request],
        };
        self.record.phase = PodPhase::Removing;
        self.write_pod();
        let pod = self.pod.clone();
        let containers: Vec<String> = self.containers.keys().cloned().collect();
        self.begin(async move { Work::Removed(remove_stopped(pod, containers).await) });
    }
}

async fn remove_stopped(pod: Arc<Pod>, containers: Vec<String>) -> Result<(), Error> {
    for id in containers {
        stop::remove_container(pod.clone(), None, id).await?;
    }
    tokio::task::spawn_blocking(move || teardown::forget_pod(&pod))
        .await
        .map_err(|_| Error::Panicked("remove pod"))?
}
