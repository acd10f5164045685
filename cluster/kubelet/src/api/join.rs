//! How a node comes to a certificate of its own: by a bootstrap kubeconfig (a token, say) the first time, by itself from then on.
//!
//! ```text
//! --bootstrap-kubeconfig ── CSR ─▶ CERT_DIR/kubelet-client-current.pem (0600) ◀── CSR, at 70 to 90 % of its life ── the node itself
//!                                   ▲
//!             --kubeconfig is written: it names that file
//! ```

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use kube::{Client, client::Body, config::Kubeconfig};
use serde_json::json;
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    Cluster,
    csr::{self, Purpose},
};
use crate::{Error, store};

/// In the directory of certificates: certificate and key.
const CURRENT: &str = "kubelet-client-current.pem";
/// Between two tries at a certificate: the first, and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// A clock that jumps is noticed within this.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Renewed at a part of its life between these, by chance: not all nodes at once.
const RENEW_FROM: i64 = 70;
const RENEW_TO: i64 = 90;

/// A node's certificate and how it is renewed.
#[derive(Debug)]
pub struct Joining {
    /// By what the first certificate is asked for, and one in place of one that has expired.
    pub bootstrap: PathBuf,
    /// Written once there is a certificate.
    pub kubeconfig: PathBuf,
    pub cert_dir: PathBuf,
    pub node: String,
}

/// Renews a node's certificate while it runs.
pub struct Renewal {
    joining: Joining,
    cluster: Cluster,
    now: Arc<RwLock<Client>>,
}

impl Joining {
    /// A cluster in which this node is itself, and what renews that; waits until somebody has approved the first certificate.
    ///
    /// # Errors
    /// A kubeconfig can't be used, or what is to be kept can't be.
    pub async fn join(self) -> Result<(Cluster, Renewal), Error> {
        let mut wait = AGAIN;
        if let Some((_, until)) = self.validity().filter(|_| !self.is_good()) {
            let (file, until) = (self.current(), Timestamp::from_second(until));
            tracing::warn!(
                file = %file.display(),
                "the node's certificate ended at {}: the node joins anew",
                until.unwrap_or_default()
            );
        }
        while !self.is_good() {
            let cluster = Cluster::of_kubeconfig(&self.bootstrap, &self.node).await?;
            match self.renew(&cluster.client).await {
                Ok(true) => {}
                told => {
                    match told {
                        Err(Refusal::Kept(error)) => return Err(error),
                        Err(Refusal::Asked(why)) => tracing::warn!(
                            "the node has no certificate of the cluster yet: {}",
                            self.in_words(&why)
                        ),
                        Ok(_) => tracing::warn!(
                            "nobody has approved the node's certificate (kubectl certificate approve): it is asked for again"
                        ),
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AGAIN_MOST);
                }
            }
        }
        self.write_kubeconfig()?;
        let (client, mut cluster) = self.as_node().await?;
        let now = Arc::new(RwLock::new(client));
        cluster.client = renewing(now.clone());
        let renewal = Renewal {
            joining: self,
            cluster: cluster.clone(),
            now,
        };
        Ok((cluster, renewal))
    }

    fn current(&self) -> PathBuf {
        self.cert_dir.join(CURRENT)
    }

    /// From when to when the node's certificate holds; none: there is none of this node.
    fn validity(&self) -> Option<(i64, i64)> {
        let pem = std::fs::read(self.current()).ok()?;
        let leaf = CertificateDer::from_pem_slice(&pem).ok()?;
        let is_own = berth_auth::pki::is_of_node(&leaf, &self.node);
        berth_auth::x509::validity(&leaf).filter(|_| is_own)
    }

    fn is_good(&self) -> bool {
        let now = Timestamp::now().as_second();
        self.validity().is_some_and(|(_, until)| now < until)
    }

    /// Asks for a certificate and keeps it; whether somebody has decided about it.
    async fn renew(&self, client: &Client) -> Result<bool, Refusal> {
        let asked = csr::ask(client, &self.node, Purpose::Client, Vec::new()).await;
        let Some(pem) = asked.map_err(Refusal::Asked)? else {
            return Ok(false);
        };
        store::make_dir(&self.cert_dir).map_err(Refusal::Kept)?;
        let file = self.current();
        store::replace(&file, &pem)
            .map_err(Error::file("write", &file))
            .map_err(Refusal::Kept)?;
        tracing::info!(file = %file.display(), "the cluster has signed a certificate for the node");
        Ok(true)
    }

