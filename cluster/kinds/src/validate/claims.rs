//! Volumes that outlive pods, and what they are made of.

use serde_json::Value;

use super::{
    meta::{changed, cluster, namespaced, selector},
    resources::{list, quantity},
    scheduling::node_selector,
    volume::{host_path_type, nfs},
};
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    name::{dns_subdomain, qualified_name},
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
    let modes = items(spec, "/accessModes");
    if modes.is_empty() {
        errors.required(&at, "at least 1 access mode is required");
    }
    for mode in modes {
        let mode = mode.as_str().unwrap_or_default();
        if !ACCESS_MODES.contains(&mode) {
            errors.not_supported(&at, mode, &ACCESS_MODES);
        }
    }
    if modes.len() > 1
        && modes
            .iter()
            .any(|mode| mode.as_str() == Some("ReadWriteOncePod"))
    {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

pub(super) fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    access_modes(spec, path, errors);
    if let Some(value) = some(spec, "/selector") {
        selector(value, &path.field("selector"), errors);
    }
    let requests = path.field("resources");
    let requests = requests.field("requests");
    match spec.pointer("/resources/requests/storage") {
        None | Some(Value::Null) => errors.required(&requests.key("storage"), ""),
        Some(storage) => {
            let path = requests.key("storage");
            if quantity(storage, &path, errors).is_some_and(|quantity| quantity.nano == 0) {
                errors.invalid(&path, storage, "must be greater than zero");
            }
        }
    }
    errors.maybe_one_of(
        &path.field("volumeMode"),
        text(spec, "/volumeMode"),
        &["Block", "Filesystem"],
    );
    for name in ["storageClassName", "volumeAttributesClassName"] {
        match spec.get(name).and_then(Value::as_str) {
            None | Some("") => {}
            Some(class) => errors.text_is(&path.field(name), class, dns_subdomain(class)),
        }
    }
    if let Some(source) = some(spec, "/dataSource") {
        for name in ["kind", "name"] {
            if source
                .get(name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                errors.required(&path.field("dataSource").field(name), "");
            }
        }
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
        if let Some(spec) = spec.as_object_mut() {
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
        if now.nano < before.nano {
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
    access_modes(spec, &SPEC, &mut errors);
    let capacity = SPEC.field("capacity");
    match map(spec, "/capacity") {
        Some(amounts) if !amounts.is_empty() => {
            for (name, value) in amounts {
                if name != "storage" {
                    errors.not_supported(&capacity, name, &["storage"]);
                }
                let path = capacity.key(name);
                if quantity(value, &path, &mut errors).is_some_and(|quantity| quantity.nano == 0) {
                    errors.invalid(&path, value, "must be greater than zero");
                }
            }
        }
        _ => errors.required(&capacity, ""),
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
    }
    let bytes: usize = parameters
        .iter()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > PARAMETERS_BYTES {
        errors.too_long(&path, PARAMETERS_BYTES);
    }
    if parameters.contains_key("") {
        errors.invalid_text(&path, "", "field must not be empty.");
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
    errors.into_vec()
}

pub(crate) fn storage_class_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    for (name, detail) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ] {
        let null = &Value::Null;
        if !same(new.get(name).unwrap_or(null), old.get(name).unwrap_or(null)) {
            errors.forbidden(&Path::root(name), detail);
        }
    }
    errors.immutable(
        &Path::root("volumeBindingMode"),
        new.get("volumeBindingMode"),
        old.get("volumeBindingMode"),
    );
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

pub(crate) fn resource_quota(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    list(
        object.pointer("/spec/hard"),
        &SPEC.field("hard"),
        &mut errors,
    );
    const SCOPES: [&str; 7] = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let scopes = SPEC.field("scopes");
    let mut found = Vec::new();
    for scope in items(object, "/spec/scopes") {
        let scope = scope.as_str().unwrap_or_default();
        if !SCOPES.contains(&scope) {
            errors.invalid_text(&scopes, scope, "unsupported scope");
        }
        found.push(scope);
    }
    for pair in [
        ["BestEffort", "NotBestEffort"],
        ["Terminating", "NotTerminating"],
    ] {
        if pair.iter().all(|scope| found.contains(scope)) {
            errors.invalid(
                &scopes,
                &object["spec"]["scopes"],
                &format!("conflicting scopes: {}, {}", pair[0], pair[1]),
            );
        }
    }
    errors.into_vec()
}

pub(crate) fn resource_quota_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(
        &SPEC.field("scopes"),
        new.pointer("/spec/scopes"),
        old.pointer("/spec/scopes"),
    );
    errors.into_vec()
}

pub(crate) fn limit_range(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let all = SPEC.field("limits");
    let mut kinds = std::collections::HashSet::new();
    for (at, item) in items(object, "/spec/limits").iter().enumerate() {
        let path = all.index(at);
        let kind = text(item, "/type");
        if !kinds.insert(kind) {
            errors.duplicate(&path.field("type"), kind);
        }
        if !["Container", "PersistentVolumeClaim", "Pod"].contains(&kind) {
            errors.text_is(&path.field("type"), kind, qualified_name(kind));
        }
        for name in [
            "max",
            "min",
            "default",
            "defaultRequest",
            "maxLimitRequestRatio",
        ] {
            list(item.get(name), &path.field(name), &mut errors);
        }
        if kind == "Pod" {
            for name in ["default", "defaultRequest"] {
                if map(item, "").is_some_and(|item| {
                    item.get(name).is_some_and(|list| !same(list, &Value::Null))
                }) {
                    errors.forbidden(
                        &path.field(name),
                        "may not be specified when `type` is 'Pod'",
                    );
                }
            }
        }
        let amount = |list: &str, name: &str| {
            item.get(list)
                .and_then(|list| list.get(name))
                .and_then(Quantity::of)
        };
        for (low, high) in [
            ("min", "max"),
            ("min", "defaultRequest"),
            ("min", "default"),
            ("defaultRequest", "default"),
            ("defaultRequest", "max"),
            ("default", "max"),
        ] {
            for name in item
                .get(low)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(name, _)| name)
            {
                if let (Some(less), Some(more)) = (amount(low, name), amount(high, name))
                    && less.nano > more.nano
                {
                    errors.invalid_text(
                        &path.field(low).key(name),
                        &less.canonical(),
                        &format!(
                            "{low} value {} is greater than {high} value {}",
                            less.canonical(),
                            more.canonical()
                        ),
                    );
                }
            }
        }
    }
    errors.into_vec()
}
