//! A connection to a pod's shim: each call with its own deadline, each error with the pod and the call in it.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::{
    cri,
    shim::{
        api, sandbox_api,
        sandbox_async::SandboxClient,
        shim_async::TaskClient,
        v1::{pod as v1, pod_ttrpc::PodClient},
    },
};
use berth_shim_client::Failure;
use protobuf::{Message, MessageField, well_known_types::any::Any};
use tonic::Code;
use tracing::{field::Empty, info_span};
use ttrpc::context::{self, Context};

use crate::{error::Error, id, trace::phase};

/// connect(2) to a unix socket answers at once, or the listener's queue is full of calls that nobody takes.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Reads of what the shim has in memory or in a few cgroup files.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Namespaces and the pause: 1 ms where the machine is idle; a minute where it is hopelessly busy.
const SANDBOX_DEADLINE: Duration = Duration::from_secs(60);
/// The engine's work for one container. The kubelet itself gives up after 120 s.
const TASK_DEADLINE: Duration = Duration::from_secs(60);
/// Signals are sent, not waited for.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Removal of a cgroup waits for the kernel to reap what was in it.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// After its command has timed out in the shim, how long its answer may be under way.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// After CRIU's time is up, how long the shim may take to freeze, to end CRIU and to answer.
const CHECKPOINT_GRACE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct Shim {
    pod_id: String,
    pub socket: PathBuf,
    task: TaskClient,
    sandbox: SandboxClient,
    pod: PodClient,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shim({})", self.socket.display())
    }
}

