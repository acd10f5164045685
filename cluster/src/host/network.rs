//! The network of several nodes on one machine: each in a namespace of its own, plugged into a bridge, with routes to the others' pods.
//!
//! ```text
//! this machine 10.240.0.1 ── berth-nodes ─┬─ node-1 10.240.0.11, pods 10.244.1.0/24
//!                                         └─ node-2 10.240.0.12, pods 10.244.2.0/24
//! ```
//!
//! It is for trying things out, and by ip(8), which must be installed.

use std::{net::Ipv4Addr, path::Path, path::PathBuf, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command};

use super::failed;
use crate::error::Error;

const BRIDGE: &str = "berth-nodes";
/// Of the bridge: where nodes find the API server.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);
/// More would want more of the machine than trying out does.
pub const MOST: u8 = 9;

/// The address of a node; the first is number 1.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 240, 0, 10 + number)
}

/// What pods of a node have: a /24.
pub fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// ip(8) names it, and others find it there.
pub fn namespace(node: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("berth-{node}"))
}

fn link(number: u8) -> String {
    format!("berth-n{number}")
}

/// Lines of `ip -batch`, of which the first that fails is the last.
async fn ip(what: &str, namespace: Option<&str>, lines: &[String]) -> Result<(), Error> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let failed = |why: String| failed(format!("cannot {what} by ip(8)"), why);
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("{error}; is iproute2 installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = lines.join("\n") + "\n";
        // it may have refused already: it says why
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child
        .wait_with_output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

fn has_link(name: &str) -> bool {
    Path::new("/proc/sys/net/ipv4/conf").join(name).exists()
}

/// The bridge, if there is none yet.
///
/// # Errors
/// ip(8) refuses, or is not there.
pub async fn make_bridge() -> Result<(), Error> {
    if has_link(BRIDGE) {
        return Ok(());
    }
    let lines = [
        format!("link add {BRIDGE} type bridge"),
        format!("address add {HOST}/24 dev {BRIDGE}"),
        format!("link set {BRIDGE} up"),
    ];
    ip("make the bridge of the nodes", None, &lines).await
}

/// A node's namespace, with its address and its routes to the others of `count`; one that is there stays.
///
/// # Errors
/// ip(8) refuses; what it has made is taken back by [`remove`].
pub async fn make(node: &str, number: u8, count: u8) -> Result<(), Error> {
    let name = format!("berth-{node}");
    if !has_link(&link(number)) {
        // of a machine that was switched off in the middle
        remove(node, number).await;
        let (link, address) = (link(number), address(number));
        let lines = [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("link set {link} master {BRIDGE} up"),
            format!(
                "route replace {} via {address} dev {BRIDGE} onlink",
                pods(number)
            ),
        ];
        ip(&format!("make the network of {node}"), None, &lines).await?;
        let lines = [
            "link set lo up".to_owned(),
            format!("address add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {HOST}"),
        ];
        ip(&format!("make the network of {node}"), Some(&name), &lines).await?;
    }
    let others = (1..=count).filter(|other| *other != number);
    let lines: Vec<String> = others
        .map(|other| format!("route replace {} via {}", pods(other), address(other)))
        .collect();
    ip(&format!("make the routes of {node}"), Some(&name), &lines).await
}

/// What there is of it.
pub async fn remove(node: &str, number: u8) {
    for line in [
        format!("link delete {}", link(number)),
        format!("netns delete berth-{node}"),
    ] {
        // there may be none
        let _ = ip("remove", None, &[line]).await;
    }
}

pub async fn remove_bridge() {
    let _ = ip("remove", None, &[format!("link delete {BRIDGE}")]).await;
}
