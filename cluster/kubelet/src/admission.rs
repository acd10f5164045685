//! Whether a pod may begin on this node: upstream's predicates, in their order and with their words. A scheduler has looked at most of it before;
//! but pods are bound by others, too, and two may have been bound at once.
//!
//! Pure functions. Who runs already is never asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use crate::{
    API, Desired, Role, amounts,
    division::Amounts,
    qos::{Class, rounded},
};

/// From here on a pod is the system's (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;
const NANO: i128 = 1_000_000_000;
pub(crate) const NODE_AFFINITY: &str = "NodeAffinity";
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// What the node runs short of, as its conditions say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

/// The same for all who know it.
#[derive(Debug, Clone, Default)]
pub struct Pressed(Arc<RwLock<Pressure>>);

impl Pressed {
    pub(crate) fn now(&self) -> Pressure {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, pressure: Pressure) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pressure;
    }
}

impl Pressure {
    fn names(self) -> Vec<&'static str> {
        let all = [
            (self.memory, "MemoryPressure"),
            (self.disk, "DiskPressure"),
            (self.pids, "PIDPressure"),
        ];
        all.into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, name)| name)
            .collect()
    }
}

/// What a pod is held against.
#[derive(Debug)]
pub(crate) struct Around<'a> {
    pub node: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub taints: &'a [Taint],
    pub allocatable: &'a Amounts,
    /// Of all that are here.
    pub load: &'a Load,
    pub pressure: Pressure,
}

/// Why a pod may not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// `OutOfcpu`, `NodeAffinity`, …
    pub reason: String,
    pub message: String,
    /// All that there is too little of, where there is no other reason.
    pub lacks: Vec<Lack>,
}

/// How much is missing, in units of the resource: thousandths of a processor, bytes, pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    pub name: String,
    pub amount: i128,
}

/// What pods ask for together, and the node's ports that they have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    amounts: BTreeMap<String, i128>,
    ports: BTreeSet<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    number: i32,
    protocol: String,
    /// `0.0.0.0`: all of the node's.
    address: String,
}

impl Load {
    pub fn of<'a>(pods: impl IntoIterator<Item = &'a Desired>) -> Self {
        let mut load = Self::default();
        pods.into_iter().for_each(|pod| load.add(pod));
        load
    }

    pub fn add(&mut self, pod: &Desired) {
        for name in names(pod) {
            let amount = self.amounts.entry(name.clone()).or_default();
            *amount = amount.saturating_add(asked(pod, &name));
        }
        self.ports.extend(ports(pod));
    }

    fn amount(&self, name: &str) -> i128 {
        self.amounts.get(name).copied().unwrap_or(0)
    }
}

/// In upstream's order.
fn names(pod: &Desired) -> Vec<String> {
    let pages: BTreeSet<&String> = pod
        .containers
        .iter()
        .filter_map(|spec| spec.container.resources.as_ref()?.requests.as_ref())
        .flat_map(BTreeMap::keys)
        .filter(|name| name.starts_with("hugepages-"))
        .collect();
    let own = ["pods", "cpu", "memory", "ephemeral-storage"];
    own.into_iter()
        .map(str::to_owned)
        .chain(pages.into_iter().cloned())
        .collect()
}

fn asked(pod: &Desired, name: &str) -> i128 {
    let per = match name {
        "pods" => return 1,
        "cpu" => NANO / 1000,
        _ => NANO,
    };
    i128::from(rounded(amounts::request(pod, name), per))
}

/// Of the node: those of pods in its network, too, which have them all.
fn ports(pod: &Desired) -> impl Iterator<Item = Port> {
    let with_ports = pod
        .containers
        .iter()
        .filter(|spec| matches!(spec.role, Role::Main | Role::Sidecar));
    let all = with_ports.flat_map(|spec| spec.container.ports.iter().flatten());
    all.filter_map(move |port| {
        let number = match pod.host_network() {
            true => port.host_port.or(Some(port.container_port)),
            false => port.host_port,
        };
        Some(Port {
            number: number.filter(|number| *number > 0)?,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            address: port
                .host_ip
                .clone()
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| "0.0.0.0".into()),
        })
    })
}

impl Port {
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        let all = |it: &Self| it.address == "0.0.0.0";
        (self.number, &self.protocol) == (other.number, &other.protocol)
            && (all(self) || all(other) || self.address == other.address)
    }
}

/// What the node can't be without: never evicted, and admitted where others are not.
pub(crate) fn is_critical(pod: &Desired) -> bool {
    pod.source != API || pod.spec.priority.unwrap_or(0) >= CRITICAL
}

