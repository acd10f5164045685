//! The CRI: one file a group of RPCs. A handler translates, enqueues and awaits; it never changes a pod.
//!
//! tonic's trait wants all methods in one place, so they stand here, each a line that names its file.

pub mod checkpoint_container;
pub mod containers;
pub mod cpu_rate;
pub mod create_container;
pub mod events;
pub mod exec_sync;
pub mod filter;
pub mod images;
pub mod metric_descriptors;
pub mod pod_metrics;
pub mod pod_sandboxes;
pub mod run_pod_sandbox;
pub mod stats;
pub mod status;
pub mod stream_lists;
pub mod streaming;

use std::{pin::Pin, sync::Arc};

use berth_proto::cri::{runtime_service_server::RuntimeService, *};
use stream_lists::{parts, parts_of_metrics};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::{error::Error, pod::registry::Registry};

/// Both CRI services. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    pub registry: Arc<Registry>,
    pub streams: Arc<berth_stream::Server>,
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn streamed<T>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Streamed<T> {
    Box::pin(stream)
}

/// A handler's result as tonic wants it; the only place where our errors become gRPC's.
fn answer<T>(rpc: &'static str, result: Result<T, Error>) -> Answer<T> {
    match result {
        Ok(message) => Ok(Response::new(message)),
        Err(error) => {
            match &error {
                // Its words are the client's, and may be secrets.
                Error::CommandTimedOut { timeout, .. } => {
                    tracing::debug!(rpc, code = ?error.code(), "a command timed out after {timeout:?}");
                }
                error => tracing::debug!(rpc, code = ?error.code(), "{error}"),
            }
            Err(error.into())
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer("Version", Ok(status::version(request.into_inner())))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        answer(
            "Status",
            Ok(status::status(self, request.into_inner()).await),
        )
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        answer("RuntimeConfig", Ok(status::runtime_config(self)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let request = request.into_inner();
        answer(
            "UpdateRuntimeConfig",
            status::update_runtime_config(self, request).await,
        )
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        let result = run_pod_sandbox::run_pod_sandbox(self, request.into_inner()).await;
        answer("RunPodSandbox", result)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let result = pod_sandboxes::stop(self, request.into_inner()).await;
        answer("StopPodSandbox", result)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let result = pod_sandboxes::remove(self, request.into_inner()).await;
        answer("RemovePodSandbox", result)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let result = pod_sandboxes::status(self, request.into_inner());
        answer("PodSandboxStatus", result)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let result = pod_sandboxes::list(self, request.into_inner());
        answer("ListPodSandbox", Ok(result))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let result = create_container::create_container(self, request.into_inner()).await;
        answer("CreateContainer", result)
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let result = containers::start(self, request.into_inner()).await;
        answer("StartContainer", result)
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let result = containers::stop(self, request.into_inner()).await;
        answer("StopContainer", result)
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let result = containers::remove(self, request.into_inner()).await;
        answer("RemoveContainer", result)
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let result = containers::status(self, request.into_inner());
        answer("ContainerStatus", result)
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let result = containers::list(self, request.into_inner());
        answer("ListContainers", Ok(result))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let result = exec_sync::exec_sync(self, request.into_inner()).await;
        answer("ExecSync", result)
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let result = containers::reopen_log(self, request.into_inner()).await;
        answer("ReopenContainerLog", result)
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let result = stats::container_stats(self, request.into_inner()).await;
        answer("ContainerStats", result)
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let result = stats::list_container_stats(self, request.into_inner()).await;
        answer("ListContainerStats", Ok(result))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let result = stats::pod_sandbox_stats(self, request.into_inner()).await;
        answer("PodSandboxStats", result)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let result = stats::list_pod_sandbox_stats(self, request.into_inner()).await;
        answer("ListPodSandboxStats", Ok(result))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let result = containers::update(self, request.into_inner()).await;
        answer("UpdateContainerResources", result)
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        answer("Exec", streaming::exec(self, request.into_inner()))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        answer("Attach", streaming::attach(self, request.into_inner()))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answer<PortForwardResponse> {
        let result = streaming::port_forward(self, request.into_inner());
        answer("PortForward", result)
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        let result = checkpoint_container::checkpoint_container(self, request.into_inner()).await;
        answer("CheckpointContainer", result)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer("ListMetricDescriptors", Ok(metric_descriptors::list()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let pod_metrics = pod_metrics::list(self).await;
        let result = Ok(ListPodSandboxMetricsResponse { pod_metrics });
        answer("ListPodSandboxMetrics", result)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let result = pod_sandboxes::update(self, request.into_inner()).await;
        answer("UpdatePodSandboxResources", result)
    }

    type GetContainerEventsStream = Streamed<ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let result = events::subscribe(self).map(streamed);
        answer("GetContainerEvents", result)
    }

    type StreamPodSandboxesStream = Streamed<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter;
        let list = pod_sandboxes::list(self, ListPodSandboxRequest { filter });
        let part = |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes };
        Ok(Response::new(streamed(parts(list.items, part))))
    }

    type StreamContainersStream = Streamed<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let filter = request.into_inner().filter;
        let list = containers::list(self, ListContainersRequest { filter });
        let part = |containers| StreamContainersResponse { containers };
        Ok(Response::new(streamed(parts(list.containers, part))))
    }

    type StreamContainerStatsStream = Streamed<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter;
        let list = stats::list_container_stats(self, ListContainerStatsRequest { filter }).await;
        let part = |container_stats| StreamContainerStatsResponse { container_stats };
        Ok(Response::new(streamed(parts(list.stats, part))))
    }

    type StreamPodSandboxStatsStream = Streamed<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter;
        let list = stats::list_pod_sandbox_stats(self, ListPodSandboxStatsRequest { filter }).await;
        let part = |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(streamed(parts(list.stats, part))))
    }

    type StreamPodSandboxMetricsStream = Streamed<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let list = pod_metrics::list(self).await;
        let part = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        };
        Ok(Response::new(streamed(parts_of_metrics(list, part))))
    }
}
