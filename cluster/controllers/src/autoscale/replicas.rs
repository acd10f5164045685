//! How many replicas a metric asks for: as many as bring the use of each to its target. Pods that are not ready, or of which nothing is known, count on the careful
//! side.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::usage::{Usage, milli};

/// After its start a pod's CPU may be used for getting ready (as upstream, and the next).
const CPU_BEGINS: SignedDuration = SignedDuration::from_secs(300);
/// One that was never ready after so long is not ready.
const READY_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// How far from its target a use may be without anything being done: 0.1 is a tenth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerances {
    pub up: f64,
    pub down: f64,
}

impl Default for Tolerances {
    fn default() -> Self {
        Self { up: 0.1, down: 0.1 }
    }
}

impl Tolerances {
    fn has(self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// Percent of what is requested.
    Utilization(i32),
    /// Thousandths of the resource's unit, each pod.
    Average(i64),
}

/// A metric of resources.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric<'a> {
    pub resource: &'a str,
    pub container: Option<&'a str>,
    pub target: Target,
    pub tolerances: Tolerances,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub replicas: i32,
    /// Percent.
    pub utilization: Option<i32>,
    /// Thousandths, each pod.
    pub average: i64,
}

#[derive(Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

impl Groups {
    fn of(
        pods: &[Arc<Pod>],
        usages: &mut BTreeMap<String, Usage>,
        resource: &str,
        now: Timestamp,
    ) -> Self {
        let mut groups = Self::default();
        for pod in pods {
            let (name, phase) = (
                name(pod),
                pod.status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref()),
            );
            if pod.metadata.deletion_timestamp.is_some() || phase == Some("Failed") {
                usages.remove(name);
                continue;
            }
            if phase == Some("Pending") {
                usages.remove(name);
                groups.unready.insert(name.to_owned());
                continue;
            }
            let Some(usage) = usages.get(name) else {
                groups.missing.insert(name.to_owned());
                continue;
            };
            if resource == "cpu" && is_unready(pod, usage, now) {
                usages.remove(name);
                groups.unready.insert(name.to_owned());
                continue;
            }
            groups.ready += 1;
        }
        groups
    }
}

fn is_unready(pod: &Pod, usage: &Usage, now: Timestamp) -> bool {
    let ready = || {
        let status = pod.status.as_ref()?;
        let ready = status
            .conditions
            .as_ref()?
            .iter()
            .find(|one| one.type_ == "Ready")?;
        Some((status.start_time.as_ref()?.0, ready))
    };
    let Some((start, ready)) = ready() else {
        return true;
    };
    let changed = ready
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::MIN, |at| at.0);
    let is_false = ready.status == "False";
    let after = |time: Timestamp, by| time.checked_add(by).unwrap_or(Timestamp::MAX);
    if after(start, CPU_BEGINS) > now {
        is_false || usage.at < after(changed, usage.window)
    } else {
        is_false && after(start, READY_AFTER) > changed
    }
}

/// Thousandths that a pod asks for.
fn request(pod: &Pod, metric: Metric) -> Result<i64, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let resource = metric.resource;
    if metric.container.is_none() {
        let whole = spec
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        let whole = whole.and_then(|requests| milli(&requests.get(resource)?.0));
        if let Some(whole) = whole {
            return Ok(whole);
        }
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let mut containers: Vec<_> = spec.containers.iter().chain(sidecars).collect();
    if let Some(wanted) = metric.container {
        containers.retain(|one| one.name == wanted);
        if containers.is_empty() {
            return Err(format!("container {wanted} not found in Pod {}", name(pod)));
        }
    }
    let each = containers.iter().map(|one| {
        let requests = one
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        let amount = requests.and_then(|requests| milli(&requests.get(resource)?.0));
        amount.ok_or_else(|| {
            format!(
                "missing request for {resource} in container {} of Pod {}",
                one.name,
                name(pod)
            )
        })
    });
    each.sum()
}

