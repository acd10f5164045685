//! The reference plugins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use berth_proto::cri::{
    self, NetworkConfig, PortMapping, Protocol, RuntimeConfig, UpdateRuntimeConfigRequest,
};
use berth_tests::{BUSYBOX, Node, cni::put, container, node::BRIDGE, request::PodRequest};
use serde_json::{Value, json};

use super::{
    PATIENCE, address, bridge, clean, inside, leased, leases, masked_in, network_ready, remove,
    tables,
};

fn the_whole_chain(dir: &Path) -> Result<()> {
    tables()?;
    let chain = [
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "firewall", "backend": "iptables"}),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}),
        json!({"type": "loopback"}),
    ];
    put(
        &dir.join("cni/10-net.conflist"),
        &bridge(dir, "net", "10.201.0.0/24", &chain),
    )
}

#[test]
fn the_reference_plugins_attach_pods_with_ports_bandwidth_firewall_and_tuning() -> Result<()> {
    Node::test_with(masked_in(the_whole_chain), async |node| {
        ensure!(network_ready(node).await?.0);
        let serving = node.pod("serving").with(|config| {
            config.port_mappings = vec![PortMapping {
                protocol: Protocol::Tcp.into(),
                container_port: 80,
                host_port: 18080,
                host_ip: String::new(),
            }];
            config.annotations = [
                (
                    "kubernetes.io/ingress-bandwidth".to_owned(),
                    "10M".to_owned(),
                ),
                (
                    "kubernetes.io/egress-bandwidth".to_owned(),
                    "20M".to_owned(),
                ),
            ]
            .into();
        });
        let (serving, asking) = (
            node.run(serving).await?,
            node.run(node.pod("asking")).await?,
        );
        let (of_serving, of_asking) = (
            address(node, &serving).await?,
            address(node, &asking).await?,
        );
        ensure!(of_serving.starts_with("10.201.0.") && of_asking.starts_with("10.201.0."));
        ensure!(leased(&node.dir).len() == 2, "{:?}", leased(&node.dir));
        let verbose = node.cri.pod_status_verbose(&serving.id, true).await?;
        let info: Value = serde_json::from_str(&verbose.info["info"])?;
        let netns = PathBuf::from(info["netns"].as_str().unwrap_or_default());
        ensure!(netns.exists(), "the verbose info names {netns:?}");

        let server = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
        node.start_container(&serving, container("web", BUSYBOX, &["sh", "-c", server]))
            .await?;
        let get = |host: &str| {
            format!(
                "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{host}/ && exit; sleep 0.2; done; exit 1"
            )
        };
        ensure!(inside(node, &asking, &get(&of_serving)).await? == "served");
        ensure!(
            inside(node, &asking, "cat /proc/sys/net/core/somaxconn").await? == "500",
            "tuning did not run"
        );
        ensure!(
            inside(node, &asking, "ip -o link show lo")
                .await?
                .contains("LOWER_UP")
        );
        // The host port: from the host, by loopback and by another address of it, and from another pod.
        for host in ["127.0.0.1:18080", "10.201.0.1:18080"] {
            let got = Command::new("busybox")
                .args(["sh", "-c", &get(host)])
                .output()?;
            ensure!(got.stdout == b"served\n", "{host}: {got:?}");
        }
        ensure!(inside(node, &asking, &get("10.201.0.1:18080")).await? == "served");
        let queues = Command::new("tc").args(["qdisc", "show"]).output()?;
        let queues = String::from_utf8_lossy(&queues.stdout).into_owned();
        ensure!(
            queues.contains("rate 10Mbit") && queues.contains("rate 20Mbit"),
            "bandwidth did not run: {queues}"
        );
        let request = cri::PodSandboxStatsRequest {
            pod_sandbox_id: serving.id.clone(),
        };
        let stats = node.cri.runtime().pod_sandbox_stats(request).await?;
        let linux = stats.into_inner().stats.and_then(|stats| stats.linux);
        let network = linux.and_then(|linux| linux.network).unwrap_or_default();
        let eth0 = network.default_interface.clone().unwrap_or_default();
        ensure!(
            eth0.name == "eth0" && eth0.rx_bytes.is_some_and(|bytes| bytes.value > 0),
            "{network:?}"
        );
        // One port for two pods: the second is told whose it is.
        let twice = node
            .pod("twice")
            .with(|config| config.port_mappings = serving.config.port_mappings.clone());
        let error = node.cri.run_pod(&twice).await.unwrap_err();
        ensure!(
            error.message().contains("18080") && error.message().contains(&serving.id),
            "{error:?}"
        );
        clean(node)?;
        for pod in [&serving, &asking] {
            remove(node, pod).await?;
        }
        ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
        let rules = Command::new("iptables-save").output()?;
        let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
        ensure!(!rules.contains("10.201.0."), "rules were left: {rules}");
        Ok(())
    })
}

