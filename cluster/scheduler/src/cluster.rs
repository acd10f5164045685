//! All nodes, all pods that are on them, and what is known of each class of pods.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    class::{Known, Plan},
    node::{Node, NodeFacts},
    pod::{Class, PodFacts},
    selector::Labels,
    tally::{Counted, Tallies, Topology},
};

/// Classes that nobody is of any more are forgotten when they are more than the others and than these; looked at after so many removals.
const FORGET_AFTER: usize = 1024;

#[derive(Debug)]
pub struct Placed {
    pub facts: PodFacts,
    pub class: usize,
    /// `None`: its node is not known (yet, or any more).
    pub at: Option<usize>,
    pub node: Arc<str>,
}

/// # Synchronization
/// None: one task owns it.
#[derive(Debug, Default)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    by_name: HashMap<Arc<str>, usize>,
    free: Vec<usize>,
    pub pods: HashMap<Arc<str>, Placed>,
    /// Pods by the name of a node that is not known.
    homeless: HashMap<Arc<str>, HashSet<Arc<str>>>,
    pub classes: Vec<Known>,
    class_index: HashMap<Class, usize>,
    pub tallies: Tallies,
    pub topologies: Vec<Topology>,
    namespaces: HashMap<String, Labels>,
    /// Pods for which room is being made, by the node's place.
    pub nominated: HashMap<usize, Vec<PodFacts>>,
    /// On how many nodes an image is.
    pub images: HashMap<String, usize>,
    removals: usize,
    /// Classes with a cache, the one that was asked longest ago first.
    pub cached: std::collections::VecDeque<usize>,
}

