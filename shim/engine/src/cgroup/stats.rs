//! The figures that the kubelet asks for.

use std::{fs, io::ErrorKind, path::Path};

use super::{
    Cgroup, Error,
    block_io::{self, DeviceIo},
    hierarchy::{Hierarchies, Hierarchy},
    pressure::{self, Pressure},
};

/// v1 writes "no limit" as the largest page-aligned number; anything near it is no limit.
const V1_UNLIMITED: u64 = 1 << 62;

/// Figures of one cgroup and what is below it. ns and bytes. What is `None` or missing the kernel does not offer here.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Stats {
    pub cpu_usage_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub nr_periods: u64,
    pub nr_throttled: u64,
    pub throttled_ns: u64,
    pub memory_usage: u64,
    /// usage − inactive_file, what the kubelet evicts by
    pub memory_working_set: u64,
    pub memory_rss: u64,
    pub memory_cache: u64,
    pub memory_mapped_file: u64,
    pub memory_active_file: u64,
    pub memory_inactive_file: u64,
    pub memory_kernel: u64,
    /// v2: since Linux 5.19
    pub memory_max_usage: u64,
    /// How often the limit was hit.
    pub memory_failcnt: u64,
    /// 0: unlimited
    pub memory_limit: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Of the cgroup without what is below it; v2 does not tell them apart.
    pub own_page_faults: u64,
    pub own_major_page_faults: u64,
    /// `None`: swap is not accounted.
    pub swap_usage: Option<u64>,
    /// `None`: unlimited, or not accounted.
    pub swap_limit: Option<u64>,
    /// Tasks: threads, as the kernel counts them.
    pub pids: u64,
    /// 0: unlimited
    pub pids_limit: u64,
    pub oom_kills: u64,
    pub devices: Vec<DeviceIo>,
    pub huge_pages: Vec<HugePages>,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// Huge pages of one size. Bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: `2MB`.
    pub size: String,
    pub usage: u64,
    /// v1 only
    pub max_usage: Option<u64>,
}

pub(super) fn read(cgroup: &Cgroup, machine: &Hierarchies) -> Result<Stats, Error> {
    let files = Files { cgroup, machine };
    let mut stats = match machine.v2() {
        Some(_) => read_v2(&files)?,
        None => read_v1(&files)?,
    };
    if stats.memory_limit >= V1_UNLIMITED {
        stats.memory_limit = 0;
    }
    stats.memory_working_set = stats
        .memory_usage
        .saturating_sub(stats.memory_inactive_file);
    stats.pids = files.number("pids", "pids.current")?;
    stats.pids_limit = files.number("pids", "pids.max")?;
    stats.oom_kills = oom_kills(cgroup, machine)?;
    stats.devices = block_io::read(&files, machine.v2().is_some())?;
    stats.huge_pages = huge_pages(&files, machine)?;
    // Beside v1 there is a v2 that every container is in, too: its pressure is the container's own.
    if let Some(v2) = machine.all().find(|hierarchy| hierarchy.is_any_v2()) {
        let directory = v2.directory(cgroup.path());
        stats.cpu_pressure = pressure::read(&directory.join("cpu.pressure"));
        stats.memory_pressure = pressure::read(&directory.join("memory.pressure"));
        stats.io_pressure = pressure::read(&directory.join("io.pressure"));
    }
    Ok(stats)
}

