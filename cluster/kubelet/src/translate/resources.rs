//! Requests and limits, by upstream's arithmetic.

use berth_kinds::Quantity;
use berth_proto::cri::{HugepageLimit, LinuxContainerResources};

use crate::{
    node::NodeFacts,
    pod::{ContainerSpec, Desired, Role},
    problem::Problem,
    qos::{Class, rounded, thousandths, units},
};

/// CFS period, in microseconds: the kernel's and the kubelet's default.
const CPU_PERIOD_US: i64 = 100_000;
/// The kernel takes no quota below 1 ms.
const MIN_CPU_QUOTA_US: i64 = 1_000;
/// Bounds of cpu.shares.
const CPU_SHARES: (i64, i64) = (2, 262_144);
const SHARES_PER_CPU: i64 = 1024;

/// The limits of one container.
pub(crate) fn of_container(
    pod: &Desired,
    spec: &ContainerSpec,
    node: &NodeFacts,
) -> Result<LinuxContainerResources, Problem> {
    let asked = spec.container.resources.clone().unwrap_or_default();
    let whole = pod.resources().cloned().unwrap_or_default();
    // one without a limit of its own can use all that the pod may
    let cpu_limit = thousandths(&asked.limits, "cpu")
        .or_else(|| thousandths(&whole.limits, "cpu"))
        .filter(|it| *it > 0);
    let cpu = thousandths(&asked.requests, "cpu").or(cpu_limit);
    let memory_limit = units(&asked.limits, "memory").or_else(|| units(&whole.limits, "memory"));
    let memory = match units(&whole.requests, "memory") {
        Some(of_pod) => Some(own_memory(spec).unwrap_or(0) + share_of_the_rest(pod, of_pod)),
        None => units(&asked.requests, "memory").or(memory_limit),
    };
    let mut hugepages = Vec::new();
    for (name, _) in asked.limits.iter().flatten() {
        if let Some(size) = name.strip_prefix("hugepages-") {
            hugepages.push(HugepageLimit {
                page_size: page_size(size).ok_or_else(|| {
                    Problem::new(
                        format!("{}.resources.limits.{name}", spec.path),
                        format!("{size:?} is not a page size"),
                    )
                })?,
                limit: units(&asked.limits, name).unwrap_or(0).unsigned_abs(),
            });
        }
    }
    let memory_limit = memory_limit.unwrap_or(0);
    Ok(LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: cpu_limit.map_or(0, quota),
        cpu_shares: shares(cpu.unwrap_or(0)),
        memory_limit_in_bytes: memory_limit,
        // no swap: as much as memory alone
        memory_swap_limit_in_bytes: memory_limit,
        oom_score_adj: Class::of(pod).oom_score_adj(pod, memory, node.memory_bytes),
        hugepage_limits: hugepages,
        ..Default::default()
    })
}

fn own_memory(spec: &ContainerSpec) -> Option<i64> {
    let asked = spec.container.resources.as_ref()?;
    units(&asked.requests, "memory").or_else(|| units(&asked.limits, "memory"))
}

/// Of the memory that the pod asks for and no container by itself, each has its part.
fn share_of_the_rest(pod: &Desired, of_pod: i64) -> i64 {
    let all = pod
        .containers
        .iter()
        .filter(|spec| matches!(spec.role, Role::Main | Role::Sidecar));
    let (count, asked) = all.fold((0, 0_i64), |(count, asked), spec| {
        (
            count + 1,
            asked.saturating_add(own_memory(spec).unwrap_or(0)),
        )
    });
    of_pod.saturating_sub(asked).max(0) / count.max(1)
}

