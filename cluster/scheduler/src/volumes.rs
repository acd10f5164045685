//! Where a pod's PersistentVolumeClaims let it be, and what is written before it can be there.
//!
//! A claim of a class that waits for its first consumer is bound in two steps: a volume that reaches the node which was decided is kept for it (`claimRef`), or a
//! provisioner is told the node (an annotation); then the volume binder, of whoever's controllers, binds both, and the pod is decided once more. So what was
//! begun is in the API, and whoever schedules next goes on from there.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use berth_kinds::Room;
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    selector::{Labels, NodeTerm, Selector},
    unfit::Refusal,
};

const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Where a provisioner is to make a claim's volume.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const ONCE_POD: &str = "ReadWriteOncePod";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Namespace and name of a claim.
type Id = (String, String);

/// An object of which something is written: only while it is as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

impl Seen {
    fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// What is written for a claim once its pod's node is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The volume is kept for the claim.
    Keep { volume: Seen, claim: Seen },
    /// A volume is made for it there.
    Make { claim: Seen },
}

/// What a pod's claims say of nodes.
#[derive(Debug, Default)]
pub struct Claims {
    /// Why no node will do.
    pub refused: Option<String>,
    /// Of each volume: one of the terms has to take the node.
    nodes: Vec<Vec<NodeTerm>>,
    /// Those that are bound once a node was chosen; who wants least comes first.
    delayed: Vec<Delayed>,
    /// Those that one pod of the cluster may have, by name.
    pub once: Vec<String>,
    /// Pods that have one of these: while they do, no node will do.
    pub users: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Delayed {
    claim: Seen,
    bytes: i128,
    /// That would do, the smallest first: those that reach one host alone, by it, and the others.
    of_host: HashMap<String, Vec<Arc<Volume>>>,
    others: Vec<Arc<Volume>>,
    /// One is kept for it already: these are all.
    kept: bool,
    /// Where one can be made for it.
    made: Option<Arc<Class>>,
    /// Where one is being made.
    selected: Option<String>,
}

impl Delayed {
    fn volume(&self, name: &str, labels: &Labels, used: &HashSet<&str>) -> Option<&Arc<Volume>> {
        let host = labels.get(HOSTNAME).and_then(|host| self.of_host.get(host));
        let reaches = |volume: &&Arc<Volume>| {
            !used.contains(volume.seen.name.as_str()) && volume.reaches(name, labels)
        };
        let of_host = host.into_iter().flatten().find(reaches);
        let other = self.others.iter().find(reaches);
        [of_host, other]
            .into_iter()
            .flatten()
            .min_by_key(|volume| volume.room.nano_bytes)
    }

    fn can_be_made(&self, name: &str, labels: &Labels) -> bool {
        match &self.selected {
            Some(node) => node == name,
            None => self
                .made
                .as_ref()
                .is_some_and(|class| class.makes_at(labels)),
        }
    }
}

impl Claims {
    pub fn take(&self, name: &str, labels: &Labels) -> bool {
        self.refusal(name, labels).is_none()
    }

    pub fn refusal(&self, name: &str, labels: &Labels) -> Option<Refusal> {
        let mut nodes = self.nodes.iter();
        if !nodes.all(|terms| terms.iter().any(|term| term.takes(name, labels))) {
            return Some(Refusal::Volume);
        }
        (!self.delayed.is_empty() && self.steps(name, labels).is_none())
            .then_some(Refusal::NoVolume)
    }

    /// Whether nobody had what is this pod's alone, if some pods were not.
    pub fn would_be_free(&self, is_gone: impl Fn(&str) -> bool) -> bool {
        self.users.iter().all(|uid| is_gone(uid))
    }

    /// Whether something is to be bound before the pod can be.
    pub fn are_delayed(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// What is to be written for this node, if it is one for which all claims find something.
    pub fn steps(&self, name: &str, labels: &Labels) -> Option<Vec<Step>> {
        let (mut used, mut steps) = (HashSet::new(), Vec::new());
        for delayed in &self.delayed {
            let volume = match delayed.selected {
                Some(_) => None,
                None => delayed.volume(name, labels, &used),
            };
            match volume {
                Some(volume) => {
                    used.insert(volume.seen.name.as_str());
                    if !delayed.kept {
                        steps.push(Step::Keep {
                            volume: volume.seen.clone(),
                            claim: delayed.claim.clone(),
                        });
                    }
                }
                None if !delayed.kept && delayed.can_be_made(name, labels) => {
                    if delayed.selected.is_none() {
                        steps.push(Step::Make {
                            claim: delayed.claim.clone(),
                        });
                    }
                }
                None => return None,
            }
        }
        Some(steps)
    }
}

#[derive(Debug)]
struct Claim {
    seen: Seen,
    /// The volume that it is bound to.
    volume: Option<String>,
    /// That it asks for by name.
    named: bool,
    deleted: bool,
    /// One pod of the cluster may have it, and no second.
    once: bool,
    room: Room,
    selector: Option<Selector>,
    selected: Option<String>,
}

#[derive(Debug)]
struct Volume {
    seen: Seen,
    room: Room,
    labels: Labels,
    /// Where it can be reached; none: everywhere.
    terms: Option<Vec<NodeTerm>>,
    /// Whom it is kept for, or bound to; without a uid: whoever has that name.
    of: Option<(Id, String)>,
    available: bool,
}

impl Volume {
    fn reaches(&self, name: &str, labels: &Labels) -> bool {
        let terms = self.terms.as_ref();
        terms.is_none_or(|terms| terms.iter().any(|term| term.takes(name, labels)))
    }

