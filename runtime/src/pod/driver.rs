//! The one task that drives a pod.
//!
//! # Synchronization
//! Everything in [`Driver`] is the driver's alone. Others see the published view, which is replaced after each event and before
//! the answers to it go out: who was answered sees what it was told. Work runs in tasks of the driver's [`JoinSet`]; a pod's
//! containers therefore progress side by side.

mod beginnings;
pub mod changes;
mod endings;
mod publish;
mod requests;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use berth_nri::Pass;
use berth_proto::{cri, shim::v1::pod as v1};
use berth_state::record::{self, Durability};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::Span;

use super::{
    Pod,
    event::{Event, Ran, Reply, Request, Work},
    record::{ContainerRecord, Exit, PodRecord, Timeline},
    registry::{Handle, Registry},
    request_queue::{ContainerStage, PodStage},
    run,
    shim::Shim,
    stop::Deadline,
};
use crate::error::{Error, Failure};

/// Requests that wait for work under way. Each is one RPC of a client that is still connected or has given up; a kubelet has one
/// or two a pod.
const MAX_DEFERRED: usize = 256;
#[derive(Debug)]
pub struct Driver {
    pub(super) pod: Arc<Pod>,
    registry: Arc<Registry>,
    handle: Arc<Handle>,
    events: mpsc::Receiver<Event>,
    work: JoinSet<(Work, Pass, Span)>,
    /// Of work that has ended, until what came of it is published.
    passes: Vec<Pass>,
    /// The span of whoever caused what is being done now: of an RPC, or of nobody.
    cause: Span,
    /// Of who asked the pod to stop, while that can't begin yet.
    stop_cause: Span,
    pub(super) record: PodRecord,
    pub(super) state: State,
    pub(super) containers: BTreeMap<String, Container>,
    /// The shim's last word.
    said: v1::InspectResponse,
    deferred: Vec<(Request, Span)>,
    outbox: Vec<Answer>,
    /// Its limits are being changed; the next change waits.
    updating: bool,
    /// Somebody was told this pod's id.
    pub(super) claimed: bool,
    /// NRI plugins have been told that it stops: a second try is no second stop.
    told_stop: bool,
}

#[derive(Debug)]
pub(super) enum State {
    Creating {
        waiters: Vec<Request>,
    },
    Ready {
        shim: Shim,
        _watch: Watch,
    },
    Broken,
    Stopping {
        shim: Option<Shim>,
        watch: Option<Watch>,
        waiters: Vec<Request>,
        take_down: TakeDown,
    },
    Stopped {
        clean: bool,
    },
    Removing {
        waiters: Vec<Request>,
    },
    Gone,
}

/// How far the end of a pod has come.
#[derive(Debug)]
pub(super) enum TakeDown {
    /// Until no container is being made, started or removed.
    Waits,
    Ending,
    /// Its containers have ended, and their end is being told.
    Ended {
        alive: Option<Shim>,
    },
    Begun,
}

#[derive(Debug)]
pub(super) struct Container {
    pub config: Arc<cri::ContainerConfig>,
    /// There as soon as anybody may see the container.
    pub record: Option<Arc<ContainerRecord>>,
    pub state: ContainerState,
    pub timeline: Timeline,
    pub pid: u32,
    /// An update is under way; the next waits for it.
    pub updating: bool,
    /// NRI plugins are being told of its end; until then it can't be gone.
    pub telling: bool,
}

#[derive(Debug)]
pub enum ContainerState {
    Creating {
        waiters: Vec<Request>,
    },
    Created,
    Starting {
        waiters: Vec<Request>,
    },
    Running {
        started_at: i64,
        stop: Option<Stop>,
    },
    Exited(Exit),
    Broken {
        why: String,
    },
    Removing {
        waiters: Vec<Request>,
        exit: Option<Exit>,
    },
}

/// A StopContainer, or the kill before a RemoveContainer.
#[derive(Debug)]
pub struct Stop {
    since: Instant,
    deadline: Deadline,
    waiters: Vec<Request>,
}

