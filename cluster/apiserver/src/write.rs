//! Objects are made and changed: one way for all kinds.
//!
//! ```text
//!   decoded ── defaulted ── fields tracked ── admitted ── prepared ── validated ── put where nothing changed meanwhile
//! ```
//!
//! What admission and the rules of a kind add belongs to no manager: whoever applies the object again neither owns it nor takes it away.

use std::{borrow::Cow, collections::BTreeMap};

use berth_patch::keep_times;
use serde_json::Value;

use crate::{
    admission::{self, Act, quota, webhooks},
    api::{Actor, Api},
    catalog::{MadeOf, Resource},
    clock, custom,
    failure::Failure,
    fields, object, service_ip,
    storage::{Beside, Stored, Written},
};

/// How often a change is tried anew where another was quicker; upstream's MaxRetryWhenPatchConflicts.
const ATTEMPTS: usize = 6;
/// How often a name is generated anew where the first is taken.
const NAMES: usize = 8;

/// What of an object may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but what a subresource is for.
    Main,
    Status,
    /// Of a pod: `spec.ephemeralContainers`.
    EphemeralContainers,
    /// Of a pod: the resources of its containers.
    Resize,
    /// Of a namespace: `spec.finalizers`.
    Finalize,
    /// Of a CertificateSigningRequest: `status.conditions`.
    Approval,
    /// Of whatever has `spec.replicas`; tracked as the scale's.
    Scale,
    /// Anything at all: the server's own.
    Whole,
}

impl Part {
    /// The subresource whose fields these are; empty: none.
    pub fn subresource(self) -> &'static str {
        match self {
            Self::Main | Self::Whole => "",
            Self::Status => "status",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
            Self::Scale => "scale",
        }
    }
}

impl Resource {
    pub fn to_stored(&self, value: &mut Value) {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => (kind.to_stored)(value),
            MadeOf::Custom(custom) => {
                value["apiVersion"] = custom.stored_api_version.as_str().into();
            }
        }
    }

    /// As it is kept: mostly as it is.
    pub fn stored_form<'v>(&self, value: &'v Value) -> Cow<'v, Value> {
        if self.stored {
            return Cow::Borrowed(value);
        }
        let mut stored = value.clone();
        self.to_stored(&mut stored);
        Cow::Owned(stored)
    }

    pub fn as_served(&self, value: &mut Value) {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => (kind.from_stored)(value),
            MadeOf::Custom(custom) => {
                value["apiVersion"] = self.api_version().into();
                custom.default(value);
            }
        }
    }

    pub fn default(&self, value: &mut Value) {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => (kind.default)(value),
            MadeOf::Custom(custom) => custom.default(value),
        }
    }

    fn prepare_create(&self, value: &mut Value) {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => (kind.prepare_create)(value),
            MadeOf::Custom(custom) => {
                if custom.has_status
                    && let Some(fields) = value.as_object_mut()
                {
                    fields.remove("status");
                }
                object::set(value, "generation", 1);
            }
        }
    }

    fn prepare_update(&self, value: &mut Value, old: &Value) {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => (kind.prepare_update)(value, old),
            MadeOf::Custom(custom) => {
                if custom.has_status {
                    keep(value, old, "status");
                }
                let changed = |name: &str| {
                    name != "metadata" && name != "status" && value.get(name) != old.get(name)
                };
                let keys = [value.as_object(), old.as_object()];
                let any = keys
                    .into_iter()
                    .flatten()
                    .flat_map(serde_json::Map::keys)
                    .any(|name| changed(name));
                let generation = object::number(old, "/metadata/generation").unwrap_or(1);
                object::set(value, "generation", generation + i64::from(any));
            }
        }
    }

    fn validate(&self, value: &Value, old: Option<&Value>) -> Vec<berth_kinds::Invalid> {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => {
                let mut errors = (kind.validate)(value);
                if let Some(old) = old {
                    errors.extend((kind.validate_update)(value, old));
                }
                errors
            }
            MadeOf::Custom(custom) => custom.validate(value, old),
        }
    }
}

