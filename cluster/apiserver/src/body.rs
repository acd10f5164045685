//! Bodies of requests: JSON, YAML and Kubernetes' protobuf, and how strictly their fields are taken.

use berth_schema::{Body, GroupVersionKind, Schema};
use serde_json::Value;

use crate::{api::Call, catalog::Resource, failure::Failure};

/// As upstream's limit of a request.
pub const LARGEST_BODY: usize = 3 << 20;

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// Of one answer: `strict decoding error` and warnings name no more.
const MOST_NAMED: usize = 100;

/// fieldValidation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    Ignore,
    Warn,
    Strict,
}

impl Validation {
    pub fn of(call: &Call) -> Result<Self, Failure> {
        match call.asked.query.get("fieldValidation") {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(Failure::unprocessable(format!(
                "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    /// What is said of fields that are not known, or there twice.
    pub fn judge(self, call: &Call, strict: Vec<String>, what: &str) -> Result<(), Failure> {
        if strict.is_empty() || self == Self::Ignore {
            return Ok(());
        }
        let named = &strict[..strict.len().min(MOST_NAMED)];
        if self == Self::Strict {
            return Err(Failure::bad_request(format!(
                "{what}strict decoding error: {}",
                named.join(", ")
            )));
        }
        for warning in named {
            call.actor.warn(warning.clone());
        }
        Ok(())
    }
}

/// The kind that a body is of.
pub fn kind_of(resource: &Resource) -> GroupVersionKind {
    GroupVersionKind {
        group: resource.group.as_str().into(),
        version: resource.version.as_str().into(),
        kind: resource.kind.as_str().into(),
    }
}

/// The body as an object of `kind`; null where there is none and `may_lack` says that this is fine.
///
/// # Errors
/// 400 and 415.
pub fn object(call: &Call, kind: &GroupVersionKind, may_lack: bool) -> Result<Value, Failure> {
    if call.body.is_empty() {
        return if may_lack {
            Ok(Value::Null)
        } else {
            Err(Failure::bad_request("no body: an object is needed"))
        };
    }
    let schema = Schema::built_in();
    let (mut value, mut strict) = match call.content_type() {
        "" | "application/json" => {
            let body = Body::from_json(&call.body).map_err(|error| handled(kind, &error))?;
            (body.value, body.duplicates)
        }
        "application/yaml" => {
            let body = Body::from_yaml(&call.body).map_err(|error| handled(kind, &error))?;
            (body.value, body.duplicates)
        }
        "application/vnd.kubernetes.protobuf" => {
            if call.resource.custom().is_some() {
                return Err(Failure::unsupported_media_type(
                    "application/json, application/yaml",
                ));
            }
            let (_, value) = schema
                .decode_protobuf(&call.body, Some(kind))
                .map_err(|error| handled(kind, &error))?;
            (value, Vec::new())
        }
        _ => return Err(Failure::unsupported_media_type(ACCEPTED)),
    };
    check_kind(&mut value, kind, may_lack)?;
    strict.extend(conform(call, kind, &mut value)?);
    Validation::of(call)?.judge(call, strict, &cannot(kind))?;
    Ok(value)
}

/// Makes `value` what its schema says; the fields that it does not know.
pub fn conform(
    call: &Call,
    kind: &GroupVersionKind,
    value: &mut Value,
) -> Result<Vec<String>, Failure> {
    conform_as(&call.resource, kind, value)
}

/// The same, of what no client has sent.
pub fn conform_as(
    resource: &Resource,
    kind: &GroupVersionKind,
    value: &mut Value,
) -> Result<Vec<String>, Failure> {
    let schema = Schema::built_in();
    match schema.kind(kind) {
        Some(id) => schema
            .conform(id, value)
            .map_err(|error| handled(kind, &error)),
        None => match resource.custom() {
            Some(custom) => custom.conform(value).map_err(|error| handled(kind, &error)),
            None => Ok(Vec::new()),
        },
    }
}

fn cannot(kind: &GroupVersionKind) -> String {
    format!(
        "{} in version {:?} cannot be handled as a {}: ",
        kind.kind, kind.version, kind.kind
    )
}

fn handled(kind: &GroupVersionKind, error: &berth_schema::Error) -> Failure {
    Failure::bad_request(format!("{}{error}", cannot(kind)))
}

/// An object says what it is, and it is what the path takes.
fn check_kind(value: &mut Value, kind: &GroupVersionKind, may_lack: bool) -> Result<(), Failure> {
    let expected = kind.api_version();
    let Some(fields) = value.as_object_mut() else {
        return Err(Failure::bad_request(format!(
            "{}json: cannot unmarshal {} into Go value of type {}",
            cannot(kind),
            json_type(value),
            kind.kind
        )));
    };
    let text = |name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (version, own) = (text("apiVersion"), text("kind"));
    // DeleteOptions come in any version
    if may_lack {
        return Ok(());
    }
    if version.is_empty() {
        fields.insert("apiVersion".into(), expected.into());
    } else if version != expected {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    if own.is_empty() {
        fields.insert("kind".into(), kind.kind.as_ref().into());
    } else if own != kind.kind.as_ref() {
        return Err(Failure::bad_request(format!(
            "{own} in version {:?} cannot be handled as a {}: the kinds differ",
            kind.version, kind.kind
        )));
    }
    Ok(())
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
