//! cgroup limits of a container, as far as this machine's controllers go.

use std::collections::HashMap;

use berth_proto::cri;
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxHugepageLimit, LinuxHugepageLimitBuilder, LinuxMemoryBuilder,
    LinuxResources, LinuxResourcesBuilder,
};

use crate::{
    cpuset,
    error::{Error, quoted},
    host::Host,
};

/// µs; the kernel's bounds on cpu.cfs_period_us, and its least quota.
const PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const QUOTA_MIN_US: i64 = 1_000;

/// The kernel's bounds on cpu.shares; it would round to them itself.
const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;

/// `oom_score_adj` as the kernel has it.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

/// Entries of `unified` and `hugepage_limits`.
const ENTRIES_LIMIT: usize = 64;

pub(crate) fn check(resources: &cri::LinuxContainerResources) -> Result<(), Error> {
    let wrong =
        |resource: &str, why: String| Err(Error::invalid(format!("resources.{resource}"), why));
    let r = resources;
    if r.cpu_period != 0 && !PERIOD_US.contains(&r.cpu_period) {
        return wrong(
            "cpu_period",
            format!(
                "{} µs is not between {} and {}",
                r.cpu_period,
                PERIOD_US.start(),
                PERIOD_US.end()
            ),
        );
    }
    if r.cpu_quota < -1 || (1..QUOTA_MIN_US).contains(&r.cpu_quota) {
        return wrong(
            "cpu_quota",
            format!(
                "{} µs is neither -1 (no limit) nor at least {QUOTA_MIN_US}",
                r.cpu_quota
            ),
        );
    }
    if r.cpu_shares < 0 {
        return wrong("cpu_shares", format!("{} is negative", r.cpu_shares));
    }
    for (resource, bytes) in [
        ("memory_limit_in_bytes", r.memory_limit_in_bytes),
        ("memory_swap_limit_in_bytes", r.memory_swap_limit_in_bytes),
    ] {
        if bytes < -1 {
            return wrong(
                resource,
                format!("{bytes} is neither -1 (no limit) nor a number of bytes"),
            );
        }
    }
    if r.memory_swap_limit_in_bytes > 0 && r.memory_swap_limit_in_bytes < r.memory_limit_in_bytes {
        return wrong(
            "memory_swap_limit_in_bytes",
            "memory and swap together are less than memory alone".into(),
        );
    }
    if !OOM_SCORE_ADJ.contains(&r.oom_score_adj) {
        return wrong(
            "oom_score_adj",
            format!("{} is not between -1000 and 1000", r.oom_score_adj),
        );
    }
    cpuset::check_form(r)?;
    if r.hugepage_limits.len() > ENTRIES_LIMIT || r.unified.len() > ENTRIES_LIMIT {
        return wrong(
            "hugepage_limits and unified",
            format!("more than {ENTRIES_LIMIT} entries"),
        );
    }
    for limit in &r.hugepage_limits {
        let digits = limit
            .page_size
            .trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &limit.page_size[digits.len()..];
        if digits.is_empty()
            || !digits.bytes().all(|byte| byte.is_ascii_digit())
            || !["KB", "MB", "GB"].contains(&unit)
        {
            return wrong(
                "hugepage_limits",
                format!("{} is not a page size like 2MB", quoted(&limit.page_size)),
            );
        }
    }
    for key in r.unified.keys() {
        // cgroup.procs would move a process, cgroup.kill end some: how a cgroup is run is not a limit of it.
        if key.starts_with("cgroup.") && !key.starts_with("cgroup.max.") {
            return wrong(
                "unified",
                format!(
                    "{} is no limit: only cgroup.max.* of the cgroup.* files are",
                    quoted(key)
                ),
            );
        }
        // it becomes the name of a file in the cgroup's directory
        if !key.contains('.')
            || !key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte))
            || key.contains("..")
        {
            return wrong(
                "unified",
                format!(
                    "{} is not the name of a cgroup file like memory.high",
                    quoted(key)
                ),
            );
        }
    }
    Ok(())
}

