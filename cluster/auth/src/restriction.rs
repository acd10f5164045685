//! The admission plugin NodeRestriction: what a node may write into the objects that it may write.

use serde_json::Value;

use crate::{Attributes, User, node::LEASE_NAMESPACE};

/// Of a create, update, patch or delete by `user`: `old` is what is there (none at a create), `new` what it would be (none at a delete).
/// Of `pods/eviction` and `serviceaccounts/token` `new` is the body, and `old` the pod (the one that a token is to be bound to). Holds for all who are no node. The error is what a 403 says.
pub fn check(
    user: &User,
    asked: &Attributes,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), String> {
    let Some(node) = crate::node::name(user) else {
        return Ok(());
    };
    let nothing = Value::Null;
    let (was, is) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
    let verb = match asked.verb.as_str() {
        "patch" if old.is_none() => "create",
        "patch" => "update",
        verb => verb,
    };
    match (
        asked.group.as_str(),
        asked.resource.as_str(),
        asked.subresource.as_str(),
    ) {
        ("", "pods", "") => match verb {
            "create" => create_pod(node, is),
            "delete" => on_node(node, was, "delete"),
            _ => Err(format!(
                "unexpected operation {verb:?}, node {node:?} can only create and delete mirror pods"
            )),
        },
        ("", "pods", "status") => pod_status(node, was, is),
        ("", "pods", "eviction") => on_node(node, was, "evict"),
        ("", "pods", other) => Err(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
        ("", "nodes", _) => own_node(node, asked, verb, was, is),
        ("", "persistentvolumeclaims", subresource) => claim(node, subresource, verb, was, is),
        ("", "serviceaccounts", "token") => token(node, asked, was, is),
        ("coordination.k8s.io", "leases", "") => {
            let name = own_name(asked, is);
            match name == node && asked.namespace == LEASE_NAMESPACE {
                true => Ok(()),
                false => Err(format!(
                    "can only access node lease with the same name as the requesting node, in namespace {LEASE_NAMESPACE:?}"
                )),
            }
        }
        ("storage.k8s.io", "csinodes", "") => match own_name(asked, is) == node {
            true => Ok(()),
            false => {
                Err("can only access CSINode with the same name as the requesting node".to_owned())
            }
        },
        ("resource.k8s.io", "resourceslices", "") => {
            let there = if old.is_some() { was } else { is };
            match [there, if new.is_some() { is } else { there }]
                .iter()
                .all(|slice| slice["spec"]["nodeName"] == node)
            {
                true => Ok(()),
                false => Err(
                    "can only access ResourceSlice with the same node name as the requesting node"
                        .to_owned(),
                ),
            }
        }
        _ => Ok(()),
    }
}

fn own_name<'a>(asked: &'a Attributes, new: &'a Value) -> &'a str {
    match asked.name.as_str() {
        // At a create it stands in the object.
        "" => new["metadata"]["name"].as_str().unwrap_or_default(),
        name => name,
    }
}

fn on_node(node: &str, pod: &Value, act: &str) -> Result<(), String> {
    match pod["spec"]["nodeName"] == node {
        true => Ok(()),
        false => Err(format!(
            "node {node:?} can only {act} pods with spec.nodeName set to itself"
        )),
    }
}

/// Only a mirror of a static pod, which can't refer to anything of the API's: else a node would read whatever it names.
fn create_pod(node: &str, pod: &Value) -> Result<(), String> {
    let spec = &pod["spec"];
    let metadata = &pod["metadata"];
    if metadata["annotations"]["kubernetes.io/config.mirror"].is_null() {
        let name = metadata["name"].as_str().unwrap_or_default();
        return Err(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods, not {name:?}"
        ));
    }
    on_node(node, pod, "create")?;
    let owners = metadata["ownerReferences"].as_array();
    let [owner] = owners.map(Vec::as_slice).unwrap_or_default() else {
        return Err(format!(
            "node {node:?} can only create pods with a single owner reference set to itself"
        ));
    };
    let own = owner["apiVersion"] == "v1"
        && owner["kind"] == "Node"
        && owner["name"] == node
        && owner["controller"] == true;
    if !own {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself, as their controller"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    for field in ["serviceAccountName", "serviceAccount"] {
        if spec[field].as_str().is_some_and(|name| !name.is_empty()) {
            return Err(format!(
                "node {node:?} can not create pods that reference a service account"
            ));
        }
    }
    // CVE-2025-4563: resource claims too.
    for field in ["resourceClaims", "imagePullSecrets"] {
        if spec[field].as_array().is_some_and(|list| !list.is_empty()) {
            return Err(format!(
                "node {node:?} can not create pods that reference {field}"
            ));
        }
    }
    if ["resourceClaimStatuses", "extendedResourceClaimStatus"]
        .iter()
        .any(|field| !pod["status"][*field].is_null())
    {
        return Err(format!(
            "node {node:?} can not create pods that reference resourceclaims"
        ));
    }
    for reference in REFERENCES {
        if names(spec, reference) {
            return Err(format!(
                "node {node:?} can not create pods that reference {reference}"
            ));
        }
    }
    Ok(())
}

/// Fields that refer to Secrets, ConfigMaps and claims, wherever they stand in a pod's spec.
const REFERENCES: [&str; 14] = [
    "secretKeyRef",
    "secretRef",
    "configMapKeyRef",
    "configMapRef",
    "secret",
    "secretName",
    "configMap",
    "persistentVolumeClaim",
    "ephemeral",
    "serviceAccountToken",
    "clusterTrustBundle",
    "podCertificate",
    "nodePublishSecretRef",
    "dataSourceRef",
];

