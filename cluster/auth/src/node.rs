//! What a node's kubelet may read and write: its own Node, Lease and pods, and what these pods refer to.
//!
//! The index has what each pod refers to and which pods a node has; a node has some hundred pods at most, so that a question looks at them one
//! by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde_json::Value;

use crate::{Attributes, Authorizer, Decision, NODE_PREFIX, NODES, User};

/// Where the nodes' Leases are.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node that `user` is, if one.
pub fn name(user: &User) -> Option<&str> {
    user.groups
        .iter()
        .any(|group| group == NODES)
        .then(|| user.username.strip_prefix(NODE_PREFIX))
        .flatten()
        .filter(|name| !name.is_empty())
}

/// The fields of a pod that [`NodeAuthorizer::set`] looks at: it needs no others.
pub const OF_POD: [&str; 14] = [
    "metadata.annotations",
    "spec.containers.env.valueFrom",
    "spec.containers.envFrom",
    "spec.ephemeralContainers.env.valueFrom",
    "spec.ephemeralContainers.envFrom",
    "spec.imagePullSecrets",
    "spec.initContainers.env.valueFrom",
    "spec.initContainers.envFrom",
    "spec.nodeName",
    "spec.resourceClaims",
    "spec.serviceAccountName",
    "spec.volumes",
    "status.extendedResourceClaimStatus",
    "status.resourceClaimStatuses",
];

/// Has an opinion of nodes only.
#[derive(Debug, Default)]
pub struct NodeAuthorizer(RwLock<Index>);

/// Namespace and name.
type Name = (String, String);

#[derive(Debug, Default)]
struct Index {
    pods: BTreeMap<Name, Pod>,
    /// The pods of each node.
    nodes: BTreeMap<String, BTreeSet<Name>>,
    volumes: BTreeMap<String, Volume>,
    /// Node of each VolumeAttachment.
    attachments: BTreeMap<String, String>,
}

/// What a pod refers to, in its namespace.
#[derive(Debug, Default)]
struct Pod {
    node: String,
    account: String,
    secrets: BTreeSet<String>,
    config_maps: BTreeSet<String>,
    claims: BTreeSet<String>,
    resource_claims: BTreeSet<String>,
}

/// A PersistentVolume: its claim, and the Secrets that mounting it takes.
#[derive(Debug)]
struct Volume {
    claim: Name,
    secrets: BTreeSet<Name>,
}

