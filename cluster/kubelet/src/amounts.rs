//! What a pod asks for and may have altogether, by upstream's arithmetic: its containers together with its sidecars, or the largest init container
//! beside the sidecars before it where that is more (KEP 753); what is said of the pod as a whole goes before that (KEP 2837); and its overhead.

use berth_kinds::{Amount, Runs, neediest};

use crate::{
    pod::{ContainerSpec, Desired, Role},
    qos::nano,
};

/// Of these a pod as a whole may ask for some.
fn is_of_the_whole(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What all of a pod may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Billionths; 0: nobody has a limit.
    pub nano: i128,
    /// Whoever is in the pod has one: so the pod has.
    pub is_whole: bool,
}

/// Billionths.
pub(crate) fn request(pod: &Desired, name: &str) -> i128 {
    let (sum, _) = together(pod, |spec| {
        nano(&spec.container.resources.as_ref()?.requests, name)
    });
    let whole = pod
        .resources()
        .filter(|_| is_of_the_whole(name))
        .and_then(|whole| nano(&whole.requests, name).or_else(|| nano(&whole.limits, name)));
    whole.unwrap_or(sum).saturating_add(overhead(pod, name))
}

pub(crate) fn limit(pod: &Desired, name: &str) -> Limit {
    let (sum, all) = together(pod, |spec| {
        nano(&spec.container.resources.as_ref()?.limits, name)
    });
    let whole = pod
        .resources()
        .filter(|_| is_of_the_whole(name))
        .and_then(|whole| nano(&whole.limits, name))
        .filter(|it| *it > 0);
    let nano = whole.unwrap_or(sum);
    Limit {
        nano: match nano {
            0 => 0,
            nano => nano.saturating_add(overhead(pod, name)),
        },
        is_whole: nano > 0 && (all || whole.is_some()),
    }
}

fn overhead(pod: &Desired, name: &str) -> i128 {
    nano(&pod.spec.overhead, name).unwrap_or(0).max(0)
}

/// The amount, and whether everybody adds to it.
fn together(pod: &Desired, of: impl Fn(&ContainerSpec) -> Option<i128>) -> (i128, bool) {
    let of = |spec: &ContainerSpec| of(spec).unwrap_or(0).max(0);
    let (mut all, mut sidecars) = (true, false);
    let mut own = Vec::new();
    for spec in &pod.containers {
        let one = of(spec);
        let runs = match spec.role {
            Role::Main => Runs::Main,
            Role::Sidecar => Runs::Sidecar,
            Role::Init => Runs::Init,
            // those for a look have nothing of their own
            Role::Ephemeral => continue,
        };
        sidecars |= runs == Runs::Sidecar && one > 0;
        // whoever begins beside a sidecar adds to what that has
        all &= one > 0 || (sidecars && runs != Runs::Main);
        own.push((runs, Nano(one)));
    }
    (neediest(own).0, all)
}

#[derive(Default)]
struct Nano(i128);

impl Amount for Nano {
    fn add(&mut self, more: &Self) {
        self.0 = self.0.saturating_add(more.0);
    }

    fn at_least(&mut self, least: &Self) {
        self.0 = self.0.max(least.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    const ONE: i128 = 1_000_000_000;

    fn of(spec: &str) -> (i128, Limit) {
        let pod = pod(spec);
        (request(&pod, "cpu") / (ONE / 1000), limit(&pod, "cpu"))
    }

    fn limited(milli: i128, is_whole: bool) -> Limit {
        Limit {
            nano: milli * (ONE / 1000),
            is_whole,
        }
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_largest_init_container_and_its_overhead() {
        let container = |name: &str, cpu: &str, more: &str| {
            format!(
                "{{name: {name}, image: x, resources: {{requests: {{cpu: {cpu}}}, limits: {{cpu: {cpu}}}}}{more}}}"
            )
        };
        let (a, b) = (container("a", "1", ""), container("b", "500m", ""));
        let init = container("i", "4", "");
        let sidecar = container("s", "2", ", restartPolicy: Always");
        for (spec, expected) in [
            (
                format!("  containers: [{a}, {b}]"),
                (1500, limited(1500, true)),
            ),
            (
                format!("  initContainers: [{init}]\n  containers: [{a}]"),
                (4000, limited(4000, true)),
            ),
            (
                format!("  initContainers: [{sidecar}]\n  containers: [{a}]"),
                (3000, limited(3000, true)),
            ),
            (
                format!("  initContainers: [{sidecar}, {init}]\n  containers: [{a}]"),
                (6000, limited(6000, true)),
            ),
            (
                format!("  overhead: {{cpu: 250m}}\n  containers: [{a}, {{name: c, image: x}}]"),
                (1250, limited(1250, false)),
            ),
            (
                "  overhead: {cpu: 250m}\n  containers: [{name: c, image: x}]".into(),
                (250, limited(0, false)),
            ),
            (
                format!(
                    "  resources: {{limits: {{cpu: 3}}}}\n  containers: [{a}, {{name: c, image: x}}]"
                ),
                (3000, limited(3000, true)),
            ),
        ] {
            assert_eq!(of(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn storage_is_never_of_the_whole() {
        let pod = pod(
            "  resources: {requests: {cpu: 1}}\n  containers: [{name: a, image: x, resources: {limits: {ephemeral-storage: 1Gi}}}]",
        );
        assert_eq!(
            limit(&pod, "ephemeral-storage"),
            Limit {
                nano: (1 << 30) * ONE,
                is_whole: true
            }
        );
    }
}
