use serde_json::Value;

use super::{AGE, NAME, column, wide};
use crate::{
    kind::{Cell, Column},
    read::{flag, items, map, text},
};

pub(crate) const NODE: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(status)),
    column("Roles", "string", Cell::Of(roles)),
    AGE,
    column(
        "Version",
        "string",
        Cell::Of(|o, _| text(o, "/status/nodeInfo/kubeletVersion").into()),
    ),
    wide(
        "Internal-IP",
        "string",
        Cell::Of(|o, _| address(o, "InternalIP")),
    ),
    wide(
        "External-IP",
        "string",
        Cell::Of(|o, _| address(o, "ExternalIP")),
    ),
    wide(
        "OS-Image",
        "string",
        Cell::Of(|o, _| known(text(o, "/status/nodeInfo/osImage"))),
    ),
    wide(
        "Kernel-Version",
        "string",
        Cell::Of(|o, _| known(text(o, "/status/nodeInfo/kernelVersion"))),
    ),
    wide(
        "Container-Runtime",
        "string",
        Cell::Of(|o, _| known(text(o, "/status/nodeInfo/containerRuntimeVersion"))),
    ),
];

fn known(text: &str) -> Value {
    if text.is_empty() { "<unknown>" } else { text }.into()
}

fn status(node: &Value, _: i64) -> Value {
    let ready = items(node, "/status/conditions")
        .iter()
        .rev()
        .find(|condition| text(condition, "/type") == "Ready")
        .map(|condition| text(condition, "/status") == "True");
    let mut status = match ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(node, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status.into()
}

fn roles(node: &Value, _: i64) -> Value {
    let mut roles: Vec<&str> = map(node, "/metadata/labels")
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.as_str() {
            "kubernetes.io/role" => value.as_str(),
            key => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    super::pod::or_none(&roles.join(","))
}

fn address(node: &Value, kind: &str) -> Value {
    let found = items(node, "/status/addresses")
        .iter()
        .find(|address| text(address, "/type") == kind);
    match found {
        Some(address) => text(address, "/address"),
        None => "<none>",
    }
    .into()
}

pub(crate) const NODE_METRICS: &[Column] = &[
    NAME,
    column(
        "cpu",
        "string",
        Cell::Of(|o, _| crate::quantity::shown(o.pointer("/usage/cpu")).into()),
    ),
    column(
        "memory",
        "string",
        Cell::Of(|o, _| crate::quantity::shown(o.pointer("/usage/memory")).into()),
    ),
    column(
        "Window",
        "string",
        Cell::Of(|o, _| text(o, "/window").into()),
    ),
];

pub(crate) const POD_METRICS: &[Column] = &[
    NAME,
    column("cpu", "string", Cell::Of(|o, _| usage(o, "/usage/cpu"))),
    column(
        "memory",
        "string",
        Cell::Of(|o, _| usage(o, "/usage/memory")),
    ),
    column(
        "Window",
        "string",
        Cell::Of(|o, _| text(o, "/window").into()),
    ),
];

fn usage(pod: &Value, pointer: &str) -> Value {
    crate::quantity::sum(
        items(pod, "/containers")
            .iter()
            .filter_map(|container| container.pointer(pointer)),
    )
    .into()
}

pub(crate) const LEASE: &[Column] = &[
    NAME,
    column(
        "Holder",
        "string",
        Cell::Of(|o, _| text(o, "/spec/holderIdentity").into()),
    ),
    AGE,
];

pub(crate) const RUNTIME_CLASS: &[Column] = &[
    NAME,
    column(
        "Handler",
        "string",
        Cell::Of(|o, _| text(o, "/handler").into()),
    ),
    AGE,
];

pub(crate) const RESOURCE_CLAIM: &[Column] =
    &[NAME, column("State", "string", Cell::Of(claim_state)), AGE];

fn claim_state(claim: &Value, _: i64) -> Value {
    let mut states = Vec::new();
    if claim.pointer("/metadata/deletionTimestamp").is_some() {
        states.push("deleted");
    }
    if claim
        .pointer("/status/allocation")
        .is_none_or(Value::is_null)
    {
        if claim.pointer("/metadata/deletionTimestamp").is_none() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !items(claim, "/status/reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    states.join(",").into()
}

pub(crate) const RESOURCE_SLICE: &[Column] = &[
    NAME,
    column(
        "Node",
        "string",
        Cell::Of(|o, _| text(o, "/spec/nodeName").into()),
    ),
    column(
        "Driver",
        "string",
        Cell::Of(|o, _| text(o, "/spec/driver").into()),
    ),
    column(
        "Pool",
        "string",
        Cell::Of(|o, _| text(o, "/spec/pool/name").into()),
    ),
    AGE,
];

pub(crate) const COMPONENT_STATUS: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(component_health)),
    column(
        "Message",
        "string",
        Cell::Of(|o, _| component(o, "/message")),
    ),
    column("Error", "string", Cell::Of(|o, _| component(o, "/error"))),
];

fn healthy(component: &Value) -> Option<&Value> {
    items(component, "/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == "Healthy")
}

fn component_health(component: &Value, _: i64) -> Value {
    match healthy(component).map(|condition| text(condition, "/status") == "True") {
        Some(true) => "Healthy",
        Some(false) => "Unhealthy",
        None => "Unknown",
    }
    .into()
}

fn component(component: &Value, field: &str) -> Value {
    healthy(component)
        .map_or("", |condition| text(condition, field))
        .into()
}
