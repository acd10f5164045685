//! The metrics of ListPodSandboxMetrics: cAdvisor's names and labels, which dashboards and alerts ask for. The kubelet serves them at
//! `/metrics/cadvisor` where it takes its figures from the runtime (KEP-2371).
//!
//! A value is a whole number: where a name says seconds, these are whole seconds.

use berth_proto::cri::{ListMetricDescriptorsResponse, MetricDescriptor, MetricType};

/// What every metric begins with. As cAdvisor has them under a kubelet: `id` is the cgroup, `name` the container's or pod's id; `container`
/// and `image` are empty where a pod is meant.
pub const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// One metric.
#[derive(Debug)]
pub struct Descriptor {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricType,
    /// Beyond [`BASE_LABELS`].
    pub labels: &'static [&'static str],
}

/// Its constants, and the list of all.
macro_rules! descriptors {
    ($($id:ident = $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        $(pub const $id: Descriptor = Descriptor {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &$labels,
        };)*
        pub const ALL: &[&Descriptor] = &[$(&$id),*];
    };
}

descriptors! {
    LAST_SEEN = Gauge "container_last_seen" [] "Unix time at which the figures were read.";
    START_TIME = Gauge "container_start_time_seconds" [] "Unix time at which the container was started.";

    CPU_USAGE = Counter "container_cpu_usage_seconds_total" ["cpu"] "CPU time used, in seconds.";
    CPU_USER = Counter "container_cpu_user_seconds_total" [] "CPU time used in user mode, in seconds.";
    CPU_SYSTEM = Counter "container_cpu_system_seconds_total" [] "CPU time used in the kernel, in seconds.";
    CFS_PERIODS = Counter "container_cpu_cfs_periods_total" [] "Periods of the CPU quota that have passed.";
    CFS_THROTTLED_PERIODS = Counter "container_cpu_cfs_throttled_periods_total" [] "Periods in which the CPU quota ran out.";
    CFS_THROTTLED = Counter "container_cpu_cfs_throttled_seconds_total" [] "Time spent waiting for a new CPU quota, in seconds.";

    MEMORY_USAGE = Gauge "container_memory_usage_bytes" [] "Memory charged, page cache included.";
    MEMORY_WORKING_SET = Gauge "container_memory_working_set_bytes" [] "Memory charged less inactive page cache: what eviction goes by.";
    MEMORY_MAX_USAGE = Gauge "container_memory_max_usage_bytes" [] "The most memory that was ever charged.";
    MEMORY_RSS = Gauge "container_memory_rss" [] "Anonymous memory, in bytes.";
    MEMORY_CACHE = Gauge "container_memory_cache" [] "Page cache, in bytes.";
    MEMORY_MAPPED_FILE = Gauge "container_memory_mapped_file" [] "Mapped files, in bytes.";
    MEMORY_KERNEL = Gauge "container_memory_kernel_usage" [] "Memory of the kernel charged, in bytes.";
    MEMORY_SWAP = Gauge "container_memory_swap" [] "Swap used, in bytes.";
    MEMORY_ACTIVE_FILE = Gauge "container_memory_total_active_file_bytes" [] "Page cache in active use.";
    MEMORY_INACTIVE_FILE = Gauge "container_memory_total_inactive_file_bytes" [] "Page cache that the kernel would reclaim first.";
    MEMORY_FAILCNT = Counter "container_memory_failcnt" [] "How often the memory limit was hit.";
    MEMORY_FAILURES = Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults, by kind, of the container's cgroup and with what is below it.";
    OOM_EVENTS = Counter "container_oom_events_total" [] "Processes that the kernel killed for want of memory.";
    HUGETLB_USAGE = Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use.";
    HUGETLB_MAX_USAGE = Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "The most huge pages that were ever in use.";

    FS_USAGE = Gauge "container_fs_usage_bytes" ["device"] "What the container has written to its root file system.";
    FS_LIMIT = Gauge "container_fs_limit_bytes" ["device"] "Size of the file system that the container writes to.";
    FS_INODES_FREE = Gauge "container_fs_inodes_free" ["device"] "Free inodes of the file system that the container writes to.";
    FS_INODES = Gauge "container_fs_inodes_total" ["device"] "Inodes of the file system that the container writes to.";
    FS_READ_BYTES = Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from the device.";
    FS_READS = Counter "container_fs_reads_total" ["device"] "Reads from the device.";
    FS_WRITTEN_BYTES = Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to the device.";
    FS_WRITES = Counter "container_fs_writes_total" ["device"] "Writes to the device.";
    BLKIO = Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes transferred, by device and direction.";

    NETWORK_RX_BYTES = Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    NETWORK_RX_PACKETS = Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    NETWORK_RX_DROPPED = Counter "container_network_receive_packets_dropped_total" ["interface"] "Received packets that were dropped.";
    NETWORK_RX_ERRORS = Counter "container_network_receive_errors_total" ["interface"] "Errors while receiving.";
    NETWORK_TX_BYTES = Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NETWORK_TX_PACKETS = Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    NETWORK_TX_DROPPED = Counter "container_network_transmit_packets_dropped_total" ["interface"] "Packets to be sent that were dropped.";
    NETWORK_TX_ERRORS = Counter "container_network_transmit_errors_total" ["interface"] "Errors while sending.";

    PROCESSES = Gauge "container_processes" [] "Processes.";
    THREADS = Gauge "container_threads" [] "Threads.";
    THREADS_MAX = Gauge "container_threads_max" [] "Threads that there may be; 0 is no limit.";
    FILE_DESCRIPTORS = Gauge "container_file_descriptors" [] "Open file descriptors of all processes.";
    SOCKETS = Gauge "container_sockets" [] "Open sockets of all processes.";
    ULIMITS_SOFT = Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of the first process. One that is missing is no limit.";

    CPU_STALLED = Counter "container_pressure_cpu_stalled_seconds_total" [] "Time in which all tasks waited for a CPU, in seconds.";
    CPU_WAITING = Counter "container_pressure_cpu_waiting_seconds_total" [] "Time in which a task waited for a CPU, in seconds.";
    MEMORY_STALLED = Counter "container_pressure_memory_stalled_seconds_total" [] "Time in which all tasks waited for memory, in seconds.";
    MEMORY_WAITING = Counter "container_pressure_memory_waiting_seconds_total" [] "Time in which a task waited for memory, in seconds.";
    IO_STALLED = Counter "container_pressure_io_stalled_seconds_total" [] "Time in which all tasks waited for IO, in seconds.";
    IO_WAITING = Counter "container_pressure_io_waiting_seconds_total" [] "Time in which a task waited for IO, in seconds.";

    SPEC_CPU_PERIOD = Gauge "container_spec_cpu_period" [] "Period of the CPU quota, in microseconds.";
    SPEC_CPU_QUOTA = Gauge "container_spec_cpu_quota" [] "CPU quota of a period, in microseconds. None where there is no limit.";
    SPEC_CPU_SHARES = Gauge "container_spec_cpu_shares" [] "CPU shares.";
    SPEC_MEMORY_LIMIT = Gauge "container_spec_memory_limit_bytes" [] "Memory limit; 0 is none.";
    SPEC_MEMORY_RESERVATION = Gauge "container_spec_memory_reservation_limit_bytes" [] "Memory that is not reclaimed for others; 0 is none.";
    SPEC_MEMORY_SWAP_LIMIT = Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap together; 0 is none.";
}

pub fn list() -> ListMetricDescriptorsResponse {
    let descriptors = ALL.iter().map(|metric| MetricDescriptor {
        name: metric.name.into(),
        help: metric.help.into(),
        label_keys: BASE_LABELS
            .iter()
            .chain(metric.labels)
            .map(|key| (*key).to_owned())
            .collect(),
    });
    ListMetricDescriptorsResponse {
        descriptors: descriptors.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_there_once_with_help_and_labels_and_counters_say_so() {
        let mut names = BTreeSet::new();
        for metric in list().descriptors {
            assert!(metric.name.starts_with("container_") && !metric.help.is_empty());
            let keys: BTreeSet<_> = metric.label_keys.iter().collect();
            assert_eq!(keys.len(), metric.label_keys.len(), "{}", metric.name);
            assert!(names.insert(metric.name.clone()), "{} twice", metric.name);
        }
        for metric in ALL {
            let total = metric.name.ends_with("_total") || metric.name == MEMORY_FAILCNT.name;
            // cAdvisor's own inconsistency: how many inodes there are.
            let counter = total && metric.name != FS_INODES.name;
            assert_eq!(
                metric.kind == MetricType::Counter,
                counter,
                "{}",
                metric.name
            );
        }
    }
}
