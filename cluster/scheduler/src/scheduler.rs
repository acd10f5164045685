//! What happens in the cluster, and what follows of it for pods that wait. Asks and tells nobody: [`crate::drive`] does.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    policy::v1::PodDisruptionBudget,
    storage::v1::StorageClass,
};

use crate::{
    cluster::Cluster,
    decide::{Decider, Reserve, Settings},
    node::NodeFacts,
    pod::PodFacts,
    preempt::{Budget, Room, make_room},
    profile::Profile,
    queue::Queue,
    selector::Labels,
    unfit::{Cures, Unfit},
    volumes::{Step, Volumes},
};

/// For so long no pod of its kind goes where one has failed, if it can go elsewhere.
const AVOID: Duration = Duration::from_secs(300);
/// Of such failures, remembered.
const FAILURES: usize = 4096;

/// What a kubelet says of a pod that it does not take (as upstream's and ours do).
const NOT_TAKEN: [&str; 5] = [
    "NodeAffinity",
    "UnexpectedAdmissionError",
    "NodePorts",
    "TopologyAffinityError",
    "OutOf",
];

/// What is to be done about one pod.
#[derive(Debug)]
pub enum Decision {
    /// It counts as there from now on: tell [`Scheduler::bound`] or [`Scheduler::not_bound`].
    Bind { pod: PodFacts, node: Arc<str> },
    /// It waits for claims: `steps` are to be written for this node, if there are any left; tell [`Scheduler::not_kept`] of those that are not.
    Claim {
        pod: PodFacts,
        node: Arc<str>,
        steps: Vec<Step>,
    },
    /// It waits. Where room can be made for it, `room` says whom to end.
    Wait {
        pod: PodFacts,
        unfit: Box<Unfit>,
        room: Option<(Arc<str>, Vec<PodFacts>)>,
    },
}

/// # Synchronization
/// None: one task owns it.
#[derive(Debug)]
pub struct Scheduler {
    /// Pods that ask for another one are not looked at.
    profiles: Vec<Profile>,
    cluster: Cluster,
    queue: Queue,
    decider: Decider,
    volumes: Volumes,
    budgets: HashMap<(String, String), Budget>,
    /// Who failed where, until when: by the controller, or the pod's own uid.
    failures: HashMap<(Arc<str>, Arc<str>), Instant>,
    /// That count as there and are not bound yet.
    assumed: HashSet<Arc<str>>,
}

impl Scheduler {
    pub fn new(name: &str, settings: Settings, seed: u64) -> Self {
        Self::with(vec![Profile::new(name, settings)], seed)
    }

    /// Each pod is scheduled by the profile that it names.
    pub fn with(profiles: Vec<Profile>, seed: u64) -> Self {
        let settings = profiles.first().map(|profile| profile.settings);
        let settings = settings.unwrap_or_default();
        Self {
            profiles,
            cluster: Cluster::default(),
            queue: Queue::default(),
            decider: Decider::new(settings, seed),
            volumes: Volumes::default(),
            budgets: HashMap::new(),
            failures: HashMap::new(),
            assumed: HashSet::new(),
        }
    }

    fn settings(&self, scheduler: &str) -> Option<Settings> {
        let mut profiles = self.profiles.iter();
        let profile = profiles.find(|profile| profile.name == scheduler)?;
        Some(profile.settings)
    }

    pub fn nodes(&self) -> usize {
        self.cluster.count()
    }

    /// Pods without a node.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Of these, the ones that can be decided now.
    pub fn active(&self) -> usize {
        self.queue.active()
    }

    /// When a pod that waits is to be tried again, if nothing happens before.
    pub fn next(&self) -> Option<Instant> {
        self.queue.next()
    }

    pub fn set_node(&mut self, node: &Node) {
        if let Some(facts) = NodeFacts::of(node)
            && self.cluster.set_node(facts)
        {
            self.queue.happened(Cures::NODE);
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        self.cluster.remove_node(name);
    }

    pub fn set_pod(&mut self, pod: &Pod) {
        let Some(facts) = PodFacts::of(pod) else {
            return;
        };
        if facts.ended {
            self.note_failure(pod, &facts);
            self.remove_pod(&facts.uid);
        } else if let Some(node) = facts.node.clone() {
            self.queue.remove(&facts.uid);
            self.assumed.remove(&facts.uid);
            let is_new = !self.cluster.pods.contains_key(&facts.uid);
            self.cluster.set_pod(facts, &node);
            if is_new {
                self.queue.happened(Cures::POD_THERE);
            }
        } else if facts.deleted {
            self.remove_pod(&facts.uid);
        } else if self.settings(&facts.scheduler).is_some() && !self.assumed.contains(&facts.uid) {
            self.nominate(&facts);
            self.queue.set(facts);
        }
    }

    fn nominate(&mut self, pod: &PodFacts) {
        let node = pod.nominated.as_deref();
        match node.and_then(|name| self.cluster.node(name)) {
            Some(at) => self.cluster.nominate(pod.clone(), at),
            None => self.cluster.denominate(&pod.uid),
        }
    }

    pub fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.cluster.denominate(uid);
        if self.cluster.remove_pod(uid) {
            self.queue.happened(Cures::POD_GONE);
        }
    }

    fn note_failure(&mut self, pod: &Pod, facts: &PodFacts) {
        let reason = pod
            .status
            .as_ref()
            .and_then(|status| status.reason.as_deref());
        let not_taken =
            reason.is_some_and(|reason| NOT_TAKEN.iter().any(|one| reason.starts_with(one)));
        if let (true, Some(node)) = (
            not_taken && self.cluster.pods.contains_key(&facts.uid),
            &facts.node,
        ) {
            self.avoid(facts, node.clone());
        }
    }

