//! What is asked, held against [`request_queue`](crate::pod::request_queue): taken, joined, kept, answered or refused.

use std::time::{Duration, Instant};

use berth_proto::cri;

use super::{Answer, Container, ContainerState, Driver, State};
use crate::{
    error::Error,
    nri,
    pod::{
        PodKey, create,
        differences::{container_differences, container_key, differences},
        event::{Ran, Reply, Request, Work},
        pod_limits,
        record::PodLimits,
        request_queue::{ContainerAsk, PodAsk, Verdict, admit_container, admit_pod},
        shim::Shim,
        update,
    },
};

impl Driver {
    pub(super) fn asked(&mut self, request: Request) {
        match request {
            Request::Run {
                config,
                handler,
                replacing,
                reply,
            } => self.asked_run(config, handler, replacing, reply),
            Request::Stop { reply } => self.asked_stop(Request::Stop { reply }, PodAsk::Stop),
            Request::Remove { reply } => self.asked_stop(Request::Remove { reply }, PodAsk::Remove),
            Request::Create {
                plan,
                replacing,
                reply,
            } => self.asked_create(plan, replacing, reply),
            Request::Start { id, reply } => self.asked_start(id, reply),
            Request::Update {
                id,
                resources,
                by,
                reply,
            } => self.asked_update(id, resources, by, reply),
            Request::UpdatePod { change, reply } => self.asked_update_pod(change, reply),
            request @ Request::StopContainer { .. } => self.asked_stop_container(request),
            request @ Request::RemoveContainer { .. } => self.asked_remove_container(request),
        }
    }

    pub(super) fn asked_run(
        &mut self,
        config: Box<cri::PodSandboxConfig>,
        handler: String,
        replacing: bool,
        reply: Reply<Ran>,
    ) {
        let differs = differences(&self.pod.config, &config, &self.pod.handler, &handler);
        let ask = match differs.is_empty() {
            true => PodAsk::RunSame,
            false => PodAsk::RunOther {
                claimed: self.claimed,
            },
        };
        let again = |replacing, reply| Request::Run {
            config,
            handler,
            replacing,
            reply,
        };
        if replacing {
            return self.asked_stop(again(true, reply), PodAsk::Remove);
        }
        match (admit_pod(self.stage(), ask), &mut self.state) {
            (Verdict::Join, State::Creating { waiters }) => waiters.push(again(false, reply)),
            (Verdict::Done, _) => {
                let id = self.pod.id.clone();
                self.outbox.push(Answer::Ran(reply, Ran::Ready(id)));
            }
            (Verdict::Replace, _) => self.asked_stop(again(true, reply), PodAsk::Remove),
            (Verdict::Exists(why), _) => {
                let key = PodKey::of(&self.pod.config);
                let differs = match differs.as_slice() {
                    [] => String::new(),
                    fields => format!("; what is asked for differs in {}", fields.join(", ")),
                };
                self.fail(
                    again(false, reply),
                    Error::AlreadyExists(format!(
                        "pod {key} is here with id {} and {why}{differs}",
                        self.pod.id
                    )),
                );
            }
            _ => self.defer(again(false, reply)),
        }
    }

    /// Stop and Remove, and a Run for which this pod makes way.
    pub(super) fn asked_stop(&mut self, request: Request, ask: PodAsk) {
        match (admit_pod(self.stage(), ask), &mut self.state) {
            (Verdict::Take, State::Stopped { clean: true }) => self.begin_removing(request),
            (Verdict::Take, _) => self.begin_stopping(String::new(), Some(request)),
            (Verdict::Join, State::Stopping { waiters, .. } | State::Removing { waiters, .. }) => {
                waiters.push(request)
            }
            (Verdict::Done, _) => self.done(request),
            _ => self.defer(request),
        }
    }

