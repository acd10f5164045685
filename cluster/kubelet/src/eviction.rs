//! When the node runs short of memory, disk or process ids, pods end so that the others can go on: one at a time, first who uses more than it asked
//! for. CPU is never a reason: it can be shared by waiting (BO-25).

use std::{str::FromStr, time::Duration};

use berth_kinds::Quantity;
use berth_proto::cri;
use tokio::sync::mpsc;

use crate::{API, Desired, machine::Machine, node::Node, qos, view::Shown};

/// Upstream's.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// From here on a pod is the system's (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;

/// When the node is short of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub memory_bytes: u64,
    pub fs_percent: u64,
    pub inodes_percent: u64,
    pub pids_percent: u64,
}

impl Default for Thresholds {
    /// Upstream's; it has none for process ids, but with fewer than these no process may come up that could end another.
    fn default() -> Self {
        Self {
            memory_bytes: 100 << 20,
            fs_percent: 10,
            inodes_percent: 5,
            pids_percent: 2,
        }
    }
}

impl Thresholds {
    /// Bytes that pods can't have, of so many.
    pub(crate) fn memory_reserved(&self, _capacity: u64) -> u64 {
        self.memory_bytes
    }

    pub(crate) fn storage_reserved(&self, capacity: u64) -> u64 {
        u64::try_from(u128::from(capacity) * u128::from(self.fs_percent) / 100).unwrap_or(u64::MAX)
    }
}

impl FromStr for Thresholds {
    type Err = String;

    /// `memory.available<100Mi,nodefs.available<10%`; what is not named is as by default.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let Some((signal, least)) = part.split_once('<') else {
                return Err(format!("{part:?} is no SIGNAL<VALUE"));
            };
            let percent = || {
                let percent = least
                    .strip_suffix('%')
                    .and_then(|it| it.parse::<u64>().ok());
                percent
                    .filter(|percent| *percent <= 100)
                    .ok_or_else(|| format!("{signal}: {least:?} is no part of all, as 10%"))
            };
            match signal {
                "memory.available" => {
                    let quantity = Quantity::parse(least)
                        .and_then(|it| u64::try_from(it.nano / 1_000_000_000).ok());
                    thresholds.memory_bytes = quantity.ok_or_else(|| {
                        format!("{signal}: {least:?} is no number of bytes, as 100Mi")
                    })?;
                }
                "nodefs.available" => thresholds.fs_percent = percent()?,
                "nodefs.inodesFree" => thresholds.inodes_percent = percent()?,
                "pid.available" => thresholds.pids_percent = percent()?,
                other => {
                    return Err(format!(
                        "{other:?} is none of memory.available, nodefs.available, nodefs.inodesFree, pid.available"
                    ));
                }
            }
        }
        Ok(thresholds)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Memory,
    Disk,
    Pids,
}

impl Scarce {
    /// The first that the node is short of.
    fn of(machine: &Machine, thresholds: &Thresholds) -> Option<Self> {
        let all = [
            (Self::Memory, machine.is_short_of_memory(thresholds)),
            (Self::Disk, machine.fs.is_short(thresholds)),
            (Self::Pids, machine.is_short_of_pids(thresholds)),
        ];
        all.into_iter()
            .find(|(_, is_short)| *is_short)
            .map(|(scarce, _)| scarce)
    }

    /// In upstream's words.
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Pids => "pids",
        }
    }

    /// What a pod uses of it.
    fn used(self, stats: &cri::PodSandboxStats) -> Option<u64> {
        let linux = stats.linux.as_ref()?;
        match self {
            Self::Memory => Some(linux.memory.as_ref()?.working_set_bytes.as_ref()?.value),
            Self::Disk => {
                let layers = linux
                    .containers
                    .iter()
                    .filter_map(|one| one.writable_layer.as_ref());
                Some(
                    layers
                        .filter_map(|it| it.used_bytes.as_ref())
                        .map(|it| it.value)
                        .sum(),
                )
            }
            Self::Pids => Some(linux.process.as_ref()?.process_count.as_ref()?.value),
        }
    }

    /// What it asked for; of process ids nobody asks for any.
    fn asked(self, pod: &Desired) -> u64 {
        let name = match self {
            Self::Pids => return 0,
            _ => self.resource(),
        };
        let each = pod.containers.iter().filter_map(|spec| {
            let resources = spec.container.resources.as_ref()?;
            qos::units(&resources.requests, name)
        });
        each.filter_map(|bytes| u64::try_from(bytes).ok()).sum()
    }
}

/// A pod that has to go, by its uid, and what is told of that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub uid: String,
    pub message: String,
}

/// Looks until nobody listens.
pub(crate) async fn watch(node: Node, thresholds: Thresholds, told: mpsc::Sender<Evicted>) {
    while !told.is_closed() {
        tokio::time::sleep(LOOK_EVERY).await;
        let dir = node.kubelet_dir().to_owned();
        let Ok(machine) = tokio::task::spawn_blocking(move || Machine::now(&dir)).await else {
            continue;
        };
        let Some(scarce) = Scarce::of(&machine, &thresholds) else {
            continue;
        };
        let stats = match node.runtime.pod_stats().await {
            Ok(stats) => stats,
            Err(error) => {
                tracing::warn!(%error, "what pods use is not known");
                Vec::new()
            }
        };
        match first(scarce, &node.view.all(), &stats) {
            Some(evicted) => {
                if told.send(evicted).await.is_err() {
                    return;
                }
            }
            None => tracing::warn!(
                scarce = scarce.resource(),
                "the node runs short, and nobody may be evicted"
            ),
        }
    }
}

