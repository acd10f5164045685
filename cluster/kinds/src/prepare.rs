//! What the server alone sets, before an object is kept: status, `metadata.generation`, a job's selector, a namespace's finalizer.
//!
//! Before a create `metadata.uid` and `metadata.name` are there already: a job's selector is made of them.

use serde_json::{Map, Value, json};

use crate::{
    field::same,
    quantity::Quantity,
    read::{flag, items, map, text},
    write::{absent, each, ensure, object_at},
};

fn generation(object: &mut Value, count: i64) {
    if let Some(object) = object.as_object_mut()
        && let Some(metadata) = ensure(object, "metadata")
    {
        metadata.insert("generation".to_owned(), count.into());
    }
}

fn status(object: &mut Value, status: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert("status".to_owned(), status);
    }
}

/// Takes a part over from the old object, or takes it away where that has none.
fn keep(new: &mut Value, old: &Value, name: &str) {
    if let Some(new) = new.as_object_mut() {
        match old.get(name) {
            Some(value) => new.insert(name.to_owned(), value.clone()),
            None => new.remove(name),
        };
    }
}

/// Counts on if what `changed` says of the two is so.
fn count(new: &mut Value, old: &Value, changed: bool) {
    let before = old.pointer("/metadata/generation").and_then(Value::as_i64);
    match before {
        Some(before) => generation(new, before.saturating_add(i64::from(changed))),
        None if changed => generation(new, 1),
        None => {
            if let Some(metadata) = object_at(new, "/metadata") {
                metadata.remove("generation");
            }
        }
    }
}

fn differs(new: &Value, old: &Value, name: &str) -> bool {
    let null = &Value::Null;
    !same(new.get(name).unwrap_or(null), old.get(name).unwrap_or(null))
}

/// With a status and a generation.
pub(crate) fn create(object: &mut Value) {
    status(object, json!({}));
    generation(object, 1);
}

pub(crate) fn update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let changed = differs(new, old, "spec");
    count(new, old, changed);
}

/// With a status, and no generation.
pub(crate) fn create_status(object: &mut Value) {
    status(object, json!({}));
}

pub(crate) fn update_status(new: &mut Value, old: &Value) {
    keep(new, old, "status");
}

/// With a generation, and no status.
pub(crate) fn create_generation(object: &mut Value) {
    generation(object, 1);
}

pub(crate) fn update_generation(new: &mut Value, old: &Value) {
    let changed = differs(new, old, "spec");
    count(new, old, changed);
}

/// Of objects without a spec: all of them counts.
pub(crate) fn update_whole(new: &mut Value, old: &Value) {
    let rest = |object: &Value| {
        let mut rest = object.clone();
        if let Some(rest) = rest.as_object_mut() {
            rest.remove("metadata");
        }
        rest
    };
    let labels = |object: &Value| {
        object
            .pointer("/metadata/labels")
            .cloned()
            .unwrap_or_default()
    };
    let changed = !same(&rest(new), &rest(old)) || !same(&labels(new), &labels(old));
    count(new, old, changed);
}

pub(crate) fn update_deployment(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    // Its revision is an annotation: controllers must see that it changed.
    let annotations = |object: &Value| {
        object
            .pointer("/metadata/annotations")
            .cloned()
            .unwrap_or_default()
    };
    let changed = differs(new, old, "spec") || !same(&annotations(new), &annotations(old));
    count(new, old, changed);
}

pub(crate) fn create_replicas(object: &mut Value) {
    status(object, json!({"replicas": 0}));
    generation(object, 1);
}

pub(crate) fn create_stateful_set(object: &mut Value) {
    status(object, json!({"replicas": 0, "availableReplicas": 0}));
    generation(object, 1);
}

pub(crate) fn create_daemon_set(object: &mut Value) {
    status(
        object,
        json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}),
    );
    generation(object, 1);
}