    /// The hosts outside which it isn't reached.
    fn hosts(&self) -> Option<Vec<&String>> {
        let mut hosts = Vec::new();
        for term in self.terms.as_ref()? {
            hosts.extend(term.only_with(HOSTNAME)?);
        }
        Some(hosts)
    }
}

const HOSTNAME: &str = "kubernetes.io/hostname";

#[derive(Debug)]
struct Class {
    delays: bool,
    has_provisioner: bool,
    /// One of them has to be met, if there are any: each is all of some labels' values.
    topologies: Vec<Vec<(String, Vec<String>)>>,
}

impl Class {
    fn makes_at(&self, labels: &Labels) -> bool {
        let has = |(key, values): &(String, Vec<String>)| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        self.has_provisioner
            && (self.topologies.is_empty() || self.topologies.iter().any(|all| all.iter().all(has)))
    }
}

/// All volumes, claims and classes.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<Id, Claim>,
    volumes: HashMap<String, Arc<Volume>>,
    classes: HashMap<String, Arc<Class>>,
    /// Volumes that are being given to claims: the watch has not said so yet.
    assumed: HashMap<String, Id>,
}

impl Volumes {
    pub fn set_claim(&mut self, claim: &PersistentVolumeClaim) {
        let spec = claim.spec.as_ref();
        let annotations = claim.metadata.annotations.as_ref();
        let annotation = |name: &str| annotations.and_then(|all| all.get(name)).cloned();
        let status = claim.status.as_ref();
        let is_bound = status.and_then(|status| status.phase.as_deref()) == Some("Bound")
            || annotation(BIND_COMPLETED).is_some();
        let volume = spec
            .and_then(|spec| spec.volume_name.clone())
            .filter(|name| !name.is_empty());
        let requests = spec
            .and_then(|spec| spec.resources.as_ref())
            .and_then(|resources| resources.requests.as_ref());
        let beta = annotation(CLASS_BETA);
        let class = beta.or(spec.and_then(|spec| spec.storage_class_name.clone()));
        let of = Claim {
            seen: Seen::of(&claim.metadata),
            named: volume.is_some(),
            volume: volume.filter(|_| is_bound),
            deleted: claim.metadata.deletion_timestamp.is_some(),
            once: spec
                .and_then(|spec| spec.access_modes.as_deref())
                .is_some_and(|modes| modes.iter().any(|mode| mode == ONCE_POD)),
            room: Room::new(
                class.as_deref(),
                spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()),
                spec.and_then(|spec| spec.access_modes.as_deref()),
                spec.and_then(|spec| spec.volume_mode.as_deref()),
                requests.and_then(|requests| Some(requests.get("storage")?.0.as_str())),
            ),
            selector: spec
                .and_then(|spec| spec.selector.as_ref())
                .map(|selector| Selector::of(Some(selector))),
            selected: annotation(SELECTED_NODE).filter(|node| !node.is_empty()),
        };
        self.claims.insert(id(&claim.metadata), of);
    }

    pub fn remove_claim(&mut self, claim: &PersistentVolumeClaim) {
        let id = id(&claim.metadata);
        self.claims.remove(&id);
        self.assumed.retain(|_, of| *of != id);
    }

