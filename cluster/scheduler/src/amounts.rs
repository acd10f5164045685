//! Amounts of resources, in the units that they are summed in.

use std::{collections::BTreeMap, sync::Arc};

use berth_kinds::{Amount, Quantity as Parsed, Runs, neediest};
use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

/// A container that asks for none is weighed as if it asked for this much, so that such containers spread, too (upstream's figures).
pub const WEIGHED_CPU_MILLI: i64 = 100;
pub const WEIGHED_MEMORY: i64 = 200 << 20;

/// What a pod asks for, or a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Huge pages (bytes) and what device plugins have (pieces); by name, none twice.
    pub others: Vec<(Arc<str>, i64)>,
}

type List = BTreeMap<String, Quantity>;

impl Amounts {
    /// Of a ResourceList. Fractions are rounded up; what is no quantity is nothing.
    pub fn of(list: Option<&List>) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let Some(parsed) = Parsed::parse(&quantity.0) else {
                continue;
            };
            let in_units = |nano: i128| {
                let whole = parsed.nano.div_euclid(nano) + i128::from(parsed.nano % nano != 0);
                i64::try_from(whole).unwrap_or(i64::MAX)
            };
            match name.as_str() {
                "cpu" => amounts.cpu_milli = in_units(1_000_000),
                "memory" => amounts.memory = in_units(1_000_000_000),
                "ephemeral-storage" => amounts.ephemeral_storage = in_units(1_000_000_000),
                "pods" => {}
                other => amounts.others.push((other.into(), in_units(1_000_000_000))),
            }
        }
        amounts
    }

    pub fn other(&self, name: &str) -> i64 {
        let mut others = self.others.iter();
        others
            .find(|(other, _)| **other == *name)
            .map_or(0, |(_, amount)| *amount)
    }

    /// Each amount and its like, by a function; one that is only on one side meets 0.
    fn merge(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.cpu_milli = with(self.cpu_milli, other.cpu_milli);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.others {
            match self.others.iter_mut().find(|(mine, _)| mine == name) {
                Some((_, mine)) => *mine = with(*mine, *amount),
                None => self.others.push((name.clone(), with(0, *amount))),
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    fn sorted(mut self) -> Self {
        self.others.retain(|(_, amount)| *amount != 0);
        self.others.sort();
        self
    }
}

impl Amount for Amounts {
    fn add(&mut self, more: &Self) {
        self.merge(more, i64::saturating_add);
    }

    fn at_least(&mut self, least: &Self) {
        self.merge(least, i64::max);
    }
}

/// What a pod asks its node for: its containers together, or its init containers' greatest need if that is more; sidecars add to all that comes after
/// them. What the pod as a whole asks for (`spec.resources`) goes before its containers' sum. Its overhead is on top.
pub fn requests(spec: &PodSpec) -> Amounts {
    of_containers(spec, |container| {
        Amounts::of(requested(container.resources.as_ref()))
    })
}

/// The same, for scores: a container that asks for no processor time or no memory counts as if it did. (milli-cores, bytes)
pub fn weighed(spec: &PodSpec) -> (i64, i64) {
    let all = of_containers(spec, |container| {
        let list = requested(container.resources.as_ref());
        let has = |name: &str| list.is_some_and(|list| list.contains_key(name));
        let mut amounts = Amounts::of(list);
        if !has("cpu") {
            amounts.cpu_milli = WEIGHED_CPU_MILLI;
        }
        if !has("memory") {
            amounts.memory = WEIGHED_MEMORY;
        }
        amounts
    });
    (all.cpu_milli, all.memory)
}

fn requested(resources: Option<&ResourceRequirements>) -> Option<&List> {
    resources.and_then(|resources| resources.requests.as_ref())
}

fn of_containers(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mains = spec.containers.iter().map(|it| (Runs::Main, of(it)));
    let inits = spec.init_containers.iter().flatten().map(|it| {
        let runs = match it.restart_policy.as_deref() {
            Some("Always") => Runs::Sidecar,
            _ => Runs::Init,
        };
        (runs, of(it))
    });
    let mut together = neediest(mains.chain(inits));
    if let Some(whole) = requested(spec.resources.as_ref()) {
        let amounts = Amounts::of(Some(whole));
        if whole.contains_key("cpu") {
            together.cpu_milli = amounts.cpu_milli;
        }
        if whole.contains_key("memory") {
            together.memory = amounts.memory;
        }
        for (name, amount) in amounts.others {
            together.others.retain(|(other, _)| *other != name);
            together.others.push((name, amount));
        }
    }
    together.add(&Amounts::of(spec.overhead.as_ref()));
    together.sorted()
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn spec(value: serde_json::Value) -> PodSpec {
        from_value(value).expect("a pod's spec")
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_for_its_init_containers() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Gi"}});
        let of = |value| requests(&spec(value)).cpu_milli;
        let two = json!([{"name": "a", "resources": asks("200m")}, {"name": "b", "resources": asks("0.3")}]);
        assert_eq!(of(json!({"containers": two})), 500);
        assert_eq!(
            of(
                json!({"containers": two, "initContainers": [{"name": "i", "resources": asks("2")}]})
            ),
            2000
        );
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": asks("100m")});
        let init = json!({"name": "i", "resources": asks("450m")});
        // the sidecar runs beside an init container that comes after it, and beside all containers
        assert_eq!(
            of(json!({"containers": two, "initContainers": [sidecar, init]})),
            600
        );
        let init = json!({"name": "i", "resources": asks("550m")});
        assert_eq!(
            of(json!({"containers": two, "initContainers": [sidecar, init]})),
            650
        );
        assert_eq!(
            of(json!({"containers": two, "initContainers": [init, sidecar]})),
            600
        );
        assert_eq!(
            of(json!({"containers": two, "overhead": {"cpu": "10m"}})),
            510
        );
        let whole = json!({"containers": two, "resources": {"requests": {"cpu": "1"}}});
        assert_eq!(of(whole), 1000);
    }

    #[test]
    fn who_asks_for_nothing_is_weighed() {
        let spec = spec(
            json!({"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}),
        );
        assert_eq!(weighed(&spec), (1100, 2 * WEIGHED_MEMORY));
        assert_eq!(
            requests(&spec),
            Amounts {
                cpu_milli: 1000,
                ..Amounts::default()
            }
        );
    }

    #[test]
    fn fractions_are_rounded_up_and_nonsense_is_nothing() {
        let list = BTreeMap::from([
            ("cpu".to_owned(), Quantity("1u".into())),
            ("memory".to_owned(), Quantity("1500m".into())),
            ("example.com/gpu".to_owned(), Quantity("2".into())),
            ("ephemeral-storage".to_owned(), Quantity("much".into())),
        ]);
        let amounts = Amounts::of(Some(&list));
        assert_eq!((amounts.cpu_milli, amounts.memory), (1, 2));
        assert_eq!(
            (amounts.other("example.com/gpu"), amounts.ephemeral_storage),
            (2, 0)
        );
    }
}
