//! `berth up`: the cluster, of which the API server is there.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::Arc,
};

use berth_apiserver::{Config, Server};
use berth_store::{Embedded, Etcd, Memory, Store};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::error::Error;

/// Serve the API of a cluster
#[derive(Debug, Args)]
pub struct Up {
    /// Run the API server (the one part that there is)
    #[arg(long, required = true)]
    server: bool,
    /// Where certificates, keys, the audit log and the store are kept (0700)
    #[arg(long, value_name = "DIR", default_value = "/var/lib/berth/cluster")]
    data: PathBuf,
    /// Where HTTPS is served; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where the admin's kubeconfig is written (0600); DIR/admin.kubeconfig by default
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where objects are kept: fjall (embedded, in DIR/store), memory (gone at the end), etcd=ENDPOINTS
    #[arg(long, value_name = "KIND", default_value = "fjall")]
    store: StoreKind,
    /// The addresses of Services
    #[arg(long, value_name = "NETWORK/PREFIX", default_value = "10.96.0.0/16")]
    service_cidr: Network,
    /// Where etcd's API is served, read only, for etcdctl: a loopback address; DIR/pki/etcd-client.crt and .key are for it
    #[arg(long, value_name = "ADDR:PORT")]
    etcd_listen: Option<SocketAddr>,
    /// A further name or address by which the server is reached (may be given several times)
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Admission plug-ins beside those that are always on. TaintNodesByCondition: nodes take no pods before they have said that they are ready, and before
    /// a controller has seen it (`berth controllers`)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    enable_admission_plugins: Vec<Plugin>,
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
    pub fn run(self) -> Result<ExitCode, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Invalid {
                what: "cannot start threads".into(),
                why: source.to_string(),
            })?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> Result<ExitCode, Error> {
        super::log();
        let failed = |why: String| Error::Invalid {
            what: "the API server".into(),
            why,
        };
        let store = open(&self.store, &self.data)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let kubeconfig = self
            .kubeconfig
            .unwrap_or_else(|| self.data.join("admin.kubeconfig"));
        let server = Server::start(Config {
            data: self.data,
            listen: self.listen,
            kubeconfig: kubeconfig.clone(),
            store,
            services: (self.service_cidr.0, self.service_cidr.1),
            etcd_listen: self.etcd_listen,
            names: self.names,
            taints_new_nodes: self
                .enable_admission_plugins
                .contains(&Plugin::TaintNodesByCondition),
        })
        .await
        .map_err(|error| failed(error.to_string()))?;
        let ends = CancellationToken::new();
        let mut signals = Vec::new();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            signals.push(signal(kind).map_err(|error| failed(error.to_string()))?);
        }
        for mut signal in signals {
            let ends = ends.clone();
            tokio::spawn(async move {
                signal.recv().await;
                ends.cancel();
            });
        }
        println!("https://{}", server.address());
        tracing::info!(address = %server.address(), kubeconfig = %kubeconfig.display(), "the API server serves");
        server
            .run(ends)
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(ExitCode::SUCCESS)
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
