//! Webhooks: others that change or refuse what is written, asked over HTTPS (admission.k8s.io/v1).
//!
//! Each is called within its timeout; what its failure means is its failurePolicy's to say, exactly (SEC-API-10). Its certificate must be of its caBundle, no
//! redirect is followed (SEC-API-02), and its answer is bounded. The configurations themselves are not asked about: else nobody could mend them. Nor is what
//! this server writes by itself; what it deletes by itself (garbage, what is in a namespace) is, as upstream's controllers' deletes are.

mod call;
pub(super) mod matching;

use std::sync::Arc;

use berth_patch::PatchType;
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use serde_json::{Value, json};

use super::{Act, policies};
use crate::{
    api::{Actor, Api},
    body,
    catalog::Resource,
    failure::Failure,
    object, subresource,
};

pub use call::Calls;

pub const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";
/// One that wants to be asked again where others have changed something after it is asked once more.
const ROUNDS: usize = 2;
/// Of one request: those that refuse are asked side by side.
const AT_ONCE: usize = 16;

/// A webhook that is to be asked.
#[derive(Debug)]
struct Hook {
    webhook: Value,
    /// In which version it wants the object.
    resource: Arc<Resource>,
}

impl Hook {
    fn name(&self) -> &str {
        object::text(&self.webhook, "/name")
    }
}

/// What happens, as a webhook is told of it.
#[derive(Debug)]
pub(super) struct Review<'a> {
    pub(super) actor: &'a Actor,
    pub(super) act: &'a Act<'a>,
    operation: &'static str,
    pub(super) old: Option<&'a Value>,
}

impl<'a> Review<'a> {
    /// None where nobody is asked about it.
    fn of(actor: &'a Actor, act: &'a Act<'a>, old: Option<&'a Value>) -> Option<Self> {
        let operation = match act.verb {
            "create" => "CREATE",
            "delete" => "DELETE",
            "connect" => "CONNECT",
            _ => "UPDATE",
        };
        let own = actor.internal && operation != "DELETE";
        (act.resource.group != GROUP && !own).then_some(Self {
            actor,
            act,
            operation,
            old,
        })
    }

    /// `value` of the resource that is written, in the version of `wanted`.
    pub(super) fn told(&self, wanted: &Resource, value: &Value) -> Value {
        let resource = self.act.resource;
        if self.act.subresource == "scale" {
            return subresource::scale_of(resource, value).unwrap_or_default();
        }
        let mut value = value.clone();
        if self.converts(wanted) {
            resource.to_stored(&mut value);
            wanted.as_served(&mut value);
        }
        value
    }

    fn converts(&self, wanted: &Resource) -> bool {
        let resource = self.act.resource;
        self.other_kind().is_none()
            && (wanted.version != resource.version || wanted.group != resource.group)
    }

    /// Group, version and kind of what is sent to a subresource that takes another kind.
    fn other_kind(&self) -> Option<(&'static str, &'static str, &'static str)> {
        self.act
            .resource
            .subresource(self.act.subresource)
            .and_then(|sub| sub.kind)
    }
}

