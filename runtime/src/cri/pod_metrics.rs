//! ListPodSandboxMetrics: what [`metric_descriptors`](super::metric_descriptors) describes, read for each answer.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, OnceLock},
};

use berth_network::InterfaceStatistics;
use berth_proto::{cri::*, shim::v1::pod as v1};
use futures_util::future::join_all;

use super::{
    Service,
    metric_descriptors::{self as metric, BASE_LABELS, Descriptor},
    stats::{figures, interfaces, is_running, off_the_loop},
};
use crate::{
    node::Node,
    pod::{
        record::now_ns,
        view::{ContainerView, PodView},
    },
};

const NS_PER_S: u64 = 1_000_000_000;
const US_PER_S: u64 = 1_000_000;
/// The kernel's own figures for "no limit" lie above.
const UNLIMITED: i64 = 1 << 62;

/// Of the pods that are ready, and of their containers that run.
pub async fn list(service: &Service) -> Vec<PodSandboxMetrics> {
    let views = service.registry.views().into_iter().filter(|pod| pod.ready);
    join_all(views.map(|pod| of_pod(service.registry.node.clone(), pod))).await
}

async fn of_pod(node: Arc<Node>, pod: Arc<PodView>) -> PodSandboxMetrics {
    let running: Vec<_> = pod
        .containers
        .iter()
        .filter(|c| is_running(c))
        .cloned()
        .collect();
    let request = v1::StatsRequest {
        pod: true,
        files: true,
        ..Default::default()
    };
    let told = figures(&pod, &running, request).await;
    let mut metrics = Readings::of(&pod, None);
    for interface in interfaces(&node, &pod).await.unwrap_or_default() {
        network(&mut metrics, &interface);
    }
    if let Some(own) = told.pod.as_ref() {
        metrics.at = own.timestamp;
        cgroup(&mut metrics, own);
    }
    let of_containers = {
        let pod = pod.clone();
        off_the_loop(move || {
            let of = |c: &ContainerView| {
                let told = told.containers.iter().find(|t| t.id == c.record.id)?;
                Some(of_container(&node, &pod, c, told))
            };
            running.iter().filter_map(of).collect()
        })
    };
    PodSandboxMetrics {
        pod_sandbox_id: pod.pod.id.clone(),
        metrics: metrics.list,
        container_metrics: of_containers.await.unwrap_or_default(),
    }
}

fn of_container(
    node: &Node,
    pod: &PodView,
    container: &ContainerView,
    told: &v1::ContainerStats,
) -> ContainerMetrics {
    let mut metrics = Readings::of(pod, Some(container));
    metrics.at = told.timestamp;
    metrics.add(&metric::LAST_SEEN, &[], told.timestamp as u64 / NS_PER_S);
    let started = container.started_at as u64 / NS_PER_S;
    metrics.add(&metric::START_TIME, &[], started);
    cgroup(&mut metrics, told);
    processes(&mut metrics, told);
    filesystem(&mut metrics, node, &container.record.id);
    specified(&mut metrics, &container.record.resources);
    ContainerMetrics {
        container_id: container.record.id.clone(),
        metrics: metrics.list,
    }
}

/// Metrics of one pod or container.
struct Readings {
    base: [String; BASE_LABELS.len()],
    at: i64,
    list: Vec<Metric>,
}

impl Readings {
    fn of(pod: &PodView, container: Option<&ContainerView>) -> Self {
        let metadata = pod.pod.config.metadata.clone().unwrap_or_default();
        let (name, id, image, cgroup) = match container {
            None => (
                String::new(),
                &pod.pod.id,
                String::new(),
                pod.pod.cgroup_parent.clone(),
            ),
            Some(container) => {
                let config = &container.record.config;
                let image = config.image.clone().unwrap_or_default();
                (
                    config.metadata.clone().unwrap_or_default().name,
                    &container.record.id,
                    match image.user_specified_image {
                        named if named.is_empty() => image.image,
                        named => named,
                    },
                    pod.pod.container_cgroup(&container.record.id),
                )
            }
        };
        let cgroup = cgroup.display().to_string();
        Self {
            base: [
                name,
                cgroup,
                image,
                id.clone(),
                metadata.namespace,
                metadata.name,
            ],
            at: now_ns(),
            list: Vec::with_capacity(metric::ALL.len()),
        }
    }

