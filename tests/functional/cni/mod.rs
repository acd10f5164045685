//! CNI: the reference plugins of the package `containernetworking-plugins`, and plugins that misbehave in every way that we know of.

mod configurations;
mod del;
mod host_port;
mod plugins;
mod reference;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{BUSYBOX, Node, Pod, Setup, cni::fake, container, node::BRIDGE};
use serde_json::{Value, json};

/// Longer than anything here takes that is not meant to hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// bridge + host-local, and what `more` adds to the list.
pub fn bridge(dir: &Path, name: &str, subnet: &str, more: &[Value]) -> String {
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": leases(dir), "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": subnet}]],
        },
    })];
    plugins.extend_from_slice(more);
    json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string()
}

pub fn leases(dir: &Path) -> PathBuf {
    dir.join("leases")
}

/// Addresses that host-local has given out.
pub fn leased(dir: &Path) -> Vec<String> {
    let networks = fs::read_dir(leases(dir)).into_iter().flatten().flatten();
    let files = networks.flat_map(|network| fs::read_dir(network.path()).into_iter().flatten());
    let mut all: Vec<_> = files
        .flatten()
        .map(|file| file.file_name().display().to_string())
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    all.sort();
    all
}

/// What the plugins change of the host for good: iptables' tables stay when their rules are gone, forwarding stays on. It is to be
/// there before.
pub fn tables() -> Result<()> {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(key), "1")?;
    }
    for program in ["iptables", "ip6tables"] {
        for table in ["nat", "filter", "mangle"] {
            for act in ["-N", "-X"] {
                Command::new(program)
                    .args(["-t", table, act, "BERTH-TEST"])
                    .status()
                    .with_context(|| format!("run {program}"))?;
            }
        }
    }
    Ok(())
}

pub async fn network_ready(node: &Node) -> Result<(bool, String)> {
    let request = cri::StatusRequest { verbose: false };
    let status = node.cri.runtime().status(request).await?.into_inner();
    let conditions = status.status.unwrap_or_default().conditions;
    let network = conditions.into_iter().find(|c| c.r#type == "NetworkReady");
    let network = network.context("no condition NetworkReady")?;
    Ok((network.status, network.message))
}

pub async fn not_ready(node: &Node, words: &[&str]) -> Result<()> {
    let (ready, why) = network_ready(node).await?;
    ensure!(!ready, "NetworkReady is true");
    for word in words {
        ensure!(
            why.contains(word),
            "the reason does not name {word:?}: {why}"
        );
    }
    Ok(())
}

pub async fn address(node: &Node, pod: &Pod) -> Result<String> {
    let status = node.cri.pod_status(&pod.id).await?;
    Ok(status.network.unwrap_or_default().ip)
}

pub async fn remove(node: &Node, pod: &Pod) -> Result<()> {
    node.cri.stop_pod(&pod.id).await.context("stop")?;
    node.cri.remove_pod(&pod.id).await.context("remove")
}

/// The audit has one thing to tell: that this pod's DEL is owed, and why.
pub fn owed(node: &Node, pod_id: &str, why: &str) -> Result<()> {
    let findings = node.audit()?;
    let is_it = |finding: &berth_state::audit::Finding| {
        let line = finding.to_string();
        finding.difference == "owed" && line.contains(pod_id) && line.contains(why)
    };
    ensure!(
        findings.len() == 1 && is_it(&findings[0]),
        "the audit prints {findings:#?}"
    );
    Ok(())
}

pub fn clean(node: &Node) -> Result<()> {
    let findings = node.audit()?;
    ensure!(findings.is_empty(), "the audit prints {findings:#?}");
    Ok(())
}

/// What one of the pod's containers says of the pod's network.
pub async fn inside(node: &Node, pod: &Pod, script: &str) -> Result<String> {
    let name = format!("c{:08x}", rand::random::<u32>());
    let config = container(&name, BUSYBOX, &["sh", "-c", script]);
    let (code, said) = node.outcome(pod, config).await?;
    ensure!(code == 0, "{script} ended with {code}: {said}");
    Ok(said.trim().to_owned())
}

pub fn masked_in(prepare: fn(&Path) -> Result<()>) -> Setup {
    Setup {
        before: Some(prepare),
        network: "cni_timeout_ms = 10000\n".into(),
        ..Default::default()
    }
}

pub fn with_fake() -> Setup {
    Setup {
        before: Some(fake),
        network: "cni_timeout_ms = 1500\ncni_bin_dirs = [\"$DIR/plugins\"]\n".into(),
        ..Default::default()
    }
}
