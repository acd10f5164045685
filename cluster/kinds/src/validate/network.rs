use std::net::IpAddr;

use serde_json::Value;

use super::{
    container::{port, port_number},
    meta::{changed, cluster, namespaced, selector},
    pod::ip,
};
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_label, dns_subdomain, port_name, qualified_name, wildcard_subdomain},
    read::{items, map, some, text},
};

const SPEC: Path = Path::root("spec");

pub(crate) fn ingress(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let rules = items(object, "/spec/rules");
    let default = some(object, "/spec/defaultBackend");
    if rules.is_empty() && default.is_none() {
        errors.invalid(
            &SPEC,
            object.get("spec").unwrap_or(&Value::Null),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if let Some(class) = some(object, "/spec/ingressClassName").and_then(Value::as_str) {
        errors.text_is(&SPEC.field("ingressClassName"), class, dns_subdomain(class));
    }
    if let Some(default) = default {
        backend(default, &SPEC.field("defaultBackend"), &mut errors);
    }
    let list = SPEC.field("rules");
    for (at, rule) in rules.iter().enumerate() {
        let path = list.index(at);
        host(text(rule, "/host"), &path.field("host"), &mut errors);
        let Some(http) = some(rule, "/http") else {
            continue;
        };
        let path = path.field("http");
        let list = path.field("paths");
        let paths = items(http, "/paths");
        if paths.is_empty() {
            errors.required(&list, "");
        }
        for (at, one) in paths.iter().enumerate() {
            ingress_path(one, &list.index(at), &mut errors);
        }
    }
    let list = SPEC.field("tls");
    for (at, tls) in items(object, "/spec/tls").iter().enumerate() {
        let path = list.index(at);
        let list = path.field("hosts");
        for (at, name) in items(tls, "/hosts").iter().enumerate() {
            host(
                name.as_str().unwrap_or_default(),
                &list.index(at),
                &mut errors,
            );
        }
        match text(tls, "/secretName") {
            "" => {}
            name => errors.text_is(&path.field("secretName"), name, dns_subdomain(name)),
        }
    }
    errors.into_vec()
}

fn host(host: &str, path: &Path, errors: &mut Errors) {
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        errors.invalid_text(path, host, "must be a DNS name, not an IP address");
    } else if host.contains('*') {
        errors.text_is(path, host, wildcard_subdomain(host));
    } else {
        errors.text_is(path, host, dns_subdomain(host));
    }
}

fn ingress_path(one: &Value, path: &Path, errors: &mut Errors) {
    let url = text(one, "/path");
    let at = &path.field("path");
    match text(one, "/pathType") {
        "Exact" | "Prefix" => {
            if url.starts_with('/') {
                for part in ["//", "/./", "/../", "%2f", "%2F"] {
                    if url.contains(part) {
                        errors.invalid_text(at, url, &format!("must not contain '{part}'"));
                    }
                }
                for end in ["/..", "/."] {
                    if url.ends_with(end) {
                        errors.invalid_text(at, url, &format!("cannot end with '{end}'"));
                    }
                }
            } else {
                errors.invalid_text(at, url, "must be an absolute path");
            }
        }
        "ImplementationSpecific" => {
            if !url.is_empty() && !url.starts_with('/') {
                errors.invalid_text(at, url, "must be an absolute path");
            }
        }
        "" => errors.required(&path.field("pathType"), "pathType must be specified"),
        other => errors.not_supported(
            &path.field("pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        ),
    }
    backend(
        one.get("backend").unwrap_or(&Value::Null),
        &path.field("backend"),
        errors,
    );
}

fn backend(value: &Value, path: &Path, errors: &mut Errors) {
    match (some(value, "/service"), some(value, "/resource")) {
        (Some(_), Some(_)) => {
            errors.invalid_text(path, "", "cannot set both resource and service backends")
        }
        (None, None) => errors.required(path, "resource or service backend is required"),
        (None, Some(resource)) => {
            for name in ["kind", "name"] {
                if resource
                    .get(name)
                    .and_then(Value::as_str)
                    .is_none_or(str::is_empty)
                {
                    errors.required(&path.field("resource").field(name), "");
                }
            }
        }
        (Some(service), None) => {
            let path = path.field("service");
            match text(service, "/name") {
                "" => errors.required(&path.field("name"), ""),
                name => {
                    errors.text_is(&path.field("name"), name, crate::name::dns_1035_label(name))
                }
            }
            let (name, number) = (text(service, "/port/name"), some(service, "/port/number"));
            let path = path.field("port");
            match (name, number) {
                ("", None) => errors.required(&path, "port name or number is required"),
                ("", Some(number)) => port_number(Some(number), &path.field("number"), errors),
                (name, None) => errors.text_is(&path.field("name"), name, port_name(name)),
                (_, Some(_)) => {
                    errors.invalid_text(&path, "", "cannot set both port name & port number")
                }
            }
        }
    }
}

pub(crate) fn ingress_class(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    match text(object, "/spec/controller") {
        "" => errors.required(&SPEC.field("controller"), ""),
        name if name.len() > 250 => errors.too_long(&SPEC.field("controller"), 250),
        name if !name.contains('/') => errors.invalid_text(
            &SPEC.field("controller"),
            name,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
        _ => {}
    }
    if let Some(parameters) = some(object, "/spec/parameters") {
        let path = SPEC.field("parameters");
        for name in ["kind", "name"] {
            if parameters
                .get(name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                errors.required(&path.field(name), "");
            }
        }
        let namespace = text(parameters, "/namespace");
        match text(parameters, "/scope") {
            "Namespace" if namespace.is_empty() => errors.required(
                &path.field("namespace"),
                "`parameters.scope` is set to 'Namespace'",
            ),
            "Cluster" if !namespace.is_empty() => errors.forbidden(
                &path.field("namespace"),
                "`parameters.scope` is set to 'Cluster'",
            ),
            "Namespace" | "Cluster" => {}
            "" => errors.required(&path.field("scope"), ""),
            other => errors.not_supported(&path.field("scope"), other, &["Cluster", "Namespace"]),
        }
    }
    errors.into_vec()
}

pub(crate) fn ingress_class_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(
        &SPEC.field("controller"),
        new.pointer("/spec/controller"),
        old.pointer("/spec/controller"),
    );
    errors.into_vec()
}

pub(crate) fn network_policy(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    if let Some(value) = some(object, "/spec/podSelector") {
        selector(value, &SPEC.field("podSelector"), &mut errors);
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let list = SPEC.field(direction);
        let rules = object
            .get("spec")
            .and_then(|spec| spec.get(direction))
            .and_then(Value::as_array);
        for (at, rule) in rules.into_iter().flatten().enumerate() {
            let path = list.index(at);
            let list = path.field("ports");
            for (at, one) in items(rule, "/ports").iter().enumerate() {
                policy_port(one, &list.index(at), &mut errors);
            }
            let list = path.field(peers);
            let all = rule.get(peers).and_then(Value::as_array);
            for (at, one) in all.into_iter().flatten().enumerate() {
                peer(one, &list.index(at), &mut errors);
            }
        }
    }
    let list = SPEC.field("policyTypes");
    let types = items(object, "/spec/policyTypes");
    if types.len() > 2 {
        errors.invalid(
            &list,
            &object["spec"]["policyTypes"],
            "may not specify more than two policyTypes",
        );
    }
    for (at, kind) in types.iter().enumerate() {
        errors.one_of(
            &list.index(at),
            kind.as_str().unwrap_or_default(),
            &["Egress", "Ingress"],
        );
    }
    errors.into_vec()
}

fn policy_port(one: &Value, path: &Path, errors: &mut Errors) {
    errors.maybe_one_of(
        &path.field("protocol"),
        text(one, "/protocol"),
        &["SCTP", "TCP", "UDP"],
    );
    let (start, end) = (some(one, "/port"), some(one, "/endPort"));
    if let Some(start) = start {
        port(Some(start), &path.field("port"), errors);
    }
    if let Some(end) = end {
        match start.map(Value::as_i64) {
            None => errors.required(
                &path.field("port"),
                "must be specified when `endPort` is specified",
            ),
            Some(None) => errors.invalid(
                &path.field("endPort"),
                end,
                "may not be specified when `port` is non-numeric",
            ),
            Some(Some(start)) if end.as_i64().is_some_and(|end| end < start) => {
                errors.invalid(
                    &path.field("endPort"),
                    end,
                    "must be greater than or equal to `port`",
                );
            }
            Some(Some(_)) => port_number(Some(end), &path.field("endPort"), errors),
        }
    }
}

fn peer(one: &Value, path: &Path, errors: &mut Errors) {
    let mut kinds = 0;
    for name in ["podSelector", "namespaceSelector"] {
        if let Some(value) = one.get(name).filter(|value| !value.is_null()) {
            kinds = 1;
            selector(value, &path.field(name), errors);
        }
    }
    if let Some(block) = some(one, "/ipBlock") {
        kinds += 1;
        let path = path.field("ipBlock");
        match text(block, "/cidr") {
            "" => errors.required(&path.field("cidr"), ""),
            network => cidr(network, &path.field("cidr"), errors),
        }
        let list = path.field("except");
        for (at, except) in items(block, "/except").iter().enumerate() {
            let except = except.as_str().unwrap_or_default();
            cidr(except, &list.index(at), errors);
            if let (Some(outer), Some(inner)) =
                (parse_cidr(text(block, "/cidr")), parse_cidr(except))
                && !contains(outer, inner)
            {
                errors.invalid_text(
                    &list.index(at),
                    except,
                    &format!(
                        "must be a strict subset of `cidr` \"{}\"",
                        text(block, "/cidr")
                    ),
                );
            }
        }
    }
    match kinds {
        0 => errors.required(path, "must specify a peer"),
        1 => {}
        _ => errors.forbidden(path, "may not specify both ipBlock and another peer"),
    }
}

fn parse_cidr(text: &str) -> Option<(u128, u32, u32)> {
    let (address, length) = text.split_once('/')?;
    let (bits, width) = match address.parse().ok()? {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let length: u32 = length.parse().ok().filter(|length| *length <= width)?;
    Some((bits, length, width))
}

/// Strictly: not the whole of it.
fn contains(outer: (u128, u32, u32), inner: (u128, u32, u32)) -> bool {
    let mask = u128::MAX.checked_shl(128 - outer.1).unwrap_or(0);
    outer.2 == inner.2 && inner.1 > outer.1 && outer.0 & mask == inner.0 & mask
}

pub(super) fn cidr(text: &str, path: &Path, errors: &mut Errors) {
    if parse_cidr(text).is_none() {
        errors.invalid_text(
            path,
            text,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        );
    }
}

/// So much a slice has.
const SLICE_ENDPOINTS: usize = 1000;
const SLICE_PORTS: usize = 20_000;
const ENDPOINT_ADDRESSES: usize = 100;

pub(crate) fn endpoint_slice(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let kind = text(object, "/addressType");
    errors.one_of(&Path::root("addressType"), kind, &["FQDN", "IPv4", "IPv6"]);
    let list = Path::root("endpoints");
    let endpoints = items(object, "/endpoints");
    if endpoints.len() > SLICE_ENDPOINTS {
        errors.too_many(&list, endpoints.len(), SLICE_ENDPOINTS);
        return errors.into_vec();
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let path = list.index(at);
        let list = path.field("addresses");
        let addresses = items(endpoint, "/addresses");
        match addresses.len() {
            0 => errors.required(&list, "must contain at least 1 address"),
            1..=ENDPOINT_ADDRESSES => {}
            many => errors.too_many(&list, many, ENDPOINT_ADDRESSES),
        }
        for (at, address) in addresses.iter().take(ENDPOINT_ADDRESSES).enumerate() {
            let address = address.as_str().unwrap_or_default();
            let path = list.index(at);
            match (kind, address.parse()) {
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {}
                ("IPv4", _) => errors.invalid_text(&path, address, "must be an IPv4 address"),
                ("IPv6", _) => errors.invalid_text(&path, address, "must be an IPv6 address"),
                ("FQDN", _) => errors.text_is(&path, address, dns_subdomain(address)),
                _ => {}
            }
        }
        if let Some(name) = some(endpoint, "/hostname").and_then(Value::as_str) {
            errors.text_is(&path.field("hostname"), name, dns_label(name));
        }
        if let Some(name) = some(endpoint, "/nodeName").and_then(Value::as_str) {
            errors.text_is(&path.field("nodeName"), name, dns_subdomain(name));
        }
    }
    let list = Path::root("ports");
    let ports = items(object, "/ports");
    if ports.len() > SLICE_PORTS {
        errors.too_many(&list, ports.len(), SLICE_PORTS);
        return errors.into_vec();
    }
    let mut names = std::collections::HashSet::new();
    for (at, one) in ports.iter().enumerate() {
        let path = list.index(at);
        let name = text(one, "/name");
        if !name.is_empty() {
            errors.text_is(&path.field("name"), name, dns_label(name));
        }
        if !names.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if let Some(number) = some(one, "/port") {
            port_number(Some(number), &path.field("port"), &mut errors);
        }
        errors.one_of(
            &path.field("protocol"),
            text(one, "/protocol"),
            &["SCTP", "TCP", "UDP"],
        );
        if let Some(protocol) = some(one, "/appProtocol").and_then(Value::as_str) {
            errors.text_is(
                &path.field("appProtocol"),
                protocol,
                qualified_name(protocol),
            );
        }
    }
    errors.into_vec()
}

pub(crate) fn endpoint_slice_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(
        &Path::root("addressType"),
        new.get("addressType"),
        old.get("addressType"),
    );
    errors.into_vec()
}

pub(crate) fn endpoints(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let list = Path::root("subsets");
    for (at, subset) in items(object, "/subsets").iter().enumerate() {
        let path = list.index(at);
        let (ready, others) = (
            items(subset, "/addresses"),
            items(subset, "/notReadyAddresses"),
        );
        if ready.is_empty() && others.is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for (name, addresses) in [("addresses", ready), ("notReadyAddresses", others)] {
            let list = path.field(name);
            for (at, address) in addresses.iter().enumerate() {
                let path = list.index(at);
                ip(text(address, "/ip"), &path.field("ip"), &mut errors);
                match text(address, "/hostname") {
                    "" => {}
                    name => errors.text_is(&path.field("hostname"), name, dns_label(name)),
                }
            }
        }
        let list = path.field("ports");
        let ports = items(subset, "/ports");
        for (at, one) in ports.iter().enumerate() {
            let path = list.index(at);
            match text(one, "/name") {
                "" if ports.len() > 1 => errors.required(&path.field("name"), ""),
                "" => {}
                name => errors.text_is(&path.field("name"), name, dns_label(name)),
            }
            port_number(
                Some(one.get("port").unwrap_or(&Value::Null)),
                &path.field("port"),
                &mut errors,
            );
            errors.one_of(
                &path.field("protocol"),
                text(one, "/protocol"),
                &["SCTP", "TCP", "UDP"],
            );
        }
    }
    errors.into_vec()
}

pub(crate) fn service_cidr(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    let list = SPEC.field("cidrs");
    let cidrs = items(object, "/spec/cidrs");
    match cidrs.len() {
        0 => errors.required(&list, "at least one CIDR required"),
        1 | 2 => {}
        _ => errors.invalid(
            &list,
            &object["spec"]["cidrs"],
            "may only hold up to 2 values",
        ),
    }
    for (at, one) in cidrs.iter().enumerate() {
        cidr(
            one.as_str().unwrap_or_default(),
            &list.index(at),
            &mut errors,
        );
    }
    errors.into_vec()
}

/// Named after the address itself.
pub(crate) fn ip_address(object: &Value) -> Vec<Invalid> {
    let name = |name: &str| -> Vec<String> {
        match name.parse::<IpAddr>() {
            Ok(address) if address.to_string() == name => Vec::new(),
            _ => vec!["must be a valid IP address in canonical form".to_owned()],
        }
    };
    let mut errors = cluster(object, name);
    let path = SPEC.field("parentRef");
    if map(object, "/spec/parentRef").is_none() {
        errors.required(&path, "");
        return errors.into_vec();
    }
    for name in ["resource", "name"] {
        let value = object
            .pointer("/spec/parentRef")
            .and_then(|parent| parent.get(name))
            .and_then(Value::as_str);
        if value.is_none_or(str::is_empty) {
            errors.required(&path.field(name), "");
        }
    }
    errors.into_vec()
}

pub(crate) fn ip_address_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(
        &SPEC.field("parentRef"),
        new.pointer("/spec/parentRef"),
        old.pointer("/spec/parentRef"),
    );
    errors.into_vec()
}
