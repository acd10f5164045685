//! The cgroups of the node: one of all pods, limited to what the node has for them; one a class of service; one a pod, limited to what its
//! containers may have together. The runtime makes those of containers below.
//!
//! ```text
//! ROOT/kubepods                 memory, pids, cpu: the node's without what is reserved
//! ├─ pod<uid>                   Guaranteed
//! ├─ burstable                  cpu: the requests of its pods together
//! │  └─ pod<uid>
//! └─ besteffort                 cpu: the least that there is
//!    └─ pod<uid>
//! ```
//!
//! CPU is shared by waiting: nobody is limited for being one of too many, only weighed. Memory is not: it has an end.
//!
//! # Synchronization
//! What should be is behind a lock that is held for a moment. What is done in the file system, or asked of systemd, is done by one at a time.
//!
//! Invariant: no process is killed here, and no cgroup removed that has one.

mod hierarchy;
mod limits;
mod name;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_systemd::{Property, Started, Units, property};

use crate::{
    Error, Level, amounts,
    node::Node,
    pod::Desired,
    qos::{Class, rounded},
    store,
    thresholds::Left,
};
use hierarchy::Hierarchies;
pub(crate) use limits::{Bound, Limits};
use limits::{CPU_PERIOD_US, File};
pub use name::CgroupDriver;
use name::Names;

/// Between two looks whether somebody else has changed or removed one; upstream's is a minute.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const NANO: i128 = 1_000_000_000;
/// Bounds of cpu.shares, and a processor in them.
const CPU_SHARES: (u64, u64) = (2, 262_144);
const SHARES_PER_CPU: u64 = 1024;
/// The kernel takes no quota below 1 ms.
const MIN_CPU_QUOTA_US: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchies: Hierarchies,
    names: Names,
    all: Limits,
    pod_max_pids: Option<u64>,
    /// Sizes of huge pages that the machine has.
    page_sizes: Vec<u64>,
    pods: Mutex<BTreeMap<String, OfPod>>,
    work: Mutex<()>,
}

/// By the pod's uid.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OfPod {
    class: Class,
    path: String,
    milli_cpu: u64,
    limits: Limits,
}