    pub fn set_volume(&mut self, volume: &PersistentVolume) {
        let spec = volume.spec.as_ref();
        let affinity = spec.and_then(|spec| spec.node_affinity.as_ref());
        let terms = affinity
            .and_then(|affinity| affinity.required.as_ref())
            .map(|required| {
                required
                    .node_selector_terms
                    .iter()
                    .map(NodeTerm::of)
                    .collect()
            });
        let annotations = volume.metadata.annotations.as_ref();
        let beta = annotations.and_then(|all| all.get(CLASS_BETA));
        let class = beta.or(spec.and_then(|spec| spec.storage_class_name.as_ref()));
        let capacity = spec.and_then(|spec| spec.capacity.as_ref());
        let phase = volume.status.as_ref();
        let phase = phase.and_then(|status| status.phase.as_deref());
        let of = spec.and_then(|spec| spec.claim_ref.as_ref()).map(|of| {
            let namespace = of.namespace.clone().unwrap_or_default();
            let name = of.name.clone().unwrap_or_default();
            ((namespace, name), of.uid.clone().unwrap_or_default())
        });
        let seen = Seen::of(&volume.metadata);
        if of.is_some() {
            self.assumed.remove(&seen.name);
        }
        let known = Volume {
            room: Room::new(
                class.map(String::as_str),
                spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()),
                spec.and_then(|spec| spec.access_modes.as_deref()),
                spec.and_then(|spec| spec.volume_mode.as_deref()),
                capacity.and_then(|capacity| Some(capacity.get("storage")?.0.as_str())),
            ),
            labels: volume.metadata.labels.clone().unwrap_or_default(),
            terms,
            of,
            available: phase == Some("Available") && volume.metadata.deletion_timestamp.is_none(),
            seen,
        };
        self.volumes
            .insert(known.seen.name.clone(), Arc::new(known));
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
        self.assumed.remove(name);
    }

    pub fn set_class(&mut self, class: &StorageClass) {
        let terms = class.allowed_topologies.iter().flatten();
        let topologies = terms
            .map(|term| {
                let labels = term.match_label_expressions.iter().flatten();
                labels
                    .map(|label| (label.key.clone(), label.values.clone()))
                    .collect()
            })
            .collect();
        let of = Class {
            delays: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            has_provisioner: class.provisioner != NO_PROVISIONER,
            topologies,
        };
        let name = class.metadata.name.clone().unwrap_or_default();
        self.classes.insert(name, Arc::new(of));
    }

    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    /// They count as given from now on, until the watch or [`Self::forget`] says otherwise.
    pub fn assume(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Keep { volume, claim } = step {
                let id = (claim.namespace.clone(), claim.name.clone());
                self.assumed.insert(volume.name.clone(), id);
            }
        }
    }

    pub fn forget(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Keep { volume, .. } = step {
                self.assumed.remove(&volume.name);
            }
        }
    }

    /// What the claims of a pod say.
    pub fn of(&self, namespace: &str, claims: &[String]) -> Claims {
        let mut of = Claims::default();
        for name in claims {
            let id = (namespace.to_owned(), name.clone());
            let claim = self.claims.get(&id);
            if claim.is_some_and(|claim| claim.once) {
                of.once.push(name.clone());
            }
            let refused = match claim {
                None => format!("persistentvolumeclaim \"{name}\" not found"),
                Some(claim) if claim.deleted => {
                    format!("persistentvolumeclaim \"{name}\" is being deleted")
                }
                Some(Claim {
                    volume: Some(volume),
                    ..
                }) => match self.volumes.get(volume) {
                    None => format!("persistentvolume \"{volume}\" not found"),
                    Some(volume) => {
                        of.nodes.extend(volume.terms.clone());
                        continue;
                    }
                },
                Some(claim) => match self.classes.get(&claim.room.class) {
                    Some(class) if class.delays && !claim.named => {
                        of.delayed.push(self.delayed(&id, claim, class));
                        continue;
                    }
                    _ => "pod has unbound immediate PersistentVolumeClaims".to_owned(),
                },
            };
            of.refused = Some(refused);
            break;
        }
        of.delayed.sort_by_key(|delayed| delayed.bytes);
        of
    }

    fn delayed(&self, id: &Id, claim: &Claim, class: &Arc<Class>) -> Delayed {
        let mut delayed = Delayed {
            claim: claim.seen.clone(),
            bytes: claim.room.nano_bytes,
            of_host: HashMap::new(),
            others: Vec::new(),
            kept: false,
            made: class.has_provisioner.then(|| class.clone()),
            selected: claim.selected.clone(),
        };
        let is_kept = |volume: &&Arc<Volume>| {
            let of = volume.of.as_ref();
            of.is_some_and(|(of, uid)| of == id && (uid.is_empty() || *uid == claim.seen.uid))
        };
        if let Some(kept) = self.volumes.values().find(is_kept) {
            delayed.kept = true;
            delayed.others.push(kept.clone());
            return delayed;
        }
        let suits = |volume: &&Arc<Volume>| {
            let assumed = self.assumed.get(&volume.seen.name);
            volume.of.is_none()
                && volume.available
                && assumed.is_none_or(|of| of == id)
                && volume.room.serves(&claim.room)
                && claim
                    .selector
                    .as_ref()
                    .is_none_or(|selector| selector.takes(&volume.labels))
        };
        let mut volumes: Vec<&Arc<Volume>> = self.volumes.values().filter(suits).collect();
        volumes.sort_by_key(|volume| (volume.room.nano_bytes, &volume.seen.name));
        for volume in volumes {
            match volume.hosts() {
                None => delayed.others.push(volume.clone()),
                Some(hosts) => {
                    for host in hosts {
                        let of_host = delayed.of_host.entry(host.clone()).or_default();
                        of_host.push(volume.clone());
                    }
                }
            }
        }
        delayed
    }
}

fn id(meta: &ObjectMeta) -> Id {
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests;
