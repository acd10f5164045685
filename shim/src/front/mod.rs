//! Another shim behind ours: a pod whose containers are made by any shim v2, with all that is Berth's own around them.
//!
//! ```text
//!   berthd ── sandbox, task, Pod ──▶ this process ── task v2 or v3 ──▶ the other shim ──▶ runc, crun, …
//!                                      ▲   └ fifo `log`, Wait ─────────┘    │
//!                                      └──────────── events ────────────────┘
//! ```
//!
//! Logs, attach, ExecSync, exit records and figures are as with our own engine; create, start, exec, kill, update and delete go to the
//! other shim. It has no need of the Sandbox API: the pause is a first container of its ([`pause`]).
//!
//! # Synchronization
//! The engine's calls run on threads of their own and block there; all that waits in the background is a task of the shim's one loop.
//! `state` is held for a few lines, never over a call.
//!
//! Invariant: nothing waits for the other shim without a deadline but what waits for a process's end, and a process's end is also seen
//! without it: a shim that hangs or dies holds up no stop and no removal.

mod client;
mod command;
mod ending;
mod engine;
mod events;
mod leftovers;
mod pause;
mod process;
mod streams;

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use berth_engine::{Error, Process, cgroup::Cgroup};
use berth_proto::shim::api::{CreateTaskRequest, CreateTaskResponse};
use berth_shim_client::Bootstrap;
use protobuf::{Message, well_known_types::any::Any};
use rustix::process::Pid;
use tokio::{net::unix::pipe::OpenOptions, runtime::Handle};

use self::{
    client::{Client, Name},
    command::{Calling, Reaping, START},
    leftovers::Record,
    streams::Streams,
};
pub use self::{events::EventsService, leftovers::clean};
use crate::{cli::Flags, container::lock, error::Error as ShimError, journal, reaper::Reaper};

/// What the runtime behind the shim does for one container.
const MAKE: Duration = Duration::from_secs(30);
/// Containers whose OOM is remembered: a pod has no more.
const MAX_OOM: usize = 1024;

/// The engine that asks another shim.
#[derive(Debug)]
pub struct Front {
    me: Weak<Front>,
    calling: Calling,
    options: Option<Any>,
    pod_id: String,
    /// `<bundle>/front`
    dir: PathBuf,
    runtime: Handle,
    reaper: Arc<Reaper>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Arc<Client>>,
    /// Stands for a process that ended before it could be looked at.
    ended: Option<Arc<OwnedFd>>,
    socket: String,
    containers: HashMap<String, Container>,
    /// pid → the container and exec (empty: init) whose process it is
    names: HashMap<i32, (String, String)>,
    oom: HashSet<String>,
    lost: Option<String>,
    closing: bool,
}

#[derive(Debug, Clone)]
struct Container {
    bundle: PathBuf,
    cgroup: Option<Cgroup>,
    pidfd: Option<Arc<OwnedFd>>,
}

/// Where a front keeps its files, below the pod's bundle.
fn directory(bundle: &Path) -> PathBuf {
    bundle.join("front")
}

impl Front {
    /// For the shim that `flags.front` names. Starts nothing yet.
    pub fn new(
        flags: &Flags,
        events: PathBuf,
        runtime: Handle,
        reaper: Arc<Reaper>,
    ) -> Result<Arc<Front>, ShimError> {
        let dir = directory(&flags.bundle);
        let options = crate::runtime_options::encode(&flags.front, &flags.front_options, &dir)?;
        let calling = Calling {
            name: Name(flags.front.display().to_string()),
            program: flags.front.clone(),
            namespace: flags.namespace.clone(),
            events,
            publish_binary: flags.publish_binary.clone(),
        };
        Ok(Arc::new_cyclic(|me| Front {
            me: me.clone(),
            calling,
            options,
            pod_id: flags.id.clone(),
            dir,
            runtime,
            reaper,
            state: Mutex::default(),
        }))
    }

    pub fn name(&self) -> &Name {
        &self.calling.name
    }

    pub fn note_oom(&self, id: String) {
        let mut state = lock(&self.state);
        if state.oom.len() < MAX_OOM {
            state.oom.insert(id);
        }
    }

    fn failed(&self, step: impl Into<String>, error: impl ToString) -> Error {
        self.name().error(step, ErrorKind::Other, error)
    }

    fn client(&self) -> Result<Arc<Client>, Error> {
        let state = lock(&self.state);
        if let Some(lost) = &state.lost {
            return Err(self.name().error("call it", ErrorKind::NotConnected, lost));
        }
        state.client.clone().ok_or_else(|| {
            self.name()
                .error("call it", ErrorKind::NotConnected, "it was not started")
        })
    }

    fn call<R: Message>(
        &self,
        method: &str,
        what: &str,
        request: &impl Message,
        deadline: Duration,
    ) -> Result<R, Error> {
        let client = self.client()?;
        self.runtime
            .block_on(client.call(method, what, request, Some(deadline)))
    }

