use serde_json::Value;

use super::{AGE, NAME, column};
use crate::{
    kind::{Cell, Column},
    read::{items, some, text},
};

pub(crate) const WEBHOOKS: &[Column] =
    &[NAME, column("Webhooks", "integer", Cell::Of(webhooks)), AGE];

fn webhooks(object: &Value, _: i64) -> Value {
    object["webhooks"].as_array().map_or(0, Vec::len).into()
}

pub(crate) const VALIDATING_ADMISSION_POLICY: &[Column] = &[
    NAME,
    column("Validations", "integer", Cell::Of(validations)),
    column("ParamKind", "string", Cell::Of(param_kind)),
    AGE,
];

pub(crate) const VALIDATING_ADMISSION_POLICY_BINDING: &[Column] = &[
    NAME,
    column("PolicyName", "string", Cell::Pointer("/spec/policyName")),
    column("ParamRef", "string", Cell::Of(param_ref)),
    AGE,
];

pub(crate) const API_SERVICE: &[Column] = &[
    NAME,
    column("Service", "string", Cell::Of(api_service)),
    column("Available", "string", Cell::Of(available)),
    AGE,
];

fn api_service(object: &Value, _: i64) -> Value {
    match some(object, "/spec/service") {
        Some(to) => format!("{}/{}", text(to, "/namespace"), text(to, "/name")).into(),
        None => "Local".into(),
    }
}

fn available(object: &Value, _: i64) -> Value {
    let conditions = items(object, "/status/conditions");
    let found = conditions
        .iter()
        .find(|condition| text(condition, "/type") == "Available");
    match found.map(|found| (text(found, "/status"), text(found, "/reason"))) {
        Some(("True", _)) => "True".into(),
        Some((status, reason)) => format!("{status} ({reason})").into(),
        None => "Unknown".into(),
    }
}

const UNSET: &str = "<unset>";

fn validations(object: &Value, _: i64) -> Value {
    items(object, "/spec/validations").len().into()
}

fn param_kind(object: &Value, _: i64) -> Value {
    match some(object, "/spec/paramKind") {
        Some(kind) => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")).into(),
        None => UNSET.into(),
    }
}

fn param_ref(object: &Value, _: i64) -> Value {
    let Some(param) = some(object, "/spec/paramRef") else {
        return UNSET.into();
    };
    match (text(param, "/namespace"), text(param, "/name")) {
        ("", "") => "*".into(),
        ("", name) => name.into(),
        (namespace, "") => format!("{namespace}/*").into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}
