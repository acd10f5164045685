//! Volumes that outlive pods, and what they are made of.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    meta::{changed, cluster, namespaced, selector},
    resources::quantity,
    scheduling::node_selector,
    volume::{host_path_type, nfs},
};
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    name::{dns_label, dns_subdomain, qualified_name},
    quantity::Quantity,
    read::{items, map, some, text},
};

const SPEC: Path = Path::root("spec");

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

fn access_modes(spec: &Value, path: &Path, errors: &mut Errors) {
    let at = path.field("accessModes");
    let modes = items(spec, "/accessModes").iter();
    let modes: Vec<&str> = modes
        .map(|mode| mode.as_str().unwrap_or_default())
        .collect();
    for mode in &modes {
        if !ACCESS_MODES.contains(mode) {
            errors.not_supported(&at, mode, &ACCESS_MODES);
        }
    }
    let of_one_pod = |mode: &&str| *mode == "ReadWriteOncePod";
    if modes.iter().any(of_one_pod)
        && modes
            .iter()
            .any(|mode| !of_one_pod(mode) && ACCESS_MODES.contains(mode))
    {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

pub(super) fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    if items(spec, "/accessModes").is_empty() {
        errors.required(
            &path.field("accessModes"),
            "at least 1 access mode is required",
        );
    }
    if let Some(value) = some(spec, "/selector") {
        selector(value, &path.field("selector"), errors);
    }
    access_modes(spec, path, errors);
    let resources = path.field("resources");
    let at = resources.key("storage");
    match some(spec, "/resources/requests/storage") {
        None => errors.required(&at, ""),
        Some(storage) => positive(storage, &at, errors),
    }
    class(spec, "storageClassName", path, errors);
    errors.maybe_one_of(
        &path.field("volumeMode"),
        text(spec, "/volumeMode"),
        &["Block", "Filesystem"],
    );
    data_sources(spec, path, errors);
    class(spec, "volumeAttributesClassName", path, errors);
}

fn positive(amount: &Value, path: &Path, errors: &mut Errors) {
    match Quantity::of(amount) {
        Some(quantity) if quantity.nano <= 0 => {
            errors.invalid(path, amount, "must be greater than zero");
        }
        _ => {
            quantity(amount, path, errors);
        }
    }
}

fn class(spec: &Value, name: &str, path: &Path, errors: &mut Errors) {
    match spec.get(name).and_then(Value::as_str) {
        None | Some("") => {}
        Some(class) => errors.text_is(&path.field(name), class, dns_subdomain(class)),
    }
}

/// What a claim's volume is filled with, named in one way or in both.
fn data_sources(spec: &Value, path: &Path, errors: &mut Errors) {
    let (source, reference) = (some(spec, "/dataSource"), some(spec, "/dataSourceRef"));
    for (name, value) in [("dataSource", source), ("dataSourceRef", reference)] {
        let Some(value) = value else { continue };
        let path = path.field(name);
        for name in ["name", "kind"] {
            let value = value.get(name).and_then(Value::as_str);
            if value.is_none_or(str::is_empty) {
                errors.required(&path.field(name), "");
            }
        }
        let kind = text(value, "/kind");
        match text(value, "/apiGroup") {
            "" if kind != "PersistentVolumeClaim" => errors.invalid_text(
                &path,
                kind,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ),
            "" => {}
            group => errors.text_is(&path.field("apiGroup"), group, dns_subdomain(group)),
        }
        match text(value, "/namespace") {
            "" => {}
            name => errors.text_is(&path.field("namespace"), name, dns_label(name)),
        }
    }
    let (Some(source), Some(reference)) = (source, reference) else {
        return;
    };
    let other = ["apiGroup", "kind", "name"].iter().any(|name| {
        let of = |value: &Value| value.get(*name).cloned().unwrap_or_default();
        !same(&of(source), &of(reference))
    });
    if !text(reference, "/namespace").is_empty() {
        let detail = "may not be specified when dataSourceRef.namespace is specified";
        errors.invalid(path, &serde_json::json!({}), detail);
    } else if other {
        errors.invalid(path, &serde_json::json!({}), "must match dataSourceRef");
    }
}

pub(crate) fn persistent_volume_claim(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    claim_spec(
        object.get("spec").unwrap_or(&Value::Null),
        &SPEC,
        &mut errors,
    );
    errors.into_vec()
}

const FORBIDDEN: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

pub(crate) fn persistent_volume_claim_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let rest = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if let Some(requests) = spec
            .pointer_mut("/resources/requests")
            .and_then(Value::as_object_mut)
        {
            requests.remove("storage");
        }
        if let Some(spec) = spec.as_object_mut()
            && text(new, "/status/phase") == "Bound"
        {
            spec.remove("volumeAttributesClassName");
        }
        spec
    };
    let (mut now, before) = (rest(new), rest(old));
    // What binds a claim fills in what it left open.
    for name in ["volumeName", "storageClassName"] {
        if before
            .get(name)
            .is_none_or(|value| same(value, &Value::Null))
            && let Some(now) = now.as_object_mut()
        {
            now.remove(name);
        }
    }
    let open = before.as_object().map(|before| {
        let mut before = before.clone();
        for name in ["volumeName", "storageClassName"] {
            if before
                .get(name)
                .is_some_and(|value| same(value, &Value::Null))
            {
                before.remove(name);
            }
        }
        Value::Object(before)
    });
    if !same(&now, &open.unwrap_or_default()) {
        errors.forbidden(&SPEC, FORBIDDEN);
    }
    let storage = |object: &Value| {
        object
            .pointer("/spec/resources/requests/storage")
            .and_then(Quantity::of)
    };
    if let (Some(now), Some(before)) = (storage(new), storage(old)) {
        let path = SPEC.field("resources");
        let path = path.field("requests");
        let given = some(old, "/status/capacity/storage").and_then(Quantity::of);
        // what could not be had may be asked for no more, but nothing that is there is given back
        if now.nano < before.nano && now.nano <= given.map_or(0, |given| given.nano) {
            errors.forbidden(
                &path.field("storage"),
                "field can not be less than status.capacity",
            );
        }
        if now.nano != before.nano && text(old, "/status/phase") != "Bound" {
            errors.forbidden(&SPEC, FORBIDDEN);
        }
    }
    errors.into_vec()
}

