use std::net::IpAddr;

use serde_json::Value;

use super::{
    container::port_number,
    meta::{changed, cluster, namespaced, selector},
    pod::ip,
};
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_label, dns_subdomain, path_segment, port_name, wildcard_subdomain},
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
            object.pointer("/spec/rules").unwrap_or(&Value::Null),
            "either `defaultBackend` or `rules` must be specified",
        );
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
            let name = name.as_str().unwrap_or_default();
            domain(name, &list.index(at), &mut errors);
        }
        match text(tls, "/secretName") {
            "" => {}
            name => errors.text_is(&path.field("secretName"), name, dns_subdomain(name)),
        }
    }
    if let Some(class) = some(object, "/spec/ingressClassName").and_then(Value::as_str) {
        errors.text_is(&SPEC.field("ingressClassName"), class, dns_subdomain(class));
    }
    errors.into_vec()
}

/// A new one doesn't name two classes, one of them as it was done before.
pub(crate) fn ingress_create(object: &Value) -> Vec<Invalid> {
    const BEFORE: &str = "kubernetes.io/ingress.class";
    let mut errors = Errors::default();
    let annotations = map(object, "/metadata/annotations");
    let before = annotations.and_then(|all| all.get(BEFORE)?.as_str());
    let class = some(object, "/spec/ingressClassName").and_then(Value::as_str);
    if let (Some(before), Some(class)) = (before, class)
        && before != class
    {
        errors.invalid_text(
            &Path::root("annotations").field(BEFORE),
            before,
            "must match `ingressClassName` when both are specified",
        );
    }
    errors.into_vec()
}

fn host(host: &str, path: &Path, errors: &mut Errors) {
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        errors.invalid_text(path, host, "must be a DNS name, not an IP address");
    }
    domain(host, path, errors);
}

fn domain(name: &str, path: &Path, errors: &mut Errors) {
    if name.contains('*') {
        errors.text_is(path, name, wildcard_subdomain(name));
    } else {
        errors.text_is(path, name, dns_subdomain(name));
    }
}

fn ingress_path(one: &Value, path: &Path, errors: &mut Errors) {
    let url = text(one, "/path");
    let at = &path.field("path");
    match text(one, "/pathType") {
        "Exact" | "Prefix" => {
            if !url.starts_with('/') {
                errors.invalid_text(at, url, "must be an absolute path");
            }
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
        }
        "ImplementationSpecific" => {
            if !url.is_empty() && !url.starts_with('/') {
                errors.invalid_text(at, url, "must be an absolute path");
            }
        }
        "" => {
            errors.required(&path.field("pathType"), "pathType must be specified");
            return;
        }
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
        (None, None) => {
            errors.invalid_text(path, "", "resource or service backend is required");
        }
        (None, Some(resource)) => local_reference(resource, &path.field("resource"), errors),
        (Some(service), None) => {
            let of_service = path.field("service");
            let at = of_service.field("name");
            match text(service, "/name") {
                "" => errors.required(&at, ""),
                name => errors.text_is(&at, name, dns_label(name)),
            }
            let number = some(service, "/port/number").filter(|it| it.as_i64() != Some(0));
            let at = of_service.field("port");
            match (text(service, "/port/name"), number) {
                ("", None) => errors.required(path, "port name or number is required"),
                ("", Some(number)) => port_number(Some(number), &at.field("number"), errors),
                (name, None) => errors.text_is(&at.field("name"), name, port_name(name)),
                (_, Some(_)) => {
                    errors.invalid_text(path, "", "cannot set both port name & port number");
                }
            }
        }
    }
}

/// Group, kind and name of an object.
fn local_reference(reference: &Value, path: &Path, errors: &mut Errors) {
    if let Some(group) = some(reference, "/apiGroup").and_then(Value::as_str) {
        errors.text_is(&path.field("apiGroup"), group, dns_subdomain(group));
    }
    for name in ["kind", "name"] {
        let value = reference.get(name).and_then(Value::as_str);
        match value.unwrap_or_default() {
            "" => errors.required(&path.field(name), ""),
            value => errors.text_is(&path.field(name), value, path_segment(value)),
        }
    }
}

