//! `berth join`: this machine becomes a node of a cluster.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{ArgGroup, Args};
use http::{StatusCode, Uri};
use k8s_openapi::{ByteString, api::authentication::v1::SelfSubjectReview};
use kube::{Api, api::PostParams, config::Kubeconfig};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::up::{self, DATA, NODES, OfNode, PROGRAM, READY, joined};
use crate::{
    error::Error,
    host::{
        self, failed,
        node::{BOOTSTRAP, Joins, KUBECONFIG, Node},
        pin,
        program::Program,
    },
    node::Address,
};

/// How often it is looked whether the node is ready.
const LOOK: Duration = Duration::from_millis(100);
/// A token that was made a moment ago may not be known to every part of the server.
const TAKEN: Duration = Duration::from_secs(3);
const UNAUTHORIZED: u16 = StatusCode::UNAUTHORIZED.as_u16();

/// Make this machine a node of a cluster
///
/// `berth token create`, where the cluster is, prints the whole command. The token is shown the first time; what the node is known by from then on (a certificate) it renews
/// itself, also when it is started again with the server away. The node's runtime is the one at --endpoint; where none answers there, a berthd is started. Ending this command ends no pod.
///
/// Standard output has a line once the node is ready.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("ca").required(true).args(["ca_cert_hash", "ca_file"]))]
pub struct Join {
    /// The API server: https://HOST:PORT
    #[arg(value_name = "URL", value_parser = server)]
    server: String,
    /// What the machine shows the first time
    #[arg(
        long,
        value_name = "ID.SECRET",
        env = "BERTH_TOKEN",
        hide_env_values = true,
        value_parser = token
    )]
    token: String,
    /// By what the server is known: sha256:HEX of its CA's public key
    #[arg(long, value_name = "HASH", value_parser = hash)]
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

    async fn join(&self, endpoint: &Address, ends: &CancellationToken) -> Result<(), Error> {
        let begun = Instant::now();
        let wish = self.node.wish(endpoint);
        wish.check()?;
        let nodes = self.data.join(NODES);
        let dir = nodes.join(&wish.name);
        // one that is known needs no token, and no server to begin: its pods are to come back after a reboot
        let is_known = dir.join(KUBECONFIG).exists();
        let joins = tokio::select! {
            joins = self.joins(is_known.then_some(dir.as_path())) => joins?,
            () = ends.cancelled() => return Ok(()),
        };
        let node = Node::plan(&nodes, wish).await?;
        let mut tasks = JoinSet::new();
        let mut result = node.begin(&joins, &mut tasks, ends).await;
        tracing::info!(
            node = node.record.name,
            server = self.server,
            "the node joins"
        );
        let stops = ends.clone();
        tokio::spawn(async move { tell_ready(&node, begun, &stops).await });
        while let Some(ended) = tasks.join_next().await {
            result = result.and(joined(ended));
            ends.cancel();
        }
        result
    }

    /// The server is asked what it is and whether it takes the token, unless the node in `known` has joined before.
    async fn joins(&self, known: Option<&Path>) -> Result<Joins, Error> {
        let joins = Joins {
            cluster: self.cluster(known).await?,
            token: self.token.clone(),
        };
        if known.is_none() {
            self.check_token(&joins).await?;
        }
        Ok(joins)
    }

    /// As a kubeconfig has it.
    async fn cluster(&self, known: Option<&Path>) -> Result<Value, Error> {
        let pem = match (&self.ca_file, &self.ca_cert_hash) {
            (Some(path), _) => std::fs::read(path).map_err(host::file("read", path))?,
            (None, hash) => {
                let wanted = hash.as_deref().unwrap_or_default();
                match known.and_then(|dir| known_ca(dir, wanted)) {
                    Some(pem) => pem,
                    None => pem(&pin::fetch(address(&self.server), wanted).await?).into_bytes(),
                }
            }
        };
        Ok(json!({"server": self.server, "certificate-authority-data": ByteString(pem)}))
    }

    /// A kubelet with a token that nobody takes would try for ever, and tell its log alone.
    async fn check_token(&self, joins: &Joins) -> Result<(), Error> {
        let what = format!("cannot join {}", self.server);
        let read: Kubeconfig = serde_json::from_value(joins.kubeconfig())
            .map_err(|error| failed(what.as_str(), error))?;
        let client = super::client_by(read, what.clone(), |_| ()).await?;
        let asked = Api::<SelfSubjectReview>::all(client);
        let begun = Instant::now();
        let who = loop {
            let who = asked
                .create(&PostParams::default(), &SelfSubjectReview::default())
                .await;
            match &who {
                Err(kube::Error::Api(said))
                    if said.code == UNAUTHORIZED && begun.elapsed() < TAKEN => {}
                _ => break who,
            }
            sleep(LOOK).await;
        };
        match who {
            Err(kube::Error::Api(said)) if said.code == UNAUTHORIZED => Err(failed(
                what,
                "it does not take the token: it has expired, was deleted, or is another cluster's; `berth token create` at the cluster prints a new one",
            )),
            // it knows who asks: what they may is the kubelet's to find out
            Ok(_) | Err(kube::Error::Api(_)) => Ok(()),
            Err(error) => Err(failed(what, super::reasons(&error))),
        }
    }
}

