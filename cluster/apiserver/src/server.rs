//! A server from its start to its end.

use std::{
    fs, io,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_auth::{MASTERS, NodeAuthorizer, Pki, Rbac, Tokens, Union, User, pki::ServerNames};
use berth_store::Store;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{policies::Policies, quota::Quotas, webhooks::Calls},
    api::Api,
    audit::Audit,
    cache::Cache,
    catalog::Served,
    cipher::{Cipher, CipherError},
    controllers::{self, Controllers},
    failure::Failure,
    figures::Figures,
    passage::{Aggregation, Passages},
    router::{InProcess, Router},
    serve,
    service_ip::ServiceIps,
    storage::Storage,
};

/// The objects must be loaded within it.
const LOADED_WITHIN: Duration = Duration::from_secs(120);
/// How long an Event is kept (upstream's --event-ttl).
const EVENT_TTL: Duration = Duration::from_secs(3600);
/// The store forgets what is older: between one and two of these.
const COMPACT: Duration = Duration::from_secs(300);
/// Between two looks at the certificates.
const RENEW: Duration = Duration::from_secs(3600);
/// Of the admin's certificate; it is made anew at each start.
const ADMIN_VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// Upstream's default, and kubeadm's.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

#[derive(Debug)]
pub struct Config {
    /// Its own directory (0700): certificates, the key of Secrets, the audit log.
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// Where the admin's kubeconfig is written (0600).
    pub kubeconfig: PathBuf,
    pub store: Arc<dyn Store>,
    /// The addresses of Services: network and length of its prefix.
    pub services: (Ipv4Addr, u8),
    /// Where etcd's API is served, read only (loopback, mutual TLS); for that, `pki/etcd-client.crt` and `.key` are written.
    pub etcd_listen: Option<SocketAddr>,
    /// Further names and addresses by which the server is reached.
    pub names: Vec<String>,
    /// The admission plug-in TaintNodesByCondition.
    pub taints_new_nodes: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {act} {path}: {source}")]
    File {
        act: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "etcd's API is not served on {0}: it is for this machine, so the address must be a loopback one"
    )]
    NotLoopback(SocketAddr),
    #[error(transparent)]
    Auth(#[from] berth_auth::Error),
    #[error(transparent)]
    Cipher(#[from] CipherError),
    #[error("the objects could not be loaded from the store within {} s", .0.as_secs())]
    NotLoaded(Duration),
    #[error("the objects that a cluster starts with can't be made: {0}")]
    FirstObjects(Failure),
    #[error("the range of Service addresses {0}/{1} is no network of 4 to 65,536 addresses")]
    Services(Ipv4Addr, u8),
}

#[derive(Debug)]
pub struct Server {
    api: Arc<Api>,
    router: Router,
    listener: TcpListener,
    tasks: JoinSet<()>,
}

impl Server {
    /// Ready when it returns, but for serving: [`Server::run`].
    ///
    /// # Errors
    /// What could not be opened, made or loaded.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let (network, prefix) = config.services;
        let whole = (16..=30).contains(&prefix)
            && network.to_bits().trailing_zeros() >= 32 - u32::from(prefix);
        if !whole {
            return Err(Error::Services(network, prefix));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.data)
            .map_err(|source| file("make", &config.data, source))?;
        let listener = TcpListener::bind(config.listen)
            .await
            .and_then(|listener| Ok((listener.local_addr()?, listener)))
            .map_err(|source| Error::Listen {
                address: config.listen,
                source,
            })?;
        let (address, listener) = listener;
        let service_ips = ServiceIps::new(network, prefix);
        let names = server_names(&config, address, service_ips.first());
        let pki = Arc::new(Pki::open(&config.data.join("pki"), &names)?);
        let tokens = Arc::new(Tokens::new(
            pki.token_key(),
            ISSUER.into(),
            vec![ISSUER.into()],
        )?);
        let cipher = Arc::new(Cipher::open(&config.data.join("secrets.key"))?);
        let audit_path = config.data.join("audit.log");
        let audit = Audit::open(&audit_path)
            .map_err(|source| file("open the audit log", &audit_path, source))?;
        let (rbac, nodes) = (Arc::new(Rbac::new()), Arc::new(NodeAuthorizer::new()));
        let served = Arc::new(Served::new());
        let cache = Arc::new(Cache::new(
            config.store.clone(),
            served.clone(),
            Some(cipher.clone()),
        ));
        let api = Arc::new(Api {
            served,
            cache: cache.clone(),
            storage: Storage::new(config.store.clone(), Some(cipher), EVENT_TTL),
            authorizer: Arc::new(Union(vec![nodes.clone(), rbac.clone()])),
            rbac,
            nodes,
            tokens,
            pki,
            service_ips,
            passages: Passages::default(),
            aggregation: Aggregation::default(),
            quotas: Quotas::default(),
            webhooks: Calls::default(),
            policies: Policies::default(),
            taints_new_nodes: config.taints_new_nodes,
            metrics: crate::metrics::Metrics::default(),
            figures: Figures::default(),
            ends: CancellationToken::new(),
            address,
        });
        let mut tasks = JoinSet::new();
        let controllers = Controllers::observe(&api);
        tasks.spawn(cache.clone().run());
        timeout(LOADED_WITHIN, cache.reach_first())
            .await
            .map_err(|_| Error::NotLoaded(LOADED_WITHIN))?;
        api.service_ips.learn(&api);
        controllers::make_first_objects(&api, address)
            .await
            .map_err(Error::FirstObjects)?;
        controllers.run(&api, &mut tasks);
        tasks.spawn(compact(config.store.clone()));
        tasks.spawn(renew(api.pki.clone()));
        tasks.spawn(Figures::run(api.clone()));
        if let Some(listen) = config.etcd_listen {
            serve_etcd(&api.pki, config.store.clone(), listen, &mut tasks).await?;
        }
        write_kubeconfig(&api.pki, address, &config.kubeconfig)?;
        let router = Router::new(api.clone(), Some(audit));
        Ok(Self {
            api,
            router,
            listener,
            tasks,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.api.address
    }

    /// The same server, in this process, on behalf of `user`.
    pub fn in_process(&self, user: User) -> InProcess {
        InProcess::new(self.router.clone(), user)
    }

    /// Serves until `ends`, and then what is under way to its end.
    ///
    /// # Errors
    /// TLS can't be configured.
    pub async fn run(mut self, ends: CancellationToken) -> Result<(), Error> {
        let api = self.api.clone();
        let watches = ends.clone();
        self.tasks.spawn(async move {
            watches.cancelled().await;
            api.ends.cancel();
        });
        let served = serve::serve(self.listener, self.api.pki.clone(), self.router, ends).await;
        self.tasks.shutdown().await;
        Ok(served?)
    }
}

fn file(act: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        act,
        path: path.display().to_string(),
        source,
    }
}

fn server_names(config: &Config, address: SocketAddr, service: Ipv4Addr) -> ServerNames {
    let mut names = ServerNames {
        dns: [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(Into::into)
        .to_vec(),
        addresses: vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            IpAddr::V4(service),
        ],
    };
    if !address.ip().is_unspecified() && !names.addresses.contains(&address.ip()) {
        names.addresses.push(address.ip());
    }
    for name in &config.names {
        match name.parse() {
            Ok(address) => names.addresses.push(address),
            Err(_) => names.dns.push(name.clone()),
        }
    }
    names
}

fn write_kubeconfig(pki: &Pki, address: SocketAddr, path: &Path) -> Result<(), Error> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let identity = pki.issue_client("kubernetes-admin", &[MASTERS], ADMIN_VALID)?;
    let mut reached = address;
    if address.ip().is_unspecified() {
        reached.set_ip(if address.is_ipv4() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
        });
    }
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: berth\n  cluster:\n    server: https://{reached}\n    certificate-authority-data: {}\ncontexts:\n- name: berth\n  context:\n    cluster: berth\n    user: kubernetes-admin\ncurrent-context: berth\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        BASE64_STANDARD.encode(pki.ca_pem()),
        BASE64_STANDARD.encode(identity.certificate_pem),
        BASE64_STANDARD.encode(identity.key_pem),
    );
    // Aside and renamed: a client never reads half of it, nor anyone else any of it.
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let _ = fs::remove_file(&aside);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut out| {
            out.write_all(text.as_bytes())?;
            out.sync_all()
        })
        .and_then(|()| fs::rename(&aside, path));
    written.map_err(|source| file("write the kubeconfig", path, source))
}

