//! What a namespace may have: ResourceQuota, LimitRange.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::{
    meta::{changed, namespaced},
    resources::{container_resource, is_extended, overcommits, quantity, standard_resource},
};
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_subdomain, qualified_name},
    quantity::Quantity,
    quota::{SUMMED, is_counted},
    read::{items, map, some, text},
};

const SPEC: Path = Path::root("spec");

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const CONTRARY: [[&str; 2]; 2] = [
    ["BestEffort", "NotBestEffort"],
    ["Terminating", "NotTerminating"],
];
/// What of these only pods have.
const OF_PODS: [&str; 7] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "pods",
    "requests.cpu",
    "requests.memory",
];

fn is_of_quotas(name: &str) -> bool {
    is_counted(name)
        || SUMMED.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// Whether what has a scope can have so much of the resource at all.
fn scope_has(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            ["persistentvolumeclaims", "requests.storage"].contains(&resource)
        }
        scope if SCOPES.contains(&scope) => OF_PODS.contains(&resource),
        _ => true,
    }
}

/// What the quota bounds that no object of the scope has.
fn apart(object: &Value, scope: &str) -> usize {
    let hard = map(object, "/spec/hard").into_iter().flatten();
    hard.filter(|(name, _)| is_of_quotas(name) && !scope_has(scope, name))
        .count()
}

pub(crate) fn resource_quota(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let hard = SPEC.field("hard");
    for (name, value) in map(object, "/spec/hard").into_iter().flatten() {
        let path = hard.key(name);
        let wrong = qualified_name(name);
        let is_well_formed = wrong.is_empty();
        errors.text_is(&path, name, wrong);
        if is_well_formed {
            standard_resource(name, &path, &mut errors);
        }
        if !name.contains('/') && !is_of_quotas(name) {
            errors.invalid_text(&path, name, "must be a standard resource for quota");
        }
        let amount = quantity(value, &path, &mut errors);
        let is_whole = is_counted(name) || is_extended(name);
        if is_whole && amount.is_some_and(|amount| amount.nano % 1_000_000_000 != 0) {
            errors.invalid(&path, value, "must be an integer");
        }
    }
    scopes(object, &mut errors);
    scope_selector(object, &mut errors);
    errors.into_vec()
}

fn contrary(found: &HashSet<&str>, object: &Value, errors: &mut Errors) {
    for pair in CONTRARY {
        if pair.iter().all(|scope| found.contains(scope)) {
            errors.invalid(
                &SPEC.field("scopes"),
                object.pointer("/spec/scopes").unwrap_or(&Value::Null),
                "conflicting scopes",
            );
        }
    }
}

fn scopes(object: &Value, errors: &mut Errors) {
    let path = SPEC.field("scopes");
    let all = items(object, "/spec/scopes");
    let said = object.pointer("/spec/scopes").unwrap_or(&Value::Null);
    for scope in all {
        let scope = scope.as_str().unwrap_or_default();
        if !SCOPES.contains(&scope) {
            errors.invalid(&path, said, "unsupported scope");
        }
        for _ in 0..apart(object, scope) {
            errors.invalid(&path, said, "unsupported scope applied to resource");
        }
    }
    let found = all.iter().filter_map(Value::as_str).collect();
    contrary(&found, object, errors);
}

