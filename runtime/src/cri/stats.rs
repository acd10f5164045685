//! ContainerStats, PodSandboxStats and their lists: cgroup figures from the shims, the writable layer from the image store.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

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

/// Two samples closer together say little about a rate: then the last rate is told again.
const MIN_SAMPLE_NS: i64 = 100_000_000;

/// The last CPU sample of each container, for `usage_nano_cores`.
#[derive(Debug, Default)]
pub struct CpuSamples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    timestamp: i64,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

impl CpuSamples {
    /// Notes a sample; the rate since the one before it in nanocores (10⁹ = one core), where there is one.
    pub fn rate(&self, id: &str, timestamp: i64, usage_ns: u64) -> Option<u64> {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.get(id).copied();
        let nano_cores = match before {
            Some(before) if timestamp - before.timestamp < MIN_SAMPLE_NS => {
                return before.nano_cores;
            }
            Some(before) => {
                let used = u128::from(usage_ns.saturating_sub(before.usage_ns));
                let passed = (timestamp - before.timestamp) as u128;
                Some((used * 1_000_000_000 / passed) as u64)
            }
            None => None,
        };
        samples.insert(
            id.to_owned(),
            Sample {
                timestamp,
                usage_ns,
                nano_cores,
            },
        );
        nano_cores
    }

    pub fn forget(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

pub async fn container_stats(
    service: &Service,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    let figures = match &pod.shim {
        Some(shim) if is_running(&container) => {
            shim.stats(vec![container.record.id.clone()]).await?
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
    let each = pods
        .into_iter()
        .map(|(pod, containers)| of_pod(&service.registry.node, pod, containers));
    let stats = join_all(each)
        .await
        .into_iter()
        .flatten()
        .map(|(stats, _)| stats)
        .collect();
    ListContainerStatsResponse { stats }
}

pub async fn pod_sandbox_stats(
    service: &Service,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Error> {
    let view = service.registry.pod(&request.pod_sandbox_id)?.view();
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

fn is_running(container: &ContainerView) -> bool {
    container.state == ContainerState::ContainerRunning
}

/// Figures of these containers of one pod, in one question to its shim; with each the number of its processes.
async fn of_pod(
    node: &Arc<Node>,
    pod: Arc<PodView>,
    containers: Vec<ContainerView>,
) -> Vec<(ContainerStats, u64)> {
    let Some(shim) = pod.shim.clone().filter(|_| !containers.is_empty()) else {
        return vec![];
    };
    let ids = containers.iter().map(|c| c.record.id.clone()).collect();
    let figures = match shim.stats(ids).await {
        Ok(figures) => figures,
        Err(e) => {
            tracing::warn!(pod = %pod.pod.id, "stats: {e}");
            return vec![];
        }
    };
    let node = node.clone();
    let work = move || {
        let of = |c: &ContainerView| figures.iter().find(|f| f.id == c.record.id);
        containers
            .iter()
            .map(|c| (one(&node, c, of(c)), of(c).map_or(0, |f| f.pids)))
            .collect()
    };
    off_the_loop(work).await.unwrap_or_default()
}

/// Walking a writable layer can take long.
async fn off_the_loop<T: Send + 'static>(
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
            tracing::debug!(container = %record.id, "writable layer: {e}");
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
        let at = figures.timestamp;
        stats.cpu = figures.cpu.as_ref().map(|cpu| CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: value(cpu.usage_ns),
            usage_nano_cores: node.cpu.rate(&record.id, at, cpu.usage_ns).and_then(value),
            psi: None,
        });
        stats.memory = figures
            .memory
            .as_ref()
            .map(|memory| memory_usage(at, memory));
        stats.swap = figures.memory.as_ref().map(|memory| SwapUsage {
            timestamp: at,
            swap_available_bytes: value(0),
            swap_usage_bytes: value(memory.swap_usage),
        });
    }
    stats
}

fn memory_usage(at: i64, memory: &v1::MemoryStats) -> MemoryUsage {
    let available = match memory.limit {
        0 => 0,
        limit => limit.saturating_sub(memory.working_set),
    };
    MemoryUsage {
        timestamp: at,
        working_set_bytes: value(memory.working_set),
        available_bytes: value(available),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: None,
    }
}

async fn pod_stats(node: &Arc<Node>, pod: Arc<PodView>) -> PodSandboxStats {
    let running = pod.containers.iter().filter(|c| is_running(c)).cloned();
    let running: Vec<ContainerView> = running.collect();
    let figures = of_pod(node, pod.clone(), running).await;
    let now = now_ns();
    let processes = figures.iter().map(|(_, pids)| pids).sum();
    let containers: Vec<ContainerStats> = figures.into_iter().map(|(stats, _)| stats).collect();
    let config = &pod.pod.config;
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.pod.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(sum_cpu(now, &containers)),
            memory: Some(sum_memory(now, &containers)),
            network: network(now, node, &pod).await,
            process: Some(ProcessUsage {
                timestamp: now,
                process_count: value(processes),
            }),
            containers,
            io: None,
        }),
        windows: None,
    }
}

