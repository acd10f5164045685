//! A pod is bound to a node: by `pods/x/binding`, or by a Binding that is made.

use berth_schema::GroupVersionKind;
use http::Response;
use serde_json::{Value, json};

use crate::{
    admission::{Act, topology, webhooks},
    api::{Actor, Api, Call},
    body, clock,
    failure::Failure,
    object,
    respond::Body,
    write::{self, Part},
};

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
) -> Result<Value, Failure> {
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
    let uid = object::uid(&binding).to_owned();
    let version = object::text(&binding, "/metadata/resourceVersion").to_owned();
    write::modify(api, actor, pods, namespace, name, Part::Whole, |pod| {
        if !uid.is_empty() && uid != object::uid(pod) {
            return Err(Failure::conflict(
                pods,
                name,
                format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    object::uid(pod)
                ),
            ));
        }
        let is = object::text(pod, "/metadata/resourceVersion");
        if !version.is_empty() && version != is {
            return Err(Failure::conflict(
                pods,
                name,
                format!(
                    "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {is}"
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
        let gated = pod
            .pointer("/spec/schedulingGates")
            .and_then(Value::as_array)
            .is_some_and(|gates| !gates.is_empty());
        if gated {
            return Err(Failure::conflict(
                pods,
                name,
                format!("pod {name} has non-empty .spec.schedulingGates"),
            ));
        }
        let mut new = pod.clone();
        object::part(&mut new, "spec").insert("nodeName".into(), node.as_str().into());
        let status = object::part(&mut new, "status");
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
            let metadata = object::metadata(&mut new);
            let own = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(own) = own.as_object_mut() {
                own.extend(annotations.clone());
            }
        }
        let labels = binding.pointer("/metadata/labels");
        let labels = labels.and_then(Value::as_object).cloned();
        topology::merge(&mut new, labels.unwrap_or_default());
        Ok(new)
    })
    .await
}
