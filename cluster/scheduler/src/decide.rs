//! Which node a pod goes to.

use std::{collections::HashSet, sync::Arc};

use crate::{
    around::Around,
    class::{Cache, Plan, Seen},
    cluster::Cluster,
    node::Lack,
    pod::{PodFacts, Wants},
    profile::Weights,
    score::{self, Fit},
    unfit::{Refusal, Unfit},
    volumes::Claims,
};

/// In a cluster with fewer, all nodes are looked at.
const ALL_BELOW: usize = 100;
/// Of the cluster, at least.
const LEAST_PERCENT: usize = 5;
/// By which a node loses where such a pod has just failed (BO-13): no other score is as much.
const AVOIDED: i64 = 100_000;
/// Nodes that a refusal names.
const NAMED: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    pub fit: Fit,
    /// When so many nodes of a hundred that would do are found, no more are looked for (BO-06); 0: fewer of them, the larger the cluster is.
    pub percentage_of_nodes_to_score: usize,
    pub weights: Weights,
    /// Less important pods may be ended for one that fits nowhere.
    pub preempts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fit: Fit::default(),
            percentage_of_nodes_to_score: 0,
            weights: Weights::default(),
            preempts: true,
        }
    }
}

/// Decides, and remembers where it stopped looking.
#[derive(Debug)]
pub struct Decider {
    pub settings: Settings,
    next: usize,
    random: u64,
}

/// Where a pod may not, or should rather not go.
#[derive(Debug, Default)]
pub struct Reserve {
    /// Nodes on which such a pod has just failed.
    pub avoided: HashSet<Arc<str>>,
    /// What is known of its volumes.
    pub claims: Claims,
}

impl Decider {
    /// `seed`: of what decides between equals.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            next: 0,
            random: seed | 1,
        }
    }

    /// xorshift64: it has only to be fair between equals.
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below.max(1) as u64).unwrap_or(0)
    }

    /// As many as are enough to choose from.
    fn enough(&self, nodes: usize) -> usize {
        let percent = match self.settings.percentage_of_nodes_to_score {
            0 => 50usize.saturating_sub(nodes / 125).max(LEAST_PERCENT),
            percent => percent.min(100),
        };
        (nodes * percent / 100).max(ALL_BELOW)
    }

    /// The place of the best node, or why there is none.
    pub fn decide(
        &mut self,
        cluster: &mut Cluster,
        pod: &PodFacts,
        reserve: &Reserve,
    ) -> Result<usize, Box<Unfit>> {
        if let Some(why) = &reserve.claims.refused {
            return Err(Box::new(Unfit {
                nodes: cluster.count(),
                pod: Some(why.clone()),
                ..Unfit::default()
            }));
        }
        let class = cluster.class(&pod.class);
        Plan::renew(cluster, class);
        let mut cache = Cache::take(cluster, class);
        let decided = self.with(cluster, class, &mut cache, pod, reserve);
        cluster.classes[class].cache = Some(cache);
        decided
    }

    fn with(
        &mut self,
        cluster: &Cluster,
        class: usize,
        cache: &mut Cache,
        pod: &PodFacts,
        reserve: &Reserve,
    ) -> Result<usize, Box<Unfit>> {
        let wants = pod.wants();
        let fit = self.settings.fit;
        let plan = &cluster.classes[class].plan;
        if !plan.spread.is_empty() {
            for at in 0..cluster.nodes.len() {
                cache.ask(cluster, wants, at, fit);
            }
        }
        let around = Around::new(cluster, plan, wants, &cache.seen);
        let (all, enough) = (cluster.nodes.len(), self.enough(cluster.count()));
        // Where room was made for it; the one node of a DaemonSet's pod.
        let nominated = pod.nominated.as_deref().and_then(|name| cluster.node(name));
        let only = only_node(wants).map(|name| cluster.node(name));
        for at in [nominated, only.flatten()].into_iter().flatten() {
            let seen = cache.ask(cluster, wants, at, fit);
            let is_allowed = only.is_none_or(|only| only == Some(at));
            if is_allowed && refusal(cluster, &around, pod, at, &seen, reserve).is_none() {
                return Ok(at);
            }
        }
        let mut fits: Vec<(usize, Seen)> = Vec::new();
        let mut refused: Vec<(usize, Refused)> = Vec::new();
        let start = self.next % all.max(1);
        for step in 0..all {
            let at = (start + step) % all;
            if cluster.nodes[at].gone {
                continue;
            }
            if only.is_some_and(|only| only != Some(at)) {
                refused.push((at, Refused::One(Refusal::NodeAffinity)));
                continue;
            }
            let seen = cache.ask(cluster, wants, at, fit);
            match refusal(cluster, &around, pod, at, &seen, reserve) {
                None => {
                    fits.push((at, seen));
                    if fits.len() >= enough {
                        self.next = at + 1;
                        break;
                    }
                }
                Some(why) => refused.push((at, why)),
            }
        }
        if fits.is_empty() {
            return Err(Box::new(unfit(cluster, cache, refused)));
        }
        Ok(self.best(cluster, &around, &fits, reserve))
    }

    fn best(
        &mut self,
        cluster: &Cluster,
        around: &Around,
        fits: &[(usize, Seen)],
        reserve: &Reserve,
    ) -> usize {
        if let [(only, _)] = fits {
            return *only;
        }
        let weights = self.settings.weights;
        let mut scores: Vec<i64> = fits
            .iter()
            .map(|(_, seen)| {
                i64::from(seen.fit) * weights.fit
                    + i64::from(seen.balance) * weights.balance
                    + i64::from(seen.image) * weights.images
            })
            .collect();
        let mut add = |raw: Vec<i64>, weight: i64| {
            for (score, raw) in scores.iter_mut().zip(raw) {
                *score += raw * weight;
            }
        };
        let of = |get: &dyn Fn(&Seen) -> i64| -> Vec<i64> {
            fits.iter().map(|(_, seen)| get(seen)).collect()
        };
        let mut taints = of(&|seen| seen.disliked.into());
        score::shares(&mut taints, true);
        add(taints, weights.taints);
        let mut preferences = of(&|seen| seen.preference.into());
        score::shares(&mut preferences, false);
        add(preferences, weights.node_affinity);
        if around.has_preferences() {
            let mut drawn: Vec<i64> = fits
                .iter()
                .map(|(at, _)| around.drawn(cluster, *at))
                .collect();
            score::between(&mut drawn);
            add(drawn, weights.pod_affinity);
        }
        if around.has_soft_spread() {
            let crowds: Vec<Option<i64>> = fits
                .iter()
                .map(|(at, _)| around.crowd(cluster, *at))
                .collect();
            let least = crowds.iter().flatten().min().copied().unwrap_or(0);
            let most = crowds.iter().flatten().max().copied().unwrap_or(0);
            let score = |crowd: Option<i64>| match crowd {
                None => 0,
                Some(_) if most == 0 => score::MOST,
                Some(crowd) => score::MOST * (most + least - crowd) / most,
            };
            add(crowds.into_iter().map(score).collect(), weights.spread);
        }
        if !reserve.avoided.is_empty() {
            let avoided = |at: usize| {
                reserve
                    .avoided
                    .contains(cluster.nodes[at].facts.name.as_str())
            };
            add(
                fits.iter()
                    .map(|(at, _)| -i64::from(avoided(*at)))
                    .collect(),
                AVOIDED,
            );
        }
        let most = scores.iter().max().copied().unwrap_or(0);
        let best: Vec<usize> = (0..fits.len()).filter(|at| scores[*at] == most).collect();
        fits[best[self.random(best.len())]].0
    }
}

