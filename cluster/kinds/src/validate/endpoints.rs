//! Where Services lead: EndpointSlice, Endpoints.

use std::{collections::HashSet, net::IpAddr};

use serde_json::Value;

use super::{
    container::port_number,
    meta::{changed, namespaced},
    network::endpoint_ip,
    pod::ip,
};
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_label, dns_subdomain, label_value, qualified_name},
    read::{items, some, text},
};

/// So much a slice has.
const SLICE_ENDPOINTS: usize = 1000;
const SLICE_PORTS: usize = 20_000;
const ENDPOINT_ADDRESSES: usize = 100;
const ENDPOINT_HINTS: usize = 8;

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
            match (kind, address.parse::<IpAddr>()) {
                ("IPv4" | "IPv6", Ok(parsed)) => {
                    if parsed.is_ipv4() != (kind == "IPv4") {
                        let detail = format!("must be an {kind} address");
                        errors.invalid_text(&list, address, &detail);
                    }
                    endpoint_ip(address, &path, &mut errors);
                }
                ("IPv4" | "IPv6", Err(_)) => ip(address, &path, &mut errors),
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
        let path = path.field("hints");
        for (name, wrong) in [
            ("forZones", label_value as fn(&str) -> Vec<String>),
            ("forNodes", dns_subdomain),
        ] {
            let hints = endpoint.pointer(&format!("/hints/{name}"));
            let hints = hints
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice);
            if !hinted(hints, wrong, &path.field(name), &mut errors) {
                break;
            }
        }
    }
    let list = Path::root("ports");
    let ports = items(object, "/ports");
    if ports.len() > SLICE_PORTS {
        errors.too_many(&list, ports.len(), SLICE_PORTS);
        return errors.into_vec();
    }
    let mut names = HashSet::new();
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

/// Each once, and not too many: after that nothing more is said.
fn hinted(
    hints: &[Value],
    wrong: fn(&str) -> Vec<String>,
    list: &Path,
    errors: &mut Errors,
) -> bool {
    if hints.len() > ENDPOINT_HINTS {
        errors.too_many(list, hints.len(), ENDPOINT_HINTS);
        return false;
    }
    let mut seen = HashSet::new();
    for (at, hint) in hints.iter().enumerate() {
        let (name, path) = (text(hint, "/name"), list.index(at));
        if !seen.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        errors.text_is(&path.field("name"), name, wrong(name));
    }
    true
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
                endpoint_ip(text(address, "/ip"), &path.field("ip"), &mut errors);
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