/// What is said of a persistent volume beside where it is.
const NOT_SOURCES: [&str; 10] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
    "",
];

pub(crate) fn persistent_volume(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if items(spec, "/accessModes").is_empty() {
        errors.required(&SPEC.field("accessModes"), "");
    }
    access_modes(spec, &SPEC, &mut errors);
    let path = SPEC.field("capacity");
    let capacity = map(spec, "/capacity").filter(|amounts| !amounts.is_empty());
    if capacity.is_none() {
        errors.required(&path, "");
    }
    if !capacity.is_some_and(|it| it.len() == 1 && it.contains_key("storage")) {
        let said = spec.get("capacity").unwrap_or(&Value::Null);
        errors.value_not_supported(&path, said, &["storage"]);
    }
    for (name, value) in capacity.into_iter().flatten() {
        positive(value, &path.key(name), &mut errors);
    }
    errors.maybe_one_of(
        &SPEC.field("persistentVolumeReclaimPolicy"),
        text(spec, "/persistentVolumeReclaimPolicy"),
        &["Delete", "Recycle", "Retain"],
    );
    errors.maybe_one_of(
        &SPEC.field("volumeMode"),
        text(spec, "/volumeMode"),
        &["Block", "Filesystem"],
    );
    let mut found = 0;
    for (kind, value) in spec.as_object().into_iter().flatten() {
        if NOT_SOURCES.contains(&kind.as_str()) || value.is_null() {
            continue;
        }
        found += 1;
        let path = SPEC.field(kind);
        if found > 1 {
            errors.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        match kind.as_str() {
            "hostPath" | "local" => {
                if text(value, "/path").is_empty() {
                    errors.required(&path.field("path"), "");
                }
                super::container::no_way_up(text(value, "/path"), &path.field("path"), &mut errors);
                host_path_type(value, &path, &mut errors);
            }
            "nfs" => nfs(value, &path, &mut errors),
            "csi" => {
                for name in ["driver", "volumeHandle"] {
                    if value
                        .get(name)
                        .and_then(Value::as_str)
                        .is_none_or(str::is_empty)
                    {
                        errors.required(&path.field(name), "");
                    }
                }
            }
            _ => {}
        }
    }
    if found == 0 {
        errors.required(&SPEC, "must specify a volume type");
    }
    if text(spec, "/hostPath/path") == "/"
        && text(spec, "/persistentVolumeReclaimPolicy") == "Recycle"
    {
        errors.forbidden(
            &SPEC.field("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        );
    }
    match text(spec, "/storageClassName") {
        "" => {}
        class => errors.text_is(&SPEC.field("storageClassName"), class, dns_subdomain(class)),
    }
    if let Some(class) = some(spec, "/volumeAttributesClassName").and_then(Value::as_str) {
        let path = SPEC.field("volumeAttributesClassName");
        match class {
            "" => errors.required(&path, "an empty string is disallowed"),
            class => errors.text_is(&path, class, dns_subdomain(class)),
        }
        if some(spec, "/csi").is_none() {
            errors.required(
                &SPEC.field("csi"),
                "has to be specified when using volumeAttributesClassName",
            );
        }
    }
    let affinity = SPEC.field("nodeAffinity");
    match some(spec, "/nodeAffinity/required") {
        Some(required) => node_selector(required, &affinity.field("required"), &mut errors),
        None if some(spec, "/nodeAffinity").is_some() => {
            errors.required(
                &affinity.field("required"),
                "must specify required node constraints",
            );
        }
        None if some(spec, "/local").is_some() => {
            errors.required(&affinity, "Local volume requires node affinity");
        }
        None => {}
    }
    errors.into_vec()
}

pub(crate) fn persistent_volume_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let source = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|name, _| !NOT_SOURCES.contains(&name.as_str()));
        }
        spec
    };
    if !same(&source(new), &source(old)) {
        errors.forbidden(
            &SPEC.field("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    errors.immutable(
        &SPEC.field("volumeMode"),
        new.pointer("/spec/volumeMode"),
        old.pointer("/spec/volumeMode"),
    );
    if some(old, "/spec/nodeAffinity").is_some() {
        errors.immutable(
            &SPEC.field("nodeAffinity"),
            new.pointer("/spec/nodeAffinity"),
            old.pointer("/spec/nodeAffinity"),
        );
    }
    errors.into_vec()
}

/// Of a StorageClass: what its provisioner is told.
const PARAMETERS: usize = 512;
const PARAMETERS_BYTES: usize = 256 << 10;

fn parameters(object: &Value, errors: &mut Errors) {
    let path = Path::root("parameters");
    let Some(parameters) = map(object, "/parameters") else {
        return;
    };
    if parameters.len() > PARAMETERS {
        errors.too_long(&path, PARAMETERS);
        return;
    }
    let bytes: usize = parameters
        .iter()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > PARAMETERS_BYTES {
        errors.too_long(&path, PARAMETERS_BYTES);
    }
    if parameters.contains_key("") {
        errors.invalid_text(&path, "", "field can not be empty.");
    }
}

pub(crate) fn storage_class(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    match text(object, "/provisioner") {
        "" => errors.required(&Path::root("provisioner"), ""),
        name => errors.text_is(
            &Path::root("provisioner"),
            name,
            qualified_name(&name.to_lowercase()),
        ),
    }
    parameters(object, &mut errors);
    errors.maybe_one_of(
        &Path::root("reclaimPolicy"),
        text(object, "/reclaimPolicy"),
        &["Delete", "Retain"],
    );
    errors.one_of(
        &Path::root("volumeBindingMode"),
        text(object, "/volumeBindingMode"),
        &["Immediate", "WaitForFirstConsumer"],
    );
    topologies(object, &mut errors);
    errors.into_vec()
}

/// Where volumes of a class may be: no two terms say the same.
fn topologies(object: &Value, errors: &mut Errors) {
    let list = Path::root("allowedTopologies");
    let mut terms: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (at, term) in items(object, "/allowedTopologies").iter().enumerate() {
        let path = list.index(at);
        let list = path.field("matchLabelExpressions");
        let mut term_keys = BTreeMap::new();
        for (at, one) in items(term, "/matchLabelExpressions").iter().enumerate() {
            let path = list.index(at);
            let (key, mut values) = (text(one, "/key"), BTreeSet::new());
            let list = path.field("values");
            if items(one, "/values").is_empty() {
                errors.required(&list, "");
            }
            for (at, value) in items(one, "/values").iter().enumerate() {
                let value = value.as_str().unwrap_or_default();
                if !values.insert(value) {
                    errors.duplicate(&list.index(at), value);
                }
            }
            errors.text_is(&path.field("key"), key, qualified_name(key));
            if term_keys.contains_key(key) {
                errors.duplicate(&path.field("key"), key);
            }
            term_keys.insert(key, values);
        }
        if terms.contains(&term_keys) {
            errors.duplicate(&list, "");
        }
        terms.push(term_keys);
    }
}

pub(crate) fn storage_class_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    for name in [
        "parameters",
        "provisioner",
        "reclaimPolicy",
        "volumeBindingMode",
    ] {
        errors.immutable(&Path::root(name), new.get(name), old.get(name));
    }
    errors.into_vec()
}

