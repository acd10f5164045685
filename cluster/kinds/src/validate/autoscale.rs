//! HorizontalPodAutoscaler.

use serde_json::Value;

use super::{
    meta::{changed, namespaced},
    resources::{container_resource, quantity},
};
use crate::{
    autoscaler,
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_label, dns_subdomain, path_segment},
    quantity::Quantity,
    read::{items, some, text},
};

const SPEC: Path = Path::root("spec");
/// An hour.
const WINDOW_MOST: i64 = 3600;
const PERIOD_MOST: i64 = 1800;

/// As upstream's, by what v2 makes of it.
pub(crate) fn horizontal_pod_autoscaler_v1(object: &Value) -> Vec<Invalid> {
    horizontal_pod_autoscaler(&autoscaler::as_v2(object))
}

pub(crate) fn horizontal_pod_autoscaler_v1_create(object: &Value) -> Vec<Invalid> {
    horizontal_pod_autoscaler_create(&autoscaler::as_v2(object))
}

pub(crate) fn horizontal_pod_autoscaler_v1_update(new: &Value, old: &Value) -> Vec<Invalid> {
    horizontal_pod_autoscaler_update(&autoscaler::as_v2(new), &autoscaler::as_v2(old))
}

pub(crate) fn horizontal_pod_autoscaler(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let int = |name: &str| {
        object
            .get("spec")
            .and_then(|spec| spec.get(name))
            .and_then(Value::as_i64)
    };
    let (min, max) = (int("minReplicas"), int("maxReplicas").unwrap_or(0));
    if let Some(min) = min
        && min < 1
    {
        errors.invalid(
            &SPEC.field("minReplicas"),
            &min.into(),
            "must be greater than or equal to 1",
        );
    }
    match max {
        0 => errors.required(&SPEC.field("maxReplicas"), "must be set and greater than 0"),
        ..0 => errors.invalid(
            &SPEC.field("maxReplicas"),
            &max.into(),
            "must be greater than or equal to 1",
        ),
        _ => {}
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(
            &SPEC.field("maxReplicas"),
            &max.into(),
            "must be greater than or equal to `minReplicas`",
        );
    }
    let target = object.pointer("/spec/scaleTargetRef");
    named(
        target.unwrap_or(&Value::Null),
        &SPEC.field("scaleTargetRef"),
        &mut errors,
    );
    let list = SPEC.field("metrics");
    for (at, metric) in items(object, "/spec/metrics").iter().enumerate() {
        metric_spec(metric, &list.index(at), &mut errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let Some(rules) = object
            .pointer("/spec/behavior")
            .and_then(|behavior| behavior.get(direction))
            .filter(|rules| !rules.is_null())
        else {
            continue;
        };
        let path = SPEC.field("behavior");
        scaling_rules(rules, &path.field(direction), &mut errors);
    }
    errors.into_vec()
}

/// What is scaled is of a group; but for a ReplicationController, which has none.
fn target_has_group(object: &Value, errors: &mut Errors) {
    let target = SPEC.field("scaleTargetRef");
    let version = text(object, "/spec/scaleTargetRef/apiVersion");
    let may_be_core = text(object, "/spec/scaleTargetRef/kind") == "ReplicationController";
    api_version(version, may_be_core, &target.field("apiVersion"), errors);
}

pub(crate) fn horizontal_pod_autoscaler_create(object: &Value) -> Vec<Invalid> {
    let mut errors = Errors::default();
    target_has_group(object, &mut errors);
    errors.into_vec()
}

pub(crate) fn horizontal_pod_autoscaler_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let target = |object: &Value| {
        let target = |name: &str| text(object, &format!("/spec/scaleTargetRef/{name}")).to_owned();
        (target("apiVersion"), target("kind"))
    };
    if target(new) != target(old) {
        target_has_group(new, &mut errors);
    }
    errors.into_vec()
}

/// `GROUP/VERSION`, or a version alone, which is of the core's.
fn api_version(version: &str, may_be_core: bool, path: &Path, errors: &mut Errors) {
    match version.matches('/').count() {
        0 | 1 if may_be_core => {}
        0 => errors.invalid_text(path, version, "apiVersion must specify API group"),
        1 if version.starts_with('/') => {
            errors.invalid_text(path, version, "apiVersion must specify API group");
        }
        1 => {}
        _ => errors.invalid_text(
            path,
            version,
            &format!("unexpected GroupVersion string: {version}"),
        ),
    }
}

/// Kind and name.
fn named(target: &Value, path: &Path, errors: &mut Errors) {
    for name in ["kind", "name"] {
        let value = target.get(name).and_then(Value::as_str).unwrap_or_default();
        if value.is_empty() {
            errors.required(&path.field(name), "");
        } else {
            errors.text_is(&path.field(name), value, path_segment(value));
        }
    }
}

