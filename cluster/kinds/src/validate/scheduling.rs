//! Where a pod may go: tolerations, affinity, spreading.

use std::collections::HashSet;

use serde_json::Value;

use super::meta::{labels, selector};
use crate::{
    field::{Errors, Path},
    name::{label_value, qualified_name},
    read::{items, map, some, text},
};

pub(super) fn placement(spec: &Value, path: &Path, errors: &mut Errors) {
    labels(
        map(spec, "/nodeSelector"),
        &path.field("nodeSelector"),
        errors,
    );
    tolerations(spec, path, errors);
    if let Some(affinity) = some(spec, "/affinity") {
        affinities(affinity, &path.field("affinity"), errors);
    }
    spread(spec, path, errors);
    let list = path.field("schedulingGates");
    let mut gates = HashSet::new();
    for (at, gate) in items(spec, "/schedulingGates").iter().enumerate() {
        let path = list.index(at);
        let name = text(gate, "/name");
        errors.text_is(&path.field("name"), name, qualified_name(name));
        if !gates.insert(name) {
            errors.duplicate(&path, name);
        }
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

fn tolerations(spec: &Value, path: &Path, errors: &mut Errors) {
    let list = path.field("tolerations");
    for (at, toleration) in items(spec, "/tolerations").iter().enumerate() {
        let path = list.index(at);
        let (key, operator, value) = (
            text(toleration, "/key"),
            text(toleration, "/operator"),
            text(toleration, "/value"),
        );
        if !key.is_empty() {
            errors.text_is(&path.field("key"), key, qualified_name(key));
        } else if operator != "Exists" {
            errors.invalid_text(
                &path.field("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        match operator {
            "" | "Equal" => errors.text_is(&path.field("value"), value, label_value(value)),
            "Exists" if !value.is_empty() => {
                errors.invalid(
                    &path.field("operator"),
                    toleration,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" | "Lt" | "Gt" => {}
            other => errors.not_supported(&path.field("operator"), other, &["Equal", "Exists"]),
        }
        let effect = text(toleration, "/effect");
        errors.maybe_one_of(&path.field("effect"), effect, &EFFECTS);
        if some(toleration, "/tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.invalid_text(
                &path.field("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}

/// Of a node: what keeps pods away.
pub(super) fn taints(taints: &[Value], list: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (at, taint) in taints.iter().enumerate() {
        let path = list.index(at);
        let (key, value, effect) = (
            text(taint, "/key"),
            text(taint, "/value"),
            text(taint, "/effect"),
        );
        errors.text_is(&path.field("key"), key, qualified_name(key));
        errors.text_is(&path.field("value"), value, label_value(value));
        errors.one_of(&path.field("effect"), effect, &EFFECTS);
        if !seen.insert((key, effect)) {
            errors.duplicate_value(&path, taint);
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = term.get("weight").unwrap_or(&Value::Null);
    if !weight
        .as_i64()
        .is_some_and(|weight| (1..=100).contains(&weight))
    {
        errors.invalid(&path.field("weight"), weight, "must be in the range 1-100");
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn affinities(affinity: &Value, path: &Path, errors: &mut Errors) {
    if let Some(node) = some(affinity, "/nodeAffinity") {
        let path = path.field("nodeAffinity");
        if let Some(required) = node.get(REQUIRED).filter(|value| !value.is_null()) {
            node_selector(required, &path.field(REQUIRED), errors);
        }
        let list = path.field(PREFERRED);
        for (at, preferred) in list_of(node, PREFERRED).iter().enumerate() {
            let path = list.index(at);
            weight(preferred, &path, errors);
            if let Some(term) = some(preferred, "/preference") {
                node_term(term, &path.field("preference"), errors);
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(kind).filter(|value| !value.is_null()) else {
            continue;
        };
        let path = path.field(kind);
        let list = path.field(REQUIRED);
        for (at, term) in list_of(pods, REQUIRED).iter().enumerate() {
            pod_term(term, &list.index(at), errors);
        }
        let list = path.field(PREFERRED);
        for (at, preferred) in list_of(pods, PREFERRED).iter().enumerate() {
            let path = list.index(at);
            weight(preferred, &path, errors);
            pod_term(
                preferred.get("podAffinityTerm").unwrap_or(&Value::Null),
                &path.field("podAffinityTerm"),
                errors,
            );
        }
    }
}

fn list_of<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object
        .get(name)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// Nodes by their labels and fields.
pub(super) fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let list = path.field("nodeSelectorTerms");
    let terms = items(selector, "/nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&list, "must have at least one node selector term");
    }
    for (at, term) in terms.iter().enumerate() {
        node_term(term, &list.index(at), errors);
    }
}

fn node_term(term: &Value, path: &Path, errors: &mut Errors) {
    for (name, fields) in [("matchExpressions", false), ("matchFields", true)] {
        let list = path.field(name);
        for (at, requirement) in list_of(term, name).iter().enumerate() {
            let path = list.index(at);
            let values = items(requirement, "/values");
            match text(requirement, "/operator") {
                "In" | "NotIn" if fields && values.len() != 1 => {
                    errors.required(&path.field("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
                }
                "In" | "NotIn" if values.is_empty() => errors.required(
                    &path.field("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ),
                "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                    &path.field("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ),
                "Gt" | "Lt" if values.len() != 1 => errors.required(
                    &path.field("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ),
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => errors.invalid_text(
                    &path.field("operator"),
                    other,
                    "not a valid selector operator",
                ),
            }
            let key = text(requirement, "/key");
            if !fields {
                errors.text_is(&path.field("key"), key, qualified_name(key));
            } else if key != "metadata.name" {
                errors.invalid_text(&path.field("key"), key, "not a valid field selector key");
            }
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut Errors) {
    for name in ["labelSelector", "namespaceSelector"] {
        if let Some(value) = term.get(name).filter(|value| !value.is_null()) {
            selector(value, &path.field(name), errors);
        }
    }
    let key = text(term, "/topologyKey");
    if key.is_empty() {
        errors.required(&path.field("topologyKey"), "can not be empty");
    }
    errors.text_is(&path.field("topologyKey"), key, qualified_name(key));
}

fn spread(spec: &Value, path: &Path, errors: &mut Errors) {
    let list = path.field("topologySpreadConstraints");
    let mut seen = HashSet::new();
    for (at, constraint) in items(spec, "/topologySpreadConstraints").iter().enumerate() {
        let path = list.index(at);
        let skew = constraint.get("maxSkew").unwrap_or(&Value::Null);
        if skew.as_i64().is_none_or(|skew| skew <= 0) {
            errors.invalid(&path.field("maxSkew"), skew, "must be greater than zero");
        }
        let (key, action) = (
            text(constraint, "/topologyKey"),
            text(constraint, "/whenUnsatisfiable"),
        );
        if key.is_empty() {
            errors.required(&path.field("topologyKey"), "can not be empty");
        } else {
            errors.text_is(&path.field("topologyKey"), key, qualified_name(key));
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action) {
            errors.not_supported(
                &path.field("whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        if !seen.insert((key, action)) {
            errors.duplicate(
                &path.field("{topologyKey, whenUnsatisfiable}"),
                &format!("{{{key}, {action}}}"),
            );
        }
        if let Some(min) = some(constraint, "/minDomains") {
            if min.as_i64().is_none_or(|min| min <= 0) {
                errors.invalid(&path.field("minDomains"), min, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                errors.invalid(
                    &path.field("minDomains"),
                    min,
                    &format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                    ),
                );
            }
        }
        if let Some(value) = some(constraint, "/labelSelector") {
            selector(value, &path.field("labelSelector"), errors);
        }
    }
}