/// The task that asks the shim for changes. Ends with its owner.
#[derive(Debug)]
pub(super) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer on its way, sent once the view is published.
enum Answer {
    Ran(Reply<Ran>, Ran),
    Created(Reply<String>, String),
    Done(Reply<()>),
    Failed(Request, Failure),
    Gone(Request),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

impl ContainerState {
    fn stage(&self) -> ContainerStage {
        match self {
            Self::Creating { .. } => ContainerStage::Creating,
            Self::Created => ContainerStage::Created,
            Self::Starting { .. } => ContainerStage::Starting,
            Self::Running { .. } => ContainerStage::Running,
            Self::Exited(_) => ContainerStage::Exited,
            Self::Broken { .. } => ContainerStage::Broken,
            Self::Removing { .. } => ContainerStage::Removing,
        }
    }

    /// Work on it is under way.
    fn busy(&self) -> bool {
        matches!(
            self,
            Self::Creating { .. } | Self::Starting { .. } | Self::Removing { .. }
        )
    }
}

impl Driver {
    pub fn new(
        registry: Arc<Registry>,
        handle: Arc<Handle>,
        events: mpsc::Receiver<Event>,
        record: PodRecord,
    ) -> Self {
        Self {
            pod: handle.pod.clone(),
            registry,
            handle,
            events,
            work: JoinSet::new(),
            passes: vec![],
            cause: Span::current(),
            stop_cause: Span::none(),
            record,
            state: State::Creating { waiters: vec![] },
            containers: BTreeMap::new(),
            said: v1::InspectResponse::default(),
            deferred: vec![],
            outbox: vec![],
            updating: false,
            claimed: false,
            told_stop: false,
        }
    }

    /// Makes a new pod, then drives it.
    pub async fn create(mut self) {
        let pod = self.pod.clone();
        self.begin_with(async move {
            match run::run(&pod).await {
                Ok((running, pass)) => (Work::Ran(Ok(Box::new(running))), pass),
                Err(e) => (Work::Ran(Err(e)), Pass::default()),
            }
        });
        self.drive().await;
    }

    /// Drives the pod until it is gone.
    pub async fn drive(mut self) {
        self.settle();
        while !matches!(self.state, State::Gone) {
            // A span is over when nobody holds it any more.
            self.cause = Span::none();
            let (event, cause) = self.next().await;
            self.cause = cause.clone();
            cause.in_scope(|| {
                self.handle(event);
                self.settle();
            });
        }
        // What arrived too late.
        self.events.close();
        for (request, _) in std::mem::take(&mut self.deferred) {
            request.gone(&self.pod.id);
        }
        while let Some(event) = self.events.recv().await {
            if let Event::Asked(request, _) = event {
                request.gone(&self.pod.id);
            }
        }
    }

    /// What happens next, and by whose cause.
    async fn next(&mut self) -> (Event, Span) {
        let wake = self.wake_at();
        let passed = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.work.join_next() => match ended {
                Ok((work, pass, cause)) => {
                    self.passes.push(pass);
                    (Event::Ended(work), cause)
                }
                Err(e) if e.is_panic() => {
                    // A bug left this pod half changed. Recovery brings it in order, and disturbs nothing that runs.
                    tracing::error!(pod_id = %self.pod.id, "work panicked, berthd ends and is to be started again: {e}");
                    std::process::abort();
                }
                // The daemon is ending, and this task with it.
                Err(_) => std::future::pending().await,
            },
            Some(event) = self.events.recv() => match event {
                Event::Asked(_, ref span) => {
                    let span = span.clone();
                    (event, span)
                }
                event => (event, Span::none()),
            },
            () = passed => (Event::Passed, Span::none()),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Asked(request, _) => self.asked(request),
            Event::Said(said) => self.apply(said),
            Event::Heard(settled) => self.heard(settled),
            Event::Reconnected(new) => match &mut self.state {
                State::Ready { shim, .. } => *shim = new,
                State::Stopping {
                    shim: shim @ Some(_),
                    ..
                } => *shim = Some(new),
                _ => {}
            },
            Event::Lost(why) => {
                if matches!(self.state, State::Ready { .. }) {
                    tracing::error!(pod_id = %self.pod.id, "shim is gone: {why}");
                    self.begin_stopping(format!("its shim is gone: {why}"), None);
                }
            }
            Event::Ended(work) => {
                self.ended(work);
                for (request, span) in std::mem::take(&mut self.deferred) {
                    self.cause = span;
                    self.asked(request);
                }
            }
            Event::Passed => self.passed(),
        }
    }

