//! Room for a pod by ending less important ones (BO-08, BO-18), as few and as unimportant as can be, and within disruption budgets where that is possible.

use std::{cmp::Reverse, collections::HashSet, sync::Arc};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::{
    around::Around,
    class::{Cache, Plan},
    cluster::{Cluster, Placed},
    decide::{Reserve, Settings},
    pod::{PodFacts, Wants},
    selector::Selector,
    unfit::Unfit,
};

/// Nodes on which room is looked for: a tenth of the cluster, but so many at least (as upstream).
const CANDIDATES: usize = 100;

/// How many pods of some kind may be disrupted just now.
#[derive(Debug, Clone)]
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    /// Names of pods that are on their way and have been counted.
    disrupted: HashSet<String>,
}

impl Budget {
    pub fn of(budget: &PodDisruptionBudget) -> Self {
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: Selector::of(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref())),
            allowed: status
                .and_then(|status| status.disruptions_allowed)
                .unwrap_or(0),
            disrupted: disrupted
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        }
    }

    fn takes(&self, pod: &PodFacts) -> bool {
        let wants = pod.wants();
        wants.namespace == self.namespace
            && !wants.labels.is_empty()
            && self.selector.takes(&wants.labels)
            && !self.disrupted.contains(&*pod.name)
    }
}

/// Who has to go, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub node: usize,
    /// Uids, the most important first.
    pub victims: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Candidate {
    room: Room,
    /// Budgets that would be broken.
    broken: usize,
    /// Of its victims.
    priorities: Vec<i32>,
    /// When the most important of them began.
    began: Option<jiff::Timestamp>,
}

/// Where room can be made, or why it can't.
pub fn make_room(
    cluster: &mut Cluster,
    settings: Settings,
    pod: &PodFacts,
    unfit: &Unfit,
    reserve: &Reserve,
    budgets: &[Budget],
) -> Result<Room, String> {
    if !pod.may_preempt {
        return Err("not eligible due to preemptionPolicy=Never.".into());
    }
    let nominated = pod.nominated.as_deref().and_then(|name| cluster.node(name));
    if let Some(at) = nominated
        && on(cluster, at)
            .any(|placed| placed.facts.deleted && placed.facts.priority < pod.priority)
    {
        return Err("not eligible due to a terminating pod on the nominated node.".into());
    }
    let class = cluster.class(&pod.class);
    Plan::renew(cluster, class);
    let mut cache = Cache::take(cluster, class);
    let mut candidates = Vec::new();
    for at in 0..cluster.nodes.len() {
        cache.ask(cluster, pod.wants(), at, settings.fit);
    }
    let around = Around::new(
        cluster,
        &cluster.classes[class].plan,
        pod.wants(),
        &cache.seen,
    );
    let enough = (cluster.count() / 10).max(CANDIDATES);
    for at in &unfit.by_pods {
        if let Some(found) = on_node(cluster, &around, pod, *at, reserve, budgets) {
            candidates.push(found);
            if candidates.len() >= enough {
                break;
            }
        }
    }
    cluster.classes[class].cache = Some(cache);
    let best = candidates.into_iter().min_by_key(|one| {
        // priorities may be negative, and more victims must not seem less
        let sum: i64 = one
            .priorities
            .iter()
            .map(|one| i64::from(*one) - i64::from(i32::MIN))
            .sum();
        (
            one.broken,
            one.priorities.first().copied(),
            sum,
            one.priorities.len(),
            Reverse(one.began),
        )
    });
    best.map(|best| best.room).ok_or_else(|| {
        let tried = unfit.by_pods.len();
        let mut parts = Vec::new();
        if tried > 0 {
            parts.push(format!(
                "{tried} No preemption victims found for incoming pod"
            ));
        }
        if unfit.nodes > tried {
            let others = unfit.nodes - tried;
            parts.push(format!("{others} Preemption is not helpful for scheduling"));
        }
        format!(
            "0/{} nodes are available: {}.",
            unfit.nodes,
            parts.join(", ")
        )
    })
}

fn on(cluster: &Cluster, at: usize) -> impl Iterator<Item = &Placed> {
    let pods = cluster.nodes[at].pods.iter();
    pods.filter_map(|uid| cluster.pods.get(uid))
}

fn on_node(
    cluster: &Cluster,
    around: &Around,
    pod: &PodFacts,
    at: usize,
    reserve: &Reserve,
    budgets: &[Budget],
) -> Option<Candidate> {
    let mut lower: Vec<&Placed> = on(cluster, at)
        .filter(|placed| placed.facts.priority < pod.priority)
        .collect();
    if lower.is_empty() {
        return None;
    }
    let facts = &cluster.nodes[at].facts;
    if !reserve.claims.take(&facts.name, &facts.labels) {
        return None;
    }
    let beside: Vec<&Wants> = cluster
        .nominated
        .get(&at)
        .into_iter()
        .flatten()
        .filter(|one| one.uid != pod.uid && one.priority >= pod.priority)
        .map(PodFacts::wants)
        .collect();
    let fits = |gone: &[&Placed]| {
        let freed = gone.iter().map(|placed| placed.facts.wants());
        let node = &cluster.nodes[at];
        let without = |tally: usize| {
            let counted = |placed: &&&Placed| {
                let known = &cluster.classes[placed.class];
                known.taken.contains(&tally) || known.says.contains(&tally)
            };
            u32::try_from(gone.iter().filter(counted).count()).unwrap_or(u32::MAX)
        };
        let is_gone = |uid: &str| gone.iter().any(|placed| *placed.facts.uid == *uid);
        node.lacks(pod.wants(), beside.iter().copied(), freed)
            .is_empty()
            && reserve.claims.would_be_free(is_gone)
            && around.refuses(cluster, at, without).is_none()
    };
    if !fits(&lower) {
        return None;
    }
    lower.sort_by_key(|placed| (Reverse(placed.facts.priority), placed.facts.started));
    // Whose end would break a budget are spared first.
    let mut left: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    let (breaking, others): (Vec<&Placed>, Vec<&Placed>) = lower.iter().partition(|placed| {
        let mut breaks = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.takes(&placed.facts) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    });
    let mut gone = lower.clone();
    let mut spare = |placed: &&Placed| {
        let kept: Vec<&Placed> = gone
            .iter()
            .copied()
            .filter(|one| one.facts.uid != placed.facts.uid)
            .collect();
        let spared = fits(&kept);
        if spared {
            gone = kept;
        }
        spared
    };
    let broken = breaking.iter().filter(|placed| !spare(placed)).count();
    for placed in &others {
        spare(placed);
    }
    let most = gone.iter().map(|placed| placed.facts.priority).max();
    let began = gone
        .iter()
        .filter(|placed| Some(placed.facts.priority) == most)
        .filter_map(|placed| placed.facts.started)
        .min();
    Some(Candidate {
        room: Room {
            node: at,
            victims: gone.iter().map(|placed| placed.facts.uid.clone()).collect(),
        },
        broken,
        priorities: gone.iter().map(|placed| placed.facts.priority).collect(),
        began,
    })
}
