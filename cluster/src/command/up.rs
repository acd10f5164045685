//! `berth up`: a cluster on this machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_apiserver::{Config, Server};
use berth_auth::{AUTHENTICATED, MASTERS, User};
use berth_controllers::{Callers, Options, Selection};
use berth_kubelet::NodeFacts;
use berth_store::{Embedded, Etcd, Memory, Store};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::{Api, Client, config::Kubeconfig};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::controllers::{Nodes as OfControllers, tokens};
use crate::{
    error::Error,
    host::{
        self,
        approve::{self, Own},
        failed, network,
        node::{self, Joins, Node, Wish},
        program::Program,
        token,
    },
    node::Address,
    output::text_out,
};

pub const DATA: &str = "/var/lib/berth/cluster";
/// In DATA.
pub const NODES: &str = "nodes";
/// DATA/up.pid is of the process that has it.
pub const PROGRAM: &str = "up";
/// How long its own nodes may take to join.
const OWN_TOKEN: Duration = Duration::from_secs(3600);
/// After so long it is told that nodes are not ready.
pub const READY: Duration = Duration::from_secs(60);

/// Run a cluster: its API server, its controllers, its scheduler, and this machine as its node
///
/// The node's runtime is the one at --endpoint; where none answers there, a berthd is started. What is started beside this process (berthd, a kubelet) is started again
/// when it ends, logs into DATA/nodes/NAME, and ends with this process; pods don't: the next `berth up` takes them over, and `berth down` ends them.
///
/// The first line on standard output says where the API is served, one each follows for nodes once they are ready. What it did is told on standard error; BERTH_LOG
/// says how much of it.
#[derive(Debug, Args)]
pub struct Up {
    /// No node: API server, controllers and scheduler only
    #[arg(long)]
    server: bool,
    /// Neither controllers nor a scheduler; they run elsewhere, Berth's or stock ones
    #[arg(long)]
    api_only: bool,
    /// So many nodes on this machine, to try things out: each has a network namespace of its own (by ip(8)) and a berthd
    #[arg(long, value_name = "N", conflicts_with = "server", value_parser = clap::value_parser!(u8).range(1..=i64::from(network::MOST)))]
    nodes: Option<u8>,
    /// Where certificates, keys, the audit log, the store and the nodes' directories are kept (0700)
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// Where HTTPS is served; port 0 takes a free one. With --nodes the address is 10.240.0.1
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where the admin's kubeconfig is written (0600); DATA/admin.kubeconfig by default
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where objects are kept: fjall (embedded, in DATA/store), memory (gone at the end), etcd=ENDPOINTS
    #[arg(long, value_name = "KIND", default_value = "fjall")]
    store: StoreKind,
    /// The addresses of Services
    #[arg(long, value_name = "NETWORK/PREFIX", default_value = "10.96.0.0/16")]
    service_cidr: Network,
    /// Where etcd's API is served, read only, for etcdctl: a loopback address; DATA/pki/etcd-client.crt and .key are for it
    #[arg(long, value_name = "ADDR:PORT")]
    etcd_listen: Option<SocketAddr>,
    /// A further name or address by which the server is reached (may be given several times)
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Admission plug-ins beside those that are always on. TaintNodesByCondition: nodes take no pods before they have said that they are ready, and before
    /// a controller has seen it; it is on where controllers run here
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    enable_admission_plugins: Vec<Plugin>,
    #[command(flatten)]
    node: OfNode,
    #[command(flatten, next_help_heading = "Of the controllers")]
    controllers: OfControllers,
}

/// What a node on this machine is given.
#[derive(Debug, Args)]
pub struct OfNode {
    /// The node's name; this machine's by default
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Below which cgroup its pods are; / by default
    #[arg(long, value_name = "CGROUP")]
    cgroup_root: Option<String>,
    /// Registries' mirrors for a berthd that is started, in containerd's format: DIR/HOST/hosts.toml
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// A further argument of the kubelet (may be given several times): see `berth kubelet --help`
    #[arg(
        long = "kubelet-arg",
        value_name = "ARGUMENT",
        allow_hyphen_values = true
    )]
    kubelet: Vec<String>,
}

impl OfNode {
    /// The only node of this machine.
    pub fn wish(&self, endpoint: &Address) -> Wish {
        Wish {
            name: self
                .node_name
                .clone()
                .unwrap_or_else(node::name_of_this_machine),
            number: None,
            endpoint: endpoint.clone(),
            cgroup_root: self.cgroup_root.clone(),
            hosts_dir: self.hosts_dir.clone(),
            kubelet: self.kubelet.clone(),
        }
    }

