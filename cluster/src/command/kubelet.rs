//! `berth kubelet`: the node's pods, kept as manifests of a directory and an API server say.

mod ending;
mod images;
mod static_pods;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use berth_kubelet::{
    Certificate, CgroupDriver, Cluster, Config, Division, Enforced, Graces, Joining,
    Kubelet as Inner, Levels, Listen, Mirrors, NodeFacts, Objects, OwnNode, Reclaims, Recorder,
    Register, Reserved, Runtime, Server, Source, Statuses, Taint, Thresholds, Told, duration, join,
};
use clap::Args;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use ending::Ending;
use images::Images;
use static_pods::StaticPods;

use crate::{error::Error, node::Address};

/// How long the heap may hold what nothing is in.
const SLIM_EVERY: Duration = Duration::from_secs(30);

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
    /// Below which cgroup `kubepods` is, with all pods by their class of service
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    cgroup_root: String,
    /// cgroupfs or systemd, where the runtime does not tell which it has
    #[arg(long, value_name = "DRIVER", default_value = "cgroupfs")]
    cgroup_driver: CgroupDriver,
    /// What of the node the system keeps from pods: NAME=AMOUNT of cpu, memory, ephemeral-storage, pid
    #[arg(long, value_name = "LIST", default_value = "")]
    system_reserved: Reserved,
    /// … and what the kubelet and the runtime keep
    #[arg(long, value_name = "LIST", default_value = "")]
    kube_reserved: Reserved,
    /// pods: all of them together can't have what is reserved; none: they can
    #[arg(long, value_name = "WHOM", default_value = "pods")]
    enforce_node_allocatable: Enforced,
    /// At most so many processes in a pod; -1: as many as all pods together may have
    #[arg(
        long,
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true
    )]
    pod_max_pids: i64,
    /// An address of the cluster's DNS (may be given several times); without one pods have the node's
    #[arg(long = "cluster-dns", value_name = "ADDRESS")]
    cluster_dns: Vec<String>,
    /// The cluster's domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// When pods are evicted at once: SIGNAL<VALUE, of memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree,
    /// pid.available; the others as by default
    #[arg(
        long,
        value_name = "LIST",
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%,pid.available<2%"
    )]
    eviction_hard: Levels,
    /// When pods are evicted where it lasts
    #[arg(long, value_name = "LIST", default_value = "")]
    eviction_soft: Levels,
    /// How long each of these has to last: SIGNAL=TIME, as memory.available=1m30s
    #[arg(long, value_name = "LIST", default_value = "")]
    eviction_soft_grace_period: Graces,
    /// How many seconds a pod has to end then, at most
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    eviction_max_pod_grace_period: u32,
    /// How much more than its threshold is to be free once pods are evicted: SIGNAL=VALUE
    #[arg(long, value_name = "LIST", default_value = "")]
    eviction_minimum_reclaim: Reclaims,
    /// How long the node says that it runs short after it did last
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    eviction_pressure_transition_period: Duration,
    #[command(flatten)]
    images: Images,
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
        super::serve();
        let config = self.config()?;
        let runtime = Runtime::new(&address.to_string())?;
        let ends = super::ended()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(slim());
        let served = tokio::select! {
            served = self.serve(config, runtime, ends.clone(), &mut tasks) => served,
            // waiting for the runtime
            () = ends.cancelled() => Ok(()),
        };
        // What is to be told is told again by the next kubelet.
        tasks.shutdown().await;
        served.map(|()| ExitCode::SUCCESS)
    }

    fn config(&self) -> Result<Config, Error> {
        let mut node = NodeFacts::of_this_machine();
        if let Some(name) = &self.node_name {
            node.name.clone_from(name);
        }
        if !self.node_ips.is_empty() {
            node.ips = self.node_ips.iter().map(ToString::to_string).collect();
        }
        Ok(Config {
            kubelet_dir: self.kubelet_dir.clone(),
            logs_dir: self.logs_dir.clone(),
            cgroup_root: Some(self.cgroup_root.clone()),
            cgroup_driver: self.cgroup_driver,
            division: Division {
                system_reserved: self.system_reserved.clone(),
                kube_reserved: self.kube_reserved.clone(),
                enforced: self.enforce_node_allocatable,
                // 0 is no limit, as upstream
                pod_max_pids: u64::try_from(self.pod_max_pids)
                    .ok()
                    .filter(|most| *most > 0),
            },
            source: "file",
            max_pods: self.max_pods,
            images: self.images.policy()?,
            cluster_dns: self.cluster_dns.clone(),
            cluster_domain: self.cluster_domain.clone(),
            node,
        })
    }

    async fn serve(
        self,
        config: Config,
        runtime: Runtime,
        ends: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let thresholds = self.thresholds()?;
        let certificate = self.certificate();
        let (to_files, files) = self.static_pods.watch(&config, tasks)?;
        let Some(kubeconfig) = &self.kubeconfig else {
            let objects = Objects::default();
            let kubelet = Inner::start(config, runtime, objects, Told::default()).await?;
            let kubelet = self.ending.apply(kubelet.evicting(thresholds)?)?;
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
        let (config_of, tells) = (config.clone(), told.clone());
        let kubelet = Inner::start(config_of, runtime.clone(), objects.clone(), tells).await?;
        let kubelet = self.ending.apply(kubelet.evicting(thresholds.clone())?)?;

        let listen = Listen {
            address: self.listen,
            certificate,
            client_ca: self.client_ca_file.clone(),
        };
        let server = Server::bind(&kubelet, cluster.clone(), listen).await?;
        tracing::info!(address = %server.address(), "logs, exec and figures are served");
        let (uid, node_uid) = watch::channel(None);
        let labels = BTreeMap::from_iter(self.node_labels);
        let (own, follow) = OwnNode::of(cluster.clone(), &labels);
        let register = Register {
            cluster: cluster.clone(),
            runtime,
            config: config.clone(),
            labels,
            taints: self.register_with_taints,
            thresholds,
            pressed: kubelet.pressed(),
            port: server.address().port(),
            shuts_down: kubelet.shuts_down(),
            uid,
            own: own.clone(),
            told,
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
        tasks.spawn(follow);
        tasks.spawn(server.run());
        tasks.spawn(source.run(to_known));
        tasks.spawn(mirrors.run());
        tasks.spawn(join(files, known.clone(), to_desired));
        tasks.spawn(statuses.clone().run());
        kubelet
            .in_cluster(statuses, known, own)
            .run(desired, ends)
            .await;
        drop(to_files);
        Ok(())
    }

    fn thresholds(&self) -> Result<Thresholds, Error> {
        let (hard, soft) = (&self.eviction_hard, &self.eviction_soft);
        let (graces, reclaims) = (
            &self.eviction_soft_grace_period,
            &self.eviction_minimum_reclaim,
        );
        let mut thresholds =
            Thresholds::new(hard, soft, graces, reclaims).map_err(|why| Error::Invalid {
                what: "cannot use --eviction-soft".into(),
                why,
            })?;
        thresholds.max_pod_grace = Duration::from_secs(self.eviction_max_pod_grace_period.into());
        thresholds.transition = self.eviction_pressure_transition_period;
        Ok(thresholds)
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

/// Gives back, now and then, what the heap holds for nothing: a hundred pods that begin at once leave behind several times what a hundred pods at rest need.
async fn slim() {
    loop {
        tokio::time::sleep(SLIM_EVERY).await;
        berth_kernel::heap::give_back();
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
