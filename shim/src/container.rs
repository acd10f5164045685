//! One container as the shim knows it.
//!
//! ```text
//!   (making) ──create──▶ Created ──start──▶ Running ──exit──▶ Exited ──delete──▶ (forgotten)
//!                           └───────────────exit──────────────▲
//! ```
//!
//! # Synchronization
//! `order` is held by whoever changes the phase: start, the exit's own task, delete. So an exit that races with the start that
//! caused it is told after it, with the start's error. The phase itself is behind a plain mutex that is never held over an await.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64},
    },
};

use berth_engine::cgroup::Cgroup;
use berth_proto::shim::v1::pod::{ContainerState, TaskState};
use tokio::sync::{oneshot, watch};

use crate::{cri_log::LogFile, error::Error, exec::Exec, stream::Io};

/// Execs a container may have at a time, ended ones that nobody deleted included. Each has a pid and two or three pipes.
pub const MAX_EXECS: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Created,
    /// ns since the epoch
    Running {
        started_at: i64,
    },
    Exited {
        started_at: i64,
        ended: Ended,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i32,
    /// ns since the epoch
    pub at: i64,
    /// "Completed", "Error", "OOMKilled", "StartError"
    pub reason: &'static str,
    pub message: String,
}

/// Why the command could not be run: the container's own failure.
#[derive(Debug, Clone)]
pub struct StartError {
    pub exit_code: i32,
    pub message: String,
}

#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub tty: bool,
    /// Its stdin ends with its first client's.
    pub stdin_once: bool,
    /// Fifos as they were asked for: stdin, stdout, stderr.
    pub fifos: [String; 3],
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// ns since the epoch
    pub created_at: i64,
    /// The spec's `process` as JSON.
    pub process: Box<str>,
    pub own_pid_namespace: bool,
    pub cgroup: Option<Cgroup>,
    pub log: Option<Arc<LogFile>>,
    pub order: tokio::sync::Mutex<()>,
    pub io: Mutex<Option<Io>>,
    pub start_error: Mutex<Option<StartError>>,
    pub execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    /// Its cgroup is frozen.
    pub paused: AtomicBool,
    /// How many of its processes were killed for want of memory, as far as that was told.
    pub oom_kills: AtomicU64,
    /// Its root file system was mounted by this shim.
    pub mounted: bool,
    /// Held while it is checkpointed, and while it is paused after that.
    pub checkpoint: Arc<tokio::sync::Mutex<()>>,
    /// Nobody is there for whom it would be paused.
    pub no_hold: AtomicBool,
    /// Ends that pause.
    pub held: Mutex<Option<oneshot::Sender<()>>>,
    phase: watch::Sender<Phase>,
}

impl Container {
    #[allow(clippy::too_many_arguments)] // a struct's fields, once
    pub fn new(
        id: String,
        bundle: PathBuf,
        request: (bool, bool, [String; 3], bool),
        init: (i32, OwnedFd),
        created_at: i64,
        spec: crate::bundle::Spec,
        cgroup: Option<Cgroup>,
        log: Option<Arc<LogFile>>,
        io: Io,
    ) -> Container {
        Container {
            id,
            bundle,
            tty: request.0,
            stdin_once: request.1,
            fifos: request.2,
            pid: init.0,
            pidfd: init.1,
            created_at,
            process: spec.process,
            own_pid_namespace: spec.own_pid_namespace,
            cgroup,
            log,
            order: tokio::sync::Mutex::new(()),
            io: Mutex::new(Some(io)),
            start_error: Mutex::new(None),
            execs: Mutex::new(BTreeMap::new()),
            paused: AtomicBool::new(false),
            oom_kills: AtomicU64::new(0),
            mounted: request.3,
            checkpoint: Arc::default(),
            no_hold: AtomicBool::new(false),
            held: Mutex::new(None),
            phase: watch::Sender::new(Phase::Created),
        }
    }

    /// Its cgroup, for what `action` does with it.
    pub fn cgroup(&self, action: &'static str) -> Result<&Cgroup, Error> {
        self.cgroup.as_ref().ok_or_else(|| Error::State {
            action,
            id: format!("container {}", self.id),
            state: "without a cgroup".into(),
        })
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub fn has_ended(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Exited { .. })
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Result<Ended, Error> {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Exited { ended, .. } = &*phase.borrow_and_update() {
                return Ok(ended.clone());
            }
            phase
                .changed()
                .await
                .map_err(|_| Error::Lost("a container's phase"))?;
        }
    }

    /// Sends a signal to init; one that has ended is no error. The descriptor is init's own: a pid that was given out again can't be hit.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        signal_process(&self.pidfd, signal, || {
            format!("signal container {}", self.id)
        })
    }

    /// The exec, or NOT_FOUND.
    pub fn exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        lock(&self.execs)
            .get(id)
            .cloned()
            .ok_or_else(|| Error::Unknown {
                what: "exec",
                id: format!("{}/{id}", self.id),
            })
    }

    /// For the wire.
    pub fn state(&self) -> ContainerState {
        let mut state = ContainerState {
            id: self.id.clone(),
            pid: self.pid as u32,
            created_at: self.created_at,
            ..Default::default()
        };
        match self.phase() {
            Phase::Created => state.state = TaskState::CREATED.into(),
            Phase::Running { started_at } => {
                state.state = TaskState::RUNNING.into();
                state.started_at = started_at;
            }
            Phase::Exited { started_at, ended } => {
                state.state = TaskState::EXITED.into();
                state.started_at = started_at;
                state.finished_at = ended.at;
                state.exit_code = ended.exit_code;
                state.reason = ended.reason.into();
                state.message = ended.message;
            }
        }
        state
    }
}

/// A process that has ended already is no error.
pub fn signal_process(
    pidfd: &OwnedFd,
    signal: i32,
    step: impl FnOnce() -> String,
) -> Result<(), Error> {
    match berth_kernel::pidfd::send_signal(pidfd, signal) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            Err(Error::io(step())(error))
        }
        _ => Ok(()),
    }
}

/// A mutex whose holder panicked still guards data that is whole: nothing here is changed in two steps.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