/// The limits, with a note for each that this machine can't keep.
pub(crate) fn build(
    resources: &cri::LinuxContainerResources,
    host: &Host,
    notes: &mut Vec<String>,
) -> Result<LinuxResources, Error> {
    check(resources)?;
    let mut built = LinuxResourcesBuilder::default();
    if let Some(cpu) = cpu(resources)? {
        built = built.cpu(cpu);
    }
    // -1 takes a limit away; without one, memory and swap together have none to be above.
    if resources.memory_limit_in_bytes != 0 {
        let mut memory = LinuxMemoryBuilder::default().limit(resources.memory_limit_in_bytes);
        let swap = resources.memory_swap_limit_in_bytes;
        if swap != 0 && host.swap_accounting {
            memory = memory.swap(swap);
        } else if swap > resources.memory_limit_in_bytes {
            notes.push(
                "the kernel does not account swap: memory_swap_limit_in_bytes is left out".into(),
            );
        }
        built = built.memory(memory.build()?);
    }
    if let Some(limits) = hugepages(resources, host, notes)? {
        built = built.hugepage_limits(limits);
    }
    if !resources.unified.is_empty() {
        if !host.cgroup_v2 {
            return Err(Error::Resource {
                resource: "unified".into(),
                why: "this machine has cgroup v1; it needs v2".into(),
            });
        }
        built = built.unified(
            resources
                .unified
                .clone()
                .into_iter()
                .collect::<HashMap<_, _>>(),
        );
    }
    Ok(built.build()?)
}

