//! A pod is bound to a node: by `pods/x/binding`, or by a Binding that is made.
//!
//! Each pod of a cluster comes by here once, and many at a time, so the pod goes no other write's way: nothing of it changes but what is set here, its fields get no
//! owner (as upstream), and what admission has to say it says of the Binding.

use berth_schema::GroupVersionKind;
use berth_store::Revision;
use http::Response;
use serde_json::{Value, json};

use crate::{
    admission::{self, Act, topology, webhooks},
    api::{Actor, Api, Call},
    body,
    catalog::Resource,
    clock,
    failure::Failure,
    object,
    respond::Body,
    storage::{Beside, Stored, Written},
};

/// How often it is tried anew where another was quicker to change the pod.
const ATTEMPTS: usize = 6;

pub async fn create(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let binding = body::object(call, &GroupVersionKind::new("v1", "Binding"), false)?;
    bind(
        api,
        &call.actor,
        &call.asked.namespace,
        &call.asked.name,
        &binding,
    )
    .await?;
    Ok(call.wants.value(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// `name` is the path's; empty: the binding's own.
pub async fn bind(
    api: &Api,
    actor: &Actor,
    namespace: &str,
    name: &str,
    binding: &Value,
) -> Result<(), Failure> {
    let catalog = api.served.now();
    let pods = catalog
        .resource("", "v1", "pods")
        .ok_or_else(Failure::no_such_path)?;
    let own = object::name(binding);
    let name = if name.is_empty() { own } else { name };
    if !own.is_empty() && own != name {
        return Err(Failure::bad_request(format!(
            "name in URL does not match name in Binding object: {own}"
        )));
    }
    let mut binding = binding.clone();
    let to = topology::of_node(api, object::text(&binding, "/target/name")).await?;
    topology::merge(&mut binding, to);
    let act = Act::create(pods, namespace, name, "binding");
    webhooks::mutate(api, actor, &act, None, &mut binding).await?;
    admission::may_bind(actor, &act, &binding)?;
    webhooks::validate(api, actor, &act, None, Some(&binding)).await?;
    let node = object::text(&binding, "/target/name").to_owned();
    let kind = object::text(&binding, "/target/kind");
    let invalid = |field: &str, reason, message: &str| {
        Failure::invalid_of(
            "",
            "Binding",
            name,
            vec![berth_kinds::Invalid {
                field: field.into(),
                reason,
                message: message.into(),
            }],
        )
    };
    if !matches!(kind, "" | "Node") {
        return Err(invalid(
            "target.kind",
            berth_kinds::Reason::NotSupported,
            &format!("Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""),
        ));
    }
    if node.is_empty() {
        return Err(invalid(
            "target.name",
            berth_kinds::Reason::Required,
            "Required value",
        ));
    }
    let key = pods.key(namespace, name);
    for _ in 0..ATTEMPTS {
        let Some(Stored {
            value: mut pod,
            revision,
        }) = api.storage.read(&key).await?
        else {
            return Err(Failure::not_found(pods, name));
        };
        may_be_bound(pods, name, &pod, revision, &binding)?;
        set_node(&mut pod, &node, &binding);
        if actor.dry_run {
            return Ok(());
        }
        let beside = Beside::default();
        if let Written::At(_) = api.storage.put(&key, &pod, revision, &beside).await? {
            return Ok(());
        }
    }
    Err(Failure::modified(pods, name))
}

fn may_be_bound(
    pods: &Resource,
    name: &str,
    pod: &Value,
    revision: Revision,
    binding: &Value,
) -> Result<(), Failure> {
    let (wanted, uid) = (object::uid(binding), object::uid(pod));
    if !wanted.is_empty() && wanted != uid {
        return Err(Failure::conflict(
            pods,
            name,
            format!(
                "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
            ),
        ));
    }
    let (wanted, is) = (object::resource_version(binding), revision.to_string());
    if !wanted.is_empty() && wanted != is {
        return Err(Failure::conflict(
            pods,
            name,
            format!(
                "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {is}"
            ),
        ));
    }
    if object::is_deleting(pod) {
        return Err(Failure::conflict(
            pods,
            name,
            format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let bound = object::text(pod, "/spec/nodeName");
    if !bound.is_empty() {
        return Err(Failure::conflict(
            pods,
            name,
            format!("pod {name} is already assigned to node {bound:?}"),
        ));
    }
    let gates = pod
        .pointer("/spec/schedulingGates")
        .and_then(Value::as_array);
    if gates.is_some_and(|gates| !gates.is_empty()) {
        return Err(Failure::conflict(
            pods,
            name,
            format!("pod {name} has non-empty .spec.schedulingGates"),
        ));
    }
    Ok(())
}

fn set_node(pod: &mut Value, node: &str, binding: &Value) {
    object::part(pod, "spec").insert("nodeName".into(), node.into());
    let status = object::part(pod, "status");
    // it was a hint, until now
    status.remove("nominatedNodeName");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": null,
            "lastTransitionTime": clock::time(clock::now()),
        }));
    }
    // what the scheduler says of the pod along with it
    if let Some(annotations) = binding
        .pointer("/metadata/annotations")
        .and_then(Value::as_object)
    {
        let metadata = object::metadata(pod);
        let own = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(own) = own.as_object_mut() {
            own.extend(annotations.clone());
        }
    }
    let labels = binding.pointer("/metadata/labels");
    let labels = labels.and_then(Value::as_object).cloned();
    topology::merge(pod, labels.unwrap_or_default());
}
