//! What makes pods after a template: apps/v1, and ReplicationController.

use serde_json::{Value, json};

use super::{
    claims::claim_spec,
    meta::{changed, namespaced, selector},
    pod::template,
    resources::{at_most_all, int_or_percent, is_zero, percent},
};
use crate::{
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
        _ => errors.value_not_supported(
            &path,
            object.pointer("/spec/strategy").unwrap_or(&Value::Null),
            &["Recreate", "RollingUpdate"],
        ),
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
                (true, true) => errors.required(
                    &path.field("maxUnavailable"),
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
        _ => errors.value_not_supported(
            &path,
            object
                .pointer("/spec/updateStrategy")
                .unwrap_or(&Value::Null),
            &["RollingUpdate", "OnDelete"],
        ),
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
    match text(object, "/spec/podManagementPolicy") {
        "" => errors.required(&SPEC.field("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        policy => errors.invalid_text(
            &SPEC.field("podManagementPolicy"),
            policy,
            "must be 'OrderedReady' or 'Parallel'",
        ),
    }
    update_strategy(object, &mut errors);
    let path = SPEC.field("persistentVolumeClaimRetentionPolicy");
    if let Some(policy) = some(object, "/spec/persistentVolumeClaimRetentionPolicy") {
        for name in ["whenDeleted", "whenScaled"] {
            let policy = policy.get(name).and_then(Value::as_str);
            let policy = policy.unwrap_or_default();
            if !["Retain", "Delete"].contains(&policy) {
                errors.not_supported(&path.field(name), policy, &["Retain", "Delete"]);
            }
        }
    }
    counts(object, &["replicas", "minReadySeconds"], &mut errors);
    errors.not_negative(
        &SPEC.field("ordinals").field("start"),
        object.pointer("/spec/ordinals/start"),
    );
    selector_and_template(&with_claims(object), "statefulset", &mut errors);
    errors.into_vec()
}

/// What may not change later: one that is there already may have it as it was once allowed.
pub(crate) fn stateful_set_create(object: &Value) -> Vec<Invalid> {
    let mut errors = Errors::default();
    let list = SPEC.field("volumeClaimTemplates");
    for (at, claim) in items(object, "/spec/volumeClaimTemplates")
        .iter()
        .enumerate()
    {
        let path = list.index(at);
        let spec = claim.get("spec").unwrap_or(&Value::Null);
        claim_spec(spec, &path.field("spec"), &mut errors);
    }
    match text(object, "/spec/serviceName") {
        "" => {}
        name => errors.text_is(&SPEC.field("serviceName"), name, dns_label(name)),
    }
    errors.into_vec()
}

fn update_strategy(object: &Value, errors: &mut Errors) {
    let path = SPEC.field("updateStrategy");
    let rolling = some(object, "/spec/updateStrategy/rollingUpdate");
    match text(object, "/spec/updateStrategy/type") {
        "" => errors.required(&path, ""),
        "OnDelete" => {
            if let Some(rolling) = rolling {
                errors.invalid(
                    &path.field("rollingUpdate"),
                    rolling,
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let Some(rolling) = rolling else { return };
            let path = path.field("rollingUpdate");
            errors.not_negative(&path.field("partition"), rolling.get("partition"));
            let path = path.field("maxUnavailable");
            if let Some(unavailable) = some(rolling, "/maxUnavailable") {
                int_or_percent(Some(unavailable), &path, errors);
                if is_zero(Some(unavailable)) {
                    errors.invalid(&path, unavailable, "cannot be 0");
                }
                at_most_all(Some(unavailable), &path, errors);
            }
        }
        _ => errors.invalid(
            &path,
            &object["spec"]["updateStrategy"],
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
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