fn read_v2(files: &Files) -> Result<Stats, Error> {
    let cpu = files.text("cpu", "cpu.stat")?;
    let memory = files.text("memory", "memory.stat")?;
    let events = files.text("memory", "memory.events")?;
    let (faults, major) = (value(&memory, "pgfault"), value(&memory, "pgmajfault"));
    let swap = files.text("memory", "memory.swap.current")?;
    Ok(Stats {
        cpu_usage_ns: value(&cpu, "usage_usec") * 1000,
        cpu_user_ns: value(&cpu, "user_usec") * 1000,
        cpu_system_ns: value(&cpu, "system_usec") * 1000,
        nr_periods: value(&cpu, "nr_periods"),
        nr_throttled: value(&cpu, "nr_throttled"),
        throttled_ns: value(&cpu, "throttled_usec") * 1000,
        memory_usage: files.number("memory", "memory.current")?,
        memory_limit: files.number("memory", "memory.max")?,
        memory_max_usage: files.number("memory", "memory.peak")?,
        memory_failcnt: value(&events, "max"),
        memory_rss: value(&memory, "anon"),
        memory_cache: value(&memory, "file"),
        memory_mapped_file: value(&memory, "file_mapped"),
        memory_active_file: value(&memory, "active_file"),
        memory_inactive_file: value(&memory, "inactive_file"),
        memory_kernel: value(&memory, "kernel"),
        page_faults: faults,
        major_page_faults: major,
        own_page_faults: faults,
        own_major_page_faults: major,
        swap_usage: swap.trim().parse().ok(),
        swap_limit: match swap.is_empty() {
            true => None,
            false => files.text("memory", "memory.swap.max")?.trim().parse().ok(),
        },
        ..Stats::default()
    })
}

fn read_v1(files: &Files) -> Result<Stats, Error> {
    let cpu = files.text("cpu", "cpu.stat")?;
    let memory = files.text("memory", "memory.stat")?;
    let limit = files.number("memory", "memory.limit_in_bytes")?;
    let swap = files.text("memory", "memory.memsw.limit_in_bytes")?;
    Ok(Stats {
        cpu_usage_ns: files.number("cpuacct", "cpuacct.usage")?,
        cpu_user_ns: files.number("cpuacct", "cpuacct.usage_user")?,
        cpu_system_ns: files.number("cpuacct", "cpuacct.usage_sys")?,
        nr_periods: value(&cpu, "nr_periods"),
        nr_throttled: value(&cpu, "nr_throttled"),
        throttled_ns: value(&cpu, "throttled_time"),
        memory_usage: files.number("memory", "memory.usage_in_bytes")?,
        memory_limit: limit,
        memory_max_usage: files.number("memory", "memory.max_usage_in_bytes")?,
        memory_failcnt: files.number("memory", "memory.failcnt")?,
        memory_rss: value(&memory, "total_rss"),
        memory_cache: value(&memory, "total_cache"),
        memory_mapped_file: value(&memory, "total_mapped_file"),
        memory_active_file: value(&memory, "total_active_file"),
        memory_inactive_file: value(&memory, "total_inactive_file"),
        memory_kernel: files.number("memory", "memory.kmem.usage_in_bytes")?,
        page_faults: value(&memory, "total_pgfault"),
        major_page_faults: value(&memory, "total_pgmajfault"),
        own_page_faults: value(&memory, "pgfault"),
        own_major_page_faults: value(&memory, "pgmajfault"),
        swap_usage: (!swap.is_empty()).then(|| value(&memory, "total_swap")),
        // v1 limits memory and swap together.
        swap_limit: swap
            .trim()
            .parse()
            .ok()
            .filter(|both| *both < V1_UNLIMITED)
            .map(|both: u64| both.saturating_sub(limit)),
        ..Stats::default()
    })
}

/// Of each size that the cgroup's directory has a file of.
fn huge_pages(files: &Files, machine: &Hierarchies) -> Result<Vec<HugePages>, Error> {
    let Some(hierarchy) = machine.controller("hugetlb") else {
        return Ok(vec![]);
    };
    let (current, max) = match hierarchy.is_v2() {
        true => ("current", None),
        false => ("usage_in_bytes", Some("max_usage_in_bytes")),
    };
    let directory = hierarchy.directory(files.cgroup.path());
    let entries = fs::read_dir(&directory).map_err(Error::io("list", &directory))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let size = name
            .to_str()
            .and_then(|name| name.strip_prefix("hugetlb."))
            .and_then(|rest| rest.strip_suffix(current))
            .and_then(|rest| rest.strip_suffix('.'))
            .filter(|size| !size.contains('.'));
        let Some(size) = size else { continue };
        let file = |what: &str| files.number("hugetlb", &format!("hugetlb.{size}.{what}"));
        found.push(HugePages {
            size: size.to_owned(),
            usage: file(current)?,
            max_usage: max.map(file).transpose()?,
        });
    }
    found.sort_by(|a, b| a.size.cmp(&b.size));
    Ok(found)
}

