//! The cluster that the node is in: an API server, ours or any other, over `kube`.
//!
//! ```text
//!            ┌─ source ───▶ pods that should be here, and mirrors of static ones
//! API server ┼─ services ─▶ variables of pods
//!            ├─ fetch ────▶ ConfigMaps, Secrets, tokens that those pods name (into [`crate::Objects`])
//!            ◀─ statuses ── what is told of pods; the end of those that were deleted
//!            ◀─ mirrors ─── static pods, for people to see
//!            ◀─ register ── the Node, its status and its lease
//!            ◀─ recorder ── events
//! ```
//!
//! Invariant: nothing here ends a pod for want of a server. What is not known is not gone.

mod claims;
pub(crate) mod csr;
pub(crate) mod fetch;
mod join;
mod mirrors;
mod node_object;
mod own;
mod recorder;
mod register;
pub(crate) mod services;
mod source;
mod statuses;

use std::{future::Future, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderValue, header};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{Error, USER_AGENT};

pub use join::{Joining, Renewal};
pub use mirrors::Mirrors;
pub use own::OwnNode;
pub(crate) use own::Seen;
pub use recorder::Recorder;
pub use register::{Register, Taint};
pub use source::{Known, Source};
pub use statuses::Statuses;

/// The source of pods that came from a server.
pub const API: &str = "api";

/// A static pod's hash, on its mirror.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// One request, but for watches.
const CALL: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);

/// An API server, and who this node is to it. Cloned, it shares its connections.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) client: Client,
    pub(crate) node: String,
    /// The certificates (DER) of the server's CA: by the same one are clients of the kubelet known, where no other is named.
    pub(crate) ca: Vec<Vec<u8>>,
    server: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("server", &self.server)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// By a kubeconfig's current context. Asks the server nothing yet.
    ///
    /// # Errors
    /// The file can't be read, or has what can't be used.
    pub async fn of_kubeconfig(path: &Path, node: &str) -> Result<Self, Error> {
        let failed = |why: String| Error::Kubeconfig {
            path: path.to_owned(),
            why,
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| failed(error.to_string()))?;
        config.connect_timeout = Some(CONNECT);
        // by it the server names who wrote what (managedFields)
        let agent = HeaderValue::from_static(USER_AGENT);
        config.headers.push((header::USER_AGENT, agent));
        if let Some(until) = ended(&config.auth_info) {
            tracing::error!(
                "the client certificate of {} ended at {until}: no API server knows the node by it. Have a new one signed (for {}{node} of the group {}), or let the \
                 node join by a token: --bootstrap-kubeconfig",
                path.display(),
                berth_auth::NODE_PREFIX,
                berth_auth::NODES
            );
        }
        let (ca, server) = (
            config.root_cert.clone().unwrap_or_default(),
            config.cluster_url.to_string(),
        );
        let client = Client::try_from(config).map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            client,
            node: node.to_owned(),
            ca,
            server,
        })
    }

    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// When the certificate has ended by which a kubeconfig's user is known; none: it goes on, or there is none that can be read.
fn ended(user: &AuthInfo) -> Option<Timestamp> {
    let pem = match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => BASE64.decode(data).ok()?,
        (None, Some(path)) => std::fs::read(path).ok()?,
        (None, None) => return None,
    };
    let leaf = CertificateDer::from_pem_slice(&pem).ok()?;
    let (_, until) = berth_auth::x509::validity(&leaf)?;
    let until = Timestamp::from_second(until).ok()?;
    (until <= Timestamp::now()).then_some(until)
}

/// How a request went that has not succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    NotFound,
    Conflict,
    /// What the server said; asking again as it is will not help, or not soon.
    Refused(String),
    /// No answer, or one that is no answer to this.
    Unreached(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound => f.write_str("it is not there"),
            Self::Conflict => f.write_str("it is another one, or has changed meanwhile"),
            Self::Refused(why) | Self::Unreached(why) => f.write_str(why),
        }
    }
}

/// An answer, or why there is none; not later than [`CALL`].
pub(crate) async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match tokio::time::timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(Failed::Unreached(format!(
            "the API server did not answer within {} s",
            CALL.as_secs()
        ))),
    }
}

fn failed(error: &kube::Error) -> Failed {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => Failed::NotFound,
            409 => Failed::Conflict,
            // it is there, and can't now
            429 | 500.. => Failed::Unreached(status.message.clone()),
            _ => Failed::Refused(status.message.clone()),
        },
        error => {
            // the outermost says only that a service failed
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            Failed::Unreached(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_that_has_ended_is_told_from_one_that_goes_on() {
        let until = |year| {
            let mut params = CertificateParams::default();
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(year, 1, 1);
            let key = KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().pem()
        };
        let of = |pem: &str| AuthInfo {
            client_certificate_data: Some(BASE64.encode(pem)),
            ..AuthInfo::default()
        };
        let told = ended(&of(&until(2021))).map(|it| it.to_string());
        assert_eq!(told.as_deref(), Some("2021-01-01T00:00:00Z"));
        assert_eq!(ended(&of(&until(2200))), None);
        assert_eq!(ended(&of("no certificate")), None);
        assert_eq!(ended(&AuthInfo::default()), None);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.pem");
        std::fs::write(&file, until(2021)).unwrap();
        let user = AuthInfo {
            client_certificate: Some(file.display().to_string()),
            ..AuthInfo::default()
        };
        assert!(ended(&user).is_some());
    }
}
