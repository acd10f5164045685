use std::collections::HashSet;

use serde_json::Value;

use super::meta::cluster;
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::dns_subdomain,
    read::{items, some, text},
};

const WEBHOOKS: Path = Path::root("webhooks");
/// In seconds.
const LONGEST: i64 = 30;

/// Of either kind of webhooks.
pub(crate) fn webhook_configuration(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let mut names = HashSet::new();
    for (at, webhook) in items(object, "/webhooks").iter().enumerate() {
        let path = WEBHOOKS.index(at);
        let name = text(webhook, "/name");
        let name_path = path.field("name");
        errors.text_is(&name_path, name, dns_subdomain(name));
        if name.split('.').count() < 3 {
            errors.invalid_text(
                &name_path,
                name,
                "should be a domain with at least three segments separated by dots",
            );
        }
        if !names.insert(name) {
            errors.duplicate(&name_path, name);
        }
        one(webhook, &path, &mut errors);
    }
    errors.into_vec()
}

fn one(webhook: &Value, path: &Path, errors: &mut Errors) {
    errors.one_of(
        &path.field("sideEffects"),
        text(webhook, "/sideEffects"),
        &["None", "NoneOnDryRun"],
    );
    errors.maybe_one_of(
        &path.field("failurePolicy"),
        text(webhook, "/failurePolicy"),
        &["Fail", "Ignore"],
    );
    errors.maybe_one_of(
        &path.field("matchPolicy"),
        text(webhook, "/matchPolicy"),
        &["Equivalent", "Exact"],
    );
    errors.maybe_one_of(
        &path.field("reinvocationPolicy"),
        text(webhook, "/reinvocationPolicy"),
        &["IfNeeded", "Never"],
    );
    let versions = items(webhook, "/admissionReviewVersions");
    let versions_path = path.field("admissionReviewVersions");
    if versions.is_empty() {
        errors.required(&versions_path, "must specify one of v1, v1beta1");
    } else if !versions.iter().any(|version| version == "v1") {
        errors.invalid(
            &versions_path,
            &Value::Array(versions.to_vec()),
            "must include at least one of v1",
        );
    }
    if let Some(timeout) = some(webhook, "/timeoutSeconds")
        && !timeout
            .as_i64()
            .is_some_and(|timeout| (1..=LONGEST).contains(&timeout))
    {
        errors.invalid(
            &path.field("timeoutSeconds"),
            timeout,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    if !items(webhook, "/matchConditions").is_empty() {
        errors.forbidden(
            &path.field("matchConditions"),
            "matchConditions are not built yet (they are CEL)",
        );
    }
    client(webhook, path, errors);
    rules(webhook, path, errors);
}

fn client(webhook: &Value, path: &Path, errors: &mut Errors) {
    let path = path.field("clientConfig");
    let url = some(webhook, "/clientConfig/url");
    let service = some(webhook, "/clientConfig/service");
    match (url, service) {
        (None, None) | (Some(_), Some(_)) => {
            errors.required(&path, "exactly one of url or service is required");
        }
        (Some(url), None) => {
            let text = url.as_str().unwrap_or_default();
            let path = path.field("url");
            if !text.starts_with("https://") {
                errors.invalid(
                    &path,
                    url,
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                );
            } else if text.contains(['#', '?', '@']) {
                errors.invalid(
                    &path,
                    url,
                    "user information, a query or a fragment is not permitted in the URL",
                );
            }
        }
        (None, Some(_)) => {
            let path = path.field("service");
            for name in ["name", "namespace"] {
                if text(webhook, &format!("/clientConfig/service/{name}")).is_empty() {
                    errors.required(&path.field(name), "");
                }
            }
        }
    }
}

fn rules(webhook: &Value, path: &Path, errors: &mut Errors) {
    for (at, rule) in items(webhook, "/rules").iter().enumerate() {
        let rules = path.field("rules");
        let path = rules.index(at);
        for list in ["operations", "apiGroups", "apiVersions", "resources"] {
            if items(rule, &format!("/{list}")).is_empty() {
                errors.required(&path.field(list), "");
            }
        }
        for (at, operation) in items(rule, "/operations").iter().enumerate() {
            errors.one_of(
                &path.field("operations").index(at),
                operation.as_str().unwrap_or_default(),
                &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"],
            );
        }
        errors.maybe_one_of(
            &path.field("scope"),
            text(rule, "/scope"),
            &["*", "Cluster", "Namespaced"],
        );
    }
}
