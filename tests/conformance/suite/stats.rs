//! Statistics and metrics.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    self, ContainerConfig, ContainerStatsFilter, ListMetricDescriptorsRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, PodSandboxConfig,
    PodSandboxStatsFilter, PodSandboxStatsRequest, StreamPodSandboxMetricsRequest,
};
use tonic::Code;

use super::{
    Case, cases,
    scene::{LABEL, Scene, refused, unknown_id},
};
use crate::{
    request::{ContainerRequest, PodRequest},
    sh,
};

pub const CASES: &[Case] = cases![
    ContainerStats: [figures_have_a_name_a_time_and_a_unit_that_grows],
    ContainerStats: [an_unknown_container_is_not_found],
    ContainerStats: [what_is_written_is_in_the_writable_layer],
    ListContainerStats: [a_filter_finds_what_it_says],
    ListContainerStats: [only_what_runs_has_figures],
    PodSandboxStats: [a_pods_figures_have_those_of_its_containers],
    PodSandboxStats: [an_unknown_pod_is_not_found],
    ListPodSandboxStats: [a_filter_finds_the_pods_that_it_says],
    ListMetricDescriptors: [every_metric_has_a_descriptor_of_its_own],
    ListPodSandboxMetrics: [every_metric_is_a_described_one_with_its_labels],
    StreamPodSandboxMetrics: [the_stream_tells_of_the_pods_that_the_list_has],
];

fn cpu(stats: &cri::ContainerStats) -> u64 {
    let cpu = stats.cpu.unwrap_or_default();
    cpu.usage_core_nano_seconds.unwrap_or_default().value
}

async fn figures_have_a_name_a_time_and_a_unit_that_grows(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("busy", &sh("while :; do :; done"));
    let config = config.with(|config: &mut ContainerConfig| {
        config.labels.insert("a".into(), "label".into());
        config.annotations.insert("an".into(), "annotation".into());
    });
    let config = config.resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.cpu_quota = 50_000;
    });
    let id = s.start(&pod, &config).await?;
    let first = s.cri.stats(&id).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let second = s.cri.stats(&id).await?;
    let attributes = second.attributes.clone().context("no attributes")?;
    ensure!(
        attributes.id == id
            && attributes.metadata == config.metadata
            && attributes.labels == config.labels
            && attributes.annotations == config.annotations,
        "{attributes:?}"
    );
    let (a, b) = (first.cpu.context("no CPU")?, second.cpu.context("no CPU")?);
    ensure!(
        a.timestamp > 0 && b.timestamp > a.timestamp,
        "{a:?} and {b:?}"
    );
    let grown = cpu(&second).saturating_sub(cpu(&first));
    ensure!(
        (100_000_000..20_000_000_000).contains(&grown),
        "{grown} ns of CPU"
    );
    let memory = second.memory.context("no memory")?;
    let set = memory.working_set_bytes.context("no working set")?.value;
    ensure!(
        memory.timestamp > 0 && (1..64 << 20).contains(&set),
        "{memory:?}"
    );
    Ok(())
}

async fn an_unknown_container_is_not_found(s: &Scene) -> Result<()> {
    refused(s.cri.stats(&unknown_id()).await, &[Code::NotFound])
}

