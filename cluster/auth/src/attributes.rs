use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Who asks: authentication.k8s.io/v1 UserInfo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub username: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Who shows nothing at all.
    pub fn anonymous() -> Self {
        Self {
            username: "system:anonymous".to_owned(),
            groups: vec![crate::UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// get, list, watch, create, update, patch, delete, deletecollection, or the method in lower case where it is no resource.
    pub verb: String,
    pub group: String,
    pub version: String,
    /// Plural; empty where `path` is asked for.
    pub resource: String,
    pub subresource: String,
    /// Empty for all.
    pub namespace: String,
    pub name: String,
    /// Where it is no resource.
    pub path: String,
    /// Of lists and watches, as asked: what a node may list.
    pub field_selector: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// Whatever others say.
    Deny {
        reason: String,
    },
    NoOpinion {
        reason: String,
    },
}

pub trait Authorizer: fmt::Debug + Send + Sync {
    fn authorize(&self, user: &User, asked: &Attributes) -> Decision;
}