/// So that etcdctl shows what is kept. Its clients must be of those who may everything anyway.
async fn serve_etcd(
    pki: &Pki,
    store: Arc<dyn Store>,
    listen: SocketAddr,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    if !listen.ip().is_loopback() {
        return Err(Error::NotLoopback(listen));
    }
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| Error::Listen {
            address: listen,
            source,
        })?;
    pki.write_client("etcd-client", &[MASTERS], ADMIN_VALID)?;
    let config = pki.mutual_config()?;
    tracing::info!(address = %listen, "etcd's API is served, read only");
    tasks.spawn(berth_store::facade::serve(
        store,
        listener,
        config,
        |certificate| {
            berth_auth::x509::user(certificate)
                .is_ok_and(|user| user.groups.iter().any(|group| group == MASTERS))
        },
    ));
    Ok(())
}

async fn compact(store: Arc<dyn Store>) {
    let mut before = 0;
    loop {
        tokio::time::sleep(COMPACT).await;
        if before > 0
            && let Err(error) = store.compact(before).await
        {
            tracing::debug!(%error, "the store is not compacted now");
        }
        match store.revision().await {
            Ok(revision) => before = revision,
            Err(error) => tracing::warn!(%error, "the store's revision is not known"),
        }
    }
}

async fn renew(pki: Arc<Pki>) {
    loop {
        tokio::time::sleep(RENEW).await;
        match pki.renew() {
            Ok(true) => tracing::info!("the server's certificate is renewed"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the server's certificate can't be renewed"),
        }
    }
}