fn keep(value: &mut Value, old: &Value, name: &str) {
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    match old.get(name) {
        Some(kept) => {
            fields.insert(name.into(), kept.clone());
        }
        None => {
            fields.remove(name);
        }
    }
}

/// Makes `new` in `namespace` (empty: none).
///
/// # Errors
/// 400, 403, 404 (of the namespace), 409 and 422 as upstream has them.
pub async fn create(
    api: &Api,
    actor: &Actor,
    resource: &Resource,
    namespace: &str,
    mut new: Value,
) -> Result<Value, Failure> {
    place(resource, namespace, &mut new)?;
    if !object::resource_version(&new).is_empty() {
        return Err(Failure::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let base = object::text(&new, "/metadata/generateName").to_owned();
    let generates = object::name(&new).is_empty() && !base.is_empty();
    for attempt in 1.. {
        let mut object = new.clone();
        if generates {
            object::set(&mut object, "name", object::generate_name(&base));
        }
        for gone in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
        ] {
            object::set(&mut object, gone, Value::Null);
        }
        object::set(&mut object, "uid", object::new_uid());
        object::set(&mut object, "creationTimestamp", clock::time(clock::now()));
        resource.default(&mut object);
        fields::track(resource, actor, Part::Main, None, &mut object);
        let mut beside = Beside::default();
        let act = Act::create(resource, namespace, object::name(&object), "");
        admission::admit(api, actor, &act, &mut object, None, &mut beside).await?;
        if webhooks::mutate(api, actor, &act, None, &mut object).await? {
            // What a webhook has added gets what everything gets.
            resource.default(&mut object);
            let mut again = Beside::default();
            admission::admit(api, actor, &act, &mut object, None, &mut again).await?;
        }
        resource.prepare_create(&mut object);
        custom::establish(api, resource, &mut object)?;
        let name = object::name(&object).to_owned();
        let mut errors = resource.validate(&object, None);
        if let MadeOf::BuiltIn(kind) = &resource.made_of {
            errors.extend((kind.validate_create)(&object));
        }
        if !errors.is_empty() {
            return Err(Failure::invalid(resource, &name, errors));
        }
        admission::validate(api, actor, &act, None, Some(&object)).await?;
        webhooks::validate(api, actor, &act, None, Some(&object)).await?;
        // Upstream's strategies refuse a nameless object where it has rules; where ours have none, it has no place to be kept at.
        if name.is_empty() {
            return Err(Failure::invalid(resource, "", vec![nameless()]));
        }
        let charged = quota::charge(api, &act, None, &object, &mut beside).await?;
        let reserved = api.service_ips.reserve(api, resource, &mut object, None)?;
        let key = resource.key(namespace, &name);
        if actor.dry_run {
            return match api.storage.read(&key).await? {
                Some(_) => Err(Failure::already_exists(resource, &name)),
                None => Ok(object),
            };
        }
        let stored = resource.stored_form(&object);
        match api.storage.put(&key, &stored, 0, &beside).await? {
            Written::At(revision) => {
                reserved.keep();
                object::set_resource_version(&mut object, revision);
                return seen(api, resource, revision, object).await;
            }
            Written::Outrun => {
                drop((reserved, charged));
                let taken = api.storage.read(&key).await?.is_some();
                // The namespace has changed meanwhile: it is looked at again.
                let again = if taken { generates } else { true };
                if !again || attempt >= NAMES {
                    return Err(Failure::already_exists(resource, &name));
                }
                if !taken {
                    api.cache.fresh().await?;
                }
            }
        }
    }
    Err(Failure::already_exists(resource, object::name(&new)))
}

/// A definition is answered when its kinds are served, so that the next request finds them; a webhook's when it is asked.
async fn seen(
    api: &Api,
    resource: &Resource,
    revision: u64,
    object: Value,
) -> Result<Value, Failure> {
    if resource.storage == custom::STORAGE || resource.group == webhooks::GROUP {
        api.cache.reach(revision).await?;
    }
    Ok(object)
}

fn nameless() -> berth_kinds::Invalid {
    berth_kinds::Invalid {
        field: "metadata.name".into(),
        reason: berth_kinds::Reason::Required,
        message: "Required value: name or generateName is required".into(),
    }
}

/// Its namespace is the one of the URL, or none.
fn place(resource: &Resource, namespace: &str, new: &mut Value) -> Result<(), Failure> {
    let own = object::namespace(new);
    if resource.namespaced {
        if own.is_empty() {
            object::set(new, "namespace", namespace);
        } else if own != namespace {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    } else if !own.is_empty() {
        object::set(new, "namespace", "");
    }
    Ok(())
}

/// Changes what is at `name`: `change` gets it as it is (in this resource's version) and says what it shall be. It is asked again where another was
/// quicker, unless it insists on a resourceVersion.
///
/// # Errors
/// What `change` says; 404, 409, 422 as upstream has them.
pub async fn modify(
    api: &Api,
    actor: &Actor,
    resource: &Resource,
    namespace: &str,
    name: &str,
    part: Part,
    mut change: impl FnMut(&Value) -> Result<Value, Failure> + Send,
) -> Result<Value, Failure> {
    let key = resource.key(namespace, name);
    for _ in 0..ATTEMPTS {
        let Some(Stored { value, revision }) = api.storage.read(&key).await? else {
            return Err(Failure::not_found(resource, name));
        };
        let mut old = value;
        resource.as_served(&mut old);
        let mut new = change(&old)?;
        let asked = object::resource_version(&new);
        if !asked.is_empty() && asked != revision.to_string() {
            return Err(Failure::modified(resource, name));
        }
        compose(resource, namespace, name, part, &old, &mut new)?;
        if part != Part::Whole {
            service_ip::keep(resource, &mut new, &old);
            resource.default(&mut new);
        }
        fields::track(resource, actor, part, Some(&mut old), &mut new);
        let mut beside = Beside::default();
        let act = Act::update(resource, namespace, name, part.subresource());
        admission::admit(api, actor, &act, &mut new, Some(&old), &mut beside).await?;
        if part != Part::Whole && webhooks::mutate(api, actor, &act, Some(&old), &mut new).await? {
            // It may change no more than whoever asked.
            compose(resource, namespace, name, part, &old, &mut new)?;
            service_ip::keep(resource, &mut new, &old);
            resource.default(&mut new);
        }
        if matches!(
            part,
            Part::Main | Part::Scale | Part::Resize | Part::EphemeralContainers
        ) {
            resource.prepare_update(&mut new, &old);
            custom::establish(api, resource, &mut new)?;
        }
        if part != Part::Whole {
            let errors = match part {
                Part::Main | Part::Scale => resource.validate(&new, Some(&old)),
                Part::Resize => berth_kinds::resize_update(&new, &old),
                Part::EphemeralContainers => berth_kinds::ephemeral_containers_update(&new, &old),
                // rules of a custom kind may be about how its status changes
                _ => resource.validate(&new, resource.custom().map(|_| &old)),
            };
            if !errors.is_empty() {
                return Err(Failure::invalid(resource, name, errors));
            }
        }
        admission::validate(api, actor, &act, Some(&old), Some(&new)).await?;
        if part != Part::Whole {
            webhooks::validate(api, actor, &act, Some(&old), Some(&new)).await?;
        }
        let _charged = match part {
            Part::Main | Part::Resize => {
                quota::charge(api, &act, Some(&old), &new, &mut beside).await?
            }
            _ => quota::Charged::nothing(),
        };
        let reserved = api
            .service_ips
            .reserve(api, resource, &mut new, Some(&old))?;
        keep_times(&old, &mut new);
        if object::same(&old, &new) {
            return Ok(old);
        }
        if actor.dry_run {
            return Ok(new);
        }
        let finished = is_finished(resource, &new);
        let written = if finished {
            api.storage.remove(&key, revision).await?
        } else {
            let stored = resource.stored_form(&new);
            api.storage.put(&key, &stored, revision, &beside).await?
        };
        if let Written::At(revision) = written {
            reserved.keep();
            if finished {
                api.service_ips.release(resource, &new);
            }
            object::set_resource_version(&mut new, revision);
            return seen(api, resource, revision, new).await;
        }
    }
    Err(Failure::modified(resource, name))
}

/// What `new` can't change is as it was: what the server sets, and what another subresource is for.
fn compose(
    resource: &Resource,
    namespace: &str,
    name: &str,
    part: Part,
    old: &Value,
    new: &mut Value,
) -> Result<(), Failure> {
    place(resource, namespace, new)?;
    let own = object::name(new);
    if own.is_empty() {
        object::set(new, "name", name);
    } else if own != name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({name})"
        )));
    }
    let (uid, old_uid) = (object::uid(new), object::uid(old));
    if !uid.is_empty() && uid != old_uid {
        return Err(Failure::conflict(
            resource,
            name,
            format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
            ),
        ));
    }
    if part == Part::Whole {
        return Ok(());
    }
    for kept in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generation",
        "generateName",
    ] {
        let value = old
            .pointer(&format!("/metadata/{kept}"))
            .cloned()
            .unwrap_or_default();
        object::set(new, kept, value);
    }
    // What is being deleted gets no new finalizers.
    if object::is_deleting(old) {
        let before: Vec<String> = object::finalizers(old)
            .into_iter()
            .map(Into::into)
            .collect();
        let added = object::finalizers(new)
            .into_iter()
            .find(|finalizer| !before.iter().any(|known| known == finalizer));
        if let Some(added) = added {
            return Err(Failure::invalid(
                resource,
                name,
                vec![berth_kinds::Invalid {
                    field: "metadata.finalizers".into(),
                    reason: berth_kinds::Reason::Forbidden,
                    message: format!(
                        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{added:?}}}"
                    ),
                }],
            ));
        }
    }
    let mut wanted: BTreeMap<&str, Value> = BTreeMap::new();
    let mut take = |name: &'static str, pointer: &str| {
        let value = new.pointer(pointer).cloned().unwrap_or_default();
        wanted.insert(name, value);
    };
    match part {
        Part::Main | Part::Whole | Part::Scale => return Ok(()),
        Part::Status => take("/status", "/status"),
        Part::EphemeralContainers => {
            take("/spec/ephemeralContainers", "/spec/ephemeralContainers");
        }
        Part::Finalize => take("/spec/finalizers", "/spec/finalizers"),
        Part::Approval => take("/status/conditions", "/status/conditions"),
        Part::Resize => {
            let containers = resized(old, new);
            wanted.insert("/spec/containers", containers);
        }
    }
    let metadata = new.get("metadata").cloned().unwrap_or_default();
    *new = old.clone();
    if part == Part::Status {
        new["metadata"] = metadata;
    } else {
        // whoever insists on a resourceVersion has been answered already
        let tracked = metadata.get("managedFields").cloned().unwrap_or_default();
        object::set(new, "managedFields", tracked);
    }
    for (pointer, value) in wanted {
        put(new, pointer, value);
    }
    Ok(())
}