pub(crate) fn volume_attributes_class(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    if text(object, "/driverName").is_empty() {
        errors.required(&Path::root("driverName"), "");
    }
    if map(object, "/parameters").is_none_or(serde_json::Map::is_empty) {
        errors.required(
            &Path::root("parameters"),
            "must contain at least one key/value pair",
        );
    }
    parameters(object, &mut errors);
    errors.into_vec()
}

pub(crate) fn volume_attributes_class_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    for name in ["driverName", "parameters"] {
        errors.immutable(&Path::root(name), new.get(name), old.get(name));
    }
    errors.into_vec()
}

pub(crate) fn volume_attachment(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    for name in ["attacher", "nodeName"] {
        let value = object
            .get("spec")
            .and_then(|spec| spec.get(name))
            .and_then(Value::as_str);
        if value.is_none_or(str::is_empty) {
            errors.required(&SPEC.field(name), "");
        }
    }
    let source = SPEC.field("source");
    let named = some(object, "/spec/source/persistentVolumeName");
    let inline = some(object, "/spec/source/inlineVolumeSpec");
    match (named, inline) {
        (None, None) => errors.required(
            &source,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (Some(_), Some(_)) => errors.forbidden(
            &source,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        _ => {}
    }
    errors.into_vec()
}

/// The whole spec stays: VolumeAttachment.
pub(crate) fn spec_stays(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(&SPEC, new.get("spec"), old.get("spec"));
    errors.into_vec()
}

pub(crate) fn csi_driver(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let list = SPEC.field("volumeLifecycleModes");
    for (at, mode) in items(object, "/spec/volumeLifecycleModes")
        .iter()
        .enumerate()
    {
        errors.one_of(
            &list.index(at),
            mode.as_str().unwrap_or_default(),
            &["Ephemeral", "Persistent"],
        );
    }
    errors.maybe_one_of(
        &SPEC.field("fsGroupPolicy"),
        text(object, "/spec/fsGroupPolicy"),
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    errors.into_vec()
}

pub(crate) fn csi_node(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let all = SPEC.field("drivers");
    let mut names = std::collections::HashSet::new();
    for (at, driver) in items(object, "/spec/drivers").iter().enumerate() {
        let path = all.index(at);
        let name = text(driver, "/name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else if !names.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if text(driver, "/nodeID").is_empty() {
            errors.required(&path.field("nodeID"), "");
        }
    }
    errors.into_vec()
}

pub(crate) fn csi_storage_capacity(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    if text(object, "/storageClassName").is_empty() {
        errors.required(&Path::root("storageClassName"), "");
    }
    for name in ["capacity", "maximumVolumeSize"] {
        if let Some(amount) = object.get(name).filter(|amount| !amount.is_null()) {
            quantity(amount, &Path::root(name), &mut errors);
        }
    }
    if let Some(topology) = some(object, "/nodeTopology") {
        selector(topology, &Path::root("nodeTopology"), &mut errors);
    }
    errors.into_vec()
}
