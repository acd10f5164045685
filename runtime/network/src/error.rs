use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{CniError, PortMapping, Protocol};

/// What went wrong with a pod's network: the step, on what, why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network configuration: {key}: {why}")]
    Config { key: &'static str, why: String },
    #[error("{pod_id:?} is not a pod's id: 64 lower-case hex digits")]
    PodId { pod_id: String },
    #[error("directory {path} of the network: {source}")]
    Dir { path: PathBuf, source: io::Error },
    #[error("ledger of {owner}: {source}")]
    Ledger { owner: String, source: io::Error },
    #[error("{what} network namespace {path}: {source}")]
    Netns {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} lease {path}: {source}")]
    Lease {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "no address is free in {subnet}: all {leased} are leased; remove pods, or give [network] subnet a wider range"
    )]
    Exhausted { subnet: IpNet, leased: usize },
    #[error(
        "the pods' range {subnet} collides with the host's route to {route}{}; give [network] subnet a range that is free",
        .link.as_ref().map(|link| format!(" through {link}")).unwrap_or_default()
    )]
    SubnetTaken {
        subnet: IpNet,
        route: IpNet,
        link: Option<String>,
    },
    #[error(
        "link {name} is there already and is not ours ({what}); remove it, or give [network] bridge another name"
    )]
    ForeignLink { name: String, what: String },
    #[error("{what} {link}: {source}")]
    Netlink {
        what: &'static str,
        link: String,
        source: io::Error,
    },
    #[error("add address {address} to {link}: {source}")]
    Address {
        address: IpAddr,
        link: String,
        source: io::Error,
    },
    #[error(
        "the pods' ranges stay as they are, and are to become {ranges} once the last pod of them is gone: {address} is leased"
    )]
    RangesInUse { ranges: String, address: IpAddr },
    #[error("host port {mapping}: {why}")]
    HostPort { mapping: PortMapping, why: String },
    #[error(
        "host port {host}/{protocol} is taken: pod {pod_id} has {taken}; give one of them another port, or each a hostIP of its own"
    )]
    HostPortTaken {
        host: SocketAddr,
        protocol: Protocol,
        pod_id: String,
        taken: SocketAddr,
    },
    #[error(
        "host port {host}/{protocol} is taken: a process of the host listens on {listener}; take another port, or a hostIP that it does not listen on"
    )]
    HostPortListening {
        host: SocketAddr,
        protocol: Protocol,
        listener: SocketAddr,
    },
    #[error("read {path}, to see what the host listens on: {source}")]
    Listeners { path: String, source: io::Error },
    #[error("{what} nf_tables table {table}: {source}")]
    Nftables {
        what: &'static str,
        table: String,
        source: io::Error,
    },
    #[error("{what} the tracked connections of {of}: {source}")]
    Conntrack {
        what: &'static str,
        of: String,
        source: io::Error,
    },
    #[error("set {path}: {source}")]
    Sysctl { path: String, source: io::Error },
    #[error(transparent)]
    Cni(Arc<CniError>),
    #[error("network worker for {pod_id}: {why}")]
    Worker { pod_id: String, why: String },
}

impl Error {
    /// The errno below, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Dir { source, .. }
            | Self::Ledger { source, .. }
            | Self::Netns { source, .. }
            | Self::Lease { source, .. }
            | Self::Netlink { source, .. }
            | Self::Address { source, .. }
            | Self::Listeners { source, .. }
            | Self::Nftables { source, .. }
            | Self::Conntrack { source, .. }
            | Self::Sysctl { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
