//! SubjectAccessReview and its kin (authorization.k8s.io/v1).

use serde_json::{Value, json};

use crate::{Attributes, Decision, User};

/// Who and what the `spec` of a SubjectAccessReview or LocalSubjectAccessReview asks about; of a SelfSubjectAccessReview, with `me` for the user.
pub fn question(spec: &Value, me: Option<&User>) -> Result<(User, Attributes), String> {
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
    let user = match me {
        Some(me) => me.clone(),
        None => {
            let user = User {
                username: text(spec, "user"),
                uid: text(spec, "uid"),
                groups: match &spec["groups"] {
                    Value::Null => Vec::new(),
                    groups => serde_json::from_value(groups.clone())
                        .map_err(|e| format!("spec.groups: {e}"))?,
                },
                extra: match &spec["extra"] {
                    Value::Null => Default::default(),
                    extra => serde_json::from_value(extra.clone())
                        .map_err(|e| format!("spec.extra: {e}"))?,
                },
            };
            if user.username.is_empty() && user.groups.is_empty() {
                return Err("spec.user: at least one of user or group must be specified".to_owned());
            }
            user
        }
    };
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let asked = match (resource.is_object(), other.is_object()) {
        (true, false) => Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            ..Attributes::default()
        },
        (false, true) => Attributes {
            verb: text(other, "verb"),
            path: text(other, "path"),
            ..Attributes::default()
        },
        _ => {
            return Err(
                "spec.resourceAttributes: exactly one of nonResourceAttributes or resourceAttributes must be specified"
                    .to_owned(),
            );
        }
    };
    Ok((user, asked))
}

/// The `status` that answers it.
pub fn status(decision: &Decision) -> Value {
    let (allowed, denied, reason) = match decision {
        Decision::Allow { reason } => (true, false, reason),
        Decision::Deny { reason } => (false, true, reason),
        Decision::NoOpinion { reason } => (false, false, reason),
    };
    let mut status = json!({ "allowed": allowed });
    if denied {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.as_str().into();
    }
    status
}