impl NodeAuthorizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// An object as it is now, or that it is gone: pods, persistentvolumes, volumeattachments. Others are left alone.
    pub fn set(&self, resource: &str, namespace: &str, name: &str, object: Option<&Value>) {
        let id = || (namespace.to_owned(), name.to_owned());
        match resource {
            "pods" => self.write().pod(id(), object),
            "persistentvolumes" => {
                let volume = object.and_then(Volume::of);
                let mut index = self.write();
                match volume {
                    Some(volume) => index.volumes.insert(name.to_owned(), volume),
                    None => index.volumes.remove(name),
                };
            }
            "volumeattachments" => {
                let node = object.and_then(|object| object["spec"]["nodeName"].as_str());
                let mut index = self.write();
                match node {
                    Some(node) => index.attachments.insert(name.to_owned(), node.to_owned()),
                    None => index.attachments.remove(name),
                };
            }
            _ => {}
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn pod(&mut self, id: Name, object: Option<&Value>) {
        if let Some(was) = self.pods.remove(&id)
            && let Some(pods) = self.nodes.get_mut(&was.node)
        {
            pods.remove(&id);
            if pods.is_empty() {
                self.nodes.remove(&was.node);
            }
        }
        let Some(pod) = object.map(|object| Pod::of(&id.1, object)) else {
            return;
        };
        // A pod without a node concerns none.
        if pod.node.is_empty() {
            return;
        }
        self.nodes
            .entry(pod.node.clone())
            .or_default()
            .insert(id.clone());
        self.pods.insert(id, pod);
    }

    fn any_pod(&self, node: &str, fits: impl Fn(&Name, &Pod) -> bool) -> bool {
        self.nodes.get(node).is_some_and(|pods| {
            pods.iter()
                .any(|id| self.pods.get(id).is_some_and(|pod| fits(id, pod)))
        })
    }

    /// Whether a pod of `node` refers to this object.
    fn refers(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let claimed = |volume: &Volume| {
            self.any_pod(node, |id, pod| {
                id.0 == volume.claim.0 && pod.claims.contains(&volume.claim.1)
            })
        };
        match resource {
            "persistentvolumes" => self.volumes.get(name).is_some_and(claimed),
            "volumeattachments" => self.attachments.get(name).is_some_and(|on| on == node),
            _ => {
                let of_pods = self.any_pod(node, |id, pod| {
                    id.0 == namespace
                        && match resource {
                            "pods" => id.1 == name,
                            "secrets" => pod.secrets.contains(name),
                            "configmaps" => pod.config_maps.contains(name),
                            "persistentvolumeclaims" => pod.claims.contains(name),
                            "resourceclaims" => pod.resource_claims.contains(name),
                            "serviceaccounts" => pod.account == name,
                            _ => false,
                        }
                });
                let secret = (namespace.to_owned(), name.to_owned());
                of_pods
                    || resource == "secrets"
                        && self
                            .volumes
                            .values()
                            .any(|volume| volume.secrets.contains(&secret) && claimed(volume))
            }
        }
    }
}

fn texts<'a>(list: &'a Value, field: &'a str) -> impl Iterator<Item = String> + 'a {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(move |item| Some(item[field].as_str()?.to_owned()))
}

impl Pod {
    fn of(name: &str, object: &Value) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut pod = Self {
            node: text(&spec["nodeName"]),
            account: text(&spec["serviceAccountName"]),
            ..Self::default()
        };
        // A mirror of what the node reads from its own disk gives it nothing.
        if object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
            return Self {
                node: pod.node,
                ..Self::default()
            };
        }
        pod.secrets.extend(texts(&spec["imagePullSecrets"], "name"));
        for kind in ["containers", "initContainers", "ephemeralContainers"] {
            for container in spec[kind].as_array().into_iter().flatten() {
                for variable in container["env"].as_array().into_iter().flatten() {
                    let from = &variable["valueFrom"];
                    pod.add(&from["secretKeyRef"]["name"], |pod| &mut pod.secrets);
                    pod.add(&from["configMapKeyRef"]["name"], |pod| &mut pod.config_maps);
                }
                for from in container["envFrom"].as_array().into_iter().flatten() {
                    pod.add(&from["secretRef"]["name"], |pod| &mut pod.secrets);
                    pod.add(&from["configMapRef"]["name"], |pod| &mut pod.config_maps);
                }
            }
        }
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            pod.volume(name, volume);
        }
        pod.resource_claims
            .extend(texts(&spec["resourceClaims"], "resourceClaimName"));
        pod.resource_claims.extend(texts(
            &object["status"]["resourceClaimStatuses"],
            "resourceClaimName",
        ));
        pod.add(
            &object["status"]["extendedResourceClaimStatus"]["resourceClaimName"],
            |pod| &mut pod.resource_claims,
        );
        pod
    }

    fn volume(&mut self, pod: &str, volume: &Value) {
        self.add(&volume["secret"]["secretName"], |pod| &mut pod.secrets);
        self.add(&volume["configMap"]["name"], |pod| &mut pod.config_maps);
        self.add(&volume["persistentVolumeClaim"]["claimName"], |pod| {
            &mut pod.claims
        });
        if volume["ephemeral"].is_object()
            && let Some(name) = volume["name"].as_str()
        {
            self.claims.insert(format!("{pod}-{name}"));
        }
        for source in volume["projected"]["sources"]
            .as_array()
            .into_iter()
            .flatten()
        {
            self.add(&source["secret"]["name"], |pod| &mut pod.secrets);
            self.add(&source["configMap"]["name"], |pod| &mut pod.config_maps);
        }
        // Whichever kind of volume it is, the Secret that mounting it takes stands in one of these.
        for source in volume.as_object().into_iter().flat_map(|v| v.values()) {
            self.add(&source["secretRef"]["name"], |pod| &mut pod.secrets);
            self.add(&source["nodePublishSecretRef"]["name"], |pod| {
                &mut pod.secrets
            });
        }
        self.add(&volume["azureFile"]["secretName"], |pod| &mut pod.secrets);
    }

    fn add(&mut self, name: &Value, to: impl FnOnce(&mut Self) -> &mut BTreeSet<String>) {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            to(self).insert(name.to_owned());
        }
    }
}

impl Volume {
    /// `None`: nobody has claimed it.
    fn of(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let claim = &spec["claimRef"];
        let claim = (text(&claim["namespace"])?, text(&claim["name"])?);
        let mut secrets = BTreeSet::new();
        for source in spec.as_object().into_iter().flat_map(|spec| spec.values()) {
            for field in [
                "secretRef",
                "nodeStageSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
            ] {
                if let Some(name) = text(&source[field]["name"]) {
                    let namespace = text(&source[field]["namespace"]);
                    secrets.insert((namespace.unwrap_or_else(|| claim.0.clone()), name));
                }
            }
        }
        Some(Self { claim, secrets })
    }
}

/// What a node may whatever it has: group, resources, verbs.
const ALWAYS: [(&str, &[&str], &[&str]); 8] = [
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
    (
        "authorization.k8s.io",
        &["subjectaccessreviews", "localsubjectaccessreviews"],
        &["create"],
    ),
    ("", &["services"], &["get", "list", "watch"]),
    ("", &["events"], &["create", "update", "patch"]),
    ("events.k8s.io", &["events"], &["create", "update", "patch"]),
    (
        "certificates.k8s.io",
        &["certificatesigningrequests"],
        &["create", "get", "list", "watch"],
    ),
    ("storage.k8s.io", &["csidrivers"], &["get", "list", "watch"]),
    (
        "node.k8s.io",
        &["runtimeclasses"],
        &["get", "list", "watch"],
    ),
];

