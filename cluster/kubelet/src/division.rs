//! How the node is divided: what there is, what is kept for the system, and what is left for pods.
//!
//! ```text
//! capacity ─ reserved ────────────────▶ what pods may use: limits of the cgroup of all pods
//!          └ reserved, eviction's hard thresholds, huge pages ─▶ allocatable: what schedulers and admission count with
//! ```

use std::{collections::BTreeMap, str::FromStr};

use berth_kinds::Quantity;

use crate::{
    Error, NodeFacts, Thresholds,
    cgroup::{Bound, Limits, shares},
    machine::{Machine, binary},
    problem::Problem,
    qos::rounded,
};

const NANO: i128 = 1_000_000_000;

/// Kept from pods: `cpu=500m,memory=1Gi,ephemeral-storage=1Gi,pid=1000`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
    pub pids: u64,
}

impl FromStr for Reserved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut reserved = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let Some((name, amount)) = part.split_once('=') else {
                return Err(format!("{part:?} is no NAME=AMOUNT"));
            };
            let nano = Quantity::parse(amount)
                .map(|it| it.nano)
                .filter(|nano| *nano >= 0)
                .ok_or_else(|| format!("{name}: {amount:?} is no amount, as 500m or 1Gi"))?;
            let units = |per| rounded(nano, per).unsigned_abs();
            match name {
                "cpu" => reserved.cpu_milli = units(NANO / 1000),
                "memory" => reserved.memory_bytes = units(NANO),
                "ephemeral-storage" => reserved.storage_bytes = units(NANO),
                "pid" => reserved.pids = units(NANO),
                other => {
                    return Err(format!(
                        "{other:?} is none of cpu, memory, ephemeral-storage, pid"
                    ));
                }
            }
        }
        Ok(reserved)
    }
}

/// Whose share of the node is a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforced {
    /// All pods together are limited to what is left for them.
    #[default]
    Pods,
    /// … to what the node has.
    Nothing,
}

impl FromStr for Enforced {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pods" => Ok(Self::Pods),
            "" | "none" => Ok(Self::Nothing),
            other => Err(format!(
                "{other:?} is not built: pods and none are (the cgroups of the system are limited by whoever makes them)"
            )),
        }
    }
}

/// How the node is to be divided.
#[derive(Debug, Clone, Default)]
pub struct Division {
    pub system_reserved: Reserved,
    pub kube_reserved: Reserved,
    pub enforced: Enforced,
    /// Of one pod.
    pub pod_max_pids: Option<u64>,
}

/// Amounts of what a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub cpu_milli: u64,
    pub memory: u64,
    pub storage: u64,
    pub pids: u64,
    pub pods: u64,
    /// Bytes, by the page's size.
    pub huge_pages: BTreeMap<u64, u64>,
}

impl Amounts {
    pub fn capacity(machine: &Machine, facts: &NodeFacts, max_pods: usize) -> Self {
        Self {
            cpu_milli: facts.cpus.unsigned_abs().saturating_mul(1000),
            memory: machine.memory,
            storage: machine.fs.bytes,
            pids: machine.pids,
            pods: max_pods as u64,
            huge_pages: machine.huge_pages.iter().copied().collect(),
        }
    }

    /// By the name that a resource has in a pod; none: the node has none of it.
    pub fn of(&self, name: &str) -> Option<u64> {
        match name {
            "cpu" => Some(self.cpu_milli),
            "memory" => Some(self.memory),
            "ephemeral-storage" => Some(self.storage),
            "pods" => Some(self.pods),
            name => {
                let size = name.strip_prefix("hugepages-")?;
                let mut all = self.huge_pages.iter();
                all.find(|(bytes, _)| binary(**bytes) == size)
                    .map(|(_, all)| *all)
            }
        }
    }

    /// As limits of the cgroup of all pods.
    pub fn limits(&self) -> Limits {
        // what is not known limits nobody
        let at = |most: u64| match most {
            0 => Bound::None,
            most => Bound::At(most),
        };
        Limits {
            cpu_shares: Some(shares(self.cpu_milli)),
            cpu_quota_us: None,
            memory_bytes: Some(at(self.memory)),
            pids: Some(at(self.pids)),
            huge_pages: self
                .huge_pages
                .iter()
                .map(|(size, all)| (*size, Bound::At(*all)))
                .collect(),
        }
    }
}

impl Division {
    /// What pods may use.
    pub(crate) fn for_pods(&self, capacity: &Amounts) -> Amounts {
        let mut left = capacity.clone();
        for reserved in [&self.system_reserved, &self.kube_reserved] {
            left.cpu_milli = left.cpu_milli.saturating_sub(reserved.cpu_milli);
            left.memory = left.memory.saturating_sub(reserved.memory_bytes);
            left.storage = left.storage.saturating_sub(reserved.storage_bytes);
            left.pids = left.pids.saturating_sub(reserved.pids);
        }
        left
    }

