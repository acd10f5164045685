//! Requests that nobody should send, to every RPC: an error or an answer, and a server that goes on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_proto::cri::{
    self, ContainerConfig, ContainerFilter, NamespaceMode, PodSandboxConfig, PodSandboxFilter,
};
use tonic::{Code, Status};

use super::{
    Case, cases,
    scene::{Scene, refused},
};
use crate::{
    Pod,
    request::{ContainerRequest, PodRequest, bind},
};

pub const CASES: &[Case] = cases![
    Every: [an_empty_request_is_answered_or_refused],
    Every: [an_rpc_that_is_not_built_says_so_by_its_name],
    Every: [an_id_that_is_none_is_found_nowhere],
    Every: [an_id_of_a_megabyte_is_found_nowhere],
    Every: [the_empty_id_is_nobodys_also_where_there_is_only_one],
    ListPodSandbox: [ten_thousand_labels_in_a_filter_find_nothing_in_time],
    ListContainers: [ten_thousand_labels_in_a_filter_find_nothing_in_time_either],
    RunPodSandbox: [what_contradicts_itself_is_refused],
    RunPodSandbox: [names_that_are_paths_or_too_long_make_nothing],
    RunPodSandbox: [a_name_with_a_nul_makes_no_pod_that_can_not_go],
    CreateContainer: [what_contradicts_itself_is_refused_for_a_container],
    CreateContainer: [recursively_read_only_is_read_only_and_private],
    StopContainer: [a_negative_grace_is_none_or_refused],
    ExecSync: [a_negative_timeout_is_refused_or_none],
];

/// What a stream says first: nothing within a moment is an answer, too.
const FIRST: Duration = Duration::from_millis(300);

