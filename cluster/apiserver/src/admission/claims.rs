//! DefaultStorageClass: a claim that names no class gets the one that is marked.

use std::cmp::Reverse;

use serde_json::Value;

use super::Act;
use crate::{api::Api, object};

const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_BEFORE: &str = "storageclass.beta.kubernetes.io/is-default-class";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// An empty name is a name: it asks for volumes without a class.
pub fn default_class(api: &Api, act: &Act<'_>, claim: &mut Value) {
    let names_one = claim
        .pointer("/spec/storageClassName")
        .is_some_and(|name| !name.is_null())
        || annotated(claim, BETA_CLASS).is_some();
    if !act.resource.is("", "persistentvolumeclaims") || names_one {
        return;
    }
    let (entries, _) = api.cache.shard("storageclasses").list("", "");
    let classes: Vec<Value> = entries.iter().map(|entry| entry.value()).collect();
    if let Some(name) = marked(&classes) {
        object::part(claim, "spec").insert("storageClassName".into(), name.into());
    }
}

fn annotated<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// The newest of those that are marked, and of those made in one second the first by name.
fn marked(classes: &[Value]) -> Option<&str> {
    classes
        .iter()
        .filter(|class| {
            [DEFAULT, DEFAULT_BEFORE]
                .iter()
                .any(|key| annotated(class, key) == Some("true"))
        })
        .max_by_key(|class| {
            (
                object::text(class, "/metadata/creationTimestamp"),
                Reverse(object::name(class)),
            )
        })
        .map(object::name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_marked_class_is_the_default() {
        let class = |name: &str, made: &str, is: &str| json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": {DEFAULT: is}}});
        let classes = [
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("a", "2026-01-02T00:00:00Z", "true"),
            class("newest", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(marked(&classes), Some("a"));
        assert_eq!(marked(&[]), None);
    }
}
