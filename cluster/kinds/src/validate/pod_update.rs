//! What may change of a pod that is there: little, and by its own way each.

use serde_json::Value;

use super::meta::changed;
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    prepare::qos_class,
    read::{items, some, text},
};

const SPEC: Path = Path::root("spec");

const FORBIDDEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                         `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// (new, old), of an ordinary update.
pub(crate) fn pod_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let null = &Value::Null;
    let mut rest = new.get("spec").unwrap_or(null).clone();
    let old_spec = old.get("spec").unwrap_or(null);

    for list in ["containers", "initContainers"] {
        let path = SPEC.field(list);
        let before = list_of(old_spec, list);
        if list_of(&rest, list).len() != before.len() {
            errors.forbidden(&path, "pod updates may not add or remove containers");
            return errors.into_vec();
        }
        for (at, old) in before.iter().enumerate() {
            if let Some(new) = rest.get_mut(list).and_then(|list| list.get_mut(at)) {
                set(new, "image", old.get("image"));
            }
        }
    }

    deadline(&rest, old_spec, &mut errors);
    set(
        &mut rest,
        "activeDeadlineSeconds",
        old_spec.get("activeDeadlineSeconds"),
    );
    tolerations(&rest, old_spec, &mut errors);
    set(&mut rest, "tolerations", old_spec.get("tolerations"));
    gates(&mut rest, old_spec, &mut errors);
    // A pod that was waiting for its gates can be made choosier: it is nowhere yet.
    if !items(old_spec, "/schedulingGates").is_empty() {
        set(&mut rest, "nodeSelector", old_spec.get("nodeSelector"));
        set(&mut rest, "affinity", old_spec.get("affinity"));
    }
    if some(&rest, "/terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1)
        && some(old_spec, "/terminationGracePeriodSeconds")
            .and_then(Value::as_i64)
            .is_some_and(|seconds| seconds < 0)
    {
        set(
            &mut rest,
            "terminationGracePeriodSeconds",
            old_spec.get("terminationGracePeriodSeconds"),
        );
    }
    if !same(&rest, old_spec) {
        errors.forbidden(&SPEC, FORBIDDEN);
    }
    errors.into_vec()
}

fn list_of<'a>(spec: &'a Value, name: &str) -> &'a [Value] {
    spec.get(name)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// Takes the old value, so that what is left can be compared whole.
fn set(object: &mut Value, name: &str, old: Option<&Value>) {
    if let Some(object) = object.as_object_mut() {
        match old {
            Some(value) => object.insert(name.to_owned(), value.clone()),
            None => object.remove(name),
        };
    }
}

fn deadline(new: &Value, old: &Value, errors: &mut Errors) {
    let path = &SPEC.field("activeDeadlineSeconds");
    let seconds = |spec| some(spec, "/activeDeadlineSeconds").and_then(Value::as_i64);
    match (seconds(new), seconds(old)) {
        (Some(new), Some(old)) if new > old => errors.invalid(
            path,
            &new.into(),
            &format!("must be less than or equal to previous value ({old})"),
        ),
        (None, Some(_)) => errors.invalid(
            path,
            &Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
}

fn tolerations(new: &Value, old: &Value, errors: &mut Errors) {
    let now = items(new, "/tolerations");
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        set(&mut toleration, "tolerationSeconds", None);
        toleration
    };
    let kept = items(old, "/tolerations").iter().all(|old| {
        now.iter()
            .any(|new| same(new, old) || same(&without_seconds(new), &without_seconds(old)))
    });
    if !kept {
        errors.forbidden(
            &SPEC.field("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

fn gates(new: &mut Value, old: &Value, errors: &mut Errors) {
    let before: Vec<_> = items(old, "/schedulingGates")
        .iter()
        .map(|gate| text(gate, "/name"))
        .collect();
    let path = SPEC.field("schedulingGates");
    let mut added = false;
    for (at, gate) in items(new, "/schedulingGates").iter().enumerate() {
        if !before.contains(&text(gate, "/name")) {
            added = true;
            errors.forbidden(
                &path.index(at).field("name"),
                "only deletion is allowed, but found new scheduling gate",
            );
        }
    }
    if !added {
        set(new, "schedulingGates", old.get("schedulingGates"));
    }
}

/// (new, old), of the subresource `ephemeralcontainers`: more of them, and nothing else.
pub fn ephemeral_containers_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let path = SPEC.field("ephemeralContainers");
    let now = items(new, "/spec/ephemeralContainers");
    for before in items(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        match now.iter().position(|one| text(one, "/name") == name) {
            None => errors.forbidden(
                &path,
                &format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            ),
            Some(at) if !same(&now[at], before) => errors.forbidden(
                &path,
                &format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            ),
            Some(_) => {}
        }
    }
    errors.into_vec()
}

/// (new, old), of the subresource `resize`: containers' cpu and memory, and nothing else.
pub fn resize_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    if some(old, "/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        errors.forbidden(&Path::root(""), "static pods cannot be resized");
        return errors.into_vec();
    }
    // Eviction, cgroups and the kernel's choice of whom to kill go by it.
    let class = match text(old, "/status/qosClass") {
        "" => qos_class(old),
        class => class,
    };
    if class != qos_class(new) {
        errors.invalid_text(
            &SPEC,
            class,
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let null = &Value::Null;
    let mut rest = new.get("spec").unwrap_or(null).clone();
    let old_spec = old.get("spec").unwrap_or(null);
    for list in ["containers", "initContainers"] {
        for (at, old) in list_of(old_spec, list).iter().enumerate() {
            let Some(new) = rest.get_mut(list).and_then(|list| list.get_mut(at)) else {
                continue;
            };
            // Sidecars run on; other init containers are over, or about to be.
            if list == "initContainers" && text(old, "/restartPolicy") != "Always" {
                continue;
            }
            let path = SPEC.field(list);
            let path = path.index(at);
            for amounts in ["limits", "requests"] {
                resized(new, old, amounts, &path, &mut errors);
            }
            set(new, "resources", old.get("resources"));
            set(new, "resizePolicy", old.get("resizePolicy"));
        }
    }
    set(&mut rest, "resources", old_spec.get("resources"));
    if !same(&rest, old_spec) {
        errors.forbidden(&SPEC, "only cpu and memory resources are mutable");
    }
    errors.into_vec()
}

fn resized(new: &Value, old: &Value, amounts: &str, path: &Path, errors: &mut Errors) {
    let path = path.field("resources");
    let path = path.field(amounts);
    let of = |container: &Value| {
        container
            .get("resources")
            .and_then(|resources| resources.get(amounts))
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let (new, old) = (of(new), of(old));
    for name in new.keys().chain(old.keys()) {
        let (now, before) = (new.get(name), old.get(name));
        if ["cpu", "memory"].contains(&name.as_str()) {
            if before.is_some() && now.is_none() {
                errors.forbidden(&path, &format!("{amounts} cannot be removed"));
            }
        } else if now != before {
            errors.forbidden(&path.key(name), "only cpu and memory resources are mutable");
        }
    }
}