    fn reaping(&self) -> Reaping<'_> {
        Reaping {
            reaper: &self.reaper,
            runtime: &self.runtime,
        }
    }

    /// Runs `start` in the pause's bundle and connects.
    fn launch(&self, bundle: &Path) -> Result<(), Error> {
        let failed = |step: &'static str| move |error: ShimError| self.failed(step, error);
        let mut record = Record {
            program: self.calling.program.clone(),
            publish_binary: self.calling.publish_binary.clone(),
            socket: String::new(),
        };
        record
            .write(&self.dir)
            .map_err(failed("prepare its start"))?;
        self.drain_log(bundle)?;
        let options = match &self.options {
            Some(options) => options
                .write_to_bytes()
                .map_err(|error| self.failed("encode its options", error))?,
            None => Vec::new(),
        };
        let ran = self.calling.run(
            "start",
            &self.pod_id,
            bundle,
            (&options, START),
            Some(self.reaping()),
        )?;
        let bootstrap = ran
            .output()
            .and_then(Bootstrap::parse)
            .map_err(|failure| self.calling.failed("start", failure))?;
        let socket = bootstrap.socket.display().to_string();
        record.socket = socket.clone();
        record
            .write(&self.dir)
            .map_err(failed("prepare its start"))?;
        let client = self.runtime.block_on(Client::connect(
            self.name(),
            &self.calling.namespace,
            &bootstrap,
        ))?;
        journal!(
            "{} serves task API v{} on {socket}",
            self.name().0,
            bootstrap.version
        );
        {
            let mut state = lock(&self.state);
            state.client = Some(Arc::new(client));
            state.ended = Some(Arc::new(ran.pidfd));
            state.socket = socket.clone();
        }
        if let Some(me) = self.me.upgrade() {
            self.runtime.spawn(process::guard(me, socket));
        }
        Ok(())
    }

    /// The shim's own log goes into ours. It is opened for writing, too: the shim's open does not block, and its end is no end of it.
    fn drain_log(&self, bundle: &Path) -> Result<(), Error> {
        let path = bundle.join("log");
        let step = || format!("make its log fifo {}", path.display());
        match nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(self.failed(step(), errno)),
        }
        let _entered = self.runtime.enter();
        let source = OpenOptions::new()
            .read_write(true)
            .open_receiver(&path)
            .map_err(|error| self.failed(step(), error))?;
        self.runtime
            .spawn(process::drain_log(source, self.name().0.clone()));
        Ok(())
    }

    /// A process that the shim says it has made, held by a descriptor. One that is not below this process is not taken for it: it would
    /// be killed, and its namespaces joined.
    fn hold(&self, pid: u32) -> Option<OwnedFd> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        process::is_below_us(pid).then_some(pidfd)
    }

    fn dead(&self, step: &str) -> Result<OwnedFd, Error> {
        let ended = lock(&self.state).ended.clone();
        ended
            .ok_or_else(|| self.failed(step, "it was not started"))?
            .try_clone()
            .map_err(|error| self.failed(step, error))
    }

    /// Follows a process to its end.
    fn follow(&self, process: &Process, id: &str, exec_id: &str) -> Result<(), Error> {
        let step = || format!("watch process {} of {id}", process.pid);
        let pidfd = process
            .pidfd
            .try_clone()
            .map_err(|error| self.failed(step(), error))?;
        lock(&self.state)
            .names
            .insert(process.pid, (id.to_owned(), exec_id.to_owned()));
        let (Some(me), client) = (self.me.upgrade(), self.client()?) else {
            return Ok(());
        };
        let watched = process::Watched {
            pid: process.pid,
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        self.runtime
            .spawn(process::follow(me, client, watched, pidfd));
        Ok(())
    }

    /// Makes the container `id` of a bundle that is complete.
    fn make(&self, id: &str, bundle: &Path, tty: bool, streams: Streams) -> Result<Process, Error> {
        let [stdin, stdout, stderr] = streams.paths(tty);
        let request = CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            terminal: tty,
            stdin,
            stdout,
            stderr,
            options: self.options.clone().into(),
            ..Default::default()
        };
        let what = format!("container {id}");
        let made: Result<CreateTaskResponse, Error> = self.call("Create", &what, &request, MAKE);
        let pid = made?.pid;
        let pidfd = self.hold(pid).ok_or_else(|| {
            self.failed(
                format!("Create {what}"),
                format!("it answered pid {pid}, which is no process of its"),
            )
        })?;
        let process = Process {
            pid: pid as i32,
            pidfd,
            console: None,
        };
        let held = process.pidfd.try_clone().ok().map(Arc::new);
        if let Some(container) = lock(&self.state).containers.get_mut(id) {
            container.pidfd = held;
        }
        self.follow(&process, id, "")?;
        self.flow(streams, id, "", tty)?;
        Ok(process)
    }

    /// Lets a process's streams flow, and closes its stdin when its clients have.
    fn flow(&self, streams: Streams, id: &str, exec_id: &str, tty: bool) -> Result<(), Error> {
        let (client, name) = (self.client()?, self.name().0.clone());
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let what = format!("connect the streams of {id}");
        let close = async move {
            // A terminal does not end with whoever typed into it.
            if !tty && let Err(error) = process::close_stdin(&client, &id, &exec_id).await {
                journal!("{name}: {error}");
            }
        };
        streams
            .open(&self.runtime, close)
            .map_err(|error| self.failed(what, error))
    }
}