    /// Begins what had to wait, publishes, answers.
    fn settle(&mut self) {
        self.begin_take_down();
        if matches!(self.state, State::Gone) {
            self.registry.forget(&self.pod);
            let last = self.handle.view();
            let gone = None::<&Arc<super::view::PodView>>;
            self.registry.happenings.tell(&last, gone, &last);
        } else {
            let after = Arc::new(self.view());
            let before = self.handle.publish(after.clone());
            self.registry.happenings.tell(&before, Some(&after), &after);
        }
        self.passes.clear();
        for answer in std::mem::take(&mut self.outbox) {
            match answer {
                Answer::Ran(reply, ran) => self.claimed |= reply.send(Ok(ran)).is_ok(),
                Answer::Created(reply, id) => drop(reply.send(Ok(id))),
                Answer::Done(reply) => drop(reply.send(Ok(()))),
                Answer::Failed(request, failure) => request.fail(&failure),
                Answer::Gone(request) => request.gone(&self.pod.id),
            }
        }
    }

    fn shim(&self) -> Option<Shim> {
        match &self.state {
            State::Ready { shim, .. } => Some(shim.clone()),
            State::Stopping { shim, .. } => shim.clone(),
            _ => None,
        }
    }

    fn stage(&self) -> PodStage {
        match &self.state {
            State::Creating { .. } => PodStage::Creating,
            State::Ready { .. } => PodStage::Ready,
            State::Broken => PodStage::Broken,
            State::Stopping { .. } => PodStage::Stopping,
            State::Stopped { clean } => PodStage::Stopped { clean: *clean },
            State::Removing { .. } | State::Gone => PodStage::Removing,
        }
    }

    fn defer(&mut self, request: Request) {
        if self.deferred.len() < MAX_DEFERRED {
            return self.deferred.push((request, self.cause.clone()));
        }
        self.fail(
            request,
            Error::ResourceExhausted(format!(
                "pod {}: {MAX_DEFERRED} requests wait already for the work under way",
                self.pod.id
            )),
        );
    }

    fn done(&mut self, request: Request) {
        match request {
            Request::Stop { reply }
            | Request::Remove { reply }
            | Request::Start { reply, .. }
            | Request::Update { reply, .. }
            | Request::UpdatePod { reply, .. }
            | Request::StopContainer { reply, .. }
            | Request::RemoveContainer { reply, .. } => self.outbox.push(Answer::Done(reply)),
            other @ (Request::Run { .. } | Request::Create { .. }) => self.asked(other),
        }
    }

    fn fail(&mut self, request: Request, error: Error) {
        self.outbox.push(Answer::Failed(request, error.into()));
    }

    fn fail_all(&mut self, requests: Vec<Request>, error: Error) {
        let failure: Failure = error.into();
        self.outbox.extend(
            requests
                .into_iter()
                .map(|request| Answer::Failed(request, failure.clone())),
        );
    }

    /// A record that can't be written (a full disk) costs its news at the next start, not the pod: the kernel and the shim know better.
    pub(super) fn write_pod(&self) {
        let path = self.pod.node.pod_record(&self.pod.id);
        if let Err(e) = record::write(&path, &self.record, Durability::PageCache) {
            tracing::error!(pod_id = %self.pod.id, "{e}");
        }
    }

    pub(super) fn write_container(&self, record: &ContainerRecord) {
        let path = self.pod.node.container_record(&record.id);
        if let Err(e) = record::write(&path, record, Durability::PageCache) {
            tracing::error!(pod_id = %self.pod.id, container_id = %record.id, "{e}");
        }
    }
}