    fn add(&mut self, of: &Descriptor, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), of.labels.len(), "{}", of.name);
        self.list.push(Metric {
            name: of.name.into(),
            timestamp: self.at,
            metric_type: of.kind.into(),
            label_values: self
                .base
                .iter()
                .map(String::as_str)
                .chain(labels.iter().copied())
                .map(str::to_owned)
                .collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

/// What the kernel counts for a cgroup: a container's or the pod's.
fn cgroup(metrics: &mut Readings, told: &v1::ContainerStats) {
    if let Some(cpu) = told.cpu.as_ref() {
        for (of, labels, value) in [
            (&metric::CPU_USAGE, &["total"][..], cpu.usage_ns / NS_PER_S),
            (&metric::CPU_USER, &[], cpu.user_ns / NS_PER_S),
            (&metric::CPU_SYSTEM, &[], cpu.system_ns / NS_PER_S),
            (&metric::CFS_PERIODS, &[], cpu.nr_periods),
            (&metric::CFS_THROTTLED_PERIODS, &[], cpu.nr_throttled),
            (&metric::CFS_THROTTLED, &[], cpu.throttled_ns / NS_PER_S),
        ] {
            metrics.add(of, labels, value);
        }
    }
    if let Some(memory) = told.memory.as_ref() {
        for (of, value) in [
            (&metric::MEMORY_USAGE, memory.usage),
            (&metric::MEMORY_WORKING_SET, memory.working_set),
            (&metric::MEMORY_MAX_USAGE, memory.max_usage),
            (&metric::MEMORY_RSS, memory.rss),
            (&metric::MEMORY_CACHE, memory.cache),
            (&metric::MEMORY_MAPPED_FILE, memory.mapped_file),
            (&metric::MEMORY_KERNEL, memory.kernel),
            (&metric::MEMORY_SWAP, memory.swap_usage.unwrap_or(0)),
            (&metric::MEMORY_ACTIVE_FILE, memory.active_file),
            (&metric::MEMORY_INACTIVE_FILE, memory.inactive_file),
            (&metric::MEMORY_FAILCNT, memory.failcnt),
        ] {
            metrics.add(of, &[], value);
        }
        for (labels, value) in [
            (["pgfault", "container"], memory.own_page_faults),
            (["pgmajfault", "container"], memory.own_major_page_faults),
            (["pgfault", "hierarchy"], memory.page_faults),
            (["pgmajfault", "hierarchy"], memory.major_page_faults),
        ] {
            metrics.add(&metric::MEMORY_FAILURES, &labels, value);
        }
    }
    metrics.add(&metric::OOM_EVENTS, &[], told.oom_kills);
    for pages in &told.huge_pages {
        let size = [pages.size.as_str()];
        metrics.add(&metric::HUGETLB_USAGE, &size, pages.usage);
        if let Some(max) = pages.max_usage {
            metrics.add(&metric::HUGETLB_MAX_USAGE, &size, max);
        }
    }
    for device in &told.devices {
        block_device(metrics, device);
    }
    for (pressure, stalled, waiting) in [
        (
            &told.cpu_pressure,
            &metric::CPU_STALLED,
            &metric::CPU_WAITING,
        ),
        (
            &told.memory_pressure,
            &metric::MEMORY_STALLED,
            &metric::MEMORY_WAITING,
        ),
        (&told.io_pressure, &metric::IO_STALLED, &metric::IO_WAITING),
    ] {
        if let Some(pressure) = pressure.as_ref() {
            metrics.add(stalled, &[], pressure.full.total_us / US_PER_S);
            metrics.add(waiting, &[], pressure.some.total_us / US_PER_S);
        }
    }
}

fn block_device(metrics: &mut Readings, of: &v1::DeviceStats) {
    let (major, minor) = (of.major.to_string(), of.minor.to_string());
    let device = device_name(&major, &minor);
    let name = [device.as_str()];
    metrics.add(&metric::FS_READ_BYTES, &name, of.read_bytes);
    metrics.add(&metric::FS_READS, &name, of.reads);
    metrics.add(&metric::FS_WRITTEN_BYTES, &name, of.write_bytes);
    metrics.add(&metric::FS_WRITES, &name, of.writes);
    for (operation, bytes) in [("Read", of.read_bytes), ("Write", of.write_bytes)] {
        let labels = [device.as_str(), &major, &minor, operation];
        metrics.add(&metric::BLKIO, &labels, bytes);
    }
}

fn network(metrics: &mut Readings, of: &InterfaceStatistics) {
    for (descriptor, value) in [
        (&metric::NETWORK_RX_BYTES, of.rx_bytes),
        (&metric::NETWORK_RX_PACKETS, of.rx_packets),
        (&metric::NETWORK_RX_DROPPED, of.rx_dropped),
        (&metric::NETWORK_RX_ERRORS, of.rx_errors),
        (&metric::NETWORK_TX_BYTES, of.tx_bytes),
        (&metric::NETWORK_TX_PACKETS, of.tx_packets),
        (&metric::NETWORK_TX_DROPPED, of.tx_dropped),
        (&metric::NETWORK_TX_ERRORS, of.tx_errors),
    ] {
        metrics.add(descriptor, &[&of.name], value);
    }
}

fn processes(metrics: &mut Readings, told: &v1::ContainerStats) {
    metrics.add(&metric::PROCESSES, &[], told.processes);
    metrics.add(&metric::THREADS, &[], told.pids);
    metrics.add(&metric::THREADS_MAX, &[], told.pids_limit);
    if let Some(files) = told.files.as_ref() {
        metrics.add(&metric::FILE_DESCRIPTORS, &[], files.descriptors);
        metrics.add(&metric::SOCKETS, &[], files.sockets);
        if let Some(limit) = files.max_open_files {
            metrics.add(&metric::ULIMITS_SOFT, &["max_open_files"], limit);
        }
    }
}

/// Of the file system below the container's writable layer; its use is the container's own.
fn filesystem(metrics: &mut Readings, node: &Node, id: &str) {
    let root = node.config.root.join("image");
    let device = [device_below(&root)];
    if let Ok(usage) = node.images.snapshot_usage(id) {
        metrics.add(&metric::FS_USAGE, &device, usage.bytes);
    }
    if let Ok(stat) = rustix::fs::statvfs(&root) {
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        metrics.add(&metric::FS_LIMIT, &device, size);
        metrics.add(&metric::FS_INODES, &device, stat.f_files);
        metrics.add(&metric::FS_INODES_FREE, &device, stat.f_ffree);
    }
}

/// Limits as they were asked for, and changed since.
fn specified(metrics: &mut Readings, of: &LinuxContainerResources) {
    let limit = |bytes: i64| match bytes {
        0..UNLIMITED => bytes as u64,
        _ => 0,
    };
    let reserved = of
        .unified
        .get("memory.min")
        .and_then(|m| m.trim().parse().ok());
    for (descriptor, value) in [
        (&metric::SPEC_CPU_PERIOD, of.cpu_period.max(0) as u64),
        (&metric::SPEC_CPU_SHARES, of.cpu_shares.max(0) as u64),
        (&metric::SPEC_MEMORY_LIMIT, limit(of.memory_limit_in_bytes)),
        (
            &metric::SPEC_MEMORY_RESERVATION,
            limit(reserved.unwrap_or(0)),
        ),
        (
            &metric::SPEC_MEMORY_SWAP_LIMIT,
            limit(of.memory_swap_limit_in_bytes),
        ),
    ] {
        metrics.add(descriptor, &[], value);
    }
    if of.cpu_quota > 0 {
        metrics.add(&metric::SPEC_CPU_QUOTA, &[], of.cpu_quota as u64);
    }
}

/// `/dev/sda`, or the numbers where the kernel has no such name (a file system without a device).
fn device_name(major: &str, minor: &str) -> String {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    uevent
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|l| l.strip_prefix("DEVNAME=").map(str::to_owned))
        })
        .map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