/// Who goes first: who uses more than it asked for, then the least important, then who is furthest above.
fn first(scarce: Scarce, pods: &[Shown], stats: &[cri::PodSandboxStats]) -> Option<Evicted> {
    let mut all: Vec<_> = pods
        .iter()
        .filter(|shown| may_go(shown))
        .map(|shown| {
            let pod = &shown.pod;
            let of = |stats: &&cri::PodSandboxStats| {
                let metadata = stats
                    .attributes
                    .as_ref()
                    .and_then(|it| it.metadata.as_ref());
                metadata.is_some_and(|it| it.uid == pod.uid)
            };
            let used = stats
                .iter()
                .find(of)
                .and_then(|it| scarce.used(it))
                .unwrap_or(0);
            let asked = scarce.asked(pod);
            let above = i128::from(used) - i128::from(asked);
            let priority = pod.spec.priority.unwrap_or(0);
            ((above <= 0, priority, -above), used, asked, pod)
        })
        .collect();
    all.sort_by_key(|(rank, .., pod)| (*rank, pod.uid.clone()));
    let (_, used, asked, pod) = all.first()?;
    Some(Evicted {
        uid: pod.uid.clone(),
        message: format!(
            "The node was low on resource: {}. The pod was using {used}, request is {asked}.",
            scarce.resource()
        ),
    })
}

/// Neither what the node's own disk asks for, nor what the cluster can't be without, nor what ends already.
fn may_go(shown: &Shown) -> bool {
    let pod = &shown.pod;
    let phase = shown.status.phase.as_deref().unwrap_or_default();
    pod.source == API
        && pod.deletion().is_none()
        && pod.spec.priority.unwrap_or(0) < CRITICAL
        && !matches!(phase, "Failed" | "Succeeded")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;
    use crate::{machine::Fs, pod::tests::pod};

    fn shown(uid: &str, priority: i32, request: &str) -> Shown {
        let text = format!(
            "  priority: {priority}\n  containers: [{{name: a, image: x, resources: {{requests: {{memory: {request}}}}}}}]"
        );
        let mut pod = pod(&text);
        pod.uid = uid.into();
        pod.source = API;
        Shown {
            pod: Arc::new(pod),
            status: PodStatus::default(),
        }
    }

    fn uses(uid: &str, bytes: u64) -> cri::PodSandboxStats {
        let value = |value| Some(cri::UInt64Value { value });
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                metadata: Some(cri::PodSandboxMetadata {
                    uid: uid.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                memory: Some(cri::MemoryUsage {
                    working_set_bytes: value(bytes),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first_and_the_important_last() {
        let mut pods = vec![
            shown("important-above", 100, "10"),
            shown("above", 0, "10"),
            shown("far-above", 0, "10"),
            shown("within", -5, "1000"),
            shown("critical", CRITICAL, "1"),
        ];
        let mut own = shown("static", 0, "1");
        Arc::make_mut(&mut own.pod).source = "file";
        pods.push(own);
        let stats: Vec<_> = [
            ("important-above", 500),
            ("above", 20),
            ("far-above", 400),
            ("within", 900),
            ("critical", 9999),
            ("static", 9999),
        ]
        .into_iter()
        .map(|(uid, bytes)| uses(uid, bytes))
        .collect();
        let mut order = Vec::new();
        while let Some(next) = first(Scarce::Memory, &pods, &stats) {
            if order.is_empty() {
                assert_eq!(
                    next.message,
                    "The node was low on resource: memory. The pod was using 400, request is 10."
                );
            }
            pods.retain(|shown| shown.pod.uid != next.uid);
            order.push(next.uid);
        }
        assert_eq!(order, ["far-above", "above", "important-above", "within"]);
    }

    #[test]
    fn thresholds_are_written_as_upstreams_and_what_is_not_built_is_refused_by_name() {
        let parsed: Thresholds =
            "memory.available<1Gi,nodefs.available<15%,nodefs.inodesFree<0%,pid.available<7%"
                .parse()
                .unwrap();
        assert_eq!(
            parsed,
            Thresholds {
                memory_bytes: 1 << 30,
                fs_percent: 15,
                inodes_percent: 0,
                pids_percent: 7
            }
        );
        assert_eq!("".parse::<Thresholds>(), Ok(Thresholds::default()));
        for bad in [
            "memory.available",
            "memory.available<x",
            "nodefs.available<10",
            "nodefs.available<101%",
            "imagefs.available<10%",
        ] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_is_short_of_what_is_below_its_threshold() {
        let good = Machine {
            memory: 8 << 30,
            memory_available: 1 << 30,
            fs: Fs {
                bytes: 1000,
                available: 500,
                inodes: 1000,
                inodes_free: 500,
            },
            pids: 1000,
            pids_used: 10,
            ..Machine::default()
        };
        let thresholds = Thresholds::default();
        assert_eq!(Scarce::of(&good, &thresholds), None);
        let memory = Machine {
            memory_available: 99 << 20,
            ..good.clone()
        };
        let disk = Machine {
            fs: Fs {
                available: 99,
                ..good.fs
            },
            ..good.clone()
        };
        let pids = Machine {
            pids_used: 981,
            ..good
        };
        for (machine, scarce) in [
            (memory, Scarce::Memory),
            (disk, Scarce::Disk),
            (pids, Scarce::Pids),
        ] {
            assert_eq!(Scarce::of(&machine, &thresholds), Some(scarce));
        }
    }
}
