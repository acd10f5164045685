//! How many pods of a kind are on each node, kept as pods come and go: what affinity and spread ask again and again.

use std::collections::HashMap;

use crate::{
    pod::{Matcher, PodTerm, Wants},
    selector::Labels,
};

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Pods that all of these take.
    Taken(Vec<Matcher>),
    /// Pods that say this to others: how much they draw them, or (none) that they must keep away.
    Saying { weight: Option<i32>, term: PodTerm },
}

#[derive(Debug)]
pub struct Tally {
    pub counted: Counted,
    /// By the node's place.
    pub by_node: Vec<u32>,
}

#[derive(Debug, Default)]
pub struct Tallies {
    pub all: Vec<Tally>,
    index: HashMap<Counted, usize>,
}

impl Tallies {
    pub fn find(&self, counted: &Counted) -> Option<usize> {
        self.index.get(counted).copied()
    }

    /// A new one that counts nothing yet.
    pub fn add(&mut self, counted: Counted, nodes: usize) -> usize {
        let at = self.all.len();
        self.index.insert(counted.clone(), at);
        self.all.push(Tally {
            counted,
            by_node: vec![0; nodes],
        });
        at
    }

    pub fn grow(&mut self, nodes: usize) {
        for tally in &mut self.all {
            tally.by_node.resize(nodes, 0);
        }
    }

    pub fn change(&mut self, tallies: &[usize], node: usize, by: i32) {
        for tally in tallies {
            let count = &mut self.all[*tally].by_node[node];
            *count = count.saturating_add_signed(by);
        }
    }
}

impl Counted {
    /// Whether it depends on what namespaces are labelled.
    pub fn asks_namespaces(&self) -> bool {
        match self {
            Self::Taken(matchers) => matchers.iter().any(Matcher::asks_namespaces),
            Self::Saying { term, .. } => term.matcher.asks_namespaces(),
        }
    }

    pub fn takes(&self, wants: &Wants, labels_of: impl Fn(&str) -> Option<Labels> + Copy) -> bool {
        match self {
            Self::Taken(matchers) => matchers.iter().all(|one| one.takes(wants, labels_of)),
            Self::Saying { .. } => false,
        }
    }
}

/// A label of nodes, by whose values they are parted.
#[derive(Debug, Default)]
pub struct Topology {
    pub key: String,
    /// Each node's part; 0 has none.
    pub of_node: Vec<u32>,
    ids: HashMap<String, u32>,
}

impl Topology {
    pub fn new(key: &str, nodes: usize) -> Self {
        Self {
            key: key.to_owned(),
            of_node: vec![0; nodes],
            ids: HashMap::new(),
        }
    }

    pub fn set(&mut self, node: usize, labels: Option<&Labels>) {
        let value = labels.and_then(|labels| labels.get(&self.key));
        let next = u32::try_from(self.ids.len() + 1).unwrap_or(u32::MAX);
        self.of_node[node] = match value {
            None => 0,
            Some(value) => *self.ids.entry(value.clone()).or_insert(next),
        };
    }

    /// One more than there are parts.
    pub fn len(&self) -> usize {
        self.ids.len() + 1
    }

    /// Sums of a tally by part.
    pub fn sums(&self, by_node: &[u32]) -> Vec<u32> {
        let mut sums = vec![0; self.len()];
        for (count, part) in by_node.iter().zip(&self.of_node) {
            sums[*part as usize] += count;
        }
        sums[0] = 0;
        sums
    }
}
