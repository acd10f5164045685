//! What a pod wants of its node. Pods that want the same are of one class (BO-05), and what was found out for one is true for all.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodSpec, Toleration as ApiToleration, TopologySpreadConstraint,
};

use crate::{
    amounts::{self, Amounts},
    selector::{Labels, NodeTerm, Selector},
};

/// Of a pod whose required affinity draws others to it: their score's part (upstream's default).
const HARD_AFFINITY_WEIGHT: i32 = 1;

/// A port of the node's that a container takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Of all of the node's addresses if it is none.
    pub address: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether a node can't give both.
    pub fn collides(&self, other: &Self) -> bool {
        let any = |address: &str| address.is_empty() || address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.address) || any(&other.address) || self.address == other.address)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Toleration {
    key: String,
    /// Of any value, if there is none.
    value: Option<String>,
    /// Of any effect, if there is none.
    effect: Option<String>,
}

impl Toleration {
    fn of(toleration: &ApiToleration) -> Self {
        let exists = toleration.operator.as_deref() == Some("Exists");
        Self {
            key: toleration.key.clone().unwrap_or_default(),
            value: (!exists).then(|| toleration.value.clone().unwrap_or_default()),
            effect: toleration
                .effect
                .clone()
                .filter(|effect| !effect.is_empty()),
        }
    }

    /// No key with `Exists` is every key.
    pub fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        (self.key == key || self.key.is_empty() && self.value.is_none())
            && self.value.as_ref().is_none_or(|own| own == value)
            && self.effect.as_ref().is_none_or(|own| own == effect)
    }
}

/// Which pods: of these namespaces, with these labels; or of one controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matcher {
    Labels {
        namespaces: BTreeSet<String>,
        /// And of those with such labels.
        namespaces_with: Selector,
        pods: Selector,
    },
    /// By its uid.
    Controller(String),
}

impl Matcher {
    /// Whether it depends on what namespaces are labelled.
    pub fn asks_namespaces(&self) -> bool {
        matches!(self, Self::Labels { namespaces_with, .. } if !namespaces_with.is_none())
    }

    pub fn takes(&self, wants: &Wants, labels_of: impl Fn(&str) -> Option<Labels>) -> bool {
        match self {
            Self::Controller(uid) => wants.controller.as_ref() == Some(uid),
            Self::Labels {
                namespaces,
                namespaces_with,
                pods,
            } => {
                pods.takes(&wants.labels)
                    && (namespaces.contains(&wants.namespace)
                        || labels_of(&wants.namespace)
                            .is_some_and(|labels| namespaces_with.takes(&labels)))
            }
        }
    }
}

/// Beside which pods, within which domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodTerm {
    pub matcher: Matcher,
    pub topology_key: String,
}

impl PodTerm {
    fn of(term: &PodAffinityTerm, namespace: &str) -> Self {
        let named: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let namespaces = match named.is_empty() && term.namespace_selector.is_none() {
            true => BTreeSet::from([namespace.to_owned()]),
            false => named,
        };
        Self {
            matcher: Matcher::Labels {
                namespaces,
                namespaces_with: Selector::of(term.namespace_selector.as_ref()),
                pods: Selector::of(term.label_selector.as_ref()),
            },
            topology_key: term.topology_key.clone(),
        }
    }
}

/// How evenly pods are to be spread over domains.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    pub topology_key: String,
    pub matcher: Matcher,
    pub max_skew: i32,
    /// `DoNotSchedule`; else it is only a score.
    pub hard: bool,
    /// Fewer domains than these: the least is 0.
    pub min_domains: i32,
    /// Only nodes that the pod's selector and affinity take are counted.
    pub honors_affinity: bool,
    /// Only nodes whose taints it tolerates are counted.
    pub honors_taints: bool,
}

impl Spread {
    fn of(constraint: &TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Self {
        let mut pods = Selector::of(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                pods = pods.and(key, value);
            }
        }
        let honors =
            |policy: Option<&String>, default| policy.map_or(default, |policy| policy == "Honor");
        Self {
            topology_key: constraint.topology_key.clone(),
            matcher: Matcher::Labels {
                namespaces: BTreeSet::from([namespace.to_owned()]),
                namespaces_with: Selector::of(None),
                pods,
            },
            max_skew: constraint.max_skew,
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            min_domains: constraint.min_domains.unwrap_or(1),
            honors_affinity: honors(constraint.node_affinity_policy.as_ref(), true),
            honors_taints: honors(constraint.node_taints_policy.as_ref(), false),
        }
    }

    /// Where a pod says nothing, those of its controller are kept apart a little: upstream's two constraints of the cluster.
    fn by_default(controller: &str) -> [Self; 2] {
        let one = |topology_key: &str, max_skew| Self {
            topology_key: topology_key.to_owned(),
            matcher: Matcher::Controller(controller.to_owned()),
            max_skew,
            hard: false,
            min_domains: 1,
            honors_affinity: true,
            honors_taints: false,
        };
        [
            one("kubernetes.io/hostname", 3),
            one("topology.kubernetes.io/zone", 5),
        ]
    }
}