#[test]
fn addresses_of_both_families_are_told_ipv4_first() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        let conf = json!({"cniVersion": "0.4.0", "name": "dual", "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": leases(dir),
                     "ranges": [[{"subnet": "fd00:201::/64"}], [{"subnet": "10.201.1.0/24"}]]},
        }]});
        put(&dir.join("cni/10-dual.conflist"), &conf.to_string())
    }
    Node::test_with(masked_in(prepare), async |node| {
        let pod = node.run(node.pod("dual")).await?;
        let network = node
            .cri
            .pod_status(&pod.id)
            .await?
            .network
            .unwrap_or_default();
        ensure!(network.ip.starts_with("10.201.1."), "{network:?}");
        ensure!(
            network.additional_ips.len() == 1
                && network.additional_ips[0].ip.starts_with("fd00:201::"),
            "{network:?}"
        );
        Ok(())
    })
}

#[test]
fn the_nodes_ranges_reach_host_local_by_its_capability() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        let conf = json!({"cniVersion": "1.0.0", "name": "ranged", "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true, "capabilities": {"ipRanges": true},
            "ipam": {"type": "host-local", "dataDir": leases(dir)},
        }]});
        put(&dir.join("cni/10-ranged.conflist"), &conf.to_string())
    }
    Node::test_with(masked_in(prepare), async |node| {
        let request = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig {
                network_config: Some(NetworkConfig {
                    pod_cidr: "10.201.9.0/24,fd00:209::/64".into(),
                }),
            }),
        };
        node.cri.runtime().update_runtime_config(request).await?;
        let pod = node.run(node.pod("ranged")).await?;
        let status = node.cri.pod_status(&pod.id).await?;
        let network = status.network.unwrap_or_default();
        ensure!(network.ip.starts_with("10.201.9."), "{network:?}");
        ensure!(
            network.additional_ips[0].ip.starts_with("fd00:209:"),
            "{network:?}"
        );
        // What the next daemon lets go of is what this one attached.
        node.restart().await?;
        remove(node, &pod).await?;
        ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
        Ok(())
    })
}

#[test]
fn check_of_the_reference_plugins_tells_what_was_broken_and_nothing_else() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        put(
            &dir.join("cni/10-net.conflist"),
            &bridge(dir, "net", "10.201.10.0/24", &[]),
        )
    }
    const AMISS: &str = "the pod's network is not as it was made";
    Node::test_with(masked_in(prepare), async |node| {
        let pod = node.run(node.pod("checked")).await?;
        let log = |node: &Node| fs::read_to_string(&node.daemon.log).unwrap_or_default();
        node.restart().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(!log(node).contains(AMISS), "{}", log(node));
        let netns = node.daemon.state.join("netns").join(&pod.id);
        let net = format!("--net={}", netns.display());
        let flushed = Command::new("nsenter")
            .args([&net, "ip", "address", "flush", "dev", "eth0"])
            .status()?;
        ensure!(flushed.success());
        node.restart().await?;
        let deadline = Instant::now() + PATIENCE;
        while !log(node).contains(AMISS) {
            ensure!(Instant::now() < deadline, "CHECK found nothing amiss");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(log(node).contains(&pod.id));
        remove(node, &pod).await?;
        ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
        Ok(())
    })
}
