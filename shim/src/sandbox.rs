//! containerd's sandbox service: translate, call the pod, translate.

use std::sync::Arc;

use async_trait::async_trait;
use berth_proto::shim::{
    sandbox_api as api, sandbox_async::Sandbox as Service, v1::sandbox_config::PodSandboxConfig,
};
use protobuf::MessageField;
use ttrpc::r#async::TtrpcContext;

use crate::{
    clock, cri_sandbox,
    error::Error,
    journal, metrics,
    pod::{Pod, Sandbox, Setup, blocking, detached, unpack},
};

/// What containerd calls the states of a sandbox.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

#[derive(Debug)]
pub struct SandboxService {
    pub pod: Arc<Pod>,
}

impl SandboxService {
    /// One shim has one sandbox.
    fn check(&self, id: &str) -> Result<(), Error> {
        if id == self.pod.id {
            Ok(())
        } else {
            Err(Error::Unknown {
                what: "sandbox",
                id: id.chars().take(100).collect(),
            })
        }
    }
}

#[async_trait]
impl Service for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let netns = (!request.netns_path.is_empty()).then(|| request.netns_path.into());
        let setup = match unpack::<PodSandboxConfig>(&request.options, cri_sandbox::CONFIG)? {
            None => Setup {
                options: unpack(&request.options, "berth.shim.v1.SandboxOptions")?
                    .unwrap_or_default(),
                netns,
                files: None,
            },
            Some(config) => {
                let options = cri_sandbox::options(&config)?;
                let bundle = std::path::Path::new(&request.bundle_path);
                if !bundle.is_absolute() {
                    return Err(Error::invalid("bundle_path", "it is not absolute").into());
                }
                let files = cri_sandbox::make_files(bundle, &config, &options)?;
                Setup {
                    options,
                    netns,
                    files: Some(files),
                }
            }
        };
        let files = setup.files.clone();
        if let Err(error) = self.pod.create_sandbox(setup).await {
            if let (Some(files), Sandbox::None) = (files, self.pod.sandbox())
                && let Err(undo) = files.remove()
            {
                journal!("undo CreateSandbox: {undo}");
            }
            return Err(error.into());
        }
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = self.pod.clone();
        let (pid, created_at) =
            detached("StartSandbox", async move { pod.start_sandbox().await }).await?;
        Ok(api::StartSandboxResponse {
            pid: pid as u32,
            created_at: clock::timestamp(created_at),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = api::PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".into();
        // Go's names.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .into();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = self.pod.clone();
        detached("StopSandbox", async move { pod.stop_sandbox().await }).await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let mut sandbox = self.pod.follow_sandbox();
        let ended = |sandbox: &Sandbox| match sandbox {
            Sandbox::Stopped {
                exit: Some(exit), ..
            } => Some((exit.code, exit.at)),
            // Never started: there is nothing to wait for.
            Sandbox::Stopped { pidfd: None, .. } => Some((0, 0)),
            _ => None,
        };
        let (code, at) = loop {
            if let Some(ended) = ended(&sandbox.borrow_and_update()) {
                break ended;
            }
            sandbox
                .changed()
                .await
                .map_err(|_| Error::Lost("the sandbox's phase"))?;
        };
        Ok(api::WaitSandboxResponse {
            exit_status: code as u32,
            exited_at: clock::timestamp(at),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = api::SandboxStatusResponse {
            sandbox_id: self.pod.id.clone(),
            state: NOT_READY.into(),
            extra: MessageField::none(),
            ..Default::default()
        };
        match self.pod.sandbox() {
            Sandbox::None => {
                return Err(Error::Unknown {
                    what: "sandbox",
                    id: self.pod.id.clone(),
                }
                .into());
            }
            Sandbox::Created { .. } => {}
            Sandbox::Running {
                pid, created_at, ..
            } => {
                response.state = READY.into();
                response.pid = pid as u32;
                response.created_at = clock::timestamp(created_at);
            }
            Sandbox::Stopped {
                pid,
                created_at,
                exit,
                ..
            } => {
                response.pid = pid as u32;
                response.created_at = clock::timestamp(created_at);
                response.exited_at = clock::timestamp(exit.map_or(0, |exit| exit.at));
            }
        }
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = self.pod.clone();
        detached("ShutdownSandbox", async move { pod.shutdown().await }).await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        self.check(&request.sandbox_id)?;
        let cgroup = self.pod.cgroup()?;
        let data = blocking("SandboxMetrics", move || {
            metrics::encoded(&cgroup.stats()?, cgroup.is_unified())
        });
        let data = data.await?;
        let mut response = api::SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = request.sandbox_id;
        metrics.timestamp = clock::timestamp(clock::now_ns());
        metrics.data = MessageField::some(data);
        Ok(response)
    }
}