impl Shim {
    /// Connects to the shim's socket. Fails fast where nobody listens.
    pub async fn connect(pod_id: &str, socket: &Path) -> Result<Self, Error> {
        let client = berth_shim_client::connect(socket, CONNECT_DEADLINE).await;
        let client = client.map_err(|failure| match failure {
            Failure::Hangs(since) => Error::Silent {
                pod_id: pod_id.to_owned(),
                call: "connect",
                since,
            },
            failure => Error::Shim {
                pod_id: pod_id.to_owned(),
                call: "connect",
                code: Code::Unavailable,
                message: failure.to_string(),
            },
        })?;
        Ok(Self {
            pod_id: pod_id.to_owned(),
            socket: socket.to_owned(),
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client.clone()),
            pod: PodClient::new(client),
        })
    }

    async fn call<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, Error> {
        let span = info_span!(
            "shim",
            otel.name = format_args!("shim/{call}"),
            otel.error = Empty
        );
        phase(span, within(&self.pod_id, call, deadline, answer)).await
    }

    pub async fn create_sandbox(
        &self,
        bundle: &Path,
        netns: Option<&Path>,
        options: &v1::SandboxOptions,
    ) -> Result<(), Error> {
        let request = sandbox_api::CreateSandboxRequest {
            sandbox_id: self.pod_id.clone(),
            bundle_path: bundle.display().to_string(),
            netns_path: netns.map(|p| p.display().to_string()).unwrap_or_default(),
            options: any("berth.shim.v1.SandboxOptions", options),
            ..Default::default()
        };
        let answer = self.sandbox.create_sandbox(unbounded(), &request);
        self.call("CreateSandbox", SANDBOX_DEADLINE, answer).await?;
        Ok(())
    }

    pub async fn start_sandbox(&self) -> Result<(), Error> {
        let request = sandbox_api::StartSandboxRequest {
            sandbox_id: self.pod_id.clone(),
            ..Default::default()
        };
        let answer = self.sandbox.start_sandbox(unbounded(), &request);
        self.call("StartSandbox", SANDBOX_DEADLINE, answer).await?;
        Ok(())
    }

    /// Ends the pause and every container that is left.
    pub async fn stop_sandbox(&self) -> Result<(), Error> {
        let request = sandbox_api::StopSandboxRequest {
            sandbox_id: self.pod_id.clone(),
            timeout_secs: 0,
            ..Default::default()
        };
        let answer = self.sandbox.stop_sandbox(unbounded(), &request);
        self.call("StopSandbox", SANDBOX_DEADLINE, answer).await?;
        Ok(())
    }

    /// Tells the shim to end. It may be gone before its answer is here.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let request = sandbox_api::ShutdownSandboxRequest {
            sandbox_id: self.pod_id.clone(),
            ..Default::default()
        };
        let answer = self.sandbox.shutdown_sandbox(unbounded(), &request);
        match self.call("ShutdownSandbox", SANDBOX_DEADLINE, answer).await {
            Err(e) if e.code() != Code::Unavailable => Err(e),
            _ => Ok(()),
        }
    }

    pub async fn create(
        &self,
        id: &str,
        bundle: &Path,
        options: &v1::CreateOptions,
        checkpoint: Option<&Path>,
    ) -> Result<(), Error> {
        let request = api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            terminal: options.tty,
            checkpoint: checkpoint
                .map(|p| p.display().to_string())
                .unwrap_or_default(),
            options: any("berth.shim.v1.CreateOptions", options),
            ..Default::default()
        };
        let answer = self.task.create(unbounded(), &request);
        self.call("Create", TASK_DEADLINE, answer).await?;
        Ok(())
    }

    pub async fn start(&self, id: &str) -> Result<v1::ContainerState, Error> {
        let request = v1::StartRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.pod.start(unbounded(), &request);
        self.call("Start", TASK_DEADLINE, answer).await
    }

    /// Other limits; those that `resources` does not name stay.
    pub async fn update(
        &self,
        id: &str,
        resources: &oci_spec::runtime::LinuxResources,
    ) -> Result<(), Error> {
        let value = serde_json::to_vec(resources).map_err(|e| Error::Shim {
            pod_id: self.pod_id.clone(),
            call: "Update",
            code: Code::Internal,
            message: e.to_string(),
        })?;
        let resources = protobuf::well_known_types::any::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value,
            ..Default::default()
        };
        let request = api::UpdateTaskRequest {
            id: id.to_owned(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let answer = self.task.update(unbounded(), &request);
        self.call("Update", TASK_DEADLINE, answer).await?;
        Ok(())
    }

    /// Other limits for the whole pod; those that `resources` does not name stay.
    pub async fn update_sandbox(
        &self,
        resources: &oci_spec::runtime::LinuxResources,
    ) -> Result<(), Error> {
        let resources = serde_json::to_vec(resources).map_err(|e| Error::Shim {
            pod_id: self.pod_id.clone(),
            call: "UpdateSandbox",
            code: Code::Internal,
            message: e.to_string(),
        })?;
        let request = v1::UpdateSandboxRequest {
            resources,
            ..Default::default()
        };
        let answer = self.pod.update_sandbox(unbounded(), &request);
        self.call("UpdateSandbox", TASK_DEADLINE, answer).await?;
        Ok(())
    }

    /// Writes the container's processes down by CRIU, into the directory `images`, its log into `work`. The container stands still then
    /// until [`Shim::resume`], and no longer than `time`.
    pub async fn checkpoint(
        &self,
        id: &str,
        criu: &Path,
        (images, work): (&Path, &Path),
        time: Duration,
    ) -> Result<(), Error> {
        let ms = time.as_millis() as u64;
        let options = v1::CheckpointOptions {
            criu: criu.display().to_string(),
            work_path: work.display().to_string(),
            timeout_ms: ms.max(1),
            hold_ms: ms.max(1),
            ..Default::default()
        };
        let request = api::CheckpointTaskRequest {
            id: id.to_owned(),
            path: images.display().to_string(),
            options: any("berth.shim.v1.CheckpointOptions", &options),
            ..Default::default()
        };
        let answer = self.task.checkpoint(unbounded(), &request);
        self.call("Checkpoint", time + CHECKPOINT_GRACE, answer)
            .await?;
        Ok(())
    }

    /// Lets a container go on that a checkpoint holds. One that is not held, or gone, is no error.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        let request = api::ResumeRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.task.resume(unbounded(), &request);
        gone_is_fine(self.call("Resume", READ_DEADLINE, answer).await.map(drop))
    }

    /// Signals the container's init; `all`: each of its processes. One that is gone is no error.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let request = api::KillRequest {
            id: id.to_owned(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        let answer = self.task.kill(unbounded(), &request);
        gone_is_fine(self.call("Kill", KILL_DEADLINE, answer).await.map(drop))
    }

    /// Lets go of an ended container. One that is gone is no error.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.task.delete(unbounded(), &request);
        gone_is_fine(self.call("Delete", DELETE_DEADLINE, answer).await.map(drop))
    }

    pub async fn inspect(&self) -> Result<v1::InspectResponse, Error> {
        self.inspect_within(READ_DEADLINE).await
    }

    pub async fn inspect_within(&self, deadline: Duration) -> Result<v1::InspectResponse, Error> {
        let request = v1::InspectRequest::default();
        let answer = self.pod.inspect(unbounded(), &request);
        self.call("Inspect", deadline, answer).await
    }

    /// Waits until the pod's generation is above `after`, for at most `patience`.
    pub async fn changes(
        &self,
        after: u64,
        patience: Duration,
    ) -> Result<v1::InspectResponse, Error> {
        let request = v1::ChangesRequest {
            after_generation: after,
            ..Default::default()
        };
        let answer = self.pod.changes(unbounded(), &request);
        self.call("Changes", patience, answer).await
    }

    /// `timeout` zero: none.
    pub async fn exec_sync(
        &self,
        id: &str,
        args: Vec<String>,
        timeout: Duration,
        output_limit: u64,
    ) -> Result<v1::ExecSyncResponse, Error> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            args,
            timeout_ms: timeout.as_millis() as u64,
            output_limit,
            call_id: id::generate()[..16].to_owned(),
            ..Default::default()
        };
        let answer = self.pod.exec_sync(unbounded(), &request);
        let deadline = match timeout {
            Duration::ZERO => Duration::MAX,
            timeout => timeout.saturating_add(EXEC_GRACE),
        };
        let mut waited_for = WaitedFor {
            shim: self,
            call_id: &request.call_id,
        };
        let answered = self.call("ExecSync", deadline, answer).await;
        if !matches!(answered, Err(Error::Silent { .. })) {
            waited_for.call_id = "";
        }
        drop(waited_for);
        let mut done = answered?;
        // A ttrpc message holds 4 MiB: the rest of a long output comes in pieces.
        if !done.output_token.is_empty() {
            let token = std::mem::take(&mut done.output_token);
            let (out, err) = (done.stdout_size, done.stderr_size);
            self.read_on(&token, false, &mut done.stdout, out).await?;
            self.read_on(&token, true, &mut done.stderr, err).await?;
        }
        Ok(done)
    }

    async fn read_on(
        &self,
        token: &str,
        stderr: bool,
        stream: &mut Vec<u8>,
        size: u64,
    ) -> Result<(), Error> {
        while (stream.len() as u64) < size {
            let request = v1::ExecOutputRequest {
                token: token.to_owned(),
                stderr,
                offset: stream.len() as u64,
                ..Default::default()
            };
            let answer = self.pod.exec_output(unbounded(), &request);
            let piece = self.call("ExecOutput", READ_DEADLINE, answer).await?.data;
            if piece.is_empty() {
                break;
            }
            stream.extend(piece);
        }
        Ok(())
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let request = v1::ReopenLogRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.pod.reopen_log(unbounded(), &request);
        self.call("ReopenLog", READ_DEADLINE, answer).await?;
        Ok(())
    }

    /// cgroup figures of the named containers, of all where none is named; see [`v1::StatsRequest`] for what else.
    pub async fn stats(&self, request: v1::StatsRequest) -> Result<v1::StatsResponse, Error> {
        let answer = self.pod.stats(unbounded(), &request);
        self.call("Stats", READ_DEADLINE, answer).await
    }
}

