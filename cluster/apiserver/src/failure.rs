//! Why a request fails, as clients of the API get it: meta/v1 Status. They match on code, reason, message and causes, so these are upstream's.

use std::fmt;

use berth_kinds::Invalid;
use serde_json::{Map, Value, json};

use crate::catalog::Resource;

#[derive(Debug, Clone)]
pub struct Failure {
    pub code: u16,
    /// metav1.StatusReason; empty: none.
    pub reason: &'static str,
    pub message: String,
    pub details: Map<String, Value>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Failure {}

/// metav1.StatusCause.
#[derive(Debug, Clone)]
pub struct Cause {
    pub reason: &'static str,
    pub message: String,
    pub field: String,
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Map::new(),
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                self.details.insert(key.into(), value.into());
            }
        }
        self
    }

    fn because(mut self, causes: Vec<Cause>) -> Self {
        if !causes.is_empty() {
            let causes = causes
                .into_iter()
                .map(|cause| {
                    let mut value = json!({"reason": cause.reason, "message": cause.message});
                    if !cause.field.is_empty() {
                        value["field"] = cause.field.into();
                    }
                    value
                })
                .collect();
            self.details.insert("causes".into(), Value::Array(causes));
        }
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details
            .insert("retryAfterSeconds".into(), seconds.into());
        self
    }

    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.details.get("retryAfterSeconds")?.as_u64()
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// A path that may not be asked for.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("forbidden: User {user:?} cannot {verb} path {path:?}"),
        )
    }

    /// `why` goes behind `NAME is forbidden: `.
    pub fn forbidden(resource: &Resource, name: &str, why: impl fmt::Display) -> Self {
        Self::forbidden_of(&resource.group, &resource.plural, name, why)
    }

    pub fn forbidden_of(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = qualified(plural, group);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    pub fn namespace_terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        Self::forbidden(
            resource,
            name,
            format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
        )
        .because(vec![Cause {
            reason: "NamespaceTerminating",
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        }])
    }

    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::not_found_of(&resource.group, &resource.plural, name)
    }

    pub fn not_found_of(group: &str, plural: &str, name: &str) -> Self {
        let what = qualified(plural, group);
        Self::new(404, "NotFound", format!("{what} {name:?} not found")).about(group, plural, name)
    }

    pub fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        )
    }

    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let what = resource.qualified();
        Self::new(
            409,
            "AlreadyExists",
            format!("{what} {name:?} already exists"),
        )
        .about(&resource.group, &resource.plural, name)
    }

    pub fn conflict(resource: &Resource, name: &str, why: impl fmt::Display) -> Self {
        let what = resource.qualified();
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {what} {name:?}: {why}"),
        )
        .about(&resource.group, &resource.plural, name)
    }

    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Server-side apply's: `causes` are (message, field).
    pub fn apply_conflict(message: String, causes: Vec<(String, String)>) -> Self {
        Self::new(409, "Conflict", message).because(
            causes
                .into_iter()
                .map(|(message, field)| Cause {
                    reason: "FieldManagerConflict",
                    message,
                    field,
                })
                .collect(),
        )
    }

    /// A webhook says no, with a code of its own.
    pub fn denied(code: u16, message: String) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            422 => "Invalid",
            429 => "TooManyRequests",
            _ => "",
        };
        Self::new(code, reason, message)
    }

    /// A policy of admission says no, for one of its reasons; 422 where it gives none.
    pub fn of_policy(resource: &Resource, name: &str, reason: &str, message: String) -> Self {
        let mut failure = Self::forbidden(resource, name, &message);
        (failure.code, failure.reason) = match reason {
            "Unauthorized" => (401, "Unauthorized"),
            "Forbidden" => (403, "Forbidden"),
            "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
            _ => (422, "Invalid"),
        };
        let causes = json!([{"message": message}]);
        failure.details.insert("causes".into(), causes);
        failure
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// The continue token's revision has been compacted away.
    pub fn continue_expired() -> Self {
        Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        )
    }

    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit_bytes}"),
        )
    }

    pub fn too_large_patch(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    pub fn invalid(resource: &Resource, name: &str, errors: Vec<Invalid>) -> Self {
        Self::invalid_of(&resource.group, &resource.kind, name, errors)
    }

    pub fn invalid_of(group: &str, kind: &str, name: &str, errors: Vec<Invalid>) -> Self {
        let texts: Vec<String> = errors
            .iter()
            .map(|error| {
                if error.field.is_empty() {
                    error.message.clone()
                } else {
                    format!("{}: {}", error.field, error.message)
                }
            })
            .collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let what = qualified(kind, group);
        Self::new(
            422,
            "Invalid",
            format!("{what} {name:?} is invalid: {text}"),
        )
        .about(group, kind, name)
        .because(
            errors
                .into_iter()
                .map(|error| Cause {
                    reason: error.reason.as_str(),
                    message: error.message,
                    field: error.field,
                })
                .collect(),
        )
    }

    /// A patch that can't be applied.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(seconds)
    }

    pub fn disruption_budget(name: &str, healthy: i64, desired: i64) -> Self {
        Self::new(
            429,
            "TooManyRequests",
            "Cannot evict pod as it would violate the pod's disruption budget.",
        )
        .because(vec![Cause {
            reason: "DisruptionBudget",
            message: format!(
                "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
            ),
            field: String::new(),
        }])
    }

    /// A resourceVersion of the future.
    pub fn future_revision(asked: u64, newest: u64) -> Self {
        Self::new(
            504,
            "Timeout",
            format!("Too large resource version: {asked}, current: {newest}"),
        )
        .because(vec![Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
            field: String::new(),
        }])
        .retry_after(1)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message).retry_after(1)
    }

    /// Whom a proxy leads to can't be reached. Without a time to try again: clients would, ten times.
    pub fn unreached(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// Whom a request goes on to can't be reached: upstream's error without a reason.
    pub fn of_backend(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// What another server has answered, which spoke no Status (upstream's NewGenericServerResponse).
    pub fn of_status(code: u16, group: &str, plural: &str, name: &str, said: &str) -> Self {
        let reason = match code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 => "Conflict",
            413 => "RequestEntityTooLarge",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "Unknown",
        };
        let what = qualified(plural, group);
        let mut message = match code {
            404 => "the server could not find the requested resource".to_owned(),
            503 => "the server is currently unable to handle the request".to_owned(),
            _ => format!(
                "the server responded with the status code {code} but did not return more information"
            ),
        };
        if !said.is_empty() && code != 404 {
            said.clone_into(&mut message);
        }
        let code = if (400..600).contains(&code) {
            code
        } else {
            500
        };
        Self::new(code, reason, format!("{message} ( {what} {name})"))
            .about(group, plural, name)
            .because(vec![Cause {
                reason: "UnexpectedServerResponse",
                message: said.to_owned(),
                field: String::new(),
            }])
    }

    /// What is not built; `what` names it.
    pub fn not_implemented(what: impl fmt::Display) -> Self {
        Self::new(501, "NotImplemented", format!("{what} is not built yet"))
    }

    pub fn internal(error: impl fmt::Display) -> Self {
        let message = error.to_string();
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
        .because(vec![Cause {
            reason: "",
            message,
            field: String::new(),
        }])
    }

    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if !self.details.is_empty() || self.code == 403 || self.code == 404 {
            status["details"] = Value::Object(self.details.clone());
        }
        status
    }
}