impl Cluster {
    /// Nodes that there are.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    pub fn node(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub fn name(&self, node: usize) -> Arc<str> {
        self.nodes[node].facts.name.as_str().into()
    }

    /// A node comes, or says something else. Whether anything has changed.
    pub fn set_node(&mut self, facts: NodeFacts) -> bool {
        let name: Arc<str> = facts.name.as_str().into();
        let at = match self.by_name.get(&name) {
            Some(at) if self.nodes[*at].facts == facts => return false,
            Some(at) => *at,
            None => {
                let at = self.free.pop().unwrap_or_else(|| {
                    self.nodes.push(Node::default());
                    let nodes = self.nodes.len();
                    self.tallies.grow(nodes);
                    for topology in &mut self.topologies {
                        topology.of_node.resize(nodes, 0);
                    }
                    nodes - 1
                });
                self.by_name.insert(name.clone(), at);
                at
            }
        };
        for topology in &mut self.topologies {
            topology.set(at, Some(&facts.labels));
        }
        count_images(&mut self.images, &self.nodes[at].facts, false);
        count_images(&mut self.images, &facts, true);
        let node = &mut self.nodes[at];
        node.facts = facts;
        node.gone = false;
        node.told += 1;
        for uid in self.homeless.remove(&name).unwrap_or_default() {
            self.attach(&uid, at);
        }
        true
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some((name, at)) = self.by_name.remove_entry(name) else {
            return;
        };
        let uids = self.nodes[at].pods.clone();
        for uid in &uids {
            self.detach(uid);
        }
        self.homeless.entry(name).or_default().extend(uids);
        for topology in &mut self.topologies {
            topology.set(at, None);
        }
        self.nominated.remove(&at);
        let node = &mut self.nodes[at];
        count_images(&mut self.images, &node.facts, false);
        node.facts = NodeFacts::default();
        node.gone = true;
        node.told += 1;
        self.free.push(at);
    }

    /// A pod is on a node, or is going to be.
    pub fn set_pod(&mut self, facts: PodFacts, node: &str) {
        if let Some(placed) = self.pods.get(&facts.uid) {
            if placed.facts.class == facts.class && *placed.node == *node {
                if let Some(placed) = self.pods.get_mut(&facts.uid) {
                    placed.facts = facts;
                }
                return;
            }
            self.remove_pod(&facts.uid.clone());
        }
        let class = self.class(&facts.class);
        self.classes[class].pods += 1;
        let (uid, node): (Arc<str>, Arc<str>) = (facts.uid.clone(), node.into());
        self.denominate(&uid);
        let placed = Placed {
            facts,
            class,
            at: None,
            node: node.clone(),
        };
        self.pods.insert(uid.clone(), placed);
        match self.node(&node) {
            Some(at) => self.attach(&uid, at),
            None => {
                self.homeless.entry(node).or_default().insert(uid);
            }
        }
    }

    /// Whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.detach(uid);
        let Some(placed) = self.pods.remove(uid) else {
            return false;
        };
        self.classes[placed.class].pods -= 1;
        if let Some(waiting) = self.homeless.get_mut(&placed.node) {
            waiting.remove(uid);
            if waiting.is_empty() {
                self.homeless.remove(&placed.node);
            }
        }
        self.removals += 1;
        if self.removals > FORGET_AFTER.max(self.classes.len()) {
            self.removals = 0;
            let unused = self.classes.iter().filter(|known| known.pods == 0);
            if unused.count() > FORGET_AFTER.max(self.classes.len() / 2) {
                self.rebuild();
            }
        }
        true
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let before = self.namespaces.get(name);
        if before == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        // who is meant by a selector of namespaces is another question now
        let mut tallies = self.tallies.all.iter();
        if tallies.any(|tally| tally.counted.asks_namespaces()) {
            self.rebuild();
        }
    }

    /// Room is being made for it there.
    pub fn nominate(&mut self, pod: PodFacts, node: usize) {
        self.denominate(&pod.uid.clone());
        self.nominated.entry(node).or_default().push(pod);
    }

    pub fn denominate(&mut self, uid: &str) {
        self.nominated.retain(|_, pods| {
            pods.retain(|pod| *pod.uid != *uid);
            !pods.is_empty()
        });
    }

    fn attach(&mut self, uid: &Arc<str>, at: usize) {
        let Some(placed) = self.pods.get_mut(uid) else {
            return;
        };
        placed.at = Some(at);
        self.nodes[at].add(&placed.facts);
        let known = &self.classes[placed.class];
        self.tallies.change(&known.taken, at, 1);
        self.tallies.change(&known.says, at, 1);
    }

    fn detach(&mut self, uid: &str) {
        let Some(placed) = self.pods.get_mut(uid) else {
            return;
        };
        let Some(at) = placed.at.take() else {
            return;
        };
        self.nodes[at].remove(&placed.facts);
        let known = &self.classes[placed.class];
        self.tallies.change(&known.taken, at, -1);
        self.tallies.change(&known.says, at, -1);
    }

    /// The place of a class, which is known from now on.
    pub fn class(&mut self, class: &Class) -> usize {
        if let Some(at) = self.class_index.get(class) {
            return *at;
        }
        let namespaces = &self.namespaces;
        let labels_of = |name: &str| namespaces.get(name).cloned();
        let tallies = self.tallies.all.iter().enumerate();
        let taken = tallies
            .filter(|(_, tally)| tally.counted.takes(&class.wants, labels_of))
            .map(|(at, _)| at)
            .collect();
        let nodes = self.nodes.len();
        let mut says = Vec::new();
        for (weight, term) in class.wants.says() {
            let counted = Counted::Saying {
                weight,
                term: term.clone(),
            };
            let at = self.tallies.find(&counted);
            says.push(at.unwrap_or_else(|| self.tallies.add(counted, nodes)));
        }
        let at = self.classes.len();
        self.classes.push(Known {
            class: class.clone(),
            pods: 0,
            taken,
            says,
            plan: Plan::default(),
            cache: None,
        });
        self.class_index.insert(class.clone(), at);
        at
    }

    /// The tally of pods that all of these take; who is there already is counted.
    pub fn tally(&mut self, matchers: Vec<crate::pod::Matcher>) -> usize {
        let counted = Counted::Taken(matchers);
        if let Some(at) = self.tallies.find(&counted) {
            return at;
        }
        let at = self.tallies.add(counted, self.nodes.len());
        let namespaces = &self.namespaces;
        let labels_of = |name: &str| namespaces.get(name).cloned();
        let tally = &mut self.tallies.all[at];
        for known in &mut self.classes {
            if tally.counted.takes(&known.class.wants, labels_of) {
                known.taken.push(at);
            }
        }
        for placed in self.pods.values() {
            if let Some(node) = placed.at
                && self.classes[placed.class].taken.contains(&at)
            {
                tally.by_node[node] += 1;
            }
        }
        at
    }

    /// Pods that have one of these claims.
    pub fn users(&self, namespace: &str, claims: &[String]) -> Vec<Arc<str>> {
        if claims.is_empty() {
            return Vec::new();
        }
        let of_class = |class: &Known| {
            let wants = &class.class.wants;
            wants.namespace == namespace && wants.claims.iter().any(|one| claims.contains(one))
        };
        let users = self.pods.values();
        let users = users.filter(|placed| of_class(&self.classes[placed.class]));
        users.map(|placed| placed.facts.uid.clone()).collect()
    }

    pub fn topology(&mut self, key: &str) -> usize {
        if let Some(at) = self.topologies.iter().position(|one| one.key == key) {
            return at;
        }
        let mut topology = Topology::new(key, self.nodes.len());
        for (at, node) in self.nodes.iter().enumerate() {
            topology.set(at, (!node.gone).then_some(&node.facts.labels));
        }
        self.topologies.push(topology);
        self.topologies.len() - 1
    }

    /// Whether pods of this class are among those that a term means.
    pub fn is_meant(&self, term: &crate::pod::PodTerm, class: usize) -> bool {
        let labels_of = |name: &str| self.namespaces.get(name).cloned();
        term.matcher
            .takes(&self.classes[class].class.wants, labels_of)
    }

    /// Forgets all that nobody is of any more, and counts anew.
    fn rebuild(&mut self) {
        let pods: Vec<(PodFacts, Arc<str>)> = self
            .pods
            .drain()
            .map(|(_, placed)| (placed.facts, placed.node))
            .collect();
        self.homeless.clear();
        self.classes.clear();
        self.class_index.clear();
        self.tallies = Tallies::default();
        self.topologies.clear();
        self.cached.clear();
        for node in &mut self.nodes {
            *node = Node {
                facts: std::mem::take(&mut node.facts),
                gone: node.gone,
                told: node.told + 1,
                changed: node.changed + 1,
                ..Node::default()
            };
        }
        let nominated = std::mem::take(&mut self.nominated);
        for (facts, node) in pods {
            self.set_pod(facts, &node);
        }
        self.nominated = nominated;
    }
}

fn count_images(images: &mut HashMap<String, usize>, facts: &NodeFacts, comes: bool) {
    for name in facts.images.keys() {
        if comes {
            *images.entry(name.clone()).or_default() += 1;
        } else if let Some(count) = images.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                images.remove(name);
            }
        }
    }
}
