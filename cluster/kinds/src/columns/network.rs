use std::collections::BTreeSet;

use serde_json::Value;

use super::{AGE, NAME, column, pod::or_none, wide};
use crate::{
    kind::{Cell, Column},
    read::{items, map, number, some, text},
    selector::{labels_shown, selector_shown},
};

/// Addresses, hosts and ports beyond these are counted only.
const SHOWN: usize = 3;

pub(crate) const SERVICE: &[Column] = &[
    NAME,
    column(
        "Type",
        "string",
        Cell::Of(|o, _| text(o, "/spec/type").into()),
    ),
    column("Cluster-IP", "string", Cell::Of(cluster_ip)),
    column("External-IP", "string", Cell::Of(external_ip)),
    column("Port(s)", "string", Cell::Of(ports)),
    AGE,
    wide(
        "Selector",
        "string",
        Cell::Of(|o, _| labels_shown(map(o, "/spec/selector")).into()),
    ),
];

fn cluster_ip(service: &Value, _: i64) -> Value {
    or_none(text(service, "/spec/clusterIPs/0"))
}

fn strings<'a>(object: &'a Value, list: &str) -> Vec<&'a str> {
    items(object, list)
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// The addresses of status.loadBalancer.
fn balancer(object: &Value) -> String {
    let addresses: BTreeSet<&str> = items(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|ingress| match text(ingress, "/ip") {
            "" => text(ingress, "/hostname"),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect();
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

fn external_ip(service: &Value, _: i64) -> Value {
    let external = strings(service, "/spec/externalIPs").join(",");
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" => or_none(&external),
        "LoadBalancer" => match (balancer(service), external) {
            (balancer, external) if balancer.is_empty() && external.is_empty() => {
                "<pending>".into()
            }
            (balancer, external) if external.is_empty() => balancer.into(),
            (balancer, external) if balancer.is_empty() => external.into(),
            (balancer, external) => format!("{balancer},{external}").into(),
        },
        "ExternalName" => text(service, "/spec/externalName").into(),
        _ => "<unknown>".into(),
    }
}

fn ports(service: &Value, _: i64) -> Value {
    let ports: Vec<_> = items(service, "/spec/ports")
        .iter()
        .map(|port| {
            let (own, protocol) = (number(port, "/port"), text(port, "/protocol"));
            match number(port, "/nodePort") {
                node @ 1.. => format!("{own}:{node}/{protocol}"),
                _ => format!("{own}/{protocol}"),
            }
        })
        .collect();
    or_none(&ports.join(","))
}

/// The first few, and how many more there are.
fn some_of(all: impl Iterator<Item = String>, none: &str) -> Value {
    let (mut shown, mut more) = (Vec::new(), 0usize);
    for one in all {
        if shown.len() < SHOWN {
            shown.push(one);
        } else {
            more += 1;
        }
    }
    match (shown.join(","), more) {
        (shown, 0) if shown.is_empty() => none.into(),
        (shown, 0) => shown.into(),
        (shown, more) => format!("{shown} + {more} more...").into(),
    }
}

pub(crate) const ENDPOINTS: &[Column] = &[
    NAME,
    column("Endpoints", "string", Cell::Of(endpoints)),
    AGE,
];

fn endpoints(endpoints: &Value, _: i64) -> Value {
    let all = items(endpoints, "/subsets").iter().flat_map(|subset| {
        let ports: Vec<Option<i64>> = match items(subset, "/ports") {
            [] => vec![None],
            ports => ports
                .iter()
                .map(|port| Some(number(port, "/port")))
                .collect(),
        };
        ports.into_iter().flat_map(move |port| {
            items(subset, "/addresses").iter().map(move |address| {
                match (text(address, "/ip"), port) {
                    (ip, None) => ip.to_owned(),
                    (ip, Some(port)) if ip.contains(':') => format!("[{ip}]:{port}"),
                    (ip, Some(port)) => format!("{ip}:{port}"),
                }
            })
        })
    });
    let none = if items(endpoints, "/subsets").is_empty() {
        "<none>"
    } else {
        ""
    };
    some_of(all, none)
}

pub(crate) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column(
        "AddressType",
        "string",
        Cell::Of(|o, _| text(o, "/addressType").into()),
    ),
    column("Ports", "string", Cell::Of(slice_ports)),
    column("Endpoints", "string", Cell::Of(slice_endpoints)),
    AGE,
];

fn slice_ports(slice: &Value, _: i64) -> Value {
    let ports = items(slice, "/ports").iter().map(|port| {
        match (
            some(port, "/port"),
            some(port, "/name").and_then(Value::as_str),
        ) {
            (Some(port), _) => port.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        }
    });
    some_of(ports, "<unset>")
}

fn slice_endpoints(slice: &Value, _: i64) -> Value {
    let addresses = items(slice, "/endpoints")
        .iter()
        .flat_map(|endpoint| items(endpoint, "/addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned);
    some_of(addresses, "<unset>")
}

pub(crate) const INGRESS: &[Column] = &[
    NAME,
    column("Class", "string", Cell::Of(ingress_class)),
    column("Hosts", "string", Cell::Of(hosts)),
    column("Address", "string", Cell::Of(|o, _| balancer(o).into())),
    column("Ports", "string", Cell::Of(ingress_ports)),
    AGE,
];

fn ingress_class(ingress: &Value, _: i64) -> Value {
    match some(ingress, "/spec/ingressClassName").and_then(Value::as_str) {
        Some(class) => class.into(),
        None => "<none>".into(),
    }
}

fn hosts(ingress: &Value, _: i64) -> Value {
    let rules = items(ingress, "/spec/rules");
    let (mut shown, mut more) = (Vec::new(), false);
    for rule in rules {
        if shown.len() == SHOWN {
            more = true;
            break;
        }
        match text(rule, "/host") {
            "" => {}
            host => shown.push(host),
        }
    }
    match (shown.join(","), more) {
        (shown, _) if shown.is_empty() => "*".into(),
        (shown, true) => format!("{shown} + {} more...", rules.len() - SHOWN).into(),
        (shown, false) => shown.into(),
    }
}

fn ingress_ports(ingress: &Value, _: i64) -> Value {
    if items(ingress, "/spec/tls").is_empty() {
        "80"
    } else {
        "80, 443"
    }
    .into()
}

pub(crate) const INGRESS_CLASS: &[Column] = &[
    NAME,
    column(
        "Controller",
        "string",
        Cell::Of(|o, _| text(o, "/spec/controller").into()),
    ),
    column("Parameters", "string", Cell::Of(parameters)),
    AGE,
];

fn parameters(class: &Value, _: i64) -> Value {
    let Some(parameters) = some(class, "/spec/parameters") else {
        return "<none>".into();
    };
    let (kind, name) = (text(parameters, "/kind"), text(parameters, "/name"));
    match some(parameters, "/apiGroup").and_then(Value::as_str) {
        Some(group) => format!("{kind}.{group}/{name}").into(),
        None => format!("{kind}/{name}").into(),
    }
}

pub(crate) const NETWORK_POLICY: &[Column] = &[
    NAME,
    column(
        "Pod-Selector",
        "string",
        Cell::Of(|o, _| selector_shown(some(o, "/spec/podSelector")).into()),
    ),
    AGE,
];

pub(crate) const SERVICE_CIDR: &[Column] = &[
    NAME,
    column(
        "CIDRs",
        "string",
        Cell::Of(|o, _| strings(o, "/spec/cidrs").join(",").into()),
    ),
    AGE,
];

pub(crate) const IP_ADDRESS: &[Column] = &[NAME, column("ParentRef", "string", Cell::Of(parent))];

fn parent(address: &Value, _: i64) -> Value {
    let field = |pointer| text(address, pointer);
    let (resource, group, namespace, name) = (
        field("/spec/parentRef/resource"),
        field("/spec/parentRef/group"),
        field("/spec/parentRef/namespace"),
        field("/spec/parentRef/name"),
    );
    let mut shown = resource.to_owned();
    for part in [group, namespace, name] {
        if !part.is_empty() {
            let between = if part == group && !group.is_empty() {
                "."
            } else {
                "/"
            };
            shown.push_str(between);
            shown.push_str(part);
        }
    }
    or_none(&shown)
}