    fn avoid(&mut self, pod: &PodFacts, node: Arc<str>) {
        let now = Instant::now();
        if self.failures.len() >= FAILURES {
            self.failures.retain(|_, until| *until > now);
        }
        if self.failures.len() < FAILURES {
            self.failures.insert((who(pod), node), now + AVOID);
        }
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        self.cluster.set_namespace(name, labels);
    }

    pub fn set_volume(&mut self, volume: &PersistentVolume) {
        self.volumes.set_volume(volume);
        self.queue.happened(Cures::VOLUME);
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove_volume(name);
    }

    pub fn set_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.volumes.set_claim(claim);
        self.queue.happened(Cures::VOLUME);
    }

    pub fn remove_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.volumes.remove_claim(claim);
    }

    pub fn set_class(&mut self, class: &StorageClass) {
        self.volumes.set_class(class);
        self.queue.happened(Cures::VOLUME);
    }

    pub fn remove_class(&mut self, name: &str) {
        self.volumes.remove_class(name);
    }

    /// What was to be written for claims is not, or only in part.
    pub fn not_kept(&mut self, steps: &[Step]) {
        self.volumes.forget(steps);
        self.queue.happened(Cures::VOLUME);
    }

    pub fn set_budget(&mut self, budget: &PodDisruptionBudget) {
        self.budgets.insert(key(budget), Budget::of(budget));
    }

    pub fn remove_budget(&mut self, budget: &PodDisruptionBudget) {
        self.budgets.remove(&key(budget));
    }

    /// Decides the next pod that waits; `None`: nobody can be decided now.
    pub fn step(&mut self) -> Option<Decision> {
        let now = Instant::now();
        let pod = self.queue.take(now)?;
        if let Some(settings) = self.settings(&pod.scheduler) {
            self.decider.settings = settings;
        }
        let mut reserve = Reserve::default();
        if !self.failures.is_empty() {
            let me = who(&pod);
            let failures = self.failures.iter();
            let mine = failures.filter(|((who, _), until)| *who == me && **until > now);
            reserve.avoided = mine.map(|((_, node), _)| node.clone()).collect();
        }
        let wants = pod.class.wants.clone();
        if !wants.claims.is_empty() {
            reserve.claims = self.volumes.of(&wants.namespace, &wants.claims);
            let once = &reserve.claims.once;
            reserve.claims.users = self.cluster.users(&wants.namespace, once);
        }
        match self.decider.decide(&mut self.cluster, &pod, &reserve) {
            Ok(at) => {
                let node = self.cluster.name(at);
                if reserve.claims.are_delayed() {
                    let facts = &self.cluster.nodes[at].facts;
                    let steps = reserve.claims.steps(&facts.name, &facts.labels);
                    let steps = steps.unwrap_or_default();
                    self.volumes.assume(&steps);
                    // its room is kept meanwhile
                    self.cluster.nominate(pod.clone(), at);
                    self.queue.unfit(&pod.uid, Cures::VOLUME, now);
                    return Some(Decision::Claim { pod, node, steps });
                }
                self.assumed.insert(pod.uid.clone());
                self.cluster.set_pod(pod.clone(), &node);
                Some(Decision::Bind { pod, node })
            }
            Err(mut unfit) => {
                let mut room = None;
                if self.decider.settings.preempts && unfit.pod.is_none() && unfit.nodes > 0 {
                    match self.make_room(&pod, &unfit, &reserve) {
                        Ok((at, victims)) => {
                            self.cluster.nominate(pod.clone(), at);
                            room = Some((self.cluster.name(at), victims));
                        }
                        Err(why) => unfit.preemption = Some(why),
                    }
                }
                self.queue.unfit(&pod.uid, unfit.cures(), now);
                Some(Decision::Wait { pod, unfit, room })
            }
        }
    }

    fn make_room(
        &mut self,
        pod: &PodFacts,
        unfit: &Unfit,
        reserve: &Reserve,
    ) -> Result<(usize, Vec<PodFacts>), String> {
        let budgets: Vec<Budget> = self.budgets.values().cloned().collect();
        let settings = self.decider.settings;
        let Room { node, victims } =
            make_room(&mut self.cluster, settings, pod, unfit, reserve, &budgets)?;
        let victims = victims.iter().filter_map(|uid| self.cluster.pods.get(uid));
        Ok((node, victims.map(|placed| placed.facts.clone()).collect()))
    }

    /// The API server has it. It waits no more; the watch will say the same.
    pub fn bound(&mut self, uid: &str) {
        self.queue.remove(uid);
    }

    /// One that waits is decided once more, after its back-off.
    pub fn try_again(&mut self, uid: &Arc<str>) {
        if !self.assumed.contains(uid) {
            self.queue.again(uid);
        }
    }

    /// It could not be bound: it is tried again, and rather elsewhere than at `avoided`.
    pub fn not_bound(&mut self, uid: &Arc<str>, avoided: Option<Arc<str>>) {
        // the watch has told otherwise meanwhile: it is bound, or gone
        if !self.assumed.remove(uid) {
            return;
        }
        if let (Some(placed), Some(node)) = (self.cluster.pods.get(uid), avoided) {
            let pod = placed.facts.clone();
            self.avoid(&pod, node);
        }
        self.cluster.remove_pod(uid);
        self.queue.happened(Cures::POD_GONE);
        self.queue.again(uid);
    }
}

/// Who is avoided: pods of one controller are alike.
fn who(pod: &PodFacts) -> Arc<str> {
    match &pod.wants().controller {
        Some(controller) => controller.as_str().into(),
        None => pod.uid.clone(),
    }
}

fn key(budget: &PodDisruptionBudget) -> (String, String) {
    let meta = &budget.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
