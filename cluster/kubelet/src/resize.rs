//! Resources that change while a pod runs (the subresource `resize`): what it was given, what its containers have by now, and what it waits for.
//!
//! ```text
//! wanted (the API's) ── does it fit? ──▶ allocated (kept on disk) ── update, or restart ──▶ what a container has (kept on disk)
//!                        │
//!                        └─ Deferred: not now;  Infeasible: never on this node
//! ```
//!
//! All that is made and told of a pod is made of what it was given: what it only wants counts for nothing until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, PodStatus, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use serde::{Deserialize, Serialize};

use crate::{
    Desired,
    division::Amounts as Allocatable,
    pod::{ContainerSpec, Role},
    qos::nano,
    view::Shown,
};

const NANO: i128 = 1_000_000_000;

/// What a pod was given, kept beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resized {
    /// By the containers' names.
    pub allocated: BTreeMap<String, ResourceRequirements>,
    /// What containers were changed to since they were made, by their ids.
    pub applied: BTreeMap<String, ResourceRequirements>,
    /// Ended so that they start again with what they were given, by their ids.
    pub restarting: BTreeSet<String>,
}

/// Why a pod has not been given what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Others have it now.
    Deferred(String),
    /// This node never has so much.
    Infeasible(String),
}

impl Pending {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Deferred(_) => "Deferred",
            Self::Infeasible(_) => "Infeasible",
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Self::Deferred(why) | Self::Infeasible(why) => why,
        }
    }
}

/// How a resize does, for the pod's conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub pending: Option<Pending>,
    /// Why what it was given can't be carried out, for now.
    pub error: Option<String>,
}

impl Resized {
    /// Of a pod that is new: what it asks for.
    pub fn of(pod: &Desired) -> Self {
        let mut new = Self::default();
        new.allocate(pod);
        new
    }

    pub fn allocate(&mut self, wanted: &Desired) {
        self.allocated = wanted
            .containers
            .iter()
            .filter(|spec| counts(spec))
            .map(|spec| (spec.name().to_owned(), asked(spec)))
            .collect();
    }

    /// The pod with what it was given in place of what it wants.
    pub fn given(&self, wanted: &Arc<Desired>) -> Arc<Desired> {
        let is_as_wanted = |spec: &ContainerSpec| {
            let allocated = self.allocated.get(spec.name());
            allocated.is_none_or(|allocated| same(allocated, &asked(spec)))
        };
        if wanted.containers.iter().all(is_as_wanted) {
            return wanted.clone();
        }
        let mut pod = wanted.pod.clone();
        let spec = pod.spec.get_or_insert_default();
        let inits = spec.init_containers.iter_mut().flatten();
        for container in inits.chain(&mut spec.containers) {
            if let Some(allocated) = self.allocated.get(&container.name) {
                container.resources = Some(allocated.clone());
            }
        }
        match Desired::new(pod, wanted.source) {
            Ok(given) => {
                if let Some(handler) = wanted.handler.get() {
                    let _ = given.handler.set(handler.clone());
                }
                Arc::new(given)
            }
            // only resources differ from one that was good
            Err(_) => wanted.clone(),
        }
    }

    /// Forgets containers that are no more.
    pub fn forget(&mut self, is_there: impl Fn(&str) -> bool) {
        self.applied.retain(|id, _| is_there(id));
        self.restarting.retain(|id| is_there(id));
    }
}

/// The pod with what it is told to have been given in place of what it wants.
pub(crate) fn as_told(shown: &Shown) -> Arc<Desired> {
    let mut resized = Resized::of(&shown.pod);
    for (name, given) in &mut resized.allocated {
        let told = shown.container(name);
        if let Some(told) = told.and_then(|status| status.allocated_resources.clone()) {
            given.requests.get_or_insert_default().extend(told);
        }
    }
    resized.given(&shown.pod)
}

/// Whether the pod wants other resources than those of `given`.
pub(crate) fn is_wanted(wanted: &Desired, given: &Desired) -> bool {
    wanted.containers.iter().any(|spec| {
        let other = given.container(spec.name());
        other.is_some_and(|other| !same(&asked(spec), &asked(other)))
    })
}

/// What is to be done about a container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Update,
    Restart,
}

