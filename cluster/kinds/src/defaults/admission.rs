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
