//! What is known of a class of pods: what to ask for it, and what each node has answered (BO-04, BO-05). An answer is good until its node changes.

use std::sync::Arc;

use crate::{
    cluster::Cluster,
    node::{Lack, Node},
    pod::{Class, Wants},
    score,
    tally::Counted,
    unfit::Refusal,
};

/// With answers of all nodes, some 50 bytes each.
const CACHED_CLASSES: usize = 64;

#[derive(Debug)]
pub struct Known {
    pub class: Class,
    /// On nodes.
    pub pods: usize,
    /// Tallies that count pods of this class.
    pub taken: Vec<usize>,
    /// Tallies of what its pods say to others.
    pub says: Vec<usize>,
    /// What to ask for it; brought up to date by [`Plan::renew`].
    pub plan: Plan,
    pub cache: Option<Cache>,
}

/// By which tally in which topology something is decided.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub tally: usize,
    pub topology: usize,
}

#[derive(Debug)]
pub struct AskedSpread {
    pub asked: Asked,
    /// Which of the class's constraints.
    pub constraint: usize,
    /// Whether a pod of the class is one more that is counted.
    pub counts_itself: bool,
}

/// What has to be asked beyond a node itself.
#[derive(Debug, Default)]
pub struct Plan {
    /// All terms' pods, and the topology of each term. Whether the first such pod is one itself.
    pub affinity: Option<(usize, Vec<usize>, bool)>,
    pub anti_affinity: Vec<Asked>,
    pub repelled: Vec<Asked>,
    pub preferred: Vec<(i64, Asked)>,
    pub drawn: Vec<(i64, Asked)>,
    pub spread: Vec<AskedSpread>,
    /// So many tallies were looked at for who says something to this class.
    heard: usize,
    made: bool,
}

impl Plan {
    pub fn renew(cluster: &mut Cluster, class: usize) {
        let mut plan = std::mem::take(&mut cluster.classes[class].plan);
        if !plan.made {
            let wants = cluster.classes[class].class.wants.clone();
            plan.make(cluster, &wants);
        }
        for at in plan.heard..cluster.tallies.all.len() {
            let Counted::Saying { weight, term } = &cluster.tallies.all[at].counted else {
                continue;
            };
            let (weight, term) = (*weight, term.clone());
            if cluster.is_meant(&term, class) {
                let asked = Asked {
                    tally: at,
                    topology: cluster.topology(&term.topology_key),
                };
                match weight {
                    None => plan.repelled.push(asked),
                    Some(weight) => plan.drawn.push((weight.into(), asked)),
                }
            }
        }
        plan.heard = cluster.tallies.all.len();
        // made by the class's own terms, or before: it is one of those that count it
        for spread in &mut plan.spread {
            spread.counts_itself = cluster.classes[class].taken.contains(&spread.asked.tally);
        }
        if let Some((tally, _, itself)) = &mut plan.affinity {
            *itself = cluster.classes[class].taken.contains(tally);
        }
        cluster.classes[class].plan = plan;
    }

    fn make(&mut self, cluster: &mut Cluster, wants: &Wants) {
        self.made = true;
        if !wants.affinity.is_empty() {
            let matchers = wants.affinity.iter().map(|term| term.matcher.clone());
            let tally = cluster.tally(matchers.collect());
            let terms = wants.affinity.iter();
            let topologies = terms
                .map(|term| cluster.topology(&term.topology_key))
                .collect();
            self.affinity = Some((tally, topologies, false));
        }
        for term in &wants.anti_affinity {
            self.anti_affinity.push(Asked {
                tally: cluster.tally(vec![term.matcher.clone()]),
                topology: cluster.topology(&term.topology_key),
            });
        }
        for (weight, term) in &wants.preferred {
            let asked = Asked {
                tally: cluster.tally(vec![term.matcher.clone()]),
                topology: cluster.topology(&term.topology_key),
            };
            self.preferred.push(((*weight).into(), asked));
        }
        for (constraint, spread) in wants.spread.iter().enumerate() {
            let asked = Asked {
                tally: cluster.tally(vec![spread.matcher.clone()]),
                topology: cluster.topology(&spread.topology_key),
            };
            self.spread.push(AskedSpread {
                asked,
                constraint,
                counts_itself: false,
            });
        }
    }
}