    pub(super) fn asked_create(
        &mut self,
        plan: Box<create::Plan>,
        replacing: bool,
        reply: Reply<String>,
    ) {
        let request = Request::Create {
            plan,
            replacing,
            reply,
        };
        let Some((request, shim)) = self.admitted_by_pod(request) else {
            return;
        };
        let Request::Create { plan, reply, .. } = request else {
            unreachable!("admitted_by_pod gives back what it was given")
        };
        let (name, attempt) = container_key(&plan.config);
        let (name, key) = (name.to_owned(), (name, attempt));
        let here = self
            .containers
            .iter()
            .find(|(_, c)| container_key(&c.config) == key);
        let Some((id, container)) = here else {
            return self.begin_create(*plan, reply, shim);
        };
        let id = id.clone();
        let same = *container.config == plan.config;
        let ask = match same {
            true => ContainerAsk::CreateSame,
            false => ContainerAsk::CreateOther,
        };
        let verdict = admit_container(container.state.stage(), ask);
        let again = |plan, replacing, reply| Request::Create {
            plan,
            replacing,
            reply,
        };
        match verdict {
            Verdict::Done => self.outbox.push(Answer::Created(reply, id)),
            Verdict::Join => {
                let request = again(plan, false, reply);
                if let Some(Container {
                    state: ContainerState::Creating { waiters },
                    ..
                }) = self.containers.get_mut(&id)
                {
                    waiters.push(request);
                }
            }
            Verdict::Replace => self.begin_remove_container(id, Some(again(plan, true, reply))),
            Verdict::Exists(why) => {
                let differs = match same {
                    true => String::new(),
                    false => format!(
                        "; what is asked for differs in {}",
                        container_differences(&container.config, &plan.config).join(", ")
                    ),
                };
                self.fail(
                    again(plan, false, reply),
                    Error::AlreadyExists(format!(
                        "container {name} (attempt {attempt}) of pod {} is here with id {id} and {why}{differs}",
                        self.pod.id
                    )),
                );
            }
            _ => self.defer(again(plan, replacing, reply)),
        }
    }

    pub(super) fn asked_start(&mut self, id: String, reply: Reply<()>) {
        let request = Request::Start { id, reply };
        let Some((request, shim)) = self.admitted_by_pod(request) else {
            return;
        };
        let Request::Start { id, reply } = request else {
            unreachable!("admitted_by_pod gives back what it was given")
        };
        let Some(container) = self.containers.get_mut(&id) else {
            return self.fail(
                Request::Start {
                    id: id.clone(),
                    reply,
                },
                Error::NotFound {
                    what: "container",
                    id,
                },
            );
        };
        let verdict = admit_container(container.state.stage(), ContainerAsk::Start);
        let request = Request::Start {
            id: id.clone(),
            reply,
        };
        match (verdict, &mut container.state) {
            (Verdict::Take, state) => {
                *state = ContainerState::Starting {
                    waiters: vec![request],
                };
                let (pod, record) = (self.pod.clone(), container.record.clone());
                self.begin_on(&id.clone(), async move {
                    let since = Instant::now();
                    let pass = pod.node.nri.pass().await;
                    let begun = match nri::start_container(&pass, &pod, record.as_deref()).await {
                        Ok(()) => {
                            crate::failpoint::at(|| berth_failpoint::site!("container.start.begun"))
                        }
                        refused => refused,
                    };
                    let result = match begun {
                        Ok(()) => shim.start(&id).await,
                        Err(refused) => Err(refused),
                    };
                    let said = match result {
                        Ok(_) => None,
                        Err(_) => shim.inspect().await.ok(),
                    };
                    if let Ok(told) = &result {
                        nri::started(&pass, &pod, record.as_deref(), told.started_at).await;
                    }
                    let started = Work::Started {
                        id,
                        result,
                        said,
                        took: since.elapsed(),
                    };
                    (started, pass)
                });
            }
            (Verdict::Join, ContainerState::Starting { waiters }) => waiters.push(request),
            (Verdict::Refuse(why), _) => self.fail(
                request,
                Error::FailedPrecondition(format!("start container {id}: {why}")),
            ),
            _ => self.defer(request),
        }
    }

