//! ContainerStats, PodSandboxStats and their lists: cgroup figures from the shims, the writable layer from the image store, traffic from
//! the pod's network namespace. What the kernel does not offer is absent, never 0.

use std::sync::Arc;

use berth_proto::{cri::*, shim::v1::pod as v1};
use futures_util::future::join_all;

use super::{Service, filter};
use crate::{
    error::Error,
    node::Node,
    pod::{
        record::now_ns,
        view::{ContainerView, PodView},
    },
};

pub async fn container_stats(
    service: &Service,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    let figures = match &pod.shim {
        Some(shim) if is_running(&container) => {
            let request = v1::StatsRequest {
                container_ids: vec![container.record.id.clone()],
                ..Default::default()
            };
            shim.stats(request).await?.containers
        }
        _ => vec![],
    };
    let node = service.registry.node.clone();
    let stats = off_the_loop(move || one(&node, &container, figures.first())).await?;
    Ok(ContainerStatsResponse { stats: Some(stats) })
}

/// Of the containers that run. A pod whose shim does not answer in time is left out: the others' figures are not to wait for it.
pub async fn list_container_stats(
    service: &Service,
    request: ListContainerStatsRequest,
) -> ListContainerStatsResponse {
    let asked = request.filter.unwrap_or_default();
    let pods: Vec<_> = service
        .registry
        .views()
        .into_iter()
        .filter(|pod| filter::id(&asked.pod_sandbox_id, &pod.pod.id))
        .map(|pod| {
            let fitting: Vec<ContainerView> = pod
                .containers
                .iter()
                .filter(|c| {
                    is_running(c)
                        && filter::id(&asked.id, &c.record.id)
                        && filter::labels(&asked.label_selector, &c.record.config.labels)
                })
                .cloned()
                .collect();
            (pod, fitting)
        })
        .collect();
    let each = pods.into_iter().map(|(pod, containers)| async move {
        let figures = figures(&pod, &containers, v1::StatsRequest::default()).await;
        each_of(&service.registry.node, containers, figures.containers).await
    });
    let stats = join_all(each).await.into_iter().flatten().collect();
    ListContainerStatsResponse { stats }
}

pub async fn pod_sandbox_stats(
    service: &Service,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Error> {
    let view = service.registry.pod(&request.pod_sandbox_id)?.view();
    if !view.listed {
        return Err(Error::NotFound {
            what: "pod sandbox",
            id: request.pod_sandbox_id,
        });
    }
    let stats = pod_stats(&service.registry.node, view).await;
    Ok(PodSandboxStatsResponse { stats: Some(stats) })
}

pub async fn list_pod_sandbox_stats(
    service: &Service,
    request: ListPodSandboxStatsRequest,
) -> ListPodSandboxStatsResponse {
    let asked = request.filter.unwrap_or_default();
    let each = service
        .registry
        .views()
        .into_iter()
        .filter(|pod| {
            pod.ready
                && filter::id(&asked.id, &pod.pod.id)
                && filter::labels(&asked.label_selector, &pod.pod.config.labels)
        })
        .map(|pod| pod_stats(&service.registry.node, pod));
    ListPodSandboxStatsResponse {
        stats: join_all(each).await,
    }
}

pub(super) fn is_running(container: &ContainerView) -> bool {
    container.state == ContainerState::ContainerRunning
}

/// What the pod's shim says of these containers, and of what else `request` asks for, in one question. Nothing where it does not answer.
pub(super) async fn figures(
    pod: &PodView,
    containers: &[ContainerView],
    mut request: v1::StatsRequest,
) -> v1::StatsResponse {
    request.container_ids = containers.iter().map(|c| c.record.id.clone()).collect();
    let Some(shim) = &pod.shim else {
        return v1::StatsResponse::default();
    };
    if containers.is_empty() && !request.pod {
        return v1::StatsResponse::default();
    }
    shim.stats(request).await.unwrap_or_else(|e| {
        tracing::warn!(pod_id = %pod.pod.id, "stats: {e}");
        v1::StatsResponse::default()
    })
}

/// Those that the shim has figures of: one that has just ended, or whose shim does not answer, is left out.
async fn each_of(
    node: &Arc<Node>,
    containers: Vec<ContainerView>,
    figures: Vec<v1::ContainerStats>,
) -> Vec<ContainerStats> {
    let node = node.clone();
    let work = move || {
        let with = |c: &ContainerView| figures.iter().find(|f| f.id == c.record.id);
        containers
            .iter()
            .filter_map(|c| Some(one(&node, c, Some(with(c)?))))
            .collect()
    };
    off_the_loop(work).await.unwrap_or_default()
}

/// Walking a writable layer can take long.
pub(super) async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Panicked("stats"))
}

