use std::{collections::HashSet, net::IpAddr};

use serde_json::Value;

use super::{
    container::port_number,
    meta::{changed, labels, namespaced},
    pod::ip,
};
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    name::{dns_1035_label, dns_label, dns_subdomain, port_name, qualified_name},
    read::{items, map, number, some, text},
};

const SPEC: Path = Path::root("spec");

/// A day.
const AFFINITY_SECONDS: i64 = 86_400;

pub(crate) fn service(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_1035_label);
    let null = &Value::Null;
    let spec = object.get("spec").unwrap_or(null);
    let kind = text(spec, "/type");
    let headless = text(spec, "/clusterIP") == "None";
    errors.one_of(
        &SPEC.field("type"),
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    let list = SPEC.field("ports");
    let service_ports = items(spec, "/ports");
    if service_ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required(&list, "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => errors.invalid_text(
            &SPEC.field("clusterIPs").index(0),
            "None",
            &format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => external_name(spec, &mut errors),
        _ => {}
    }
    ports(service_ports, kind, &list, &mut errors);
    labels(map(spec, "/selector"), &SPEC.field("selector"), &mut errors);
    errors.one_of(
        &SPEC.field("sessionAffinity"),
        text(spec, "/sessionAffinity"),
        &["ClientIP", "None"],
    );
    if let Some(seconds) = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds")
        && !seconds
            .as_i64()
            .is_some_and(|seconds| (1..=AFFINITY_SECONDS).contains(&seconds))
    {
        errors.invalid(
            &SPEC
                .field("sessionAffinityConfig")
                .field("clientIP")
                .field("timeoutSeconds"),
            seconds,
            &format!("must be greater than 0 and less than {AFFINITY_SECONDS}"),
        );
    }
    addresses(spec, kind, &mut errors);
    traffic(spec, kind, &mut errors);
    errors.into_vec()
}

fn external_name(spec: &Value, errors: &mut Errors) {
    for name in ["clusterIP", "clusterIPs"] {
        if spec
            .get(name)
            .is_some_and(|value| !same(value, &Value::Null))
        {
            errors.forbidden(
                &SPEC.field("clusterIPs"),
                "may not be set for ExternalName services",
            );
            break;
        }
    }
    match text(spec, "/externalName") {
        "" => errors.required(&SPEC.field("externalName"), ""),
        name => {
            let bare = name.strip_suffix('.').unwrap_or(name);
            errors.text_is(&SPEC.field("externalName"), name, dns_subdomain(bare));
        }
    }
}