fn decide(index: &Index, node: &str, asked: &Attributes) -> Result<(), String> {
    let verb = asked.verb.as_str();
    let one_of = |verbs: &[&str]| verbs.contains(&verb);
    let reads = one_of(&["get", "list", "watch"]);
    let referred = |what: &str| {
        let found = !asked.name.is_empty()
            && index.refers(node, &asked.resource, &asked.namespace, &asked.name);
        match found {
            true => Ok(()),
            false => Err(format!(
                "no relationship found between node '{node}' and this {what}"
            )),
        }
    };
    let only = |what: &str| Err(format!("can only {what}"));
    let own = |may_be_new: bool| asked.name == node || may_be_new && asked.name.is_empty();
    // A list of one is a list of that one.
    let selects = |field: &str| {
        asked.field_selector.split(',').any(|part| {
            part.trim() == format!("{field}={node}") || part.trim() == format!("{field}=={node}")
        })
    };
    match (
        asked.group.as_str(),
        asked.resource.as_str(),
        asked.subresource.as_str(),
    ) {
        ("", "secrets" | "configmaps", "") => match reads {
            true => referred("object"),
            false => only("read resources of this type"),
        },
        ("", "persistentvolumeclaims", "status") => match one_of(&["get", "update", "patch"]) {
            true => referred("object"),
            false => only("get/update/patch this type"),
        },
        ("", "persistentvolumeclaims" | "persistentvolumes", "")
        | ("storage.k8s.io", "volumeattachments", "")
        | ("resource.k8s.io", "resourceclaims", "") => match verb {
            "get" => referred("object"),
            _ => only("get individual resources of this type"),
        },
        ("", "serviceaccounts", "token") => match verb {
            "create" => referred("object"),
            _ => only("create tokens for individual service accounts"),
        },
        ("", "nodes", "") => match verb {
            "create" if own(true) => Ok(()),
            "get" | "update" | "patch" if own(false) => Ok(()),
            "list" | "watch" if own(false) || selects("metadata.name") => Ok(()),
            "get" | "list" | "watch" => Err(format!(
                "node '{node}' cannot read all nodes, only its own Node object"
            )),
            _ => Err(format!("node '{node}' cannot {verb} this Node object")),
        },
        ("", "nodes", "status") => match one_of(&["get", "update", "patch"]) && own(false) {
            true => Ok(()),
            false => only("get/update/patch the status of its own Node object"),
        },
        ("", "pods", "") => match verb {
            "get" => referred("object"),
            "list" | "watch" if selects("spec.nodeName") => Ok(()),
            "list" | "watch" if !asked.name.is_empty() => referred("object"),
            "list" | "watch" => only("list/watch pods with spec.nodeName field selector"),
            // Which ones, admission says.
            "create" | "delete" => Ok(()),
            _ => only("get, list, watch, create and delete pods"),
        },
        ("", "pods", "status") => match one_of(&["get", "update", "patch"]) {
            true => Ok(()),
            false => only("get/update/patch the status of pods"),
        },
        ("", "pods", "eviction") => match verb {
            "create" => Ok(()),
            _ => only("create evictions"),
        },
        ("coordination.k8s.io", "leases", "") => {
            match one_of(&["get", "create", "update", "patch", "delete"])
                && asked.namespace == LEASE_NAMESPACE
                && own(verb == "create")
            {
                true => Ok(()),
                false => only("access node lease with the same name as the requesting node"),
            }
        }
        ("storage.k8s.io", "csinodes", "") => {
            match one_of(&["get", "create", "update", "patch", "delete"]) && own(verb == "create") {
                true => Ok(()),
                false => only("access CSINode with the same name as the requesting node"),
            }
        }
        ("resource.k8s.io", "resourceslices", "") => match verb {
            "create" | "get" | "update" | "patch" | "delete" => Ok(()),
            "list" | "watch" | "deletecollection" if selects("spec.nodeName") => Ok(()),
            _ => {
                only("list/watch/deletecollection resourceslices with spec.nodeName field selector")
            }
        },
        (group, resource, "") => {
            let fits = |(of, resources, verbs): &(&str, &[&str], &[&str])| {
                *of == group && resources.contains(&resource) && one_of(verbs)
            };
            match ALWAYS.iter().any(fits) {
                true => Ok(()),
                false => Err(String::new()),
            }
        }
        _ => Err(String::new()),
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, user: &User, asked: &Attributes) -> Decision {
        let none = |reason: String| Decision::NoOpinion { reason };
        let Some(node) = name(user) else {
            let unnamed = user.groups.iter().any(|group| group == NODES);
            return none(match unnamed {
                true => format!("unknown node for user {:?}", user.username),
                false => String::new(),
            });
        };
        if asked.resource.is_empty() {
            return none(String::new());
        }
        match decide(&self.read(), node, asked) {
            Ok(()) => Decision::Allow {
                reason: String::new(),
            },
            Err(reason) => none(reason),
        }
    }
}

#[cfg(test)]
mod tests;
