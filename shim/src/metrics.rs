//! What `Task.Stats` tells: the cgroup's figures as containerd has them, in the message of the machine's cgroup version.

use berth_engine::cgroup::Stats;
use berth_proto::shim::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use protobuf::{Message, MessageField, well_known_types::any::Any};

use crate::error::Error;

/// The figures in an Any of `io.containerd.cgroups.v1.Metrics`, or of `v2.Metrics` on a machine of that version alone.
pub fn encoded(stats: &Stats, unified: bool) -> Result<Any, Error> {
    let (name, bytes) = if unified {
        (
            "io.containerd.cgroups.v2.Metrics",
            unified_metrics(stats).write_to_bytes(),
        )
    } else {
        (
            "io.containerd.cgroups.v1.Metrics",
            metrics(stats).write_to_bytes(),
        )
    };
    Ok(Any {
        type_url: name.into(),
        value: bytes
            .map_err(|error| Error::io("encode the metrics")(std::io::Error::other(error)))?,
        ..Default::default()
    })
}

fn metrics(stats: &Stats) -> v1::Metrics {
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids,
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: stats.cpu_usage_ns,
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: stats.nr_periods,
                throttled_periods: stats.nr_throttled,
                throttled_time: stats.throttled_ns,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            usage: MessageField::some(v1::MemoryEntry {
                usage: stats.memory_usage,
                limit: stats.memory_limit,
                ..Default::default()
            }),
            swap: MessageField::some(v1::MemoryEntry {
                usage: stats.memory_usage + stats.swap_usage.unwrap_or_default(),
                ..Default::default()
            }),
            total_rss: stats.memory_rss,
            rss: stats.memory_rss,
            // Who reads these takes the difference to the usage for the working set.
            total_inactive_file: stats.memory_usage.saturating_sub(stats.memory_working_set),
            total_pg_fault: stats.page_faults,
            total_pg_maj_fault: stats.major_page_faults,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn unified_metrics(stats: &Stats) -> v2::Metrics {
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids,
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: stats.cpu_usage_ns / 1000,
            nr_periods: stats.nr_periods,
            nr_throttled: stats.nr_throttled,
            throttled_usec: stats.throttled_ns / 1000,
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: stats.memory_rss,
            inactive_file: stats.memory_usage.saturating_sub(stats.memory_working_set),
            pgfault: stats.page_faults,
            pgmajfault: stats.major_page_faults,
            usage: stats.memory_usage,
            usage_limit: stats.memory_limit,
            swap_usage: stats.swap_usage.unwrap_or_default(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_come_in_the_message_of_the_machines_version() {
        let stats = Stats {
            cpu_usage_ns: 5_000_000,
            memory_usage: 9000,
            memory_working_set: 7000,
            pids: 3,
            ..Stats::default()
        };
        let old = encoded(&stats, false).unwrap();
        assert_eq!(old.type_url, "io.containerd.cgroups.v1.Metrics");
        let old = v1::Metrics::parse_from_bytes(&old.value).unwrap();
        assert_eq!(old.cpu.usage.total, 5_000_000);
        assert_eq!(
            (old.memory.usage.usage, old.memory.total_inactive_file),
            (9000, 2000)
        );
        let new = encoded(&stats, true).unwrap();
        assert_eq!(new.type_url, "io.containerd.cgroups.v2.Metrics");
        let new = v2::Metrics::parse_from_bytes(&new.value).unwrap();
        assert_eq!(
            (
                new.cpu.usage_usec,
                new.memory.inactive_file,
                new.pids.current
            ),
            (5000, 2000, 3)
        );
    }
}
