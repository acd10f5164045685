//! berthd: the CRI server of a node.
//!
//! The story of its life: read the configuration, take the lock, open the stores, find the pods of the last run again, serve,
//! drain, end. Pods outlive it: nothing here ends a container.

#![forbid(unsafe_code)]

mod admin;
mod apparmor;
mod block_io;
mod cgroup;
mod cgroup_driver;
mod checkpoint;
mod cli;
mod config;
mod cri;
mod error;
mod failpoint;
mod handler;
mod handler_features;
mod id;
mod kernel_floor;
mod metrics;
mod node;
mod notify;
mod nri;
mod pod;
mod rpc;
mod server;
mod sessions;
mod trace;
mod watchdog;

use std::{os::unix::fs::PermissionsExt, path::Path, process::ExitCode, sync::Arc};

use berth_state::{Ledger, Lock, dir::ensure_private};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Action, Cli},
    config::Config,
    cri::{Service, cpu_rate::CpuSamples},
    error::Error,
    node::Node,
    pod::{recovery, registry::Registry},
    sessions::Sessions,
};

/// Calls are short and mostly wait for shims; blocking work has threads of its own.
const WORKERS: usize = 2;
/// Mounts, copies and walks under way at the same time; more only queue at the disk.
const BLOCKING_THREADS: usize = 32;
/// A daemon that idles has no use for threads: each costs a stack.
const BLOCKING_KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);

fn main() -> ExitCode {
    // Whatever a careless parent left open: no shim and no plugin is to have it.
    if let Err(e) = berth_kernel::descriptors::cloexec_from(3) {
        eprintln!("berthd: mark the inherited descriptors: {e}");
    }
    berth_failpoint::setup();
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("berthd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn std::error::Error>> {
    match cli.action() {
        Action::Print(text) => cli::print(&text)?,
        Action::Check => {
            cli.config()?;
        }
        Action::Serve => {
            let config = cli.config()?;
            cli::stay_small();
            let exporter = trace::setup(&config);
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .max_blocking_threads(BLOCKING_THREADS)
                .thread_keep_alive(BLOCKING_KEEP_ALIVE)
                .enable_all()
                .build()?
                .block_on(daemon(config, exporter))?;
        }
    }
    Ok(())
}

async fn daemon(config: Config, exporter: Option<trace::Exporter>) -> Result<(), Error> {
    let private = |dir: &Path| ensure_private(dir).map_err(Error::io("prepare", dir));
    private(&config.state)?;
    let lock = config.state.join("berthd.lock");
    let _lock = Lock::try_acquire(&lock).map_err(Error::io("take", lock))?;
    private(&config.root)?;
    // Signals from here on end the daemon in order.
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;

    let (socket, grace) = (config.socket(), config.shutdown_grace());
    let mut node = open(config).await?;
    if let Some(exporter) = &exporter {
        node.metrics.spans_dropped = exporter.dropped.clone();
        node.metrics.spans_exported = exporter.exported.clone();
    }
    let node = Arc::new(node);
    let exporting = exporter.map(trace::Exporter::run);
    for dir in ["pods", "s"] {
        private(&node.config.state.join(dir))?;
    }
    for dir in [node.pod_records(), node.container_records()] {
        private(&dir)?;
    }
    // Cgroups below it that carry an id are this daemon's: so `berth audit` finds those that nobody knows of any more.
    let parents = node.config.state.join("cgroup-parents");
    let parent = format!("{}\n", node.cgroup.parent.display());
    std::fs::write(&parents, parent).map_err(Error::io("write", &parents))?;
    std::fs::set_permissions(&parents, std::fs::Permissions::from_mode(0o600))
        .map_err(Error::io("close to others", &parents))?;
    let registry = Registry::new(node);
    recovery::recover(&registry).await?;
    checkpoint::sweep(&registry.node)?;
    nri::start(&registry).await?;

    let sessions = Arc::new(Sessions {
        registry: registry.clone(),
    });
    let of = &registry.node.config.stream;
    let idle_limit = std::time::Duration::from_secs(of.idle_timeout_s as u64);
    let streams = Arc::new(berth_stream::Server::bind(of.listen, idle_limit, sessions).await?);
    let listener = server::listen(&socket)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "serving");
    notify::tell("READY=1");
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; pods go on");
        notify::tell("STOPPING=1");
    };
    let node = registry.node.clone();
    let metrics = match node.config.metrics.listen {
        None => None,
        Some(address) => {
            let (listener, address) = metrics::http::listen(address).await?;
            tracing::info!(%address, "metrics are served at /metrics");
            let source = metrics::gather::Source::new(registry.clone(), streams.clone());
            Some(tokio::spawn(metrics::http::serve(listener, source)))
        }
    };
    let service = Service {
        registry: registry.clone(),
        streams,
    };
    let watchdog =
        watchdog::interval().map(|every| tokio::spawn(watchdog::keep(socket.clone(), every)));
    server::serve(listener, service, end, grace).await?;
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    nri::stop(&registry).await;
    let _ = std::fs::remove_file(&socket);
    if let Some(serving) = metrics {
        serving.abort();
    }
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    // It comes again with the next pod.
    if let Err(e) = node.network.remove_bridge_if_unused().await {
        tracing::warn!("remove the unused bridge: {e}");
    }
    Ok(())
}

