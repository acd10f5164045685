//! The server's certificate: given, or asked of the cluster (signer `kubernetes.io/kubelet-serving`) and renewed; until there is one, signed by itself.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use tokio_rustls::rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    Cluster, Error, NodeFacts,
    api::csr::{self, Purpose},
    store,
};

/// Between two looks at how long the certificate still holds, and after something went wrong.
const RENEW_LOOK: Duration = Duration::from_secs(600);
/// Before a certificate that could not be had is asked for again: the first time, twice as long each time, and at most. Until then clients that know the cluster's
/// CA alone are turned away.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// Renewed when less than a fifth of its life is left.
const RENEW_LEFT: i64 = 5;

/// Where the server's certificate is from.
#[derive(Debug, Clone)]
pub enum Certificate {
    /// Files: the chain, and the key (PEM).
    Files { chain: PathBuf, key: PathBuf },
    /// The cluster is asked for one, which somebody has to approve; kept in the kubelet's directory.
    Cluster,
    /// Nobody's word but its own.
    SelfSigned,
}

/// What is shown to clients; it can change while the server runs.
pub(super) struct Identity {
    now: RwLock<Arc<CertifiedKey>>,
    request: Option<Request>,
}

/// Asks the cluster.
#[derive(Debug)]
struct Request {
    cluster: Cluster,
    facts: NodeFacts,
    /// Certificate and key, in one file.
    file: PathBuf,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.now
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

impl Identity {
    pub fn open(
        from: Certificate,
        facts: &NodeFacts,
        dir: &Path,
        cluster: Cluster,
    ) -> Result<Arc<Self>, String> {
        let read =
            |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let (now, request) = match from {
            Certificate::Files { chain, key } => {
                let pem = [read(&chain)?, b"\n".to_vec(), read(&key)?].concat();
                let both = certified(&pem)
                    .map_err(|why| format!("{} and {}: {why}", chain.display(), key.display()))?;
                (both, None)
            }
            Certificate::SelfSigned => (self_signed(facts)?, None),
            Certificate::Cluster => {
                let request = Request {
                    cluster,
                    facts: facts.clone(),
                    file: dir.join("kubelet-server.pem"),
                };
                let kept = fs::read(&request.file)
                    .ok()
                    .and_then(|pem| certified(&pem).ok());
                let kept = kept.filter(|kept| request.is_good(kept));
                let now = match kept {
                    Some(kept) => kept,
                    None => self_signed(facts)?,
                };
                (now, Some(request))
            }
        };
        Ok(Arc::new(Self {
            now: RwLock::new(Arc::new(now)),
            request,
        }))
    }

    /// Has a good certificate of the cluster all the time, where it is asked for one.
    pub async fn keep(self: Arc<Self>) {
        let Some(request) = &self.request else {
            return;
        };
        let mut again = AGAIN;
        loop {
            let now = self
                .now
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if request.is_good(&now) {
                tokio::time::sleep(RENEW_LOOK).await;
                continue;
            }
            match request.ask().await {
                Ok(Some(new)) => {
                    tracing::info!("the cluster has signed a certificate for the kubelet's server");
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                    again = AGAIN;
                    continue;
                }
                Ok(None) => tracing::warn!(
                    "nobody has approved the certificate for the kubelet's server (kubectl certificate approve): it is asked for again"
                ),
                Err(why) => tracing::warn!(
                    why,
                    "no certificate of the cluster for the kubelet's server"
                ),
            }
            tokio::time::sleep(again).await;
            again = (again * 2).min(AGAIN_MOST);
        }
    }
}

impl Request {
    /// Whether it is of the cluster, for this node as it is, and not about to end.
    fn is_good(&self, certified: &CertifiedKey) -> bool {
        let Some(leaf) = certified.cert.first() else {
            return false;
        };
        let is_own = berth_auth::pki::is_of_node(leaf, &self.facts.name);
        let holds = berth_auth::x509::validity(leaf).is_some_and(|(from, until)| {
            let left = until - Timestamp::now().as_second();
            left > (until - from) / RENEW_LEFT
        });
        let addresses = berth_auth::x509::addresses(leaf);
        let named = self
            .facts
            .ips
            .iter()
            .all(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| addresses.contains(&ip)));
        is_own && holds && named
    }

    /// A new certificate; none: nobody has decided about it in time.
    async fn ask(&self) -> Result<Option<CertifiedKey>, String> {
        let names = names(&self.facts)?;
        let node = &self.facts.name;
        let asked = csr::ask(&self.cluster.client, node, Purpose::Serving, names).await?;
        let Some(pem) = asked else {
            return Ok(None);
        };
        let certified = certified(&pem)?;
        if let Err(error) = self.keep(&pem) {
            tracing::warn!(%error, "the certificate is not kept");
        }
        Ok(Some(certified))
    }

    fn keep(&self, pem: &[u8]) -> Result<(), Error> {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        store::make_dir(dir)?;
        store::replace(&self.file, pem).map_err(Error::file("write", &self.file))
    }
}

/// What clients may call it.
fn names(facts: &NodeFacts) -> Result<Vec<SanType>, String> {
    let name = facts
        .name
        .clone()
        .try_into()
        .map_err(|error| format!("{}: {error}", facts.name))?;
    let mut names = vec![SanType::DnsName(name)];
    for ip in &facts.ips {
        let ip = ip.parse().map_err(|error| format!("{ip}: {error}"))?;
        names.push(SanType::IpAddress(ip));
    }
    Ok(names)
}

fn self_signed(facts: &NodeFacts) -> Result<CertifiedKey, String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{}@self-signed", facts.name));
    params.subject_alt_names = names(facts)?;
    let certificate = params
        .self_signed(&key)
        .map_err(|error| error.to_string())?;
    certified(format!("{}\n{}", certificate.pem(), key.serialize_pem()).as_bytes())
}

/// A chain and its key, of PEM.
fn certified(pem: &[u8]) -> Result<CertifiedKey, String> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("no certificate: {error}"))?;
    if chain.is_empty() {
        return Err("no certificate in it".into());
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("no key: {error}"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("key and certificate don't fit: {error}"))
}

/// The certificates of a file (PEM).
pub(super) fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let roots = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    match roots.is_empty() {
        true => Err(format!("{}: no certificate in it", path.display())),
        false => Ok(roots),
    }
}
