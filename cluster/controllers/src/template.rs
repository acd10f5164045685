//! Pod templates: when two are the same, the hash that names one, and the pods made of them.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::Resource;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::owner;

pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Upstream's letters for such names: no vowels and nothing that looks like one, so that they make no words.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// 27^10 is more than 2^47: two templates of one Deployment meet by chance once in 10^14.
const LENGTH: usize = 10;
/// Maps that are the same empty or absent. Other empty objects say something: `emptyDir: {}`.
const MAPS: [&str; 9] = [
    "annotations",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "options",
    "overhead",
    "requests",
    "volumeAttributes",
];

/// Of a template, without what its hash has put into it. `collisions` makes others of the same template.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    hash_of(&normal(template), collisions)
}

pub(crate) fn hash_of(value: &Value, collisions: Option<i32>) -> String {
    let mut bytes = value.to_string().into_bytes();
    if let Some(collisions) = collisions.filter(|collisions| *collisions != 0) {
        bytes.extend(collisions.to_le_bytes());
    }
    let mut rest = xxh3_64(&bytes);
    let mut name = String::with_capacity(LENGTH);
    for _ in 0..LENGTH {
        let at = usize::try_from(rest % 27).unwrap_or(0);
        name.push(char::from(LETTERS[at]));
        rest /= 27;
    }
    name
}

/// Whether pods of both are the same but for the hash.
pub(crate) fn is_same(one: &PodTemplateSpec, other: &PodTemplateSpec) -> bool {
    normal(one) == normal(other)
}

/// As JSON, with one way to write each thing.
pub(crate) fn normal(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    if let Some(labels) = value
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut)
    {
        labels.remove(HASH_LABEL);
    }
    drop_empty(&mut value);
    value
}

fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(drop_empty);
            fields.retain(|name, value| match value {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) => !fields.is_empty() || !MAPS.contains(&name.as_str()),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

/// A pod of the template, controlled by `owner`; its name is made by the server.
pub(crate) fn pod_of<O: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &O) -> Pod {
    let mut pod = Pod::default();
    if let Some(metadata) = &template.metadata {
        pod.metadata.labels = metadata.labels.clone();
        pod.metadata.annotations = metadata.annotations.clone();
        pod.metadata.finalizers = metadata.finalizers.clone();
    }
    let name = owner.meta().name.as_deref().unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod.metadata.namespace = owner.meta().namespace.clone();
    pod.metadata.owner_references = Some(vec![owner::reference(owner)]);
    pod.spec = template.spec.clone();
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    fn plain() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
    }

    #[test]
    fn the_hash_is_of_what_counts_and_stays_as_it_is() {
        let one = template(plain());
        let mut hashed = plain();
        hashed["metadata"]["labels"][HASH_LABEL] = "abc".into();
        hashed["metadata"]["annotations"] = json!({});
        hashed["spec"]["volumes"] = json!([]);
        let hashed = template(hashed);
        assert!(is_same(&one, &hashed));
        assert_eq!(hash(&one, None), hash(&hashed, Some(0)));
        // names of ReplicaSets that are there hang on it: a change would make each of them anew
        assert_eq!(hash(&one, None), "x6wtw7gsq8");
        assert_ne!(hash(&one, None), hash(&one, Some(1)));
        assert_eq!(hash(&one, Some(1)).len(), LENGTH);
    }

    #[test]
    fn templates_that_say_something_else_differ() {
        let one = template(plain());
        for (pointer, value) in [
            ("/spec/containers/0/image", json!("i:2")),
            ("/metadata/labels/app", json!("db")),
            (
                "/metadata/annotations",
                json!({"kubectl.kubernetes.io/restartedAt": "now"}),
            ),
            ("/spec/securityContext", json!({})),
        ] {
            let mut other = plain();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            other.pointer_mut(parent).unwrap()[name] = value;
            assert!(!is_same(&one, &template(other)), "{pointer}");
        }
    }
}