/// The stores, and the facts of this machine.
async fn open(config: Config) -> Result<Node, Error> {
    let ledger = config.state.join("ledger");
    let ledger = Ledger::open(&ledger).map_err(Error::io("open", ledger))?;
    let images = berth_image::Store::open(
        berth_image::Config {
            root: config.root.join("image"),
            hosts_dir: config.image.hosts_dir.clone(),
            max_parallel_layers: config.image.max_parallel_layers,
        },
        ledger.clone(),
    )
    .await?;
    let of = &config.network;
    let network = berth_network::Network::open(
        berth_network::Config {
            bridge: of.bridge.clone(),
            subnet: of.subnet,
            subnet_v6: of.subnet_v6,
            masquerade: of.masquerade,
            namespace_pool: of.namespace_pool,
            mtu: Some(of.mtu).filter(|mtu| *mtu != 0),
            netns_dir: config.state.join("netns"),
            lease_dir: config.state.join("leases"),
        },
        of.builtin,
        berth_network::CniConfig {
            conf_dir: of.cni_conf_dir.clone(),
            bin_dirs: of.cni_bin_dirs.clone(),
            max_networks: of.cni_max_conf_num,
            timeout: std::time::Duration::from_millis(of.cni_timeout_ms as u64),
            record_dir: config.root.join("cni"),
            conf_template: Some(of.cni_conf_template.clone()).filter(|p| !p.as_os_str().is_empty()),
        },
        ledger.clone(),
    )
    .map_err(|source| Error::Network {
        pod_id: "(none yet)".into(),
        source,
    })?;
    let host = berth_spec::Host::probe().map_err(Error::io("probe", "this machine"))?;
    let kernel = kernel_floor::Floor::probe(&host);
    kernel.tell();
    if let Some(why) = &host.cgroups_unusable {
        tracing::error!("no pod runs: {why}");
    }
    let machine = cgroup_driver::Machine::probe(host.cgroup_v2);
    let cgroup = cgroup_driver::Chosen::of(&config.cgroup, &machine).map_err(Error::Config)?;
    tracing::info!(driver = ?cgroup.driver, parent = %cgroup.parent.display(), "cgroups");
    Ok(Node {
        images,
        network,
        ledger,
        host,
        kernel,
        cgroup,
        cgroups: cgroup::Hierarchies::probe().map_err(Error::io("read", "/proc/self/mounts"))?,
        cpu: CpuSamples::default(),
        nri: nri::Plugins::new(&config),
        metrics: metrics::Metrics::default(),
        user_namespaces_possible: Default::default(),
        apparmor: Default::default(),
        handler_features: Default::default(),
        config,
    })
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(Error::io("listen for", "signals"))
}