    /// One of several.
    fn numbered(&self, number: u8, count: u8, endpoint: &Address) -> Wish {
        let name = self.node_name.as_deref().unwrap_or("node");
        Wish {
            name: format!("{name}-{number}"),
            number: Some((number, count)),
            ..self.wish(endpoint)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plugin {
    #[value(name = "TaintNodesByCondition")]
    TaintNodesByCondition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum StoreKind {
    Fjall,
    Memory,
    Etcd(Vec<String>),
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fjall" => Ok(Self::Fjall),
            "memory" => Ok(Self::Memory),
            _ => match text.strip_prefix("etcd=") {
                Some(endpoints) if !endpoints.is_empty() => Ok(Self::Etcd(
                    endpoints.split(',').map(str::to_owned).collect(),
                )),
                _ => Err("it is fjall, memory or etcd=ENDPOINT[,ENDPOINT]".into()),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network(Ipv4Addr, u8);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (network, prefix) = text.split_once('/')?;
            Some(Self(network.parse().ok()?, prefix.parse().ok()?))
        };
        parsed().ok_or_else(|| "it is an IPv4 network like 10.96.0.0/16".into())
    }
}

impl Up {
    /// Runs until SIGTERM or SIGINT, on threads of its own: all other commands need but one.
    pub fn run(self, endpoint: &Address) -> Result<ExitCode, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| failed("cannot start threads", error))?;
        runtime.block_on(self.serve(endpoint))
    }

    async fn serve(self, endpoint: &Address) -> Result<ExitCode, Error> {
        super::serve();
        let begun = Instant::now();
        let ends = super::ended()?;
        host::make_dir(&self.data)?;
        let own = Program::this(PROGRAM, &self.data);
        own.claim()?;
        let served = self.serve_all(endpoint, begun, &ends).await;
        own.release();
        served.map(|()| ExitCode::SUCCESS)
    }

    async fn serve_all(
        &self,
        endpoint: &Address,
        begun: Instant,
        ends: &CancellationToken,
    ) -> Result<(), Error> {
        let kubeconfig = self.kubeconfig.clone();
        let kubeconfig = kubeconfig.unwrap_or_else(|| self.data.join("admin.kubeconfig"));
        let mut listen = self.listen;
        if !self.server {
            self.wishes(endpoint).iter().try_for_each(Wish::check)?;
        }
        if self.nodes.is_some() {
            claim_network(&self.data)?;
            network::make_bridge().await?;
            listen.set_ip(network::HOST.into());
        }
        let starts = self.start_server(listen, &kubeconfig);
        let server = tokio::select! {
            server = starts => server?,
            // it may wait for an etcd
            () = ends.cancelled() => return Ok(()),
        };
        say(&format!("https://{}\n", server.address()));
        tracing::info!(address = %server.address(), kubeconfig = %kubeconfig.display(), "the API server serves");
        let as_user = |name: &str, group: &str| User {
            username: name.into(),
            groups: vec![group.to_owned()],
            ..User::default()
        };
        let local = server.in_process(as_user("berth:up", MASTERS));
        let admin = Client::new(local.clone(), "default");
        let client = move |user| Client::new(local.with_user(user), "default");
        let scheduler = client(as_user("system:kube-scheduler", AUTHENTICATED));
        let manager = client(as_user("system:kube-controller-manager", AUTHENTICATED));
        let callers = Callers::by_account(manager, move |account| {
            client(User::service_account("kube-system", account))
        });

        // the nodes' programs end first: a kubelet has something to tell the server until its end
        let serves = CancellationToken::new();
        let (mut parts, mut programs) = (JoinSet::new(), JoinSet::new());
        let stops = serves.clone();
        parts.spawn(async move {
            let served = server.run(stops).await;
            served.map_err(|error| failed("the API server", error))
        });
        if !self.api_only {
            let alone = !matches!(self.store, StoreKind::Etcd(_));
            parts.spawn(super::controllers::keep(
                callers,
                Selection::default(),
                self.options()?,
                !alone,
                serves.clone(),
            ));
            parts.spawn(super::scheduler::schedule(
                scheduler,
                super::scheduler::by_default(),
                !alone,
                serves.clone(),
            ));
        }
        let mut result = Ok(());
        if !self.server {
            parts.spawn(approve::serving(
                admin.clone(),
                self.own(endpoint),
                serves.clone(),
            ));
            result = self
                .begin_nodes(endpoint, &kubeconfig, &admin, &mut programs, ends)
                .await;
        }
        if result.is_ok() {
            let wishes = match self.server {
                true => Vec::new(),
                false => self.wishes(endpoint),
            };
            let tells = async {
                tell_ready(&admin, &wishes, begun, ends).await;
                std::future::pending::<()>().await;
            };
            // whichever ends by itself ends all
            tokio::select! {
                () = ends.cancelled() => {}
                Some(ended) = parts.join_next() => result = joined(ended),
                Some(ended) = programs.join_next() => result = joined(ended),
                () = tells => {}
            }
        }
        for (tasks, token) in [(&mut programs, ends), (&mut parts, &serves)] {
            token.cancel();
            while let Some(ended) = tasks.join_next().await {
                result = result.and(joined(ended));
            }
        }
        result
    }

    async fn start_server(&self, listen: SocketAddr, kubeconfig: &Path) -> Result<Server, Error> {
        let of_server = |why: String| failed("the API server", why);
        let store = open(&self.store, &self.data)
            .await
            .map_err(|error| of_server(error.to_string()))?;
        Server::start(Config {
            data: self.data.clone(),
            listen,
            kubeconfig: kubeconfig.to_owned(),
            store,
            services: (self.service_cidr.0, self.service_cidr.1),
            etcd_listen: self.etcd_listen,
            names: self.server_names(listen),
            // Without a controller nobody would take the taint away.
            taints_new_nodes: !self.api_only
                || self
                    .enable_admission_plugins
                    .contains(&Plugin::TaintNodesByCondition),
        })
        .await
        .map_err(|error| of_server(error.to_string()))
    }

    /// For its certificate, beside where it listens: of one that listens everywhere those by which other machines know this one, too.
    fn server_names(&self, listen: SocketAddr) -> Vec<String> {
        let mut names = self.names.clone();
        if listen.ip().is_unspecified() {
            let machine = NodeFacts::of_this_machine();
            if berth_kinds::dns_subdomain(&machine.name).is_empty() {
                names.push(machine.name);
            }
            names.extend(machine.ips);
        }
        names
    }

    /// The server has made its keys by now.
    fn options(&self) -> Result<Options, Error> {
        let pki = self.data.join("pki");
        let tokens = tokens::read(&pki.join("token.key"), Some(&pki.join("ca.crt")))?;
        Ok(Options {
            account_tokens: Some(tokens),
            ..self.controllers.options()?
        })
    }

    fn own(&self, endpoint: &Address) -> Vec<Own> {
        let own = |wish: Wish| Own {
            name: wish.name,
            address: wish
                .number
                .map(|(number, _)| network::address(number).into()),
        };
        self.wishes(endpoint).into_iter().map(own).collect()
    }

    fn wishes(&self, endpoint: &Address) -> Vec<Wish> {
        match self.nodes {
            None => vec![self.node.wish(endpoint)],
            Some(count) => (1..=count)
                .map(|number| self.node.numbered(number, count, endpoint))
                .collect(),
        }
    }

    async fn begin_nodes(
        &self,
        endpoint: &Address,
        kubeconfig: &Path,
        admin: &Client,
        tasks: &mut JoinSet<Result<(), Error>>,
        ends: &CancellationToken,
    ) -> Result<(), Error> {
        let token = token::create(admin.clone(), OWN_TOKEN, "of `berth up`, for its own nodes");
        let joins = Joins {
            cluster: cluster_of(kubeconfig)?,
            token: token.await?,
        };
        for wish in self.wishes(endpoint) {
            if ends.is_cancelled() {
                break;
            }
            let node = Node::plan(&self.data.join(NODES), wish).await?;
            node.begin(&joins, tasks, ends).await?;
        }
        Ok(())
    }
}

/// The network of nodes on one machine is this cluster's, if it can be.
pub fn claim_network(data: &Path) -> Result<(), Error> {
    network::claim(data, |other| {
        node::has_numbered(&other.join(NODES)) || Program::this(PROGRAM, other).runs()
    })
}

/// On standard output, where somebody reads it still: a cluster does not end for want of a reader.
pub fn say(line: &str) {
    if let Err(error) = text_out(line) {
        tracing::debug!(%error, line, "not told");
    }
}

/// How a part has ended.
pub fn joined(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|error| Err(failed("a part has ended", error)))
}

