//! All 41 RPCs are answered; what is not built yet says so by its name.

use anyhow::{Result, ensure};
use berth_proto::cri;
use berth_tests::Node;
use tonic::Code;

#[test]
fn what_is_not_built_says_so_by_its_name() -> Result<()> {
    Node::test(async |node| {
        let mut answered = 0;
        macro_rules! ask {
            ($client:ident, $($method:ident($request:ident)),* $(,)?) => {
                $(
                    let answer = node.cri.$client().$method(cri::$request::default()).await.map(drop);
                    match answer {
                        Err(status) if status.code() == Code::Unimplemented => {
                            let name = stringify!($request).trim_end_matches("Request").replace("GetEvents", "GetContainerEvents");
                            ensure!(status.message().contains(&name), "{name} is not built, and says {:?}", status.message());
                        }
                        Err(status) => {
                            ensure!(!matches!(status.code(), Code::Unknown | Code::Internal), "{}: {status:?}", stringify!($method));
                            answered += 1;
                        }
                        Ok(()) => answered += 1,
                    }
                )*
            };
        }
        ask!(
            runtime,
            version(VersionRequest),
            run_pod_sandbox(RunPodSandboxRequest),
            stop_pod_sandbox(StopPodSandboxRequest),
            remove_pod_sandbox(RemovePodSandboxRequest),
            pod_sandbox_status(PodSandboxStatusRequest),
            list_pod_sandbox(ListPodSandboxRequest),
            stream_pod_sandboxes(StreamPodSandboxesRequest),
            create_container(CreateContainerRequest),
            start_container(StartContainerRequest),
            stop_container(StopContainerRequest),
            remove_container(RemoveContainerRequest),
            list_containers(ListContainersRequest),
            stream_containers(StreamContainersRequest),
            container_status(ContainerStatusRequest),
            update_container_resources(UpdateContainerResourcesRequest),
            reopen_container_log(ReopenContainerLogRequest),
            exec_sync(ExecSyncRequest),
            exec(ExecRequest),
            attach(AttachRequest),
            port_forward(PortForwardRequest),
            container_stats(ContainerStatsRequest),
            list_container_stats(ListContainerStatsRequest),
            stream_container_stats(StreamContainerStatsRequest),
            pod_sandbox_stats(PodSandboxStatsRequest),
            list_pod_sandbox_stats(ListPodSandboxStatsRequest),
            stream_pod_sandbox_stats(StreamPodSandboxStatsRequest),
            update_runtime_config(UpdateRuntimeConfigRequest),
            status(StatusRequest),
            checkpoint_container(CheckpointContainerRequest),
            get_container_events(GetEventsRequest),
            list_metric_descriptors(ListMetricDescriptorsRequest),
            list_pod_sandbox_metrics(ListPodSandboxMetricsRequest),
            stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest),
            runtime_config(RuntimeConfigRequest),
            update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest),
        );
        ask!(
            images,
            list_images(ListImagesRequest),
            stream_images(StreamImagesRequest),
            image_status(ImageStatusRequest),
            pull_image(PullImageRequest),
            remove_image(RemoveImageRequest),
            image_fs_info(ImageFsInfoRequest),
        );
        ensure!(answered >= 27, "only {answered} RPCs are built");
        Ok(())
    })
}

#[test]
fn the_status_names_the_runtime_handlers_and_their_features() -> Result<()> {
    Node::test(async |node| {
        let status = node
            .cri
            .runtime()
            .status(cri::StatusRequest { verbose: true })
            .await?
            .into_inner();
        ensure!(
            !status.runtime_handlers.is_empty()
                && status.features.is_some()
                && !status.info.is_empty(),
            "{status:?}"
        );
        Ok(())
    })
}