pub(crate) fn create_pod(pod: &mut Value) {
    let mut conditions = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !items(pod, "/spec/schedulingGates").is_empty() {
        conditions["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    status(pod, conditions);
    generation(pod, 1);
}

/// Who goes first when a node has too little: `Guaranteed` last, `BestEffort` first.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let pod_level = ["/spec/resources/limits", "/spec/resources/requests"]
        .iter()
        .any(|list| map(pod, list).is_some_and(|list| !list.is_empty()));
    let spec = pod.get("spec").into_iter();
    let containers = ["/spec/initContainers", "/spec/containers"]
        .into_iter()
        .flat_map(|list| items(pod, list));
    let asks: Vec<&Value> = if pod_level {
        spec.collect()
    } else {
        containers.collect()
    };
    let amount = |one: &Value, list: &str, name: &str| {
        one.get("resources")
            .and_then(|resources| resources.get(list))
            .and_then(|list| list.get(name))
            .and_then(Quantity::of)
            .map(|quantity| quantity.nano)
            .filter(|nano| *nano > 0)
    };
    let (mut any, mut all) = (false, !asks.is_empty());
    for one in asks {
        for name in ["cpu", "memory"] {
            let (limit, request) = (amount(one, "limits", name), amount(one, "requests", name));
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Its pods are known by its uid, which no other job has.
pub(crate) fn create_job(job: &mut Value) {
    create(job);
    if flag(job, "/spec/manualSelector") {
        return;
    }
    let (uid, name) = (
        text(job, "/metadata/uid").to_owned(),
        text(job, "/metadata/name").to_owned(),
    );
    if uid.is_empty() {
        return;
    }
    let Some(spec) = object_at(job, "/spec") else {
        return;
    };
    let Some(labels) = ensure(spec, "template")
        .and_then(|template| ensure(template, "metadata"))
        .and_then(|metadata| ensure(metadata, "labels"))
    else {
        return;
    };
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels.entry(key).or_insert_with(|| value.clone().into());
    }
    let labels = labels.clone();
    let Some(selector) =
        ensure(spec, "selector").and_then(|selector| ensure(selector, "matchLabels"))
    else {
        return;
    };
    selector
        .entry("batch.kubernetes.io/controller-uid")
        .or_insert_with(|| uid.into());
    // A job without labels has its pods' by default: those of above, too, or the next write would add them.
    if let Some(metadata) = object_at(job, "/metadata")
        && let Some(own) = ensure(metadata, "labels")
        && own.is_empty()
    {
        *own = labels;
    }
}

/// A namespace goes when what is in it is gone: its finalizer keeps it till then.
pub(crate) fn create_namespace(namespace: &mut Value) {
    status(namespace, json!({"phase": "Active"}));
    let Some(spec) = namespace
        .as_object_mut()
        .and_then(|object| ensure(object, "spec"))
    else {
        return;
    };
    let finalizers = spec.entry("finalizers").or_insert(Value::Null);
    if finalizers.is_null() {
        *finalizers = json!([]);
    }
    if let Some(finalizers) = finalizers.as_array_mut()
        && !finalizers.iter().any(|one| one == "kubernetes")
    {
        finalizers.push("kubernetes".into());
    }
}

/// Finalizers go by the subresource.
pub(crate) fn update_namespace(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    keep(new, old, "status");
}

pub(crate) fn create_pending(object: &mut Value) {
    status(object, json!({"phase": "Pending"}));
}

pub(crate) fn create_service(service: &mut Value) {
    status(service, json!({"loadBalancer": {}}));
}

/// What a service was given stays its own where an update leaves it out, and goes with the type that it was given for.
pub(crate) fn update_service(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let (now, before) = (
        text(new, "/spec/type").to_owned(),
        text(old, "/spec/type").to_owned(),
    );
    let Some(spec) = object_at(new, "/spec") else {
        return;
    };
    let null = &Value::Null;
    let old = old.get("spec").unwrap_or(null);
    let of = |spec: &Map<String, Value>, name: &str| spec.get(name).cloned().unwrap_or_default();
    let stays = |spec: &Map<String, Value>, name: &str| {
        same(&of(spec, name), old.get(name).unwrap_or(null))
    };
    let outside = |kind: &str| ["LoadBalancer", "NodePort"].contains(&kind);

    if now != "ExternalName" && before != "ExternalName" {
        if same(&of(spec, "clusterIP"), null) && same(&of(spec, "clusterIPs"), null) {
            for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if let Some(value) = old.get(name) {
                    spec.insert(name.to_owned(), value.clone());
                }
            }
        }
        if outside(&now) && outside(&before) {
            for port in each(spec, "ports") {
                let known = items(old, "/ports").iter().find(|one| {
                    one.get("port") == port.get("port")
                        && one.get("protocol") == port.get("protocol")
                });
                if let Some(node) = known.and_then(|one| one.get("nodePort")) {
                    absent(port, "nodePort", node.clone());
                }
            }
            if now == "LoadBalancer"
                && let Some(health) = old.get("healthCheckNodePort")
            {
                absent(spec, "healthCheckNodePort", health.clone());
            }
        }
    }
    if now == "ExternalName" && before != now && stays(spec, "clusterIP") {
        for name in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            spec.remove(name);
        }
    }
    if !outside(&now) && outside(&before) {
        for port in each(spec, "ports") {
            let had = items(old, "/ports").iter().any(|one| {
                one.get("nodePort").is_some() && one.get("nodePort") == port.get("nodePort")
            });
            if had {
                port.remove("nodePort");
            }
        }
        if items(old, "/externalIPs").is_empty() && stays(spec, "externalTrafficPolicy") {
            spec.remove("externalTrafficPolicy");
        }
    }
    if now != "LoadBalancer" && before == "LoadBalancer" {
        for name in [
            "allocateLoadBalancerNodePorts",
            "loadBalancerClass",
            "healthCheckNodePort",
        ] {
            if stays(spec, name) {
                spec.remove(name);
            }
        }
    }
}

/// What was asked for is what is signed.
pub(crate) fn update_request(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    keep(new, old, "status");
}

pub(crate) fn create_definition(definition: &mut Value) {
    let stored: Vec<Value> = items(definition, "/spec/versions")
        .iter()
        .filter(|version| flag(version, "/storage"))
        .filter_map(|version| version.get("name").cloned())
        .collect();
    status(definition, json!({"storedVersions": stored}));
    generation(definition, 1);
}

const EVENT_NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(
    event: &mut Value,
    version: &str,
    names: impl Iterator<Item = (&'static str, &'static str)>,
) {
    let Some(event) = event.as_object_mut() else {
        return;
    };
    event.insert("apiVersion".to_owned(), version.into());
    let taken: Map<String, Value> = names
        .filter_map(|(from, to)| Some((to.to_owned(), event.remove(from)?)))
        .collect();
    event.extend(taken);
}

/// An event of events.k8s.io/v1, as core/v1 has it.
pub(crate) fn event_to_core(event: &mut Value) {
    rename(event, "v1", EVENT_NAMES.into_iter());
}

pub(crate) fn event_from_core(event: &mut Value) {
    rename(
        event,
        "events.k8s.io/v1",
        EVENT_NAMES.into_iter().map(|(new, core)| (core, new)),
    );
}

/// What is served here is available from the first on.
pub(crate) fn create_api_service(object: &mut Value) {
    let local = object.pointer("/spec/service").is_none_or(Value::is_null);
    let told = match local {
        true => json!({"conditions": [{
            "type": "Available",
            "status": "True",
            "reason": "Local",
            "message": "Local APIServices are always available",
            "lastTransitionTime": text(object, "/metadata/creationTimestamp"),
        }]}),
        false => json!({}),
    };
    status(object, told);
}

pub(crate) fn update_api_service(new: &mut Value, old: &Value) {
    keep(new, old, "status");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_class_is_what_its_containers_ask_for() {
        let container = |resources: Value| json!({"name": "a", "resources": resources});
        let all = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        for (containers, class) in [
            (vec![container(json!({}))], "BestEffort"),
            (vec![container(all.clone())], "Guaranteed"),
            (
                vec![container(all.clone()), container(json!({}))],
                "Burstable",
            ),
            (
                vec![container(json!({"requests": {"cpu": "1"}}))],
                "Burstable",
            ),
            (
                vec![container(json!({"limits": {"memory": "1"}}))],
                "Burstable",
            ),
            (
                vec![container(json!({"requests": {"ephemeral-storage": "1"}}))],
                "BestEffort",
            ),
            (vec![], "BestEffort"),
        ] {
            assert_eq!(
                qos_class(&json!({"spec": {"containers": containers}})),
                class
            );
        }
        let pod = json!({"spec": {"resources": {"limits": {"cpu": "1"}}, "containers": [container(all)]}});
        assert_eq!(qos_class(&pod), "Burstable", "the pod's own resources win");
    }

    #[test]
    fn a_generation_counts_specs_and_a_status_has_its_own_way() {
        let old = json!({"metadata": {"generation": 4}, "spec": {"a": 1}, "status": {"x": 1}});
        let mut same =
            json!({"metadata": {"generation": 9}, "spec": {"a": 1, "b": null}, "status": {"x": 2}});
        update(&mut same, &old);
        assert_eq!(same["metadata"]["generation"], 4);
        assert_eq!(same["status"], json!({"x": 1}));
        let mut changed = json!({"spec": {"a": 2}});
        update(&mut changed, &old);
        assert_eq!(
            changed,
            json!({"metadata": {"generation": 5}, "spec": {"a": 2}, "status": {"x": 1}})
        );
        let mut annotated = old.clone();
        annotated["metadata"]["annotations"] = json!({"a": "b"});
        update_deployment(&mut annotated, &old);
        assert_eq!(annotated["metadata"]["generation"], 5);
    }

    #[test]
    fn a_jobs_selector_is_its_uid() {
        let mut job = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"template": {"metadata": {"labels": {"app": "x"}}}}});
        create_job(&mut job);
        assert_eq!(
            job["spec"],
            json!({
                "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
                "template": {"metadata": {"labels": {
                    "app": "x",
                    "controller-uid": "u",
                    "job-name": "a",
                    "batch.kubernetes.io/controller-uid": "u",
                    "batch.kubernetes.io/job-name": "a",
                }}},
            })
        );
        let mut manual = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"manualSelector": true, "template": {}}});
        create_job(&mut manual);
        assert_eq!(
            manual["spec"],
            json!({"manualSelector": true, "template": {}})
        );
    }

    #[test]
    fn a_service_keeps_what_it_was_given_and_drops_what_its_type_has_not() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut replaced = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP"}]}});
        update_service(&mut replaced, &old);
        assert_eq!(replaced, old);
        let mut inside = old.clone();
        inside["spec"]["type"] = "ClusterIP".into();
        update_service(&mut inside, &old);
        assert_eq!(
            inside["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
                "ports": [{"port": 80, "protocol": "TCP"}]})
        );
        let mut named = old.clone();
        named["spec"]["type"] = "ExternalName".into();
        named["spec"]["externalName"] = "a.b".into();
        update_service(&mut named, &old);
        assert_eq!(
            named["spec"],
            json!({"type": "ExternalName", "externalName": "a.b", "ports": [{"port": 80, "protocol": "TCP"}]})
        );
    }

    #[test]
    fn an_event_is_one_event_in_both_groups() {
        let new = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"}, "eventTime": "2026-11-22T15:04:05.000000Z",
            "regarding": {"kind": "Pod", "name": "p"}, "note": "hello", "reportingController": "c", "reportingInstance": "i",
            "deprecatedCount": 3,
        });
        let mut event = new.clone();
        event_to_core(&mut event);
        assert_eq!(event["apiVersion"], "v1");
        assert_eq!(event["involvedObject"]["name"], "p");
        assert_eq!(event["message"], "hello");
        assert_eq!(event["reportingComponent"], "c");
        assert_eq!(event["count"], 3);
        event_from_core(&mut event);
        assert_eq!(event, new);
    }
}
