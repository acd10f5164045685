//! Which pods a service has, and which services have a pod.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use crate::{Cache, Key, Queue, condition, pod};

/// Services and their endpoints have it where no address stands for all of them.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
/// When what the endpoints follow had changed.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The spec of a service whose endpoints are kept: it has a selector, and isn't only a name.
pub(crate) fn kept(service: &Service) -> Option<(&ServiceSpec, &BTreeMap<String, String>)> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    Some((spec, spec.selector.as_ref()?))
}

pub(crate) fn selects(
    selector: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

pub(crate) fn ips(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref());
    // Old kubelets write the one only.
    let one = status
        .filter(|_| all.is_none_or(Vec::is_empty))
        .and_then(|status| status.pod_ip.as_deref());
    all.into_iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .chain(one)
        .filter_map(|ip| ip.parse().ok())
        .filter(may_be_endpoint)
}

/// What a kubelet says of its pods must not lead to other machines' own addresses (SEC-NET-09); the server refuses such endpoints, and with them all others.
fn may_be_endpoint(ip: &IpAddr) -> bool {
    !match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
        }
    }
}

/// It has an address and has not ended.
pub(crate) fn is_reachable(pod: &Pod) -> bool {
    !pod::is_terminal(pod) && ips(pod).next().is_some()
}

/// The name under which it is an endpoint of a headless service.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|name| !name.is_empty())?;
    let is_there = spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace;
    is_there.then(|| hostname.clone())
}

/// The port of the pod that one of a service stands for: by number, or by the name that a container gives it.
pub(crate) fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let beside = spec.init_containers.iter().flatten();
    let beside = beside.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".into());
    spec.containers
        .iter()
        .chain(beside)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|one| {
            one.name.as_deref() == Some(name) && protocol(&one.protocol) == protocol(&port.protocol)
        })
        .map(|one| one.container_port)
}

/// What of a pod an endpoint tells.
fn told(pod: &Pod) -> impl PartialEq + use<'_> {
    let spec = pod.spec.as_ref();
    (
        pod::is_ready(pod),
        pod::is_terminal(pod),
        pod.metadata.deletion_timestamp.is_some(),
        ips(pod).collect::<Vec<_>>(),
        pod.metadata.uid.as_deref(),
        pod::node_of(pod),
        spec.and_then(|spec| Some((spec.hostname.as_deref()?, spec.subdomain.as_deref()))),
    )
}

/// Puts services into the queue when what is told of one of their pods changes.
pub(crate) fn wake(pods: &Cache<Pod>, services: &Cache<Service>, queue: &Queue) {
    let (services, queue) = (services.clone(), queue.clone());
    pods.on_change(move |old, new| {
        let (old, new) = (old.map(|pod| &**pod), new.map(|pod| &**pod));
        enqueue(&services, &queue, old, new);
    });
}

/// Puts the services that have, or had, the pod into the queue, if what is told of it has changed.
pub(crate) fn enqueue(
    services: &Cache<Service>,
    queue: &Queue,
    old: Option<&Pod>,
    new: Option<&Pod>,
) {
    let labels = |pod: Option<&Pod>| pod.map(|pod| pod.labels().clone());
    let (before, after) = (labels(old), labels(new));
    if old.map(told) == new.map(told) && before == after {
        return;
    }
    let Some(namespace) = new.or(old).and_then(ResourceExt::namespace) else {
        return;
    };
    for service in services.in_namespace(&namespace) {
        if let Some((_, selector)) = kept(&service)
            && [&before, &after]
                .into_iter()
                .flatten()
                .any(|labels| selects(selector, labels))
        {
            queue.add(Key::of(&*service));
        }
    }
}

/// When the change of endpoints was triggered: the earliest of what has changed since the last time, by the times that objects carry.
#[derive(Debug, Default)]
pub(crate) struct Triggers(std::collections::HashMap<Key, Seen>);

#[derive(Debug, Default)]
struct Seen {
    service: Option<jiff::Timestamp>,
    pods: BTreeMap<String, jiff::Timestamp>,
}

