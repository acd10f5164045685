use std::collections::HashSet;

use serde_json::Value;

use super::meta::{changed, cluster};
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_1035_label, dns_subdomain},
    read::{flag, items, some, text},
};

const SPEC: Path = Path::root("spec");

/// Names and versions; what a version's schema may be is for whoever makes a schema of it.
pub(crate) fn custom_resource_definition(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let (group, plural) = (
        text(object, "/spec/group"),
        text(object, "/spec/names/plural"),
    );
    let (name, expected) = (text(object, "/metadata/name"), format!("{plural}.{group}"));
    if name != expected {
        errors.invalid_text(
            &Path::root("metadata").field("name"),
            name,
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    match group {
        "" => errors.required(&SPEC.field("group"), ""),
        group => {
            errors.text_is(&SPEC.field("group"), group, dns_subdomain(group));
            if group.split('.').count() < 2 {
                errors.invalid_text(
                    &SPEC.field("group"),
                    group,
                    "should be a domain with at least one dot",
                );
            }
        }
    }
    errors.one_of(
        &SPEC.field("scope"),
        text(object, "/spec/scope"),
        &["Cluster", "Namespaced"],
    );
    names(object, &mut errors);
    versions(object, &mut errors);
    errors.into_vec()
}

fn names(object: &Value, errors: &mut Errors) {
    let path = SPEC.field("names");
    let names = object.pointer("/spec/names").unwrap_or(&Value::Null);
    for name in ["plural", "singular", "kind", "listKind"] {
        let value = names.get(name).and_then(Value::as_str).unwrap_or_default();
        if value.is_empty() {
            errors.required(&path.field(name), "");
            continue;
        }
        // Kinds begin with capitals.
        let wrong = dns_1035_label(&value.to_lowercase());
        errors.text_is(&path.field(name), value, wrong);
        if ["plural", "singular"].contains(&name) && value.to_lowercase() != value {
            errors.text_is(&path.field(name), value, dns_1035_label(value));
        }
    }
    if text(names, "/kind") == text(names, "/listKind") && !text(names, "/kind").is_empty() {
        errors.invalid_text(
            &path.field("listKind"),
            text(names, "/listKind"),
            "kind and listKind may not be the same",
        );
    }
    for list in ["shortNames", "categories"] {
        let all = path.field(list);
        let values = names.get(list).and_then(Value::as_array);
        for (at, value) in values.into_iter().flatten().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.text_is(&all.index(at), value, dns_1035_label(value));
        }
    }
}

fn versions(object: &Value, errors: &mut Errors) {
    let list = SPEC.field("versions");
    let versions = items(object, "/spec/versions");
    let (mut seen, mut stored) = (HashSet::new(), 0);
    for (at, version) in versions.iter().enumerate() {
        let path = list.index(at);
        let name = text(version, "/name");
        errors.text_is(&path.field("name"), name, dns_1035_label(name));
        if !seen.insert(name) {
            errors.invalid_text(&list, name, "must contain unique version names");
        }
        stored += usize::from(flag(version, "/storage"));
        match some(version, "/schema/openAPIV3Schema") {
            None => errors.required(
                &path.field("schema").field("openAPIV3Schema"),
                "schemas are required",
            ),
            Some(schema) if text(schema, "/type") != "object" => errors.invalid_text(
                &path.field("schema").field("openAPIV3Schema").field("type"),
                text(schema, "/type"),
                "must be object at the root",
            ),
            Some(_) => {}
        }
    }
    if stored != 1 {
        errors.invalid(
            &list,
            object.pointer("/spec/versions").unwrap_or(&Value::Null),
            "must have exactly one version marked as storage version",
        );
    }
}

/// What is served has users: neither its names nor its scope change.
pub(crate) fn custom_resource_definition_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    for (name, pointer) in [("group", "/spec/group"), ("scope", "/spec/scope")] {
        errors.immutable(
            &SPEC.field(name),
            new.pointer(pointer),
            old.pointer(pointer),
        );
    }
    let names = SPEC.field("names");
    for (name, pointer) in [
        ("plural", "/spec/names/plural"),
        ("kind", "/spec/names/kind"),
    ] {
        errors.immutable(
            &names.field(name),
            new.pointer(pointer),
            old.pointer(pointer),
        );
    }
    errors.into_vec()
}
