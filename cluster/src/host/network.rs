//! The network of several nodes on one machine: each in a namespace of its own, plugged into a bridge, with routes to the others' pods.
//!
//! ```text
//! this machine 10.240.0.1 ── berth-nodes ─┬─ node-1 10.240.0.11, pods 10.244.1.0/24
//!                                         └─ node-2 10.240.0.12, pods 10.244.2.0/24
//! ```
//!
//! It is for trying things out, and by ip(8), which must be installed. Names and addresses are the same for every cluster, so a machine has one such network: whose it is,
//! is written down in [`OWNER`].

use std::{
    fs::{self, File},
    io::{self, Write},
    net::Ipv4Addr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{io::AsyncWriteExt, process::Command};

use super::{failed, file, make_dir};
use crate::error::Error;

/// What the nodes' runtimes have in `/run`.
pub const STATE: &str = "/run/berth-nodes";
/// The directory of the cluster that has the network.
const OWNER: &str = "/run/berth-nodes/cluster";

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

/// The network becomes that of the cluster with the directory `data`, if it is no other's. `has_nodes` says of another's directory whether nodes are there still.
///
/// # Errors
/// Another cluster has it, or nothing can be written in `/run`.
pub fn claim(data: &Path, has_nodes: impl Fn(&Path) -> bool) -> Result<(), Error> {
    claim_at(Path::new(OWNER), data, has_nodes)
}

fn claim_at(owner: &Path, data: &Path, has_nodes: impl Fn(&Path) -> bool) -> Result<(), Error> {
    let data = fs::canonicalize(data).map_err(file("find", data))?;
    if let Some(dir) = owner.parent() {
        make_dir(dir)?;
    }
    // of two who come at once one is the first
    let mut claim = locked(owner).map_err(file("lock", owner))?;
    match owner_of(owner) {
        Some(other) if other == data => return Ok(()),
        Some(other) if has_nodes(&other) => {
            return Err(failed(
                format!("cannot make the network of the nodes of {}", data.display()),
                format!(
                    "a machine has one, and here it is that of the cluster in {0}: `berth down --data {0}` ends it",
                    other.display()
                ),
            ));
        }
        // nobody's, or it was taken away without `berth down`
        _ => {}
    }
    claim
        .set_len(0)
        .and_then(|()| claim.write_all(data.as_os_str().as_bytes()))
        .map_err(file("write", owner))
}

/// The file, made where it is not there; nobody else has it until it is closed.
fn locked(owner: &Path) -> io::Result<File> {
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(owner)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // who had it before may have removed it
        let own = file.metadata()?.ino();
        if fs::metadata(owner).is_ok_and(|it| it.ino() == own) {
            return Ok(file);
        }
    }
}

fn owner_of(owner: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(owner).ok()?;
    (!text.is_empty()).then(|| text.into())
}

/// Whether the network is that of the cluster with the directory `data`.
pub fn is_of(data: &Path) -> bool {
    let data = fs::canonicalize(data).ok();
    data.is_some() && owner_of(Path::new(OWNER)) == data
}

/// It is nobody's any more.
pub fn release() {
    let _held = locked(Path::new(OWNER));
    let _ = fs::remove_file(OWNER);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_nodes_of_one_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let owner = dir.path().join("run/cluster");
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        for data in [&one, &other] {
            fs::create_dir(data).unwrap();
        }
        claim_at(&owner, &one, |_| true).unwrap();
        // the same cluster, up again
        claim_at(&owner, &one, |_| true).unwrap();
        let said = claim_at(&owner, &other, |_| true).unwrap_err().to_string();
        let hint = format!(
            "`berth down --data {}`",
            fs::canonicalize(&one).unwrap().display()
        );
        assert!(said.contains(&hint), "{said}");
        assert_eq!(owner_of(&owner).unwrap(), fs::canonicalize(&one).unwrap());
        // somebody has removed its directory
        claim_at(&owner, &other, |_| false).unwrap();
        assert_eq!(owner_of(&owner).unwrap(), fs::canonicalize(&other).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 1);
    }
}