impl Triggers {
    pub(crate) fn next(
        &mut self,
        service: &Service,
        pods: &[std::sync::Arc<Pod>],
    ) -> Option<jiff::Timestamp> {
        let seen = self.0.entry(Key::of(service)).or_default();
        let made = service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let mut first = made.filter(|made| seen.service.is_none_or(|before| *made > before));
        let mut all = BTreeMap::new();
        for pod in pods {
            let ready = condition::of_pod(pod, "Ready");
            let Some(time) = ready.and_then(|ready| ready.last_transition_time.as_ref()) else {
                continue;
            };
            let name = pod.name_any();
            if seen.pods.get(&name).is_none_or(|before| time.0 > *before) {
                first = Some(first.map_or(time.0, |first| first.min(time.0)));
            }
            all.insert(name, time.0);
        }
        *seen = Seen {
            service: made,
            pods: all,
        };
        first
    }

    pub(crate) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

/// What can't be made any more, because its namespace is on its way out.
pub(crate) fn namespace_is_going(error: &crate::Error) -> bool {
    error.status().is_some_and(|(reason, message)| {
        reason == "Forbidden" && message.contains("because it is being terminated")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_a_number_or_a_name() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [
                {"name": "b", "ports": [{"name": "once", "containerPort": 1}]},
                {"name": "c", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9090}]},
            ],
        }}))
        .expect("a pod");
        for (port, found) in [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 81}), Some(81)),
            (json!({"port": 80, "targetPort": "web"}), Some(8080)),
            (
                json!({"port": 80, "targetPort": "web", "protocol": "UDP"}),
                None,
            ),
            (
                json!({"port": 80, "targetPort": "dns", "protocol": "UDP"}),
                Some(53),
            ),
            (
                json!({"port": 80, "targetPort": "side", "protocol": "TCP"}),
                Some(9090),
            ),
            (json!({"port": 80, "targetPort": "once"}), None),
            (json!({"port": 80, "targetPort": "other"}), None),
        ] {
            let of: ServicePort = serde_json::from_value(port.clone()).expect("a port");
            assert_eq!(find_port(&pod, &of), found, "{port}");
        }
    }

    #[test]
    fn what_may_be_no_endpoint_is_no_address_of_a_pod_sec_net_09() {
        let said = [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "ff02::1",
            "::",
            "::ffff:127.0.0.1",
            "fd00::1",
            "ten",
        ];
        let said: Vec<_> = said.iter().map(|ip| json!({"ip": ip})).collect();
        let pod: Pod =
            serde_json::from_value(json!({"status": {"podIP": "10.0.0.1", "podIPs": said}}))
                .expect("a pod");
        let found: Vec<_> = ips(&pod).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["10.0.0.1", "fd00::1"]);
        let old: Pod =
            serde_json::from_value(json!({"status": {"podIP": "10.0.0.7"}})).expect("a pod");
        assert_eq!(ips(&old).count(), 1);
    }

    #[test]
    fn the_trigger_is_the_earliest_of_what_is_new() {
        let service: Service = serde_json::from_value(
            json!({"metadata": {"name": "s", "namespace": "d", "creationTimestamp": "2026-01-01T00:00:10Z"}}),
        )
        .expect("a service");
        let pod = |name: &str, second: u8| {
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": format!("2026-01-01T00:00:{second}Z")}]);
            std::sync::Arc::new(
                serde_json::from_value::<Pod>(
                    json!({"metadata": {"name": name}, "status": {"conditions": ready}}),
                )
                .expect("a pod"),
            )
        };
        let mut triggers = Triggers::default();
        let mut next = |pods: &[std::sync::Arc<Pod>]| {
            triggers.next(&service, pods).map(|time| time.to_string())
        };
        assert_eq!(
            next(&[pod("a", 20)]).as_deref(),
            Some("2026-01-01T00:00:10Z")
        );
        assert_eq!(next(&[pod("a", 20)]), None);
        assert_eq!(
            next(&[pod("a", 30), pod("b", 25)]).as_deref(),
            Some("2026-01-01T00:00:25Z")
        );
        assert_eq!(
            next(&[pod("a", 30)]),
            None,
            "one that goes is no change of a pod"
        );
    }
}
