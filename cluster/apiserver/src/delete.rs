//! Objects are deleted: at once, or when what keeps them (a grace period, finalizers) is over.

use serde_json::{Value, json};

use crate::{
    admission::{self, Act, webhooks},
    api::{Actor, Api},
    catalog::Resource,
    clock,
    failure::Failure,
    object,
    storage::{Beside, Written},
    write::is_finished,
};

const ATTEMPTS: usize = 8;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// meta/v1 DeleteOptions.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// `body` is null where there is none; the query's parameters hold where it says nothing.
    pub fn parse(body: &Value, query: &crate::request::Query) -> Result<Self, Failure> {
        let mut options = Self::default();
        let invalid = |message: &str| {
            Failure::unprocessable(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: {message}"
            ))
        };
        options.grace = match body.get("gracePeriodSeconds") {
            None | Some(Value::Null) => query.number("gracePeriodSeconds")?,
            Some(value) => Some(
                value
                    .as_i64()
                    .ok_or_else(|| Failure::bad_request("gracePeriodSeconds is no integer"))?,
            ),
        };
        if options.grace.is_some_and(|grace| grace < 0) {
            return Err(invalid(
                "gracePeriodSeconds: Invalid value: must be greater than or equal to 0",
            ));
        }
        let policy = match body.get("propagationPolicy").and_then(Value::as_str) {
            Some(policy) => policy,
            None => query.get("propagationPolicy"),
        };
        options.propagation = match policy {
            "" => match body.get("orphanDependents").and_then(Value::as_bool) {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None if query.has("orphanDependents") => Some(if query.flag("orphanDependents") {
                    Propagation::Orphan
                } else {
                    Propagation::Background
                }),
                None => None,
            },
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            "Orphan" => Some(Propagation::Orphan),
            other => {
                return Err(invalid(&format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
                )));
            }
        };
        for value in body
            .get("dryRun")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if value.as_str() != Some("All") {
                return Err(invalid(&format!(
                    "dryRun: Unsupported value: {value}: supported values: \"All\""
                )));
            }
            options.dry_run = true;
        }
        let precondition = |name: &str| {
            body.pointer(&format!("/preconditions/{name}"))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        options.uid = precondition("uid");
        options.resource_version = precondition("resourceVersion");
        Ok(options)
    }
}

#[derive(Debug)]
pub enum Deleted {
    /// It is gone; as it was last.
    Gone(Value),
    /// It will be gone; as it is now.
    Going(Value),
}

impl Deleted {
    pub fn into_object(self) -> Value {
        match self {
            Self::Gone(object) | Self::Going(object) => object,
        }
    }
}

/// # Errors
/// 404, 409 (preconditions), 403 of an admission.
pub async fn delete(
    api: &Api,
    actor: &Actor,
    resource: &Resource,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, Failure> {
    let key = resource.key(namespace, name);
    for _ in 0..ATTEMPTS {
        let Some(stored) = api.storage.read(&key).await? else {
            return Err(Failure::not_found(resource, name));
        };
        let mut old = stored.value;
        resource.as_served(&mut old);
        check(resource, name, options, &old)?;
        let act = Act::delete(resource, namespace, name);
        admission::validate(api, actor, &act, Some(&old), None).await?;
        webhooks::validate(api, actor, &act, Some(&old), None).await?;
        let mut new = old.clone();
        let remove = mark(resource, options, &mut new);
        if actor.dry_run || options.dry_run {
            return Ok(if remove {
                Deleted::Gone(old)
            } else {
                Deleted::Going(new)
            });
        }
        let written = if remove {
            api.storage.remove(&key, stored.revision).await?
        } else if object::same(&old, &new) {
            return Ok(Deleted::Going(old));
        } else {
            let mut stored_new = new.clone();
            resource.to_stored(&mut stored_new);
            api.storage
                .put(&key, &stored_new, stored.revision, &Beside::default())
                .await?
        };
        if let Written::At(revision) = written {
            if remove {
                api.service_ips.release(resource, &old);
                return Ok(Deleted::Gone(old));
            }
            object::set_resource_version(&mut new, revision);
            return Ok(Deleted::Going(new));
        }
        if options.resource_version.is_some() {
            // it is looked at again, and the precondition answers
            continue;
        }
    }
    Err(Failure::modified(resource, name))
}

fn check(
    resource: &Resource,
    name: &str,
    options: &DeleteOptions,
    old: &Value,
) -> Result<(), Failure> {
    for (what, wanted, is) in [
        ("UID", &options.uid, object::uid(old)),
        (
            "ResourceVersion",
            &options.resource_version,
            object::resource_version(old),
        ),
    ] {
        if let Some(wanted) = wanted
            && wanted != is
        {
            return Err(Failure::conflict(
                resource,
                name,
                format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). The object might have been deleted and then recreated"
                ),
            ));
        }
    }
    Ok(())
}

