//! `berth.shim.v1.Pod`: what the standard services lack.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_engine::cgroup::Stats;
use berth_proto::shim::v1::{
    pod::{
        AttachRequest, AttachResponse, ChangesRequest, ContainerStats, CpuStats, DetachRequest,
        DetachResponse, ExecCancelRequest, ExecCancelResponse, ExecOutputRequest,
        ExecOutputResponse, ExecSyncRequest, ExecSyncResponse, InspectRequest, InspectResponse,
        MemoryStats, ReopenLogRequest, ReopenLogResponse, StatsRequest, StatsResponse,
        UpdateSandboxRequest, UpdateSandboxResponse,
    },
    pod_ttrpc::Pod as Service,
};
use protobuf::MessageField;
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext;

use crate::{
    clock,
    container::{Phase, lock},
    error::Error,
    exec_sync, journal,
    pod::{Pod, blocking, detached},
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
        let notes = blocking("UpdateSandbox", move || {
            cgroup.create()?;
            Ok(cgroup.change(&resources)?)
        });
        for note in notes.await? {
            journal!("limits of the pod: {note}");
        }
        Ok(UpdateSandboxResponse::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let containers = if request.container_ids.is_empty() {
            self.pod.containers()
        } else {
            request
                .container_ids
                .iter()
                .map(|id| self.pod.container(id))
                .collect::<Result<_, _>>()?
        };
        let figures = blocking("Stats", move || {
            let mut figures = Vec::with_capacity(containers.len());
            for container in containers {
                let Some(cgroup) = &container.cgroup else {
                    continue;
                };
                match cgroup.stats() {
                    Ok(stats) => figures.push(figures_of(&container.id, &stats)),
                    // One that ended meanwhile has no figures; the others have.
                    Err(error) => journal!("figures of container {}: {error}", container.id),
                }
            }
            Ok(figures)
        });
        Ok(StatsResponse {
            containers: figures.await?,
            ..Default::default()
        })
    }
}

fn figures_of(id: &str, stats: &Stats) -> ContainerStats {
    ContainerStats {
        id: id.to_owned(),
        timestamp: clock::now_ns(),
        cpu: MessageField::some(CpuStats {
            usage_ns: stats.cpu_usage_ns,
            nr_periods: stats.nr_periods,
            nr_throttled: stats.nr_throttled,
            throttled_ns: stats.throttled_ns,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStats {
            usage: stats.memory_usage,
            working_set: stats.memory_working_set,
            rss: stats.memory_rss,
            limit: stats.memory_limit,
            page_faults: stats.page_faults,
            major_page_faults: stats.major_page_faults,
            swap_usage: stats.swap_usage,
            ..Default::default()
        }),
        pids: stats.pids,
        ..Default::default()
    }
}
