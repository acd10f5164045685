//! Limits of a whole pod: what its containers may use together, and what it costs beyond them.
//!
//! They are put on the pod's cgroup where Berth makes it. One that was there before the pod is the caller's, and so are its limits: a
//! kubelet makes the cgroups of pods and limits them itself. What it tells a runtime is the sum over those containers that have a
//! limit, for runtimes that size a virtual machine; put on a cgroup, it would limit the containers that have none.

use std::collections::BTreeMap;

use berth_proto::cri::{self, LinuxContainerResources};
use berth_state::Object;
use oci_spec::runtime::LinuxResources;

use super::{
    Pod, create,
    record::{PodLimits, PodRecord},
    shim::Shim,
    teardown, update,
};
use crate::{error::Error, failpoint};

/// What CRI's quotas are taken by where none is named: the kernel's own default, µs.
const DEFAULT_PERIOD_US: i64 = 100_000;

/// For the kernel; none where there is nothing to set, or it is not ours to set.
#[derive(Debug, Default)]
pub struct Plan(Option<LinuxResources>);

/// As the pod was asked for.
pub fn asked(config: &cri::PodSandboxConfig) -> PodLimits {
    let linux = config.linux.clone().unwrap_or_default();
    PodLimits {
        resources: linux.resources.unwrap_or_default(),
        overhead: linux.overhead.unwrap_or_default(),
    }
}

pub fn now(record: &PodRecord) -> PodLimits {
    match &record.limits {
        Some(limits) => limits.clone(),
        None => asked(&record.config),
    }
}

/// `change` over `before`: zero and empty mean "as it is".
pub fn changed(before: PodLimits, change: &PodLimits) -> PodLimits {
    PodLimits {
        resources: update::merged(before.resources, &change.resources),
        overhead: update::merged(before.overhead, &change.overhead),
    }
}

/// Refuses what makes no sense, on a cgroup of the caller's, too. Changes nothing.
pub fn plan(pod: &Pod, limits: &PodLimits) -> Result<Plan, Error> {
    let wrong = |source| Error::Spec {
        what: format!("pod {}", pod.id),
        source,
    };
    let host = &pod.node.host;
    for part in [&limits.resources, &limits.overhead] {
        berth_spec::container_limits(part, host).map_err(wrong)?;
    }
    let cgroup = &pod.cgroup_parent;
    if !is_ours(pod)? {
        tracing::debug!(pod_id = %pod.id, cgroup = %cgroup.display(), "the cgroup is the caller's: its limits stay");
        return Ok(Plan(None));
    }
    let together = sum(limits);
    let (oci, notes) = berth_spec::container_limits(&together, host).map_err(wrong)?;
    let config = cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(together),
            ..Default::default()
        }),
        ..Default::default()
    };
    berth_spec::check_cpuset(&config, cgroup, host).map_err(wrong)?;
    for note in notes {
        tracing::warn!(pod_id = %pod.id, "{note}");
    }
    Ok(Plan((oci != LinuxResources::default()).then_some(oci)))
}

/// Berth has made the pod's cgroup, or is the one who will.
fn is_ours(pod: &Pod) -> Result<bool, Error> {
    let (node, cgroup) = (&pod.node, &pod.cgroup_parent);
    let objects = node
        .ledger
        .outstanding(&pod.id)
        .map_err(Error::io("read ledger of", &pod.id))?;
    Ok(objects.contains(&Object::Cgroup(cgroup.clone())) || !node.cgroups.exists(cgroup))
}

/// Makes the pod's cgroup where it is missing, and limits it: all limits, or none of them.
pub async fn apply(pod: &Pod, shim: &Shim, plan: Plan) -> Result<(), Error> {
    let Some(resources) = plan.0 else {
        return Ok(());
    };
    {
        let _alone = teardown::cgroup_intents();
        create::intend_cgroups_of_pod(pod)?;
    }
    failpoint::at(|| berth_failpoint::site!("pod.limits.intended"))?;
    shim.update_sandbox(&resources).await?;
    failpoint::at(|| berth_failpoint::site!("pod.limits.applied"))
}

