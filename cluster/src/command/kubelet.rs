//! `berth kubelet`: the node's pods, kept as the manifests of a directory say.

use std::{path::PathBuf, process::ExitCode};

use berth_kubelet::{Config, Directory, Kubelet as Inner, NodeFacts, Objects, Runtime, Told};
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{error::Error, node::Address};

/// Keep pods running as manifests in a directory say
///
/// Each file has one Pod of the API v1 (YAML or JSON); the directory is watched. Pods get the node's name behind their own, are started again
/// as their restartPolicy says, probed, and ended when their file goes. Ending this command ends no pod: the next one takes them over.
///
/// What it did is told on standard error; BERTH_LOG says how much of it. Each pod's status is kept in --kubelet-dir/pods/UID/status.json.
#[derive(Debug, Args)]
pub struct Kubelet {
    /// The directory of manifests
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Where volumes are made, and what is known of pods is kept; one kubelet a directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// Where the logs of containers are written
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    logs_dir: PathBuf,
    /// The node's name; this machine's by default
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Below which cgroup pods are, by their class of service; by default where the runtime puts them
    #[arg(long, value_name = "CGROUP", default_value = "")]
    cgroup_root: String,
    /// An address of the cluster's DNS (may be given several times); without one pods have the node's
    #[arg(long = "cluster-dns", value_name = "ADDRESS")]
    cluster_dns: Vec<String>,
    /// The cluster's domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// At most so many pods
    #[arg(long, value_name = "N", default_value_t = 110)]
    max_pods: usize,
}

impl Kubelet {
    pub async fn run(self, address: &Address) -> Result<ExitCode, Error> {
        super::log();
        let mut node = NodeFacts::of_this_machine();
        if let Some(name) = self.node_name {
            node.name = name;
        }
        let source = Directory::new(self.manifests, node.name.clone());
        let config = Config {
            kubelet_dir: self.kubelet_dir,
            logs_dir: self.logs_dir,
            cgroup_root: self.cgroup_root,
            source: "file",
            max_pods: self.max_pods,
            cluster_dns: self.cluster_dns,
            cluster_domain: self.cluster_domain,
            node,
        };
        let runtime = Runtime::new(&address.to_string())?;
        let ends = ended()?;
        let kubelet = tokio::select! {
            kubelet = Inner::start(config, runtime, Objects::default(), Told::default()) => kubelet?,
            () = ends.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        let (sender, desired) = watch::channel(None);
        let reading = tokio::spawn(source.run(sender));
        kubelet.run(desired, ends).await;
        reading.abort();
        Ok(ExitCode::SUCCESS)
    }
}

/// Cancelled by SIGTERM or SIGINT.
fn ended() -> Result<CancellationToken, Error> {
    let ends = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal = signal(kind).map_err(|source| Error::Invalid {
            what: "cannot wait for signals".into(),
            why: source.to_string(),
        })?;
        let ends = ends.clone();
        tokio::spawn(async move {
            signal.recv().await;
            ends.cancel();
        });
    }
    Ok(ends)
}