impl Cgroups {
    /// Makes nothing yet. `all`: what all pods together may have.
    ///
    /// # Errors
    /// A root that can't be one, or a machine without what the driver needs.
    pub fn new(
        driver: CgroupDriver,
        root: &str,
        all: Limits,
        pod_max_pids: Option<u64>,
        page_sizes: Vec<u64>,
    ) -> Result<Self, Error> {
        let wrong = |why: String| Error::Cgroup {
            what: "use",
            path: root.to_owned(),
            why,
        };
        let hierarchies = Hierarchies::of_this_machine()?;
        let names = Names::below(driver, root).map_err(wrong)?;
        if driver == CgroupDriver::Systemd && !(hierarchies.is_v2() && berth_systemd::is_booted()) {
            let why = "the runtime's cgroup driver is systemd, which needs cgroup v2 and systemd as PID 1 here";
            return Err(wrong(why.into()));
        }
        Ok(Self {
            hierarchies,
            names,
            all,
            pod_max_pids,
            page_sizes,
            pods: Mutex::default(),
            work: Mutex::default(),
        })
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, OfPod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the runtime puts the pod's containers.
    pub fn parent_of(&self, pod: &Desired) -> String {
        self.names.pod(Class::of(pod), &pod.uid)
    }

    /// Whether `path` is the pods' cgroup or below it, by the kernel's name, which knows of no namespace.
    pub fn holds(&self, path: &str) -> bool {
        format!("{path}/").contains(&format!("{}/", self.names.all()))
    }

    /// Makes the pod's, and those above it, as they should be. Blocks.
    pub fn ensure(&self, pod: &Desired) -> Result<(), Error> {
        let wanted = self.wanted(pod);
        let before = self.pods().insert(pod.uid.clone(), wanted.clone());
        let _one = self.work();
        let done = self
            .ensure_above()
            .and_then(|()| self.put(&wanted.path, &wanted.limits));
        if done.is_err() {
            // the next who asks tries again
            let mut pods = self.pods();
            match before.filter(|before| *before != wanted) {
                Some(before) => pods.insert(pod.uid.clone(), before),
                None => pods.remove(&pod.uid),
            };
        }
        done
    }

    /// Whether the pod is known as it is now: then there is nothing to do.
    pub fn knows(&self, pod: &Desired) -> bool {
        let wanted = self.wanted(pod);
        self.pods().get(&pod.uid) == Some(&wanted)
    }

    /// Nothing runs in the pod any more, nor will. Blocks.
    pub fn remove(&self, pod: &Desired) -> Result<(), Error> {
        let known = self.pods().remove(&pod.uid);
        let path = known.map_or_else(|| self.parent_of(pod), |known| known.path);
        let _one = self.work();
        self.take_away(&path)?;
        // its class weighs less now
        self.put(&self.names.class(Class::Burstable), &self.of_burstable())
    }

    /// Puts right what somebody else has changed or removed, and removes those of pods that are no more: `known` are the uids of all that are
    /// not. Blocks.
    pub fn restore(&self, known: &BTreeSet<String>) -> Result<(), Error> {
        let _one = self.work();
        self.ensure_above()?;
        let pods: Vec<OfPod> = self.pods().values().cloned().collect();
        let mut first = Ok(());
        for pod in &pods {
            let done = self.put(&pod.path, &pod.limits);
            first = first.and(done);
        }
        let names: BTreeSet<String> = known
            .iter()
            .chain(self.pods().keys())
            .flat_map(|uid| Class::ALL.map(|class| self.names.pod(class, uid)))
            .collect();
        for class in Class::ALL {
            let above = self.names.class(class);
            for name in self.hierarchies.children(&above) {
                let path = format!("{above}/{name}");
                if !self.names.is_pod(&name) || names.contains(&path) {
                    continue;
                }
                tracing::info!(path, "removed: a cgroup of a pod that is no more");
                first = first.and(self.take_away(&path));
            }
        }
        first
    }

    /// What all pods together may still take; none: they have no limit of their own.
    pub fn memory_left(&self) -> Option<Left> {
        let v2 = self.hierarchies.is_v2();
        let (limit, usage, cached) = match v2 {
            true => ("memory.max", "memory.current", "inactive_file "),
            false => (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file ",
            ),
        };
        let read = |file| self.hierarchies.read("memory", self.names.all(), file);
        let number = |file| read(file)?.trim().parse::<u64>().ok();
        let capacity = number(limit).filter(|it| *it < limits::NO_LIMIT)?;
        let stat = read("memory.stat").unwrap_or_default();
        let mut lines = stat.lines();
        let cached = lines.find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok());
        let working_set = number(usage)?.saturating_sub(cached.unwrap_or(0));
        Some(Left {
            available: capacity.saturating_sub(working_set),
            capacity,
        })
    }

