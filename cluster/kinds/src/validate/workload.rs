//! What makes pods after a template: apps/v1, and ReplicationController.

use serde_json::{Value, json};

use super::{
    meta::{changed, namespaced, selector},
    pod::template,
    resources::{at_most_all, int_or_percent, is_zero, percent},
};
use crate::{
    autoscaler,
    field::{Errors, Path, same},
    kind::Invalid,
    name::{dns_label, dns_subdomain},
    read::{items, map, some, text},
    selector::selects,
};

const SPEC: Path = Path::root("spec");

/// selector and template, of which the one must take the pods of the other.
fn selector_and_template(object: &Value, kind: &str, errors: &mut Errors) {
    let path = SPEC.field("selector");
    let null = &Value::Null;
    match some(object, "/spec/selector") {
        None => errors.required(&path, ""),
        Some(value) => {
            selector(value, &path, errors);
            if same(value, &json!({}))
                || (map(value, "/matchLabels").is_none_or(serde_json::Map::is_empty)
                    && items(value, "/matchExpressions").is_empty())
            {
                errors.invalid(
                    &path,
                    value,
                    &format!("empty selector is invalid for {kind}"),
                );
            }
            let labels = map(object, "/spec/template/metadata/labels");
            if errors.is_empty() && !selects(value, labels) {
                errors.invalid(
                    &SPEC.field("template").field("metadata").field("labels"),
                    object
                        .pointer("/spec/template/metadata/labels")
                        .unwrap_or(&json!({})),
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    template(
        object.pointer("/spec/template").unwrap_or(null),
        &SPEC.field("template"),
        errors,
    );
    endless(object, kind, errors);
}

/// Pods of what keeps a number of them running run for ever.
fn endless(object: &Value, kind: &str, errors: &mut Errors) {
    let path = SPEC.field("template");
    let path = path.field("spec");
    let policy = text(object, "/spec/template/spec/restartPolicy");
    if ["Never", "OnFailure"].contains(&policy) {
        errors.not_supported(&path.field("restartPolicy"), policy, &["Always"]);
    }
    if some(object, "/spec/template/spec/activeDeadlineSeconds").is_some() {
        let owner = match kind {
            "daemonset" => "DaemonSet",
            "statefulset" => "StatefulSet",
            "replication controller" => "ReplicationController",
            _ => "ReplicaSet",
        };
        errors.forbidden(
            &path.field("activeDeadlineSeconds"),
            &format!("activeDeadlineSeconds in {owner} is not Supported"),
        );
    }
}

fn counts(object: &Value, names: &[&str], errors: &mut Errors) {
    for name in names {
        errors.not_negative(
            &SPEC.field(name),
            object.get("spec").and_then(|spec| spec.get(*name)),
        );
    }
}

pub(crate) fn deployment(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    selector_and_template(object, "deployment", &mut errors);
    counts(
        object,
        &[
            "replicas",
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ],
        &mut errors,
    );
    let seconds = |name: &str| {
        object
            .get("spec")
            .and_then(|spec| spec.get(name))
            .and_then(Value::as_i64)
    };
    if let Some(deadline) = seconds("progressDeadlineSeconds")
        && deadline <= seconds("minReadySeconds").unwrap_or(0)
    {
        errors.invalid(
            &SPEC.field("progressDeadlineSeconds"),
            &deadline.into(),
            "must be greater than minReadySeconds",
        );
    }
    let path = SPEC.field("strategy");
    let rolling = some(object, "/spec/strategy/rollingUpdate");
    match text(object, "/spec/strategy/type") {
        "Recreate" if rolling.is_some() => errors.forbidden(
            &path.field("rollingUpdate"),
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        "Recreate" => {}
        "RollingUpdate" => match rolling {
            None => errors.required(
                &path.field("rollingUpdate"),
                "this should be defaulted and never be nil",
            ),
            Some(rolling) => rolling_update(rolling, &path.field("rollingUpdate"), &mut errors),
        },
        kind => errors.not_supported(&path.field("type"), kind, &["Recreate", "RollingUpdate"]),
    }
    errors.into_vec()
}

fn rolling_update(rolling: &Value, path: &Path, errors: &mut Errors) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    int_or_percent(unavailable, &path.field("maxUnavailable"), errors);
    int_or_percent(surge, &path.field("maxSurge"), errors);
    if is_zero(unavailable) && is_zero(surge) {
        errors.invalid(
            &path.field("maxUnavailable"),
            unavailable.unwrap_or(&Value::Null),
            "may not be 0 when `maxSurge` is 0",
        );
    }
    at_most_all(unavailable, &path.field("maxUnavailable"), errors);
}

pub(crate) fn replica_set(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    selector_and_template(object, "ReplicaSet", &mut errors);
    counts(object, &["replicas", "minReadySeconds"], &mut errors);
    errors.into_vec()
}

pub(crate) fn replication_controller(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    counts(object, &["replicas", "minReadySeconds"], &mut errors);
    let path = SPEC.field("selector");
    match some(object, "/spec/selector") {
        Some(Value::Object(labels)) if !labels.is_empty() => {
            let taken = selects(
                &json!({"matchLabels": labels}),
                map(object, "/spec/template/metadata/labels"),
            );
            if !taken {
                errors.invalid(
                    &SPEC.field("template").field("metadata").field("labels"),
                    object
                        .pointer("/spec/template/metadata/labels")
                        .unwrap_or(&json!({})),
                    "`selector` does not match template `labels`",
                );
            }
        }
        _ => errors.required(&path, ""),
    }
    match some(object, "/spec/template") {
        None => errors.required(&SPEC.field("template"), ""),
        Some(value) => {
            template(value, &SPEC.field("template"), &mut errors);
            endless(object, "replication controller", &mut errors);
        }
    }
    errors.into_vec()
}

pub(crate) fn daemon_set(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    selector_and_template(object, "daemonset", &mut errors);
    counts(
        object,
        &["minReadySeconds", "revisionHistoryLimit"],
        &mut errors,
    );
    let path = SPEC.field("updateStrategy");
    match text(object, "/spec/updateStrategy/type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = path.field("rollingUpdate");
            let Some(rolling) = some(object, "/spec/updateStrategy/rollingUpdate") else {
                errors.required(&path, "");
                return errors.into_vec();
            };
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            int_or_percent(unavailable, &path.field("maxUnavailable"), &mut errors);
            int_or_percent(surge, &path.field("maxSurge"), &mut errors);
            at_most_all(unavailable, &path.field("maxUnavailable"), &mut errors);
            at_most_all(surge, &path.field("maxSurge"), &mut errors);
            match (is_zero(unavailable), is_zero(surge)) {
                (true, true) => errors.invalid(
                    &path.field("maxUnavailable"),
                    unavailable.unwrap_or(&Value::Null),
                    "cannot be 0 when maxSurge is 0",
                ),
                (false, false) => errors.invalid(
                    &path.field("maxSurge"),
                    surge.unwrap_or(&Value::Null),
                    "may not be set when maxUnavailable is non-zero",
                ),
                _ => {}
            }
        }
        kind => errors.not_supported(&path.field("type"), kind, &["OnDelete", "RollingUpdate"]),
    }
    errors.into_vec()
}

/// A set whose template has what its pods will have: each claim is a volume, in place of one of that name; host names are the controller's to give.
fn with_claims(set: &Value) -> Value {
    let mut set = set.clone();
    let claims: Vec<Value> = items(&set, "/spec/volumeClaimTemplates")
        .iter()
        .map(|claim| {
            let name = text(claim, "/metadata/name");
            json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
        })
        .collect();
    let pod = set.pointer_mut("/spec/template/spec");
    let Some(pod) = pod.and_then(Value::as_object_mut) else {
        return set;
    };
    pod.remove("hostname");
    pod.remove("subdomain");
    if claims.is_empty() {
        return set;
    }
    let volumes = pod.entry("volumes").or_insert(Value::Null);
    if volumes.is_null() {
        *volumes = json!([]);
    }
    for claim in claims {
        let Some(volumes) = volumes.as_array_mut() else {
            break;
        };
        let same = volumes
            .iter_mut()
            .find(|volume| volume["name"] == claim["name"]);
        match same {
            Some(volume) => *volume = claim,
            None => volumes.push(claim),
        }
    }
    set
}

pub(crate) fn stateful_set(object: &Value) -> Vec<Invalid> {
    // Pods are named after it, and have its name as their host names.
    let mut errors = namespaced(object, dns_label);
    selector_and_template(&with_claims(object), "statefulset", &mut errors);
    counts(
        object,
        &["replicas", "minReadySeconds", "revisionHistoryLimit"],
        &mut errors,
    );
    errors.one_of(
        &SPEC.field("podManagementPolicy"),
        text(object, "/spec/podManagementPolicy"),
        &["OrderedReady", "Parallel"],
    );
    let path = SPEC.field("updateStrategy");
    match text(object, "/spec/updateStrategy/type") {
        "OnDelete" => {
            if some(object, "/spec/updateStrategy/rollingUpdate").is_some() {
                errors.invalid(
                    &path.field("rollingUpdate"),
                    &object["spec"]["updateStrategy"]["rollingUpdate"],
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let path = path.field("rollingUpdate");
            errors.not_negative(
                &path.field("partition"),
                object.pointer("/spec/updateStrategy/rollingUpdate/partition"),
            );
            let unavailable = object.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable");
            int_or_percent(unavailable, &path.field("maxUnavailable"), &mut errors);
            at_most_all(unavailable, &path.field("maxUnavailable"), &mut errors);
            if unavailable.is_some_and(|value| !value.is_null()) && is_zero(unavailable) {
                errors.invalid(
                    &path.field("maxUnavailable"),
                    unavailable.unwrap_or(&Value::Null),
                    "cannot be 0",
                );
            }
        }
        "" => errors.required(&path.field("type"), ""),
        kind => errors.invalid_text(
            &path.field("type"),
            kind,
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    let path = SPEC.field("persistentVolumeClaimRetentionPolicy");
    for name in ["whenDeleted", "whenScaled"] {
        let policy = object
            .pointer("/spec/persistentVolumeClaimRetentionPolicy")
            .and_then(|policy| policy.get(name))
            .and_then(Value::as_str);
        if let Some(policy) = policy {
            errors.maybe_one_of(&path.field(name), policy, &["Delete", "Retain"]);
        }
    }
    errors.not_negative(
        &SPEC.field("ordinals").field("start"),
        object.pointer("/spec/ordinals/start"),
    );
    errors.into_vec()
}

pub(crate) fn controller_revision(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    errors.not_negative(&Path::root("revision"), object.get("revision"));
    if some(object, "/data").is_none() {
        errors.required(&Path::root("data"), "data is mandatory");
    }
    errors.into_vec()
}

pub(crate) fn controller_revision_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(&Path::root("data"), new.get("data"), old.get("data"));
    errors.into_vec()
}

/// Whose pods these are stays: Deployment, ReplicaSet, DaemonSet.
pub(crate) fn selector_stays(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(
        &SPEC.field("selector"),
        new.pointer("/spec/selector"),
        old.pointer("/spec/selector"),
    );
    errors.into_vec()
}

pub(crate) fn stateful_set_update(new: &Value, old: &Value) -> Vec<Invalid> {
    const MAY_CHANGE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let mut errors = changed(new, old);
    let rest = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|name, _| !MAY_CHANGE.contains(&name.as_str()));
            for claim in spec
                .get_mut("volumeClaimTemplates")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                claim.remove("status");
            }
        }
        spec
    };
    if !same(&rest(new), &rest(old)) {
        errors.forbidden(
            &SPEC,
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
    errors.into_vec()
}

/// As upstream's, by what v2 makes of it.
pub(crate) fn horizontal_pod_autoscaler_v1(object: &Value) -> Vec<Invalid> {
    horizontal_pod_autoscaler(&autoscaler::as_v2(object))
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
    if max < 1 {
        errors.invalid(
            &SPEC.field("maxReplicas"),
            &max.into(),
            "must be greater than 0",
        );
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(
            &SPEC.field("maxReplicas"),
            &max.into(),
            "must be greater than or equal to `minReplicas`",
        );
    }
    let target = SPEC.field("scaleTargetRef");
    for name in ["kind", "name"] {
        let value = object
            .pointer("/spec/scaleTargetRef")
            .and_then(|target| target.get(name))
            .and_then(Value::as_str)
            .unwrap_or_default();
        if value.is_empty() {
            errors.required(&target.field(name), "");
        } else {
            errors.text_is(&target.field(name), value, crate::name::path_segment(value));
        }
    }
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

fn metric_spec(metric: &Value, path: &Path, errors: &mut Errors) {
    const KINDS: [(&str, &str); 5] = [
        ("ContainerResource", "containerResource"),
        ("External", "external"),
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
    ];
    let kind = text(metric, "/type");
    if kind.is_empty() {
        errors.required(&path.field("type"), "must specify a metric source type");
        return;
    }
    let Some((_, field)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        errors.not_supported(&path.field("type"), kind, &KINDS.map(|(name, _)| name));
        return;
    };
    let Some(source) = metric.get(*field).filter(|source| !source.is_null()) else {
        errors.required(
            &path.field(field),
            "must populate information for the given metric source",
        );
        return;
    };
    let path = path.field(field);
    if field.ends_with("esource") && text(source, "/name").is_empty() {
        errors.required(&path.field("name"), "must specify a resource name");
    }
    if *field == "containerResource" && text(source, "/container").is_empty() {
        errors.required(&path.field("container"), "must specify a container");
    }
    let target = path.field("target");
    errors.one_of(
        &target.field("type"),
        text(source, "/target/type"),
        &["AverageValue", "Utilization", "Value"],
    );
    for name in ["value", "averageValue"] {
        if let Some(value) = source
            .get("target")
            .and_then(|target| target.get(name))
            .filter(|v| !v.is_null())
        {
            let positive =
                crate::quantity::Quantity::of(value).is_some_and(|quantity| quantity.nano > 0);
            if !positive {
                errors.invalid(&target.field(name), value, "must be positive");
            }
        }
    }
    errors.positive(
        &target.field("averageUtilization"),
        source.pointer("/target/averageUtilization"),
    );
    let has = |name: &str| {
        source
            .get("target")
            .and_then(|target| target.get(name))
            .is_some_and(|value| !value.is_null())
    };
    if field.ends_with("esource") && !has("averageUtilization") && !has("averageValue") {
        errors.required(
            &target.field("averageUtilization"),
            "must set either a target raw value or a target utilization",
        );
    }
    if *field == "pods" && !has("averageValue") {
        errors.required(
            &target.field("averageValue"),
            "must specify a positive target averageValue",
        );
    }
}

fn scaling_rules(rules: &Value, path: &Path, errors: &mut Errors) {
    if let Some(window) = some(rules, "/stabilizationWindowSeconds")
        && !window
            .as_i64()
            .is_some_and(|seconds| (0..=3600).contains(&seconds))
    {
        errors.invalid(
            &path.field("stabilizationWindowSeconds"),
            window,
            "must be less than or equal to 3600",
        );
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
        errors.one_of(
            &path.field("type"),
            text(policy, "/type"),
            &["Percent", "Pods"],
        );
        errors.positive(&path.field("value"), policy.get("value"));
        let period = policy.get("periodSeconds").unwrap_or(&Value::Null);
        match period.as_i64() {
            Some(1..=1800) => {}
            Some(1801..) => errors.invalid(
                &path.field("periodSeconds"),
                period,
                "must be less than or equal to 1800",
            ),
            _ => errors.invalid(
                &path.field("periodSeconds"),
                period,
                "must be greater than zero",
            ),
        }
    }
}

pub(crate) fn pod_disruption_budget(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let (min, max) = (
        some(object, "/spec/minAvailable"),
        some(object, "/spec/maxUnavailable"),
    );
    if min.is_some() && max.is_some() {
        errors.invalid(
            &SPEC,
            &object["spec"],
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for (name, value) in [("minAvailable", min), ("maxUnavailable", max)] {
        int_or_percent(value, &SPEC.field(name), &mut errors);
        if let Some(Value::String(text)) = value
            && percent(text).is_some_and(|percent| percent > 100)
        {
            errors.invalid_text(&SPEC.field(name), text, "must not be greater than 100%");
        }
    }
    if let Some(value) = some(object, "/spec/selector") {
        selector(value, &SPEC.field("selector"), &mut errors);
    }
    errors.maybe_one_of(
        &SPEC.field("unhealthyPodEvictionPolicy"),
        text(object, "/spec/unhealthyPodEvictionPolicy"),
        &["AlwaysAllow", "IfHealthyBudget"],
    );
    errors.into_vec()
}
