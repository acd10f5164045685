//! `berth.shim.v1.Pod`: what the standard services lack.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_proto::shim::v1::{
    pod::{
        AttachRequest, AttachResponse, ChangesRequest, ContainerState, DetachRequest,
        DetachResponse, ExecCancelRequest, ExecCancelResponse, ExecOutputRequest,
        ExecOutputResponse, ExecSyncRequest, ExecSyncResponse, InspectRequest, InspectResponse,
        ReopenLogRequest, ReopenLogResponse, StartRequest, StatsRequest, StatsResponse,
        UpdateSandboxRequest, UpdateSandboxResponse,
    },
    pod_ttrpc::Pod as Service,
};
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext;

use crate::{
    container::{Phase, lock},
    error::Error,
    exec_sync, journal,
    pod::{Pod, blocking, detached},
    stats,
    task::json,
};

/// A poll is answered by then also without a change: one whose caller is gone must not stay for good.
const POLL: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct PodService {
    pub pod: Arc<Pod>,
}

#[async_trait]
impl Service for PodService {
    async fn inspect(&self, _: &TtrpcContext, _: InspectRequest) -> ttrpc::Result<InspectResponse> {
        Ok(self.pod.inspect())
    }

    async fn changes(
        &self,
        _: &TtrpcContext,
        request: ChangesRequest,
    ) -> ttrpc::Result<InspectResponse> {
        let mut generation = self.pod.generation();
        let _ = timeout(
            POLL,
            generation.wait_for(|now| *now > request.after_generation),
        )
        .await;
        Ok(self.pod.inspect())
    }

    async fn exec_sync(
        &self,
        _: &TtrpcContext,
        request: ExecSyncRequest,
    ) -> ttrpc::Result<ExecSyncResponse> {
        let container = self.pod.container(&request.container_id)?;
        let pod = self.pod.clone();
        // Dropped with this handler when its connection breaks: the command is then killed, and reaped all the same.
        let (_here, gone) = self.pod.calls.enter(request.call_id.clone());
        Ok(detached("ExecSync", exec_sync::run(pod, container, request, gone)).await?)
    }

    async fn exec_cancel(
        &self,
        _: &TtrpcContext,
        request: ExecCancelRequest,
    ) -> ttrpc::Result<ExecCancelResponse> {
        self.pod.calls.cancel(&request.call_id);
        Ok(ExecCancelResponse::new())
    }

    async fn exec_output(
        &self,
        _: &TtrpcContext,
        request: ExecOutputRequest,
    ) -> ttrpc::Result<ExecOutputResponse> {
        Ok(self.pod.outputs.read(&request)?)
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<ContainerState> {
        let (container, pod) = (self.pod.container(&request.container_id)?, self.pod.clone());
        detached(
            "Start",
            async move { pod.start(&request.container_id).await },
        )
        .await?;
        Ok(container.state())
    }

    async fn reopen_log(
        &self,
        _: &TtrpcContext,
        request: ReopenLogRequest,
    ) -> ttrpc::Result<ReopenLogResponse> {
        let container = self.pod.container(&request.container_id)?;
        if !matches!(container.phase(), Phase::Running { .. }) {
            return Err(Error::State {
                action: "reopen the log of container",
                id: container.id.clone(),
                state: "not running".into(),
            }
            .into());
        }
        if let Some(log) = &container.log {
            log.reopen()?;
        }
        Ok(ReopenLogResponse::new())
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: AttachRequest,
    ) -> ttrpc::Result<AttachResponse> {
        let container = self.pod.container(&request.container_id)?;
        self.pod.attach(&container, &request)?;
        Ok(AttachResponse::new())
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: DetachRequest,
    ) -> ttrpc::Result<DetachResponse> {
        // A container that is gone has no clients.
        if let Ok(container) = self.pod.container(&request.container_id)
            && let Some(io) = &*lock(&container.io)
        {
            io.detach(&request.attach_id);
        }
        Ok(DetachResponse::new())
    }

    async fn update_sandbox(
        &self,
        _: &TtrpcContext,
        request: UpdateSandboxRequest,
    ) -> ttrpc::Result<UpdateSandboxResponse> {
        let resources: oci_spec::runtime::LinuxResources = json("resources", &request.resources)?;
        let cgroup = self.pod.cgroup()?;
        let notes = blocking("UpdateSandbox", move || Ok(cgroup.ensure(&resources)?));
        for note in notes.await? {
            journal!("limits of the pod: {note}");
        }
        Ok(UpdateSandboxResponse::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Ok(stats::answer(&self.pod, request).await?)
    }
}
