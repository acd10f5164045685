use serde_json::Value;

use super::{AGE, NAME, column, human_duration, wide};
use crate::{
    kind::{Cell, Column},
    read::{items, some, text},
};

pub(crate) const ROLE_BINDING: &[Column] = &[
    NAME,
    column(
        "Role",
        "string",
        Cell::Of(|o, _| {
            format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name")).into()
        }),
    ),
    AGE,
    wide("Users", "string", Cell::Of(|o, _| subjects(o, "User"))),
    wide("Groups", "string", Cell::Of(|o, _| subjects(o, "Group"))),
    wide(
        "ServiceAccounts",
        "string",
        Cell::Of(|o, _| subjects(o, "ServiceAccount")),
    ),
];

fn subjects(binding: &Value, kind: &str) -> Value {
    let subjects: Vec<_> = items(binding, "/subjects")
        .iter()
        .filter(|subject| text(subject, "/kind") == kind)
        .map(|subject| match (kind, text(subject, "/namespace")) {
            ("ServiceAccount", namespace) => format!("{namespace}/{}", text(subject, "/name")),
            _ => text(subject, "/name").to_owned(),
        })
        .collect();
    subjects.join(", ").into()
}

pub(crate) const CERTIFICATE_SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    column(
        "SignerName",
        "string",
        Cell::Of(|o, _| super::pod::or_none(text(o, "/spec/signerName"))),
    ),
    column(
        "Requestor",
        "string",
        Cell::Of(|o, _| text(o, "/spec/username").into()),
    ),
    column("RequestedDuration", "string", Cell::Of(requested_duration)),
    column("Condition", "string", Cell::Of(approval)),
];

fn requested_duration(request: &Value, _: i64) -> Value {
    match some(request, "/spec/expirationSeconds").and_then(Value::as_i64) {
        Some(seconds) => human_duration(seconds).into(),
        None => "<none>".into(),
    }
}

fn approval(request: &Value, _: i64) -> Value {
    let conditions = items(request, "/status/conditions");
    let has = |kind| {
        conditions
            .iter()
            .any(|condition| text(condition, "/type") == kind)
    };
    let mut shown = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        shown.push_str(",Failed");
    }
    if !text(request, "/status/certificate").is_empty() {
        shown.push_str(",Issued");
    }
    shown.into()
}