pub(crate) fn admit(pod: &Desired, around: &Around<'_>) -> Result<(), Refused> {
    under_pressure(pod, around.pressure)?;
    of_another_system(pod)?;
    let lacks = lacks(pod, around);
    let predicate = predicate(pod, around);
    match (lacks.first(), predicate) {
        (None, None) => Ok(()),
        (Some((lack, message)), predicate) => Err(Refused {
            reason: format!("OutOf{}", lack.name),
            message: message.clone(),
            lacks: match predicate {
                None => lacks.into_iter().map(|(lack, _)| lack).collect(),
                Some(_) => Vec::new(),
            },
        }),
        (None, Some((name, why))) => Err(refused(name, format!("Predicate {name} failed: {why}"))),
    }
}

/// Of any pod that comes while the machine shuts down.
pub(crate) fn shuts_down() -> Refused {
    Refused {
        reason: "NodeShutdown".into(),
        message: "the node is shutting down".into(),
        lacks: Vec::new(),
    }
}

/// The same as an event's reason, of which there is a bounded number.
pub(crate) fn event(reason: &str) -> &'static str {
    const ALL: [&str; 13] = [
        "OutOfpods",
        "OutOfcpu",
        "OutOfmemory",
        "OutOfephemeral-storage",
        NODE_AFFINITY,
        "NodeName",
        "NodePorts",
        "TaintToleration",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "PodOSNotSupported",
        "UnexpectedAdmissionError",
        "Evicted",
        "NodeShutdown",
    ];
    let found = ALL.into_iter().find(|one| *one == reason);
    found.unwrap_or("OutOfhugepages")
}

fn refused(reason: &str, message: String) -> Refused {
    Refused {
        reason: reason.to_owned(),
        message,
        lacks: Vec::new(),
    }
}

/// Who asks for nothing would be the first to go where memory is short; where something else is, everybody is kept away.
fn under_pressure(pod: &Desired, pressure: Pressure) -> Result<(), Refused> {
    let names = pressure.names();
    if names.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if names == ["MemoryPressure"] {
        let taint = Taint {
            key: MEMORY_PRESSURE.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let tolerations = pod.spec.tolerations.iter().flatten();
        if Class::of(pod) != Class::BestEffort
            || tolerations.into_iter().any(|it| tolerates(it, &taint))
        {
            return Ok(());
        }
    }
    let message = format!("The node had condition: [{}]. ", names.join(" "));
    Err(refused("Evicted", message))
}

fn of_another_system(pod: &Desired) -> Result<(), Refused> {
    let labels = pod.pod.metadata.labels.as_ref();
    if labels
        .and_then(|all| all.get("kubernetes.io/os"))
        .is_some_and(|os| os != "linux")
    {
        let message =
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(refused(
            "PodOSSelectorNodeLabelDoesNotMatch",
            message.into(),
        ));
    }
    if pod.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(refused("PodOSNotSupported", message.into()));
    }
    Ok(())
}

fn lacks(pod: &Desired, around: &Around<'_>) -> Vec<(Lack, String)> {
    let each = names(pod).into_iter().filter_map(|name| {
        let requested = asked(pod, &name);
        let used = around.load.amount(&name);
        let capacity = i128::from(around.allocatable.of(&name).unwrap_or(0));
        let amount = requested - (capacity - used);
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        (requested > 0 && amount > 0).then_some((Lack { name, amount }, message))
    });
    each.collect()
}