/// What one node answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    told: u64,
    changed: u64,
    /// Which of [`Cache::refusals`]; 0: none.
    pub by_object: u16,
    pub by_pods: u16,
    pub takes_node: bool,
    pub tolerates: bool,
    /// `PreferNoSchedule` taints that the class does not tolerate.
    pub disliked: u16,
    pub preference: i32,
    pub image: u8,
    pub fit: u8,
    pub balance: u8,
}

#[derive(Debug, Default)]
pub struct Cache {
    pub seen: Vec<Seen>,
    pub refusals: Vec<Arc<[Refusal]>>,
}

impl Cache {
    /// Of a class; another one's, that was asked long ago, is let go.
    pub fn take(cluster: &mut Cluster, class: usize) -> Self {
        if let Some(at) = cluster.cached.iter().position(|one| *one == class) {
            cluster.cached.remove(at);
        }
        cluster.cached.push_back(class);
        if cluster.cached.len() > CACHED_CLASSES
            && let Some(oldest) = cluster.cached.pop_front()
        {
            cluster.classes[oldest].cache = None;
        }
        let mut cache = cluster.classes[class].cache.take().unwrap_or_default();
        if cache.refusals.is_empty() {
            cache.refusals.push([].into());
        }
        cache.seen.resize(cluster.nodes.len(), Seen::default());
        cache
    }

    /// The answer of a node, new where it has changed.
    pub fn ask(&mut self, cluster: &Cluster, wants: &Wants, at: usize, fit: score::Fit) -> Seen {
        let node = &cluster.nodes[at];
        let mut seen = self.seen[at];
        if seen.told == node.told && seen.changed == node.changed {
            return seen;
        }
        if seen.told != node.told {
            self.ask_object(cluster, wants, node, &mut seen);
        }
        let lacks = node.lacks(wants, std::iter::empty(), std::iter::empty());
        seen.by_pods = self.refused(refusals_of(&lacks));
        (seen.fit, seen.balance) = score::resources(wants, node, fit);
        (seen.told, seen.changed) = (node.told, node.changed);
        self.seen[at] = seen;
        seen
    }

    fn ask_object(&mut self, cluster: &Cluster, wants: &Wants, node: &Node, seen: &mut Seen) {
        let facts = &node.facts;
        seen.takes_node = wants.takes_node(&facts.name, &facts.labels);
        let untolerated = |effects: &'static [&'static str]| {
            facts.taints.iter().filter(move |taint| {
                effects.contains(&taint.effect.as_str())
                    && !wants.tolerates(&taint.key, &taint.value, &taint.effect)
            })
        };
        let hard = untolerated(&["NoSchedule", "NoExecute"]).next();
        seen.tolerates = hard.is_none();
        let cordoned = facts.unschedulable
            && !wants.tolerates("node.kubernetes.io/unschedulable", "", "NoSchedule");
        let refusal = if cordoned {
            Some(Refusal::Unschedulable)
        } else if let Some(taint) = hard {
            Some(Refusal::Taint {
                key: taint.key.clone(),
                value: taint.value.clone(),
            })
        } else {
            (!seen.takes_node).then_some(Refusal::NodeAffinity)
        };
        seen.by_object = self.refused(refusal.into_iter().collect());
        let disliked = untolerated(&["PreferNoSchedule"]).count();
        seen.disliked = disliked.try_into().unwrap_or(u16::MAX);
        seen.preference = wants
            .preferred_nodes
            .iter()
            .filter(|(_, term)| term.takes(&facts.name, &facts.labels))
            .map(|(weight, _)| weight)
            .sum();
        seen.image = score::images(wants, facts, &cluster.images, cluster.count());
    }

    fn refused(&mut self, refusals: Vec<Refusal>) -> u16 {
        let at = self.refusals.iter().position(|known| **known == *refusals);
        let at = at.unwrap_or_else(|| {
            // taints of many values: the last stands for the others
            if self.refusals.len() >= usize::from(u16::MAX) {
                self.refusals.pop();
            }
            self.refusals.push(refusals.into());
            self.refusals.len() - 1
        });
        at.try_into().unwrap_or(u16::MAX)
    }
}

/// Ports go before the rest, as upstream asks for them first.
pub fn refusals_of(lacks: &[Lack]) -> Vec<Refusal> {
    if lacks.contains(&Lack::Ports) {
        return vec![Refusal::Lacks(Lack::Ports)];
    }
    lacks.iter().cloned().map(Refusal::Lacks).collect()
}
