//! What a node's kubelet may read and write: its own Node, Lease and pods, and what these pods refer to.

use serde_json::Value;

use crate::{Attributes, Authorizer, Decision, NODE_PREFIX, NODES, User};

/// The node that `user` is, if one.
pub fn name(user: &User) -> Option<&str> {
    user.groups
        .iter()
        .any(|group| group == NODES)
        .then(|| user.username.strip_prefix(NODE_PREFIX))
        .flatten()
        .filter(|name| !name.is_empty())
}

/// Has an opinion of nodes only.
#[derive(Debug, Default)]
pub struct NodeAuthorizer {}

impl NodeAuthorizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// An object as it is now, or that it is gone: pods, persistentvolumes, persistentvolumeclaims, volumeattachments. Others are left alone.
    pub fn set(&self, resource: &str, namespace: &str, name: &str, object: Option<&Value>) {
        let _ = (resource, namespace, name, object);
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, _user: &User, _asked: &Attributes) -> Decision {
        Decision::NoOpinion {
            reason: String::new(),
        }
    }
}