/// Of the pod as a whole: what it asks for itself; else the sum of its containers, or the largest init container where that is more, and a
/// limit where all have one.
pub(crate) fn of_pod(pod: &Desired) -> LinuxContainerResources {
    let sum = |of: fn(&ContainerSpec) -> Option<i64>| {
        let mut always = Some(0_i64);
        for spec in pod
            .containers
            .iter()
            .filter(|spec| matches!(spec.role, Role::Main | Role::Sidecar))
        {
            always = always
                .zip(of(spec))
                .map(|(sum, one)| sum.saturating_add(one));
        }
        let mut most = always;
        let mut before = 0_i64;
        for spec in &pod.containers {
            match spec.role {
                Role::Init => {
                    most = most
                        .zip(of(spec))
                        .map(|(most, one)| most.max(before.saturating_add(one)))
                }
                Role::Sidecar => before = before.saturating_add(of(spec).unwrap_or(0)),
                _ => {}
            }
        }
        most
    };
    let requests = sum(|spec| {
        let asked = spec.container.resources.as_ref();
        Some(
            asked
                .and_then(|it| thousandths(&it.requests, "cpu"))
                .unwrap_or(0),
        )
    });
    let limits = sum(|spec| thousandths(&spec.container.resources.as_ref()?.limits, "cpu"));
    let memory = sum(|spec| units(&spec.container.resources.as_ref()?.limits, "memory"));
    let whole = pod.resources().cloned().unwrap_or_default();
    let of_pod = thousandths(&whole.limits, "cpu");
    let requests = thousandths(&whole.requests, "cpu").or(of_pod).or(requests);
    let (limits, memory) = (of_pod.or(limits), units(&whole.limits, "memory").or(memory));
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: limits.filter(|it| *it > 0).map_or(0, quota),
        cpu_shares: shares(requests.unwrap_or(0)),
        memory_limit_in_bytes: memory.unwrap_or(0),
        ..Default::default()
    }
}

pub(crate) fn overhead(pod: &Desired) -> LinuxContainerResources {
    let overhead = &pod.spec.overhead;
    let cpu = thousandths(overhead, "cpu").unwrap_or(0);
    LinuxContainerResources {
        cpu_period: if cpu > 0 { CPU_PERIOD_US } else { 0 },
        cpu_quota: if cpu > 0 { quota(cpu) } else { 0 },
        cpu_shares: if cpu > 0 { shares(cpu) } else { 0 },
        memory_limit_in_bytes: units(overhead, "memory").unwrap_or(0),
        ..Default::default()
    }
}

fn quota(milli_cpu: i64) -> i64 {
    milli_cpu
        .saturating_mul(CPU_PERIOD_US / 1000)
        .max(MIN_CPU_QUOTA_US)
}

fn shares(milli_cpu: i64) -> i64 {
    milli_cpu
        .saturating_mul(SHARES_PER_CPU)
        .saturating_div(1000)
        .clamp(CPU_SHARES.0, CPU_SHARES.1)
}

