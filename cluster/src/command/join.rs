//! `berth join`: this machine becomes a node of a cluster.

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgGroup, Args};
use k8s_openapi::ByteString;
use serde_json::json;
use tokio::task::JoinSet;

use super::up::{DATA, NODES, OfNode, PROGRAM, joined};
use crate::{
    error::Error,
    host::{
        self, failed,
        node::{Joins, Node},
        pin,
        program::Program,
    },
    node::Address,
};

/// Make this machine a node of a cluster
///
/// `berth token create`, where the cluster is, prints the whole command. The token is shown the first time; what the node is known by from then on (a certificate) it renews
/// itself. The node's runtime is the one at --endpoint; where none answers there, a berthd is started. Ending this command ends no pod.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("ca").required(true).args(["ca_cert_hash", "ca_file"]))]
pub struct Join {
    /// The API server: https://HOST:PORT
    #[arg(value_name = "URL")]
    server: String,
    /// What the machine shows the first time
    #[arg(
        long,
        value_name = "ID.SECRET",
        env = "BERTH_TOKEN",
        hide_env_values = true
    )]
    token: String,
    /// By what the server is known: sha256:HEX of its CA's public key
    #[arg(long, value_name = "HASH")]
    ca_cert_hash: Option<String>,
    /// … or the CA itself (PEM)
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Where what is known of the node is kept (0700)
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    #[command(flatten)]
    node: OfNode,
}

impl Join {
    pub async fn run(self, endpoint: &Address) -> Result<ExitCode, Error> {
        super::serve();
        let ends = super::ended()?;
        host::make_dir(&self.data)?;
        let own = Program::this(PROGRAM, &self.data);
        own.claim()?;
        let joined = self.join(endpoint, &ends).await;
        own.release();
        joined.map(|()| ExitCode::SUCCESS)
    }

    async fn join(
        &self,
        endpoint: &Address,
        ends: &tokio_util::sync::CancellationToken,
    ) -> Result<(), Error> {
        let joins = Joins {
            cluster: self.cluster().await?,
            token: self.token.clone(),
        };
        let node = Node::plan(&self.data.join(NODES), self.node.wish(endpoint)).await?;
        let mut tasks = JoinSet::new();
        let mut result = node.begin(&joins, &mut tasks, ends).await;
        tracing::info!(
            node = node.record.name,
            server = self.server,
            "the node joins"
        );
        while let Some(ended) = tasks.join_next().await {
            result = result.and(joined(ended));
            ends.cancel();
        }
        result
    }

    /// As a kubeconfig has it.
    async fn cluster(&self) -> Result<serde_json::Value, Error> {
        let address = self
            .server
            .strip_prefix("https://")
            .map(|it| it.trim_end_matches('/'));
        let address = address.ok_or_else(|| {
            failed(
                format!("cannot join {}", self.server),
                "it is https://HOST:PORT",
            )
        })?;
        let pem = match (&self.ca_file, &self.ca_cert_hash) {
            (Some(path), _) => std::fs::read(path).map_err(host::file("read", path))?,
            (None, hash) => {
                let wanted = hash.as_deref().unwrap_or_default().to_lowercase();
                pem(&pin::fetch(address, &wanted).await?).into_bytes()
            }
        };
        Ok(json!({"server": self.server, "certificate-authority-data": ByteString(pem)}))
    }
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = serde_json::to_value(ByteString(der.to_vec()));
    let text = text.unwrap_or_default();
    let text = text.as_str().unwrap_or_default();
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
