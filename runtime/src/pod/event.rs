//! What a pod's driver is told. Closed: nothing else ever changes a pod.

use std::time::Duration;

use berth_proto::{cri, shim::v1::pod as v1};
use tokio::sync::oneshot;
use tracing::Span;

use super::{
    create::Plan,
    driver::ContainerState,
    record::{ContainerRecord, PodLimits},
    run::Running,
    shim::Shim,
    stop::{Ended, Outcome},
    update::By,
};
use crate::error::{Error, Failure};

pub type Reply<T> = oneshot::Sender<Result<T, Failure>>;

#[derive(Debug)]
pub enum Event {
    /// An RPC handler asks, in this span.
    Asked(Request, Span),
    /// The shim's word on the pod as it is now.
    Said(v1::InspectResponse),
    /// The shim that was silent when the daemon started: what its containers have come to.
    Heard(Vec<(ContainerRecord, ContainerState)>),
    /// The connection to the shim broke, and there is a new one.
    Reconnected(Shim),
    /// The shim is dead.
    Lost(String),
    /// Work that the driver began has ended.
    Ended(Work),
    /// The time that the driver asked to be woken at has come.
    Passed,
}

/// A request with the seat of whoever waits for its answer. A caller that gave up leaves its seat; the work goes on.
#[derive(Debug)]
pub enum Request {
    Run {
        config: Box<cri::PodSandboxConfig>,
        handler: String,
        /// The pod that is here was judged to make way for this one.
        replacing: bool,
        reply: Reply<Ran>,
    },
    Stop {
        reply: Reply<()>,
    },
    Remove {
        reply: Reply<()>,
    },
    Create {
        plan: Box<Plan>,
        replacing: bool,
        reply: Reply<String>,
    },
    Start {
        id: String,
        reply: Reply<()>,
    },
    Update {
        id: String,
        resources: Box<cri::LinuxContainerResources>,
        by: By,
        reply: Reply<()>,
    },
    /// Other limits of the whole pod.
    UpdatePod {
        change: Box<PodLimits>,
        reply: Reply<()>,
    },
    StopContainer {
        id: String,
        grace: Duration,
        reply: Reply<()>,
    },
    RemoveContainer {
        id: String,
        reply: Reply<()>,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Ran {
    /// The pod with this id is ready.
    Ready(String),
    /// The pod that was here is gone: ask again.
    Again,
}

/// How work ended.
#[derive(Debug)]
pub enum Work {
    Ran(Result<Box<Running>, Error>),
    Created {
        id: String,
        result: Result<Box<ContainerRecord>, Error>,
    },
    Started {
        id: String,
        /// The container as the shim had it then.
        result: Result<v1::ContainerState, Error>,
        /// Where it failed: what the shim says now.
        said: Option<v1::InspectResponse>,
        took: Duration,
    },
    /// The resources are what the container has now, if it went well.
    Updated {
        id: String,
        resources: Box<cri::LinuxContainerResources>,
        result: Result<(), Error>,
        reply: Reply<()>,
    },
    /// The limits are what the pod has now, if it went well.
    PodUpdated {
        limits: Box<PodLimits>,
        result: Result<(), Error>,
        reply: Reply<()>,
    },
    Signalled {
        id: String,
        result: Result<(), Error>,
    },
    /// NRI plugins have been told that the container has ended.
    Told {
        id: String,
    },
    /// The pod's containers have ended, and it can be taken down.
    ContainersEnded(Result<Ended, Outcome>),
    Stopped(Result<(), Error>),
    ContainerRemoved {
        id: String,
        result: Result<(), Error>,
    },
    Removed(Result<(), Error>),
}

impl Work {
    /// What it was, and how it failed, for its span.
    pub fn outcome(&self) -> (&'static str, Option<&Error>) {
        match self {
            Self::Ran(result) => ("run pod", result.as_ref().err()),
            Self::Created { result, .. } => ("create container", result.as_ref().err()),
            Self::Started { result, .. } => ("start container", result.as_ref().err()),
            Self::Updated { result, .. } => ("update container", result.as_ref().err()),
            Self::PodUpdated { result, .. } => ("update pod", result.as_ref().err()),
            Self::Signalled { result, .. } => ("signal container", result.as_ref().err()),
            Self::Told { .. } => ("tell plugins", None),
            Self::ContainersEnded(result) => (
                "stop pod",
                result.as_ref().err().and_then(|o| o.result.as_ref().err()),
            ),
            Self::Stopped(result) => ("teardown", result.as_ref().err()),
            Self::ContainerRemoved { result, .. } => ("remove container", result.as_ref().err()),
            Self::Removed(result) => ("remove pod", result.as_ref().err()),
        }
    }
}

impl Request {
    pub fn fail(self, failure: &Failure) {
        let failure = failure.clone();
        // Nobody may be waiting any more.
        match self {
            Self::Run { reply, .. } => drop(reply.send(Err(failure))),
            Self::Create { reply, .. } => drop(reply.send(Err(failure))),
            Self::Stop { reply }
            | Self::Remove { reply }
            | Self::Start { reply, .. }
            | Self::Update { reply, .. }
            | Self::UpdatePod { reply, .. }
            | Self::StopContainer { reply, .. }
            | Self::RemoveContainer { reply, .. } => drop(reply.send(Err(failure))),
        }
    }

    /// The answer that this request gets from a pod that is gone.
    pub fn gone(self, pod_id: &str) {
        match self {
            Self::Run { reply, .. } => drop(reply.send(Ok(Ran::Again))),
            Self::Stop { reply }
            | Self::Remove { reply }
            | Self::StopContainer { reply, .. }
            | Self::RemoveContainer { reply, .. } => drop(reply.send(Ok(()))),
            other @ (Self::Create { .. }
            | Self::Start { .. }
            | Self::Update { .. }
            | Self::UpdatePod { .. }) => {
                other.fail(&Error::PodGone(pod_id.to_owned()).into());
            }
        }
    }
}
