//! ObjectMeta.

use serde_json::{Map, Value};

use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_label, dns_subdomain, label_value, qualified_name},
    read::{items, map, some, text},
};

pub(super) type NameRule = fn(&str) -> Vec<String>;

/// Keys and values of all annotations together.
const ANNOTATIONS_BYTES: usize = 256 << 10;

const METADATA: Path = Path::root("metadata");

/// Of namespaced kinds.
pub(super) fn namespaced(object: &Value, rule: NameRule) -> Errors {
    let mut errors = Errors::default();
    let namespace = METADATA.field("namespace");
    match text(object, "/metadata/namespace") {
        "" => errors.required(&namespace, ""),
        name => errors.text_is(&namespace, name, dns_label(name)),
    }
    common(object, rule, &mut errors);
    errors
}

/// Of kinds without namespaces.
pub(super) fn cluster(object: &Value, rule: NameRule) -> Errors {
    let mut errors = Errors::default();
    if !text(object, "/metadata/namespace").is_empty() {
        errors.forbidden(&METADATA.field("namespace"), "not allowed on this type");
    }
    common(object, rule, &mut errors);
    errors
}

fn common(object: &Value, rule: NameRule, errors: &mut Errors) {
    let (name, generate) = (
        text(object, "/metadata/name"),
        text(object, "/metadata/generateName"),
    );
    if !generate.is_empty() {
        // What is appended begins with a letter or digit: a trailing dash is none of the name's end.
        let prefix = format!("{}a", generate.strip_suffix('-').unwrap_or(generate));
        let wrong = rule(&prefix);
        errors.text_is(&METADATA.field("generateName"), generate, wrong);
    }
    match name {
        "" if generate.is_empty() => {
            errors.required(&METADATA.field("name"), "name or generateName is required");
        }
        "" => {}
        name => errors.text_is(&METADATA.field("name"), name, rule(name)),
    }
    errors.not_negative(
        &METADATA.field("generation"),
        object.pointer("/metadata/generation"),
    );
    labels(
        map(object, "/metadata/labels"),
        &METADATA.field("labels"),
        errors,
    );
    annotations(
        map(object, "/metadata/annotations"),
        &METADATA.field("annotations"),
        errors,
    );
    owners(items(object, "/metadata/ownerReferences"), errors);
    let finalizers = METADATA.field("finalizers");
    for (at, finalizer) in items(object, "/metadata/finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let path = finalizers.index(at);
        let wrong = qualified_name(finalizer);
        if wrong.is_empty() && !finalizer.contains('/') && !BARE_FINALIZERS.contains(&finalizer) {
            errors.invalid_text(
                &path,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
        errors.text_is(&path, finalizer, wrong);
    }
    let has = |name| {
        items(object, "/metadata/finalizers")
            .iter()
            .any(|finalizer| finalizer.as_str() == Some(name))
    };
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid(
            &finalizers,
            object
                .pointer("/metadata/finalizers")
                .unwrap_or(&Value::Null),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

const BARE_FINALIZERS: [&str; 4] = [
    "customresourcecleanup.apiextensions.k8s.io",
    "kubernetes",
    "orphan",
    "foregroundDeletion",
];

pub(super) fn labels(labels: Option<&Map<String, Value>>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        errors.text_is(path, key, qualified_name(key));
        match value {
            Value::String(value) => errors.text_is(path, value, label_value(value)),
            Value::Null => {}
            other => errors.wrong_type(&path.key(key), other, "a string"),
        }
    }
}

pub(super) fn annotations(
    annotations: Option<&Map<String, Value>>,
    path: &Path,
    errors: &mut Errors,
) {
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        // Their keys may have capitals in the domain.
        errors.text_is(path, key, qualified_name(&key.to_lowercase()));
        match value {
            Value::String(value) => bytes += key.len() + value.len(),
            Value::Null => {}
            other => errors.wrong_type(&path.key(key), other, "a string"),
        }
    }
    if bytes > ANNOTATIONS_BYTES {
        errors.too_long(path, ANNOTATIONS_BYTES);
    }
}

fn owners(owners: &[Value], errors: &mut Errors) {
    let list = METADATA.field("ownerReferences");
    let mut controller: Option<&str> = None;
    for (at, owner) in owners.iter().enumerate() {
        let path = list.index(at);
        let version = text(owner, "/apiVersion");
        if version.is_empty() || version.starts_with('/') || version.ends_with('/') {
            errors.invalid_text(
                &path.field("apiVersion"),
                version,
                "version must not be empty",
            );
        }
        for name in ["kind", "name", "uid"] {
            if owner
                .get(name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                errors.invalid_text(&path.field(name), "", "must not be empty");
            }
        }
        if (version, text(owner, "/kind")) == ("v1", "Event") {
            errors.invalid(
                &path,
                owner,
                "/v1, Kind=Event is disallowed from being an owner",
            );
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if let Some(first) = controller {
                errors.invalid(
                    &path,
                    owner,
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        text(owner, "/name")
                    ),
                );
            }
            controller.get_or_insert(text(owner, "/name"));
        }
    }
}

/// What may not change of any object, once it is there.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<Invalid> {
    changed(new, old).into_vec()
}

pub(super) fn changed(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::default();
    for name in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let field = |object| some(object, "/metadata").and_then(|metadata| metadata.get(name));
        // They are set where an update leaves them out.
        if field(new).is_some_and(|value| !value.is_null()) {
            errors.immutable(&METADATA.field(name), field(new), field(old));
        }
    }
    let generation = |object: &Value| {
        object
            .pointer("/metadata/generation")
            .and_then(Value::as_i64)
    };
    if let (Some(new), Some(old)) = (generation(new), generation(old))
        && new < old
    {
        errors.invalid(
            &METADATA.field("generation"),
            &new.into(),
            "must not be decremented",
        );
    }
    // What is being deleted gets no new finalizers: it would never go.
    if some(old, "/metadata/deletionTimestamp").is_some() {
        let before = items(old, "/metadata/finalizers");
        let added: Vec<_> = items(new, "/metadata/finalizers")
            .iter()
            .filter(|finalizer| !before.contains(finalizer))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            errors.forbidden(
                &METADATA.field("finalizers"),
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{added:?}"),
            );
        }
    }
    errors
}

/// A LabelSelector.
pub(super) fn selector(selector: &Value, path: &Path, errors: &mut Errors) {
    labels(
        map(selector, "/matchLabels"),
        &path.field("matchLabels"),
        errors,
    );
    let list = path.field("matchExpressions");
    for (at, expression) in items(selector, "/matchExpressions").iter().enumerate() {
        let path = list.index(at);
        let values = items(expression, "/values");
        match text(expression, "/operator") {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &path.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                &path.field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid_text(
                &path.field("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        let key = text(expression, "/key");
        errors.text_is(&path.field("key"), key, qualified_name(key));
        let list = path.field("values");
        for (at, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.text_is(&list.index(at), value, label_value(value));
        }
    }
}

// Rules of kinds that have no others.

pub(crate) fn subdomain(object: &Value) -> Vec<Invalid> {
    namespaced(object, dns_subdomain).into_vec()
}

pub(crate) fn cluster_subdomain(object: &Value) -> Vec<Invalid> {
    cluster(object, dns_subdomain).into_vec()
}
