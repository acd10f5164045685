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

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_engine::{Engine, Error as EngineError, Pause, cgroup::Cgroup};
use berth_proto::shim::{
    api::CreateTaskRequest,
    events::task::TaskCreate,
    v1::pod::{
        AttachRequest, CreateOptions, InspectResponse, NamespaceMode, SandboxOptions, TaskState,
    },
};
use protobuf::well_known_types::any::Any;
use rustix::process::Signal;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    bundle::{self, Holders},
    checkpoint,
    cli::check_id,
    clock,
    container::{Container, Ended, Phase, StartError, lock, signal_process},
    cri_log::LogFile,
    cri_sandbox,
    error::Error,
    events::Events,
    exec_output::Outputs,
    exec_sync::Calls,
    exit_record::ExitRecord,
    journal,
    reaper::{Exit, Reaper},
    rootfs, runtime_options,
    stdio_uri::{self, Outside},
    stream::{Plumbing, Request},
    streams::Streams,
    sysctl, user_namespace,
};

/// Containers of a pod; Kubernetes' API would have to send a pod of megabytes to name more.
const MAX_CONTAINERS: usize = 1024;
/// How long a killed container's pipes are read when somebody outside of it holds them open.
const LOG_DRAIN: Duration = Duration::from_secs(2);
/// How long stop and delete wait for a process after SIGKILL. It ends in milliseconds, or hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// Between looks at containers that are being made while the sandbox stops.
const MAKING_POLL: Duration = Duration::from_millis(5);
/// A failed exit record is tried again: the container's death can't be told before it is written. After this many, it is told without.
const RECORD_TRIES: u32 = 5;
const RECORD_RETRY: Duration = Duration::from_millis(100);

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
                Ok(Cgroup::at(&setup.options.cgroup_parent)?)
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

    // ── the sandbox ────────────────────────────────────────────────────────────────────────────────────────────────

    /// Takes the request in; makes nothing yet. The same request again is no error.
    pub async fn create_sandbox(&self, setup: Setup) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let options = &setup.options;
        let own = sysctl::Own {
            net: setup.netns.is_some(),
            ipc: options.ipc.enum_value_or_default() == NamespaceMode::POD,
        };
        for (name, value) in &options.sysctls {
            sysctl::check(name, value, own)?;
        }
        if options.hostname.len() > 64 {
            return Err(Error::invalid(
                "hostname",
                "it is longer than the kernel's 64 bytes",
            ));
        }
        if let Some(netns) = &setup.netns
            && !netns.is_absolute()
        {
            return Err(Error::invalid(
                format!("network namespace {}", netns.display()),
                "it is not absolute",
            ));
        }
        match self.sandbox() {
            Sandbox::None => {
                self.sandbox.send_replace(Sandbox::Created {
                    setup: Arc::new(setup),
                });
                self.changed();
                Ok(())
            }
            Sandbox::Created { setup: known } | Sandbox::Running { setup: known, .. }
                if known.options == setup.options && known.netns == setup.netns =>
            {
                Ok(())
            }
            _ => Err(Error::Exists {
                what: "sandbox",
                id: self.id.clone(),
            }),
        }
    }

    /// Makes the pause. Answers its pid and when it was made; again for one that runs.
    pub async fn start_sandbox(self: &Arc<Self>) -> Result<(i32, i64), Error> {
        let _order = self.order.lock().await;
        let setup = match self.sandbox() {
            Sandbox::Created { setup } => setup,
            Sandbox::Running {
                pid, created_at, ..
            } => return Ok((pid, created_at)),
            Sandbox::None => return Err(self.sandbox_state("start", "not created")),
            Sandbox::Stopped { .. } => return Err(self.sandbox_state("start", "stopped")),
        };
        let options = &setup.options;
        let own = |mode: &protobuf::EnumOrUnknown<NamespaceMode>| {
            mode.enum_value_or_default() == NamespaceMode::POD
        };
        let pause = Pause {
            hostname: (!options.hostname.is_empty() && own(&options.uts))
                .then(|| options.hostname.clone()),
            netns: setup.netns.clone(),
            new_ipc: own(&options.ipc),
            new_uts: own(&options.uts),
            new_pid: own(&options.pid),
            sysctls: options
                .sysctls
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            oom_score_adj: Some(options.oom_score_adj),
            user: user_namespace::asked(options),
            cgroup_parent: options.cgroup_parent.clone(),
        };
        let making = self.reaper.making();
        let engine = self.engine.clone();
        let process = blocking("pause", move || Ok(engine.pause(&pause)?)).await?;
        let exited = making.register(process.pid);
        let (pid, created_at) = (process.pid, clock::now_ns());
        let pidfd = Arc::new(process.pidfd);
        if let Err(error) = berth_failpoint::site!("shim.sandbox.paused") {
            signal_process(&pidfd, Signal::KILL.as_raw(), || {
                format!("kill pause {pid}")
            })?;
            return Err(Error::io("failpoint shim.sandbox.paused")(error));
        }
        self.sandbox.send_replace(Sandbox::Running {
            setup: setup.clone(),
            pid,
            pidfd: pidfd.clone(),
            created_at,
        });
        self.changed();
        let pod = self.clone();
        tokio::spawn(async move {
            let Ok(exit) = exited.await else { return };
            journal!("pause {pid} has ended with {}", exit.code);
            let pidfd = Some(pidfd);
            pod.sandbox.send_replace(Sandbox::Stopped {
                setup,
                pid,
                pidfd,
                created_at,
                exit: Some(exit),
            });
            pod.changed();
        });
        Ok((pid, created_at))
    }

    /// Kills every container and the pause, and waits for their end. Idempotent.
    pub async fn stop_sandbox(self: &Arc<Self>) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let deadline = Instant::now() + KILL_WAIT;
        // First, so that a container which is being made meets a sandbox that is no longer there.
        match self.sandbox() {
            Sandbox::Created { setup } => {
                self.sandbox.send_replace(Sandbox::Stopped {
                    setup,
                    pid: 0,
                    pidfd: None,
                    created_at: 0,
                    exit: None,
                });
            }
            Sandbox::Running {
                setup,
                pid,
                pidfd,
                created_at,
            } => {
                let pidfd = Some(pidfd);
                self.sandbox.send_replace(Sandbox::Stopped {
                    setup,
                    pid,
                    pidfd,
                    created_at,
                    exit: None,
                });
            }
            Sandbox::None | Sandbox::Stopped { .. } => {}
        }
        let containers = self.containers();
        for container in &containers {
            if !matches!(container.phase(), Phase::Exited { .. }) {
                self.kill_container(container).await?;
            }
        }
        for container in &containers {
            let waited = timeout_at(deadline, container.ended()).await;
            waited.map_err(|_| still_alive(format!("container {}", container.id)))??;
        }
        while lock(&self.containers)
            .values()
            .any(|slot| matches!(slot, Slot::Making))
        {
            if Instant::now() > deadline {
                return Err(still_alive(format!(
                    "a container of sandbox {} that is being made",
                    self.id
                )));
            }
            sleep(MAKING_POLL).await;
        }
        if let Sandbox::Stopped {
            pid,
            pidfd: Some(pidfd),
            exit: None,
            ..
        } = self.sandbox()
        {
            signal_process(&pidfd, Signal::KILL.as_raw(), || {
                format!("kill pause {pid}")
            })?;
            let mut sandbox = self.follow_sandbox();
            let gone = sandbox
                .wait_for(|sandbox| matches!(sandbox, Sandbox::Stopped { exit: Some(_), .. }));
            timeout_at(deadline, gone)
                .await
                .map_err(|_| still_alive(format!("pause {pid}")))?
                .map_err(|_| Error::Lost("the sandbox's phase"))?;
        }
        self.changed();
        Ok(())
    }

    /// Stops the pod, forgets its containers and ends the shim, once the answer is out.
    pub async fn shutdown(self: &Arc<Self>) -> Result<(), Error> {
        self.stop_sandbox().await?;
        for container in self.containers() {
            if let Err(error) = self.delete(&container.id).await {
                journal!("delete container {} at shutdown: {error}", container.id);
            }
        }
        if let Sandbox::Stopped { setup, .. } = self.sandbox()
            && let Some(files) = &setup.files
            && let Err(error) = files.remove()
        {
            journal!("shutdown: {error}");
        }
        let engine = self.engine.clone();
        blocking("close", move || {
            engine.close();
            Ok(())
        })
        .await?;
        self.shutdown.send_replace(true);
        Ok(())
    }

    fn sandbox_state(&self, action: &'static str, state: &str) -> Error {
        Error::State {
            action,
            id: format!("sandbox {}", self.id),
            state: state.into(),
        }
    }

    // ── containers ─────────────────────────────────────────────────────────────────────────────────────────────────

    /// Makes a container up to just before its command. Answers init's pid.
    pub async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<i32, Error> {
        check_id(&request.id)?;
        {
            let mut containers = lock(&self.containers);
            if containers.contains_key(&request.id) {
                return Err(Error::Exists {
                    what: "container",
                    id: request.id,
                });
            }
            if containers.len() >= MAX_CONTAINERS {
                return Err(Error::invalid(
                    "pod",
                    format!("it has {MAX_CONTAINERS} containers already"),
                ));
            }
            containers.insert(request.id.clone(), Slot::Making);
        }
        let id = request.id.clone();
        match self.make(request).await {
            Ok(container) => {
                let pid = container.pid;
                lock(&self.containers).insert(id, Slot::Made(container.clone()));
                self.changed();
                if matches!(self.sandbox(), Sandbox::Stopped { .. }) {
                    self.kill_container(&container).await?;
                    self.delete(&container.id).await?;
                    return Err(self.sandbox_state("create a container in", "stopped"));
                }
                Ok(pid)
            }
            Err(error) => {
                lock(&self.containers).remove(&id);
                Err(error)
            }
        }
    }

    async fn make(
        self: &Arc<Self>,
        mut request: CreateTaskRequest,
    ) -> Result<Arc<Container>, Error> {
        let options: Option<CreateOptions> =
            unpack(&request.options, "berth.shim.v1.CreateOptions")?;
        if options.is_none() {
            runtime_options::check(&request.options)?;
        }
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            return Err(Error::invalid(
                format!("bundle {:?}", request.bundle),
                "it is not absolute",
            ));
        }
        let creation = self.events.creation(&request);
        let mounts = std::mem::take(&mut request.rootfs);
        if mounts.is_empty() {
            return self
                .make_on(request, creation, options, bundle, false)
                .await;
        }
        let at = bundle.clone();
        blocking("mount", move || rootfs::mount(&at, &mounts)).await?;
        let made = self
            .make_on(request, creation, options, bundle.clone(), true)
            .await;
        if made.is_err()
            && let Err(undo) = rootfs::unmount(&bundle)
        {
            journal!("undo create: {undo}");
        }
        made
    }

    /// As [`Pod::make`], on a root file system that is there.
    async fn make_on(
        self: &Arc<Self>,
        request: CreateTaskRequest,
        creation: Option<TaskCreate>,
        options: Option<CreateOptions>,
        bundle: PathBuf,
        mounted: bool,
    ) -> Result<Arc<Container>, Error> {
        let mut spec = bundle::read(&bundle)?;
        if let Some(options) = &options {
            bundle::fill_namespaces(&mut spec, options, self.holders(options)?)?;
            bundle::write(&bundle, &spec)?;
        } else if let Sandbox::Running { setup, .. } = self.sandbox()
            && let Some(files) = &setup.files
        {
            files.mount_in(&mut spec);
            bundle::write(&bundle, &spec)?;
        }
        let summary = bundle::summary(&spec)?;
        drop(spec);
        let cgroup = summary
            .cgroups_path
            .as_deref()
            .map(Cgroup::at)
            .transpose()?;
        // Under another runtime fifos are all that there is.
        let under_berth = options.is_some();
        let options = options.unwrap_or_default();
        let restore = match request.checkpoint.as_str() {
            "" => None,
            images => Some(checkpoint::restore(images, &options)?),
        };
        let log = match options.log_path.as_str() {
            "" => None,
            path => Some(Arc::new(LogFile::open(path.as_ref())?)),
        };
        let tty = request.terminal || options.tty;
        let fifos = [request.stdin, request.stdout, request.stderr];
        let ends = stdio_uri::open(&self.outside, &request.id, &fifos, tty, options.stdin).await?;
        let (stdio, plumbing) = Plumbing::lay(Request {
            tty,
            ends,
            log: log.clone(),
            keep_stdin: options.stdin,
            attachable: under_berth,
            piped_console: self.engine.carries_streams(),
        })?;

        let making = self.reaper.making();
        let (engine, id) = (self.engine.clone(), request.id.clone());
        let create = berth_engine::Create {
            id: id.clone(),
            bundle: bundle.clone(),
            stdio,
            tty,
            restore,
        };
        let made = blocking("create", move || Ok(engine.create(create)?)).await;
        let made = made.and_then(|process| {
            berth_failpoint::site!("shim.create.made")
                .map_err(Error::io("failpoint shim.create.made"))?;
            let exited = making.register(process.pid);
            let io = plumbing.open(process.console)?;
            Ok((process.pid, process.pidfd, exited, io))
        });
        let (pid, pidfd, exited, io) = match made {
            Ok(made) => made,
            Err(error) => {
                let engine = self.engine.clone();
                if let Err(undo) = blocking("delete", move || Ok(engine.delete(&id)?)).await {
                    journal!("undo create: {undo}");
                }
                return Err(error);
            }
        };
        let container = Arc::new(Container::new(
            id,
            bundle,
            (tty, options.stdin_once, fifos, mounted),
            (pid, pidfd),
            clock::now_ns(),
            summary,
            cgroup,
            log,
            io,
        ));
        self.events.created(creation, container.pid);
        self.watch_oom(&container);
        tokio::spawn(self.clone().see_off(container.clone(), exited));
        Ok(container)
    }

    /// Connects a client to a running container's streams.
    pub fn attach(
        self: &Arc<Self>,
        container: &Arc<Container>,
        request: &AttachRequest,
    ) -> Result<(), Error> {
        let state = |state: &str| Error::State {
            action: "attach to container",
            id: container.id.clone(),
            state: state.to_owned(),
        };
        if !matches!(container.phase(), Phase::Running { .. }) {
            return Err(state("not running"));
        }
        let input = {
            let io = lock(&container.io);
            let io = io.as_ref().ok_or_else(|| state("ended"))?;
            let fifos = [&request.stdin, &request.stdout, &request.stderr];
            io.attach(&request.attach_id, fifos.map(String::as_str))?
        };
        if let (Some(input), true) = (input, container.stdin_once) {
            let container = container.clone();
            tokio::spawn(async move {
                // Cancelled where the client was let go, which is its end, too.
                let _ = input.await;
                if let Some(io) = &mut *lock(&container.io) {
                    io.close_input();
                }
            });
        }
        Ok(())
    }

    /// Who holds the namespaces that a container joins.
    fn holders(&self, modes: &CreateOptions) -> Result<Holders, Error> {
        let (setup, pause) = match self.sandbox() {
            Sandbox::Running { setup, pid, .. } => (setup, pid),
            Sandbox::None => return Err(self.sandbox_state("create a container in", "not created")),
            Sandbox::Created { .. } => {
                return Err(self.sandbox_state("create a container in", "not started"));
            }
            Sandbox::Stopped { .. } => {
                return Err(self.sandbox_state("create a container in", "stopped"));
            }
        };
        let target = match modes.target_id.as_str() {
            "" => None,
            id => {
                let target = self.container(id)?;
                matches!(target.phase(), Phase::Running { .. } | Phase::Created)
                    .then_some(target.pid)
            }
        };
        let pod = |mode: &protobuf::EnumOrUnknown<NamespaceMode>| {
            mode.enum_value_or_default() == NamespaceMode::POD
        };
        Ok(Holders {
            pause,
            target,
            pod_net: setup.netns.is_some(),
            pod_ipc: pod(&setup.options.ipc),
            pod_uts: pod(&setup.options.uts),
            pod_pid: pod(&setup.options.pid),
            pod_user: user_namespace::asked(&setup.options).is_some(),
        })
    }

    /// Lets the command run. Answers init's pid; again for one that runs.
    pub async fn start(self: &Arc<Self>, id: &str) -> Result<i32, Error> {
        let container = self.container(id)?;
        let _order = container.order.lock().await;
        match container.phase() {
            Phase::Created => {}
            Phase::Running { .. } => return Ok(container.pid),
            Phase::Exited { ended, .. } => {
                return Err(Error::State {
                    action: "start container",
                    id: id.into(),
                    state: format!("exited with {} ({})", ended.exit_code, ended.reason),
                });
            }
        }
        // Before, not after: a command may have ended by the time the engine answers.
        let started_at = clock::now_ns();
        let (engine, engine_id) = (self.engine.clone(), id.to_owned());
        if let Err(error) = blocking("start", move || Ok(engine.start(&engine_id)?)).await {
            if let Error::Engine(EngineError::Command { exit_code, message }) = &error {
                *lock(&container.start_error) = Some(StartError {
                    exit_code: *exit_code,
                    message: message.clone(),
                });
            }
            return Err(error);
        }
        container.set_phase(Phase::Running { started_at });
        self.events.started(&container);
        self.changed();
        Ok(container.pid)
    }

    /// Waits for a container's end and does all that is due then, in this order: end what it left running, take the last of its output,
    /// write the record, and only then tell.
    async fn see_off(self: Arc<Self>, container: Arc<Container>, exited: oneshot::Receiver<Exit>) {
        let Ok(exit) = exited.await else { return };
        let cgroup = container.cgroup.clone();
        let kill_rest = !container.own_pid_namespace;
        let memory = blocking("look at a cgroup", move || {
            let Some(cgroup) = cgroup else {
                return Ok((0, None));
            };
            let oom_kills = cgroup.oom_kills()?;
            let limited = match oom_kills {
                0 => None,
                _ => cgroup.oom_limit()?,
            };
            if kill_rest {
                cgroup.kill()?;
            }
            Ok((oom_kills, limited))
        });
        let (oom_kills, limited) = memory.await.unwrap_or_else(|error| {
            journal!("end of container {}: {error}", container.id);
            (0, None)
        });
        let oom_killed = oom_kills > 0 || self.engine.oom_killed(&container.id);
        let io = lock(&container.io).take();
        if let Some(io) = io {
            io.drain(LOG_DRAIN).await;
        }
        // A start under way may be why it ended.
        let _order = container.order.lock().await;
        let started_at = match container.phase() {
            Phase::Running { started_at } => started_at,
            Phase::Created | Phase::Exited { .. } => 0,
        };
        let start_error = lock(&container.start_error).clone();
        let ended = match start_error {
            Some(StartError { exit_code, message }) => Ended {
                exit_code,
                at: exit.at,
                reason: "StartError",
                message,
            },
            None => Ended {
                exit_code: exit.code,
                at: exit.at,
                reason: match exit.code {
                    0 => "Completed",
                    _ if oom_killed => "OOMKilled",
                    _ => "Error",
                },
                message: match (self.engine.lost(), limited) {
                    (Some(lost), _) => lost,
                    (None, Some(limited)) if exit.code != 0 => limited.to_string(),
                    (None, _) => String::new(),
                },
            },
        };
        self.record(&container, started_at, &ended).await;
        if let Err(error) = berth_failpoint::site!("shim.exit.tell") {
            journal!("failpoint shim.exit.tell: {error}");
        }
        self.tell_oom(&container, oom_kills);
        container.set_phase(Phase::Exited {
            started_at,
            ended: ended.clone(),
        });
        self.events.exited(&container, &ended);
        self.changed();
    }

    async fn record(&self, container: &Container, started_at: i64, ended: &Ended) {
        let (Sandbox::Created { setup }
        | Sandbox::Running { setup, .. }
        | Sandbox::Stopped { setup, .. }) = self.sandbox()
        else {
            return;
        };
        if setup.options.exits_dir.is_empty() {
            return;
        }
        let record = ExitRecord {
            id: container.id.clone(),
            pid: container.pid,
            exit_code: ended.exit_code,
            reason: ended.reason.into(),
            message: ended.message.clone(),
            created_at: container.created_at,
            started_at,
            finished_at: ended.at,
        };
        for attempt in 1..=RECORD_TRIES {
            match record.write(setup.options.exits_dir.as_ref()) {
                Ok(()) => return,
                Err(error) => journal!(
                    "exit record of container {} (try {attempt}): {error}",
                    container.id
                ),
            }
            sleep(RECORD_RETRY).await;
        }
    }

    /// SIGKILL to init and, where that does not end the rest, to everything in its cgroup.
    async fn kill_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        container.signal(Signal::KILL.as_raw())?;
        self.resume(container).await?;
        if !container.own_pid_namespace {
            self.signal_all(&container.id, Signal::KILL.as_raw())
                .await?;
        }
        Ok(())
    }

    pub async fn signal_all(&self, id: &str, signal: i32) -> Result<(), Error> {
        let (engine, id) = (self.engine.clone(), id.to_owned());
        blocking("kill", move || Ok(engine.kill(&id, signal, true)?)).await
    }

    /// Removes a container that has ended, or was never started. Answers its pid and how it ended.
    pub async fn delete(self: &Arc<Self>, id: &str) -> Result<(i32, Ended), Error> {
        let container = self.container(id)?;
        match container.phase() {
            Phase::Running { .. } => {
                return Err(Error::State {
                    action: "delete container",
                    id: id.into(),
                    state: "running".into(),
                });
            }
            Phase::Created => self.kill_container(&container).await?,
            Phase::Exited { .. } => {}
        }
        let ended = timeout(KILL_WAIT, container.ended())
            .await
            .map_err(|_| still_alive(format!("container {id}")))??;
        let _order = container.order.lock().await;
        // A delete beside this one may have been faster.
        self.container(id)?;
        let (engine, engine_id) = (self.engine.clone(), id.to_owned());
        blocking("delete", move || Ok(engine.delete(&engine_id)?)).await?;
        if container.mounted {
            rootfs::unmount(&container.bundle)?;
        }
        berth_failpoint::site!("shim.delete.removed")
            .map_err(Error::io("failpoint shim.delete.removed"))?;
        lock(&self.containers).remove(id);
        self.outside.streams.forget(&container.fifos);
        self.events.deleted(&container, &ended);
        self.changed();
        Ok((container.pid, ended))
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
