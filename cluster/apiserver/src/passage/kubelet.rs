//! A node's kubelet: where its status says that it listens.

use serde_json::Value;

use super::{Backend, Trust};
use crate::{api::Api, catalog::REGISTRY, failure::Failure, object};

/// Where a node says nothing of it.
pub const PORT: u16 = 10250;

/// Which of a node's addresses is taken first. Upstream begins with Hostname, and kubeadm tells it to begin with these.
const PREFERRED: [&str; 5] = [
    "InternalIP",
    "ExternalIP",
    "InternalDNS",
    "ExternalDNS",
    "Hostname",
];

/// # Errors
/// 404 where there is no such node, 400 where its address may not be dialled.
pub async fn of_node(api: &Api, name: &str) -> Result<Backend, Failure> {
    let node = node(api, name).await?;
    let host = address(&node).ok_or_else(|| {
        Failure::internal(format!(
            "no preferred addresses found; known addresses: {name} has none"
        ))
    })?;
    let trust = Trust::Kubelet {
        node: name.to_owned(),
        config: api.passages.kubelet_config(&api.pki)?,
    };
    Backend::at(host, port(&node), trust).await
}

pub async fn node(api: &Api, name: &str) -> Result<Value, Failure> {
    let stored = api
        .storage
        .read(&format!("{REGISTRY}minions/{name}"))
        .await?;
    stored
        .map(|stored| stored.value)
        .ok_or_else(|| Failure::not_found_of("", "nodes", name))
}

pub fn address(node: &Value) -> Option<&str> {
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    PREFERRED.iter().find_map(|kind| {
        addresses
            .iter()
            .find(|address| address["type"] == *kind)
            .and_then(|address| address["address"].as_str())
            .filter(|address| !address.is_empty())
    })
}

pub fn port(node: &Value) -> u16 {
    object::number(node, "/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(|port| u16::try_from(port).ok())
        .filter(|&port| port != 0)
        .unwrap_or(PORT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_says_where_its_kubelet_is() {
        let node = json!({"status": {
            "addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}},
        }});
        assert_eq!(address(&node), Some("10.0.0.1"));
        assert_eq!(port(&node), 10350);
        for none in [
            json!(null),
            json!({"status": {"addresses": [{"type": "Other"}]}}),
        ] {
            assert_eq!(address(&none), None);
            assert_eq!(port(&none), PORT);
        }
        let odd = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 99999}}}});
        assert_eq!(port(&odd), PORT);
    }
}