fn sum_cpu(now: i64, containers: &[ContainerStats]) -> CpuUsage {
    let all = || containers.iter().filter_map(|c| c.cpu.as_ref());
    CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: value(all().map(|c| of(c.usage_core_nano_seconds)).sum()),
        usage_nano_cores: value(all().map(|c| of(c.usage_nano_cores)).sum()),
        psi: None,
    }
}

fn sum_memory(now: i64, containers: &[ContainerStats]) -> MemoryUsage {
    let sum = |field: fn(&MemoryUsage) -> Option<UInt64Value>| {
        let all = containers.iter().filter_map(|c| c.memory.as_ref());
        value(all.map(|m| of(field(m))).sum())
    };
    MemoryUsage {
        timestamp: now,
        working_set_bytes: sum(|m| m.working_set_bytes),
        available_bytes: value(0),
        usage_bytes: sum(|m| m.usage_bytes),
        rss_bytes: sum(|m| m.rss_bytes),
        page_faults: sum(|m| m.page_faults),
        major_page_faults: sum(|m| m.major_page_faults),
        psi: None,
    }
}

/// Of each of the pod's interfaces but lo; `None` on the node's network, and where the pod has just gone.
async fn network(now: i64, node: &Node, pod: &PodView) -> Option<NetworkUsage> {
    if !pod.ready || pod.netns.is_empty() {
        return None;
    }
    let counted = node.network.statistics(&pod.pod.id).await;
    let counted = counted.inspect_err(|e| tracing::debug!(pod = %pod.pod.id, "{e}"));
    let interfaces: Vec<_> = counted
        .ok()?
        .into_iter()
        .map(|counters| NetworkInterfaceUsage {
            name: counters.name,
            rx_bytes: value(counters.rx_bytes),
            rx_errors: value(counters.rx_errors),
            tx_bytes: value(counters.tx_bytes),
            tx_errors: value(counters.tx_errors),
        })
        .collect();
    Some(NetworkUsage {
        timestamp: now,
        default_interface: interfaces
            .iter()
            .find(|interface| interface.name == pod.interface)
            .cloned(),
        interfaces,
    })
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn of(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_samples_and_some_time_between_them() {
        let samples = CpuSamples::default();
        let second = 1_000_000_000;
        assert_eq!(samples.rate("a", second, 0), None);
        assert_eq!(
            samples.rate("a", 2 * second, 500_000_000),
            Some(500_000_000)
        );
        assert_eq!(
            samples.rate("a", 2 * second + 1, 900_000_000),
            Some(500_000_000),
            "too soon: the last rate"
        );
        assert_eq!(samples.rate("a", 3 * second, 500_000_000), Some(0));
        assert_eq!(
            samples.rate("a", 4 * second, 0),
            Some(0),
            "a counter never counts back"
        );
        samples.forget("a");
        assert_eq!(samples.rate("a", 5 * second, 0), None);
    }
}