fn one(
    node: &Node,
    container: &ContainerView,
    figures: Option<&v1::ContainerStats>,
) -> ContainerStats {
    let record = &container.record;
    let config = &record.config;
    let writable_layer = match node.images.snapshot_usage(&record.id) {
        Ok(usage) => Some(FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: node.config.root.join("image").display().to_string(),
            }),
            used_bytes: value(usage.bytes),
            inodes_used: value(usage.inodes),
        }),
        Err(e) => {
            tracing::debug!(container_id = %record.id, "writable layer: {e}");
            None
        }
    };
    let mut stats = ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        writable_layer,
        ..Default::default()
    };
    if let Some(figures) = figures {
        stats.cpu = cpu(node, &record.id, figures);
        stats.memory = memory(figures);
        stats.swap = swap(figures);
        stats.io = io(figures);
    }
    stats
}

fn cpu(node: &Node, id: &str, figures: &v1::ContainerStats) -> Option<CpuUsage> {
    let (at, cpu) = (figures.timestamp, figures.cpu.as_ref()?);
    Some(CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(cpu.usage_ns),
        usage_nano_cores: node.cpu.rate(id, at, cpu.usage_ns).and_then(value),
        psi: psi(&figures.cpu_pressure),
    })
}

fn memory(figures: &v1::ContainerStats) -> Option<MemoryUsage> {
    let memory = figures.memory.as_ref()?;
    let available = (memory.limit != 0).then(|| memory.limit.saturating_sub(memory.working_set));
    Some(MemoryUsage {
        timestamp: figures.timestamp,
        working_set_bytes: value(memory.working_set),
        available_bytes: available.and_then(value),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: psi(&figures.memory_pressure),
    })
}

fn swap(figures: &v1::ContainerStats) -> Option<SwapUsage> {
    let memory = figures.memory.as_ref()?;
    let usage = memory.swap_usage?;
    let available = memory.swap_limit.map(|limit| limit.saturating_sub(usage));
    Some(SwapUsage {
        timestamp: figures.timestamp,
        swap_available_bytes: available.and_then(value),
        swap_usage_bytes: value(usage),
    })
}

fn io(figures: &v1::ContainerStats) -> Option<IoUsage> {
    Some(IoUsage {
        timestamp: figures.timestamp,
        psi: Some(psi(&figures.io_pressure)?),
    })
}

fn psi(pressure: &protobuf::MessageField<v1::PressureStats>) -> Option<PsiStats> {
    let stall = |stall: &v1::StallStats| PsiData {
        total: stall.total_us,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    pressure.as_ref().map(|pressure| PsiStats {
        full: pressure.full.as_ref().map(stall),
        some: pressure.some.as_ref().map(stall),
    })
}

async fn pod_stats(node: &Arc<Node>, pod: Arc<PodView>) -> PodSandboxStats {
    let running: Vec<_> = pod
        .containers
        .iter()
        .filter(|c| is_running(c))
        .cloned()
        .collect();
    let request = v1::StatsRequest {
        pod: true,
        ..Default::default()
    };
    let figures = figures(&pod, &running, request).await;
    // Before its first container a pod has no cgroup, and nothing in it.
    let own = figures
        .pod
        .into_option()
        .unwrap_or_else(|| v1::ContainerStats {
            timestamp: now_ns(),
            cpu: Some(v1::CpuStats::default()).into(),
            memory: Some(v1::MemoryStats::default()).into(),
            ..Default::default()
        });
    let config = &pod.pod.config;
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.pod.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: cpu(node, &pod.pod.id, &own),
            memory: memory(&own),
            network: network(node, &pod).await,
            process: Some(ProcessUsage {
                timestamp: own.timestamp,
                process_count: value(own.processes),
            }),
            containers: each_of(node, running, figures.containers).await,
            io: io(&own),
        }),
        windows: None,
    }
}

/// Of the pod's interfaces but lo; `None` on the node's network, and where the pod has just gone.
async fn network(node: &Node, pod: &PodView) -> Option<NetworkUsage> {
    let mut interfaces: Vec<_> = interfaces(node, pod)
        .await?
        .into_iter()
        .map(|counters| NetworkInterfaceUsage {
            name: counters.name,
            rx_bytes: value(counters.rx_bytes),
            rx_errors: value(counters.rx_errors),
            tx_bytes: value(counters.tx_bytes),
            tx_errors: value(counters.tx_errors),
        })
        .collect();
    let default = interfaces.iter().position(|i| i.name == pod.interface);
    Some(NetworkUsage {
        timestamp: now_ns(),
        default_interface: default.map(|at| interfaces.remove(at)),
        interfaces,
    })
}

/// The counters behind [`network`].
pub(super) async fn interfaces(
    node: &Node,
    pod: &PodView,
) -> Option<Vec<berth_network::InterfaceStatistics>> {
    if !pod.ready || pod.netns.is_empty() {
        return None;
    }
    let counted = node.network.statistics(&pod.pod.id).await;
    let counted = counted.inspect_err(|e| tracing::debug!(pod_id = %pod.pod.id, "{e}"));
    counted.ok()
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
