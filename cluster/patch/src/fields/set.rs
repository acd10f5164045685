use std::collections::{BTreeMap, btree_map::Entry};

use super::PathElement;

/// A set of paths. What lies below a path is not in the set for that alone: each field is owned by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// None is empty.
    pub(super) nodes: BTreeMap<PathElement, Node>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// Of paths through objects alone, like `["metadata", "name"]`.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<_> = path.iter().map(|name| PathElement::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Nobody owns the whole object: an empty path is not inserted.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        // Cloned only where it is new.
        if !self.nodes.contains_key(first) {
            self.nodes.insert(first.clone(), Node::default());
        }
        let Some(node) = self.nodes.get_mut(first) else {
            return;
        };
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    pub fn contains(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has(last),
            [first, rest @ ..] => self
                .nodes
                .get(first)
                .is_some_and(|node| node.below.contains(rest)),
        }
    }

    pub(crate) fn has(&self, element: &PathElement) -> bool {
        self.nodes.get(element).is_some_and(|node| node.member)
    }

    /// What lies below `element`; `None` where that is nothing.
    pub(crate) fn below(&self, element: &PathElement) -> Option<&Self> {
        let below = &self.nodes.get(element)?.below;
        (!below.is_empty()).then_some(below)
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (element, node) in &other.nodes {
            match union.nodes.get_mut(element) {
                Some(mine) => {
                    mine.member |= node.member;
                    mine.below = mine.below.union(&node.below);
                }
                None => {
                    union.nodes.insert(element.clone(), node.clone());
                }
            }
        }
        union
    }

    /// With all that `other` has.
    pub(crate) fn add(&mut self, other: Self) {
        if self.nodes.is_empty() {
            *self = other;
            return;
        }
        for (element, node) in other.nodes {
            match self.nodes.entry(element) {
                Entry::Occupied(mine) => {
                    let mine = mine.into_mut();
                    mine.member |= node.member;
                    mine.below.add(node.below);
                }
                Entry::Vacant(place) => {
                    place.insert(node);
                }
            }
        }
    }

    /// What is at `element`, which was not there; nothing is not kept.
    pub(crate) fn put(&mut self, element: PathElement, member: bool, below: Self) {
        let node = Node { member, below };
        if !node.is_empty() {
            self.nodes.insert(element, node);
        }
    }

    /// [`Self::difference`], in place.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.reduce(other, |node, other| {
            node.member &= !other.member;
            node.below.subtract(&other.below);
        });
    }

    /// [`Self::without`], in place.
    pub(crate) fn cut(&mut self, other: &Self) {
        self.reduce(other, |node, other| {
            if other.member {
                *node = Node::default();
            } else {
                node.below.cut(&other.below);
            }
        });
    }

    fn reduce(&mut self, other: &Self, reduce: impl Fn(&mut Node, &Node)) {
        for (element, other) in &other.nodes {
            let Some(node) = self.nodes.get_mut(element) else {
                continue;
            };
            reduce(node, other);
            if node.is_empty() {
                self.nodes.remove(element);
            }
        }
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.filtered(|element, node| {
            let Some(other) = other.nodes.get(element) else {
                return Node::default();
            };
            Node {
                member: node.member && other.member,
                below: node.below.intersection(&other.below),
            }
        })
    }

    /// Fields alone: a field that `other` has leaves those below it.
    pub fn difference(&self, other: &Self) -> Self {
        self.filtered(|element, node| match other.nodes.get(element) {
            None => node.clone(),
            Some(other) => Node {
                member: node.member && !other.member,
                below: node.below.difference(&other.below),
            },
        })
    }

    /// A field that `other` has goes with all below it.
    pub fn without(&self, other: &Self) -> Self {
        self.filtered(|element, node| match other.nodes.get(element) {
            None => node.clone(),
            Some(other) if other.member => Node::default(),
            Some(other) => Node {
                member: node.member,
                below: node.below.without(&other.below),
            },
        })
    }

    fn filtered(&self, keep: impl Fn(&PathElement, &Node) -> Node) -> Self {
        let nodes = self
            .nodes
            .iter()
            .map(|(element, node)| (element, keep(element, node)))
            .filter(|(_, node)| !node.is_empty())
            .map(|(element, node)| (element.clone(), node))
            .collect();
        Self { nodes }
    }

    /// Every node with what lies below it made anew; `change` says whether it is a member, and is asked in order.
    pub(crate) fn map<'s>(
        &'s self,
        change: &mut dyn FnMut(&'s PathElement, bool, &'s Self) -> (bool, Self),
    ) -> Self {
        let mut nodes = BTreeMap::new();
        for (element, node) in &self.nodes {
            let (member, below) = change(element, node.member, &node.below);
            let node = Node { member, below };
            if !node.is_empty() {
                nodes.insert(element.clone(), node);
            }
        }
        Self { nodes }
    }

    /// In the order of upstream's messages: the fields of a level, then those below each.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, at: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for (element, _) in self.nodes.iter().filter(|(_, node)| node.member) {
            let mut path = at.clone();
            path.push(element.clone());
            paths.push(path);
        }
        for (element, node) in &self.nodes {
            at.push(element.clone());
            node.below.collect(at, paths);
            at.pop();
        }
    }

    /// (element, is a member itself, what lies below).
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&PathElement, bool, &Self)> {
        self.nodes
            .iter()
            .map(|(element, node)| (element, node.member, &node.below))
    }
}