fn scope_selector(object: &Value, errors: &mut Errors) {
    let Some(selector) = some(object, "/spec/scopeSelector") else {
        return;
    };
    let path = SPEC.field("scopeSelector");
    let path = path.field("matchExpressions");
    let mut found = HashSet::new();
    for one in items(selector, "/matchExpressions") {
        let (scope, operator) = (text(one, "/scopeName"), text(one, "/operator"));
        let values = items(one, "/values");
        found.insert(scope);
        if !SCOPES.contains(&scope) {
            errors.invalid_text(&path.field("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..apart(object, scope) {
            errors.invalid(&path, selector, "unsupported scope applied to resource");
        }
        let has_values = ["PriorityClass", "VolumeAttributesClass"].contains(&scope);
        if SCOPES.contains(&scope) && !has_values && operator != "Exists" {
            errors.invalid_text(
                &path.field("operator"),
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &path.field("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                &path.field("values"),
                &one["values"],
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid_text(
                &path.field("operator"),
                other,
                "not a valid selector operator",
            ),
        }
    }
    contrary(&found, object, errors);
}

pub(crate) fn resource_quota_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let scopes = |object: &Value| -> BTreeSet<String> {
        let all = items(object, "/spec/scopes").iter();
        all.filter_map(|it| it.as_str().map(str::to_owned))
            .collect()
    };
    if scopes(new) != scopes(old) {
        errors.invalid(
            &SPEC.field("scopes"),
            new.pointer("/spec/scopes").unwrap_or(&Value::Null),
            "field is immutable",
        );
    }
    errors.into_vec()
}

const LISTS: [&str; 5] = [
    "max",
    "min",
    "default",
    "defaultRequest",
    "maxLimitRequestRatio",
];

pub(crate) fn limit_range(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let all = SPEC.field("limits");
    let mut kinds = HashSet::new();
    for (at, item) in items(object, "/spec/limits").iter().enumerate() {
        let path = all.index(at);
        let kind = text(item, "/type");
        limit_type(kind, &path.field("type"), &mut errors);
        if !kinds.insert(kind) {
            errors.duplicate(&path.field("type"), kind);
        }
        for name in LISTS {
            limit_list(item, kind, name, &path, &mut errors);
        }
        if kind == "PersistentVolumeClaim"
            && some(item, "/min/storage").is_none()
            && some(item, "/max/storage").is_none()
        {
            errors.required(
                &path.field("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            );
        }
        let resources: BTreeSet<&String> = LISTS
            .iter()
            .filter_map(|list| item.get(*list)?.as_object())
            .flat_map(serde_json::Map::keys)
            .collect();
        for resource in resources {
            limits_agree(item, resource, &path, &mut errors);
        }
    }
    errors.into_vec()
}

fn limit_type(kind: &str, path: &Path, errors: &mut Errors) {
    let wrong = qualified_name(kind);
    if !wrong.is_empty() {
        errors.text_is(path, kind, wrong);
    } else if !kind.contains('/') && !["Container", "PersistentVolumeClaim", "Pod"].contains(&kind)
    {
        errors.invalid_text(
            path,
            kind,
            "must be a standard limit type or fully qualified",
        );
    }
}

fn limit_list(item: &Value, kind: &str, name: &str, path: &Path, errors: &mut Errors) {
    let Some(list) = item.get(name).and_then(Value::as_object) else {
        return;
    };
    let path = path.field(name);
    if kind == "Pod" && name.starts_with("default") {
        if !list.is_empty() {
            errors.forbidden(&path, "may not be specified when `type` is 'Pod'");
        }
        return;
    }
    for (resource, value) in list {
        let path = path.key(resource);
        if ["Container", "Pod"].contains(&kind) {
            container_resource(resource, &path, errors);
        } else {
            let wrong = qualified_name(resource);
            let is_well_formed = wrong.is_empty();
            errors.text_is(&path, resource, wrong);
            if is_well_formed {
                standard_resource(resource, &path, errors);
            }
        }
        quantity(value, &path, errors);
    }
}

/// What the lists say of one resource doesn't contradict itself.
fn limits_agree(item: &Value, resource: &str, path: &Path, errors: &mut Errors) {
    let amount = |list: &str| {
        let is_unread = text(item, "/type") == "Pod" && list.starts_with("default");
        let value = item.get(list).filter(|_| !is_unread)?.get(resource)?;
        Quantity::of(value)
    };
    // (less, its name, more, its name, the list that is wrong, the list whose value is shown)
    for (less, of_less, more, of_more, wrong, shown) in [
        ("min", "min", "max", "max", "min", "min"),
        (
            "min",
            "min",
            "defaultRequest",
            "default request",
            "defaultRequest",
            "defaultRequest",
        ),
        (
            "defaultRequest",
            "default request",
            "max",
            "max",
            "defaultRequest",
            "defaultRequest",
        ),
        (
            "defaultRequest",
            "default request",
            "default",
            "default limit",
            "defaultRequest",
            "defaultRequest",
        ),
        ("min", "min", "default", "default", "default", "min"),
        ("default", "default", "max", "max", "default", "max"),
    ] {
        if let (Some(low), Some(high), Some(value)) = (amount(less), amount(more), amount(shown))
            && low.nano > high.nano
        {
            errors.invalid_text(
                &path.field(wrong).key(resource),
                &value.canonical(),
                &format!(
                    "{of_less} value {} is greater than {of_more} value {}",
                    low.canonical(),
                    high.canonical()
                ),
            );
        }
    }
    if let Some(ratio) = amount("maxLimitRequestRatio") {
        let list = path.field("maxLimitRequestRatio");
        let said = ratio.canonical();
        if ratio.nano < 1_000_000_000 {
            let detail = format!("ratio {said} is less than 1");
            errors.invalid_text(&list.key(resource), &said, &detail);
        }
        if let (Some(min), Some(max)) = (amount("min"), amount("max")) {
            let most = max.nano as f64 / min.nano as f64;
            if ratio.nano as f64 / 1e9 > most {
                let detail = format!("ratio {said} is greater than max/min = {most:.6}");
                errors.invalid_text(&list.key(resource), &said, &detail);
            }
        }
    }
    if let (Some(limit), Some(request)) = (amount("default"), amount("defaultRequest"))
        && !overcommits(resource)
        && limit.nano != request.nano
    {
        errors.invalid_text(
            &path.field("defaultRequest").key(resource),
            &request.canonical(),
            &format!(
                "default value {} must equal to defaultRequest value {} in {resource}",
                limit.canonical(),
                request.canonical()
            ),
        );
    }
}
