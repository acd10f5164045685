use serde_json::{Value, json};

use crate::write::{absent, each};

pub(crate) fn validating_webhooks(configuration: &mut Value) {
    let Some(configuration) = configuration.as_object_mut() else {
        return;
    };
    for webhook in each(configuration, "webhooks") {
        absent(webhook, "failurePolicy", "Fail");
        absent(webhook, "matchPolicy", "Equivalent");
        absent(webhook, "namespaceSelector", json!({}));
        absent(webhook, "objectSelector", json!({}));
        absent(webhook, "timeoutSeconds", 10);
        for rule in each(webhook, "rules") {
            absent(rule, "scope", "*");
        }
        if let Some(Value::Object(service)) = webhook
            .get_mut("clientConfig")
            .and_then(|client| client.get_mut("service"))
        {
            absent(service, "port", 443);
        }
    }
}

pub(crate) fn mutating_webhooks(configuration: &mut Value) {
    validating_webhooks(configuration);
    if let Some(configuration) = configuration.as_object_mut() {
        for webhook in each(configuration, "webhooks") {
            absent(webhook, "reinvocationPolicy", "Never");
        }
    }
}

pub(crate) fn validating_admission_policy(policy: &mut Value) {
    if let Some(Value::Object(spec)) = policy.get_mut("spec") {
        absent(spec, "failurePolicy", "Fail");
        constraints(spec, "matchConstraints");
    }
}

pub(crate) fn validating_admission_policy_binding(binding: &mut Value) {
    if let Some(Value::Object(spec)) = binding.get_mut("spec") {
        constraints(spec, "matchResources");
    }
}

/// MatchResources.
fn constraints(spec: &mut serde_json::Map<String, Value>, name: &str) {
    let Some(Value::Object(constraints)) = spec.get_mut(name) else {
        return;
    };
    absent(constraints, "matchPolicy", "Equivalent");
    absent(constraints, "namespaceSelector", json!({}));
    absent(constraints, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in each(constraints, list) {
            absent(rule, "scope", "*");
        }
    }
}

pub(crate) fn api_service(service: &mut Value) {
    if let Some(Value::Object(to)) = service.pointer_mut("/spec/service") {
        absent(to, "port", 443);
    }
}
