//! RBAC, certificates, and questions about both.

use serde_json::Value;

use super::meta::{changed, cluster, namespaced};
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    name::{dns_subdomain, path_segment},
    read::{items, some, text},
};

const RBAC: &str = "rbac.authorization.k8s.io";

fn rules(object: &Value, cluster: bool, errors: &mut Errors) {
    let list = Path::root("rules");
    for (at, rule) in items(object, "/rules").iter().enumerate() {
        let path = list.index(at);
        let (resources, urls) = (items(rule, "/resources"), items(rule, "/nonResourceURLs"));
        if items(rule, "/verbs").is_empty() {
            errors.required(
                &path.field("verbs"),
                "verbs must contain at least one value",
            );
        }
        if !urls.is_empty() {
            if !cluster {
                errors.invalid(
                    &path.field("nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !resources.is_empty()
                || !items(rule, "/apiGroups").is_empty()
                || !items(rule, "/resourceNames").is_empty()
            {
                errors.invalid(
                    &path.field("nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if items(rule, "/apiGroups").is_empty() {
            errors.required(
                &path.field("apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if resources.is_empty() {
            errors.required(
                &path.field("resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

pub(crate) fn role(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, path_segment);
    rules(object, false, &mut errors);
    errors.into_vec()
}

pub(crate) fn cluster_role(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, path_segment);
    rules(object, true, &mut errors);
    if some(object, "/aggregationRule").is_some() {
        let path = Path::root("aggregationRule");
        let list = path.field("clusterRoleSelectors");
        let selectors = items(object, "/aggregationRule/clusterRoleSelectors");
        if selectors.is_empty() {
            errors.required(
                &list,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        for (at, value) in selectors.iter().enumerate() {
            super::meta::selector(value, &list.index(at), &mut errors);
        }
    }
    errors.into_vec()
}

fn binding(object: &Value, roles: &[&str], errors: &mut Errors) {
    let path = Path::root("roleRef");
    let group = text(object, "/roleRef/apiGroup");
    if group != RBAC {
        errors.not_supported(&path.field("apiGroup"), group, &[RBAC]);
    }
    let kind = text(object, "/roleRef/kind");
    if !roles.contains(&kind) {
        errors.not_supported(&path.field("kind"), kind, roles);
    }
    match text(object, "/roleRef/name") {
        "" => errors.required(&path.field("name"), ""),
        name => errors.text_is(&path.field("name"), name, path_segment(name)),
    }
    let cluster = roles.len() == 1;
    let list = Path::root("subjects");
    for (at, subject) in items(object, "/subjects").iter().enumerate() {
        let path = list.index(at);
        let (name, group) = (text(subject, "/name"), text(subject, "/apiGroup"));
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        }
        match text(subject, "/kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.text_is(&path.field("name"), name, dns_subdomain(name));
                }
                if !group.is_empty() {
                    errors.not_supported(&path.field("apiGroup"), group, &[""]);
                }
                if cluster && text(subject, "/namespace").is_empty() {
                    errors.required(&path.field("namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    errors.not_supported(&path.field("apiGroup"), group, &[RBAC]);
                }
            }
            kind => errors.not_supported(
                &path.field("kind"),
                kind,
                &["Group", "ServiceAccount", "User"],
            ),
        }
    }
}

pub(crate) fn role_binding(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, path_segment);
    binding(object, &["ClusterRole", "Role"], &mut errors);
    errors.into_vec()
}

pub(crate) fn cluster_role_binding(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, path_segment);
    binding(object, &["ClusterRole"], &mut errors);
    errors.into_vec()
}

pub(crate) fn binding_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let null = &Value::Null;
    let (now, before) = (
        new.get("roleRef").unwrap_or(null),
        old.get("roleRef").unwrap_or(null),
    );
    if !same(now, before) {
        errors.invalid(&Path::root("roleRef"), now, "cannot change roleRef");
    }
    errors.into_vec()
}

/// Shorter lives than this are none: ten minutes.
const CERTIFICATE_SECONDS: i64 = 600;

pub(crate) fn certificate_signing_request(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, path_segment);
    let spec = Path::root("spec");
    if text(object, "/spec/request").is_empty() {
        errors.required(&spec.field("request"), "");
    }
    if items(object, "/spec/usages").is_empty() {
        errors.required(&spec.field("usages"), "");
    }
    let signer = text(object, "/spec/signerName");
    let path = &spec.field("signerName");
    if signer.is_empty() {
        errors.required(path, "");
    } else {
        match signer.split_once('/') {
            Some((domain, rest)) if !rest.is_empty() && domain.contains('.') => {
                errors.text_is(path, signer, dns_subdomain(domain));
            }
            _ => errors.invalid_text(
                path,
                signer,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
        }
    }
    if let Some(seconds) = some(object, "/spec/expirationSeconds")
        && seconds
            .as_i64()
            .is_some_and(|seconds| seconds < CERTIFICATE_SECONDS)
    {
        errors.invalid(
            &spec.field("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    let conditions = items(object, "/status/conditions");
    let has = |kind| {
        conditions
            .iter()
            .any(|condition| text(condition, "/type") == kind)
    };
    if has("Approved") && has("Denied") {
        errors.invalid_text(
            &Path::root("status").field("conditions"),
            "Approved",
            "Approved and Denied conditions are mutually exclusive",
        );
    }
    errors.into_vec()
}

/// Of SubjectAccessReview and its kin: about a resource, or about a path.
pub(crate) fn access_review(object: &Value) -> Vec<Invalid> {
    let mut errors = Errors::default();
    let spec = Path::root("spec");
    let own = text(object, "/kind").starts_with("Self");
    if !own && text(object, "/spec/user").is_empty() && items(object, "/spec/groups").is_empty() {
        errors.invalid_text(
            &spec.field("user"),
            "",
            "at least one of user or group must be specified",
        );
    }
    match (
        some(object, "/spec/resourceAttributes"),
        some(object, "/spec/nonResourceAttributes"),
    ) {
        (Some(_), Some(_)) => errors.invalid(
            &spec.field("nonResourceAttributes"),
            &object["spec"]["nonResourceAttributes"],
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => errors.invalid(
            &spec.field("resourceAttributes"),
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    errors.into_vec()
}
