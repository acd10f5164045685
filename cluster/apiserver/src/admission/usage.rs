//! What an object uses of a quota, and which objects a quota is about.

use std::collections::BTreeMap;

use berth_kinds::{COUNTED, Quantity};
use serde_json::Value;

use super::amounts::{self, Amounts};
use crate::{catalog::Resource, failure::qualified, object};

const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Which kind a name in `hard` is about: (group, plural).
pub fn source(name: &str) -> (&str, &str) {
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return (group, plural);
    }
    if name == "requests.storage" || name.contains(OF_CLASS) {
        return ("", "persistentvolumeclaims");
    }
    if name.starts_with("services.") {
        return ("", "services");
    }
    match COUNTED.iter().find(|counted| **counted == name) {
        Some(counted) => ("", counted),
        None => ("", "pods"),
    }
}

/// Everything that an object uses, by the names that quotas have for it.
pub fn of(group: &str, plural: &str, value: &Value) -> Amounts {
    let one = Quantity::whole(1);
    let mut used = Amounts::new();
    used.insert(format!("count/{}", qualified(plural, group)), one);
    if !group.is_empty() {
        return used;
    }
    // A pod that has ended holds nothing any more, and is there all the same.
    let is_over = matches!(object::text(value, "/status/phase"), "Succeeded" | "Failed");
    if plural == "pods" && is_over {
        return used;
    }
    if COUNTED.contains(&plural) {
        used.insert(plural.to_owned(), one);
    }
    match plural {
        "pods" => of_pod(value, &mut used),
        "services" => of_service(value, &mut used),
        "persistentvolumeclaims" => of_claim(value, &mut used),
        _ => {}
    }
    used
}

fn of_pod(pod: &Value, used: &mut Amounts) {
    for (name, amount) in amounts::of_pod(pod, "requests") {
        used.insert(format!("requests.{name}"), amount);
        if !name.contains('/') {
            used.insert(name, amount);
        }
    }
    for (name, amount) in amounts::of_pod(pod, "limits") {
        used.insert(format!("limits.{name}"), amount);
    }
}

fn of_service(service: &Value, used: &mut Amounts) {
    let ports = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let ports = Quantity::whole(i64::try_from(ports).unwrap_or(i64::MAX));
    match object::text(service, "/spec/type") {
        "NodePort" => {
            used.insert("services.nodeports".into(), ports);
        }
        "LoadBalancer" => {
            used.insert("services.loadbalancers".into(), Quantity::whole(1));
            if service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)) {
                used.insert("services.nodeports".into(), ports);
            }
        }
        _ => {}
    }
}

fn of_claim(claim: &Value, used: &mut Amounts) {
    let class = match object::text(claim, "/spec/storageClassName") {
        "" => object::text(
            claim,
            "/metadata/annotations/volume.beta.kubernetes.io~1storage-class",
        ),
        class => class,
    };
    let storage = claim
        .pointer("/spec/resources/requests/storage")
        .and_then(Quantity::of);
    if let Some(storage) = storage {
        used.insert("requests.storage".into(), storage);
    }
    if !class.is_empty() {
        used.insert(
            format!("{class}{OF_CLASS}persistentvolumeclaims"),
            Quantity::whole(1),
        );
        if let Some(storage) = storage {
            used.insert(format!("{class}{OF_CLASS}requests.storage"), storage);
        }
    }
}