fn ports(all: &[Value], kind: &str, list: &Path, errors: &mut Errors) {
    let (mut names, mut numbers, mut nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (at, port) in all.iter().enumerate() {
        let path = list.index(at);
        match text(port, "/name") {
            "" if all.len() > 1 => errors.required(&path.field("name"), ""),
            "" => {}
            name => {
                errors.text_is(&path.field("name"), name, dns_label(name));
                if !names.insert(name) {
                    errors.duplicate(&path.field("name"), name);
                }
            }
        }
        let own = port.get("port").unwrap_or(&Value::Null);
        port_number(Some(own), &path.field("port"), errors);
        let protocol = text(port, "/protocol");
        errors.one_of(&path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        match port.get("targetPort") {
            Some(Value::String(name)) => {
                errors.text_is(&path.field("targetPort"), name, port_name(name))
            }
            Some(number) => port_number(Some(number), &path.field("targetPort"), errors),
            None => {}
        }
        if let Some(protocol) = some(port, "/appProtocol").and_then(Value::as_str) {
            errors.text_is(
                &path.field("appProtocol"),
                protocol,
                qualified_name(protocol),
            );
        }
        if !numbers.insert((own.as_i64(), protocol)) {
            errors.duplicate_value(&path, port);
        }
        let node = number(port, "/nodePort");
        if node != 0 {
            if ["ClusterIP", "ExternalName"].contains(&kind) {
                errors.forbidden(
                    &path.field("nodePort"),
                    &format!("may not be used when `type` is '{kind}'"),
                );
            }
            if !nodes.insert((node, protocol)) {
                errors.duplicate_value(&path.field("nodePort"), &port["nodePort"]);
            }
        }
    }
}

fn addresses(spec: &Value, kind: &str, errors: &mut Errors) {
    let list = SPEC.field("clusterIPs");
    let ips = items(spec, "/clusterIPs");
    if kind != "ExternalName" {
        if ips.len() > 2 {
            errors.invalid(&list, &spec["clusterIPs"], "may only hold up to 2 values");
        }
        for (at, address) in ips.iter().enumerate() {
            let address = address.as_str().unwrap_or_default();
            if address == "None" {
                if ips.len() > 1 {
                    errors.invalid(
                        &list,
                        &spec["clusterIPs"],
                        "'None' must be the first and only value",
                    );
                }
            } else {
                ip(address, &list.index(at), errors);
            }
        }
        let first = ips.first().and_then(Value::as_str).unwrap_or_default();
        let own = text(spec, "/clusterIP");
        if own != first {
            errors.invalid(
                &list,
                ips.first().unwrap_or(&Value::Null),
                "first value must match `clusterIP`",
            );
        }
    }
    let list = SPEC.field("externalIPs");
    for (at, address) in items(spec, "/externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let path = list.index(at);
        match address.parse::<IpAddr>() {
            Err(_) => ip(address, &path, errors),
            Ok(parsed) => {
                let link_local = match parsed {
                    IpAddr::V4(v4) => v4.is_link_local(),
                    IpAddr::V6(v6) => v6.is_unicast_link_local(),
                };
                if parsed.is_unspecified() {
                    errors.invalid_text(
                        &path,
                        address,
                        &format!("may not be unspecified ({address})"),
                    );
                }
                if parsed.is_loopback() {
                    errors.invalid_text(
                        &path,
                        address,
                        "may not be in the loopback range (127.0.0.0/8, ::1/128)",
                    );
                }
                if link_local {
                    errors.invalid_text(
                        &path,
                        address,
                        "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
                    );
                }
                if parsed.is_multicast() {
                    errors.invalid_text(
                        &path,
                        address,
                        "may not be in the multicast range (224.0.0.0/4, ff00::/10)",
                    );
                }
            }
        }
    }
    if let Some(policy) = some(spec, "/ipFamilyPolicy").and_then(Value::as_str) {
        errors.maybe_one_of(
            &SPEC.field("ipFamilyPolicy"),
            policy,
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        );
    }
    let list = SPEC.field("ipFamilies");
    let mut seen = HashSet::new();
    for (at, family) in items(spec, "/ipFamilies").iter().enumerate() {
        let family = family.as_str().unwrap_or_default();
        errors.one_of(&list.index(at), family, &["IPv4", "IPv6"]);
        if !seen.insert(family) {
            errors.duplicate(&list.index(at), family);
        }
    }
}

fn traffic(spec: &Value, kind: &str, errors: &mut Errors) {
    let external = text(spec, "/externalTrafficPolicy");
    let external_ips = !items(spec, "/externalIPs").is_empty();
    let outside =
        ["LoadBalancer", "NodePort"].contains(&kind) || (kind == "ClusterIP" && external_ips);
    if outside {
        errors.one_of(
            &SPEC.field("externalTrafficPolicy"),
            external,
            &["Cluster", "Local"],
        );
    } else if !external.is_empty() {
        errors.invalid_text(
            &SPEC.field("externalTrafficPolicy"),
            external,
            "may only be set for externally-accessible services",
        );
    }
    if let Some(policy) = some(spec, "/internalTrafficPolicy").and_then(Value::as_str) {
        errors.maybe_one_of(
            &SPEC.field("internalTrafficPolicy"),
            policy,
            &["Cluster", "Local"],
        );
    }
    if kind != "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.get(name).is_some_and(|value| !value.is_null()) {
                errors.forbidden(
                    &SPEC.field(name),
                    "may only be used when `type` is 'LoadBalancer'",
                );
            }
        }
        if !items(spec, "/loadBalancerSourceRanges").is_empty() {
            errors.forbidden(
                &SPEC.field("loadBalancerSourceRanges"),
                "may only be used when `type` is 'LoadBalancer'",
            );
        }
    }
    let health = number(spec, "/healthCheckNodePort");
    if health != 0 && !(kind == "LoadBalancer" && external == "Local") {
        errors.invalid(
            &SPEC.field("healthCheckNodePort"),
            &health.into(),
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    if let Some(distribution) = some(spec, "/trafficDistribution").and_then(Value::as_str) {
        errors.maybe_one_of(
            &SPEC.field("trafficDistribution"),
            distribution,
            &["PreferClose", "PreferSameNode", "PreferSameZone"],
        );
    }
}

/// A service keeps its address as long as it has one.
pub(crate) fn service_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let kinds = (text(new, "/spec/type"), text(old, "/spec/type"));
    if kinds.0 != "ExternalName" && kinds.1 != "ExternalName" {
        let first = |object| text(object, "/spec/clusterIP");
        let (now, before) = (first(new), first(old));
        if !before.is_empty() && now != before {
            errors.invalid(
                &SPEC.field("clusterIPs").index(0),
                &now.into(),
                "may not change once set",
            );
        }
    }
    let class = |object: &Value| object.pointer("/spec/loadBalancerClass").cloned();
    if kinds == ("LoadBalancer", "LoadBalancer") && class(new) != class(old) {
        errors.invalid(
            &SPEC.field("loadBalancerClass"),
            &class(new).unwrap_or_default(),
            "may not change once set",
        );
    }
    errors.into_vec()
}
