//! What is absent is filled in from the schema's defaults, outermost first: a default may be an object whose fields have defaults.

use serde_json::Value;

use super::node::{Additional, Node};

pub(super) fn default(node: &Node, value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|name, value| {
                let property = node.properties.get(name);
                !value.is_null()
                    || property.is_none_or(|node| node.nullable || node.default.is_some())
            });
            for (name, property) in &node.properties {
                if node.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                if let Some(default) = &property.default {
                    let value = object
                        .entry(name.as_str())
                        .or_insert_with(|| default.clone());
                    if value.is_null() && !property.nullable {
                        *value = default.clone();
                    }
                }
            }
            for (name, value) in object.iter_mut() {
                match (node.properties.get(name), &node.additional) {
                    (Some(property), _) => default(property, value),
                    (None, Some(Additional::Node(node))) => item(node, value),
                    _ => {}
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for value in list {
                    item(items, value);
                }
            }
        }
        _ => {}
    }
}

/// Of a list or a map, where null can't be dropped.
fn item(node: &Node, value: &mut Value) {
    if let (Value::Null, false, Some(default)) = (&*value, node.nullable, &node.default) {
        *value = default.clone();
    }
    default(node, value);
}