/// Those that are to be asked.
///
/// # Errors
/// 500 where whether one is to be asked can't be known, and it must be.
fn hooks(
    api: &Api,
    storage: &str,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Result<Vec<Hook>, Failure> {
    let shard = api.cache.shard(storage);
    if shard.is_empty("") {
        return Ok(Vec::new());
    }
    let (entries, _) = shard.list("", "");
    let webhooks = entries
        .iter()
        .flat_map(|entry| match entry.value()["webhooks"].take() {
            Value::Array(webhooks) => webhooks,
            _ => Vec::new(),
        });
    let mut hooks = Vec::new();
    for webhook in webhooks {
        let Some(resource) = matching::matches(api, &webhook, review, new) else {
            continue;
        };
        let hook = Hook { webhook, resource };
        if meets_conditions(api, &hook, review, new)? {
            hooks.push(hook);
        }
    }
    Ok(hooks)
}

/// Its matchConditions, where it has any.
fn meets_conditions(
    api: &Api,
    hook: &Hook,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Result<bool, Failure> {
    let given = hook.webhook["matchConditions"].as_array();
    if given.is_none_or(Vec::is_empty) {
        return Ok(true);
    }
    let (conditions, mistakes) = berth_kinds::policy::conditions(&hook.webhook, "");
    let met = match mistakes.first() {
        Some(mistake) => Err(mistake.error.to_string()),
        None => policies::Facts::of(api, review, &hook.resource, new).meet(&conditions),
    };
    match met {
        Ok(met) => Ok(met),
        Err(_) if hook.webhook["failurePolicy"] == "Ignore" => Ok(false),
        Err(why) => Err(Failure::internal(format!(
            "failed calling webhook {:?}: its match conditions: {why}",
            hook.name()
        ))),
    }
}

/// Asks those that may change `new`, one after the other; whether any has.
///
/// # Errors
/// 403 or what a webhook says; 500 of one that can't be asked and must be.
pub async fn mutate(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: &mut Value,
) -> Result<bool, Failure> {
    let Some(review) = Review::of(actor, act, old) else {
        return Ok(false);
    };
    let hooks = hooks(api, MUTATING, &review, Some(new))?;
    let mut any = false;
    // as each has left it
    let mut left: Vec<Value> = Vec::new();
    for round in 0..ROUNDS {
        for (at, hook) in hooks.iter().enumerate() {
            let again = hook.webhook["reinvocationPolicy"] == "IfNeeded";
            if round > 0 && (!again || left.get(at) == Some(new)) {
                continue;
            }
            any |= change(api, hook, &review, new).await?;
            if round == 0 {
                left.push(new.clone());
            }
        }
    }
    Ok(any)
}

/// Asks those that may change what is deleted or passed on, where there is nothing to change: as upstream, they may refuse.
async fn refuse(api: &Api, review: &Review<'_>, new: Option<&Value>) -> Result<(), Failure> {
    for hook in hooks(api, MUTATING, review, new)? {
        call::ask(api, &hook, review, new).await?;
    }
    Ok(())
}

async fn change(
    api: &Api,
    hook: &Hook,
    review: &Review<'_>,
    new: &mut Value,
) -> Result<bool, Failure> {
    let resource = review.act.resource;
    let told = review.told(&hook.resource, new);
    let Some(answer) = call::ask(api, hook, review, Some(&told)).await? else {
        return Ok(false);
    };
    let Some(patch) = call::patch(&answer) else {
        return Ok(false);
    };
    let patched = berth_patch::patch(PatchType::Json, None, &told, &patch)
        .map_err(|error| call::broken(hook, &error.to_string()))?;
    if patched == told {
        return Ok(false);
    }
    if review.act.subresource == "scale" {
        let replicas = object::number(&patched, "/spec/replicas");
        let set =
            replicas.is_some_and(|replicas| subresource::set_replicas(resource, new, replicas));
        return if set {
            Ok(true)
        } else {
            Err(call::broken(hook, "it makes no Scale"))
        };
    }
    let mut patched = conformed(hook, review, patched)?;
    if review.converts(&hook.resource) {
        hook.resource.to_stored(&mut patched);
        resource.as_served(&mut patched);
    }
    for what in ["name", "namespace", "uid"] {
        let pointer = format!("/metadata/{what}");
        if object::text(&patched, &pointer) != object::text(new, &pointer) {
            return Err(call::broken(hook, &format!("it may not change the {what}")));
        }
    }
    // Who owns which field has been written down; a webhook owns none.
    let owners = new.pointer("/metadata/managedFields").cloned();
    object::set(&mut patched, "managedFields", owners.unwrap_or_default());
    *new = patched;
    Ok(true)
}

/// What a webhook makes of an object is read as strictly as what a client sends.
fn conformed(hook: &Hook, review: &Review<'_>, mut value: Value) -> Result<Value, Failure> {
    let kind = match review.other_kind() {
        Some((group, version, kind)) => berth_schema::GroupVersionKind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        },
        None => body::kind_of(&hook.resource),
    };
    let unknown = body::conform_as(&hook.resource, &kind, &mut value)
        .map_err(|failure| call::broken(hook, &failure.message))?;
    match unknown.first() {
        None => Ok(value),
        Some(unknown) => Err(call::broken(hook, unknown)),
    }
}

/// Asks those that may refuse: policies first, then webhooks, side by side.
///
/// # Errors
/// As [`mutate`]'s.
pub async fn validate(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    let Some(review) = Review::of(actor, act, old) else {
        return Ok(());
    };
    if matches!(review.operation, "DELETE" | "CONNECT") {
        refuse(api, &review, new).await?;
    }
    policies::validate(api, &review, new).await?;
    let hooks = hooks(api, VALIDATING, &review, new)?;
    let mut asked: Vec<BoxFuture<'_, Result<(), Failure>>> = Vec::with_capacity(hooks.len());
    for hook in &hooks {
        asked.push(Box::pin(may(api, hook, &review, new)));
    }
    stream::iter(asked)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn may(
    api: &Api,
    hook: &Hook,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    let told = new.map(|new| review.told(&hook.resource, new));
    call::ask(api, hook, review, told.as_ref()).await.map(drop)
}

/// The AdmissionReview that a webhook gets.
pub(super) fn request(
    uid: &str,
    wanted: &Resource,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Value {
    let act = review.act;
    let kind = |resource: &Resource| match review.other_kind() {
        Some((group, version, kind)) => {
            json!({"group": group, "version": version, "kind": kind})
        }
        None => {
            json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
        }
    };
    let plural = |resource: &Resource| json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let user = &review.actor.user;
    let options = match review.operation {
        "CREATE" => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        "DELETE" => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        "UPDATE" => json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"}),
        _ => Value::Null,
    };
    let mut request = json!({
        "uid": uid,
        "kind": kind(wanted),
        "resource": plural(wanted),
        "requestKind": kind(act.resource),
        "requestResource": plural(act.resource),
        "name": act.name,
        "operation": review.operation,
        "userInfo": user,
        "object": new,
        "oldObject": review.old.map(|old| review.told(wanted, old)),
        "dryRun": review.actor.dry_run,
        "options": options,
    });
    if !act.namespace.is_empty() {
        request["namespace"] = act.namespace.into();
    } else if act.resource.is("", "namespaces") {
        request["namespace"] = act.name.as_str().into();
    }
    if !act.subresource.is_empty() {
        request["subResource"] = act.subresource.into();
        request["requestSubResource"] = act.subresource.into();
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}