    fn work(&self) -> MutexGuard<'_, ()> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensure_above(&self) -> Result<(), Error> {
        self.put(self.names.all(), &self.all)?;
        self.put(&self.names.class(Class::Burstable), &self.of_burstable())?;
        let least = Limits {
            cpu_shares: Some(CPU_SHARES.0),
            huge_pages: self.unbounded_pages(),
            ..Limits::default()
        };
        self.put(&self.names.class(Class::BestEffort), &least)
    }

    fn of_burstable(&self) -> Limits {
        let pods = self.pods();
        let burstable = pods.values().filter(|pod| pod.class == Class::Burstable);
        let milli = burstable.fold(0_u64, |sum, pod| sum.saturating_add(pod.milli_cpu));
        Limits {
            cpu_shares: Some(shares(milli)),
            huge_pages: self.unbounded_pages(),
            ..Limits::default()
        }
    }

    fn unbounded_pages(&self) -> BTreeMap<u64, Bound> {
        let sizes = self.page_sizes.iter();
        sizes.map(|size| (*size, Bound::None)).collect()
    }

    fn wanted(&self, pod: &Desired) -> OfPod {
        let class = Class::of(pod);
        OfPod {
            class,
            path: self.names.pod(class, &pod.uid),
            milli_cpu: milli(amounts::request(pod, "cpu")),
            limits: limits_of(pod, class, self.pod_max_pids, &self.page_sizes),
        }
    }

    /// Makes a cgroup where it is missing, and limits it.
    fn put(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let files = limits.files(self.hierarchies.is_v2());
        if self.names.driver == CgroupDriver::Systemd {
            self.tell_systemd(path, &files)?;
        }
        if !self.hierarchies.has(path) {
            self.hierarchies.ensure(path)?;
        }
        self.hierarchies.write(path, &files).map(drop)
    }

    /// systemd keeps the limits that it knows of, too: else its next reload would put its own back.
    fn tell_systemd(&self, path: &str, files: &[File]) -> Result<(), Error> {
        let is_there = self.hierarchies.has(path);
        if is_there && self.hierarchies.unmet(path, files)?.is_empty() {
            return Ok(());
        }
        let unit = path.rsplit('/').next().unwrap_or_default();
        let limits = files
            .iter()
            .flat_map(|file| property::of_file(&file.name, &file.value));
        let limits: Vec<Property> = limits.collect();
        let failed = |error: berth_systemd::Error| Error::Cgroup {
            what: "make the slice",
            path: path.to_owned(),
            why: error.to_string(),
        };
        let mut units = Units::connect().map_err(failed)?;
        let whole: Vec<Property> = counted().into_iter().chain(limits.clone()).collect();
        match units.start(unit, &whole).map_err(failed)? {
            Started::Exists if !limits.is_empty() => units.set(unit, &limits).map_err(failed),
            Started::Started | Started::Exists => Ok(()),
        }
    }

    fn take_away(&self, path: &str) -> Result<(), Error> {
        if self.names.driver == CgroupDriver::Systemd && self.hierarchies.has(path) {
            let unit = path.rsplit('/').next().unwrap_or_default();
            // it would end what is in it
            if self.hierarchies.remove(path)? {
                let stopped = Units::connect().and_then(|mut units| units.stop(unit));
                stopped.map_err(|error| Error::Cgroup {
                    what: "stop the slice",
                    path: path.to_owned(),
                    why: error.to_string(),
                })?;
            }
        }
        if !self.hierarchies.remove(path)? {
            tracing::warn!(
                path,
                "processes are in it still: the cgroup stays until they are not"
            );
        }
        Ok(())
    }
}

/// Each controller counts, and systemd's own defaults limit nothing; nor is a slice of pods ended in an order of systemd's own.
fn counted() -> [Property; 6] {
    use property::Value;
    [
        Property::flag("CPUAccounting"),
        Property::flag("MemoryAccounting"),
        Property::flag("IOAccounting"),
        Property::flag("TasksAccounting"),
        Property::new("TasksMax", Value::Number(u64::MAX)),
        Property::new("DefaultDependencies", Value::Bool(false)),
    ]
}

fn milli(nano: i128) -> u64 {
    rounded(nano, NANO / 1000).unsigned_abs()
}

pub(crate) fn shares(milli_cpu: u64) -> u64 {
    let shares = milli_cpu.saturating_mul(SHARES_PER_CPU) / 1000;
    shares.clamp(CPU_SHARES.0, CPU_SHARES.1)
}

/// A pod has a limit of CPU or memory where all that is in it have one.
fn limits_of(pod: &Desired, class: Class, pids: Option<u64>, page_sizes: &[u64]) -> Limits {
    let bound = |name: &str, per: i128| {
        let limit = amounts::limit(pod, name);
        match limit.is_whole && class != Class::BestEffort {
            true => Bound::At(rounded(limit.nano, per).unsigned_abs()),
            false => Bound::None,
        }
    };
    let quota = match bound("cpu", NANO / 1000) {
        Bound::At(milli) => {
            let quota = milli.saturating_mul(CPU_PERIOD_US) / 1000;
            Bound::At(quota.max(MIN_CPU_QUOTA_US))
        }
        Bound::None => Bound::None,
    };
    let pages = page_sizes.iter().map(|size| {
        let name = format!("hugepages-{}", crate::machine::binary(*size));
        let bytes = rounded(amounts::request(pod, &name), NANO).unsigned_abs();
        (*size, Bound::At(bytes))
    });
    Limits {
        cpu_shares: Some(match class {
            Class::BestEffort => CPU_SHARES.0,
            _ => shares(milli(amounts::request(pod, "cpu"))),
        }),
        cpu_quota_us: Some(quota),
        memory_bytes: Some(bound("memory", NANO)),
        pids: Some(pids.map_or(Bound::None, Bound::At)),
        huge_pages: pages.collect(),
    }
}

