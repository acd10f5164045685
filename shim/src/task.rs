//! containerd's task service (v3): translate, call the pod, translate.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use async_trait::async_trait;
use berth_proto::shim::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    shim_async::Task,
};
use protobuf::MessageField;
use rustix::process::Signal;
use ttrpc::r#async::TtrpcContext;

use crate::{
    checkpoint,
    cli::check_id,
    clock,
    container::{Container, MAX_EXECS, Phase, lock},
    error::Error,
    exec::{self, Exec, State},
    journal, metrics,
    pod::{Pod, blocking, detached},
};

/// Signals are 1 to 64; 0 asks whether the process is there.
const MAX_SIGNAL: u32 = 64;
/// A process or a set of limits as JSON.
const MAX_JSON_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub struct TaskService {
    pub pod: Arc<Pod>,
}

impl TaskService {
    fn find(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Option<Arc<Exec>>), Error> {
        let container = self.pod.container(id)?;
        let exec = if exec_id.is_empty() {
            None
        } else {
            Some(container.exec(exec_id)?)
        };
        Ok((container, exec))
    }
}

pub fn json<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_JSON_BYTES {
        return Err(Error::invalid(
            what,
            format!("larger than {MAX_JSON_BYTES} bytes"),
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(what, error))
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        let mut response = StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle.display().to_string(),
            ..Default::default()
        };
        let [stdin, stdout, stderr] = exec
            .as_ref()
            .map_or(&container.fifos, |exec| &exec.fifos)
            .clone();
        (response.stdin, response.stdout, response.stderr) = (stdin, stdout, stderr);
        match exec {
            Some(exec) => {
                response.terminal = exec.tty;
                let status = match exec.state() {
                    State::Added => Status::CREATED,
                    State::Running { pid, .. } => {
                        response.pid = pid as u32;
                        Status::RUNNING
                    }
                    State::Exited { pid, exit } => {
                        response.pid = pid as u32;
                        response.exit_status = exit.code as u32;
                        response.exited_at = clock::timestamp(exit.at);
                        Status::STOPPED
                    }
                };
                response.status = status.into();
            }
            None => {
                response.terminal = container.tty;
                response.pid = container.pid as u32;
                let status = match container.phase() {
                    Phase::Created => Status::CREATED,
                    Phase::Running { .. } if container.paused.load(Relaxed) => Status::PAUSED,
                    Phase::Running { .. } => Status::RUNNING,
                    Phase::Exited { ended, .. } => {
                        response.exit_status = ended.exit_code as u32;
                        response.exited_at = clock::timestamp(ended.at);
                        Status::STOPPED
                    }
                };
                response.status = status.into();
            }
        }
        Ok(response)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let pod = self.pod.clone();
        let pid = detached("Create", async move { pod.create(request).await }).await?;
        Ok(CreateTaskResponse {
            pid: pid as u32,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        let pod = self.pod.clone();
        let pid = detached("Start", async move {
            match exec {
                None => pod.start(&container.id).await,
                Some(exec) => {
                    let pid = exec.start(&pod, &container).await?;
                    pod.events.exec_started(&container.id, &exec.id, pid);
                    Ok(pid)
                }
            }
        });
        Ok(StartResponse {
            pid: pid.await? as u32,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        let (pid, code, at) = match exec {
            Some(exec) => {
                let (pid, code, at) = match exec.state() {
                    State::Added => (0, 0, 0),
                    State::Exited { pid, exit } => (pid, exit.code, exit.at),
                    State::Running { .. } => {
                        return Err(Error::State {
                            action: "delete exec",
                            id: request.exec_id,
                            state: "running".into(),
                        }
                        .into());
                    }
                };
                lock(&container.execs).remove(&exec.id);
                self.pod.outside.streams.forget(&exec.fifos);
                (pid, code, at)
            }
            None => {
                let pod = self.pod.clone();
                let (pid, ended) =
                    detached("Delete", async move { pod.delete(&container.id).await }).await?;
                (pid, ended.exit_code, ended.at)
            }
        };
        Ok(DeleteResponse {
            pid: pid as u32,
            exit_status: code as u32,
            exited_at: clock::timestamp(at),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.pod.container(&request.id)?;
        let cgroup = container.cgroup.clone();
        let pids = blocking("Pids", move || match cgroup {
            Some(cgroup) => Ok(cgroup.procs()?),
            None => Ok(vec![container.pid]),
        });
        let processes = pids.await?.into_iter().map(|pid| ProcessInfo {
            pid: pid as u32,
            ..Default::default()
        });
        Ok(PidsResponse {
            processes: processes.collect(),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        if request.signal > MAX_SIGNAL {
            return Err(Error::invalid(
                format!("signal {}", request.signal),
                "signals are 1 to 64",
            )
            .into());
        }
        let signal = request.signal as i32;
        match exec {
            Some(exec) => exec.signal(signal, request.all)?,
            None if request.all => self.pod.signal_all(&container.id, signal).await?,
            None => container.signal(signal)?,
        }
        // v1's freezer holds a SIGKILL back, too.
        if signal == Signal::KILL.as_raw() {
            self.pod.resume(&container).await?;
        }
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        check_id(&request.exec_id)?;
        exec::must_run(&container)?;
        let spec = request
            .spec
            .as_ref()
            .ok_or_else(|| Error::invalid("exec", "it has no process"))?;
        let process = json("process of the exec", &spec.value)?;
        let mut execs = lock(&container.execs);
        if execs.contains_key(&request.exec_id) {
            return Err(Error::Exists {
                what: "exec",
                id: request.exec_id,
            }
            .into());
        }
        if execs.len() >= MAX_EXECS {
            return Err(Error::State {
                action: "exec in container",
                id: request.id,
                state: format!("running {MAX_EXECS} execs already"),
            }
            .into());
        }
        let fifos = [request.stdin, request.stdout, request.stderr];
        let exec = Exec::new(
            request.exec_id.clone(),
            request.id,
            request.terminal,
            fifos,
            process,
        );
        self.pod.events.exec_added(&container.id, &request.exec_id);
        execs.insert(request.exec_id, Arc::new(exec));
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        let engine = self.pod.engine.clone();
        if engine.carries_streams() {
            let pid = match exec.as_ref().map(|exec| exec.state()) {
                None => container.pid,
                Some(State::Running { pid, .. }) => pid,
                Some(State::Added | State::Exited { .. }) => return Ok(Empty::new()),
            };
            let (width, height) = (request.width, request.height);
            blocking("ResizePty", move || Ok(engine.resize(pid, width, height)?)).await?;
            return Ok(Empty::new());
        }
        match exec {
            Some(exec) => exec.resize(request.width, request.height)?,
            None => exec::resize(&lock(&container.io), request.width, request.height)?,
        }
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        if request.stdin {
            match exec {
                Some(exec) => exec.close_input(),
                None => {
                    if let Some(io) = &mut *lock(&container.io) {
                        io.close_input();
                    }
                }
            }
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.pod.container(&request.id)?;
        let any = request
            .resources
            .as_ref()
            .ok_or_else(|| Error::invalid("update", "it names no resources"))?;
        let resources: oci_spec::runtime::LinuxResources = json("resources", &any.value)?;
        let pod = self.pod.clone();
        let notes = blocking("Update", move || {
            let cgroup = container.cgroup("update")?;
            let notes = cgroup.change(&resources)?;
            pod.oom_accounts.limited(cgroup);
            pod.engine.updated(&container.id, &resources);
            Ok(notes)
        });
        for note in notes.await? {
            journal!("update container {}: {note}", request.id);
        }
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (container, exec) = self.find(&request.id, &request.exec_id)?;
        let (code, at) = match exec {
            Some(exec) => {
                let exit = exec.ended().await?;
                (exit.code, exit.at)
            }
            None => {
                let ended = container.ended().await?;
                (ended.exit_code, ended.at)
            }
        };
        Ok(WaitResponse {
            exit_status: code as u32,
            exited_at: clock::timestamp(at),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        // A shim without that container answers too: the caller wants to know whose socket it is.
        let task_pid = self
            .pod
            .container(&request.id)
            .map_or(0, |container| container.pid as u32);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        // Other containers of the pod, or its sandbox, keep the shim.
        if request.now || self.pod.is_empty() {
            self.pod.shutdown.send_replace(true);
        }
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = self.pod.container(&request.id)?;
        let metrics = blocking("Stats", move || {
            let cgroup = container.cgroup("read the figures of")?;
            metrics::encoded(&cgroup.stats()?, cgroup.is_unified())
        });
        Ok(StatsResponse {
            stats: MessageField::some(metrics.await?),
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let (container, pod) = (self.pod.container(&request.id)?, self.pod.clone());
        detached("Pause", async move { pod.pause(&container).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let (container, pod) = (self.pod.container(&request.id)?, self.pod.clone());
        detached("Resume", async move { pod.resume(&container).await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let (container, pod) = (self.pod.container(&request.id)?, self.pod.clone());
        detached(
            "Checkpoint",
            checkpoint::checkpoint(pod, container, request),
        )
        .await?;
        Ok(Empty::new())
    }
}
