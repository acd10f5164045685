//! `berth kubelet`: the node's pods, kept as manifests of a directory and an API server say.

mod ending;
mod static_pods;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use berth_kubelet::{
    Certificate, Cluster, Config, Joining, Kubelet as Inner, Listen, Mirrors, NodeFacts, Objects,
    Recorder, Register, Runtime, Server, Source, Statuses, Taint, Thresholds, Told, join,
};
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use ending::Ending;
use static_pods::StaticPods;

use crate::{error::Error, node::Address};

/// Keep pods running as an API server and manifests in a directory say
///
/// With --kubeconfig the node joins a cluster: it registers, runs the pods that are bound to it, tells their status, and serves logs, exec, attach,
/// port-forward and figures over HTTPS. While the API server is away pods go on; after a reboot without it the ones that were known last are
/// begun.
///
/// With --manifests each file of a directory has one Pod of the API v1 (YAML or JSON); the directory is watched. Such pods get the node's name behind
/// their own, and are mirrored in the API. --manifest-url has such pods, too: one, or a PodList; while it can't be had they go on.
///
/// Pods are started again as their restartPolicy says, probed, and ended when they are deleted or their file goes. Ending this command ends no pod: the
/// next one takes them over.
///
/// What it did is told on standard error; BERTH_LOG says how much of it. Each pod's status is kept in --kubelet-dir/pods/UID/status.json.
#[derive(Debug, Args)]
pub struct Kubelet {
    /// The API server, and who this node is to it (system:node:NAME of the group system:nodes)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["manifests", "manifest_url"])]
    kubeconfig: Option<PathBuf>,
    /// By what the node asks for a certificate of its own, where it has none: a kubeconfig with a bootstrap token, say. --kubeconfig is written then, and
    /// the certificate renewed in time
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Where that certificate is kept; pki in --kubelet-dir by default
    #[arg(long, value_name = "DIR", requires = "bootstrap_kubeconfig")]
    cert_dir: Option<PathBuf>,
    #[command(flatten)]
    static_pods: StaticPods,
    /// Where volumes are made, and what is known of pods is kept; one kubelet a directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// Where the logs of containers are written
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    logs_dir: PathBuf,
    /// The node's name; this machine's by default
    #[arg(long, value_name = "NAME", alias = "hostname-override")]
    node_name: Option<String>,
    /// The node's address (twice for both families); by default the one that it sends from
    #[arg(long = "node-ip", value_name = "ADDRESS")]
    node_ips: Vec<IpAddr>,
    /// More labels of the node
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    node_labels: Vec<(String, String)>,
    /// Taints that the node has from its first day on
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    register_with_taints: Vec<Taint>,
    /// Where logs, exec and figures are served, with --kubeconfig; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10250")]
    listen: SocketAddr,
    /// The server's certificate, with its chain (PEM); without it and --rotate-server-certificates it signs its own
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_private_key_file",
        conflicts_with = "rotate_server_certificates"
    )]
    tls_cert_file: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Ask the cluster for the server's certificate, and for the next one in time; somebody has to approve each
    #[arg(long)]
    rotate_server_certificates: bool,
    /// By which CA clients of the server are known (PEM); by default the API server's
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Below which cgroup pods are, by their class of service; by default where the runtime puts them
    #[arg(long, value_name = "CGROUP", default_value = "")]
    cgroup_root: String,
    /// An address of the cluster's DNS (may be given several times); without one pods have the node's
    #[arg(long = "cluster-dns", value_name = "ADDRESS")]
    cluster_dns: Vec<String>,
    /// The cluster's domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// When pods are evicted: SIGNAL<VALUE, of memory.available, nodefs.available, nodefs.inodesFree, pid.available; the others as by default
    #[arg(
        long,
        value_name = "LIST",
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<2%"
    )]
    eviction_hard: Thresholds,
    #[command(flatten)]
    ending: Ending,
    /// At most so many pods
    #[arg(long, value_name = "N", default_value_t = 110)]
    max_pods: usize,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is no KEY=VALUE".into()),
    }
}

impl Kubelet {
    pub async fn run(self, address: &Address) -> Result<ExitCode, Error> {
        super::log();
        let config = self.config();
        let runtime = Runtime::new(&address.to_string())?;
        let ends = ended()?;
        let mut tasks = JoinSet::new();
        let served = tokio::select! {
            served = self.serve(config, runtime, ends.clone(), &mut tasks) => served,
            // waiting for the runtime
            () = ends.cancelled() => Ok(()),
        };
        // What is to be told is told again by the next kubelet.
        tasks.shutdown().await;
        served.map(|()| ExitCode::SUCCESS)
    }

