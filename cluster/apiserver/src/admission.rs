//! What the server itself has to say about a write, beyond the rules of its kind: upstream's admission plugins that are on by default and that our
//! cluster needs.

mod amounts;
mod certificates;
mod claims;
mod limits;
mod nodes;
mod pod_security;
mod pods;
pub mod policies;
mod priority;
pub mod quota;
mod runtime_class;
pub mod topology;
mod usage;
pub mod webhooks;

use std::sync::Arc;

use berth_auth::{Attributes, restriction};
use serde_json::Value;

use crate::{
    api::{Actor, Api},
    cache::Entry,
    catalog::{REGISTRY, Resource},
    failure::Failure,
    object,
    storage::Beside,
};

/// What is being done.
#[derive(Debug)]
pub struct Act<'a> {
    pub verb: &'static str,
    pub resource: &'a Resource,
    pub namespace: &'a str,
    pub name: String,
    pub subresource: &'static str,
}

impl<'a> Act<'a> {
    pub fn create(
        resource: &'a Resource,
        namespace: &'a str,
        name: &str,
        subresource: &'static str,
    ) -> Self {
        Self {
            verb: "create",
            resource,
            namespace,
            name: name.into(),
            subresource,
        }
    }

    pub fn update(
        resource: &'a Resource,
        namespace: &'a str,
        name: &str,
        subresource: &'static str,
    ) -> Self {
        Self {
            verb: "update",
            ..Self::create(resource, namespace, name, subresource)
        }
    }

    pub fn delete(resource: &'a Resource, namespace: &'a str, name: &str) -> Self {
        Self {
            verb: "delete",
            ..Self::create(resource, namespace, name, "")
        }
    }

    /// What is passed on: exec, attach, portforward, proxy.
    pub fn connect(
        resource: &'a Resource,
        namespace: &'a str,
        name: &str,
        subresource: &'static str,
    ) -> Self {
        Self {
            verb: "connect",
            ..Self::create(resource, namespace, name, subresource)
        }
    }

    fn attributes(&self) -> Attributes {
        Attributes {
            verb: self.verb.into(),
            group: self.resource.group.clone(),
            version: self.resource.version.clone(),
            resource: self.resource.plural.clone(),
            subresource: self.subresource.into(),
            namespace: self.namespace.into(),
            name: self.name.clone(),
            ..Attributes::default()
        }
    }
}

/// Namespaces that can't be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Completes `new`. What it rests on stands in `beside`.
///
/// # Errors
/// 403 and 404, as the plugin has it.
pub async fn admit(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    new: &mut Value,
    old: Option<&Value>,
    beside: &mut Beside,
) -> Result<(), Failure> {
    certificates::requester(actor, act, new, old);
    if act.verb == "create" && act.resource.namespaced {
        let entry = namespace(api, act).await?;
        beside.unchanged.push((
            format!("{REGISTRY}namespaces/{}", act.namespace),
            entry.revision,
        ));
    }
    if act.resource.is("", "pods") && act.subresource.is_empty() && old.is_none() {
        priority::resolve(api, act, new)?;
        runtime_class::apply(api, act, new)?;
        pods::service_account(api, act, new).await?;
        pods::tolerations(new);
        topology::label(api, new).await?;
        limits::fill(api, act, new);
    }
    if old.is_none() {
        claims::default_class(api, act, new);
    }
    if api.taints_new_nodes
        && act.resource.is("", "nodes")
        && act.subresource.is_empty()
        && old.is_none()
    {
        nodes::taint(new);
    }
    for (group, plural, finalizer) in [
        ("", "persistentvolumes", "kubernetes.io/pv-protection"),
        ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ] {
        // StorageObjectInUseProtection
        if old.is_none() && act.resource.is(group, plural) {
            let mut finalizers: Vec<String> = object::finalizers(new)
                .into_iter()
                .map(Into::into)
                .collect();
            if !finalizers.iter().any(|known| known == finalizer) {
                finalizers.push(finalizer.into());
                object::set_finalizers(new, finalizers);
            }
        }
    }
    Ok(())
}

/// NamespaceLifecycle: it is there, and not on its way out.
async fn namespace(api: &Api, act: &Act<'_>) -> Result<Arc<Entry>, Failure> {
    let namespaces = api.cache.shard("namespaces");
    let entry = match namespaces.get(act.namespace) {
        Some(entry) => entry,
        None => {
            // It may have been made this moment.
            api.cache.fresh().await?;
            namespaces
                .get(act.namespace)
                .ok_or_else(|| Failure::not_found_of("", "namespaces", act.namespace))?
        }
    };
    if entry.deleting {
        return Err(Failure::namespace_terminating(
            act.resource,
            &act.name,
            act.namespace,
        ));
    }
    Ok(entry)
}

/// Refuses what may not be; nothing is changed any more.
///
/// # Errors
/// 403.
pub async fn validate(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    if act.verb == "delete"
        && act.resource.is("", "namespaces")
        && IMMORTAL.contains(&act.name.as_str())
    {
        return Err(Failure::forbidden(
            act.resource,
            &act.name,
            "this namespace may not be deleted",
        ));
    }
    restriction::check(&actor.user, &act.attributes(), old, new)
        .map_err(|why| Failure::forbidden(act.resource, &act.name, why))?;
    certificates::may(api, actor, act, old, new)?;
    policies::may(api, actor, act, old, new)?;
    if let Some(new) = new {
        limits::check(api, act, new)?;
        pod_security::check(api, actor, act, old, new)?;
    }
    escalation(api, actor, act, old, new)
}

/// NodeRestriction, of a Binding: all else that is looked at is a pod's.
///
/// # Errors
/// 403.
pub fn may_bind(actor: &Actor, act: &Act<'_>, binding: &Value) -> Result<(), Failure> {
    restriction::check(&actor.user, &act.attributes(), None, Some(binding))
        .map_err(|why| Failure::forbidden(act.resource, &act.name, why))
}

/// Nobody hands out more than they have (SEC-API-09).
fn escalation(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    let Some(new) = new else {
        return Ok(());
    };
    if act.resource.group != "rbac.authorization.k8s.io"
        || actor
            .user
            .groups
            .iter()
            .any(|group| group == berth_auth::MASTERS)
    {
        return Ok(());
    }
    let changed = |names: &[&str]| {
        old.is_none_or(|old| names.iter().any(|name| old.get(name) != new.get(name)))
    };
    let checked = match act.resource.plural.as_str() {
        "roles" | "clusterroles" if changed(&["rules", "aggregationRule"]) => {
            api.rbac.may_write_role(&actor.user, new)
        }
        "rolebindings" | "clusterrolebindings" if changed(&["roleRef", "subjects"]) => {
            api.rbac.may_write_binding(&actor.user, new)
        }
        _ => Ok(()),
    };
    checked.map_err(|why| Failure::forbidden(act.resource, &act.name, why))
}
