//! Feeds the authorizers: what is changed holds from the moment that it is seen.

use std::sync::{Arc, LazyLock};

use berth_auth::{NodeAuthorizer, Rbac, node};
use serde_json::Value;

use crate::{
    cache::{Change, Entry, Observer},
    parts::Parts,
};

#[derive(Debug)]
pub struct Index {
    rbac: Arc<Rbac>,
    nodes: Arc<NodeAuthorizer>,
}

impl Index {
    pub fn new(rbac: Arc<Rbac>, nodes: Arc<NodeAuthorizer>) -> Self {
        Self { rbac, nodes }
    }
}

const ROLES: [&str; 4] = [
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
];
const OF_NODES: [&str; 5] = [
    "pods",
    "persistentvolumes",
    "persistentvolumeclaims",
    "volumeattachments",
    "serviceaccounts",
];

impl Observer for Index {
    fn changed(&self, storage: &str, change: &Arc<Change>) {
        let (roles, of_nodes) = (ROLES.contains(&storage), OF_NODES.contains(&storage));
        let Some(entry) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        if !roles && !of_nodes {
            return;
        }
        let (namespace, name) = (entry.namespace(), entry.name());
        let new = change.new.as_deref();
        if roles {
            let role = new.map(Entry::value);
            self.rbac.set(storage, namespace, name, role.as_ref());
        } else {
            let object = match storage {
                // Without a node it concerns none.
                "pods" => new
                    .filter(|pod| !pod.field("spec.nodeName").is_empty())
                    .map(pod),
                _ => new.map(Entry::value),
            };
            self.nodes.set(storage, namespace, name, object.as_ref());
        }
    }
}

/// Pods are many and change often: of each, what the authorizer looks at.
fn pod(entry: &Entry) -> Value {
    static PARTS: LazyLock<Parts> = LazyLock::new(|| Parts::of(node::OF_POD));
    std::str::from_utf8(&entry.bytes)
        .ok()
        .and_then(|text| PARTS.read(text).ok())
        .unwrap_or_else(|| entry.value())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_authorizer_looks_at_of_a_pod_is_all_that_it_needs() {
        let container = json!({
            "name": "c", "image": "i",
            "env": [
                {"name": "A", "value": "a"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c1", "key": "k"}}},
            ],
            "envFrom": [{"secretRef": {"name": "s2"}}, {"configMapRef": {"name": "c2"}}],
        });
        let volumes = json!([
            {"name": "a", "secret": {"secretName": "s3"}},
            {"name": "b", "configMap": {"name": "c3"}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "p1"}},
            {"name": "d", "ephemeral": {"volumeClaimTemplate": {}}},
            {"name": "e", "projected": {"sources": [{"secret": {"name": "s4"}}, {"configMap": {"name": "c4"}}]}},
            {"name": "f", "csi": {"nodePublishSecretRef": {"name": "s5"}}},
            {"name": "g", "cephfs": {"secretRef": {"name": "s6"}}},
            {"name": "h", "azureFile": {"secretName": "s7"}},
        ]);
        for annotations in [json!({}), json!({"kubernetes.io/config.mirror": "x"})] {
            let mut object = json!({
                "metadata": {"name": "a", "namespace": "n", "annotations": annotations},
                "spec": {
                    "nodeName": "node", "serviceAccountName": "account", "imagePullSecrets": [{"name": "s8"}],
                    "containers": [container], "initContainers": [container], "ephemeralContainers": [container],
                    "volumes": volumes, "resourceClaims": [{"name": "r", "resourceClaimName": "r1"}],
                },
                "status": {
                    "phase": "Running", "resourceClaimStatuses": [{"name": "r", "resourceClaimName": "r2"}],
                    "extendedResourceClaimStatus": {"resourceClaimName": "r3"},
                },
            });
            let (whole, parts) = (NodeAuthorizer::new(), NodeAuthorizer::new());
            whole.set("pods", "n", "a", Some(&object));
            let entry = Entry::new(None, "n/a", 1, &mut object);
            parts.set("pods", "n", "a", Some(&pod(&entry)));
            assert_eq!(format!("{whole:?}"), format!("{parts:?}"));
            let mirror = annotations.get("kubernetes.io/config.mirror").is_some();
            assert_eq!(format!("{whole:?}").contains("\"s7\""), !mirror);
        }
    }
}