    fn config(&self) -> Config {
        let mut node = NodeFacts::of_this_machine();
        if let Some(name) = &self.node_name {
            node.name.clone_from(name);
        }
        if !self.node_ips.is_empty() {
            node.ips = self.node_ips.iter().map(ToString::to_string).collect();
        }
        Config {
            kubelet_dir: self.kubelet_dir.clone(),
            logs_dir: self.logs_dir.clone(),
            cgroup_root: self.cgroup_root.clone(),
            source: "file",
            max_pods: self.max_pods,
            cluster_dns: self.cluster_dns.clone(),
            cluster_domain: self.cluster_domain.clone(),
            node,
        }
    }

    async fn serve(
        self,
        config: Config,
        runtime: Runtime,
        ends: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let certificate = self.certificate();
        let (to_files, files) = self.static_pods.watch(&config, tasks)?;
        let Some(kubeconfig) = &self.kubeconfig else {
            let objects = Objects::default();
            let kubelet = Inner::start(config, runtime, objects, Told::default()).await?;
            let kubelet = self.ending.apply(kubelet)?;
            drop(to_files);
            kubelet.run(files, ends).await;
            return Ok(());
        };
        let cluster = match &self.bootstrap_kubeconfig {
            None => Cluster::of_kubeconfig(kubeconfig, &config.node.name).await?,
            Some(bootstrap) => {
                let cert_dir = self.cert_dir.clone();
                let joining = Joining {
                    bootstrap: bootstrap.clone(),
                    kubeconfig: kubeconfig.clone(),
                    cert_dir: cert_dir.unwrap_or_else(|| config.kubelet_dir.join("pki")),
                    node: config.node.name.clone(),
                };
                let (cluster, renewal) = joining.join().await?;
                tasks.spawn(renewal.run());
                cluster
            }
        };
        let statuses = Statuses::new(cluster.clone());
        let (recorder, recording) = Recorder::new(cluster.clone());
        let objects = Objects::of(cluster.clone(), &config.kubelet_dir);
        let told = told(statuses.clone(), recorder);
        let kubelet = Inner::start(config.clone(), runtime.clone(), objects.clone(), told).await?;
        let kubelet = self.ending.apply(kubelet)?;

        let listen = Listen {
            address: self.listen,
            certificate,
            client_ca: self.client_ca_file.clone(),
        };
        let server = Server::bind(&kubelet, cluster.clone(), listen).await?;
        tracing::info!(address = %server.address(), "logs, exec and figures are served");
        let (uid, node_uid) = watch::channel(None);
        let register = Register {
            cluster: cluster.clone(),
            runtime,
            config: config.clone(),
            labels: BTreeMap::from_iter(self.node_labels),
            taints: self.register_with_taints,
            thresholds: self.eviction_hard,
            port: server.address().port(),
            shuts_down: kubelet.shuts_down(),
            uid,
        };
        let (to_known, known) = watch::channel(None);
        let source = Source::new(
            cluster.clone(),
            statuses.clone(),
            objects,
            config.kubelet_dir.clone(),
        );
        let mirrors = Mirrors {
            cluster,
            statuses: statuses.clone(),
            pods: files.clone(),
            known: known.clone(),
            node_uid,
        };
        let (to_desired, desired) = watch::channel(None);
        tasks.spawn(recording);
        tasks.spawn(register.run());
        tasks.spawn(server.run());
        tasks.spawn(source.run(to_known));
        tasks.spawn(mirrors.run());
        tasks.spawn(join(files, known.clone(), to_desired));
        tasks.spawn(statuses.clone().run());
        kubelet
            .in_cluster(statuses, known)
            .evicting(self.eviction_hard)
            .run(desired, ends)
            .await;
        drop(to_files);
        Ok(())
    }

    fn certificate(&self) -> Certificate {
        match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(chain), Some(key)) => Certificate::Files {
                chain: chain.clone(),
                key: key.clone(),
            },
            _ if self.rotate_server_certificates => Certificate::Cluster,
            _ => Certificate::SelfSigned,
        }
    }
}

/// The log, and the API.
fn told(statuses: Arc<Statuses>, recorder: Recorder) -> Told {
    let log = Told::default();
    let (happened, status) = (log.happened, log.status);
    Told {
        happened: Arc::new(move |happening| {
            happened(happening);
            recorder.record(happening);
        }),
        status: Arc::new(move |pod, told| {
            status(pod, told);
            statuses.tell(pod, told);
        }),
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