/// The device of the file system that `path` is on. A daemon has one root, which does not move while it runs.
fn device_below(path: &Path) -> &'static str {
    static DEVICE: OnceLock<String> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let device = fs::metadata(path).map_or(0, |meta| meta.dev());
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        device_name(&major.to_string(), &minor.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings() -> Readings {
        Readings {
            base: Default::default(),
            at: 7,
            list: vec![],
        }
    }

    fn value(metrics: &Readings, of: &Descriptor, labels: &[&str]) -> Option<u64> {
        let metric = metrics.list.iter().find(|metric| {
            metric.name == of.name && metric.label_values[BASE_LABELS.len()..] == *labels
        });
        metric
            .and_then(|metric| metric.value)
            .map(|value| value.value)
    }

    #[test]
    fn what_the_kernel_does_not_offer_is_absent_and_not_zero() {
        let mut metrics = readings();
        cgroup(&mut metrics, &v1::ContainerStats::default());
        assert_eq!(value(&metrics, &metric::CPU_WAITING, &[]), None);
        assert_eq!(value(&metrics, &metric::HUGETLB_USAGE, &["2MB"]), None);
        let stall = |total_us| v1::StallStats {
            total_us,
            ..Default::default()
        };
        let told = v1::ContainerStats {
            io_pressure: Some(v1::PressureStats {
                some: Some(stall(2_500_000)).into(),
                full: Some(stall(1_000_000)).into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        cgroup(&mut metrics, &told);
        assert_eq!(value(&metrics, &metric::IO_WAITING, &[]), Some(2));
        assert_eq!(value(&metrics, &metric::IO_STALLED, &[]), Some(1));
        assert_eq!(value(&metrics, &metric::CPU_STALLED, &[]), None);
    }

    #[test]
    fn no_limit_is_zero_and_no_quota_is_absent() {
        let mut metrics = readings();
        let unlimited = LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: i64::MAX,
            memory_swap_limit_in_bytes: -1,
            ..Default::default()
        };
        specified(&mut metrics, &unlimited);
        assert_eq!(value(&metrics, &metric::SPEC_MEMORY_LIMIT, &[]), Some(0));
        assert_eq!(
            value(&metrics, &metric::SPEC_MEMORY_SWAP_LIMIT, &[]),
            Some(0)
        );
        assert_eq!(value(&metrics, &metric::SPEC_CPU_QUOTA, &[]), None);
    }

    #[test]
    fn a_device_is_named_as_the_kernel_names_it() {
        assert_eq!(device_name("0", "9999"), "0:9999");
        // /dev/loop0 has these numbers on every Linux that has it.
        if Path::new("/sys/dev/block/7:0").exists() {
            assert_eq!(device_name("7", "0"), "/dev/loop0");
        }
    }
}