/// A kubeconfig's first cluster: server and CA.
pub fn cluster_of(kubeconfig: &Path) -> Result<Value, Error> {
    let unusable = |why: String| failed(format!("cannot use {}", kubeconfig.display()), why);
    let read = Kubeconfig::read_from(kubeconfig).map_err(|error| unusable(error.to_string()))?;
    let cluster = read.clusters.first().and_then(|it| it.cluster.as_ref());
    let cluster = cluster.ok_or_else(|| unusable("it has no cluster".into()))?;
    serde_json::to_value(cluster).map_err(|error| unusable(error.to_string()))
}

/// Why a node is not ready, as the server has it; none: it is.
pub async fn not_ready(nodes: &Api<ApiNode>, name: &str) -> Option<String> {
    let node = match nodes.get_opt(name).await {
        Ok(Some(node)) => node,
        Ok(None) => return Some("its kubelet has not registered it".into()),
        Err(error) => return Some(super::reasons(&error)),
    };
    let conditions = node.status.and_then(|status| status.conditions);
    let mut conditions = conditions.into_iter().flatten();
    match conditions.find(|it| it.type_ == "Ready") {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(ready.message.unwrap_or_default()),
        None => Some("its kubelet has not told how it is".into()),
    }
}

/// Also where the reason is not in the log of its kubelet, as of a network that is not ready.
pub fn tell_late(name: &str, why: &str) {
    tracing::warn!(
        node = name,
        why,
        "not ready within {} s; its kubelet.log may say more",
        READY.as_secs()
    );
}