/// All that says where a pod may be and how well it would be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wants {
    /// Whose profile it is scheduled by.
    pub scheduler: String,
    pub namespace: String,
    pub labels: Labels,
    /// Its controller's uid.
    pub controller: Option<String>,
    pub requests: Amounts,
    /// Milli-cores and bytes as scores count them.
    pub weighed: (i64, i64),
    pub ports: Vec<HostPort>,
    pub node_selector: Labels,
    /// One of them has to take the node.
    pub node_terms: Option<Vec<NodeTerm>>,
    pub preferred_nodes: Vec<(i32, NodeTerm)>,
    pub tolerations: Vec<Toleration>,
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    /// Against them, if the weight is negative.
    pub preferred: Vec<(i32, PodTerm)>,
    pub spread: Vec<Spread>,
    pub images: Vec<String>,
    /// Names of its PersistentVolumeClaims.
    pub claims: Vec<String>,
}

impl Wants {
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let labels = meta.labels.clone().unwrap_or_default();
        let owners = meta.owner_references.iter().flatten();
        let mut controllers = owners.filter(|owner| owner.controller == Some(true));
        let controller = controllers.next().map(|owner| owner.uid.clone());
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let no_affinity = Affinity::default();
        let affinity = spec.affinity.as_ref().unwrap_or(&no_affinity);
        let nodes = affinity.node_affinity.as_ref();
        let required = nodes.and_then(|nodes| {
            nodes
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let preferred_nodes = nodes.and_then(|nodes| {
            nodes
                .preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let (with, against) = (
            affinity.pod_affinity.as_ref(),
            affinity.pod_anti_affinity.as_ref(),
        );
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<PodTerm> {
            let terms = terms.into_iter().flatten();
            terms.map(|term| PodTerm::of(term, &namespace)).collect()
        };
        let with_preferred = with.and_then(|with| {
            with.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let against_preferred = against.and_then(|against| {
            against
                .preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let preferred = with_preferred
            .into_iter()
            .flatten()
            .map(|one| (one.weight, one));
        let preferred = preferred.chain(
            against_preferred
                .into_iter()
                .flatten()
                .map(|one| (-one.weight, one)),
        );
        let preferred = preferred
            .map(|(weight, one)| (weight, PodTerm::of(&one.pod_affinity_term, &namespace)))
            .collect();
        let constraints = spec.topology_spread_constraints.iter().flatten();
        let mut spread: Vec<Spread> = constraints
            .map(|one| Spread::of(one, &namespace, &labels))
            .collect();
        if let (true, Some(controller)) = (spread.is_empty(), &controller) {
            spread.extend(Spread::by_default(controller));
        }
        let tolerations = spec.tolerations.iter().flatten().map(Toleration::of);
        let containers = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten());
        let mut images: Vec<String> = containers
            .clone()
            .filter_map(|container| container.image.clone())
            .collect();
        images.sort();
        images.dedup();
        let volumes = spec.volumes.iter().flatten();
        Self {
            scheduler: spec.scheduler_name.clone().unwrap_or_default(),
            requests: amounts::requests(spec),
            weighed: amounts::weighed(spec),
            ports: ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_terms: required.map(|required| {
                required
                    .node_selector_terms
                    .iter()
                    .map(NodeTerm::of)
                    .collect()
            }),
            preferred_nodes: preferred_nodes
                .into_iter()
                .flatten()
                .map(|one| (one.weight, NodeTerm::of(&one.preference)))
                .collect(),
            tolerations: tolerations.collect(),
            affinity: terms(with.and_then(|with| {
                with.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            anti_affinity: terms(against.and_then(|against| {
                against
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred,
            spread,
            images,
            claims: volumes
                .filter_map(|volume| {
                    let claim = volume.persistent_volume_claim.as_ref();
                    // of an ephemeral one, a claim is made whose name is made of both
                    let ephemeral = volume.ephemeral.as_ref().map(|_| {
                        let pod = meta.name.as_deref().unwrap_or_default();
                        format!("{pod}-{}", volume.name)
                    });
                    claim.map(|claim| claim.claim_name.clone()).or(ephemeral)
                })
                .collect(),
            namespace,
            labels,
            controller,
        }
    }

    pub fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        self.tolerations
            .iter()
            .any(|toleration| toleration.tolerates(key, value, effect))
    }

    /// Whether the node's name and labels are what it needs.
    pub fn takes_node(&self, name: &str, labels: &Labels) -> bool {
        self.node_selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .node_terms
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.takes(name, labels)))
    }

    /// What those that are there already say to others: their weight, and of whom. None: they must not be there.
    pub fn says(&self) -> impl Iterator<Item = (Option<i32>, &PodTerm)> {
        let repels = self.anti_affinity.iter().map(|term| (None, term));
        let draws = self.affinity.iter();
        let draws = draws.map(|term| (Some(HARD_AFFINITY_WEIGHT), term));
        let prefers = self.preferred.iter();
        repels
            .chain(draws)
            .chain(prefers.map(|(weight, term)| (Some(*weight), term)))
    }
}

fn ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let mut ports: Vec<HostPort> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort {
                address: port.host_ip.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: number,
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

/// [`Wants`] with its hash, which is asked for often.
#[derive(Debug, Clone)]
pub struct Class {
    pub wants: Arc<Wants>,
    hash: u64,
}

impl Class {
    pub fn new(wants: Wants) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        wants.hash(&mut hasher);
        Self {
            wants: Arc::new(wants),
            hash: hasher.finish(),
        }
    }
}

impl PartialEq for Class {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && (Arc::ptr_eq(&self.wants, &other.wants) || self.wants == other.wants)
    }
}

impl Eq for Class {}

impl Hash for Class {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A pod, as far as it matters here.
#[derive(Debug, Clone)]
pub struct PodFacts {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub class: Class,
    pub priority: i32,
    /// `preemptionPolicy: Never` is false.
    pub may_preempt: bool,
    /// Where it is, if it is bound.
    pub node: Option<Arc<str>>,
    /// Where room is being made for it.
    pub nominated: Option<Arc<str>>,
    /// Names of gates that hold it back.
    pub gates: Vec<String>,
    pub scheduler: String,
    pub deleted: bool,
    /// Its phase is Succeeded or Failed: it takes nothing any more.
    pub ended: bool,
    pub started: Option<Timestamp>,
}

impl PodFacts {
    /// `None` of what has no uid or name.
    pub fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
        let text = |text: &Option<String>| {
            text.as_deref()
                .filter(|text| !text.is_empty())
                .map(Into::into)
        };
        let phase = status.and_then(|status| status.phase.as_deref());
        Some(Self {
            uid: meta.uid.as_deref()?.into(),
            name: meta.name.as_deref()?.into(),
            class: Class::new(Wants::of(pod)),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            node: text(&spec.node_name),
            nominated: nominated.filter(|name| !name.is_empty()).map(Into::into),
            gates: spec
                .scheduling_gates
                .iter()
                .flatten()
                .map(|gate| gate.name.clone())
                .collect(),
            scheduler: spec
                .scheduler_name
                .clone()
                .unwrap_or_else(|| "default-scheduler".into()),
            deleted: meta.deletion_timestamp.is_some(),
            ended: matches!(phase, Some("Succeeded" | "Failed")),
            started: status
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0),
        })
    }

    pub fn wants(&self) -> &Wants {
        &self.class.wants
    }

    /// `namespace/name`
    pub fn shown(&self) -> String {
        format!("{}/{}", self.wants().namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        from_value(value).expect("a pod")
    }

    #[test]
    fn pods_of_one_controller_are_of_one_class() {
        let of = |name: &str, cpu: &str| {
            PodFacts::of(&pod(json!({
                "metadata": {"name": name, "uid": name, "namespace": "a", "labels": {"app": "x"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]},
                "spec": {"priority": 5, "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]},
            })))
            .expect("a pod")
        };
        assert_eq!(of("x", "1").class, of("y", "1000m").class);
        assert_ne!(of("x", "1").class, of("y", "2").class);
        assert_eq!(of("x", "1").wants().spread.len(), 2);
    }

    #[test]
    fn tolerations_are_told_by_key_value_and_effect() {
        let of = |value| Toleration::of(&from_value(value).expect("a toleration"));
        let all = of(json!({"operator": "Exists"}));
        assert!(all.tolerates("a", "b", "NoExecute"));
        let key = of(json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"}));
        assert!(key.tolerates("a", "b", "NoSchedule") && !key.tolerates("a", "b", "NoExecute"));
        let equal = of(json!({"key": "a", "value": "b"}));
        assert!(
            equal.tolerates("a", "b", "NoSchedule") && !equal.tolerates("a", "c", "NoSchedule")
        );
        assert!(!of(json!({"value": ""})).tolerates("a", "", "NoSchedule"));
    }

    #[test]
    fn ports_collide_on_one_address() {
        let port = |address: &str, protocol: &str, port| HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        };
        let one = port("127.0.0.1", "TCP", 80);
        assert!(one.collides(&port("", "TCP", 80)) && one.collides(&port("0.0.0.0", "TCP", 80)));
        assert!(!one.collides(&port("10.0.0.1", "TCP", 80)));
        assert!(!one.collides(&port("", "UDP", 80)) && !one.collides(&port("", "TCP", 81)));
    }
}