/// Some servers look at the disk every ten seconds.
async fn what_is_written_is_in_the_writable_layer(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    s.cri
        .shell(&id, "head -c 8000000 /dev/zero > /file; sync")
        .await?;
    let limit = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let layer = s.cri.stats(&id).await?.writable_layer.unwrap_or_default();
        let used = layer.used_bytes.unwrap_or_default().value;
        if used >= 8_000_000 {
            ensure!(
                layer.timestamp > 0 && layer.inodes_used.is_some(),
                "{layer:?}"
            );
            ensure!(layer.fs_id.is_some_and(|id| !id.mountpoint.is_empty()));
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < limit,
            "{used} bytes are told of"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn listed(s: &Scene, change: impl FnOnce(&mut ContainerStatsFilter)) -> Result<Vec<String>> {
    let mut filter = ContainerStatsFilter::default();
    change(&mut filter);
    let stats = s.cri.list_stats(Some(filter)).await?;
    let ids = stats
        .into_iter()
        .map(|stats| stats.attributes.unwrap_or_default().id);
    let mut ids: Vec<String> = ids.collect();
    ids.sort_unstable();
    Ok(ids)
}

async fn a_filter_finds_what_it_says(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let mut ids = vec![];
    for name in ["a", "b"] {
        let config = s.container(name, &["sleep", "1000"]);
        let config = config.with(|config: &mut ContainerConfig| {
            config.labels.insert(LABEL.into(), s.mark.clone());
            config.labels.insert("which".into(), name.into());
        });
        ids.push(s.start(&pod, &config).await?);
    }
    ensure!(listed(s, |filter| filter.id = ids[0].clone()).await? == [ids[0].clone()]);
    let labelled = listed(s, |filter| {
        filter.label_selector.insert(LABEL.into(), s.mark.clone());
        filter.label_selector.insert("which".into(), "b".into());
    });
    ensure!(labelled.await? == [ids[1].clone()]);
    ids.sort_unstable();
    ensure!(listed(s, |filter| filter.pod_sandbox_id = pod.id.clone()).await? == ids);
    ensure!(
        listed(s, |filter| filter.id = unknown_id())
            .await?
            .is_empty()
    );
    let everything = s.cri.list_stats(None).await?;
    let all: Vec<String> = everything
        .into_iter()
        .map(|stats| stats.attributes.unwrap_or_default().id)
        .collect();
    ensure!(
        ids.iter().all(|id| all.contains(id)),
        "{ids:?} are not all among {all:?}"
    );
    Ok(())
}

/// A kubelet takes a container that has figures for one that runs.
async fn only_what_runs_has_figures(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    s.start(&pod, &s.container("other", &["sleep", "1000"]))
        .await?;
    s.cri.stop(&id, 0).await?;
    let stats = s.cri.list_stats(Some(ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    }));
    for stats in stats.await? {
        let of = stats.attributes.clone().unwrap_or_default().id;
        let set = stats
            .memory
            .unwrap_or_default()
            .working_set_bytes
            .unwrap_or_default();
        ensure!(of != id || set.value == 0, "{stats:?}");
    }
    Ok(())
}

async fn of_pod(s: &Scene, id: &str) -> Result<cri::PodSandboxStats, tonic::Status> {
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: id.into(),
    };
    let answer = s
        .cri
        .runtime()
        .pod_sandbox_stats(request)
        .await?
        .into_inner();
    answer
        .stats
        .ok_or_else(|| tonic::Status::internal("no stats"))
}

/// A kubelet names the cgroup of each pod, and some servers look for a pod's figures there.
pub fn with_a_cgroup(s: &Scene, name: &str) -> PodSandboxConfig {
    let parent = format!("{}/{name}", s.cgroup_parent());
    s.pod(name).linux(|linux| linux.cgroup_parent = parent)
}

async fn a_pods_figures_have_those_of_its_containers(s: &Scene) -> Result<()> {
    let pod = s.run(with_a_cgroup(s, "pod")).await?;
    let id = s
        .start(&pod, &s.container("sleeper", &["sleep", "1000"]))
        .await?;
    let stats = of_pod(s, &pod.id).await?;
    let attributes = stats.attributes.context("no attributes")?;
    ensure!(
        attributes.id == pod.id
            && attributes.metadata == pod.config.metadata
            && attributes.labels == pod.config.labels,
        "{attributes:?}"
    );
    let linux = stats.linux.context("no figures of Linux")?;
    let ids: Vec<String> = linux
        .containers
        .iter()
        .map(|stats| stats.attributes.clone().unwrap_or_default().id)
        .collect();
    ensure!(ids == [id], "{ids:?}");
    ensure!(linux.cpu.is_some_and(|cpu| cpu.timestamp > 0), "{linux:?}");
    let memory = linux.memory.unwrap_or_default();
    ensure!(
        memory.working_set_bytes.unwrap_or_default().value > 0,
        "{linux:?}"
    );
    let processes = linux.process.unwrap_or_default().process_count;
    ensure!(processes.unwrap_or_default().value >= 1, "{linux:?}");
    if !s.host_network {
        let network = linux.network.clone().context("no figures of the network")?;
        let interface = network.default_interface.unwrap_or_default();
        ensure!(
            !interface.name.is_empty() && interface.rx_bytes.is_some(),
            "{linux:?}"
        );
    }
    Ok(())
}