/// Asks all 41 RPCs, with `id` wherever an id or a name is asked for.
pub async fn ask_all(cri: &crate::Cri, id: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let mut answers = vec![];
    macro_rules! ask {
        ($client:ident: $($rpc:literal $method:ident($request:expr);)*) => {
            $(answers.push(($rpc, cri.$client().$method($request).await.map(drop)));)*
        };
    }
    macro_rules! listen {
        ($client:ident: $($rpc:literal $method:ident($request:expr);)*) => {
            $(
                let first = async {
                    cri.$client().$method($request).await?.into_inner().message().await.map(drop)
                };
                let first = tokio::time::timeout(FIRST, first).await.unwrap_or(Ok(()));
                answers.push(($rpc, first));
            )*
        };
    }
    let container = || id.to_owned();
    let pod = || id.to_owned();
    let image = || (!id.is_empty()).then(|| crate::cri::spec(id));
    ask!(runtime:
        "Version" version(cri::VersionRequest { version: id.into() });
        "Status" status(cri::StatusRequest::default());
        "RuntimeConfig" runtime_config(cri::RuntimeConfigRequest {});
        "UpdateRuntimeConfig" update_runtime_config(cri::UpdateRuntimeConfigRequest::default());
        "RunPodSandbox" run_pod_sandbox(cri::RunPodSandboxRequest { config: None, runtime_handler: id.into() });
        "StopPodSandbox" stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod() });
        "RemovePodSandbox" remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: pod() });
        "PodSandboxStatus" pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id: pod(), verbose: true });
        "ListPodSandbox" list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(PodSandboxFilter { id: pod(), ..Default::default() }) });
        "UpdatePodSandboxResources" update_pod_sandbox_resources(cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod(), ..Default::default() });
        "CreateContainer" create_container(cri::CreateContainerRequest { pod_sandbox_id: pod(), ..Default::default() });
        "StartContainer" start_container(cri::StartContainerRequest { container_id: container() });
        "StopContainer" stop_container(cri::StopContainerRequest { container_id: container(), timeout: 0 });
        "RemoveContainer" remove_container(cri::RemoveContainerRequest { container_id: container() });
        "ContainerStatus" container_status(cri::ContainerStatusRequest { container_id: container(), verbose: true });
        "ListContainers" list_containers(cri::ListContainersRequest { filter: Some(ContainerFilter { id: container(), pod_sandbox_id: pod(), ..Default::default() }) });
        "UpdateContainerResources" update_container_resources(cri::UpdateContainerResourcesRequest { container_id: container(), ..Default::default() });
        "ReopenContainerLog" reopen_container_log(cri::ReopenContainerLogRequest { container_id: container() });
        "CheckpointContainer" checkpoint_container(cri::CheckpointContainerRequest { container_id: container(), ..Default::default() });
        "ExecSync" exec_sync(cri::ExecSyncRequest { container_id: container(), ..Default::default() });
        "Exec" exec(cri::ExecRequest { container_id: container(), ..Default::default() });
        "Attach" attach(cri::AttachRequest { container_id: container(), ..Default::default() });
        "PortForward" port_forward(cri::PortForwardRequest { pod_sandbox_id: pod(), port: vec![] });
        "ContainerStats" container_stats(cri::ContainerStatsRequest { container_id: container() });
        "ListContainerStats" list_container_stats(cri::ListContainerStatsRequest { filter: Some(cri::ContainerStatsFilter { id: container(), pod_sandbox_id: pod(), ..Default::default() }) });
        "PodSandboxStats" pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id: pod() });
        "ListPodSandboxStats" list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: Some(cri::PodSandboxStatsFilter { id: pod(), ..Default::default() }) });
        "ListMetricDescriptors" list_metric_descriptors(cri::ListMetricDescriptorsRequest {});
        "ListPodSandboxMetrics" list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {});
    );
    ask!(images:
        "ListImages" list_images(cri::ListImagesRequest { filter: Some(cri::ImageFilter { image: image() }) });
        "ImageStatus" image_status(cri::ImageStatusRequest { image: image(), verbose: true });
        "PullImage" pull_image(cri::PullImageRequest { image: image(), ..Default::default() });
        "RemoveImage" remove_image(cri::RemoveImageRequest { image: image() });
        "ImageFsInfo" image_fs_info(cri::ImageFsInfoRequest {});
    );
    listen!(runtime:
        "GetContainerEvents" get_container_events(cri::GetEventsRequest {});
        "StreamPodSandboxes" stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter: Some(PodSandboxFilter { id: pod(), ..Default::default() }) });
        "StreamContainers" stream_containers(cri::StreamContainersRequest { filter: Some(ContainerFilter { id: container(), ..Default::default() }) });
        "StreamContainerStats" stream_container_stats(cri::StreamContainerStatsRequest { filter: Some(cri::ContainerStatsFilter { id: container(), ..Default::default() }) });
        "StreamPodSandboxStats" stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest { filter: Some(cri::PodSandboxStatsFilter { id: pod(), ..Default::default() }) });
        "StreamPodSandboxMetrics" stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {});
    );
    listen!(images:
        "StreamImages" stream_images(cri::StreamImagesRequest { filter: Some(cri::ImageFilter { image: image() }) });
    );
    answers
}

/// An error of the connection: the server fell over the request.
fn fell(status: &Status) -> bool {
    let transport = matches!(status.code(), Code::Unavailable | Code::Cancelled)
        || std::error::Error::source(status).is_some();
    transport || status.message().contains("panic") || status.message().contains("nil pointer")
}

async fn an_empty_request_is_answered_or_refused(s: &Scene) -> Result<()> {
    for (rpc, answer) in ask_all(&s.cri, "").await {
        if let Err(status) = answer {
            ensure!(!fell(&status), "{rpc}: {status:?}");
        }
    }
    s.cri.version().await?;
    Ok(())
}

async fn an_rpc_that_is_not_built_says_so_by_its_name(s: &Scene) -> Result<()> {
    let answers = ask_all(&s.cri, "").await;
    ensure!(answers.len() == 41);
    for (rpc, answer) in answers {
        if let Err(status) = answer
            && status.code() == Code::Unimplemented
        {
            ensure!(status.message().contains(rpc), "{rpc}: {status:?}");
        }
    }
    Ok(())
}

/// Those that have an id to look for, and no answer where it is nobody's.
const MUST_REFUSE: [&str; 12] = [
    "PodSandboxStatus",
    "CreateContainer",
    "StartContainer",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "RunPodSandbox",
];