/// An ExecSync whose answer somebody waits for. Where its caller goes (a gRPC stream that is reset), this is dropped with the call's
/// future, and the shim is told: a command without a timeout would run on for nobody.
struct WaitedFor<'a> {
    shim: &'a Shim,
    /// Empty: it has answered.
    call_id: &'a str,
}

impl Drop for WaitedFor<'_> {
    fn drop(&mut self) {
        if self.call_id.is_empty() {
            return;
        }
        let shim = self.shim.clone();
        let request = v1::ExecCancelRequest {
            call_id: self.call_id.to_owned(),
            ..Default::default()
        };
        tokio::spawn(async move {
            let answer = shim.pod.exec_cancel(unbounded(), &request);
            if let Err(e) = shim.call("ExecCancel", READ_DEADLINE, answer).await {
                tracing::debug!("end an ExecSync that nobody waits for: {e}");
            }
        });
    }
}

/// A command beside the container's own, with fifos as its streams.
#[derive(Debug)]
pub struct Exec<'a> {
    pub container_id: &'a str,
    pub exec_id: &'a str,
    /// stdin, stdout, stderr; empty: none
    pub fifos: [String; 3],
    pub process: &'a oci_spec::runtime::Process,
}

impl Shim {
    /// Adds the exec and runs it. Both, or neither.
    pub async fn exec(&self, exec: &Exec<'_>) -> Result<(), Error> {
        let [stdin, stdout, stderr] = exec.fifos.clone();
        let process = serde_json::to_vec(exec.process).map_err(|e| Error::Shim {
            pod_id: self.pod_id.clone(),
            call: "Exec",
            code: Code::Internal,
            message: format!("write the process of the exec: {e}"),
        })?;
        let request = api::ExecProcessRequest {
            id: exec.container_id.to_owned(),
            exec_id: exec.exec_id.to_owned(),
            terminal: exec.process.terminal().unwrap_or_default(),
            stdin,
            stdout,
            stderr,
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process,
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = self.task.exec(unbounded(), &request);
        self.call("Exec", TASK_DEADLINE, answer).await?;
        let request = api::StartRequest {
            id: exec.container_id.to_owned(),
            exec_id: exec.exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self.task.start(unbounded(), &request);
        let started = self.call("Start", TASK_DEADLINE, answer).await;
        if started.is_err() {
            let _ = self.end_exec(exec.container_id, exec.exec_id).await;
        }
        started.map(drop)
    }

    /// Connects a client, whose ends of the fifos are open, to the container's own streams.
    pub async fn attach(
        &self,
        container_id: &str,
        attach_id: &str,
        [stdin, stdout, stderr]: [String; 3],
    ) -> Result<(), Error> {
        let request = v1::AttachRequest {
            container_id: container_id.to_owned(),
            attach_id: attach_id.to_owned(),
            stdin,
            stdout,
            stderr,
            ..Default::default()
        };
        let answer = self.pod.attach(unbounded(), &request);
        self.call("Attach", READ_DEADLINE, answer).await?;
        Ok(())
    }

    /// Lets the client go. One that is gone is no error.
    pub async fn detach(&self, container_id: &str, attach_id: &str) -> Result<(), Error> {
        let request = v1::DetachRequest {
            container_id: container_id.to_owned(),
            attach_id: attach_id.to_owned(),
            ..Default::default()
        };
        let answer = self.pod.detach(unbounded(), &request);
        self.call("Detach", READ_DEADLINE, answer).await?;
        Ok(())
    }

    /// Waits for the exec, as long as it takes, and answers with its exit code.
    pub async fn wait_exec(&self, container_id: &str, exec_id: &str) -> Result<i32, Error> {
        let request = api::WaitRequest {
            id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self.task.wait(unbounded(), &request);
        let ended = self.call("Wait", Duration::MAX, answer).await?;
        Ok(ended.exit_status as i32)
    }

    pub async fn resize_exec(
        &self,
        container_id: &str,
        exec_id: &str,
        (width, height): (u16, u16),
    ) -> Result<(), Error> {
        let request = api::ResizePtyRequest {
            id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            width: width.into(),
            height: height.into(),
            ..Default::default()
        };
        let answer = self.task.resize_pty(unbounded(), &request);
        self.call("ResizePty", READ_DEADLINE, answer).await?;
        Ok(())
    }

    /// The exec's stdin gets its end of file, once what was written is through.
    pub async fn close_exec_stdin(&self, container_id: &str, exec_id: &str) -> Result<(), Error> {
        let request = api::CloseIORequest {
            id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        let answer = self.task.close_io(unbounded(), &request);
        self.call("CloseIO", READ_DEADLINE, answer).await?;
        Ok(())
    }

    /// Kills the exec and its process group where it still runs, and lets go of it. One that is gone is no error.
    pub async fn end_exec(&self, container_id: &str, exec_id: &str) -> Result<(), Error> {
        let request = api::KillRequest {
            id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: nix::libc::SIGKILL as u32,
            all: true,
            ..Default::default()
        };
        let answer = self.task.kill(unbounded(), &request);
        // What never started can't be killed, and what has ended needs not.
        let _ = self.call("Kill", KILL_DEADLINE, answer).await;
        let _ = tokio::time::timeout(KILL_DEADLINE, self.wait_exec(container_id, exec_id)).await;
        let request = api::DeleteRequest {
            id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self.task.delete(unbounded(), &request);
        gone_is_fine(self.call("Delete", DELETE_DEADLINE, answer).await.map(drop))
    }
}

/// The shim's own handler runs to its end whatever becomes of this call, so no deadline goes over the wire.
fn unbounded() -> Context {
    context::with_timeout(0)
}

fn any(name: &str, message: &impl Message) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: name.to_owned(),
        value: message
            .write_to_bytes()
            .expect("a message without required fields encodes"),
        ..Default::default()
    })
}

fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(e) if e.code() == Code::NotFound => Ok(()),
        other => other,
    }
}

async fn within<T>(
    pod_id: &str,
    call: &'static str,
    deadline: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let (code, message) = match error {
                ttrpc::Error::RpcStatus(status) => {
                    (Code::from_i32(status.code.value()), status.message)
                }
                // Nobody at the other end (any more).
                error => (Code::Unavailable, error.to_string()),
            };
            Err(Error::Shim {
                pod_id: pod_id.to_owned(),
                call,
                code,
                message,
            })
        }
        Err(_) => Err(Error::Silent {
            pod_id: pod_id.to_owned(),
            call,
            since: deadline,
        }),
    }
}

/// The CRI's word in the shim's language.
pub fn namespace_mode(mode: i32) -> v1::NamespaceMode {
    match cri::NamespaceMode::try_from(mode) {
        Ok(cri::NamespaceMode::Container) => v1::NamespaceMode::CONTAINER,
        Ok(cri::NamespaceMode::Node) => v1::NamespaceMode::NODE,
        Ok(cri::NamespaceMode::Target) => v1::NamespaceMode::TARGET,
        _ => v1::NamespaceMode::POD,
    }
}