/// The first that fails, and why.
fn predicate(pod: &Desired, around: &Around<'_>) -> Option<(&'static str, &'static str)> {
    if !is_selected(pod, around) {
        return Some((
            NODE_AFFINITY,
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    let name = pod.spec.node_name.as_deref().unwrap_or_default();
    if !name.is_empty() && name != around.node {
        return Some(("NodeName", "node(s) didn't match the requested node name"));
    }
    let mut wanted = ports(pod);
    if wanted.any(|port| {
        around
            .load
            .ports
            .iter()
            .any(|has| has.is_in_the_way_of(&port))
    }) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Some(("NodePorts", why));
    }
    let tolerations = || pod.spec.tolerations.iter().flatten();
    let mut taints = around.taints.iter().filter(|it| it.effect == "NoExecute");
    // static pods are the node's own
    if pod.source == API && taints.any(|taint| !tolerations().any(|it| tolerates(it, taint))) {
        return Some((
            "TaintToleration",
            "node(s) had taints that the pod didn't tolerate",
        ));
    }
    None
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |it: &Option<String>| it.clone().unwrap_or_default();
    let (key, effect) = (given(&toleration.key), given(&toleration.effect));
    let same_value = || given(&toleration.value) == given(&taint.value);
    let same_key = key == taint.key;
    (effect.is_empty() || effect == taint.effect)
        && match toleration.operator.as_deref() {
            Some("Exists") => same_key || key.is_empty(),
            None | Some("" | "Equal") => same_key && same_value(),
            Some(_) => false,
        }
}

fn is_selected(pod: &Desired, around: &Around<'_>) -> bool {
    let selector = pod.spec.node_selector.iter().flatten();
    let mut labels = selector.map(|(key, value)| around.labels.get(key) == Some(value));
    if !labels.all(|is| is) {
        return false;
    }
    let required = pod
        .spec
        .affinity
        .as_ref()
        .and_then(|it| it.node_affinity.as_ref())
        .and_then(|it| {
            it.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    required.is_none_or(|it| {
        let mut terms = it.node_selector_terms.iter();
        terms.any(|term| fits(term, around.node, around.labels))
    })
}

/// Whether a node is meant. An empty term fits nothing.
pub(crate) fn fits(term: &NodeSelectorTerm, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let name = BTreeMap::from([("metadata.name".to_owned(), node.to_owned())]);
    let lists = [
        (&term.match_expressions, labels),
        (&term.match_fields, &name),
    ];
    let mut all = lists
        .into_iter()
        .flat_map(|(list, values)| list.iter().flatten().map(move |it| (it, values)))
        .peekable();
    all.peek().is_some() && all.all(|(it, values)| holds(it, values))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let has = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_one = || has.is_some_and(|has| values.contains(has));
    let numbers = || {
        let has = has?.parse::<i64>().ok()?;
        Some((has, values.first()?.parse::<i64>().ok()?))
    };
    match requirement.operator.as_str() {
        "In" => is_one(),
        "NotIn" => !is_one(),
        "Exists" => has.is_some(),
        "DoesNotExist" => has.is_none(),
        "Gt" => numbers().is_some_and(|(has, value)| has > value),
        "Lt" => numbers().is_some_and(|(has, value)| has < value),
        _ => false,
    }
}

/// Who has to go so that a critical pod fits, the fewest and the least important; none: whoever went, it would not fit.
pub(crate) fn preempted<'a>(
    pod: &Desired,
    others: &[&'a Desired],
    lacks: &[Lack],
) -> Option<Vec<&'a Desired>> {
    let of = |class: Class| -> Vec<&'a Desired> {
        let may_go = others.iter().filter(|it| gives_way(it, pod));
        may_go
            .filter(|it| Class::of(it) == class)
            .copied()
            .collect()
    };
    let (best_effort, burstable, guaranteed) = (
        of(Class::BestEffort),
        of(Class::Burstable),
        of(Class::Guaranteed),
    );
    let without = |parts: [&[&Desired]; 2]| -> Vec<Lack> { less(lacks, parts.concat()) };
    // each class as if all of the lesser ones went, and then of these only who is needed still
    let guaranteed = nearest(guaranteed, without([&best_effort, &burstable]))?;
    let burstable = nearest(burstable, without([&best_effort, &guaranteed]))?;
    let best_effort = nearest(best_effort, without([&burstable, &guaranteed]))?;
    Some([best_effort, burstable, guaranteed].concat())
}

fn gives_way(other: &Desired, to: &Desired) -> bool {
    let priority = |it: &Desired| it.spec.priority;
    (is_critical(to) && !is_critical(other))
        || priority(to)
            .zip(priority(other))
            .is_some_and(|(to, other)| to > other)
}

/// What is lacking still without these.
fn less(lacks: &[Lack], pods: Vec<&Desired>) -> Vec<Lack> {
    let left = lacks.iter().map(|lack| {
        let freed = pods.iter().map(|pod| asked(pod, &lack.name));
        Lack {
            amount: freed.fold(lack.amount, |left, one| left.saturating_sub(one)),
            ..lack.clone()
        }
    });
    left.filter(|lack| lack.amount > 0).collect()
}

/// One after the other who comes nearest to what is lacking, and of equals who asks for less.
fn nearest(mut pods: Vec<&Desired>, mut lacks: Vec<Lack>) -> Option<Vec<&Desired>> {
    let mut all = Vec::new();
    while !lacks.is_empty() {
        let distance = |pod: &Desired| -> f64 {
            let each = lacks.iter().map(|lack| {
                let left = (lack.amount - asked(pod, &lack.name)).max(0);
                (left as f64 / lack.amount as f64).powi(2)
            });
            each.sum()
        };
        let rank = |pod: &Desired| (distance(pod), asked(pod, "memory"), asked(pod, "cpu"));
        let least = pods
            .iter()
            .enumerate()
            .min_by(|(_, a), (_, b)| {
                let (a, b) = (rank(a), rank(b));
                a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal)
            })
            .map(|(at, _)| at)?;
        let pod = pods.swap_remove(least);
        lacks = less(&lacks, vec![pod]);
        all.push(pod);
    }
    Some(all)
}

#[cfg(test)]
mod tests;