pub(crate) fn ingress_class(object: &Value) -> Vec<Invalid> {
    let mut errors = cluster(object, dns_subdomain);
    match text(object, "/spec/controller") {
        "" => errors.required(&SPEC.field("controller"), ""),
        name => {
            let path = SPEC.field("controller");
            if name.len() > 250 {
                errors.too_long(&path, 250);
            }
            match name.split_once('/') {
                Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
                    errors.text_is(&path, domain, dns_subdomain(domain));
                }
                _ => errors.invalid_text(
                    &path,
                    name,
                    "must be a domain-prefixed path (such as \"acme.io/foo\")",
                ),
            }
        }
    }
    if let Some(parameters) = some(object, "/spec/parameters") {
        let path = SPEC.field("parameters");
        local_reference(parameters, &path, &mut errors);
        let namespace = some(parameters, "/namespace").and_then(Value::as_str);
        match text(parameters, "/scope") {
            "Namespace" => match namespace {
                None => errors.required(
                    &path.field("namespace"),
                    "`parameters.scope` is set to 'Namespace'",
                ),
                Some(name) => errors.text_is(&path.field("namespace"), name, dns_label(name)),
            },
            "Cluster" if namespace.is_some() => errors.forbidden(
                &path.field("namespace"),
                "`parameters.scope` is set to 'Cluster'",
            ),
            "Cluster" => {}
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
        return errors.into_vec();
    }
    for (at, kind) in types.iter().enumerate() {
        let kind = kind.as_str().unwrap_or_default();
        if !["Ingress", "Egress"].contains(&kind) {
            errors.not_supported(&list.index(at), kind, &["Ingress", "Egress"]);
        }
    }
    errors.into_vec()
}

fn policy_port(one: &Value, path: &Path, errors: &mut Errors) {
    errors.maybe_one_of(
        &path.field("protocol"),
        text(one, "/protocol"),
        &["TCP", "UDP", "SCTP"],
    );
    let (start, end) = (some(one, "/port"), some(one, "/endPort"));
    let (of_start, of_end) = (path.field("port"), path.field("endPort"));
    match (start, end) {
        (Some(Value::String(name)), end) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                errors.invalid(&of_end, end, detail);
            }
            errors.text_is(&of_start, name, port_name(name));
        }
        (Some(start), end) => {
            port_number(Some(start), &of_start, errors);
            if let Some(end) = end {
                if end.as_i64() < start.as_i64() {
                    // upstream shows where it starts
                    let detail = "must be greater than or equal to `port`";
                    errors.invalid(&of_end, start, detail);
                }
                port_number(Some(end), &of_end, errors);
            }
        }
        (None, Some(end)) => {
            let detail = "may not be specified when `port` is not specified";
            errors.invalid(&of_end, end, detail);
        }
        (None, None) => {}
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
        let network = text(block, "/cidr");
        match network {
            "" => errors.required(&path.field("cidr"), ""),
            network => cidr(network, &path.field("cidr"), errors),
        }
        let list = path.field("except");
        // what is excepted is judged by what it is excepted from
        let excepted = items(block, "/except").iter();
        let excepted = excepted.filter(|_| parse_cidr(network).is_some());
        for (at, except) in excepted.enumerate() {
            let except = except.as_str().unwrap_or_default();
            cidr(except, &list.index(at), errors);
            if let (Some(outer), Some(inner)) = (parse_cidr(network), parse_cidr(except))
                && !contains(outer, inner)
            {
                errors.invalid_text(&list.index(at), except, "must be a strict subset of `cidr`");
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

/// Where something can be reached from elsewhere.
pub(super) fn endpoint_ip(text: &str, path: &Path, errors: &mut Errors) {
    let Ok(address) = text.parse::<IpAddr>() else {
        return ip(text, path, errors);
    };
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    for (is, detail) in [
        (
            address.is_unspecified(),
            &*format!("may not be unspecified ({text})"),
        ),
        (
            address.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ] {
        if is {
            errors.invalid_text(path, text, detail);
        }
    }
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
