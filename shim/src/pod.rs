//! The pod: its sandbox (the pause and the namespaces it holds) and its containers.
//!
//! ```text
//!   None ──create──▶ Created ──start──▶ Running ──stop, or the pause's death──▶ Stopped
//! ```
//!
//! Each change of anything that a caller can see raises `generation`, after it was made: who polls by it misses nothing.
//!
//! # Synchronization
//! Everything runs on one thread; the mutexes are held for a few lines and never over an await. `order` is held by whoever
//! changes the sandbox's phase. A container that was being made while the sandbox stopped finds the phase changed when it is
//! there, and undoes itself.

mod containers;
mod ending;
mod sandbox;

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_engine::{Engine, cgroup::Cgroup};
use berth_proto::shim::v1::pod::{InspectResponse, SandboxOptions, TaskState};
use protobuf::well_known_types::any::Any;
use tokio::sync::watch;

use crate::{
    container::{Container, lock},
    cri_sandbox,
    error::Error,
    events::Events,
    exec_output::Outputs,
    exec_sync::Calls,
    oom_accounts::OomAccounts,
    reaper::{Exit, Reaper},
    stdio_uri::Outside,
    streams::Streams,
};

/// How long stop and delete wait for a process after SIGKILL. It ends in milliseconds, or hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Pod {
    pub id: String,
    pub engine: Arc<dyn Engine>,
    pub reaper: Arc<Reaper>,
    pub events: Events,
    pub outside: Outside,
    pub outputs: Outputs,
    pub calls: Calls,
    /// Set to end the shim.
    pub shutdown: watch::Sender<bool>,
    generation: watch::Sender<u64>,
    sandbox: watch::Sender<Sandbox>,
    order: tokio::sync::Mutex<()>,
    containers: Mutex<BTreeMap<String, Slot>>,
    pub oom_accounts: OomAccounts,
}

#[derive(Debug)]
enum Slot {
    Making,
    Made(Arc<Container>),
}

/// What the sandbox is made of, as it was asked for.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    pub options: SandboxOptions,
    pub netns: Option<PathBuf>,
    /// What the pod's containers share of files, where the shim makes them.
    pub files: Option<cri_sandbox::Files>,
}

#[derive(Debug, Clone)]
pub enum Sandbox {
    None,
    Created {
        setup: Arc<Setup>,
    },
    Running {
        setup: Arc<Setup>,
        pid: i32,
        pidfd: Arc<OwnedFd>,
        created_at: i64,
    },
    /// `exit` is missing until the pause was reaped, and where it was never started.
    Stopped {
        setup: Arc<Setup>,
        pid: i32,
        pidfd: Option<Arc<OwnedFd>>,
        created_at: i64,
        exit: Option<Exit>,
    },
}

impl Pod {
    pub fn new(
        (namespace, id): (String, String),
        engine: Arc<dyn Engine>,
        reaper: Arc<Reaper>,
        events: Events,
        streams: Arc<Streams>,
    ) -> Pod {
        Pod {
            id,
            engine,
            outside: Outside {
                namespace,
                streams,
                reaper: reaper.clone(),
            },
            reaper,
            events,
            outputs: Outputs::default(),
            calls: Calls::default(),
            oom_accounts: OomAccounts::default(),
            shutdown: watch::Sender::new(false),
            generation: watch::Sender::new(1),
            sandbox: watch::Sender::new(Sandbox::None),
            order: tokio::sync::Mutex::new(()),
            containers: Mutex::new(BTreeMap::new()),
        }
    }

    /// Something that a caller can see has changed.
    pub fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub fn sandbox(&self) -> Sandbox {
        self.sandbox.borrow().clone()
    }

    /// The cgroup that its containers' lie in.
    pub fn cgroup(&self) -> Result<Cgroup, Error> {
        match self.sandbox() {
            Sandbox::Created { setup } | Sandbox::Running { setup, .. } => {
                let options = &setup.options;
                Ok(Cgroup::by(options.systemd_cgroup, &options.cgroup_parent)?)
            }
            Sandbox::None | Sandbox::Stopped { .. } => Err(Error::State {
                action: "limit sandbox",
                id: self.id.clone(),
                state: "not running".into(),
            }),
        }
    }

    /// Follows the sandbox's phase.
    pub fn follow_sandbox(&self) -> watch::Receiver<Sandbox> {
        self.sandbox.subscribe()
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        match lock(&self.containers).get(id) {
            Some(Slot::Made(container)) => Ok(container.clone()),
            Some(Slot::Making) => Err(Error::State {
                action: "use container",
                id: id.to_owned(),
                state: "still being made".into(),
            }),
            None => Err(Error::Unknown {
                what: "container",
                id: id.to_owned(),
            }),
        }
    }

    pub fn containers(&self) -> Vec<Arc<Container>> {
        let all = lock(&self.containers);
        all.values()
            .filter_map(|slot| match slot {
                Slot::Made(container) => Some(container.clone()),
                Slot::Making => None,
            })
            .collect()
    }

    /// No sandbox and no container: nothing keeps the shim.
    pub fn is_empty(&self) -> bool {
        lock(&self.containers).is_empty()
            && !matches!(
                self.sandbox(),
                Sandbox::Created { .. } | Sandbox::Running { .. }
            )
    }

    pub fn inspect(&self) -> InspectResponse {
        let mut response = InspectResponse {
            generation: *self.generation.borrow(),
            sandbox_id: self.id.clone(),
            containers: self
                .containers()
                .iter()
                .map(|container| container.state())
                .collect(),
            ..Default::default()
        };
        match self.sandbox() {
            Sandbox::None => {}
            Sandbox::Created { .. } => response.sandbox_state = TaskState::CREATED.into(),
            Sandbox::Running {
                pid, created_at, ..
            } => {
                response.sandbox_state = TaskState::RUNNING.into();
                response.sandbox_pid = pid as u32;
                response.sandbox_created_at = created_at;
            }
            Sandbox::Stopped {
                pid,
                created_at,
                exit,
                ..
            } => {
                response.sandbox_state = TaskState::EXITED.into();
                response.sandbox_pid = pid as u32;
                response.sandbox_created_at = created_at;
                response.sandbox_exited_at = exit.map_or(0, |exit| exit.at);
            }
        }
        response
    }
}

fn still_alive(what: String) -> Error {
    Error::StillAlive {
        what,
        waited_ms: KILL_WAIT.as_millis() as u64,
    }
}

/// Runs what blocks on a thread of its own that does not outlive it by much.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(|_| Error::Lost(what))?
}

/// Runs to its end what must not stop half-way when the caller's deadline passes and its handler is dropped.
pub async fn detached<T: Send + 'static>(
    what: &'static str,
    act: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(act).await.map_err(|_| Error::Lost(what))?
}

/// The message in an Any of this type; none where it is absent or another shim's.
pub fn unpack<M: protobuf::Message>(
    any: &protobuf::MessageField<Any>,
    name: &str,
) -> Result<Option<M>, Error> {
    let Some(any) = any.as_ref() else {
        return Ok(None);
    };
    if any.type_url.rsplit('/').next() != Some(name) {
        return Ok(None);
    }
    M::parse_from_bytes(&any.value)
        .map(Some)
        .map_err(|error| Error::invalid(name, error))
}
