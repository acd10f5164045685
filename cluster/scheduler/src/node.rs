//! A node, and what the pods on it take of it.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::Node as ApiNode;

use crate::{
    amounts::Amounts,
    pod::{HostPort, PodFacts, Wants},
    selector::Labels,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// What its object says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    pub name: String,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Amounts,
    pub max_pods: i64,
    /// Bytes, by every name of an image.
    pub images: HashMap<String, i64>,
}

impl NodeFacts {
    pub fn of(node: &ApiNode) -> Option<Self> {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let allocatable =
            status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let pods = allocatable.and_then(|list| list.get("pods"));
        let taints = spec
            .and_then(|spec| spec.taints.as_ref())
            .into_iter()
            .flatten();
        let images = status.and_then(|status| status.images.as_ref());
        let images = images.into_iter().flatten().flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image
                .names
                .iter()
                .flatten()
                .map(move |name| (name.clone(), size))
        });
        Some(Self {
            name: node.metadata.name.clone()?,
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: taints
                .map(|taint| Taint {
                    key: taint.key.clone(),
                    value: taint.value.clone().unwrap_or_default(),
                    effect: taint.effect.clone(),
                })
                .collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            allocatable: Amounts::of(allocatable),
            max_pods: pods.and_then(|pods| pods.0.parse().ok()).unwrap_or(0),
            images: images.collect(),
        })
    }
}

/// A place in the dense array of nodes.
#[derive(Debug, Default)]
pub struct Node {
    pub facts: NodeFacts,
    /// Free for another one.
    pub gone: bool,
    /// Grows with each change of [`Node::facts`].
    pub told: u64,
    /// Grows with each change of what follows.
    pub changed: u64,
    pub used: Amounts,
    /// As scores count it: milli-cores, bytes.
    pub weighed: (i64, i64),
    pub ports: Vec<HostPort>,
    /// Their uids.
    pub pods: Vec<Arc<str>>,
}

/// What of a node does not suffice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lack {
    Pods,
    Cpu,
    Memory,
    EphemeralStorage,
    Other(Arc<str>),
    Ports,
}

impl Node {
    pub fn add(&mut self, pod: &PodFacts) {
        let wants = pod.wants();
        self.used.add(&wants.requests);
        self.weighed.0 += wants.weighed.0;
        self.weighed.1 += wants.weighed.1;
        self.ports.extend_from_slice(&wants.ports);
        self.pods.push(pod.uid.clone());
        self.changed += 1;
    }

    pub fn remove(&mut self, pod: &PodFacts) {
        let Some(at) = self.pods.iter().position(|uid| *uid == pod.uid) else {
            return;
        };
        self.pods.swap_remove(at);
        let wants = pod.wants();
        self.used.subtract(&wants.requests);
        self.weighed.0 -= wants.weighed.0;
        self.weighed.1 -= wants.weighed.1;
        for port in &wants.ports {
            if let Some(at) = self.ports.iter().position(|one| one == port) {
                self.ports.swap_remove(at);
            }
        }
        self.changed += 1;
    }

    /// Whether the pod has room beside those that are there and those that `beside` it are to be; what is `freed` is not there any more.
    pub fn lacks<'a>(
        &self,
        wants: &Wants,
        beside: impl Iterator<Item = &'a Wants> + Clone,
        freed: impl Iterator<Item = &'a Wants> + Clone,
    ) -> Vec<Lack> {
        let mut lacks = Vec::new();
        let count = |all: usize| i64::try_from(all).unwrap_or(i64::MAX);
        let pods =
            count(self.pods.len()) + count(beside.clone().count()) - count(freed.clone().count());
        if pods + 1 > self.facts.max_pods {
            lacks.push(Lack::Pods);
        }
        let sum = |of: &dyn Fn(&Amounts) -> i64| {
            let more: i64 = beside.clone().map(|wants| of(&wants.requests)).sum();
            let less: i64 = freed.clone().map(|wants| of(&wants.requests)).sum();
            of(&self.used) + more - less
        };
        let mut check = |of: &dyn Fn(&Amounts) -> i64, lack: Lack| {
            let asked = of(&wants.requests);
            if asked > 0 && asked > of(&self.facts.allocatable) - sum(of) {
                lacks.push(lack);
            }
        };
        check(&|amounts| amounts.cpu_milli, Lack::Cpu);
        check(&|amounts| amounts.memory, Lack::Memory);
        check(&|amounts| amounts.ephemeral_storage, Lack::EphemeralStorage);
        for (name, _) in &wants.requests.others {
            check(&|amounts| amounts.other(name), Lack::Other(name.clone()));
        }
        let collide = wants.ports.iter().any(|port| {
            let taken = |ports: &[HostPort]| ports.iter().filter(|one| one.collides(port)).count();
            let there = taken(&self.ports)
                + beside
                    .clone()
                    .map(|wants| taken(&wants.ports))
                    .sum::<usize>();
            there
                > freed
                    .clone()
                    .map(|wants| taken(&wants.ports))
                    .sum::<usize>()
        });
        if collide {
            lacks.push(Lack::Ports);
        }
        lacks
    }
}

#[cfg(test)]
mod tests {
    use std::iter::empty;

    use serde_json::{from_value, json};

    use super::*;

    fn node() -> Node {
        let node = from_value(json!({
            "metadata": {"name": "n"},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2", "example.com/gpu": "1"}},
        }));
        Node {
            facts: NodeFacts::of(&node.expect("a node")).expect("a name"),
            ..Node::default()
        }
    }

    fn pod(uid: &str, requests: serde_json::Value, port: i32) -> PodFacts {
        let pod = from_value(json!({
            "metadata": {"name": uid, "uid": uid, "namespace": "a"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}, "ports": [{"containerPort": 80, "hostPort": port}]}]},
        }));
        PodFacts::of(&pod.expect("a pod")).expect("names")
    }

    #[test]
    fn a_pod_has_room_or_it_is_said_what_is_lacking() {
        let mut node = node();
        let first = pod("1", json!({"cpu": "1500m", "example.com/gpu": "1"}), 80);
        assert_eq!(node.lacks(first.wants(), empty(), empty()), []);
        node.add(&first);
        let second = pod(
            "2",
            json!({"cpu": "1", "memory": "2Gi", "example.com/gpu": "1"}),
            80,
        );
        let lacks = [
            Lack::Cpu,
            Lack::Memory,
            Lack::Other("example.com/gpu".into()),
            Lack::Ports,
        ];
        assert_eq!(node.lacks(second.wants(), empty(), empty()), lacks);
        let freed = std::iter::once(first.wants());
        assert_eq!(node.lacks(second.wants(), empty(), freed), [Lack::Memory]);
        let small = pod("3", json!({"cpu": "500m"}), 0);
        assert_eq!(node.lacks(small.wants(), empty(), empty()), []);
        let beside = std::iter::once(small.wants());
        assert_eq!(
            node.lacks(small.wants(), beside, empty()),
            [Lack::Pods, Lack::Cpu]
        );
        node.remove(&first);
        assert_eq!(
            node.used,
            Amounts {
                others: node.used.others.clone(),
                ..Amounts::default()
            }
        );
        assert!(node.ports.is_empty() && node.pods.is_empty());
    }

    /// As upstream: who asks for none of it does not care that it is overdrawn.
    #[test]
    fn what_is_not_asked_for_does_not_lack() {
        let mut node = node();
        node.add(&pod("1", json!({"cpu": "3"}), 0));
        assert_eq!(
            node.lacks(
                pod("2", json!({"memory": "1Mi"}), 0).wants(),
                empty(),
                empty()
            ),
            []
        );
    }
}
