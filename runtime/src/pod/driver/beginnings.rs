//! Work that begins: the state is changed first, then the task is spawned.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_nri::Pass;
use tracing::{Instrument, Span, field::Empty, info_span};

use super::{Container, ContainerState, Driver, State, Stop, TakeDown};
use crate::{
    error::Error,
    nri,
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
        self.begin_with(async move { (work.await, Pass::default()) });
    }

    /// Work that plugins hear of: its pass is held until its end is published.
    pub(super) fn begin_with(&mut self, work: impl Future<Output = (Work, Pass)> + Send + 'static) {
        self.begin_on("", work);
    }

    /// [`Self::begin_with`], of work on this container.
    pub(super) fn begin_on(
        &mut self,
        container_id: &str,
        work: impl Future<Output = (Work, Pass)> + Send + 'static,
    ) {
        let cause = self.cause.clone();
        let metadata = self.pod.config.metadata.as_ref();
        let span = info_span!(
            parent: &cause,
            "work",
            pod_id = self.pod.id,
            container_id = Some(container_id).filter(|id| !id.is_empty()),
            namespace = metadata.map(|m| m.namespace.as_str()),
            name = metadata.map(|m| m.name.as_str()),
            otel.name = Empty,
            otel.error = Empty,
        );
        self.work.spawn(async move {
            let (work, pass) = work.instrument(span.clone()).await;
            let (what, error) = work.outcome();
            span.record("otel.name", what);
            span.record("otel.error", error.map(tracing::field::display));
            (work, pass, cause)
        });
    }

    /// A container that ran has ended: whoever wants to hear of it does before it can be removed.
    pub(super) fn begin_telling(&mut self, id: &str) {
        let pod = self.pod.clone();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(record) = container.record.clone() else {
            return;
        };
        match pod.node.nri.try_pass() {
            Some(pass) if pass.is_idle() => self.passes.push(pass),
            _ => {
                container.telling = true;
                let id = id.to_owned();
                self.begin_on(&id.clone(), async move {
                    let pass = pod.node.nri.pass().await;
                    nri::stopped(&pass, &pod, &record).await;
                    (Work::Told { id }, pass)
                });
            }
        }
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
                telling: false,
            },
        );
        self.begin_on(&id.clone(), async move {
            let pass = Arc::new(pod.node.nri.pass().await);
            let result = create::create(&pod, &shim, plan, &pass).await.map(Box::new);
            let pass = Arc::into_inner(pass).unwrap_or_default();
            (Work::Created { id, result }, pass)
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
        self.begin_on(&id.clone(), async move {
            let result = shim.kill(&id, signal, all).await;
            (Work::Signalled { id, result }, Pass::default())
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
        let record = container.record.clone();
        if let Some(record) = &record {
            let mut record = ContainerRecord::clone(record);
            record.phase = ContainerPhase::Removing;
            self.write_container(&record);
        }
        let pod = self.pod.clone();
        self.begin_on(&id.clone(), async move {
            let pass = pod.node.nri.pass().await;
            let last = nri::last_sight(&pass, &pod, record.as_deref());
            let result = stop::remove_container(pod.clone(), shim, id.clone()).await;
            if result.is_ok() {
                nri::removed(&pass, &pod, last).await;
            }
            (Work::ContainerRemoved { id, result }, pass)
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
        self.stop_cause = self.cause.clone();
        self.state = State::Stopping {
            shim,
            watch,
            waiters: request.into_iter().collect(),
            take_down: TakeDown::Waits,
        };
    }

    /// Ends what runs in the stopping pod once nothing else is under way in it, and takes it down once that has been told.
    pub(super) fn begin_take_down(&mut self) {
        if self
            .containers
            .values()
            .any(|c| c.state.busy() || c.telling)
        {
            return;
        }
        let State::Stopping {
            shim, take_down, ..
        } = &mut self.state
        else {
            return;
        };
        let (pod, shim) = (self.pod.clone(), shim.clone());
        let containers = self.containers.keys().cloned().collect();
        match take_down {
            TakeDown::Waits => {
                *take_down = TakeDown::Ending;
                self.cause = std::mem::replace(&mut self.stop_cause, Span::none());
                self.record.phase = PodPhase::Stopping;
                self.write_pod();
                self.begin(async move {
                    Work::ContainersEnded(stop::end(&pod, shim, containers).await)
                });
            }
            TakeDown::Ended { alive } => {
                let alive = alive.take();
                *take_down = TakeDown::Begun;
                let told = std::mem::replace(&mut self.told_stop, true);
                self.begin(async move {
                    if !told {
                        nri::stop_pod(&pod.node.nri.pass().await, &pod).await;
                    }
                    Work::Stopped(stop::take_down(&pod, alive.as_ref(), containers).await)
                });
            }
            TakeDown::Ending | TakeDown::Begun => {}
        }
    }

    pub(super) fn begin_removing(&mut self, request: Request) {
        self.state = State::Removing {
            waiters: vec![request],
        };
        self.record.phase = PodPhase::Removing;
        self.write_pod();
        let pod = self.pod.clone();
        let containers = self.containers.iter();
        let containers = containers.map(|(id, c)| (id.clone(), c.record.clone()));
        let containers = containers.collect();
        self.begin_with(async move {
            let pass = pod.node.nri.pass().await;
            let result = remove_stopped(&pod, containers, &pass).await;
            (Work::Removed(result), pass)
        });
    }
}

async fn remove_stopped(
    pod: &Arc<Pod>,
    containers: Vec<(String, Option<Arc<ContainerRecord>>)>,
    pass: &Pass,
) -> Result<(), Error> {
    for (id, record) in containers {
        let last = nri::last_sight(pass, pod, record.as_deref());
        stop::remove_container(pod.clone(), None, id).await?;
        nri::removed(pass, pod, last).await;
    }
    let gone = pod.clone();
    tokio::task::spawn_blocking(move || teardown::forget_pod(&gone))
        .await
        .map_err(|_| Error::Panicked("remove pod"))??;
    nri::remove_pod(pass, pod).await;
    Ok(())
}