/// `https://HOST:PORT`.
fn server(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    let parsed = text.parse::<Uri>().ok();
    let fits = parsed.is_some_and(|uri| {
        uri.scheme_str() == Some("https") && uri.port_u16().is_some() && uri.path() == "/"
    });
    match fits {
        true => Ok(text.to_owned()),
        false => Err("it is https://HOST:PORT".into()),
    }
}

/// HOST:PORT of what [`server`] has taken.
fn address(server: &str) -> &str {
    server.strip_prefix("https://").unwrap_or(server)
}

fn token(text: &str) -> Result<String, String> {
    let is = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    match text.split_once('.') {
        Some((id, secret)) if is(id, 6) && is(secret, 16) => Ok(text.to_owned()),
        _ => Err(
            "it is 6 and 16 lower case letters or digits with a point between, as `berth token create` prints it"
                .into(),
        ),
    }
}

fn hash(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(text)
        }
        _ => {
            Err("it is sha256: and 64 hexadecimal digits, as `berth token create` prints it".into())
        }
    }
}

/// The CA (PEM) that the node in `dir` knows its cluster by, if it is the one with this hash.
fn known_ca(dir: &Path, wanted: &str) -> Option<Vec<u8>> {
    let cluster = up::cluster_of(&dir.join(BOOTSTRAP)).ok()?;
    let data = cluster.get("certificate-authority-data")?.clone();
    let pem = serde_json::from_value::<ByteString>(data).ok()?.0;
    (pin::hash_of_pem(&pem).ok()? == wanted).then_some(pem)
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

async fn tell_ready(node: &Node, begun: Instant, ends: &CancellationToken) {
    let name = &node.record.name;
    while !ends.is_cancelled() {
        let why = match super::client(&node.kubeconfig()).await {
            Ok(client) => up::not_ready(&Api::all(client), name).await,
            Err(_) if !node.kubeconfig().exists() => {
                Some("the cluster has not signed its certificate".to_owned())
            }
            Err(error) => Some(error.to_string()),
        };
        match why {
            None => return up::say_ready(name, begun),
            Some(why) if begun.elapsed() > READY => return up::tell_late(name, &why),
            Some(_) => sleep(LOOK).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_auth::pki::{Pki, ServerNames};

    use super::*;

    #[test]
    fn what_is_no_server_no_token_and_no_hash_is_told_before_anything_is_tried() {
        for (text, is) in [
            ("https://10.0.0.1:6443", true),
            ("https://a.example:443/", true),
            ("https://[fd00::1]:6443", true),
            ("https://10.0.0.1", false),
            ("http://10.0.0.1:6443", false),
            ("https://10.0.0.1:6443/api", false),
            ("10.0.0.1:6443", false),
            ("", false),
        ] {
            assert_eq!(server(text).is_ok(), is, "{text}");
        }
        assert_eq!(address(&server("https://a:1/").unwrap()), "a:1");
        for (text, is) in [
            ("abcdef.0123456789abcdef", true),
            ("abcdef.0123456789abcde", false),
            ("ABCDEF.0123456789abcdef", false),
            ("foo", false),
        ] {
            assert_eq!(token(text).is_ok(), is, "{text}");
        }
        let hex = "0123456789abcdef".repeat(4);
        for (text, is) in [
            (format!("sha256:{hex}"), true),
            (format!("SHA256:{}", hex.to_uppercase()), true),
            (hex.clone(), false),
            ("sha256:00".into(), false),
        ] {
            assert_eq!(super::hash(&text).is_ok(), is, "{text}");
        }
    }

    #[test]
    fn a_known_ca_is_that_of_the_hash_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames {
            dns: Vec::new(),
            addresses: Vec::new(),
        };
        Pki::open(&dir.path().join("pki"), &names).unwrap();
        let ca = std::fs::read(dir.path().join("pki/ca.crt")).unwrap();
        let cluster =
            json!({"server": "https://a:1", "certificate-authority-data": ByteString(ca.clone())});
        let joins = Joins {
            cluster,
            token: String::new(),
        };
        std::fs::write(dir.path().join(BOOTSTRAP), joins.kubeconfig().to_string()).unwrap();
        let own = pin::hash_of_pem(&ca).unwrap();
        assert_eq!(known_ca(dir.path(), &own), Some(ca));
        let other = format!("sha256:{}", "0".repeat(64));
        assert_eq!(known_ca(dir.path(), &other), None);
        assert_eq!(known_ca(&dir.path().join("nowhere"), &own), None);
    }
}