    pub(super) fn asked_update(
        &mut self,
        id: String,
        resources: Box<cri::LinuxContainerResources>,
        by: update::By,
        reply: Reply<()>,
    ) {
        let request = Request::Update {
            id,
            resources,
            by,
            reply,
        };
        let Some((request, shim)) = self.admitted_by_pod(request) else {
            return;
        };
        let Request::Update {
            id,
            resources,
            by,
            reply,
        } = request
        else {
            unreachable!("admitted_by_pod gives back what it was given")
        };
        let again = |id, reply| Request::Update {
            id,
            resources: resources.clone(),
            by: by.clone(),
            reply,
        };
        let pod = self.pod.clone();
        let Some(container) = self.containers.get_mut(&id) else {
            let missing = Error::NotFound {
                what: "container",
                id: id.clone(),
            };
            return self.fail(again(id, reply), missing);
        };
        match admit_container(container.state.stage(), ContainerAsk::Update) {
            Verdict::Take if !container.updating => {
                let planned = match (&by, super::publish::container_view(container)) {
                    (_, None) => Err(Error::PodGone(pod.id.clone())),
                    (_, Some(view)) => update::plan(&pod, &view.record, &resources, &by)
                        .map(|limits| (limits, view)),
                };
                let (limits, view) = match planned {
                    Ok(planned) => planned,
                    Err(error) => return self.fail(again(id, reply), error),
                };
                container.updating = true;
                self.begin_on(&id.clone(), async move {
                    let (done, pass) =
                        update::carry_out(&pod, &shim, &view, limits, *resources, by).await;
                    let (resources, result) = match done {
                        Ok(resources) => (resources, Ok(())),
                        Err(e) => (Box::default(), Err(e)),
                    };
                    let updated = Work::Updated {
                        id,
                        resources,
                        result,
                        reply,
                    };
                    (updated, pass)
                });
            }
            Verdict::Refuse(why) => {
                let refused = Error::FailedPrecondition(format!("update container {id}: {why}"));
                self.fail(again(id, reply), refused);
            }
            _ => self.defer(again(id, reply)),
        }
    }

    pub(super) fn asked_update_pod(&mut self, change: Box<PodLimits>, reply: Reply<()>) {
        let request = Request::UpdatePod { change, reply };
        let Some((request, shim)) = self.admitted_by_pod(request) else {
            return;
        };
        if self.updating {
            return self.defer(request);
        }
        let Request::UpdatePod { change, reply } = request else {
            unreachable!("admitted_by_pod gives back what it was given")
        };
        let limits = pod_limits::changed(pod_limits::now(&self.record), &change);
        let plan = match pod_limits::plan(&self.pod, &limits) {
            Ok(plan) => plan,
            Err(error) => return self.fail(Request::UpdatePod { change, reply }, error),
        };
        self.updating = true;
        let pod = self.pod.clone();
        self.begin_with(async move {
            let pass = pod.node.nri.pass().await;
            let result = match nri::update_pod(&pass, &pod, &limits).await {
                Ok(()) => pod_limits::apply(&pod, &shim, plan).await,
                refused => refused,
            };
            if result.is_ok() {
                nri::pod_updated(&pass, &pod).await;
            }
            let updated = Work::PodUpdated {
                limits: Box::new(limits),
                result,
                reply,
            };
            (updated, pass)
        });
    }

    pub(super) fn asked_stop_container(&mut self, request: Request) {
        let Request::StopContainer { id, grace, .. } = &request else {
            return;
        };
        let (id, grace) = (id.clone(), *grace);
        let Some(container) = self.containers.get(&id) else {
            return self.done(request);
        };
        match admit_container(container.state.stage(), ContainerAsk::Stop) {
            _ if container.telling => self.defer(request),
            Verdict::Take => self.begin_signal(&id, grace, request),
            Verdict::Done => self.done(request),
            _ => self.defer(request),
        }
    }

    pub(super) fn asked_remove_container(&mut self, request: Request) {
        let Request::RemoveContainer { id, .. } = &request else {
            return;
        };
        let id = id.clone();
        let Some(container) = self.containers.get_mut(&id) else {
            return self.done(request);
        };
        let verdict = admit_container(container.state.stage(), ContainerAsk::Remove);
        match (verdict, &mut container.state) {
            _ if container.telling => self.defer(request),
            // The pod takes all of them down, and asks again.
            (Verdict::Take | Verdict::KillFirst, _)
                if matches!(self.state, State::Stopping { .. } | State::Removing { .. }) =>
            {
                self.defer(request)
            }
            (Verdict::Take, _) => self.begin_remove_container(id, Some(request)),
            (Verdict::KillFirst, _) => self.begin_signal(&id, Duration::ZERO, request),
            (Verdict::Join, ContainerState::Removing { waiters, .. }) => waiters.push(request),
            _ => self.defer(request),
        }
    }

    /// Gives the request back with the pod's shim if the pod is ready; else it is answered or kept.
    pub(super) fn admitted_by_pod(&mut self, request: Request) -> Option<(Request, Shim)> {
        match (admit_pod(self.stage(), PodAsk::Use), &self.state) {
            (Verdict::Take, State::Ready { shim, .. }) => Some((request, shim.clone())),
            (Verdict::Refuse(why), _) => {
                self.fail(
                    request,
                    Error::FailedPrecondition(format!("pod {}: {why}", self.pod.id)),
                );
                None
            }
            _ => {
                self.defer(request);
                None
            }
        }
    }
}
