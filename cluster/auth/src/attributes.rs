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

/// The groups of a namespace's ServiceAccounts.
pub fn account_groups(namespace: &str) -> [String; 2] {
    [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
    ]
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

    /// A ServiceAccount, as its tokens say who it is (SA-03).
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let mut groups = account_groups(namespace).to_vec();
        groups.push(crate::AUTHENTICATED.to_owned());
        Self {
            username: format!("{}{namespace}:{name}", crate::rbac::SERVICE_ACCOUNT_PREFIX),
            groups,
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
