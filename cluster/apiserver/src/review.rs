//! Kinds that can only be made, and are answered at once: reviews, and bindings.

use berth_auth::{Decision, review};
use http::Response;
use serde_json::{Value, json};

use crate::{
    api::{Api, Call},
    authenticate, body,
    failure::Failure,
    figures, object,
    respond::Body,
    subresource,
};

pub async fn create(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let resource = &call.resource;
    let mut review = body::object(call, &body::kind_of(resource), false)?;
    let user = &call.actor.user;
    let spec = review.get("spec").cloned().unwrap_or_else(|| json!({}));
    let invalid = |why: String| {
        let (field, message) = why.split_once(": ").unwrap_or(("spec", why.as_str()));
        Failure::invalid(
            resource,
            "",
            vec![berth_kinds::Invalid {
                field: field.into(),
                reason: berth_kinds::Reason::Invalid,
                message: format!("Invalid value: {message}"),
            }],
        )
    };
    match resource.plural.as_str() {
        "selfsubjectreviews" => review["status"] = json!({"userInfo": user}),
        "selfsubjectaccessreviews" | "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let me = (resource.plural == "selfsubjectaccessreviews").then_some(user);
            let (who, asked) = review::question(&spec, me).map_err(invalid)?;
            if resource.plural == "localsubjectaccessreviews"
                && asked.namespace != call.asked.namespace
            {
                return Err(invalid(
                    "spec.resourceAttributes.namespace: must match the namespace of the review"
                        .into(),
                ));
            }
            let decision = api.authorizer.authorize(&who, &asked);
            review["status"] = review::status(&decision);
        }
        "selfsubjectrulesreviews" => {
            let namespace = object::text(&spec, "/namespace");
            if namespace.is_empty() {
                return Err(Failure::bad_request("no namespace on request"));
            }
            let (mut resources, mut paths) = (Vec::new(), Vec::new());
            for rule in api.rbac.rules(user, namespace) {
                let part = |name: &str| rule.get(name).cloned().unwrap_or_else(|| json!([]));
                if rule.get("nonResourceURLs").is_some_and(is_filled) {
                    paths.push(
                        json!({"verbs": part("verbs"), "nonResourceURLs": part("nonResourceURLs")}),
                    );
                } else {
                    resources.push(json!({
                        "verbs": part("verbs"),
                        "apiGroups": part("apiGroups"),
                        "resources": part("resources"),
                        "resourceNames": part("resourceNames"),
                    }));
                }
            }
            review["status"] = json!({
                "resourceRules": resources,
                "nonResourceRules": paths,
                "incomplete": false,
            });
        }
        "tokenreviews" => {
            // It is told again in the answer: clients take an object without it for none.
            let token = object::text(&spec, "/token");
            if token.is_empty() {
                return Err(Failure::bad_request(
                    "token is required for TokenReview in authentication",
                ));
            }
            let audiences: Vec<String> = spec["audiences"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|audience| audience.as_str().map(str::to_owned))
                .collect();
            review["status"] = match authenticate::bearer(api, token, &audiences).await {
                Ok((user, audiences)) => json!({
                    "authenticated": true,
                    "user": user,
                    "audiences": audiences,
                }),
                Err(failure) if failure.code == 401 => json!({
                    "user": {},
                    "error": "the token is not valid",
                }),
                Err(failure) => return Err(failure),
            };
        }
        "bindings" => {
            subresource::bind(api, &call.actor, &call.asked.namespace, "", &review).await?;
            return Ok(call.wants.value(
                201,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
            ));
        }
        other => return Err(Failure::not_implemented(other)),
    }
    Ok(call.wants.value(201, &review))
}

fn is_filled(value: &Value) -> bool {
    value.as_array().is_some_and(|all| !all.is_empty())
}

/// Kinds that can be listed and are kept nowhere: componentstatuses, metrics.
pub async fn read(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let resource = &call.resource;
    let items: Vec<Value> = match resource.plural.as_str() {
        "componentstatuses" => {
            let store = api.storage.store.revision().await;
            let condition = match store {
                Ok(_) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
                Err(error) => {
                    json!({"type": "Healthy", "status": "False", "message": error.to_string()})
                }
            };
            vec![json!({
                "apiVersion": "v1",
                "kind": "ComponentStatus",
                "metadata": {"name": "etcd-0"},
                "conditions": [condition],
            })]
        }
        _ if resource.group == figures::GROUP => figures::read(api, call).await?,
        _ => Vec::new(),
    };
    if !call.asked.name.is_empty() {
        let item = items
            .iter()
            .find(|item| object::name(item) == call.asked.name)
            .ok_or_else(|| Failure::not_found(resource, &call.asked.name))?;
        return Ok(call.wants.object(200, resource, item));
    }
    let items = items
        .iter()
        .map(|item| serde_json::to_vec(item).unwrap_or_default().into())
        .collect();
    let meta = crate::respond::ListMeta {
        resource_version: api.cache.revision(),
        ..Default::default()
    };
    Ok(call.wants.list(resource, &meta, items))
}

/// Whether a decision allows.
pub fn allows(decision: &Decision) -> bool {
    matches!(decision, Decision::Allow { .. })
}
