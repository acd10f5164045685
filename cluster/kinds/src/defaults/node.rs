use serde_json::Value;

use crate::{
    quantity::canonicalize,
    write::{absent, ensure, object_at, zero},
};

/// A namespace carries its name as a label, so that selectors of namespaces can name one.
pub(crate) fn namespace(namespace: &mut Value) {
    let name = crate::read::text(namespace, "/metadata/name").to_owned();
    let Some(object) = namespace.as_object_mut() else {
        return;
    };
    if !name.is_empty()
        && let Some(metadata) = ensure(object, "metadata")
        && let Some(labels) = ensure(metadata, "labels")
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
    if let Some(status) = ensure(object, "status") {
        zero(status, "phase", "Active");
    }
}

pub(crate) fn node(node: &mut Value) {
    let Some(status) = object_at(node, "/status") else {
        return;
    };
    canonicalize(status.get_mut("capacity"));
    canonicalize(status.get_mut("allocatable"));
    if let Some(capacity @ Value::Object(_)) = status.get("capacity").cloned() {
        absent(status, "allocatable", capacity);
    }
}

pub(crate) fn runtime_class(class: &mut Value) {
    canonicalize(class.pointer_mut("/overhead/podFixed"));
}

pub(crate) fn resource_claim(claim: &mut Value) {
    device_requests(claim, "/spec/devices/requests");
}

pub(crate) fn resource_claim_template(template: &mut Value) {
    device_requests(template, "/spec/spec/devices/requests");
}

fn device_requests(object: &mut Value, pointer: &str) {
    let Some(Value::Array(requests)) = object.pointer_mut(pointer) else {
        return;
    };
    for request in requests {
        if let Some(exactly) = object_at(request, "/exactly") {
            count(exactly);
        }
        if let Some(Value::Array(alternatives)) = request.get_mut("firstAvailable") {
            alternatives
                .iter_mut()
                .filter_map(Value::as_object_mut)
                .for_each(count);
        }
    }
}

fn count(request: &mut serde_json::Map<String, Value>) {
    zero(request, "allocationMode", "ExactCount");
    if crate::write::text_of(request, "allocationMode") == "ExactCount" {
        zero(request, "count", 1);
    }
}