/// Whether a quota's scopes have this object. Those with scopes have pods alone.
pub fn is_in_scope(quota: &Value, resource: &Resource, value: &Value) -> bool {
    let mut conditions: Vec<(&str, &str, Vec<&str>)> = quota
        .pointer("/spec/scopes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|scope| Some((scope.as_str()?, "Exists", Vec::new())))
        .collect();
    let expressions = quota.pointer("/spec/scopeSelector/matchExpressions");
    for expression in expressions.and_then(Value::as_array).into_iter().flatten() {
        let values = expression["values"].as_array();
        conditions.push((
            object::text(expression, "/scopeName"),
            object::text(expression, "/operator"),
            values
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
        ));
    }
    conditions.is_empty()
        || (resource.is("", "pods")
            && conditions
                .iter()
                .all(|(scope, operator, values)| has_scope(scope, operator, values, value)))
}

fn has_scope(scope: &str, operator: &str, values: &[&str], pod: &Value) -> bool {
    let has_deadline = object::number(pod, "/spec/activeDeadlineSeconds").is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => has_deadline,
        "NotTerminating" => !has_deadline,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = object::text(pod, "/spec/priorityClassName");
            match operator {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    let asks = |list: &Value| {
        ["requests", "limits"].iter().any(|which| {
            amounts::of(list.pointer(&format!("/resources/{which}")))
                .iter()
                .any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && amount.nano > 0)
        })
    };
    !["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| amounts::containers(pod, list))
        .chain(pod.get("spec"))
        .any(asks)
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
            || !term["namespaceSelector"].is_null()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|affinity| {
        let Some(affinity) = pod.pointer(&format!("/spec/affinity/{affinity}")) else {
            return false;
        };
        let required = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        required.into_iter().flatten().any(crosses)
            || preferred
                .into_iter()
                .flatten()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}

/// What a pod must say under this quota and does not: `cpu for: a,b; memory for: a`. A quota of cpu counts nothing where nothing is said.
pub fn unsaid(hard: &Amounts, pod: &Value) -> Option<String> {
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in hard.keys() {
        let (which, resource) = match name.split_once('.') {
            Some((which @ ("requests" | "limits"), resource)) => (which, resource),
            _ => ("requests", name.as_str()),
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        let pointer = format!("/resources/{which}/{resource}");
        if pod.pointer(&format!("/spec{pointer}")).is_some() {
            continue;
        }
        let silent: Vec<&str> = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| amounts::containers(pod, list))
            .filter(|container| container.pointer(&pointer).is_none())
            .map(|container| object::text(container, "/name"))
            .collect();
        if !silent.is_empty() {
            missing.insert(name, silent);
        }
    }
    let words: Vec<String> = missing
        .iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.join(",")))
        .collect();
    (!words.is_empty()).then(|| words.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(used: &Amounts) -> Vec<String> {
        used.iter()
            .map(|(name, amount)| format!("{name}={}", amount.canonical()))
            .collect()
    }

    #[test]
    fn what_is_used_has_upstreams_names() {
        let pod = json!({"spec": {"containers": [{"resources": {
            "requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"memory": "1Gi"},
        }}]}});
        assert_eq!(
            told(&of("", "pods", &pod)),
            [
                "count/pods=1",
                "cpu=1",
                "limits.memory=1Gi",
                "pods=1",
                "requests.cpu=1",
                "requests.example.com/gpu=2"
            ]
        );
        let mut over = pod.clone();
        over["status"] = json!({"phase": "Failed"});
        assert_eq!(told(&of("", "pods", &over)), ["count/pods=1"]);
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        assert_eq!(
            told(&of("", "services", &service)),
            [
                "count/services=1",
                "services=1",
                "services.loadbalancers=1",
                "services.nodeports=2"
            ]
        );
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            told(&of("", "persistentvolumeclaims", &claim)),
            [
                "count/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/requests.storage=1Gi",
                "persistentvolumeclaims=1",
                "requests.storage=1Gi"
            ]
        );
        assert_eq!(
            told(&of("apps", "deployments", &json!({}))),
            ["count/deployments.apps=1"]
        );
        for (name, is) in [
            ("count/deployments.apps", ("apps", "deployments")),
            ("requests.storage", ("", "persistentvolumeclaims")),
            ("services.nodeports", ("", "services")),
            ("secrets", ("", "secrets")),
            ("limits.memory", ("", "pods")),
        ] {
            assert_eq!(source(name), is, "{name}");
        }
    }

    #[test]
    fn a_pod_that_says_nothing_of_what_is_counted_is_told_so() {
        let hard = amounts::of(Some(
            &json!({"cpu": "1", "limits.memory": "1Gi", "pods": "3"}),
        ));
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1"}}},
            {"name": "b"},
        ]}});
        assert_eq!(
            unsaid(&hard, &pod).as_deref(),
            Some("cpu for: b; limits.memory for: a,b")
        );
        assert_eq!(unsaid(&Amounts::new(), &pod), None);
    }

    #[test]
    fn scopes_say_which_pods_are_meant() {
        for (scope, operator, values, pod, is) in [
            (
                "Terminating",
                "Exists",
                vec![],
                json!({"spec": {"activeDeadlineSeconds": 3}}),
                true,
            ),
            (
                "NotTerminating",
                "Exists",
                vec![],
                json!({"spec": {}}),
                true,
            ),
            (
                "BestEffort",
                "Exists",
                vec![],
                json!({"spec": {"containers": [{}]}}),
                true,
            ),
            (
                "NotBestEffort",
                "Exists",
                vec![],
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}}),
                true,
            ),
            (
                "PriorityClass",
                "In",
                vec!["high"],
                json!({"spec": {"priorityClassName": "high"}}),
                true,
            ),
            (
                "PriorityClass",
                "NotIn",
                vec!["high"],
                json!({"spec": {"priorityClassName": "high"}}),
                false,
            ),
            (
                "PriorityClass",
                "Exists",
                vec![],
                json!({"spec": {}}),
                false,
            ),
            ("Other", "Exists", vec![], json!({}), false),
        ] {
            assert_eq!(
                has_scope(scope, operator, &values, &pod),
                is,
                "{scope} {operator}"
            );
        }
    }
}