/// From what it has to what it was given.
pub(crate) fn change(spec: &ContainerSpec, has: Option<&ResourceRequirements>) -> Change {
    // made by a kubelet that wrote nothing down: as it is
    let Some(has) = has else {
        return Change::None;
    };
    let given = asked(spec);
    let differs = |name: &str| {
        nano(&has.limits, name) != nano(&given.limits, name)
            || nano(&has.requests, name) != nano(&given.requests, name)
    };
    let restarts = |name: &str| {
        let policies = spec.container.resize_policy.iter().flatten();
        let mut own = policies.filter(|policy| policy.resource_name == name);
        own.any(|policy| policy.restart_policy == "RestartContainer")
    };
    let changed: Vec<&str> = ["cpu", "memory"]
        .into_iter()
        .filter(|name| differs(name))
        .collect();
    match changed.as_slice() {
        [] => Change::None,
        names if names.iter().any(|name| restarts(name)) => Change::Restart,
        _ => Change::Update,
    }
}

/// Whether the new limits are above the old ones, or below: (some are above, some are below). None is above all.
pub(crate) fn direction(
    has: &ResourceRequirements,
    given: &ResourceRequirements,
    name: &str,
) -> (bool, bool) {
    let limit = |of: &ResourceRequirements| nano(&of.limits, name).unwrap_or(i128::MAX);
    let (has, given) = (limit(has), limit(given));
    (given > has, given < has)
}

/// Why not, where the node can't give the pod what it wants. What it asks for less of is given at once.
pub(crate) fn refusal(
    wanted: &Desired,
    given: &Desired,
    others: &[Shown],
    allocatable: &Allocatable,
) -> Option<Pending> {
    if given.resources().is_some() {
        let why = "resizing containers of a pod that has resources of its own is not built";
        return Some(Pending::Infeasible(why.into()));
    }
    for (name, unit, all) in [
        ("cpu", NANO / 1000, i128::from(allocatable.cpu_milli)),
        ("memory", NANO, i128::from(allocatable.memory)),
    ] {
        let (wants, has) = (sum(wanted, name) / unit, sum(given, name) / unit);
        if wants <= has || all == 0 {
            continue;
        }
        if wants > all {
            return Some(Pending::Infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {wants}, capacity: {all}"
            )));
        }
        let used: i128 = others
            .iter()
            .filter(|shown| shown.pod.uid != wanted.uid && is_alive(&shown.status))
            .map(|shown| of_shown(shown, name) / unit)
            .sum();
        if wants + used > all {
            return Some(Pending::Deferred(format!(
                "Node didn't have enough resource: {name}, requested: {wants}, used: {used}, capacity: {all}"
            )));
        }
    }
    None
}

fn is_alive(status: &PodStatus) -> bool {
    !matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))
}

/// What a pod asks for, in billionths: containers that run beside each other.
fn sum(pod: &Desired, name: &str) -> i128 {
    let all = pod.containers.iter().filter(|spec| counts(spec));
    all.filter_map(|spec| of_request(&asked(spec), name)).sum()
}

/// What it was given, as it is told of; else what it asks for.
fn of_shown(shown: &Shown, name: &str) -> i128 {
    let given = |spec: &ContainerSpec| {
        let status: &ContainerStatus = shown.container(spec.name())?;
        let allocated = status.allocated_resources.as_ref()?;
        nano(&Some(allocated.clone()), name)
    };
    let all = shown.pod.containers.iter().filter(|spec| counts(spec));
    all.filter_map(|spec| given(spec).or_else(|| of_request(&asked(spec), name)))
        .sum()
}

fn of_request(resources: &ResourceRequirements, name: &str) -> Option<i128> {
    nano(&resources.requests, name).or_else(|| nano(&resources.limits, name))
}

/// Those that run all the time; what init containers have is not changed.
fn counts(spec: &ContainerSpec) -> bool {
    matches!(spec.role, Role::Main | Role::Sidecar)
}

pub(crate) fn asked(spec: &ContainerSpec) -> ResourceRequirements {
    spec.container.resources.clone().unwrap_or_default()
}

