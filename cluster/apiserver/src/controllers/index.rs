//! Feeds the authorizers: what is changed holds from the moment that it is seen.

use std::sync::Arc;

use berth_auth::{NodeAuthorizer, Rbac};

use crate::cache::{Change, Observer};

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
        let object = change.new.as_ref().map(|entry| entry.value());
        if roles {
            self.rbac
                .set(storage, entry.namespace(), entry.name(), object.as_ref());
        } else {
            self.nodes
                .set(storage, entry.namespace(), entry.name(), object.as_ref());
        }
    }
}
