//! Volumes, and what else holds data: config maps, secrets, quotas.

use serde_json::Value;

use super::{AGE, NAME, column, wide, workload::count};
use crate::{
    kind::{Cell, Column},
    quantity::shown,
    read::{flag, items, map, number, some, text},
};

pub(crate) const CONFIG_MAP: &[Column] = &[
    NAME,
    column(
        "Data",
        "string",
        Cell::Of(|o, _| (size(o, "/data") + size(o, "/binaryData")).into()),
    ),
    AGE,
];

pub(crate) const SECRET: &[Column] = &[
    NAME,
    column("Type", "string", Cell::Of(|o, _| text(o, "/type").into())),
    column("Data", "string", Cell::Of(|o, _| size(o, "/data").into())),
    AGE,
];

fn size(object: &Value, pointer: &str) -> usize {
    map(object, pointer).map_or(0, serde_json::Map::len)
}

pub(crate) const SERVICE_ACCOUNT: &[Column] = &[
    NAME,
    column(
        "Secrets",
        "string",
        Cell::Of(|o, _| items(o, "/secrets").len().into()),
    ),
    AGE,
];

pub(crate) const NAMESPACE: &[Column] = &[
    NAME,
    column(
        "Status",
        "string",
        Cell::Of(|o, _| text(o, "/status/phase").into()),
    ),
    AGE,
];

pub(crate) const RESOURCE_QUOTA: &[Column] = &[
    NAME,
    column("Request", "string", Cell::Of(|o, _| quota(o, false))),
    column("Limit", "string", Cell::Of(|o, _| quota(o, true))),
    AGE,
];

fn quota(quota: &Value, limits: bool) -> Value {
    let used = |resource: &str| map(quota, "/status/used").and_then(|used| used.get(resource));
    let parts: Vec<_> = map(quota, "/status/hard")
        .into_iter()
        .flatten()
        .filter(|(resource, _)| resource.starts_with("limits.") == limits)
        .map(|(resource, hard)| {
            format!(
                "{resource}: {}/{}",
                shown(used(resource)),
                shown(Some(hard))
            )
        })
        .collect();
    parts.join(", ").into()
}

pub(crate) const POD_DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    column(
        "Min Available",
        "string",
        Cell::Of(|o, _| int_or_string(o, "/spec/minAvailable")),
    ),
    column(
        "Max Unavailable",
        "string",
        Cell::Of(|o, _| int_or_string(o, "/spec/maxUnavailable")),
    ),
    count!("Allowed Disruptions", "/status/disruptionsAllowed"),
    AGE,
];

fn int_or_string(object: &Value, pointer: &str) -> Value {
    match some(object, pointer) {
        None => "N/A".into(),
        Some(Value::String(text)) => text.clone().into(),
        Some(value) => value.to_string().into(),
    }
}

pub(crate) const PRIORITY_CLASS: &[Column] = &[
    NAME,
    count!("Value", "/value"),
    column(
        "Global-Default",
        "boolean",
        Cell::Of(|o, _| flag(o, "/globalDefault").into()),
    ),
    AGE,
    column(
        "PreemptionPolicy",
        "string",
        Cell::Of(|o, _| match text(o, "/preemptionPolicy") {
            "" => "PreemptLowerPriority".into(),
            policy => policy.into(),
        }),
    ),
];

pub(crate) const PERSISTENT_VOLUME: &[Column] = &[
    NAME,
    column(
        "Capacity",
        "string",
        Cell::Of(|o, _| shown(o.pointer("/spec/capacity/storage")).into()),
    ),
    column(
        "Access Modes",
        "string",
        Cell::Of(|o, _| access_modes(o, "/spec/accessModes")),
    ),
    column(
        "Reclaim Policy",
        "string",
        Cell::Of(|o, _| text(o, "/spec/persistentVolumeReclaimPolicy").into()),
    ),
    column("Status", "string", Cell::Of(phase)),
    column("Claim", "string", Cell::Of(claim)),
    column("StorageClass", "string", Cell::Of(storage_class)),
    column(
        "VolumeAttributesClass",
        "string",
        Cell::Of(attributes_class),
    ),
    column(
        "Reason",
        "string",
        Cell::Of(|o, _| text(o, "/status/reason").into()),
    ),
    AGE,
    wide(
        "VolumeMode",
        "string",
        Cell::Of(|o, _| or_unset(o, "/spec/volumeMode")),
    ),
];

pub(crate) const PERSISTENT_VOLUME_CLAIM: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(phase)),
    column(
        "Volume",
        "string",
        Cell::Of(|o, _| text(o, "/spec/volumeName").into()),
    ),
    column("Capacity", "string", Cell::Of(claim_capacity)),
    column("Access Modes", "string", Cell::Of(claim_access_modes)),
    column("StorageClass", "string", Cell::Of(storage_class)),
    column(
        "VolumeAttributesClass",
        "string",
        Cell::Of(attributes_class),
    ),
    AGE,
    wide(
        "VolumeMode",
        "string",
        Cell::Of(|o, _| or_unset(o, "/spec/volumeMode")),
    ),
];

fn or_unset(object: &Value, pointer: &str) -> Value {
    match some(object, pointer).and_then(Value::as_str) {
        Some(text) => text.into(),
        None => "<unset>".into(),
    }
}

fn phase(object: &Value, _: i64) -> Value {
    if some(object, "/metadata/deletionTimestamp").is_some() {
        return "Terminating".into();
    }
    text(object, "/status/phase").into()
}

