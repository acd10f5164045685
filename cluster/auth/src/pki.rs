//! The cluster's certificates, in a directory of their own (0700, files 0600): a CA made at the first start, the server's leaf, which is
//! renewed while it runs, and leaves for clients.
//!
//! A key is written before its certificate: a start after a crash between them makes the certificate anew.

mod file;
mod front_proxy;
mod issue;
mod kubelet;

use std::{
    fmt, fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateSigningRequestParams, DnType, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;
use file::{key, read, write};
use issue::{ca, certified, der, fresh, issue_leaf, named, params};

pub use file::read_token_key;
pub use front_proxy::FRONT_PROXY;
pub use kubelet::{KUBELET_CLIENT, is_of_node};

/// What the server is called, for the names in its certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// A certificate (with its chain) and its key.
#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// What a certificate that is asked for may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

pub struct Pki {
    directory: PathBuf,
    names: ServerNames,
    ca: Issuer<'static, KeyPair>,
    ca_der: CertificateDer<'static>,
    ca_pem: String,
    /// Of another CA: who this server is to API servers beside it.
    front: Issuer<'static, KeyPair>,
    front_pem: String,
    leaf: Arc<Leaf>,
    token_key: Vec<u8>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki")
            .field("directory", &self.directory)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// The server's certificate as it is now.
#[derive(Debug)]
struct Leaf(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl Leaf {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Pki {
    /// Reads what is in `directory` and makes what is missing, expired or near it.
    pub fn open(directory: &Path, names: &ServerNames) -> Result<Self, Error> {
        Self::open_at(directory, names, SystemTime::now())
    }

    fn open_at(directory: &Path, names: &ServerNames, now: SystemTime) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| file::failed("make", directory, e))?;
        fs::set_permissions(
            directory,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .map_err(|e| file::failed("close to others", directory, e))?;
        let (front, front_pem) = ca(directory, "front-proxy-ca", "front-proxy-ca", now)?;
        let (ca, ca_pem) = ca(directory, "ca", "kubernetes", now)?;
        let ca_der = der(&ca_pem)?;
        let token_key = key(&directory.join("token.key"))?.serialize_der();
        let leaf = match Self::stored_leaf(directory, names, &ca_der, now)? {
            Some(leaf) => leaf,
            None => issue_leaf(directory, names, (&ca, &ca_der), now)?,
        };
        Ok(Self {
            directory: directory.to_owned(),
            names: names.clone(),
            ca,
            ca_der,
            ca_pem,
            front,
            front_pem,
            leaf: Arc::new(Leaf(RwLock::new(Arc::new(leaf)))),
            token_key,
        })
    }

    /// The leaf that is there, where it is good for long enough and for these names.
    fn stored_leaf(
        directory: &Path,
        names: &ServerNames,
        ca: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<Option<CertifiedKey>, Error> {
        let Some(pem) = read(&directory.join("server.crt"))? else {
            return Ok(None);
        };
        let key = key(&directory.join("server.key"))?;
        // What can't be read is made anew: it is ours to make.
        let Ok(certificate) = der(&pem) else {
            return Ok(None);
        };
        let good = X509Certificate::from_der(&certificate).is_ok_and(|(_, leaf)| {
            let Ok((_, ca)) = X509Certificate::from_der(ca) else {
                return false;
            };
            fresh(&leaf, now)
                && leaf.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
                && leaf.verify_signature(Some(ca.public_key())).is_ok()
                && named(&leaf, names)
        });
        match good {
            true => Ok(Some(certified(&certificate, ca, &key)?)),
            false => Ok(None),
        }
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TLS for the server: its leaf is always the newest one, clients may show a certificate of this CA or none.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let mut config = self.config(false)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The same, but for clients that must show a certificate.
    pub fn mutual_config(&self) -> Result<ServerConfig, Error> {
        self.config(true)
    }

    fn config(&self, mutual: bool) -> Result<ServerConfig, Error> {
        let failed = |e: &dyn fmt::Display| certificate("configure TLS", e);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(|e| failed(&e))?;
        let mut clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        if !mutual {
            clients = clients.allow_unauthenticated();
        }
        let clients = clients.build().map_err(|e| failed(&e))?;
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.leaf.clone()))
    }

    /// A client's certificate and key, written beside the others as `NAME.crt` and `NAME.key`: made anew at each start.
    pub fn write_client(&self, name: &str, groups: &[&str], valid: Duration) -> Result<(), Error> {
        let identity = self.issue_client(name, groups, valid)?;
        let path = |end: &str| self.directory.join(format!("{name}.{end}"));
        write(&path("key"), identity.key_pem.as_bytes())?;
        write(&path("crt"), identity.certificate_pem.as_bytes())
    }

    /// A certificate for a client: `user` is its CN, `groups` its O (at most one: the certificates are made without repeated names). A key is made for it.
    pub fn issue_client(
        &self,
        user: &str,
        groups: &[&str],
        valid: Duration,
    ) -> Result<Identity, Error> {
        self.issue(&self.ca, user, groups, valid)
    }

    fn issue(
        &self,
        ca: &Issuer<'static, KeyPair>,
        user: &str,
        groups: &[&str],
        valid: Duration,
    ) -> Result<Identity, Error> {
        const ACT: &str = "issue a client's certificate";
        if groups.len() > 1 {
            return Err(certificate(ACT, &"it can name one group"));
        }
        let key = KeyPair::generate().map_err(|e| certificate(ACT, &e))?;
        let mut params = params(SystemTime::now(), valid, &[Usage::Client]);
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, *group);
        }
        let issued = params
            .signed_by(&key, ca)
            .map_err(|e| certificate(ACT, &e))?;
        Ok(Identity {
            certificate_pem: issued.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a request (PEM) as it stands, for the CSR API: whether it may be signed is the caller's to decide. The certificate in PEM. A request that asks to be a CA gets a leaf.
    pub fn sign(
        &self,
        request_pem: &str,
        usages: &[Usage],
        valid: Duration,
    ) -> Result<String, Error> {
        const ACT: &str = "sign a request";
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|e| certificate(ACT, &e))?;
        let mut leaf = params(SystemTime::now(), valid, usages);
        leaf.subject_alt_names = request.params.subject_alt_names.clone();
        leaf.distinguished_name = request.params.distinguished_name.clone();
        request.params = leaf;
        let asked = x509_parser::pem::parse_x509_pem(request_pem.as_bytes())
            .map_err(|e| certificate(ACT, &e))?
            .1;
        let (_, asked) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&asked.contents)
                .map_err(|e| certificate(ACT, &e))?;
        let subject = &asked.certification_request_info.subject;
        // Nothing that it was approved with may be left out.
        if subject.iter_organization().count() > 1 || subject.iter_common_name().count() != 1 {
            return Err(certificate(ACT, &"it must have one CN and at most one O"));
        }
        let issued = request
            .signed_by(&self.ca)
            .map_err(|e| certificate(ACT, &e))?;
        Ok(issued.pem())
    }

    /// Renews the server's leaf where less than a third of its time is left; whether it did. To be called now and then (hourly).
    pub fn renew(&self) -> Result<bool, Error> {
        self.renew_at(SystemTime::now())
    }

    fn renew_at(&self, now: SystemTime) -> Result<bool, Error> {
        let current = self.leaf.get();
        let fresh = current.cert.first().is_some_and(|leaf| {
            X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| fresh(&leaf, now))
        });
        if fresh {
            return Ok(false);
        }
        let ca = (&self.ca, &self.ca_der);
        let leaf = issue_leaf(&self.directory, &self.names, ca, now)?;
        *self.leaf.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(leaf);
        Ok(true)
    }

    /// The key (PKCS#8, DER) that signs the tokens of ServiceAccounts.
    pub fn token_key(&self) -> &[u8] {
        &self.token_key
    }
}

fn certificate(act: &'static str, why: &dyn fmt::Display) -> Error {
    Error::Certificate {
        act,
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests;