fn cpu(resources: &cri::LinuxContainerResources) -> Result<Option<LinuxCpu>, Error> {
    let mut cpu = LinuxCpuBuilder::default();
    if resources.cpu_shares > 0 {
        cpu = cpu.shares(resources.cpu_shares.clamp(*SHARES.start(), *SHARES.end()) as u64);
    }
    if resources.cpu_quota != 0 {
        cpu = cpu.quota(resources.cpu_quota);
    }
    if resources.cpu_period > 0 {
        cpu = cpu.period(resources.cpu_period as u64);
    }
    if !resources.cpuset_cpus.is_empty() {
        cpu = cpu.cpus(&resources.cpuset_cpus);
    }
    if !resources.cpuset_mems.is_empty() {
        cpu = cpu.mems(&resources.cpuset_mems);
    }
    let cpu = cpu.build()?;
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

/// A kubelet sends a limit of 0 for every size it knows: kept where there is a controller, as it keeps huge pages from those who
/// did not ask for them.
fn hugepages(
    resources: &cri::LinuxContainerResources,
    host: &Host,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<LinuxHugepageLimit>>, Error> {
    if resources.hugepage_limits.is_empty() {
        return Ok(None);
    }
    if !host.hugetlb {
        notes.push("the hugetlb controller is not there: hugepage_limits are left out".into());
        return Ok(None);
    }
    let limits = resources.hugepage_limits.iter().map(|limit| {
        LinuxHugepageLimitBuilder::default()
            .page_size(&limit.page_size)
            .limit(i64::try_from(limit.limit).unwrap_or(i64::MAX))
            .build()
    });
    Ok(Some(limits.collect::<Result<_, _>>()?))
}

/// What the process gets. Without CAP_SYS_RESOURCE nobody goes below their own value.
pub(crate) fn oom_score_adj(
    resources: &cri::LinuxContainerResources,
    host: &Host,
    notes: &mut Vec<String>,
) -> i32 {
    let asked = resources
        .oom_score_adj
        .clamp(*OOM_SCORE_ADJ.start(), *OOM_SCORE_ADJ.end()) as i32;
    if asked < host.oom_score_adj && !host.can_lower_oom_score {
        notes.push(format!(
            "oom_score_adj {asked} is below the daemon's own {}, and it lacks CAP_SYS_RESOURCE: {0} is set",
            host.oom_score_adj
        ));
        return host.oom_score_adj;
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::host;

    fn built(
        resources: &cri::LinuxContainerResources,
        host: &Host,
    ) -> (LinuxResources, Vec<String>) {
        let mut notes = Vec::new();
        (build(resources, host, &mut notes).unwrap(), notes)
    }

    #[test]
    fn cpu_limits_are_carried_over() {
        let resources = cri::LinuxContainerResources {
            cpu_shares: 1,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            ..Default::default()
        };
        let (spec, notes) = built(&resources, &host());
        let cpu = spec.cpu().clone().unwrap();
        assert_eq!(
            (cpu.shares(), cpu.quota(), cpu.period()),
            (Some(2), Some(50_000), Some(100_000))
        );
        assert_eq!(
            (cpu.cpus().as_deref(), cpu.mems().as_deref()),
            (Some("0-1"), Some("0"))
        );
        assert!(notes.is_empty());
        let (nothing, _) = built(&cri::LinuxContainerResources::default(), &host());
        assert!(
            nothing.cpu().is_none()
                && nothing.memory().is_none()
                && nothing.pids().is_none()
                && nothing.hugepage_limits().is_none()
        );
    }

    #[test]
    fn a_swap_limit_is_dropped_where_swap_is_not_accounted() {
        const MIB: i64 = 1 << 20;
        for (accounting, swap, want, noted) in [
            (true, 64 * MIB, Some(64 * MIB), false),
            (true, 0, None, false),
            (true, -1, Some(-1), false),
            (false, 64 * MIB, None, false),
            (false, 128 * MIB, None, true),
        ] {
            let mut host = host();
            host.swap_accounting = accounting;
            let resources = cri::LinuxContainerResources {
                memory_limit_in_bytes: 64 * MIB,
                memory_swap_limit_in_bytes: swap,
                ..Default::default()
            };
            let (spec, notes) = built(&resources, &host);
            let memory = spec.memory().unwrap();
            assert_eq!(
                (memory.limit(), memory.swap()),
                (Some(64 * MIB), want),
                "{accounting} {swap}"
            );
            assert_eq!(!notes.is_empty(), noted, "{notes:?}");
        }
    }

    #[test]
    fn hugepage_limits_without_a_controller_are_one_note() {
        let page = |size: &str| cri::HugepageLimit {
            page_size: size.into(),
            limit: 0,
        };
        let resources = cri::LinuxContainerResources {
            hugepage_limits: vec![page("2MB"), page("1GB")],
            ..Default::default()
        };
        let mut host = host();
        host.hugetlb = false;
        let (spec, notes) = built(&resources, &host);
        assert!(spec.hugepage_limits().is_none());
        assert_eq!(notes.len(), 1, "{notes:?}");
        host.hugetlb = true;
        let (spec, notes) = built(&resources, &host);
        assert_eq!(spec.hugepage_limits().as_ref().unwrap().len(), 2);
        assert!(notes.is_empty());
    }

    #[test]
    fn oom_score_adj_is_clamped_to_the_daemons_own() {
        for (own, can_lower, asked, want, noted) in [
            (0, false, -997, 0, true),
            (0, true, -997, -997, false),
            (-500, false, -997, -500, true),
            (100, false, 1000, 1000, false),
        ] {
            let mut host = host();
            (host.oom_score_adj, host.can_lower_oom_score) = (own, can_lower);
            let mut notes = Vec::new();
            let resources = cri::LinuxContainerResources {
                oom_score_adj: asked,
                ..Default::default()
            };
            assert_eq!(
                oom_score_adj(&resources, &host, &mut notes),
                want,
                "{own} {asked}"
            );
            assert_eq!(!notes.is_empty(), noted);
        }
    }

    #[test]
    fn unified_needs_cgroup_v2() {
        let mut resources = cri::LinuxContainerResources::default();
        resources
            .unified
            .insert("memory.high".into(), "1000000".into());
        let mut host = host();
        host.cgroup_v2 = false;
        assert!(matches!(
            build(&resources, &host, &mut Vec::new()),
            Err(Error::Resource { .. })
        ));
        host.cgroup_v2 = true;
        assert_eq!(
            built(&resources, &host).0.unified().as_ref().unwrap()["memory.high"],
            "1000000"
        );
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let table: [fn(&mut cri::LinuxContainerResources); 18] = [
            |r| r.cpu_period = 999,
            |r| r.cpu_period = 1_000_001,
            |r| r.cpu_period = -1,
            |r| r.cpu_quota = -2,
            |r| r.cpu_quota = 999,
            |r| r.cpu_shares = -1,
            |r| r.memory_limit_in_bytes = -2,
            |r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (100, 99),
            |r| r.oom_score_adj = 1001,
            |r| r.oom_score_adj = i64::MIN,
            |r| r.cpuset_cpus = "0-1\n".into(),
            |r| r.cpuset_mems = "../0".into(),
            |r| {
                r.hugepage_limits = vec![cri::HugepageLimit {
                    page_size: "2MB/../x".into(),
                    limit: 0,
                }]
            },
            |r| {
                r.hugepage_limits = vec![cri::HugepageLimit {
                    page_size: "MB".into(),
                    limit: 0,
                }]
            },
            |r| drop(r.unified.insert("../cgroup.procs".into(), "1".into())),
            |r| drop(r.unified.insert("cgroup/procs".into(), "1".into())),
            // SEC-ENG-11
            |r| drop(r.unified.insert("cgroup.procs".into(), "1".into())),
            |r| {
                drop(
                    r.unified
                        .insert("cgroup.subtree_control".into(), "-memory".into()),
                )
            },
        ];
        for (row, change) in table.iter().enumerate() {
            let mut resources = cri::LinuxContainerResources::default();
            change(&mut resources);
            assert!(check(&resources).is_err(), "row {row}");
        }
    }
}