/// Asks for one id everywhere.
async fn nobodys(s: &Scene, id: &str) -> Result<()> {
    for (rpc, answer) in ask_all(&s.cri, id).await {
        match answer {
            Ok(()) => ensure!(
                !MUST_REFUSE.contains(&rpc),
                "{rpc} has an answer for {id:.40?}"
            ),
            Err(status) => {
                ensure!(!fell(&status), "{rpc} of {id:.40?}: {status:?}");
            }
        }
    }
    s.cri.version().await?;
    Ok(())
}

async fn an_id_that_is_none_is_found_nowhere(s: &Scene) -> Result<()> {
    s.a_sleeper().await?;
    for id in [
        "..",
        "/",
        "../../../etc/passwd",
        "a/b",
        "a\nb",
        "a\0b",
        "%00",
        "é\u{202e}",
        "-",
        "*",
        " ",
    ] {
        nobodys(s, id).await?;
    }
    Ok(())
}

async fn an_id_of_a_megabyte_is_found_nowhere(s: &Scene) -> Result<()> {
    nobodys(s, &"a".repeat(1 << 20)).await
}

/// It is the beginning of every id. What can be taken back is asked about alone.
async fn the_empty_id_is_nobodys_also_where_there_is_only_one(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    for (rpc, answer) in ask_all(&s.cri, "").await {
        ensure!(
            answer.is_err() || !MUST_REFUSE.contains(&rpc),
            "{rpc} has an answer for no id"
        );
    }
    ensure!(s.cri.status(&id).await?.finished_at == 0, "it was stopped");
    ensure!(
        s.cri.pod_status(&pod.id).await?.state == 0,
        "its pod was stopped"
    );
    Ok(())
}

const FILTER_LIMIT: Duration = Duration::from_secs(10);

fn labels() -> std::collections::HashMap<String, String> {
    (0..10_000)
        .map(|number| (format!("label-{number}"), "x".repeat(50)))
        .collect()
}

async fn ten_thousand_labels_in_a_filter_find_nothing_in_time(s: &Scene) -> Result<()> {
    s.a_pod().await?;
    let begin = Instant::now();
    let filter = PodSandboxFilter {
        label_selector: labels(),
        ..Default::default()
    };
    match s.cri.pods(Some(filter)).await {
        Ok(pods) => ensure!(pods.is_empty(), "{pods:?}"),
        Err(status) => ensure!(!fell(&status), "{status:?}"),
    }
    ensure!(begin.elapsed() < FILTER_LIMIT, "{:?}", begin.elapsed());
    Ok(())
}

async fn ten_thousand_labels_in_a_filter_find_nothing_in_time_either(s: &Scene) -> Result<()> {
    s.a_sleeper().await?;
    let begin = Instant::now();
    let filter = ContainerFilter {
        label_selector: labels(),
        ..Default::default()
    };
    match s.cri.containers(Some(filter)).await {
        Ok(containers) => ensure!(containers.is_empty(), "{containers:?}"),
        Err(status) => ensure!(!fell(&status), "{status:?}"),
    }
    ensure!(begin.elapsed() < FILTER_LIMIT, "{:?}", begin.elapsed());
    Ok(())
}

async fn what_contradicts_itself_is_refused(s: &Scene) -> Result<()> {
    let plain = || s.pod("pod");
    let sysctl = plain().on_the_host_network().linux(|linux| {
        linux
            .sysctls
            .insert("net.ipv4.ip_forward".into(), "1".into());
    });
    let user = plain().linux(|linux| {
        let security = linux.security_context.get_or_insert_default();
        security.run_as_user = Some(cri::Int64Value { value: -7 });
    });
    for (what, config) in [
        ("a sysctl of the host's network", sysctl),
        ("a negative user", user),
    ] {
        let answer = s.cri.run_pod_with(&config, &s.runtime_handler).await;
        ensure!(answer.is_err(), "{what} is taken");
        refused(answer, &[])?;
    }
    ensure!(s.cri.pods(Some(s.own())).await?.is_empty());
    Ok(())
}

