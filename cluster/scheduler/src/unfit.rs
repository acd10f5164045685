//! Why a pod is on no node, node by node (BO-14), in the words that upstream uses: people and tools know them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::node::Lack;

/// Of an event's message.
const MESSAGE_BYTES: usize = 1000;
/// Nodes that are named with what each lacks, where there are few.
const NAMED: usize = 10;

/// Why one node is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    Unschedulable,
    Taint {
        key: String,
        value: String,
    },
    NodeAffinity,
    Lacks(Lack),
    /// A PersistentVolume that it claims is elsewhere.
    Volume,
    /// Another pod has a claim of it, and one alone may.
    ClaimInUse,
    /// No volume for a claim that waits for a node reaches this one.
    NoVolume,
    Affinity,
    AntiAffinity,
    /// By the anti-affinity of one that is there.
    Repelled,
    Spread,
    SpreadLabel,
}

impl Refusal {
    /// Whether it could be otherwise if pods that are there were not.
    pub fn is_by_pods(&self) -> bool {
        matches!(
            self,
            Self::Lacks(_) | Self::ClaimInUse | Self::AntiAffinity | Self::Repelled | Self::Spread
        )
    }

    /// What would have to happen; see [`Cures`].
    pub fn cures(&self) -> Cures {
        match self {
            Self::Unschedulable | Self::Taint { .. } | Self::NodeAffinity | Self::SpreadLabel => {
                Cures::NODE
            }
            Self::Lacks(_) | Self::ClaimInUse | Self::AntiAffinity | Self::Repelled => {
                Cures::NODE | Cures::POD_GONE
            }
            Self::Affinity => Cures::NODE | Cures::POD_THERE,
            Self::Spread => Cures::NODE | Cures::POD_GONE | Cures::POD_THERE,
            Self::Volume | Self::NoVolume => Cures::NODE | Cures::VOLUME,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::Taint { key, value } => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
            Self::NodeAffinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Lacks(Lack::Pods) => f.write_str("Too many pods"),
            Self::Lacks(Lack::Cpu) => f.write_str("Insufficient cpu"),
            Self::Lacks(Lack::Memory) => f.write_str("Insufficient memory"),
            Self::Lacks(Lack::EphemeralStorage) => f.write_str("Insufficient ephemeral-storage"),
            Self::Lacks(Lack::Other(name)) => write!(f, "Insufficient {name}"),
            Self::Lacks(Lack::Ports) => {
                f.write_str("node(s) didn't have free ports for the requested pod ports")
            }
            Self::Volume => f.write_str("node(s) had volume node affinity conflict"),
            Self::ClaimInUse => f.write_str(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ),
            Self::NoVolume => {
                f.write_str("node(s) didn't find available persistent volumes to bind")
            }
            Self::Affinity => f.write_str("node(s) didn't match pod affinity rules"),
            Self::AntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::Repelled => {
                f.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Self::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Self::SpreadLabel => f.write_str(
                "node(s) didn't match pod topology spread constraints (missing required label)",
            ),
        }
    }
}

/// What can make a pod fit that did not, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cures(u8);

impl Cures {
    /// A node comes, or changes.
    pub const NODE: Self = Self(1);
    /// A pod leaves its node.
    pub const POD_GONE: Self = Self(2);
    /// A pod comes to a node.
    pub const POD_THERE: Self = Self(4);
    /// A volume, or a claim to one, changes.
    pub const VOLUME: Self = Self(8);

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for Cures {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A pod that no node takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unfit {
    /// Of the cluster.
    pub nodes: usize,
    /// What it is besides nodes: a claim that isn't there.
    pub pod: Option<String>,
    /// By their names; all of them, if they are few.
    pub by_node: Vec<(Arc<str>, Arc<[Refusal]>)>,
    /// How many nodes each refusal was met on.
    pub refusals: Vec<(Arc<[Refusal]>, usize)>,
    /// Why making room is no help, if it was tried.
    pub preemption: Option<String>,
    /// Places of nodes that only pods stand in the way of.
    pub by_pods: Vec<usize>,
}

impl Unfit {
    /// A node was refused; whether room can be made there.
    pub fn candidates(&mut self, at: usize, refusals: &[Refusal]) {
        if refusals.iter().all(Refusal::is_by_pods) {
            self.by_pods.push(at);
        }
    }

    /// What makes it worthwhile to try again.
    pub fn cures(&self) -> Cures {
        let refusals = self
            .refusals
            .iter()
            .flat_map(|(refusals, _)| refusals.iter());
        let mut cures = Cures::NODE;
        if self.pod.is_some() {
            cures = cures | Cures::VOLUME;
        }
        refusals.fold(cures, |cures, refusal| cures | refusal.cures())
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        let mut text = if let Some(pod) = &self.pod {
            format!("0/{} nodes are available: {pod}.", self.nodes)
        } else if self.nodes == 0 {
            "no nodes available to schedule pods".to_owned()
        } else {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for (refusals, count) in &self.refusals {
                for refusal in refusals.iter() {
                    *counts.entry(refusal.to_string()).or_default() += count;
                }
            }
            let mut counts: Vec<String> = counts
                .iter()
                .map(|(text, count)| format!("{count} {text}"))
                .collect();
            counts.sort();
            format!(
                "0/{} nodes are available: {}.",
                self.nodes,
                counts.join(", ")
            )
        };
        if let Some(preemption) = &self.preemption {
            text.push_str(" preemption: ");
            text.push_str(preemption);
        }
        if self.refusals.len() > 1 && (1..=NAMED).contains(&self.by_node.len()) {
            text.push_str(" By node: ");
            for (at, (name, refusals)) in self.by_node.iter().enumerate() {
                let refusals: Vec<String> = refusals.iter().map(ToString::to_string).collect();
                let gap = if at == 0 { "" } else { "; " };
                text.push_str(&format!("{gap}{name}: {}", refusals.join(", ")));
            }
            text.push('.');
        }
        let mut end = text.len().min(MESSAGE_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_and_names() {
        let cpu: Arc<[Refusal]> = [Refusal::Lacks(Lack::Cpu), Refusal::Lacks(Lack::Memory)].into();
        let away: Arc<[Refusal]> = [Refusal::Taint {
            key: "a".into(),
            value: "b".into(),
        }]
        .into();
        let unfit = Unfit {
            nodes: 3,
            by_node: vec![
                ("x".into(), cpu.clone()),
                ("y".into(), away.clone()),
                ("z".into(), away.clone()),
            ],
            refusals: vec![(cpu, 1), (away, 2)],
            ..Unfit::default()
        };
        assert_eq!(
            unfit.message(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 2 node(s) had untolerated taint {a: b}. \
             By node: x: Insufficient cpu, Insufficient memory; y: node(s) had untolerated taint {a: b}; z: node(s) had untolerated taint {a: b}."
        );
        assert!(unfit.cures().meets(Cures::POD_GONE) && !unfit.cures().meets(Cures::POD_THERE));
        assert_eq!(
            Unfit::default().message(),
            "no nodes available to schedule pods"
        );
    }
}