/// Both together. What has no limit among the resources has none with the overhead either.
fn sum(limits: &PodLimits) -> LinuxContainerResources {
    let PodLimits {
        resources: r,
        overhead: o,
    } = limits;
    let limited = |limit: i64, overhead: i64| match limit {
        1.. => limit.saturating_add(overhead.max(0)),
        none => none,
    };
    let period = |of: &LinuxContainerResources| match of.cpu_period {
        0 => DEFAULT_PERIOD_US,
        period => period,
    };
    let overhead_quota =
        i128::from(o.cpu_quota.max(0)) * i128::from(period(r)) / i128::from(period(o));
    let overhead_swap = o.memory_swap_limit_in_bytes.max(o.memory_limit_in_bytes);
    let mut pages: BTreeMap<String, u64> = BTreeMap::new();
    for limit in r.hugepage_limits.iter().chain(&o.hugepage_limits) {
        let sum = pages.entry(limit.page_size.clone()).or_default();
        *sum = sum.saturating_add(limit.limit);
    }
    let first = |a: &String, b: &String| if a.is_empty() { b } else { a }.clone();
    let mut unified = o.unified.clone();
    unified.extend(r.unified.clone());
    LinuxContainerResources {
        cpu_period: r.cpu_period,
        cpu_quota: limited(
            r.cpu_quota,
            i64::try_from(overhead_quota).unwrap_or(i64::MAX),
        ),
        cpu_shares: r.cpu_shares.saturating_add(o.cpu_shares),
        memory_limit_in_bytes: limited(r.memory_limit_in_bytes, o.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: limited(r.memory_swap_limit_in_bytes, overhead_swap),
        // Of processes, not of cgroups.
        oom_score_adj: 0,
        cpuset_cpus: first(&r.cpuset_cpus, &o.cpuset_cpus),
        cpuset_mems: first(&r.cpuset_mems, &o.cpuset_mems),
        hugepage_limits: pages
            .into_iter()
            .map(|(page_size, limit)| cri::HugepageLimit { page_size, limit })
            .collect(),
        unified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_added_where_there_is_a_limit() {
        const MIB: i64 = 1 << 20;
        let resources = |period, quota, shares, memory| LinuxContainerResources {
            cpu_period: period,
            cpu_quota: quota,
            cpu_shares: shares,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        for (r, o, together) in [
            // The overhead's quota by the period of the whole.
            (
                resources(50_000, 10_000, 100, 64 * MIB),
                resources(100_000, 10_000, 28, 16 * MIB),
                resources(50_000, 15_000, 128, 80 * MIB),
            ),
            // No limit is none, with overhead too.
            (
                resources(0, 0, 0, 0),
                resources(0, 10_000, 28, 16 * MIB),
                resources(0, 0, 28, 0),
            ),
            (
                resources(0, -1, 2, -1),
                resources(0, 10_000, 0, 16 * MIB),
                resources(0, -1, 2, -1),
            ),
            (
                resources(0, i64::MAX, i64::MAX, i64::MAX),
                resources(0, i64::MAX, i64::MAX, i64::MAX),
                resources(0, i64::MAX, i64::MAX, i64::MAX),
            ),
        ] {
            let limits = PodLimits {
                resources: r,
                overhead: o,
            };
            assert_eq!(sum(&limits), together, "{limits:?}");
        }
        let swap = sum(&PodLimits {
            resources: LinuxContainerResources {
                memory_limit_in_bytes: 64 * MIB,
                memory_swap_limit_in_bytes: 64 * MIB,
                ..Default::default()
            },
            overhead: resources(0, 0, 0, 16 * MIB),
        });
        // Memory and swap together stay as much above memory alone.
        assert_eq!(swap.memory_swap_limit_in_bytes, 80 * MIB);
    }

    #[test]
    fn a_change_of_one_part_leaves_the_other() {
        let part = |shares| LinuxContainerResources {
            cpu_shares: shares,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let before = PodLimits {
            resources: part(10),
            overhead: part(20),
        };
        let change = PodLimits {
            overhead: LinuxContainerResources {
                cpu_shares: 30,
                ..Default::default()
            },
            ..Default::default()
        };
        let after = changed(before, &change);
        assert_eq!((after.resources, after.overhead), (part(10), part(30)));
    }
}