fn access_modes(object: &Value, pointer: &str) -> Value {
    let modes = items(object, pointer);
    let short: Vec<_> = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .into_iter()
    .filter(|(mode, _)| modes.iter().any(|one| one.as_str() == Some(mode)))
    .map(|(_, short)| short)
    .collect();
    short.join(",").into()
}

fn claim(volume: &Value, _: i64) -> Value {
    match some(volume, "/spec/claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")).into(),
        None => "".into(),
    }
}

/// The annotation is older than the field, and wins.
fn storage_class(object: &Value, _: i64) -> Value {
    match map(object, "/metadata/annotations")
        .and_then(|annotations| annotations.get("volume.beta.kubernetes.io/storage-class"))
        .and_then(Value::as_str)
    {
        Some(class) => class.into(),
        None => text(object, "/spec/storageClassName").into(),
    }
}

fn attributes_class(object: &Value, _: i64) -> Value {
    or_unset(object, "/spec/volumeAttributesClassName")
}

/// A claim shows what it has, which is nothing until it is bound.
fn claim_capacity(claim: &Value, _: i64) -> Value {
    if text(claim, "/spec/volumeName").is_empty() {
        return "".into();
    }
    shown(claim.pointer("/status/capacity/storage")).into()
}

fn claim_access_modes(claim: &Value, _: i64) -> Value {
    if text(claim, "/spec/volumeName").is_empty() {
        return "".into();
    }
    access_modes(claim, "/status/accessModes")
}

pub(crate) const STORAGE_CLASS: &[Column] = &[
    Column {
        cell: Cell::Of(storage_class_name),
        ..NAME
    },
    column(
        "Provisioner",
        "string",
        Cell::Of(|o, _| text(o, "/provisioner").into()),
    ),
    column(
        "ReclaimPolicy",
        "string",
        Cell::Of(|o, _| or(text(o, "/reclaimPolicy"), "Delete")),
    ),
    column(
        "VolumeBindingMode",
        "string",
        Cell::Of(|o, _| or(text(o, "/volumeBindingMode"), "Immediate")),
    ),
    column(
        "AllowVolumeExpansion",
        "string",
        Cell::Of(|o, _| flag(o, "/allowVolumeExpansion").into()),
    ),
    AGE,
];

fn or(text: &str, default: &str) -> Value {
    if text.is_empty() { default } else { text }.into()
}

fn storage_class_name(class: &Value, _: i64) -> Value {
    let name = text(class, "/metadata/name");
    let default = map(class, "/metadata/annotations").is_some_and(|annotations| {
        [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ]
        .iter()
        .any(|key| annotations.get(*key).and_then(Value::as_str) == Some("true"))
    });
    if default {
        format!("{name} (default)").into()
    } else {
        name.into()
    }
}

pub(crate) const VOLUME_ATTRIBUTES_CLASS: &[Column] = &[
    NAME,
    column(
        "DriverName",
        "string",
        Cell::Of(|o, _| text(o, "/driverName").into()),
    ),
    AGE,
];

pub(crate) const VOLUME_ATTACHMENT: &[Column] = &[
    NAME,
    Column {
        format: "name",
        ..column(
            "Attacher",
            "string",
            Cell::Of(|o, _| text(o, "/spec/attacher").into()),
        )
    },
    column(
        "PV",
        "string",
        Cell::Of(|o, _| text(o, "/spec/source/persistentVolumeName").into()),
    ),
    column(
        "Node",
        "string",
        Cell::Of(|o, _| text(o, "/spec/nodeName").into()),
    ),
    column(
        "Attached",
        "boolean",
        Cell::Of(|o, _| flag(o, "/status/attached").into()),
    ),
    AGE,
];

pub(crate) const CSI_NODE: &[Column] = &[
    NAME,
    column(
        "Drivers",
        "integer",
        Cell::Of(|o, _| items(o, "/spec/drivers").len().into()),
    ),
    AGE,
];

pub(crate) const CSI_DRIVER: &[Column] = &[
    NAME,
    column(
        "AttachRequired",
        "boolean",
        Cell::Of(|o, _| (o.pointer("/spec/attachRequired") != Some(&Value::Bool(false))).into()),
    ),
    column(
        "PodInfoOnMount",
        "boolean",
        Cell::Of(|o, _| flag(o, "/spec/podInfoOnMount").into()),
    ),
    column(
        "StorageCapacity",
        "boolean",
        Cell::Of(|o, _| flag(o, "/spec/storageCapacity").into()),
    ),
    column("TokenRequests", "string", Cell::Of(token_requests)),
    column(
        "RequiresRepublish",
        "boolean",
        Cell::Of(|o, _| flag(o, "/spec/requiresRepublish").into()),
    ),
    column("Modes", "string", Cell::Of(modes)),
    AGE,
];

fn token_requests(driver: &Value, _: i64) -> Value {
    match some(driver, "/spec/tokenRequests") {
        Some(_) => super::pod::names(driver, "/spec/tokenRequests", "/audience"),
        None => "<unset>".into(),
    }
}

fn modes(driver: &Value, _: i64) -> Value {
    let modes: Vec<_> = items(driver, "/spec/volumeLifecycleModes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    super::pod::or_none(&modes.join(","))
}

pub(crate) const CSI_STORAGE_CAPACITY: &[Column] = &[
    NAME,
    column(
        "StorageClassName",
        "string",
        Cell::Of(|o, _| text(o, "/storageClassName").into()),
    ),
    column(
        "Capacity",
        "string",
        Cell::Of(|o, _| match some(o, "/capacity") {
            Some(capacity) => shown(Some(capacity)).into(),
            None => "<unset>".into(),
        }),
    ),
];