async fn an_unknown_pod_is_not_found(s: &Scene) -> Result<()> {
    refused(of_pod(s, &unknown_id()).await, &[Code::NotFound])
}

async fn a_filter_finds_the_pods_that_it_says(s: &Scene) -> Result<()> {
    let a = s.run(with_a_cgroup(s, "a")).await?;
    let b = s.run(with_a_cgroup(s, "b")).await?;
    let of = async |filter: PodSandboxStatsFilter| -> Result<Vec<String>> {
        let filter = Some(filter);
        let answer = s
            .cri
            .runtime()
            .list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter })
            .await;
        let stats = answer?.into_inner().stats;
        let ids = stats
            .into_iter()
            .map(|stats| stats.attributes.unwrap_or_default().id);
        let mut ids: Vec<String> = ids.collect();
        ids.sort_unstable();
        Ok(ids)
    };
    let by_id = PodSandboxStatsFilter {
        id: a.id.clone(),
        ..Default::default()
    };
    ensure!(of(by_id).await? == [&a.id[..]]);
    let by_label = PodSandboxStatsFilter {
        label_selector: s.own().label_selector,
        ..Default::default()
    };
    let mut both = [a.id, b.id];
    both.sort_unstable();
    ensure!(of(by_label).await? == both);
    let none = PodSandboxStatsFilter {
        id: unknown_id(),
        ..Default::default()
    };
    ensure!(of(none).await?.is_empty());
    Ok(())
}

async fn descriptors(s: &Scene) -> Result<BTreeMap<String, Vec<String>>> {
    let answer = s
        .cri
        .runtime()
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await;
    let list = answer?.into_inner().descriptors;
    let count = list.len();
    let by_name: BTreeMap<String, Vec<String>> = list
        .into_iter()
        .map(|descriptor| (descriptor.name, descriptor.label_keys))
        .collect();
    ensure!(by_name.len() == count, "two descriptors have one name");
    Ok(by_name)
}

async fn every_metric_has_a_descriptor_of_its_own(s: &Scene) -> Result<()> {
    let descriptors = descriptors(s).await?;
    ensure!(!descriptors.is_empty());
    ensure!(!descriptors.contains_key(""), "one has no name");
    Ok(())
}

async fn every_metric_is_a_described_one_with_its_labels(s: &Scene) -> Result<()> {
    let descriptors = descriptors(s).await?;
    let (pod, id) = s.a_sleeper().await?;
    let answer = s
        .cri
        .runtime()
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await;
    let pods = answer?.into_inner().pod_metrics;
    let own = pods.iter().find(|other| other.pod_sandbox_id == pod.id);
    let own = own.context("the pod has no metrics")?;
    let of_container = own
        .container_metrics
        .iter()
        .find(|other| other.container_id == id);
    let of_container = of_container.context("the container has no metrics")?;
    ensure!(!of_container.metrics.is_empty());
    for metric in own.metrics.iter().chain(&of_container.metrics) {
        let keys = descriptors.get(&metric.name);
        let keys = keys.with_context(|| format!("{} has no descriptor", metric.name))?;
        ensure!(
            keys.len() == metric.label_values.len(),
            "{keys:?} of {metric:?}"
        );
    }
    Ok(())
}

async fn the_stream_tells_of_the_pods_that_the_list_has(s: &Scene) -> Result<()> {
    let (pod, _) = s.a_sleeper().await?;
    let answer = s
        .cri
        .runtime()
        .stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {})
        .await;
    let mut stream = answer?.into_inner();
    let mut ids = vec![];
    while let Some(part) = stream.message().await? {
        ids.extend(
            part.pod_sandbox_metrics
                .into_iter()
                .map(|pod| pod.pod_sandbox_id),
        );
    }
    ensure!(ids.contains(&pod.id), "{ids:?}");
    Ok(())
}
