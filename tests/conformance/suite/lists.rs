//! The lists that come in parts: together they are the lists.

use anyhow::{Result, ensure};
use berth_proto::cri::{
    ContainerConfig, ContainerFilter, ContainerStatsFilter, ListImagesRequest,
    ListPodSandboxStatsRequest, PodSandboxStatsFilter, StreamContainerStatsRequest,
    StreamContainersRequest, StreamImagesRequest, StreamPodSandboxStatsRequest,
    StreamPodSandboxesRequest,
};

use super::{
    Case, cases,
    scene::{LABEL, Scene, unknown_id},
};
use crate::request::ContainerRequest;

pub const CASES: &[Case] = cases![
    StreamPodSandboxes: [the_parts_are_the_list_with_a_filter_too],
    StreamContainers: [the_parts_are_the_list_of_containers_with_a_filter_too],
    StreamContainerStats: [the_parts_have_the_containers_of_the_list],
    StreamPodSandboxStats: [the_parts_have_the_pods_of_the_list],
    StreamImages: alone [the_parts_are_the_list_of_images],
];

/// Everything of a stream in parts, by a key.
macro_rules! together {
    ($answer:expr, $field:ident, $key:expr) => {{
        let mut stream = $answer.await?.into_inner();
        let mut all = vec![];
        while let Some(part) = stream.message().await? {
            all.extend(part.$field);
        }
        all.sort_by_key($key);
        all
    }};
}

async fn the_parts_are_the_list_with_a_filter_too(s: &Scene) -> Result<()> {
    for name in ["a", "b", "c"] {
        s.run(s.pod(name)).await?;
    }
    let mut client = s.cri.runtime();
    for (id, count) in [(String::new(), 3), (unknown_id(), 0)] {
        let mut filter = s.own();
        filter.id = id;
        let mut list = s.cri.pods(Some(filter.clone())).await?;
        list.sort_by_key(|pod| pod.id.clone());
        let request = StreamPodSandboxesRequest {
            filter: Some(filter),
        };
        let parts = together!(client.stream_pod_sandboxes(request), pod_sandboxes, |pod| {
            pod.id.clone()
        });
        ensure!(
            parts == list && parts.len() == count,
            "{parts:?} and {list:?}"
        );
    }
    Ok(())
}

/// Three containers of one pod, with the scene's label.
async fn three(s: &Scene) -> Result<String> {
    let pod = s.a_pod().await?;
    for name in ["a", "b", "c"] {
        let config = s.container(name, &["sleep", "1000"]);
        let config = config.with(|config: &mut ContainerConfig| {
            config.labels.insert(LABEL.into(), s.mark.clone());
        });
        s.start(&pod, &config).await?;
    }
    Ok(pod.id)
}

async fn the_parts_are_the_list_of_containers_with_a_filter_too(s: &Scene) -> Result<()> {
    let pod_sandbox_id = three(s).await?;
    let mut client = s.cri.runtime();
    for (id, count) in [(String::new(), 3), (unknown_id(), 0)] {
        let filter = ContainerFilter {
            id,
            pod_sandbox_id: pod_sandbox_id.clone(),
            ..Default::default()
        };
        let mut list = s.cri.containers(Some(filter.clone())).await?;
        list.sort_by_key(|container| container.id.clone());
        let request = StreamContainersRequest {
            filter: Some(filter),
        };
        let parts = together!(client.stream_containers(request), containers, |container| {
            container.id.clone()
        });
        ensure!(
            parts == list && parts.len() == count,
            "{parts:?} and {list:?}"
        );
    }
    Ok(())
}

async fn the_parts_have_the_containers_of_the_list(s: &Scene) -> Result<()> {
    let pod_sandbox_id = three(s).await?;
    let filter = Some(ContainerStatsFilter {
        pod_sandbox_id,
        ..Default::default()
    });
    let id =
        |stats: &berth_proto::cri::ContainerStats| stats.attributes.clone().unwrap_or_default().id;
    let mut list: Vec<String> = s
        .cri
        .list_stats(filter.clone())
        .await?
        .iter()
        .map(id)
        .collect();
    list.sort_unstable();
    let mut client = s.cri.runtime();
    let request = StreamContainerStatsRequest { filter };
    let parts = together!(client.stream_container_stats(request), container_stats, id);
    let parts: Vec<String> = parts.iter().map(id).collect();
    ensure!(parts == list && parts.len() == 3, "{parts:?} and {list:?}");
    Ok(())
}

async fn the_parts_have_the_pods_of_the_list(s: &Scene) -> Result<()> {
    for name in ["a", "b"] {
        s.run(super::stats::with_a_cgroup(s, name)).await?;
    }
    let filter = Some(PodSandboxStatsFilter {
        label_selector: s.own().label_selector,
        ..Default::default()
    });
    let id =
        |stats: &berth_proto::cri::PodSandboxStats| stats.attributes.clone().unwrap_or_default().id;
    let mut client = s.cri.runtime();
    let request = ListPodSandboxStatsRequest {
        filter: filter.clone(),
    };
    let answer = client.list_pod_sandbox_stats(request).await?;
    let mut list: Vec<String> = answer.into_inner().stats.iter().map(id).collect();
    list.sort_unstable();
    let request = StreamPodSandboxStatsRequest { filter };
    let parts = together!(
        client.stream_pod_sandbox_stats(request),
        pod_sandbox_stats,
        id
    );
    let parts: Vec<String> = parts.iter().map(id).collect();
    ensure!(parts == list && parts.len() == 2, "{parts:?} and {list:?}");
    Ok(())
}

async fn the_parts_are_the_list_of_images(s: &Scene) -> Result<()> {
    let mut client = s.cri.images();
    let mut list = client
        .list_images(ListImagesRequest::default())
        .await?
        .into_inner()
        .images;
    list.sort_by_key(|image| image.id.clone());
    let request = StreamImagesRequest::default();
    let parts = together!(client.stream_images(request), images, |image| image
        .id
        .clone());
    ensure!(!parts.is_empty() && parts == list, "{parts:?} and {list:?}");
    Ok(())
}
