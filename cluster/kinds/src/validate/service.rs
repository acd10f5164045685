use std::{collections::HashSet, net::IpAddr};

use serde_json::Value;

use super::{
    container::port_number,
    meta::{changed, labels, namespaced},
    network::{cidr, endpoint_ip},
    pod::ip,
};
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    name::{dns_label, dns_subdomain, port_name, qualified_name},
    read::{items, map, number, some, text},
};

const SPEC: Path = Path::root("spec");

/// A day.
const AFFINITY_SECONDS: i64 = 86_400;

pub(crate) fn service(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_label);
    let null = &Value::Null;
    let spec = object.get("spec").unwrap_or(null);
    let kind = text(spec, "/type");
    let headless = text(spec, "/clusterIP") == "None";
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
    if text(spec, "/sessionAffinity") == "None" && some(spec, "/sessionAffinityConfig").is_some() {
        errors.forbidden(
            &SPEC.field("sessionAffinityConfig"),
            "must not be set when session affinity is None",
        );
    } else if let Some(seconds) = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds")
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
    external_ips(spec, &mut errors);
    errors.one_of(
        &SPEC.field("type"),
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    balancer(spec, kind, &mut errors);
    traffic(spec, kind, &mut errors);
    errors.into_vec()
}

/// Upstream's name has no capital where it is written, and one where it is told.
fn balancer(spec: &Value, kind: &str, errors: &mut Errors) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balancer = kind == "LoadBalancer";
    let list = SPEC.field("LoadBalancerSourceRanges");
    let ranges = items(spec, "/loadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer {
        errors.forbidden(&list, ONLY);
    }
    for (at, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        cidr(range, &list.index(at), errors);
    }
    if !is_balancer && some(spec, "/allocateLoadBalancerNodePorts").is_some() {
        errors.forbidden(&SPEC.field("allocateLoadBalancerNodePorts"), ONLY);
    }
    if let Some(class) = some(spec, "/loadBalancerClass").and_then(Value::as_str) {
        let path = SPEC.field("loadBalancerClass");
        if is_balancer {
            errors.text_is(&path, class, qualified_name(class));
        } else {
            errors.forbidden(&path, ONLY);
        }
    }
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
    for name in ["ipFamilies", "ipFamilyPolicy"] {
        if spec
            .get(name)
            .is_some_and(|value| !same(value, &Value::Null))
        {
            errors.forbidden(
                &SPEC.field(name),
                "may not be set for ExternalName services",
            );
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
            if kind == "ClusterIP" {
                errors.forbidden(
                    &path.field("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                );
            }
            if !nodes.insert((node, protocol)) {
                errors.duplicate_value(&path.field("nodePort"), &port["nodePort"]);
            }
        }
    }
}

fn addresses(spec: &Value, kind: &str, errors: &mut Errors) {
    if kind == "ExternalName" {
        return;
    }
    let list = SPEC.field("clusterIPs");
    let ips: Vec<&str> = items(spec, "/clusterIPs")
        .iter()
        .map(|ip| ip.as_str().unwrap_or_default())
        .collect();
    let said = spec.get("clusterIPs").unwrap_or(&Value::Null);
    match (text(spec, "/clusterIP"), ips.first()) {
        ("", Some(_)) => errors.invalid(
            &list,
            said,
            "must be empty when `clusterIP` is not specified",
        ),
        ("", None) => {}
        (_, None) => errors.required(&list, ""),
        (own, Some(first)) if own != *first => {
            errors.invalid(&list, said, "first value must match `clusterIP`");
        }
        _ => {}
    }
    families(spec, errors);
    let mut is_wrong = false;
    for (at, address) in ips.iter().enumerate() {
        if at == 0 && *address == "None" {
            if ips.len() > 1 {
                is_wrong = true;
                errors.invalid(&list, said, "'None' must be the first and only value");
            }
        } else {
            is_wrong |= address.parse::<IpAddr>().is_err();
            ip(address, &list.index(at), errors);
        }
    }
    if ips.len() > 2 {
        errors.invalid(&list, said, "may only hold up to 2 values");
    }
    if !is_wrong {
        of_families(spec, &ips, &list, errors);
    }
}

fn families(spec: &Value, errors: &mut Errors) {
    let list = SPEC.field("ipFamilies");
    let mut seen = HashSet::new();
    for (at, family) in items(spec, "/ipFamilies").iter().enumerate() {
        let family = family.as_str().unwrap_or_default();
        if !["IPv4", "IPv6"].contains(&family) {
            errors.not_supported(&list.index(at), family, &["IPv4", "IPv6"]);
        }
        if !seen.insert(family) {
            errors.duplicate(&list.index(at), family);
        }
    }
    if let Some(policy) = some(spec, "/ipFamilyPolicy").and_then(Value::as_str) {
        errors.maybe_one_of(
            &SPEC.field("ipFamilyPolicy"),
            policy,
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        );
    }
}

/// Well formed addresses: one of a family, each of the one that is said.
fn of_families(spec: &Value, ips: &[&str], list: &Path, errors: &mut Errors) {
    let parsed: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let six = parsed.iter().filter(|ip| ip.is_ipv6()).count();
    if parsed.len() > 1 && (six == 0 || six == parsed.len()) {
        errors.invalid(
            list,
            &spec["clusterIPs"],
            "may specify no more than one IP for each IP family",
        );
    }
    for (at, (address, family)) in parsed.iter().zip(items(spec, "/ipFamilies")).enumerate() {
        let expected = family.as_str().unwrap_or_default();
        if ["IPv4", "IPv6"].contains(&expected) && (expected == "IPv6") != address.is_ipv6() {
            errors.invalid_text(
                &list.index(at),
                ips[at],
                &format!("expected an {expected} value as indicated by `ipFamilies[{at}]`"),
            );
        }
    }
}

fn external_ips(spec: &Value, errors: &mut Errors) {
    let list = SPEC.field("externalIPs");
    for (at, address) in items(spec, "/externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        endpoint_ip(address, &list.index(at), errors);
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