/// Types and their fields, in the order in which upstream looks at them: only the first that is there is read.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
/// In the order of the alphabet.
const TYPES: [&str; 5] = [
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

fn metric_spec(metric: &Value, path: &Path, errors: &mut Errors) {
    let kind = text(metric, "/type");
    if kind.is_empty() {
        errors.required(&path.field("type"), "must specify a metric source type");
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind);
    if expected.is_none() {
        errors.not_supported(&path.field("type"), kind, &TYPES);
    }
    let has = |field: &str| metric.get(field).is_some_and(|source| !source.is_null());
    let present: Vec<&str> = SOURCES
        .iter()
        .map(|(_, field)| *field)
        .filter(|field| has(field))
        .collect();
    if let Some(first) = present.first() {
        source(&metric[*first], first, &path.field(first), errors);
    }
    match expected {
        Some((_, field)) if !has(field) => errors.required(
            &path.field(field),
            "must populate information for the given metric source",
        ),
        Some(_) => {}
        // upstream says it twice
        None => errors.not_supported(&path.field("type"), kind, &TYPES),
    }
    if present.len() > 1 {
        let others = present
            .iter()
            .filter(|field| expected.is_none_or(|(_, expected)| expected != *field));
        for field in others {
            errors.forbidden(
                &path.field(field),
                "must populate the given metric source only",
            );
        }
    }
}

fn source(source: &Value, field: &str, path: &Path, errors: &mut Errors) {
    match field {
        "resource" | "containerResource" => resource_name(source, field, path, errors),
        _ => {
            if field == "object" {
                let described = path.field("describedObject");
                let object = source.get("describedObject").unwrap_or(&Value::Null);
                named(object, &described, errors);
                let version = text(object, "/apiVersion");
                api_version(version, true, &described.field("apiVersion"), errors);
            }
            let path = path.field("metric");
            match text(source, "/metric/name") {
                "" => errors.required(&path.field("name"), "must specify a metric name"),
                name => errors.text_is(&path.field("name"), name, path_segment(name)),
            }
        }
    }
    let path = path.field("target");
    let target = source.get("target").unwrap_or(&Value::Null);
    metric_target(target, &path, errors);
    let has = |name: &str| target.get(name).is_some_and(|value| !value.is_null());
    let (value, average) = (has("value"), has("averageValue"));
    match field {
        "object" if !value && !average => errors.required(
            &path.field("averageValue"),
            "must set either a target value or averageValue",
        ),
        "external" if !value && !average => errors.required(
            &path.field("averageValue"),
            "must set either a target value for metric or a per-pod target",
        ),
        "external" if value && average => errors.forbidden(
            &path.field("value"),
            "may not set both a target value for metric and a per-pod target",
        ),
        "pods" if !average => errors.required(
            &path.field("averageValue"),
            "must specify a positive target averageValue",
        ),
        "resource" | "containerResource" => match (has("averageUtilization"), average) {
            (false, false) => errors.required(
                &path.field("averageUtilization"),
                "must set either a target raw value or a target utilization",
            ),
            (true, true) => errors.forbidden(
                &path.field("averageValue"),
                "may not set both a target raw value and a target utilization",
            ),
            _ => {}
        },
        _ => {}
    }
}

fn resource_name(source: &Value, field: &str, path: &Path, errors: &mut Errors) {
    let is_container = field == "containerResource";
    match text(source, "/name") {
        "" => errors.required(&path.field("name"), "must specify a resource name"),
        name if is_container => container_resource(name, &path.field("name"), errors),
        _ => {}
    }
    if is_container {
        match text(source, "/container") {
            "" => errors.required(&path.field("container"), "must specify a container"),
            name => errors.text_is(&path.field("container"), name, dns_label(name)),
        }
    }
}

fn metric_target(target: &Value, path: &Path, errors: &mut Errors) {
    let kind = text(target, "/type");
    if kind.is_empty() {
        errors.required(&path.field("type"), "must specify a metric target type");
    }
    if !["AverageValue", "Utilization", "Value"].contains(&kind) {
        errors.invalid_text(
            &path.field("type"),
            kind,
            "must be either Utilization, Value, or AverageValue",
        );
    }
    for name in ["value", "averageValue"] {
        if let Some(value) = target.get(name).filter(|value| !value.is_null())
            && Quantity::of(value).is_none_or(|quantity| quantity.nano <= 0)
        {
            errors.invalid(&path.field(name), value, "must be positive");
        }
    }
    errors.positive(
        &path.field("averageUtilization"),
        target.get("averageUtilization"),
    );
}

fn scaling_rules(rules: &Value, path: &Path, errors: &mut Errors) {
    if let Some(window) = some(rules, "/stabilizationWindowSeconds") {
        let path = path.field("stabilizationWindowSeconds");
        match window.as_i64() {
            Some(..0) => {
                errors.invalid(&path, window, "must be greater than or equal to zero");
            }
            Some(0..=WINDOW_MOST) => {}
            _ => errors.invalid(
                &path,
                window,
                &format!("must be less than or equal to {WINDOW_MOST}"),
            ),
        }
    }
    errors.maybe_one_of(
        &path.field("selectPolicy"),
        text(rules, "/selectPolicy"),
        &["Disabled", "Max", "Min"],
    );
    let list = path.field("policies");
    let policies = items(rules, "/policies");
    if policies.is_empty() {
        errors.required(&list, "must specify at least one Policy");
    }
    for (at, policy) in policies.iter().enumerate() {
        let path = list.index(at);
        let kind = text(policy, "/type");
        if !["Percent", "Pods"].contains(&kind) {
            errors.not_supported(&path.field("type"), kind, &["Percent", "Pods"]);
        }
        let number = |name: &str| policy.get(name).and_then(Value::as_i64).unwrap_or(0);
        for name in ["value", "periodSeconds"] {
            if number(name) <= 0 {
                errors.invalid(
                    &path.field(name),
                    &number(name).into(),
                    "must be greater than zero",
                );
            }
        }
        let period = number("periodSeconds");
        if period > PERIOD_MOST {
            errors.invalid(
                &path.field("periodSeconds"),
                &period.into(),
                &format!("must be less than or equal to {PERIOD_MOST}"),
            );
        }
    }
    if let Some(tolerance) = some(rules, "/tolerance") {
        quantity(tolerance, &path.field("tolerance"), errors);
    }
}
