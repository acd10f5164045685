//! What a field selector can ask of an object.

use serde_json::Value;

use crate::kind::Kind;

/// The fields of `object` that a selector may name, with their values: `metadata.name` and `metadata.namespace` first. What is absent is empty,
/// or what absence means (`false`, `0`).
pub fn selectable(kind: &Kind, object: &Value) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("metadata.name", text(object, "metadata.name"))];
    if kind.namespaced {
        pairs.push(("metadata.namespace", text(object, "metadata.namespace")));
    }
    pairs.extend(
        kind.selectable
            .iter()
            .map(|path| (*path, value(object, path))),
    );
    pairs
}

/// The fields of an object that the value of a selectable one is made of.
pub fn looked_at(path: &'static str) -> Vec<&'static str> {
    match path {
        "status.successful" => vec!["status.succeeded"],
        "source" => vec!["source.component", "reportingComponent"],
        path => vec![path],
    }
}

fn value(object: &Value, path: &str) -> String {
    let mut value = match path {
        "status.successful" => text(object, "status.succeeded"),
        "source" => {
            let component = text(object, "source.component");
            if component.is_empty() {
                text(object, "reportingComponent")
            } else {
                component
            }
        }
        _ => text(object, path),
    };
    if value.is_empty() {
        match path {
            "spec.unschedulable" | "spec.hostNetwork" => value.push_str("false"),
            "status.replicas" | "status.successful" => value.push('0'),
            _ => {}
        }
    }
    value
}

fn text(object: &Value, path: &str) -> String {
    let mut at = Some(object);
    for name in path.split('.') {
        at = at.and_then(|value| value.get(name));
    }
    match at {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::selectable;
    use crate::by_kind;

    #[test]
    fn a_selector_sees_what_upstream_lets_it_see() {
        for (kind, object, expected) in [
            (
                ("", "v1", "Pod"),
                json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "n", "hostNetwork": true}, "status": {"phase": "Running"}}),
                vec![
                    ("metadata.name", "a"),
                    ("metadata.namespace", "b"),
                    ("spec.nodeName", "n"),
                    ("spec.restartPolicy", ""),
                    ("spec.schedulerName", ""),
                    ("spec.serviceAccountName", ""),
                    ("spec.hostNetwork", "true"),
                    ("status.phase", "Running"),
                    ("status.podIP", ""),
                    ("status.nominatedNodeName", ""),
                ],
            ),
            (
                ("", "v1", "Node"),
                json!({"metadata": {"name": "a"}}),
                vec![("metadata.name", "a"), ("spec.unschedulable", "false")],
            ),
            (
                ("batch", "v1", "Job"),
                json!({"metadata": {"name": "a", "namespace": "b"}, "status": {"succeeded": 3}}),
                vec![
                    ("metadata.name", "a"),
                    ("metadata.namespace", "b"),
                    ("status.successful", "3"),
                ],
            ),
            (
                ("", "v1", "Secret"),
                json!([]),
                vec![
                    ("metadata.name", ""),
                    ("metadata.namespace", ""),
                    ("type", ""),
                ],
            ),
        ] {
            let kind = by_kind(kind.0, kind.1, kind.2).unwrap();
            let pairs = selectable(kind, &object);
            let pairs: Vec<_> = pairs.iter().map(|(k, v)| (*k, v.as_str())).collect();
            assert_eq!(pairs, expected);
        }
    }
}
