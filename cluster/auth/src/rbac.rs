//! Roles and their bindings (rbac.authorization.k8s.io/v1).

use serde_json::Value;

use crate::{Attributes, Authorizer, Decision, User};

#[derive(Debug, Default)]
pub struct Rbac {}

impl Rbac {
    pub fn new() -> Self {
        Self::default()
    }

    /// An object as it is now, or that it is gone. Others than `roles`, `clusterroles`, `rolebindings` and `clusterrolebindings` are left alone.
    pub fn set(&self, resource: &str, namespace: &str, name: &str, object: Option<&Value>) {
        let _ = (resource, namespace, name, object);
    }

    /// The roles and bindings that a cluster starts with, to be created where missing.
    pub fn defaults() -> Vec<Value> {
        Vec::new()
    }

    /// What a ClusterRole with an `aggregationRule` should have as its rules, by the labels of the others; `None` where it has none.
    pub fn aggregated(&self, name: &str) -> Option<Vec<Value>> {
        let _ = name;
        None
    }

    /// Whether `user` may write `role` (a Role or ClusterRole, as it would be): who lacks `escalate` may hand out no more than they have.
    /// The error is the sentence that a 403 says.
    pub fn may_write_role(&self, user: &User, role: &Value) -> Result<(), String> {
        let _ = (user, role);
        Err("not built yet".to_owned())
    }

    /// Likewise for a RoleBinding or ClusterRoleBinding and the verb `bind`.
    pub fn may_write_binding(&self, user: &User, binding: &Value) -> Result<(), String> {
        let _ = (user, binding);
        Err("not built yet".to_owned())
    }

    /// All rules that hold for `user` in `namespace`: what a SelfSubjectRulesReview says, as PolicyRules.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Value> {
        let _ = (user, namespace);
        Vec::new()
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, _user: &User, _asked: &Attributes) -> Decision {
        Decision::NoOpinion {
            reason: String::new(),
        }
    }
}
