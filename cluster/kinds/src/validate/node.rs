//! Nodes, namespaces, leases, classes.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    meta::{changed, cluster, namespaced},
    network::cidr,
    resources::list,
    scheduling::taints,
};
use crate::{
    field::{Path, same},
    kind::Invalid,
    name::{dns_label, dns_subdomain, qualified_name},
    read::{items, some, text},
};

const SPEC: Path = Path::root("spec");

pub(crate) fn node(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    taints(
        items(object, "/spec/taints"),
        &SPEC.field("taints"),
        &mut errors,
    );
    let all = SPEC.field("podCIDRs");
    let cidrs = items(object, "/spec/podCIDRs");
    for (at, one) in cidrs.iter().enumerate() {
        cidr(
            one.as_str().unwrap_or_default(),
            &all.index(at),
            &mut errors,
        );
    }
    if cidrs.len() > 2 {
        errors.invalid(
            &all,
            &object["spec"]["podCIDRs"],
            "may specify no more than one CIDR for each IP family",
        );
    }
    let status = Path::root("status");
    let addresses = status.field("addresses");
    let mut seen = std::collections::HashSet::new();
    for (at, address) in items(object, "/status/addresses").iter().enumerate() {
        let (kind, value) = (text(address, "/type"), text(address, "/address"));
        let path = addresses.index(at);
        if ["InternalIP", "ExternalIP"].contains(&kind) && value.parse::<IpAddr>().is_err() {
            super::pod::ip(value, &path.field("address"), &mut errors);
        }
        if !seen.insert((kind, value)) {
            errors.duplicate_value(&path, address);
        }
    }
    for name in ["capacity", "allocatable"] {
        list(
            object.get("status").and_then(|status| status.get(name)),
            &status.field(name),
            &mut errors,
        );
    }
    errors.into_vec()
}

/// What a node is told once, it keeps.
pub(crate) fn node_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    for (name, detail) in [
        (
            "podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ),
        (
            "providerID",
            "node updates may not change providerID except from \"\" to valid",
        ),
    ] {
        let of = |object: &Value| {
            object
                .get("spec")
                .and_then(|spec| spec.get(name))
                .cloned()
                .unwrap_or_default()
        };
        let (now, before) = (of(new), of(old));
        if !same(&before, &Value::Null) && !same(&now, &before) {
            errors.forbidden(&SPEC.field(name), detail);
        }
    }
    errors.into_vec()
}

pub(crate) fn namespace(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_label);
    let finalizers = SPEC.field("finalizers");
    for (at, finalizer) in items(object, "/spec/finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let wrong = qualified_name(finalizer);
        if wrong.is_empty() && finalizer != "kubernetes" && !finalizer.contains('/') {
            errors.invalid_text(
                &finalizers.index(at),
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
        errors.text_is(&finalizers.index(at), finalizer, wrong);
    }
    errors.into_vec()
}

pub(crate) fn lease(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    errors.positive(
        &SPEC.field("leaseDurationSeconds"),
        object.pointer("/spec/leaseDurationSeconds"),
    );
    errors.not_negative(
        &SPEC.field("leaseTransitions"),
        object.pointer("/spec/leaseTransitions"),
    );
    if some(object, "/spec/holderIdentity").and_then(Value::as_str) == Some("") {
        errors.invalid_text(&SPEC.field("holderIdentity"), "", "must not be empty");
    }
    errors.into_vec()
}

/// Above this are the system's own.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

pub(crate) fn priority_class(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let name = text(object, "/metadata/name");
    let value = object.get("value").and_then(Value::as_i64).unwrap_or(0);
    let is_default = object.get("globalDefault") == Some(&Value::Bool(true));
    let known = [
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ];
    if name.starts_with("system-") {
        let why = match known.iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, of)) if *of != value => {
                Some(format!("value of {name} PriorityClass must be {of}"))
            }
            Some(_) if is_default => Some(format!(
                "globalDefault of {name} PriorityClass must be false"
            )),
            Some(_) => None,
        };
        if let Some(why) = why {
            errors.forbidden(
                &Path::root("metadata").field("name"),
                &format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                ),
            );
        }
    } else if value > HIGHEST_PRIORITY {
        errors.forbidden(
            &Path::root("value"),
            &format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}"),
        );
    }
    errors.maybe_one_of(
        &Path::root("preemptionPolicy"),
        text(object, "/preemptionPolicy"),
        &["Never", "PreemptLowerPriority"],
    );
    errors.into_vec()
}

pub(crate) fn priority_class_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let value = |object: &Value| object.get("value").and_then(Value::as_i64).unwrap_or(0);
    if value(new) != value(old) {
        errors.forbidden(&Path::root("value"), "may not be changed in an update.");
    }
    errors.immutable(
        &Path::root("preemptionPolicy"),
        new.get("preemptionPolicy"),
        old.get("preemptionPolicy"),
    );
    errors.into_vec()
}

pub(crate) fn runtime_class(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let handler = text(object, "/handler");
    errors.text_is(&Path::root("handler"), handler, dns_label(handler));
    list(
        object.pointer("/overhead/podFixed"),
        &Path::root("overhead").field("podFixed"),
        &mut errors,
    );
    errors.into_vec()
}

pub(crate) fn runtime_class_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(
        &Path::root("handler"),
        new.get("handler"),
        old.get("handler"),
    );
    errors.into_vec()
}