/// Whether `field` stands anywhere within. Not recursive: how deep it is, is the caller's choice.
fn names(value: &Value, field: &str) -> bool {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                if fields.get(field).is_some_and(|value| !value.is_null()) {
                    return true;
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    false
}

fn pod_status(node: &str, was: &Value, is: &Value) -> Result<(), String> {
    on_node(node, was, "update the status of")?;
    if was["metadata"]["labels"] != is["metadata"]["labels"] {
        return Err(format!(
            "node {node:?} cannot update labels through pod status"
        ));
    }
    for field in ["resourceClaimStatuses", "extendedResourceClaimStatus"] {
        if was["status"][field] != is["status"][field] {
            return Err(format!(
                "node {node:?} cannot update {field} through pod status"
            ));
        }
    }
    Ok(())
}

fn own_node(
    node: &str,
    asked: &Attributes,
    verb: &str,
    was: &Value,
    is: &Value,
) -> Result<(), String> {
    let name = own_name(asked, is);
    if name != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    if verb == "delete" {
        return Ok(());
    }
    let refused = |what: &str| Err(format!("is not allowed to modify {what}: node {node:?}"));
    if !is["spec"]["configSource"].is_null()
        && is["spec"]["configSource"] != was["spec"]["configSource"]
    {
        return refused("configSource");
    }
    // A node that is made may say what it is tainted with; later its taints are others'.
    if verb != "create" && is["spec"]["taints"] != was["spec"]["taints"] {
        return refused("taints");
    }
    // CVE-2025-5187: who can name an owner can have the Node collected, and make it anew without its taints.
    if is["metadata"]["ownerReferences"] != was["metadata"]["ownerReferences"] {
        return refused("ownerReferences");
    }
    let labels = |of: &Value| {
        of["metadata"]["labels"]
            .as_object()
            .cloned()
            .unwrap_or_default()
    };
    let (before, after) = (labels(was), labels(is));
    let mut changed: Vec<&str> = before
        .keys()
        .chain(after.keys())
        .filter(|label| before.get(*label) != after.get(*label) && !label_allowed(label))
        .map(String::as_str)
        .collect();
    changed.sort_unstable();
    changed.dedup();
    match changed.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "node {node:?} is not allowed to modify labels: {}",
            changed.join(", ")
        )),
    }
}

/// Labels of the kubelet's own, within the domains that are Kubernetes'.
const LABELS: [&str; 14] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

fn label_allowed(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return true;
    };
    let within = |of: &str| {
        domain == of
            || domain
                .strip_suffix(of)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    LABELS.contains(&label) || within("kubelet.kubernetes.io") || within("node.kubernetes.io")
}

/// The state of a resize and nothing else.
fn claim(node: &str, subresource: &str, verb: &str, was: &Value, is: &Value) -> Result<(), String> {
    if subresource != "status" || verb != "update" {
        return Err(format!(
            "node {node:?} can only update the status of PersistentVolumeClaims"
        ));
    }
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        if let Some(status) = claim["status"].as_object_mut() {
            for field in [
                "capacity",
                "conditions",
                "allocatedResources",
                "allocatedResourceStatuses",
                "modifyVolumeStatus",
                "currentVolumeAttributesClassName",
            ] {
                status.remove(field);
            }
            if status.is_empty() {
                claim["status"] = Value::Null;
            }
        }
        if let Some(metadata) = claim["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        if claim["status"].is_null()
            && let Some(claim) = claim.as_object_mut()
        {
            claim.remove("status");
        }
        claim
    };
    match rest(was) == rest(is) {
        true => Ok(()),
        false => Err(format!(
            "node {node:?} is not allowed to update fields other than the claim's capacity and conditions"
        )),
    }
}

/// For a pod of the node's, as that pod's ServiceAccount, for whom the pod may speak to.
fn token(node: &str, asked: &Attributes, pod: &Value, request: &Value) -> Result<(), String> {
    let reference = &request["spec"]["boundObjectRef"];
    if !reference.is_object() {
        return Err(format!("node {node:?} requested token not bound to a pod"));
    }
    if reference["apiVersion"] != "v1" || reference["kind"] != "Pod" {
        return Err(format!(
            "node {node:?} requested token not bound to a pod but to a {}",
            reference["kind"]
        ));
    }
    let uid = &reference["uid"];
    if uid.as_str().is_none_or(str::is_empty) {
        return Err(format!(
            "node {node:?} requested token with a pod binding without a uid"
        ));
    }
    if pod["metadata"]["name"] != reference["name"]
        || pod["metadata"]["namespace"] != asked.namespace.as_str()
    {
        return Err(format!(
            "node {node:?} requested token bound to a pod that is not found"
        ));
    }
    if pod["metadata"]["uid"] != *uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record: the object might have been deleted and then recreated"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return Err(format!(
            "node {node:?} requested token bound to a pod scheduled on a different node"
        ));
    }
    if pod["spec"]["serviceAccountName"] != asked.name.as_str() {
        return Err(format!(
            "node {node:?} requested token of a service account that the pod does not use"
        ));
    }
    // The pod's own projections say for whom it has tokens.
    let projected: Vec<&str> = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|volume| {
            volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
        })
        .filter_map(|source| source["serviceAccountToken"].as_object())
        .map(|token| {
            token
                .get("audience")
                .and_then(Value::as_str)
                .unwrap_or_default()
        })
        .collect();
    for audience in request["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let audience = audience.as_str().unwrap_or_default();
        if !audience.is_empty() && !projected.contains(&audience) {
            return Err(format!(
                "audience {audience:?} not found in pod spec volume"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
