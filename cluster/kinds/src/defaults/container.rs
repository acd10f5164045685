use serde_json::{Map, Value};

use crate::{
    image::tag_is_latest,
    quantity::canonicalize,
    write::{absent, each, ensure, has, text_of, zero},
};

pub(super) fn container(container: &mut Map<String, Value>) {
    image_pull_policy(container, "image", "imagePullPolicy");
    zero(container, "terminationMessagePath", "/dev/termination-log");
    zero(container, "terminationMessagePolicy", "File");
    if let Some(resources) = ensure(container, "resources") {
        canonicalize(resources.get_mut("limits"));
        canonicalize(resources.get_mut("requests"));
    }
    for port in each(container, "ports") {
        zero(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        let Some(Value::Object(from)) = variable.get_mut("valueFrom") else {
            continue;
        };
        selectors(from);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(Value::Object(probe)) = container.get_mut(name) {
            zero(probe, "timeoutSeconds", 1);
            zero(probe, "periodSeconds", 10);
            zero(probe, "successThreshold", 1);
            zero(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(Value::Object(lifecycle)) = container.get_mut("lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(Value::Object(action)) = lifecycle.get_mut(name) {
                handler(action);
            }
        }
    }
}

/// Of what has a fieldRef or a resourceFieldRef: variables, and files of the downward API.
pub(super) fn selectors(from: &mut Map<String, Value>) {
    if let Some(Value::Object(field)) = from.get_mut("fieldRef") {
        zero(field, "apiVersion", "v1");
    }
    if let Some(Value::Object(resource)) = from.get_mut("resourceFieldRef") {
        absent(resource, "divisor", "0");
        crate::quantity::canonicalize_one(resource.get_mut("divisor"));
    }
}

fn handler(handler: &mut Map<String, Value>) {
    if let Some(Value::Object(get)) = handler.get_mut("httpGet") {
        zero(get, "path", "/");
        zero(get, "scheme", "HTTP");
    }
    if let Some(Value::Object(grpc)) = handler.get_mut("grpc") {
        absent(grpc, "service", "");
    }
}

/// What `latest` means can change at any time; other tags are taken to stay.
pub(super) fn image_pull_policy(object: &mut Map<String, Value>, image: &str, policy: &str) {
    if text_of(object, policy).is_empty() {
        let latest = tag_is_latest(text_of(object, image));
        let value = if latest { "Always" } else { "IfNotPresent" };
        zero(object, policy, value);
    }
}

/// A container that says what it may have at most, and not what it needs, needs that. Pods only: a template's pods get it when they are made.
pub(super) fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(Value::Object(resources)) = container.get_mut("resources") else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if limits.is_empty() && !has(resources, "requests") {
        return;
    }
    if let Some(requests) = ensure(resources, "requests") {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}