    /// The bootstrap's server, and this node as its user.
    fn write_kubeconfig(&self) -> Result<(), Error> {
        let failed = |path: &Path, why: String| Error::Kubeconfig {
            path: path.to_owned(),
            why,
        };
        let read = Kubeconfig::read_from(&self.bootstrap)
            .map_err(|error| failed(&self.bootstrap, error.to_string()))?;
        let context = read.current_context.clone().unwrap_or_default();
        let context = read.contexts.iter().find(|it| it.name == context);
        let name = context
            .and_then(|it| it.context.as_ref())
            .map(|it| &it.cluster);
        let cluster = read.clusters.iter().find(|it| Some(&it.name) == name);
        let cluster = cluster
            .and_then(|it| it.cluster.as_ref())
            .ok_or_else(|| failed(&self.bootstrap, "its current context has no cluster".into()))?;
        let file = self.current();
        // JSON is YAML
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default-cluster", "cluster": cluster}],
            "users": [{"name": "default-auth", "user": {
                "client-certificate": file,
                "client-key": file,
            }}],
            "contexts": [{"name": "default-context", "context": {
                "cluster": "default-cluster", "user": "default-auth", "namespace": "default",
            }}],
            "current-context": "default-context",
        });
        if let Some(dir) = self.kubeconfig.parent() {
            store::make_dir(dir)?;
        }
        store::replace(&self.kubeconfig, config.to_string().as_bytes())
            .map_err(Error::file("write", &self.kubeconfig))
    }

    /// Why the bootstrap brings no certificate, and what to do where it is not taken.
    fn in_words(&self, why: &str) -> String {
        format!(
            "{why}. If {} is not taken any more, put a new token into it (berth token create, kubeadm token create)",
            self.bootstrap.display()
        )
    }

    /// A client by the certificate that is kept now, with connections of its own.
    async fn as_node(&self) -> Result<(Client, Cluster), Error> {
        let cluster = Cluster::of_kubeconfig(&self.kubeconfig, &self.node).await?;
        Ok((cluster.client.clone(), cluster))
    }
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal")
            .field("joining", &self.joining)
            .finish_non_exhaustive()
    }
}

/// Why there is no new certificate.
enum Refusal {
    Asked(String),
    Kept(Error),
}

/// Each request by the client that is the newest then. What goes on over the old one's connections ends with them.
fn renewing(now: Arc<RwLock<Client>>) -> Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let client = now.read().unwrap_or_else(PoisonError::into_inner).clone();
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

impl Renewal {
    /// Renews until it is dropped.
    pub async fn run(self) {
        let mut wait = AGAIN;
        let mut part = chance();
        loop {
            let now = Timestamp::now().as_second();
            let due = self.joining.validity().map(|it| renew_at(it, part));
            if due.is_some_and(|due| now < due) {
                tokio::time::sleep(pause(due.unwrap_or(now) - now)).await;
                continue;
            }
            match self.once().await {
                Ok(()) => {
                    (wait, part) = (AGAIN, chance());
                    // also where a clock that is wrong has each new one be old
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(why) => {
                    tracing::warn!(why, "the node's certificate is not renewed");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AGAIN_MOST);
                }
            }
        }
    }

    async fn once(&self) -> Result<(), String> {
        // who has expired is nobody any more
        let renewed = match self.joining.is_good() {
            true => self.joining.renew(&self.cluster.client).await,
            false => {
                let bootstrap = Cluster::of_kubeconfig(&self.joining.bootstrap, &self.joining.node);
                let bootstrap = bootstrap.await.map_err(|error| error.to_string())?;
                let renewed = self.joining.renew(&bootstrap.client).await;
                renewed.map_err(|refusal| match refusal {
                    Refusal::Asked(why) => Refusal::Asked(self.joining.in_words(&why)),
                    kept @ Refusal::Kept(_) => kept,
                })
            }
        };
        match renewed {
            Ok(true) => {}
            Ok(false) => return Err("nobody has approved it".into()),
            Err(Refusal::Asked(why)) => return Err(why),
            Err(Refusal::Kept(error)) => return Err(error.to_string()),
        }
        let (client, _) = self
            .joining
            .as_node()
            .await
            .map_err(|error| error.to_string())?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }
}

fn pause(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(1).unsigned_abs()).min(LOOK_EVERY)
}

/// A part of a life at which it is renewed, in percent.
fn chance() -> i64 {
    let random = i64::from(Timestamp::now().subsec_nanosecond());
    RENEW_FROM + random % (RENEW_TO - RENEW_FROM + 1)
}

fn renew_at((from, until): (i64, i64), percent: i64) -> i64 {
    from + (until - from).max(0) * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        for _ in 0..100 {
            let at = renew_at((1000, 2000), chance());
            assert!((1700..=1900).contains(&at), "{at}");
        }
        assert_eq!(pause(0), Duration::from_secs(1));
        assert_eq!(pause(30), Duration::from_secs(30));
        assert_eq!(pause(i64::MAX), LOOK_EVERY);
    }
}
