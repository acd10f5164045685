//! autoscaling/v1 Scale: the replicas of whatever has some.

use berth_patch::PatchType;
use berth_schema::{Body as Decoded, GroupVersionKind, Schema};
use http::Response;
use serde_json::{Value, json};

use crate::{
    api::{Api, Call},
    body,
    catalog::Resource,
    clock,
    failure::Failure,
    object,
    patch::Patch,
    request::Verb,
    respond::{Body, Form},
    table,
    write::{self, Part},
};

/// Where a kind has them, as JSON pointers.
#[derive(Debug, Clone)]
pub struct Paths {
    pub spec: String,
    pub status: String,
    /// Of a selector in text form; empty: `spec.selector` of the built-in kinds.
    pub selector: String,
}

fn paths(resource: &Resource) -> Option<Paths> {
    match resource.custom() {
        Some(custom) => custom.scale.clone(),
        None => Some(Paths {
            spec: "/spec/replicas".into(),
            status: "/status/replicas".into(),
            selector: String::new(),
        }),
    }
}

/// The Scale of what has one.
pub fn scale_of(resource: &Resource, object: &Value) -> Option<Value> {
    paths(resource).map(|paths| scale(&paths, object))
}

/// Whether it could be set.
pub fn set_replicas(resource: &Resource, object: &mut Value, replicas: i64) -> bool {
    paths(resource).is_some_and(|paths| set(object, &paths.spec, replicas.into()))
}

fn scale(paths: &Paths, object: &Value) -> Value {
    let mut metadata = json!({
        "name": object::name(object),
        "namespace": object::namespace(object),
        "uid": object::uid(object),
        "resourceVersion": object::resource_version(object),
    });
    if let Some(created) = object.pointer("/metadata/creationTimestamp") {
        metadata["creationTimestamp"] = created.clone();
    }
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {},
        "status": {"replicas": object::number(object, &paths.status).unwrap_or(0)},
    });
    if let Some(replicas) = object::number(object, &paths.spec) {
        scale["spec"]["replicas"] = replicas.into();
    }
    let selector = if paths.selector.is_empty() {
        object.pointer("/spec/selector").map(selector_text)
    } else {
        let text = object::text(object, &paths.selector);
        (!text.is_empty()).then(|| text.to_owned())
    };
    if let Some(selector) = selector {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// As clients of a Scale read it: `a=b,c in (d,e)`.
fn selector_text(selector: &Value) -> String {
    let Some(fields) = selector.as_object() else {
        return String::new();
    };
    let labels = fields.get("matchLabels").and_then(Value::as_object);
    let expressions = fields.get("matchExpressions").and_then(Value::as_array);
    // of a ReplicationController it is the labels themselves
    let plain = labels.is_none() && expressions.is_none();
    let labels = labels.or(plain.then_some(fields));
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    for expression in expressions.into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.sort_unstable();
    terms.join(",")
}

fn answer(call: &Call, scale: &Value) -> Response<Body> {
    match &call.wants.form {
        Form::Table(version) => {
            let table = table::of_scale(scale, version, clock::now());
            call.wants.value(200, &table)
        }
        _ => call.wants.value(200, scale),
    }
}

pub async fn handle(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let (resource, asked) = (&call.resource, &call.asked);
    let paths = paths(resource).ok_or_else(Failure::no_such_path)?;
    let kind = GroupVersionKind::new("autoscaling/v1", "Scale");
    let object = match asked.verb {
        Verb::Get => {
            let key = resource.key(&asked.namespace, &asked.name);
            let stored = api.storage.read(&key).await?;
            let mut value = stored
                .ok_or_else(|| Failure::not_found(resource, &asked.name))?
                .value;
            resource.as_served(&mut value);
            value
        }
        Verb::Update => {
            let scale = body::object(call, &kind, false)?;
            change(api, call, &paths, |_| Ok(scale.clone())).await?
        }
        _ => {
            let patch_type = PatchType::of_content_type(call.content_type());
            if patch_type == Some(PatchType::Apply) {
                let applied = Decoded::from_yaml(&call.body)
                    .map_err(|error| Failure::bad_request(error.to_string()))?;
                change(api, call, &paths, |_| Ok(applied.value.clone())).await?
            } else {
                let patch_type =
                    patch_type.ok_or_else(|| Failure::unsupported_media_type(Patch::ACCEPTED))?;
                let schema = Schema::built_in();
                let of_scale = schema.kind(&kind).map(|id| (schema, id));
                change(api, call, &paths, |scale| {
                    let mut new = berth_patch::patch(patch_type, of_scale, scale, &call.body)?;
                    if let Some((schema, id)) = of_scale {
                        schema
                            .conform(id, &mut new)
                            .map_err(|error| Failure::bad_request(error.to_string()))?;
                    }
                    Ok(new)
                })
                .await?
            }
        }
    };
    Ok(answer(call, &scale(&paths, &object)))
}

async fn change(
    api: &Api,
    call: &Call,
    paths: &Paths,
    mut change: impl FnMut(&Value) -> Result<Value, Failure> + Send,
) -> Result<Value, Failure> {
    let (resource, asked) = (&call.resource, &call.asked);
    write::modify(
        api,
        &call.actor,
        resource,
        &asked.namespace,
        &asked.name,
        Part::Scale,
        |live| {
            let scale = scale(paths, live);
            let new = change(&scale)?;
            let invalid = |message: &str| {
                Failure::invalid_of(
                    "autoscaling",
                    "Scale",
                    &asked.name,
                    vec![berth_kinds::Invalid {
                        field: "spec.replicas".into(),
                        reason: berth_kinds::Reason::Invalid,
                        message: message.into(),
                    }],
                )
            };
            let replicas = object::number(&new, "/spec/replicas").unwrap_or(0);
            if replicas < 0 {
                return Err(invalid(&format!(
                    "Invalid value: {replicas}: must be greater than or equal to 0"
                )));
            }
            let mut object = live.clone();
            object::set(
                &mut object,
                "resourceVersion",
                object::resource_version(&new),
            );
            if !set(&mut object, &paths.spec, replicas.into()) {
                return Err(invalid("Invalid value: the object has no such field"));
            }
            Ok(object)
        },
    )
    .await
}

/// Sets what is at a pointer, making the objects around it.
fn set(object: &mut Value, pointer: &str, value: Value) -> bool {
    let mut at = object;
    for name in pointer.split('/').skip(1) {
        if at.is_null() {
            *at = json!({});
        }
        let Some(fields) = at.as_object_mut() else {
            return false;
        };
        at = fields.entry(name).or_insert(Value::Null);
    }
    *at = value;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_told_in_text() {
        for (selector, text) in [
            (json!({"matchLabels": {"b": "2", "a": "1"}}), "a=1,b=2"),
            (json!({"app": "x"}), "app=x"),
            (
                json!({"matchExpressions": [
                    {"key": "t", "operator": "In", "values": ["y", "x"]},
                    {"key": "u", "operator": "DoesNotExist"},
                ]}),
                "!u,t in (x,y)",
            ),
        ] {
            assert_eq!(selector_text(&selector), text);
        }
    }
}
