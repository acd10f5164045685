use std::collections::HashSet;

use serde_json::Value;

use super::meta::cluster;
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_1035_label, dns_subdomain, qualified_name},
    policy::{self, Mistake, Policy},
    read::{items, some, text},
};

/// Of conditions of one webhook or policy; upstream's bound.
const MOST_CONDITIONS: usize = 64;

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
    conditions(webhook, "/matchConditions", path, errors);
    let (_, mistakes) = policy::conditions(webhook, &path.to_string());
    told(mistakes, errors);
    client(webhook, path, errors);
    rules(webhook, "rules", path, errors);
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

fn rules(object: &Value, list: &str, path: &Path, errors: &mut Errors) {
    for (at, rule) in items(object, &format!("/{list}")).iter().enumerate() {
        let rules = path.field(list);
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

/// Expressions that are none.
fn told(mistakes: Vec<Mistake>, errors: &mut Errors) {
    for mistake in mistakes {
        let why = mistake.error.to_string();
        errors.invalid_text(&Path::root(&mistake.field), &mistake.expression, &why);
    }
}

/// matchConditions: their names; what they say is compiled elsewhere.
fn conditions(object: &Value, pointer: &str, path: &Path, errors: &mut Errors) {
    let list = path.field("matchConditions");
    let all = items(object, pointer);
    if all.len() > MOST_CONDITIONS {
        errors.too_many(&list, all.len(), MOST_CONDITIONS);
    }
    let mut names = HashSet::new();
    for (at, condition) in all.iter().enumerate() {
        let path = list.index(at);
        let name = text(condition, "/name");
        let name_path = path.field("name");
        if name.is_empty() {
            errors.required(&name_path, "");
        } else {
            errors.text_is(&name_path, name, qualified_name(name));
        }
        if !names.insert(name) {
            errors.duplicate(&name_path, name);
        }
        if text(condition, "/expression").trim().is_empty() {
            errors.required(&path.field("expression"), "");
        }
    }
}

const SPEC: Path = Path::root("spec");

pub(crate) fn validating_admission_policy(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let validations = items(object, "/spec/validations");
    if validations.is_empty() && items(object, "/spec/auditAnnotations").is_empty() {
        let says = "validations or auditAnnotations must contain at least one item";
        errors.required(&SPEC.field("validations"), says);
    }
    errors.maybe_one_of(
        &SPEC.field("failurePolicy"),
        text(object, "/spec/failurePolicy"),
        &["Fail", "Ignore"],
    );
    let constraints = SPEC.field("matchConstraints");
    match some(object, "/spec/matchConstraints") {
        None => errors.required(&constraints, ""),
        Some(given) => {
            if items(given, "/resourceRules").is_empty() {
                errors.required(&constraints.field("resourceRules"), "");
            }
            match_resources(given, &constraints, &mut errors);
        }
    }
    if let Some(kind) = some(object, "/spec/paramKind") {
        let path = SPEC.field("paramKind");
        for name in ["apiVersion", "kind"] {
            if text(kind, &format!("/{name}")).is_empty() {
                errors.required(&path.field(name), "");
            }
        }
    }
    conditions(object, "/spec/matchConditions", &SPEC, &mut errors);
    let mut names = HashSet::new();
    for (at, variable) in items(object, "/spec/variables").iter().enumerate() {
        let list = SPEC.field("variables");
        let path = list.index(at);
        let name = text(variable, "/name");
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() {
            errors.required(&path.field("name"), "name is required");
        } else if !plain {
            errors.invalid_text(
                &path.field("name"),
                name,
                "name is not a valid CEL identifier",
            );
        }
        if !names.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if text(variable, "/expression").trim().is_empty() {
            errors.required(&path.field("expression"), "expression is required");
        }
    }
    for (at, validation) in validations.iter().enumerate() {
        let list = SPEC.field("validations");
        let path = list.index(at);
        if text(validation, "/expression").trim().is_empty() {
            errors.required(&path.field("expression"), "expression is not specified");
        }
        let message = text(validation, "/message");
        if message.contains(['\n', '\r']) {
            errors.invalid_text(
                &path.field("message"),
                message,
                "message must not contain line breaks",
            );
        }
        errors.maybe_one_of(
            &path.field("reason"),
            text(validation, "/reason"),
            &[
                "Forbidden",
                "Invalid",
                "RequestEntityTooLarge",
                "Unauthorized",
            ],
        );
    }
    for (at, annotation) in items(object, "/spec/auditAnnotations").iter().enumerate() {
        let list = SPEC.field("auditAnnotations");
        let path = list.index(at);
        let key = text(annotation, "/key");
        errors.text_is(&path.field("key"), key, qualified_name(key));
        if text(annotation, "/valueExpression").trim().is_empty() {
            errors.required(
                &path.field("valueExpression"),
                "valueExpression is not specified",
            );
        }
    }
    let (_, mistakes) = Policy::compile(object);
    told(mistakes, &mut errors);
    errors.into_vec()
}

pub(crate) fn validating_admission_policy_binding(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let policy = text(object, "/spec/policyName");
    let path = SPEC.field("policyName");
    match policy {
        "" => errors.required(&path, ""),
        policy => errors.text_is(&path, policy, dns_subdomain(policy)),
    }
    if let Some(given) = some(object, "/spec/matchResources") {
        match_resources(given, &SPEC.field("matchResources"), &mut errors);
    }
    if let Some(param) = some(object, "/spec/paramRef") {
        let path = SPEC.field("paramRef");
        let selects = some(param, "/selector").is_some();
        match (text(param, "/name"), selects) {
            ("", false) => errors.required(&path, "one of name or selector must be specified"),
            (name, true) if !name.is_empty() => {
                let says = "name and selector are mutually exclusive";
                errors.forbidden(&path.field("name"), says);
            }
            _ => {}
        }
        errors.one_of(
            &path.field("parameterNotFoundAction"),
            text(param, "/parameterNotFoundAction"),
            &["Allow", "Deny"],
        );
    }
    let actions = items(object, "/spec/validationActions");
    let path = SPEC.field("validationActions");
    if actions.is_empty() {
        errors.required(&path, "at least one validation action is required");
    }
    let mut seen = HashSet::new();
    for (at, action) in actions.iter().enumerate() {
        let action = action.as_str().unwrap_or_default();
        errors.one_of(&path.index(at), action, &["Audit", "Deny", "Warn"]);
        if !seen.insert(action) {
            errors.duplicate(&path.index(at), action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        errors.invalid(
            &path,
            &Value::Array(actions.to_vec()),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        );
    }
    errors.into_vec()
}

fn match_resources(given: &Value, path: &Path, errors: &mut Errors) {
    errors.maybe_one_of(
        &path.field("matchPolicy"),
        text(given, "/matchPolicy"),
        &["Equivalent", "Exact"],
    );
    rules(given, "resourceRules", path, errors);
    rules(given, "excludeResourceRules", path, errors);
}

/// Groups that are served until somebody else serves them.
const HANDED_OVER: &str = "metrics.k8s.io";
const PRIORITY_MOST: (i64, i64) = (20_000, 1000);

pub(crate) fn api_service(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, |_| Vec::new());
    let (group, version) = (text(object, "/spec/group"), text(object, "/spec/version"));
    let name = text(object, "/metadata/name");
    let wanted = format!("{version}.{group}");
    if name != wanted {
        let metadata = Path::root("metadata");
        let says = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.invalid_text(&metadata.field("name"), name, &says);
    }
    if group.is_empty() && version != "v1" {
        errors.required(
            &SPEC.field("group"),
            "only v1 may have an empty group and it better be legacy kube",
        );
    } else if !group.is_empty() {
        errors.text_is(&SPEC.field("group"), group, dns_subdomain(group));
    }
    errors.text_is(&SPEC.field("version"), version, dns_1035_label(version));
    for (name, most) in [
        ("groupPriorityMinimum", PRIORITY_MOST.0),
        ("versionPriority", PRIORITY_MOST.1),
    ] {
        let value = some(object, &format!("/spec/{name}"));
        let number = value.and_then(Value::as_i64).unwrap_or(0);
        if !(1..=most).contains(&number) {
            let says = format!("must be positive and less than {most}");
            errors.invalid(&SPEC.field(name), value.unwrap_or(&0.into()), &says);
        }
    }
    let Some(to) = some(object, "/spec/service") else {
        let bundle = !text(object, "/spec/caBundle").is_empty();
        if bundle || object["spec"]["insecureSkipTLSVerify"] == true {
            let says = "local APIServices may not have a caBundle, and do not skip verification";
            errors.forbidden(&SPEC.field("caBundle"), says);
        }
        return errors.into_vec();
    };
    let service = SPEC.field("service");
    for name in ["namespace", "name"] {
        if text(to, &format!("/{name}")).is_empty() {
            errors.required(&service.field(name), "");
        }
    }
    if let Some(port) = some(to, "/port")
        && !port
            .as_i64()
            .is_some_and(|port| (1..=65_535).contains(&port))
    {
        errors.invalid(
            &service.field("port"),
            port,
            "must be between 1 and 65535, inclusive",
        );
    }
    let insecure = object["spec"]["insecureSkipTLSVerify"] == true;
    // One without a caBundle may get it later, as cert-manager's injector has it; until then it is not available.
    if insecure && !text(object, "/spec/caBundle").is_empty() {
        let says = "may not be true if caBundle is present";
        errors.invalid(&SPEC.field("insecureSkipTLSVerify"), &true.into(), says);
    }
    let ours = crate::all()
        .iter()
        .any(|kind| kind.group == group && kind.version == version);
    if ours && group != HANDED_OVER {
        let says =
            "this group and version is served by the server itself and can't be had from another";
        errors.forbidden(&service, says);
    }
    errors.into_vec()
}