pub(super) fn oom_kills(cgroup: &Cgroup, machine: &Hierarchies) -> Result<u64, Error> {
    let file = if machine.v2().is_some() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let table = Files { cgroup, machine }.text("memory", file)?;
    Ok(value(&table, "oom_kill"))
}

/// A cgroup that had no memory left below its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// From the root of the hierarchy.
    pub cgroup: String,
    /// Its `memory.max`; 0: it has none by now.
    pub limit_bytes: u64,
}

impl std::fmt::Display for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cgroup,
            limit_bytes,
        } = self;
        write!(
            f,
            "no memory was left below the limit of cgroup {cgroup} ({limit_bytes} bytes)"
        )
    }
}

/// `memory.events.local` (Linux 5.2) counts under `oom` where a limit was met, whoever below was killed for it; the counts of a pod's cgroup
/// are older than its newest container, so the nearest one that has any is it.
pub(super) fn oom_limit(cgroup: &Cgroup, machine: &Hierarchies) -> Result<Option<Limited>, Error> {
    let Some(hierarchy) = machine.v2() else {
        return Ok(None);
    };
    let root = hierarchy.directory("/");
    let mut at = Path::new(cgroup.path());
    while at.file_name().is_some() {
        let path = at.to_string_lossy().into_owned();
        let directory = hierarchy.directory(&path);
        if directory == root {
            break;
        }
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        if value(&read("memory.events.local"), "oom") > 0 {
            let limit_bytes = read("memory.max").trim().parse().unwrap_or(0);
            return Ok(Some(Limited {
                cgroup: path,
                limit_bytes,
            }));
        }
        at = at.parent().unwrap_or(Path::new("/"));
    }
    Ok(None)
}

/// `memory.events` counts under `oom` what `memory.events.local` does, and what those below do or did.
pub(super) fn limit_met_below(cgroup: &Cgroup, machine: &Hierarchies) -> bool {
    let Some(hierarchy) = machine.v2() else {
        return false;
    };
    let directory = hierarchy.directory(cgroup.path());
    let oom = |file: &str| {
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        value(&text, "oom")
    };
    oom("memory.events") > oom("memory.events.local")
}

pub(super) fn memory_limit(cgroup: &Cgroup, machine: &Hierarchies) -> Result<u64, Error> {
    Files { cgroup, machine }.number("memory", "memory.max")
}

pub(super) struct Files<'a> {
    cgroup: &'a Cgroup,
    machine: &'a Hierarchies,
}

impl Files<'_> {
    /// A file's text; empty where the machine lacks the controller or the file. A cgroup that is gone is an error.
    pub(super) fn text(&self, controller: &str, file: &str) -> Result<String, Error> {
        let Some(directory) = self
            .machine
            .controller(controller)
            .map(|h: &Hierarchy| h.directory(self.cgroup.path()))
        else {
            return Ok(String::new());
        };
        let path = directory.join(file);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && directory.is_dir() => {
                Ok(String::new())
            }
            other => other.map_err(Error::io("read", &path)),
        }
    }

    /// A file with one number; `max` is 0.
    fn number(&self, controller: &str, file: &str) -> Result<u64, Error> {
        let text = self.text(controller, file)?;
        match text.trim() {
            "" | "max" => Ok(0),
            number => number.parse().map_err(|_| {
                let why = format!("not a number: {number:?}");
                let source = std::io::Error::new(ErrorKind::InvalidData, why);
                Error::io("read", Path::new(file))(source)
            }),
        }
    }
}

/// A value of a file of `key value` lines; 0 where the kernel has no such key.
pub(super) fn value(table: &str, key: &str) -> u64 {
    table
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_whole_or_not_at_all() {
        let table = "total_rss 5\ntotal_rss_huge 7\noom_kill 3\n";
        for (key, expected) in [
            ("total_rss", 5),
            ("total_rss_huge", 7),
            ("oom_kill", 3),
            ("rss", 0),
        ] {
            assert_eq!(value(table, key), expected, "{key}");
        }
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_an_error_and_not_zeros() {
        let gone = Cgroup::at("/berth-test-not-there").unwrap();
        assert!(gone.stats().is_err());
        assert!(gone.oom_kills().is_err());
    }
}