pub fn say_ready(name: &str, begun: Instant) {
    say(&format!(
        "node {name} is ready ({:.1} s)\n",
        begun.elapsed().as_secs_f64()
    ));
}

/// A line for each node that has become ready, until all have, or some are late.
async fn tell_ready(admin: &Client, wishes: &[Wish], begun: Instant, ends: &CancellationToken) {
    let nodes = Api::<ApiNode>::all(admin.clone());
    let mut waiting: Vec<&str> = wishes.iter().map(|wish| wish.name.as_str()).collect();
    while !waiting.is_empty() && !ends.is_cancelled() {
        let is_late = begun.elapsed() > READY;
        let mut still = Vec::new();
        for name in waiting {
            match not_ready(&nodes, name).await {
                None => say_ready(name, begun),
                Some(why) if is_late => tell_late(name, &why),
                Some(_) => still.push(name),
            }
        }
        waiting = still;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn open(kind: &StoreKind, data: &Path) -> Result<Arc<dyn Store>, berth_store::Error> {
    let broken = |why: String| berth_store::Error::Broken {
        act: "connect to etcd",
        why,
    };
    Ok(match kind {
        StoreKind::Memory => Arc::new(Memory::new()),
        StoreKind::Fjall => {
            let directory = data.join("store");
            std::fs::create_dir_all(data).map_err(|error| berth_store::Error::Broken {
                act: "make the data directory",
                why: format!("{}: {error}", data.display()),
            })?;
            let opened = tokio::task::spawn_blocking(move || Embedded::open(&directory)).await;
            Arc::new(opened.map_err(|error| broken(error.to_string()))??)
        }
        StoreKind::Etcd(endpoints) => {
            let endpoints = endpoints
                .iter()
                .map(|endpoint| Endpoint::from_shared(endpoint.clone()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| broken(error.to_string()))?;
            let channel = tonic::transport::Channel::balance_list(endpoints.into_iter());
            Arc::new(Etcd::new(channel))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_one_of_three() {
        for (text, kind) in [
            ("fjall", Some(StoreKind::Fjall)),
            ("memory", Some(StoreKind::Memory)),
            (
                "etcd=http://a:2379,http://b:2379",
                Some(StoreKind::Etcd(vec![
                    "http://a:2379".into(),
                    "http://b:2379".into(),
                ])),
            ),
            ("etcd=", None),
            ("sqlite", None),
        ] {
            assert_eq!(text.parse::<StoreKind>().ok(), kind, "{text}");
        }
        assert_eq!(
            "10.96.0.0/16".parse(),
            Ok(Network(Ipv4Addr::new(10, 96, 0, 0), 16))
        );
        assert!("10.96.0.0".parse::<Network>().is_err());
    }
}