/// What is used against what should be, the percentage, and what each uses.
fn ratio(
    usages: &BTreeMap<String, Usage>,
    requests: &BTreeMap<&str, i64>,
    target: Target,
) -> Result<(f64, Option<i32>, i64), String> {
    match target {
        Target::Average(target) => {
            let count = i64::try_from(usages.len()).unwrap_or(i64::MAX).max(1);
            let average = usages
                .values()
                .map(|usage| usage.milli)
                .fold(0, i64::saturating_add)
                / count;
            Ok((average as f64 / target as f64, None, average))
        }
        Target::Utilization(target) => {
            let (mut used, mut requested, mut count) = (0_i64, 0_i64, 0_i64);
            for (pod, usage) in usages {
                if let Some(request) = requests.get(pod.as_str()) {
                    used = used.saturating_add(usage.milli);
                    requested = requested.saturating_add(*request);
                    count += 1;
                }
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let percent = i128::from(used) * 100 / i128::from(requested);
            let percent = i32::try_from(percent).unwrap_or(i32::MAX);
            let ratio = f64::from(percent) / f64::from(target);
            Ok((ratio, Some(percent), used / count))
        }
    }
}

/// `pods` are all that the target's selector takes.
///
/// # Errors
/// In upstream's words.
pub(super) fn propose(
    metric: Metric,
    pods: &[Arc<Pod>],
    mut usages: BTreeMap<String, Usage>,
    current: i32,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = Groups::of(pods, &mut usages, metric.resource, now);
    if usages.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let mut requests = BTreeMap::new();
    if let Target::Utilization(_) = metric.target {
        for pod in pods {
            requests.insert(name(pod), request(pod, metric)?);
        }
    }
    let (used, utilization, average) = ratio(&usages, &requests, metric.target)?;
    let stays = Proposal {
        replicas: current,
        utilization,
        average,
    };
    let asks = |ratio: f64, pods: usize| Proposal {
        replicas: (ratio * pods as f64).ceil().min(f64::from(i32::MAX)) as i32,
        ..stays
    };
    let grows_unready = !groups.unready.is_empty() && used > 1.0;
    if !grows_unready && groups.missing.is_empty() {
        return Ok(if metric.tolerances.has(used) {
            stays
        } else {
            asks(used, groups.ready)
        });
    }
    let nothing = Usage {
        milli: 0,
        at: now,
        window: SignedDuration::ZERO,
    };
    for pod in &groups.missing {
        // they may use all they ask for where there are to be fewer, and nothing where there are to be more
        let milli = match metric.target {
            _ if used > 1.0 => 0,
            Target::Average(target) => target,
            Target::Utilization(target) => {
                let request = requests.get(pod.as_str()).copied().unwrap_or(0);
                request.saturating_mul(i64::from(target.max(100))) / 100
            }
        };
        if used != 1.0 {
            usages.insert(pod.clone(), Usage { milli, ..nothing });
        }
    }
    if grows_unready {
        for pod in &groups.unready {
            usages.insert(pod.clone(), nothing);
        }
    }
    let (again, _, _) = ratio(&usages, &requests, metric.target)?;
    let turns = (used < 1.0 && again > 1.0) || (used > 1.0 && again < 1.0);
    if metric.tolerances.has(again) || turns {
        return Ok(stays);
    }
    let asked = asks(again, usages.len());
    let turns =
        (again < 1.0 && asked.replicas > current) || (again > 1.0 && asked.replicas < current);
    Ok(if turns { stays } else { asked })
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().expect("a time")
    }

    fn pod(name: &str, phase: &str, ready: &str) -> Arc<Pod> {
        Arc::new(
            from_value(json!({
                "metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}, {"name": "d", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {
                    "phase": phase, "startTime": "2026-01-01T10:00:00Z",
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T10:00:10Z"}],
                },
            }))
            .expect("a pod"),
        )
    }

    fn pods(count: usize) -> Vec<Arc<Pod>> {
        (0..count)
            .map(|at| pod(&format!("p{at}"), "Running", "True"))
            .collect()
    }

    fn used(millis: &[i64]) -> BTreeMap<String, Usage> {
        let usage = |milli| Usage {
            milli,
            at: now(),
            window: SignedDuration::from_secs(15),
        };
        let all = millis.iter().enumerate().filter(|(_, milli)| **milli >= 0);
        all.map(|(at, milli)| (format!("p{at}"), usage(*milli)))
            .collect()
    }

    fn cpu(target: Target) -> Metric<'static> {
        Metric {
            resource: "cpu",
            container: None,
            target,
            tolerances: Tolerances::default(),
        }
    }

    fn asked(target: Target, pods: &[Arc<Pod>], usages: &[i64]) -> i32 {
        let current = i32::try_from(pods.len()).expect("a number");
        propose(cpu(target), pods, used(usages), current, now())
            .expect("a proposal")
            .replicas
    }

    #[test]
    fn as_many_as_bring_each_to_its_target() {
        let half = Target::Utilization(50);
        let three = pods(3);
        assert_eq!(asked(half, &three, &[2000, 2000, 2000]), 6);
        assert_eq!(asked(half, &three, &[1000, 1000, 1000]), 3);
        // within a tenth nothing is done
        assert_eq!(asked(half, &three, &[1090, 1090, 1090]), 3);
        assert_eq!(asked(half, &three, &[1130, 1130, 1130]), 4);
        assert_eq!(asked(half, &three, &[100, 100, 100]), 1);
        assert_eq!(asked(Target::Average(300), &three, &[600, 600, 600]), 6);
        let proposal = propose(cpu(half), &three, used(&[2000, 1000, 600]), 3, now());
        assert_eq!(
            proposal,
            Ok(Proposal {
                replicas: 4,
                utilization: Some(60),
                average: 1200
            })
        );
    }

    #[test]
    fn what_is_not_known_counts_on_the_careful_side() {
        let half = Target::Utilization(50);
        let three = pods(3);
        // of a third nothing is known: it may use all that it asks for
        assert_eq!(asked(half, &three, &[200, 200, -1]), 3);
        // or nothing, where there are to be more
        assert_eq!(asked(half, &three, &[2000, 2000, -1]), 4);
        assert_eq!(asked(half, &three, &[1400, 1400, -1]), 3);
        let mut some = pods(2);
        some.push(pod("p2", "Pending", "False"));
        assert_eq!(asked(half, &some, &[2000, 2000]), 4);
        some[2] = pod("p2", "Failed", "False");
        assert_eq!(asked(half, &some, &[2000, 2000]), 4);
        some[2] = pod("p2", "Running", "False");
        assert_eq!(asked(half, &some, &[2000, 2000, 9000]), 4);
    }

    #[test]
    fn what_can_not_be_computed_is_told() {
        let half = cpu(Target::Utilization(50));
        let told = |metric, pods: &[Arc<Pod>], usages: &[i64]| {
            propose(metric, pods, used(usages), 1, now()).expect_err("an error")
        };
        assert_eq!(
            told(half, &[], &[1]),
            "no pods returned by selector while calculating replica count"
        );
        assert_eq!(
            told(half, &pods(1), &[]),
            "did not receive metrics for targeted pods (pods might be unready)"
        );
        let memory = Metric {
            resource: "memory",
            ..half
        };
        assert_eq!(
            told(memory, &pods(1), &[1]),
            "missing request for memory in container c of Pod p0"
        );
        let other = Metric {
            container: Some("x"),
            ..half
        };
        assert_eq!(
            told(other, &pods(1), &[1]),
            "container x not found in Pod p0"
        );
    }

    #[test]
    fn one_container_can_be_what_counts() {
        let metric = Metric {
            container: Some("c"),
            ..cpu(Target::Utilization(50))
        };
        let proposal =
            propose(metric, &pods(2), used(&[1000, 1000]), 2, now()).expect("a proposal");
        assert_eq!((proposal.replicas, proposal.utilization), (4, Some(100)));
    }
}
