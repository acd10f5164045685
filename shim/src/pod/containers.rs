//! Containers: made, started, attached to.

use std::{path::PathBuf, sync::Arc};

use berth_engine::{Error as EngineError, cgroup::Cgroup};
use berth_proto::shim::{
    api::CreateTaskRequest,
    events::task::TaskCreate,
    v1::pod::{AttachRequest, CreateOptions, NamespaceMode},
};

use super::{Pod, Sandbox, Slot, blocking, unpack};
use crate::{
    bundle::{self, Holders},
    checkpoint,
    cli::check_id,
    clock,
    container::{Container, Phase, StartError, lock},
    cri_log::LogFile,
    error::Error,
    journal, rootfs, runtime_options, stdio_uri,
    stream::{Plumbing, Request},
    user_namespace,
};

/// Containers of a pod; Kubernetes' API would have to send a pod of megabytes to name more.
const MAX_CONTAINERS: usize = 1024;

impl Pod {
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
        let systemd_cgroup = match (&options, self.sandbox()) {
            (None, _) => runtime_options::taken(&request.options)?.systemd_cgroup,
            (Some(_), Sandbox::Running { setup, .. }) => setup.options.systemd_cgroup,
            // Refused further on.
            (Some(_), _) => false,
        };
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
                .make_on(request, creation, (options, systemd_cgroup), bundle, false)
                .await;
        }
        let at = bundle.clone();
        blocking("mount", move || rootfs::mount(&at, &mounts)).await?;
        let made = self
            .make_on(
                request,
                creation,
                (options, systemd_cgroup),
                bundle.clone(),
                true,
            )
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
        (options, systemd_cgroup): (Option<CreateOptions>, bool),
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
            .map(|path| Cgroup::by(systemd_cgroup, path))
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
            systemd_cgroup,
            restore,
        };
        if let Some(cgroup) = &cgroup {
            self.oom_accounts.open(cgroup);
        }
        let (pod, limited) = (self.clone(), cgroup.clone());
        let made = blocking("create", move || {
            let process = engine.create(create)?;
            if let Some(cgroup) = &limited {
                pod.oom_accounts.limited(cgroup);
            }
            Ok(process)
        })
        .await;
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
                if let Some(cgroup) = &cgroup {
                    let _ = self.oom_accounts.close(cgroup);
                }
                if let Err(undo) = blocking("delete", move || Ok(engine.delete(&id)?)).await {
                    journal!("undo create: {undo}");
                }
                self.log_warnings();
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
}