/// Sets what is at a pointer of one or two names; null: away with it.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let names: Vec<&str> = pointer.split('/').skip(1).collect();
    let fields = match names.as_slice() {
        [_] => object.as_object_mut(),
        [part, _] => Some(object::part(object, part)),
        _ => None,
    };
    let (Some(fields), Some(name)) = (fields, names.last()) else {
        return;
    };
    if value.is_null() {
        fields.remove(*name);
    } else {
        fields.insert((*name).into(), value);
    }
}

/// The containers as they are, with the resources that `new` has for them.
fn resized(old: &Value, new: &Value) -> Value {
    let mut containers = old.pointer("/spec/containers").cloned().unwrap_or_default();
    for container in containers.as_array_mut().into_iter().flatten() {
        let wanted = new
            .pointer("/spec/containers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|other| other.get("name") == container.get("name"));
        if let Some(wanted) = wanted {
            for name in ["resources", "resizePolicy"] {
                keep(container, wanted, name);
            }
        }
    }
    containers
}

/// Whether it is being deleted, and nothing keeps it any longer.
pub fn is_finished(resource: &Resource, value: &Value) -> bool {
    let held_by_spec = resource.is("", "namespaces")
        && value
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|finalizers| !finalizers.is_empty());
    object::is_deleting(value)
        && object::finalizers(value).is_empty()
        && object::number(value, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && !held_by_spec
}
