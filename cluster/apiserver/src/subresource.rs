//! What hangs below an object: `status`, `scale`, `binding`, `eviction`, `token` and what has its own form.

mod binding;
mod eviction;
mod scale;
mod token;

use http::Response;

use crate::{
    api::{Api, Call},
    body,
    failure::Failure,
    object, patch, read,
    request::Verb,
    respond::Body,
    write::{self, Part},
};

pub use binding::bind;
pub use scale::{Paths, scale_of, set_replicas};

pub async fn handle(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let name = call.asked.subresource.as_str();
    let known = call
        .resource
        .subresource(name)
        .ok_or_else(Failure::no_such_path)?;
    let verb = call.asked.verb;
    if !known.verbs.contains(&verb.as_str()) {
        return Err(Failure::method_not_allowed());
    }
    let part = match name {
        "status" => Part::Status,
        "ephemeralcontainers" => Part::EphemeralContainers,
        "resize" => Part::Resize,
        "finalize" => Part::Finalize,
        "approval" => Part::Approval,
        "scale" => return scale::handle(api, call).await,
        "binding" => return binding::create(api, call).await,
        "eviction" => return eviction::create(api, call).await,
        "token" => return token::create(api, call).await,
        other => {
            return Err(Failure::not_implemented(format!(
                "{}/{other}",
                call.resource.plural
            )));
        }
    };
    match verb {
        Verb::Get => read::get(api, call).await,
        Verb::Patch => patch::handle(api, call, part).await,
        Verb::Update => update(api, call, part).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// PUT, of an object or of a part of it that has its form.
pub async fn update(api: &Api, call: &Call, part: Part) -> Result<Response<Body>, Failure> {
    let new = body::object(call, &body::kind_of(&call.resource), false)?;
    let (resource, asked) = (&call.resource, &call.asked);
    let result = write::modify(
        api,
        &call.actor,
        resource,
        &asked.namespace,
        &asked.name,
        part,
        |_| Ok(new.clone()),
    )
    .await;
    match result {
        // Some kinds are made by an update, upstream's AllowCreateOnUpdate.
        Err(failure)
            if failure.code == 404
                && part == Part::Main
                && object::resource_version(&new).is_empty()
                && CREATED_BY_UPDATE
                    .iter()
                    .any(|(group, plural)| resource.is(group, plural)) =>
        {
            let made = write::create(api, &call.actor, resource, &asked.namespace, new).await?;
            Ok(call.wants.object(201, resource, &made))
        }
        result => Ok(call.wants.object(200, resource, &result?)),
    }
}

const CREATED_BY_UPDATE: [(&str, &str); 8] = [
    ("", "endpoints"),
    ("", "events"),
    ("", "limitranges"),
    ("coordination.k8s.io", "leases"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
];
