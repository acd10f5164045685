use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::volume::devices;
use crate::{
    quantity::{canonicalize, canonicalize_one},
    write::{absent, ensure, object_at, text_of, zero},
};

pub(crate) fn secret(secret: &mut Value) {
    let Some(secret) = secret.as_object_mut() else {
        return;
    };
    zero(secret, "type", "Opaque");
    // stringData is for writing only, and wins over data.
    let written = match secret.get("stringData") {
        Some(Value::Object(written)) if written.values().all(Value::is_string) => written.clone(),
        _ => return,
    };
    if let Some(data) = ensure(secret, "data") {
        for (key, value) in written {
            let value = STANDARD.encode(value.as_str().unwrap_or_default());
            data.insert(key, value.into());
        }
        secret.remove("stringData");
    }
}

pub(crate) fn persistent_volume(volume: &mut Value) {
    if let Some(spec) = object_at(volume, "/spec") {
        zero(spec, "persistentVolumeReclaimPolicy", "Retain");
        absent(spec, "volumeMode", "Filesystem");
        canonicalize(spec.get_mut("capacity"));
        if let Some(Value::Object(path)) = spec.get_mut("hostPath") {
            absent(path, "type", "");
        }
        devices(spec);
    }
    phase(volume, "Pending");
}

fn phase(object: &mut Value, phase: &str) {
    if let Some(object) = object.as_object_mut()
        && let Some(status) = ensure(object, "status")
    {
        zero(status, "phase", phase);
    }
}

pub(crate) fn persistent_volume_claim(claim: &mut Value) {
    if let Some(spec) = object_at(claim, "/spec") {
        claim_spec(spec);
    }
    phase(claim, "Pending");
}

pub(super) fn claim_spec(spec: &mut Map<String, Value>) {
    absent(spec, "volumeMode", "Filesystem");
    if let Some(resources) = ensure(spec, "resources") {
        canonicalize(resources.get_mut("limits"));
        canonicalize(resources.get_mut("requests"));
    }
}

pub(crate) fn storage_class(class: &mut Value) {
    if let Some(class) = class.as_object_mut() {
        absent(class, "reclaimPolicy", "Delete");
        absent(class, "volumeBindingMode", "Immediate");
    }
}

pub(crate) fn csi_driver(driver: &mut Value) {
    let Some(spec) = object_at(driver, "/spec") else {
        return;
    };
    absent(spec, "attachRequired", true);
    absent(spec, "podInfoOnMount", false);
    absent(spec, "storageCapacity", false);
    absent(spec, "requiresRepublish", false);
    absent(spec, "seLinuxMount", false);
    absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    zero(spec, "volumeLifecycleModes", json!(["Persistent"]));
}

pub(crate) fn csi_storage_capacity(capacity: &mut Value) {
    canonicalize_one(capacity.get_mut("capacity"));
    canonicalize_one(capacity.get_mut("maximumVolumeSize"));
}

pub(crate) fn resource_quota(quota: &mut Value) {
    for pointer in ["/spec/hard", "/status/hard", "/status/used"] {
        canonicalize(quota.pointer_mut(pointer));
    }
}

/// Limits for containers: a most is also what one gets that says nothing, and what one gets is also what it needs.
pub(crate) fn limit_range(range: &mut Value) {
    let Some(Value::Array(limits)) = range.pointer_mut("/spec/limits") else {
        return;
    };
    for item in limits.iter_mut().filter_map(Value::as_object_mut) {
        for name in [
            "max",
            "min",
            "default",
            "defaultRequest",
            "maxLimitRequestRatio",
        ] {
            canonicalize(item.get_mut(name));
        }
        if text_of(item, "type") != "Container" {
            continue;
        }
        for (from, to) in [
            ("max", "default"),
            ("default", "defaultRequest"),
            ("min", "defaultRequest"),
        ] {
            let Some(Value::Object(from)) = item.get(from).cloned() else {
                continue;
            };
            if from.is_empty() {
                continue;
            }
            if let Some(to) = ensure(item, to) {
                for (name, value) in from {
                    to.entry(name).or_insert(value);
                }
            }
        }
    }
}

/// The quantities of a MetricSpec's target.
pub(super) fn canonical_metrics(metric: &mut Map<String, Value>) {
    for kind in [
        "resource",
        "containerResource",
        "pods",
        "object",
        "external",
    ] {
        if let Some(target) = metric
            .get_mut(kind)
            .and_then(|source| source.get_mut("target"))
        {
            canonicalize_one(target.get_mut("value"));
            canonicalize_one(target.get_mut("averageValue"));
        }
    }
}