    /// What they may ask for.
    pub(crate) fn allocatable(&self, capacity: &Amounts, thresholds: &Thresholds) -> Amounts {
        let mut left = self.for_pods(capacity);
        let pages: u64 = capacity.huge_pages.values().sum();
        let memory = thresholds.memory_reserved(capacity.memory);
        left.memory = left.memory.saturating_sub(memory).saturating_sub(pages);
        let storage = thresholds.storage_reserved(capacity.storage);
        left.storage = left.storage.saturating_sub(storage);
        left
    }

    /// Limits of the cgroup of all pods.
    pub(crate) fn limits(&self, capacity: &Amounts) -> Limits {
        match self.enforced {
            Enforced::Pods => self.for_pods(capacity).limits(),
            Enforced::Nothing => capacity.limits(),
        }
    }

    /// # Errors
    /// More is reserved than there is, by its name.
    pub(crate) fn check(&self, capacity: &Amounts, thresholds: &Thresholds) -> Result<(), Error> {
        let (system, kube) = (&self.system_reserved, &self.kube_reserved);
        let sum = |of: fn(&Reserved) -> u64| of(system).saturating_add(of(kube));
        let memory = thresholds.memory_reserved(capacity.memory);
        let storage = thresholds.storage_reserved(capacity.storage);
        for (name, reserved, all) in [
            ("cpu", sum(|it| it.cpu_milli), capacity.cpu_milli),
            (
                "memory",
                sum(|it| it.memory_bytes).saturating_add(memory),
                capacity.memory,
            ),
            (
                "ephemeral-storage",
                sum(|it| it.storage_bytes).saturating_add(storage),
                capacity.storage,
            ),
            ("pid", sum(|it| it.pids), capacity.pids),
        ] {
            if all > 0 && reserved > all {
                let unit = if name == "cpu" { "m" } else { "" };
                let what = format!(
                    "{reserved}{unit} of {name} are reserved (with eviction's hard threshold), and the node has {all}{unit}: lower \
                     --system-reserved, --kube-reserved or --eviction-hard"
                );
                return Err(Problem::new("", what).into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity() -> Amounts {
        Amounts {
            cpu_milli: 2000,
            memory: 8 << 30,
            storage: 100 << 30,
            pids: 32768,
            pods: 110,
            huge_pages: BTreeMap::from([(2 << 20, 1 << 30)]),
        }
    }

    #[test]
    fn pods_have_what_is_not_reserved_and_may_ask_for_less() {
        let division = Division {
            system_reserved: "cpu=250m,memory=1Gi,pid=768".parse().unwrap(),
            kube_reserved: "cpu=250m,ephemeral-storage=10Gi".parse().unwrap(),
            ..Division::default()
        };
        let limits = division.limits(&capacity());
        assert_eq!(
            (limits.cpu_shares, limits.memory_bytes, limits.pids),
            (Some(1536), Some(Bound::At(7 << 30)), Some(Bound::At(32000)))
        );
        let thresholds = Thresholds::default();
        let told = division.allocatable(&capacity(), &thresholds);
        assert_eq!(told.of("cpu"), Some(1500));
        assert_eq!(told.of("memory"), Some((6 << 30) - (100 << 20)));
        assert_eq!(told.of("ephemeral-storage"), Some(80 << 30));
        assert_eq!(told.of("hugepages-2Mi"), Some(1 << 30));
        assert_eq!(told.of("hugepages-1Gi"), None);
        let free = Division {
            enforced: Enforced::Nothing,
            ..division
        };
        let limits = free.limits(&capacity());
        assert_eq!(limits.memory_bytes, Some(Bound::At(8 << 30)));
    }

    #[test]
    fn what_is_reserved_is_there() {
        let thresholds = Thresholds::default();
        for (reserved, says) in [
            ("cpu=3", "3000m of cpu"),
            ("memory=8Gi", "of memory"),
            ("ephemeral-storage=95Gi", "of ephemeral-storage"),
            ("pid=40000", "of pid"),
        ] {
            let division = Division {
                kube_reserved: reserved.parse().unwrap(),
                ..Division::default()
            };
            let refused = division.check(&capacity(), &thresholds).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
        let nothing = Division::default();
        assert!(nothing.check(&capacity(), &thresholds).is_ok());
        for bad in ["cpu", "cpu=x", "cpu=-1", "gpu=1"] {
            assert!(bad.parse::<Reserved>().is_err(), "{bad}");
        }
        assert_eq!("none".parse(), Ok(Enforced::Nothing));
        assert!(
            "system-reserved"
                .parse::<Enforced>()
                .unwrap_err()
                .contains("not built")
        );
    }
}