/// A refusal that is written down already, or one of its own.
#[derive(Debug)]
enum Refused {
    Known(u16),
    One(Refusal),
    Lacks(Vec<Lack>),
}

fn only_node(wants: &Wants) -> Option<&str> {
    match wants.node_terms.as_deref() {
        Some([term]) => term.only_node(),
        _ => None,
    }
}

fn refusal(
    cluster: &Cluster,
    around: &Around,
    pod: &PodFacts,
    at: usize,
    seen: &Seen,
    reserve: &Reserve,
) -> Option<Refused> {
    if seen.by_object != 0 {
        return Some(Refused::Known(seen.by_object));
    }
    if seen.by_pods != 0 {
        return Some(Refused::Known(seen.by_pods));
    }
    // Whom room is made for has it, if they are no less important.
    if let Some(waiting) = cluster.nominated.get(&at) {
        let beside = waiting
            .iter()
            .filter(|one| one.uid != pod.uid && one.priority >= pod.priority)
            .map(PodFacts::wants);
        let lacks = cluster.nodes[at].lacks(pod.wants(), beside, std::iter::empty());
        if !lacks.is_empty() {
            return Some(Refused::Lacks(lacks));
        }
    }
    if !reserve.claims.users.is_empty() {
        return Some(Refused::One(Refusal::ClaimInUse));
    }
    let facts = &cluster.nodes[at].facts;
    if let Some(why) = reserve.claims.refusal(&facts.name, &facts.labels) {
        return Some(Refused::One(why));
    }
    around.refuses(cluster, at, |_| 0).map(Refused::One)
}

fn unfit(cluster: &Cluster, cache: &Cache, refused: Vec<(usize, Refused)>) -> Unfit {
    let mut unfit = Unfit {
        nodes: cluster.count(),
        ..Unfit::default()
    };
    let few = refused.len() <= NAMED;
    for (at, why) in refused {
        let why: Arc<[Refusal]> = match why {
            Refused::Known(known) => cache.refusals[usize::from(known)].clone(),
            Refused::One(one) => match unfit
                .refusals
                .iter()
                .find(|(known, _)| **known == [one.clone()])
            {
                Some((known, _)) => known.clone(),
                None => [one].into(),
            },
            Refused::Lacks(lacks) => crate::class::refusals_of(&lacks).into(),
        };
        match unfit.refusals.iter_mut().find(|(known, _)| *known == why) {
            Some((_, count)) => *count += 1,
            None => unfit.refusals.push((why.clone(), 1)),
        }
        if few {
            unfit.by_node.push((cluster.name(at), why.clone()));
        }
        unfit.candidates(at, &why);
    }
    unfit.by_node.sort();
    unfit
}
