//! The figures of containers and of the pod: `berth.shim.v1.Pod/Stats`.

use std::sync::Arc;

use berth_engine::cgroup::{Cgroup, Pressure, Stall, Stats};
use berth_proto::shim::v1::pod::{
    ContainerStats, CpuStats, DeviceStats, HugePageStats, MemoryStats, PressureStats, StallStats,
    StatsRequest, StatsResponse,
};
use protobuf::MessageField;

use crate::{
    clock,
    container::Container,
    error::Error,
    journal, open_files,
    pod::{Pod, Sandbox, blocking},
};

/// Containers that are not there (any more) are left out: the others' figures are not to suffer for it.
pub async fn answer(pod: &Pod, request: StatsRequest) -> Result<StatsResponse, Error> {
    let mut containers = pod.containers();
    if !request.container_ids.is_empty() {
        containers.retain(|container| request.container_ids.contains(&container.id));
    }
    let of_pod = match request.pod {
        true => cgroup(pod),
        false => None,
    };
    blocking("Stats", move || {
        Ok(StatsResponse {
            containers: containers
                .iter()
                .filter_map(|container| of_container(container, request.files))
                .collect(),
            pod: of_pod
                // It comes with the pod's first container.
                .filter(Cgroup::exists)
                .and_then(|cgroup| figures("", &cgroup, None))
                .into(),
            ..Default::default()
        })
    })
    .await
}

/// Of a pod that runs; `None` under another runtime, which names none.
fn cgroup(pod: &Pod) -> Option<Cgroup> {
    let setup = match pod.sandbox() {
        Sandbox::Created { setup } | Sandbox::Running { setup, .. } => setup,
        _ => return None,
    };
    Cgroup::at(&setup.options.cgroup_parent).ok()
}

fn of_container(container: &Arc<Container>, files: bool) -> Option<ContainerStats> {
    let cgroup = container.cgroup.as_ref()?;
    figures(&container.id, cgroup, files.then_some(container.pid))
}

/// `init`: look at the open files of every process, too.
fn figures(id: &str, cgroup: &Cgroup, init: Option<i32>) -> Option<ContainerStats> {
    let read = || Ok::<_, berth_engine::cgroup::Error>((cgroup.stats()?, cgroup.procs()?));
    match read() {
        Ok((stats, pids)) => Some(ContainerStats {
            processes: pids.len() as u64,
            files: init.map(|init| open_files::of(&pids, init)).into(),
            ..message(id, &stats)
        }),
        // One that ended meanwhile has no figures; the others have.
        Err(error) => {
            journal!("figures of {:?}: {error}", cgroup.path());
            None
        }
    }
}

fn message(id: &str, stats: &Stats) -> ContainerStats {
    ContainerStats {
        id: id.to_owned(),
        timestamp: clock::now_ns(),
        cpu: MessageField::some(CpuStats {
            usage_ns: stats.cpu_usage_ns,
            nr_periods: stats.nr_periods,
            nr_throttled: stats.nr_throttled,
            throttled_ns: stats.throttled_ns,
            user_ns: stats.cpu_user_ns,
            system_ns: stats.cpu_system_ns,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStats {
            usage: stats.memory_usage,
            working_set: stats.memory_working_set,
            rss: stats.memory_rss,
            limit: stats.memory_limit,
            page_faults: stats.page_faults,
            major_page_faults: stats.major_page_faults,
            swap_usage: stats.swap_usage,
            swap_limit: stats.swap_limit,
            cache: stats.memory_cache,
            mapped_file: stats.memory_mapped_file,
            active_file: stats.memory_active_file,
            inactive_file: stats.memory_inactive_file,
            kernel: stats.memory_kernel,
            max_usage: stats.memory_max_usage,
            failcnt: stats.memory_failcnt,
            own_page_faults: stats.own_page_faults,
            own_major_page_faults: stats.own_major_page_faults,
            ..Default::default()
        }),
        pids: stats.pids,
        pids_limit: stats.pids_limit,
        oom_kills: stats.oom_kills,
        devices: stats
            .devices
            .iter()
            .map(|device| DeviceStats {
                major: device.major,
                minor: device.minor,
                read_bytes: device.read_bytes,
                write_bytes: device.write_bytes,
                reads: device.reads,
                writes: device.writes,
                ..Default::default()
            })
            .collect(),
        huge_pages: stats
            .huge_pages
            .iter()
            .map(|pages| HugePageStats {
                size: pages.size.clone(),
                usage: pages.usage,
                max_usage: pages.max_usage,
                ..Default::default()
            })
            .collect(),
        cpu_pressure: pressure(stats.cpu_pressure),
        memory_pressure: pressure(stats.memory_pressure),
        io_pressure: pressure(stats.io_pressure),
        ..Default::default()
    }
}

fn pressure(pressure: Option<Pressure>) -> MessageField<PressureStats> {
    let stall = |stall: Stall| {
        MessageField::some(StallStats {
            avg10: stall.avg10,
            avg60: stall.avg60,
            avg300: stall.avg300,
            total_us: stall.total_us,
            ..Default::default()
        })
    };
    let message = |p: Pressure| PressureStats {
        some: stall(p.some),
        full: stall(p.full),
        ..Default::default()
    };
    pressure.map(message).into()
}