/// The kernel writes a page size with "KB", "MB" and "GB", and means powers of 1024 as Kubernetes' "Mi" does.
fn page_size(size: &str) -> Option<String> {
    let bytes = rounded(Quantity::parse(size)?.nano, 1_000_000_000);
    [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")]
        .into_iter()
        .find(|(unit, _)| bytes > 0 && bytes % unit == 0)
        .map(|(unit, name)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn translate(resources: &str) -> LinuxContainerResources {
        let pod = pod(&format!(
            "  containers: [{{name: a, image: x, resources: {resources}}}]"
        ));
        let node = NodeFacts {
            memory_bytes: 10 << 30,
            ..NodeFacts::default()
        };
        of_container(&pod, &pod.containers[0], &node).unwrap()
    }

    #[test]
    fn requests_and_limits_become_shares_quota_and_memory() {
        for (resources, expected) in [
            ("{}", (2, 0, 0, 1000)),
            ("{limits: {cpu: 500m}}", (512, 50_000, 0, 999)),
            (
                "{requests: {cpu: 250m}, limits: {cpu: 2}}",
                (256, 200_000, 0, 999),
            ),
            ("{requests: {cpu: 1m}}", (2, 0, 0, 999)),
            ("{limits: {cpu: 1m}}", (2, 1000, 0, 999)),
            ("{requests: {cpu: 1000}}", (262_144, 0, 0, 999)),
            ("{limits: {memory: 64Mi}}", (2, 0, 64 << 20, 994)),
            (
                "{limits: {cpu: 1, memory: 1Gi}}",
                (1024, 100_000, 1 << 30, -997),
            ),
        ] {
            let it = translate(resources);
            let got = (
                it.cpu_shares,
                it.cpu_quota,
                it.memory_limit_in_bytes,
                it.oom_score_adj,
            );
            assert_eq!(got, expected, "{resources}");
            assert_eq!(
                (it.cpu_period, it.memory_swap_limit_in_bytes),
                (100_000, it.memory_limit_in_bytes)
            );
        }
    }

    #[test]
    fn hugepages_are_spelt_as_the_kernel_does() {
        let it =
            translate("{limits: {hugepages-2Mi: 4Mi, hugepages-1Gi: 2Gi, memory: 1Gi, cpu: 1}}");
        let limits: Vec<_> = it
            .hugepage_limits
            .iter()
            .map(|it| (&it.page_size[..], it.limit))
            .collect();
        assert_eq!(limits, [("1GB", 2 << 30), ("2MB", 4 << 20)]);
        for (text, size) in [
            ("64Ki", Some("64KB")),
            ("3", None),
            ("x", None),
            ("0", None),
        ] {
            assert_eq!(page_size(text).as_deref(), size, "{text}");
        }
    }

    #[test]
    fn a_pod_needs_what_its_containers_need_together_or_its_largest_init_container() {
        let container = |name: &str, cpu: &str, more: &str| {
            format!(
                "{{name: {name}, image: x, resources: {{requests: {{cpu: {cpu}}}, limits: {{cpu: {cpu}, memory: 1Mi}}}}{more}}}"
            )
        };
        let of = |inits: &str, mains: &str| {
            let it = of_pod(&pod(&format!(
                "  initContainers: [{inits}]\n  containers: [{mains}]"
            )));
            (it.cpu_shares, it.cpu_quota, it.memory_limit_in_bytes)
        };
        let (a, b) = (container("a", "1", ""), container("b", "1", ""));
        assert_eq!(of("", &format!("{a}, {b}")), (2048, 200_000, 2 << 20));
        assert_eq!(of(&container("i", "4", ""), &a), (4096, 400_000, 1 << 20));
        let sidecar = container("s", "2", ", restartPolicy: Always");
        assert_eq!(of(&sidecar, &a), (3072, 300_000, 2 << 20));
        assert_eq!(
            of(&format!("{sidecar}, {}", container("i", "4", "")), &a),
            (6144, 600_000, 2 << 20)
        );
        assert_eq!(of("", "{name: a, image: x}"), (2, 0, 0));
    }

    #[test]
    fn what_a_pod_asks_for_as_a_whole_goes_before_the_sum_and_reaches_those_that_ask_for_nothing() {
        let pod = pod(
            "  resources: {requests: {cpu: 1, memory: 2Gi}, limits: {cpu: 3, memory: 4Gi}}\n  \
             containers: [{name: a, image: x, resources: {requests: {memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}}, {name: b, image: x}]",
        );
        let whole = of_pod(&pod);
        assert_eq!(
            (
                whole.cpu_shares,
                whole.cpu_quota,
                whole.memory_limit_in_bytes
            ),
            (1024, 300_000, 4 << 30)
        );
        let node = NodeFacts {
            memory_bytes: 10 << 30,
            ..NodeFacts::default()
        };
        // quota, memory, oom_score_adj: of 2 GiB one has 1 GiB by itself, and of the rest each half
        for (at, expected) in [(0, (100_000, 1 << 30, 850)), (1, (300_000, 4 << 30, 950))] {
            let it = of_container(&pod, &pod.containers[at], &node).unwrap();
            let got = (it.cpu_quota, it.memory_limit_in_bytes, it.oom_score_adj);
            assert_eq!(got, expected, "{at}");
        }
    }
}