async fn names_that_are_paths_or_too_long_make_nothing(s: &Scene) -> Result<()> {
    for name in ["../../../tmp/escaped", "a/b", "", &"n".repeat(1 << 20)] {
        let config = s.pod("pod").with(|config: &mut PodSandboxConfig| {
            config.metadata.get_or_insert_default().name = name.into();
            config.hostname = "pod".into();
        });
        // As a label of its own, a name may be anything; it must not be a path.
        if let Err(status) = s.cri.run_pod_with(&config, &s.runtime_handler).await {
            ensure!(
                !fell(&status) && status.message().len() < 16 << 10,
                "{name:.20?}"
            );
        }
    }
    ensure!(!std::path::Path::new("/tmp/escaped").exists());
    Ok(())
}

async fn a_name_with_a_nul_makes_no_pod_that_can_not_go(s: &Scene) -> Result<()> {
    let config = s.pod("pod").with(|config: &mut PodSandboxConfig| {
        config.metadata.get_or_insert_default().name = "a\0b".into();
    });
    if let Ok(id) = s.cri.run_pod_with(&config, &s.runtime_handler).await {
        s.cri.stop_pod(&id).await?;
        s.cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn what_contradicts_itself_is_refused_for_a_container(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let plain = || s.container("a", &["true"]);
    for (what, config) in [
        (
            "a process namespace of nobody",
            plain().security(|security| {
                let namespaces = security.namespace_options.get_or_insert_default();
                namespaces.pid = NamespaceMode::Target.into();
                namespaces.target_id = "0".repeat(64);
            }),
        ),
        (
            "a group without a user",
            plain().security(|security| {
                security.run_as_group = Some(cri::Int64Value { value: 7 });
            }),
        ),
        (
            "a seccomp profile that is not there",
            plain().security(|security| {
                security.seccomp = Some(cri::SecurityProfile {
                    profile_type: cri::security_profile::ProfileType::Localhost.into(),
                    localhost_ref: "/no/such/profile.json".into(),
                });
            }),
        ),
        (
            "a device that is not there",
            plain().with(|config: &mut ContainerConfig| {
                config.devices.push(cri::Device {
                    host_path: "/dev/no-such-device".into(),
                    container_path: "/dev/x".into(),
                    permissions: "rwm".into(),
                });
            }),
        ),
    ] {
        is_refused(s, &pod, what, &config).await?;
    }
    Ok(())
}

async fn recursively_read_only_is_read_only_and_private(s: &Scene) -> Result<()> {
    use cri::MountPropagation as To;
    let pod = s.a_pod().await?;
    let volume = s.dir.join("volume");
    std::fs::create_dir_all(&volume)?;
    let mount = |readonly, recursive_read_only, propagation: cri::MountPropagation| cri::Mount {
        readonly,
        recursive_read_only,
        propagation: propagation.into(),
        ..bind(&volume, "/volume")
    };
    for (what, mount) in [
        ("not read-only", mount(false, true, To::PropagationPrivate)),
        (
            "propagated",
            mount(true, true, To::PropagationBidirectional),
        ),
    ] {
        let config = s.container("a", &["true"]).mount(mount);
        is_refused(s, &pod, what, &config).await?;
    }
    Ok(())
}

/// By CreateContainer, or by StartContainer, where some find out; nothing of it may run.
async fn is_refused(s: &Scene, pod: &Pod, what: &str, config: &ContainerConfig) -> Result<()> {
    let made = s.cri.create(&pod.id, config, &pod.config).await;
    let answer = match &made {
        Ok(id) => s.cri.start(id).await,
        Err(status) => Err(status.clone()),
    };
    ensure!(answer.is_err(), "{what} is taken");
    refused(answer, &[])?;
    if let Ok(id) = made {
        s.cri.remove(&id).await?;
    }
    Ok(())
}

async fn a_negative_grace_is_none_or_refused(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let begin = Instant::now();
    let answer = s.cri.stop(&id, -5).await;
    ensure!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    let exited = s.cri.status(&id).await?.finished_at > 0;
    ensure!(
        answer.is_ok() == exited,
        "{answer:?}, and the container has exited: {exited}"
    );
    Ok(())
}

async fn a_negative_timeout_is_refused_or_none(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    match s.cri.exec_within(&id, &["echo", "ran"], -5).await {
        Ok(answer) => ensure!(answer.stdout[..] == *b"ran\n", "{answer:?}"),
        Err(status) => ensure!(!fell(&status), "{status:?}"),
    }
    Ok(())
}