/// The same amounts, however they are written.
fn same(one: &ResourceRequirements, other: &ResourceRequirements) -> bool {
    let amounts = |list: &Option<BTreeMap<String, Quantity>>| {
        let names = list.iter().flat_map(|list| list.keys());
        let all = names.map(|name| (name.clone(), nano(list, name)));
        all.collect::<BTreeMap<_, _>>()
    };
    amounts(&one.requests) == amounts(&other.requests)
        && amounts(&one.limits) == amounts(&other.limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn of(resources: &str) -> Arc<Desired> {
        Arc::new(pod(&format!(
            "  containers: [{{name: a, image: x, resources: {resources}, resizePolicy: [{{resourceName: memory, restartPolicy: RestartContainer}}]}}, {{name: b, image: x}}]"
        )))
    }

    #[test]
    fn a_pod_is_what_it_was_given_until_it_is_given_more() {
        let small = of("{requests: {cpu: 100m, memory: 10Mi}}");
        let mut resized = Resized::of(&small);
        assert!(Arc::ptr_eq(&resized.given(&small), &small));
        // the same amount in other words is no change
        let again = of("{requests: {cpu: '0.1', memory: 10240Ki}}");
        assert!(Arc::ptr_eq(&resized.given(&again), &again));
        let large = of("{requests: {cpu: 200m, memory: 10Mi}}");
        let given = resized.given(&large);
        assert!(is_wanted(&large, &given));
        assert_eq!(asked(&given.containers[0]), asked(&small.containers[0]));
        resized.allocate(&large);
        assert!(!is_wanted(&large, &resized.given(&large)));
    }

    #[test]
    fn a_change_is_an_update_or_a_restart_as_its_policy_says() {
        let now = of("{requests: {cpu: 100m}, limits: {memory: 10Mi}}");
        let spec = &now.containers[0];
        for (has, then) in [
            (
                "{requests: {cpu: 100m}, limits: {memory: 10Mi}}",
                Change::None,
            ),
            (
                "{requests: {cpu: 50m}, limits: {memory: 10Mi}}",
                Change::Update,
            ),
            (
                "{requests: {cpu: 100m}, limits: {memory: 20Mi}}",
                Change::Restart,
            ),
            (
                "{requests: {cpu: 50m}, limits: {memory: 20Mi}}",
                Change::Restart,
            ),
        ] {
            let has = asked(&of(has).containers[0]);
            assert_eq!(change(spec, Some(&has)), then, "{has:?}");
        }
        assert_eq!(change(spec, None), Change::None);
    }

    #[test]
    fn what_does_not_fit_waits_or_is_never_given() {
        let node = Allocatable {
            cpu_milli: 2000,
            memory: 1 << 30,
            ..Allocatable::default()
        };
        let mut other =
            pod("  containers: [{name: a, image: x, resources: {requests: {cpu: 1500m}}}]");
        other.uid = "other".into();
        let mut other = Shown {
            pod: Arc::new(other),
            status: PodStatus::default(),
        };
        let given = of("{requests: {cpu: 100m, memory: 10Mi}}");
        let refused = |wanted: &str, other: &Shown| {
            refusal(&of(wanted), &given, std::slice::from_ref(other), &node)
                .map(|pending| format!("{}: {}", pending.reason(), pending.message()))
        };
        assert_eq!(
            refused("{requests: {cpu: 500m, memory: 10Mi}}", &other),
            None
        );
        assert_eq!(
            refused("{requests: {cpu: 600m, memory: 10Mi}}", &other).unwrap(),
            "Deferred: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"
        );
        assert_eq!(
            refused("{requests: {cpu: 100m, memory: 2Gi}}", &other).unwrap(),
            "Infeasible: Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824"
        );
        // less is given, however much others have
        assert_eq!(
            refused("{requests: {cpu: 50m, memory: 10Mi}}", &other),
            None
        );
        other.status.phase = Some("Succeeded".into());
        assert_eq!(refused("{requests: {cpu: 2, memory: 10Mi}}", &other), None);
    }

    #[test]
    fn no_limit_is_above_all() {
        let of = |text: &str| asked(&of(text).containers[0]);
        let (none, some, more) = (of("{}"), of("{limits: {cpu: 1}}"), of("{limits: {cpu: 2}}"));
        assert_eq!(direction(&some, &more, "cpu"), (true, false));
        assert_eq!(direction(&none, &more, "cpu"), (false, true));
        assert_eq!(direction(&more, &more, "cpu"), (false, false));
    }
}