fn tell(node: &Node, failure: Option<&str>) {
    match failure {
        None => node.tell_of_node(
            Level::Normal,
            "NodeAllocatableEnforced",
            "Updated Node Allocatable limit across pods",
        ),
        Some(why) => node.tell_of_node(
            Level::Warning,
            "FailedNodeAllocatableEnforcement",
            format!("Failed to update Node Allocatable Limits: {why}; tried again every 10 s"),
        ),
    }
}

/// Looks after the cgroups of the node until it is dropped.
pub(crate) async fn keep(node: Node) {
    let mut said = None;
    loop {
        if let Some(cgroups) = node.cgroups.clone() {
            let of = node.clone();
            let done = tokio::task::spawn_blocking(move || {
                let mut known: BTreeSet<String> = store::kept_uids(&of).into_iter().collect();
                known.extend(of.view.all().into_iter().map(|shown| shown.pod.uid.clone()));
                cgroups.restore(&known)
            });
            match done.await {
                // once, as long as it stays the same
                Ok(done) => {
                    let says = done.err().map(|error| error.to_string());
                    if said.as_ref() != Some(&says) {
                        tell(&node, says.as_deref());
                        said = Some(says);
                    }
                }
                Err(error) => tracing::error!(%error, "the work on cgroups broke"),
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn of(spec: &str) -> (Option<u64>, Bound, Bound) {
        let pod = pod(spec);
        let limits = limits_of(&pod, Class::of(&pod), Some(100), &[2 << 20]);
        assert_eq!(limits.pids, Some(Bound::At(100)));
        (
            limits.cpu_shares,
            limits.cpu_quota_us.unwrap(),
            limits.memory_bytes.unwrap(),
        )
    }

    #[test]
    fn a_pod_is_limited_where_all_that_is_in_it_are() {
        let container = |name: &str, resources: &str| {
            format!("{{name: {name}, image: x, resources: {resources}}}")
        };
        let limited = container("a", "{limits: {cpu: 500m, memory: 1Mi}}");
        let asking = container("b", "{requests: {cpu: 250m, memory: 1Mi}}");
        let free = container("c", "{}");
        let memory = Bound::At(1 << 20);
        for (containers, expected) in [
            (limited.clone(), (Some(512), Bound::At(50_000), memory)),
            (
                format!("{limited}, {asking}"),
                (Some(768), Bound::None, Bound::None),
            ),
            (
                format!("{limited}, {free}"),
                (Some(512), Bound::None, Bound::None),
            ),
            (free.clone(), (Some(2), Bound::None, Bound::None)),
            (
                container("a", "{limits: {cpu: 1m}}"),
                (Some(2), Bound::At(1000), Bound::None),
            ),
        ] {
            let spec = format!("  containers: [{containers}]");
            assert_eq!(of(&spec), expected, "{containers}");
        }
        let whole = format!("  resources: {{limits: {{memory: 4Mi}}}}\n  containers: [{free}]");
        assert_eq!(of(&whole).2, Bound::At(4 << 20));
        let overhead = format!("  overhead: {{memory: 1Mi}}\n  containers: [{limited}]");
        assert_eq!(of(&overhead).2, Bound::At(2 << 20));
    }

    #[test]
    fn huge_pages_that_a_pod_did_not_ask_for_it_has_not() {
        let resources = "{limits: {hugepages-2Mi: 4Mi, cpu: 1, memory: 1Mi}}";
        let pod = pod(&format!(
            "  containers: [{{name: a, image: x, resources: {resources}}}]"
        ));
        let limits = limits_of(&pod, Class::Guaranteed, None, &[2 << 20, 1 << 30]);
        let pages = BTreeMap::from([(2 << 20, Bound::At(4 << 20)), (1 << 30, Bound::At(0))]);
        assert_eq!((limits.huge_pages, limits.pids), (pages, Some(Bound::None)));
    }
}
