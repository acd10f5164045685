//! OpenAPI v3 of a group and version, written from the table when it is asked for: nothing of it is kept.
//!
//! What kubectl looks for: a kind through the operations of the paths (`x-kubernetes-group-version-kind`), its fields in the schemas, how
//! a strategic merge treats lists (`x-kubernetes-patch-merge-key`), and whether PATCH takes one and knows `fieldValidation`.
//! There are no descriptions.

mod paths;
mod schemas;

use std::fmt::Write;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{CustomSchema, table};

/// What is served below one group and version.
#[derive(Debug, Clone, Copy)]
pub struct GroupVersion<'a> {
    /// Empty for core.
    pub group: &'a str,
    pub version: &'a str,
    pub resources: &'a [Resource<'a>],
}

#[derive(Debug, Clone)]
pub struct Resource<'a> {
    pub kind: &'a str,
    /// In paths.
    pub plural: &'a str,
    pub namespaced: bool,
    /// `create`, `delete`, `deletecollection`, `get`, `list`, `patch`, `update`, `watch`: those that it has.
    pub verbs: &'a [&'a str],
    pub subresources: &'a [Subresource<'a>],
    /// Of a custom resource: what its fields are. Without it the kind is a built-in one.
    pub custom: Option<&'a CustomSchema>,
}

#[derive(Debug, Clone, Copy)]
pub struct Subresource<'a> {
    /// `status`, `scale`, `log`, …
    pub name: &'a str,
    pub verbs: &'a [&'a str],
    /// Group, version and kind of what it takes, where that isn't the resource itself.
    pub kind: Option<(&'a str, &'a str, &'a str)>,
}

impl GroupVersion<'_> {
    /// Below `/openapi/v3/`, and of the API: `api/v1`, `apis/apps/v1`.
    pub fn path(&self) -> String {
        match self.group {
            "" => format!("api/{}", self.version),
            group => format!("apis/{group}/{}", self.version),
        }
    }

    /// As `/openapi/v3/apis/GROUP/VERSION` answers it.
    pub fn document(&self) -> Value {
        let schemas = schemas::schemas(self);
        let paths = paths::paths(self);
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.36.0"},
            "paths": paths,
            "components": {"schemas": schemas},
        })
    }

    /// Changes when the document does.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(table::digest());
        hash.update(self.path());
        for resource in self.resources {
            hash.update(format!(
                "{}\0{}\0{}\0{:?}\0{:?}\0",
                resource.kind,
                resource.plural,
                resource.namespaced,
                resource.verbs,
                resource.subresources
            ));
            if let Some(custom) = resource.custom {
                hash.update(custom.source().to_string());
            }
        }
        hash.finalize()
            .iter()
            .fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02X}");
                text
            })
    }
}

/// As `/openapi/v3` answers it: where the documents are.
pub fn index(versions: &[GroupVersion<'_>]) -> Value {
    let paths: Map<String, Value> = versions
        .iter()
        .map(|version| {
            let path = version.path();
            let url = format!("/openapi/v3/{path}?hash={}", version.hash());
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({ "paths": paths })
}

#[cfg(test)]
mod tests;
