//! What of a decision depends on pods of other nodes: affinity, anti-affinity, spread. Counted once a decision, in time linear in nodes.

use crate::{
    class::{Asked, Plan, Seen},
    cluster::Cluster,
    pod::Wants,
    unfit::Refusal,
};

/// Counts of one tally, by part of a topology.
#[derive(Debug)]
struct Sums {
    tally: usize,
    topology: usize,
    sums: Vec<u32>,
}

#[derive(Debug)]
struct SpreadSums {
    tally: usize,
    topology: usize,
    /// By part; of parts without a node that counts, none.
    sums: Vec<Option<u32>>,
    least: u32,
    max_skew: i64,
    itself: u32,
}

#[derive(Debug)]
struct SoftSpread {
    topology: usize,
    sums: Vec<u32>,
    /// Fewer parts make each pod weigh more.
    weight: f64,
    max_skew: i64,
}

#[derive(Debug)]
pub struct Around {
    affinity: Vec<Sums>,
    /// No pod has what is asked for, and this one would be the first.
    is_first: bool,
    anti_affinity: Vec<Sums>,
    repelled: Vec<Sums>,
    spread: Vec<SpreadSums>,
    soft: Vec<SoftSpread>,
    preferred: Vec<(i64, Sums)>,
}

impl Around {
    pub fn new(cluster: &Cluster, plan: &Plan, wants: &Wants, seen: &[Seen]) -> Self {
        let sums = |tally: usize, topology: usize| Sums {
            tally,
            topology,
            sums: cluster.topologies[topology].sums(&cluster.tallies.all[tally].by_node),
        };
        let asked = |asked: &Asked| sums(asked.tally, asked.topology);
        let (mut affinity, mut is_first) = (Vec::new(), false);
        if let Some((tally, topologies, itself)) = &plan.affinity {
            affinity = topologies.iter().map(|one| sums(*tally, *one)).collect();
            let nobody = affinity
                .iter()
                .all(|one| one.sums.iter().all(|sum| *sum == 0));
            is_first = nobody && *itself;
        }
        let mut around = Self {
            affinity,
            is_first,
            anti_affinity: plan.anti_affinity.iter().map(asked).collect(),
            repelled: plan.repelled.iter().map(asked).collect(),
            spread: Vec::new(),
            soft: Vec::new(),
            preferred: plan
                .preferred
                .iter()
                .chain(&plan.drawn)
                .map(|(weight, one)| (*weight, asked(one)))
                .collect(),
        };
        around.spread(cluster, plan, wants, seen);
        around
    }

    fn spread(&mut self, cluster: &Cluster, plan: &Plan, wants: &Wants, seen: &[Seen]) {
        // Only nodes that have all labels of the constraints that are of one kind count for them.
        let labelled = |hard: bool, node: usize| {
            let of_kind = plan.spread.iter();
            let mut of_kind = of_kind.filter(|one| wants.spread[one.constraint].hard == hard);
            of_kind.all(|one| cluster.topologies[one.asked.topology].of_node[node] != 0)
        };
        for one in &plan.spread {
            let constraint = &wants.spread[one.constraint];
            let topology = &cluster.topologies[one.asked.topology];
            let by_node = &cluster.tallies.all[one.asked.tally].by_node;
            let mut sums: Vec<Option<u32>> = vec![None; topology.len()];
            for (at, node) in cluster.nodes.iter().enumerate() {
                let counts = !node.gone
                    && (!constraint.honors_affinity || seen[at].takes_node)
                    && (!constraint.honors_taints || seen[at].tolerates)
                    && (!constraint.hard || labelled(true, at));
                let part = topology.of_node[at];
                if counts && part != 0 {
                    *sums[part as usize].get_or_insert(0) += by_node[at];
                }
            }
            let parts = sums.iter().flatten().count();
            let max_skew = i64::from(constraint.max_skew);
            if constraint.hard {
                let least = sums.iter().flatten().min().copied().unwrap_or(0);
                let enough = parts >= usize::try_from(constraint.min_domains).unwrap_or(0);
                self.spread.push(SpreadSums {
                    tally: one.asked.tally,
                    topology: one.asked.topology,
                    sums,
                    least: if enough { least } else { 0 },
                    max_skew,
                    itself: u32::from(one.counts_itself),
                });
            } else {
                self.soft.push(SoftSpread {
                    topology: one.asked.topology,
                    sums: sums.into_iter().map(Option::unwrap_or_default).collect(),
                    weight: (parts as f64 + 2.0).ln(),
                    max_skew,
                });
            }
        }
    }

    /// Whether others keep the pod from a node, if of those that are there `without` a tally's number were gone.
    pub fn refuses(
        &self,
        cluster: &Cluster,
        node: usize,
        without: impl Fn(usize) -> u32,
    ) -> Option<Refusal> {
        let part = |topology: usize| cluster.topologies[topology].of_node[node] as usize;
        for one in &self.spread {
            let part = part(one.topology);
            if part == 0 {
                return Some(Refusal::SpreadLabel);
            }
            let counted = one.sums[part];
            let there = counted.unwrap_or(0).saturating_sub(without(one.tally));
            let least = counted.map_or(one.least, |_| one.least.min(there));
            if i64::from(there + one.itself) - i64::from(least) > one.max_skew {
                return Some(Refusal::Spread);
            }
        }
        let there = |sums: &Sums| {
            let part = part(sums.topology);
            let there = (part != 0).then(|| sums.sums[part])?;
            Some(there.saturating_sub(without(sums.tally)))
        };
        for sums in &self.affinity {
            match there(sums) {
                Some(1..) => {}
                Some(0) if self.is_first => {}
                _ => return Some(Refusal::Affinity),
            }
        }
        let any = |all: &[Sums]| all.iter().any(|sums| there(sums) > Some(0));
        if any(&self.anti_affinity) {
            return Some(Refusal::AntiAffinity);
        }
        any(&self.repelled).then_some(Refusal::Repelled)
    }

    pub fn has_preferences(&self) -> bool {
        !self.preferred.is_empty()
    }

    /// How much others draw the pod to a node; against it, if it is negative.
    pub fn drawn(&self, cluster: &Cluster, node: usize) -> i64 {
        let of = |(weight, sums): &(i64, Sums)| {
            let part = cluster.topologies[sums.topology].of_node[node] as usize;
            weight * i64::from(sums.sums[part])
        };
        self.preferred.iter().map(of).sum()
    }

    pub fn has_soft_spread(&self) -> bool {
        !self.soft.is_empty()
    }

    /// How crowded the node's parts are; none where it has no label that is asked for.
    pub fn crowd(&self, cluster: &Cluster, node: usize) -> Option<i64> {
        let mut crowd = 0.0;
        let mut labelled = false;
        for one in &self.soft {
            let part = cluster.topologies[one.topology].of_node[node] as usize;
            if part != 0 {
                labelled = true;
                crowd += f64::from(one.sums[part]) * one.weight + (one.max_skew - 1) as f64;
            }
        }
        labelled.then_some(crowd.round() as i64)
    }
}