/// schema.GroupResource and schema.GroupKind as upstream prints them.
pub fn qualified(what: &str, group: &str) -> String {
    if group.is_empty() {
        what.to_owned()
    } else {
        format!("{what}.{group}")
    }
}

impl From<berth_store::Error> for Failure {
    fn from(error: berth_store::Error) -> Self {
        use berth_store::Error;
        match error {
            Error::Compacted { asked, compacted } => Self::too_old(asked, compacted),
            Error::Future { asked, newest } => Self::future_revision(asked, newest),
            error => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_kinds::Reason;

    use super::*;

    #[test]
    fn messages_are_those_that_clients_match_on() {
        let group = |group, plural, name| Failure::not_found_of(group, plural, name).message;
        assert_eq!(group("", "pods", "x"), "pods \"x\" not found");
        assert_eq!(
            group("apps", "deployments", "x"),
            "deployments.apps \"x\" not found"
        );
        let invalid = Failure::invalid_of(
            "apps",
            "Deployment",
            "web",
            vec![Invalid {
                field: "spec.replicas".into(),
                reason: Reason::Invalid,
                message: "Invalid value: -1: must be greater than or equal to 0".into(),
            }],
        );
        assert_eq!(
            invalid.message,
            "Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        let value = invalid.to_value();
        assert_eq!(value["code"], 422);
        assert_eq!(
            value.pointer("/details/causes/0/reason"),
            Some(&json!("FieldValueInvalid"))
        );
        assert_eq!(value.pointer("/details/kind"), Some(&json!("Deployment")));
    }
}
