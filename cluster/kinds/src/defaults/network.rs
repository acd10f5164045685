use serde_json::{Map, Value, json};

use crate::write::{absent, each, ensure, has, object_at, text_of, zero};

/// Three hours.
const AFFINITY_SECONDS: i64 = 10_800;

pub(crate) fn service(service: &mut Value) {
    // one that says nothing is one that lacks its ports
    let spec = service
        .as_object_mut()
        .and_then(|service| ensure(service, "spec"));
    let Some(spec) = spec else { return };
    zero(spec, "type", "ClusterIP");
    zero(spec, "sessionAffinity", "None");
    match text_of(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            if let Some(config) = ensure(spec, "sessionAffinityConfig")
                && let Some(client) = ensure(config, "clientIP")
            {
                absent(client, "timeoutSeconds", AFFINITY_SECONDS);
            }
        }
        _ => {}
    }
    for port in each(spec, "ports") {
        zero(port, "protocol", "TCP");
        if let Some(own) = port.get("port").cloned() {
            zero(port, "targetPort", own);
        }
    }
    let kind = text_of(spec, "type").to_owned();
    let external_ips = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|ips| !ips.is_empty());
    if ["NodePort", "LoadBalancer"].contains(&kind.as_str())
        || (kind == "ClusterIP" && external_ips)
    {
        zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        absent(spec, "allocateLoadBalancerNodePorts", true);
    }
    if ["NodePort", "LoadBalancer", "ClusterIP"].contains(&kind.as_str()) {
        absent(spec, "internalTrafficPolicy", "Cluster");
        addresses(spec);
    }
}

/// The list of addresses and the one address say the same; families are what the addresses say, IPv4 where there are none yet.
fn addresses(spec: &mut Map<String, Value>) {
    let first = text_of(spec, "clusterIP").to_owned();
    if !first.is_empty() {
        zero(spec, "clusterIPs", json!([first]));
    } else if let Some(listed) = spec
        .get("clusterIPs")
        .and_then(|list| list.get(0))
        .and_then(Value::as_str)
    {
        let listed = listed.to_owned();
        spec.insert("clusterIP".to_owned(), listed.into());
    }
    let unselective = spec
        .get("selector")
        .and_then(Value::as_object)
        .is_none_or(Map::is_empty);
    let headless = text_of(spec, "clusterIP") == "None";
    let families = spec
        .get("ipFamilies")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    // Whoever makes the endpoints of such a service may make them of both families.
    if headless && unselective && !has(spec, "ipFamilyPolicy") && families == 0 {
        spec.insert("ipFamilyPolicy".to_owned(), "RequireDualStack".into());
        spec.insert("ipFamilies".to_owned(), json!(["IPv4", "IPv6"]));
        return;
    }
    let family = if text_of(spec, "clusterIP").contains(':') {
        "IPv6"
    } else {
        "IPv4"
    };
    zero(spec, "ipFamilies", json!([family]));
    let policy = if families == 2 {
        "RequireDualStack"
    } else {
        "SingleStack"
    };
    absent(spec, "ipFamilyPolicy", policy);
}

pub(crate) fn endpoints(endpoints: &mut Value) {
    let Some(endpoints) = endpoints.as_object_mut() else {
        return;
    };
    for subset in each(endpoints, "subsets") {
        for port in each(subset, "ports") {
            zero(port, "protocol", "TCP");
        }
    }
}

pub(crate) fn endpoint_slice(slice: &mut Value) {
    let Some(slice) = slice.as_object_mut() else {
        return;
    };
    for port in each(slice, "ports") {
        absent(port, "name", "");
        absent(port, "protocol", "TCP");
    }
}

pub(crate) fn ingress_class(class: &mut Value) {
    if let Some(parameters) = object_at(class, "/spec/parameters") {
        absent(parameters, "scope", "Cluster");
    }
}

pub(crate) fn network_policy(policy: &mut Value) {
    let Some(spec) = object_at(policy, "/spec") else {
        return;
    };
    for direction in ["ingress", "egress"] {
        for rule in each(spec, direction) {
            for port in each(rule, "ports") {
                absent(port, "protocol", "TCP");
            }
        }
    }
    let egress = spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|rules| !rules.is_empty());
    let types = if egress {
        json!(["Ingress", "Egress"])
    } else {
        json!(["Ingress"])
    };
    zero(spec, "policyTypes", types);
}
