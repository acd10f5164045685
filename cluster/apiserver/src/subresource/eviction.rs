//! policy/v1 Eviction: a pod is deleted if the budgets of disruption allow it.

use std::sync::Arc;

use berth_schema::GroupVersionKind;
use http::Response;
use serde_json::{Value, json};

use crate::{
    admission::{Act, webhooks},
    api::{Actor, Api, Call},
    body,
    cache::Entry,
    clock,
    delete::{self, DeleteOptions},
    failure::Failure,
    object,
    request::Query,
    respond::Body,
    selector::LabelSelector,
    write::{self, Part},
};

/// Pods that a budget remembers as being disrupted, at most (upstream's MaxDisruptedPodSize).
const MOST_DISRUPTED: usize = 2000;

pub async fn create(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let asked = &call.asked;
    let kind = GroupVersionKind::new("policy/v1", "Eviction");
    let mut eviction = body::object(call, &kind, false)?;
    let own = object::name(&eviction);
    if !own.is_empty() && own != asked.name {
        return Err(Failure::bad_request(format!(
            "name in URL does not match name in Eviction object: {own}"
        )));
    }
    let act = Act::create(&call.resource, &asked.namespace, &asked.name, "eviction");
    webhooks::mutate(api, &call.actor, &act, None, &mut eviction).await?;
    webhooks::validate(api, &call.actor, &act, None, Some(&eviction)).await?;
    let nothing = Query::default();
    let options = DeleteOptions::parse(
        eviction.get("deleteOptions").unwrap_or(&Value::Null),
        &nothing,
    )?;
    let key = call.resource.key(&asked.namespace, &asked.name);
    let pod = api
        .storage
        .read(&key)
        .await?
        .ok_or_else(|| Failure::not_found(&call.resource, &asked.name))?
        .value;
    let dry_run = call.actor.dry_run || options.dry_run;
    if !needs_no_budget(&pod) {
        disrupt(api, &call.actor, &asked.namespace, &pod, dry_run).await?;
    }
    delete::delete(
        api,
        &call.actor,
        &call.resource,
        &asked.namespace,
        &asked.name,
        &options,
    )
    .await?;
    Ok(call.wants.value(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// It does not run, or is on its way out.
fn needs_no_budget(pod: &Value) -> bool {
    object::is_deleting(pod)
        || matches!(
            object::text(pod, "/status/phase"),
            "Succeeded" | "Failed" | "Pending"
        )
}

fn is_ready(pod: &Value) -> bool {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

async fn disrupt(
    api: &Api,
    actor: &Actor,
    namespace: &str,
    pod: &Value,
    dry_run: bool,
) -> Result<(), Failure> {
    api.cache.fresh().await?;
    let (entries, _) = api
        .cache
        .shard("poddisruptionbudgets")
        .list(&format!("{namespace}/"), "");
    let covers = |entry: &&Arc<Entry>| {
        let budget = entry.value();
        LabelSelector::of_object(budget.pointer("/spec/selector")).is_some_and(|selector| {
            selector.matches(|key| pod.pointer("/metadata/labels")?.get(key)?.as_str())
        })
    };
    let budgets: Vec<_> = entries.iter().filter(covers).collect();
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Failure::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let catalog = api.served.now();
    let resource = catalog
        .resource("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(Failure::no_such_path)?;
    let internal = Actor {
        dry_run: dry_run || actor.dry_run,
        ..Actor::internal("eviction")
    };
    let pod_name = object::name(pod).to_owned();
    write::modify(
        api,
        &internal,
        resource,
        namespace,
        budget.name(),
        Part::Whole,
        |budget| {
            let number = |name: &str| object::number(budget, &format!("/status/{name}"));
            let healthy = number("currentHealthy").unwrap_or(0);
            let desired = number("desiredHealthy").unwrap_or(0);
            // A pod that is not ready can go where its budget is met, or where the budget says always.
            let always = object::text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow";
            if !is_ready(pod) && (always || (healthy >= desired && desired > 0)) {
                return Ok(budget.clone());
            }
            let name = object::name(budget);
            let seen = number("observedGeneration").unwrap_or(0);
            if seen < object::number(budget, "/metadata/generation").unwrap_or(0) {
                return Err(Failure::too_many_requests(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    10,
                ));
            }
            let allowed = number("disruptionsAllowed").unwrap_or(0);
            let disrupted = budget
                .pointer("/status/disruptedPods")
                .and_then(Value::as_object)
                .map_or(0, serde_json::Map::len);
            if allowed <= 0 || disrupted >= MOST_DISRUPTED {
                return Err(Failure::disruption_budget(name, healthy, desired));
            }
            let mut new = budget.clone();
            let status = object::part(&mut new, "status");
            status.insert("disruptionsAllowed".into(), (allowed - 1).into());
            let pods = status.entry("disruptedPods").or_insert_with(|| json!({}));
            if let Some(pods) = pods.as_object_mut() {
                pods.insert(pod_name.clone(), clock::time(clock::now()).into());
            }
            Ok(new)
        },
    )
    .await?;
    Ok(())
}
