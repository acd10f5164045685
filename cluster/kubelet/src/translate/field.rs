//! The downward API: what a pod may be told of itself.

use std::collections::BTreeMap;

use berth_kinds::Quantity;
use k8s_openapi::{
    api::core::v1::ResourceFieldSelector, apimachinery::pkg::api::resource::Quantity as Text,
};

use crate::{
    node::NodeFacts,
    pod::{ContainerSpec, Desired},
    qos::nano,
};

/// A pod, with what is known of it only once it is up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub pod: &'a Desired,
    pub ips: &'a [String],
    pub node: &'a NodeFacts,
}

impl Fields<'_> {
    /// Of a file, which may have all labels and annotations; a variable may not.
    pub fn for_file(&self, path: &str) -> Result<String, String> {
        let metadata = &self.pod.pod.metadata;
        match path {
            "metadata.labels" => Ok(lines(&metadata.labels)),
            "metadata.annotations" => Ok(lines(&metadata.annotations)),
            _ => self.for_variable(path),
        }
    }

    pub fn for_variable(&self, path: &str) -> Result<String, String> {
        let metadata = &self.pod.pod.metadata;
        let of_map = |map: &Option<BTreeMap<String, String>>, key: &str| {
            map.as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default()
        };
        let key = |start: &str| path.strip_prefix(start)?.strip_suffix("']");
        if let Some(key) = key("metadata.labels['") {
            return Ok(of_map(&metadata.labels, key));
        }
        if let Some(key) = key("metadata.annotations['") {
            return Ok(of_map(&metadata.annotations, key));
        }
        let pod = self.pod;
        // in the node's network the pod has the node's
        let ips = if pod.host_network() {
            &self.node.ips
        } else {
            self.ips
        };
        let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
        match path {
            "metadata.name" => Ok(pod.name.clone()),
            "metadata.namespace" => Ok(pod.namespace.clone()),
            "metadata.uid" => Ok(pod.uid.clone()),
            "spec.nodeName" => Ok(self.node.name.clone()),
            "spec.serviceAccountName" => {
                Ok(pod.spec.service_account_name.clone().unwrap_or_default())
            }
            "status.podIP" => Ok(first(ips)),
            "status.podIPs" => Ok(ips.join(",")),
            "status.hostIP" => Ok(first(&self.node.ips)),
            "status.hostIPs" => Ok(self.node.ips.join(",")),
            _ => Err(format!("{path:?} is no field that a pod is told of")),
        }
    }
}

/// `a="b"`, one a line, by the key.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<_> = map
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

/// A container's limit or request, in parts of its divisor, rounded up. No limit: what the node has.
pub(crate) fn resource(
    spec: &ContainerSpec,
    asked: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, String> {
    let resources = spec.container.resources.clone().unwrap_or_default();
    let (list, name) = match asked.resource.split_once('.') {
        Some(("limits", name)) => (&resources.limits, name),
        Some(("requests", name)) => (&resources.requests, name),
        _ => {
            return Err(format!(
                "{:?} is no resource of a container",
                asked.resource
            ));
        }
    };
    let of_node = || match name {
        "cpu" => i128::from(node.cpus) * 1_000_000_000,
        "memory" => i128::from(node.memory_bytes) * 1_000_000_000,
        _ => 0,
    };
    let amount = match (nano(list, name), asked.resource.starts_with("limits.")) {
        (Some(amount), _) => amount,
        (None, true) => of_node(),
        (None, false) => 0,
    };
    let divisor = match &asked.divisor {
        Some(Text(text)) => Quantity::parse(text).map_or(0, |it| it.nano),
        None => 0,
    };
    let divisor = if divisor > 0 { divisor } else { 1_000_000_000 };
    Ok(((amount + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn resources_are_told_in_parts_of_their_divisor_rounded_up() {
        let pod = pod(
            "  containers: [{name: a, image: x, resources: {requests: {cpu: 250m, memory: 1Mi}, limits: {memory: 3Mi}}}]",
        );
        let node = NodeFacts {
            cpus: 2,
            memory_bytes: 1 << 30,
            ..NodeFacts::default()
        };
        for (name, divisor, expected) in [
            ("requests.cpu", "0", "1"),
            ("requests.cpu", "1m", "250"),
            ("limits.cpu", "1", "2"),
            ("limits.memory", "1Mi", "3"),
            ("limits.memory", "2Mi", "2"),
            ("requests.memory", "0", "1048576"),
            ("limits.ephemeral-storage", "1", "0"),
        ] {
            let asked = ResourceFieldSelector {
                resource: name.into(),
                divisor: Some(Text(divisor.into())),
                ..Default::default()
            };
            assert_eq!(
                resource(&pod.containers[0], &asked, &node).unwrap(),
                expected,
                "{name} {divisor}"
            );
        }
    }
}
