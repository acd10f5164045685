//! What a pod is as an endpoint of a service. Pure.

use std::net::IpAddr;

use k8s_openapi::api::{
    core::v1::{Node, ObjectReference, Pod, Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone},
};
use kube::ResourceExt;

use crate::{pod, service_pods};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// A slice's `addressType`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Those of its addresses; where none are written, of the one that it has; a headless one that says nothing has both.
pub(super) fn families(spec: &ServiceSpec) -> Vec<Family> {
    let mut families: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        let ip: Option<IpAddr> = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
        families = ip.map_or_else(|| vec![Family::V4, Family::V6], |ip| vec![Family::of(ip)]);
    }
    families.sort();
    families.dedup();
    families
}

/// None: it has no address of the family.
pub(super) fn endpoint(
    pod: &Pod,
    node: Option<&Node>,
    service: &Service,
    family: Family,
) -> Option<Endpoint> {
    let addresses: Vec<String> = service_pods::ips(pod)
        .filter(|ip| Family::of(*ip) == family)
        .map(|ip| ip.to_string())
        .collect();
    if addresses.is_empty() {
        return None;
    }
    let spec = service.spec.as_ref();
    let published = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let serving = pod::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = published || serving && !terminating;
    let zone = node
        .and_then(|node| node.labels().get("topology.kubernetes.io/zone"))
        .filter(|zone| !zone.is_empty());
    let node_name = pod::node_of(pod);
    let wish = spec.and_then(|spec| spec.traffic_distribution.as_deref());
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: wish
            .filter(|_| ready)
            .and_then(|wish| hints(wish, zone.map(String::as_str), node_name)),
        hostname: service_pods::hostname(pod, service),
        node_name: node_name.map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: zone.cloned(),
        deprecated_topology: None,
    })
}

/// Who should use it (`spec.trafficDistribution`): those of its zone, or of its node before them.
fn hints(wish: &str, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let by_node = match wish {
        "PreferClose" | "PreferSameZone" => false,
        "PreferSameNode" => true,
        _ => return None,
    };
    let for_zones = zone.map(|name| vec![ForZone { name: name.into() }]);
    let for_nodes = node
        .filter(|_| by_node)
        .map(|name| vec![ForNode { name: name.into() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints {
        for_zones,
        for_nodes,
    })
}

/// Those of the service's ports that the pod has.
pub(super) fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<EndpointPort> {
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(service_pods::find_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec}))
            .expect("a service")
    }

    fn pod(deleting: bool, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "1", "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z")},
            "spec": {"nodeName": "n", "hostname": "h", "subdomain": "s", "containers": []},
            "status": {
                "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        }))
        .expect("a pod")
    }

    #[test]
    fn conditions_tell_how_a_pod_does() {
        for (published, deleting, ready, wanted) in [
            (false, false, true, (true, true, false)),
            (false, false, false, (false, false, false)),
            (false, true, true, (false, true, true)),
            (false, true, false, (false, false, true)),
            (true, false, false, (true, false, false)),
            (true, true, true, (true, true, true)),
        ] {
            let service = service(json!({"publishNotReadyAddresses": published}));
            let found = endpoint(&pod(deleting, ready), None, &service, Family::V4).expect("one");
            let found = found.conditions.expect("conditions");
            let found = (found.ready, found.serving, found.terminating);
            assert_eq!(found, (Some(wanted.0), Some(wanted.1), Some(wanted.2)));
        }
    }

    #[test]
    fn it_says_where_it_is() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}}),
        )
        .expect("a node");
        let found = endpoint(
            &pod(false, true),
            Some(&node),
            &service(json!({})),
            Family::V6,
        )
        .expect("one");
        assert_eq!(found.addresses, ["fd00::1"]);
        assert_eq!(
            (
                found.zone.as_deref(),
                found.node_name.as_deref(),
                found.hostname.as_deref()
            ),
            (Some("z"), Some("n"), Some("h"))
        );
        assert_eq!(found.hints, None);
        for (wish, zones, nodes) in [
            ("PreferClose", true, false),
            ("PreferSameZone", true, false),
            ("PreferSameNode", true, true),
            ("Other", false, false),
        ] {
            let service = service(json!({"trafficDistribution": wish}));
            let ready = endpoint(&pod(false, true), Some(&node), &service, Family::V4)
                .and_then(|one| one.hints);
            let found = ready.map_or((false, false), |hints| {
                (hints.for_zones.is_some(), hints.for_nodes.is_some())
            });
            assert_eq!(found, (zones, nodes), "{wish}");
            let not = endpoint(&pod(false, false), Some(&node), &service, Family::V4).expect("one");
            assert_eq!(not.hints, None, "{wish}");
        }
    }

    #[test]
    fn families_are_those_of_the_addresses() {
        for (spec, wanted) in [
            (
                json!({"ipFamilies": ["IPv6", "IPv4"]}),
                vec![Family::V4, Family::V6],
            ),
            (json!({"clusterIP": "10.0.0.1"}), vec![Family::V4]),
            (json!({"clusterIP": "fd00::1"}), vec![Family::V6]),
            (json!({"clusterIP": "None"}), vec![Family::V4, Family::V6]),
        ] {
            let service = service(spec);
            assert_eq!(families(service.spec.as_ref().expect("a spec")), wanted);
        }
    }
}