/// Makes `value` what it is while it is being deleted; whether it is gone at once.
fn mark(resource: &Resource, options: &DeleteOptions, value: &mut Value) -> bool {
    let mut finalizers: Vec<String> = object::finalizers(value)
        .into_iter()
        .map(Into::into)
        .collect();
    if let Some(propagation) = options.propagation {
        finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND.into()),
            Propagation::Orphan => finalizers.push(ORPHAN.into()),
        }
    }
    object::set_finalizers(value, finalizers);
    let now = clock::now();
    if object::is_deleting(value) {
        let before = object::number(value, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
        if let Some(grace) = options.grace
            && grace < before
        {
            let until = clock::parse(object::text(value, "/metadata/deletionTimestamp"));
            let start = until.unwrap_or(now) - before;
            object::set(value, "deletionTimestamp", clock::time(start + grace));
            object::set(value, "deletionGracePeriodSeconds", grace);
        }
    } else {
        let grace = grace(resource, options, value);
        object::set(value, "deletionTimestamp", clock::time(now + grace));
        object::set(value, "deletionGracePeriodSeconds", grace);
        if let Some(generation) = object::number(value, "/metadata/generation")
            && generation > 0
        {
            object::set(value, "generation", generation + 1);
        }
        if resource.is("", "namespaces") {
            object::part(value, "status").insert("phase".into(), "Terminating".into());
        }
    }
    is_finished(resource, value)
}

/// Only pods have one.
fn grace(resource: &Resource, options: &DeleteOptions, value: &Value) -> i64 {
    /// Where the pod says nothing (v1.DefaultTerminationGracePeriodSeconds).
    const DEFAULT: i64 = 30;
    if !resource.is("", "pods") {
        return 0;
    }
    let runs_nowhere = object::text(value, "/spec/nodeName").is_empty();
    let is_over = matches!(object::text(value, "/status/phase"), "Succeeded" | "Failed");
    if runs_nowhere || is_over {
        return 0;
    }
    let own = object::number(value, "/spec/terminationGracePeriodSeconds").unwrap_or(DEFAULT);
    let grace = options.grace.unwrap_or(own);
    // a negative one ends at once, but tells the kubelet
    if grace < 0 { 1 } else { grace }
}

/// Kinds whose deleted object is answered, not a Status (upstream's ReturnDeletedObject).
const ANSWER_OBJECT: [(&str, &str); 9] = [
    ("", "pods"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];

/// What the client gets.
pub fn answer(resource: &Resource, deleted: Deleted) -> Value {
    match deleted {
        Deleted::Gone(object)
            if !ANSWER_OBJECT
                .iter()
                .any(|(group, plural)| resource.is(group, plural)) =>
        {
            let mut details = json!({"name": object::name(&object), "kind": resource.plural});
            if !resource.group.is_empty() {
                details["group"] = resource.group.as_str().into();
            }
            let uid = object::uid(&object);
            if !uid.is_empty() {
                details["uid"] = uid.into();
            }
            json!({
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": details,
            })
        }
        deleted => deleted.into_object(),
    }
}
