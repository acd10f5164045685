//! The cluster's certificates, in a directory of their own (0700, files 0600): a CA made at the first start, the server's leaf, which is
//! renewed while it runs, and leaves for clients.
//!
//! A key is written before its certificate: a start after a crash between them makes the certificate anew.

mod front_proxy;
mod kubelet;

use std::{
    fmt, fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    string::Ia5String,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::Error;

pub use front_proxy::FRONT_PROXY;
pub use kubelet::{KUBELET_CLIENT, is_of_node};

#[cfg(test)]
const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_VALID: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// Others' clocks may be behind by so much.
const SKEW: Duration = Duration::from_secs(300);

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
            .map_err(|e| file("make", directory, e))?;
        fs::set_permissions(
            directory,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .map_err(|e| file("close to others", directory, e))?;
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

/// The CA's key and certificate. Its certificate is made anew in time, with the same key and name: what it signed stays good.
fn ca(
    directory: &Path,
    file: &str,
    name: &str,
    now: SystemTime,
) -> Result<(Issuer<'static, KeyPair>, String), Error> {
    let path_of = |end: &str| directory.join(format!("{file}.{end}"));
    let (key_path, path) = (path_of("key"), path_of("crt"));
    let stored = read(&path)?;
    if stored.is_some() && !key_path.exists() {
        return Err(certificate(
            "open the CA",
            &format!(
                "{} is missing: nothing can be issued; put it back, or remove {} too for a new CA",
                key_path.display(),
                path.display()
            ),
        ));
    }
    let key = key(&key_path)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + CA_VALID).into());
    let good = stored.filter(|pem| {
        der(pem).is_ok_and(|der| {
            X509Certificate::from_der(&der).is_ok_and(|(_, ca)| {
                ca.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
                    && fresh(&ca, now)
            })
        })
    });
    let pem = match good {
        Some(pem) => pem,
        None => {
            let made = params
                .self_signed(&key)
                .map_err(|e| certificate("make the CA", &e))?;
            write(&path, made.pem().as_bytes())?;
            made.pem()
        }
    };
    Ok((Issuer::new(params, key), pem))
}

fn issue_leaf(
    directory: &Path,
    names: &ServerNames,
    (ca, ca_der): (&Issuer<'static, KeyPair>, &CertificateDer<'_>),
    now: SystemTime,
) -> Result<CertifiedKey, Error> {
    const ACT: &str = "issue the server's certificate";
    let key = key(&directory.join("server.key"))?;
    let mut params = params(now, LEAF_VALID, &[Usage::Server]);
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    for name in &names.dns {
        let name = Ia5String::try_from(name.as_str()).map_err(|e| certificate(ACT, &e))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    for address in &names.addresses {
        params.subject_alt_names.push(SanType::IpAddress(*address));
    }
    let issued = params
        .signed_by(&key, ca)
        .map_err(|e| certificate(ACT, &e))?;
    write(&directory.join("server.crt"), issued.pem().as_bytes())?;
    certified(issued.der(), ca_der, &key)
}

fn params(now: SystemTime, valid: Duration, usages: &[Usage]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + valid).into());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = usages
        .iter()
        .map(|usage| match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        })
        .collect();
    params
}

/// It holds now, and more than a third of its time is left.
fn fresh(certificate: &X509Certificate<'_>, now: SystemTime) -> bool {
    let validity = certificate.validity();
    let (begin, end) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    let now = now.as_secs() as i64;
    begin <= now && now < end - (end - begin) / 3
}

fn named(leaf: &X509Certificate<'_>, names: &ServerNames) -> bool {
    let Ok(Some(found)) = leaf.subject_alternative_name() else {
        return names.dns.is_empty() && names.addresses.is_empty();
    };
    let found = &found.value.general_names;
    names
        .dns
        .iter()
        .all(|name| found.contains(&GeneralName::DNSName(name)))
        && names.addresses.iter().all(|address| {
            let bytes = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            found
                .iter()
                .any(|name| matches!(name, GeneralName::IPAddress(ip) if *ip == bytes))
        })
}

/// The CA stands in the chain for those who know it by its hash alone (`berth join`).
fn certified(
    leaf: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<CertifiedKey, Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|e| certificate("use the server's key", &e))?;
    let chain = [leaf, ca].map(|one| one.clone().into_owned());
    Ok(CertifiedKey::new(chain.to_vec(), key))
}

fn der(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| certificate("read a certificate", &e))
}

/// The private key in `path` (PEM), by which tokens are signed: as [`crate::Tokens::new`] takes it.
///
/// # Errors
/// There is none, or it can't be read.
pub fn read_token_key(path: &Path) -> Result<Vec<u8>, Error> {
    let none = || certificate("read a key", &format!("{}: there is none", path.display()));
    let pem = read(path)?.ok_or_else(none)?;
    let key = KeyPair::from_pem(&pem)
        .map_err(|e| certificate("read a key", &format!("{}: {e}", path.display())))?;
    Ok(key.serialize_der())
}

/// The key (ECDSA P-256) in `path`, made where there is none. One that can't be read is an error: what it signed would be lost with it.
fn key(path: &Path) -> Result<KeyPair, Error> {
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem)
            .map_err(|e| certificate("read a key", &format!("{}: {e}", path.display())));
    }
    let key = KeyPair::generate().map_err(|e| certificate("make a key", &e))?;
    write(path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file("read", path, e)),
    }
}

/// Whole or not at all, 0600.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let written = (|| {
        // One that a crash left behind.
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    })();
    written.map_err(|e| file("write", path, e))
}

fn file(act: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        act,
        path: path.to_owned(),
        source,
    }
}

fn certificate(act: &'static str, why: &dyn fmt::Display) -> Error {
    Error::Certificate {
        act,
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names() -> ServerNames {
        ServerNames {
            dns: vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()],
            addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        }
    }

    fn leaf(pki: &Pki) -> CertificateDer<'static> {
        pki.leaf.get().cert[0].clone()
    }

    /// A handshake in memory: the certificate that the server sees, or why there is none.
    fn shake(
        server: Arc<ServerConfig>,
        ca: &str,
        client: Option<&Identity>,
    ) -> Result<Option<Vec<u8>>, String> {
        let mut roots = RootCertStore::empty();
        roots.add(der(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                config
                    .with_client_auth_cert(vec![der(&identity.certificate_pem).unwrap()], key)
                    .unwrap()
            }
        };
        let mut client =
            rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap())
                .unwrap();
        let mut server = rustls::ServerConnection::new(server).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() {
                server.read_tls(&mut wire).unwrap();
                server.process_new_packets().map_err(|e| e.to_string())?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets().map_err(|e| e.to_string())?;
            }
        }
        assert!(!server.is_handshaking());
        Ok(server.peer_certificates().map(|chain| chain[0].to_vec()))
    }

    #[test]
    fn a_client_is_who_its_certificate_says_and_others_are_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("pki"), &names()).unwrap();
        let admin = pki
            .issue_client("kubernetes-admin", &["system:masters"], DAY)
            .unwrap();
        let seen = shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&admin))
            .unwrap()
            .unwrap();
        let user = crate::x509::user(&seen).unwrap();
        assert_eq!(user.username, "kubernetes-admin");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        let id = &user.extra[crate::CREDENTIAL_ID][0];
        assert_eq!(id.strip_prefix("X509SHA256=").map(str::len), Some(64));
        assert_eq!(
            shake(pki.server_config().unwrap(), pki.ca_pem(), None).unwrap(),
            None
        );
        // Another cluster's admin.
        let other = Pki::open(&directory.path().join("other"), &names()).unwrap();
        let stranger = other
            .issue_client("kubernetes-admin", &["system:masters"], DAY)
            .unwrap();
        assert!(shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&stranger)).is_err());
        assert!(shake(other.server_config().unwrap(), pki.ca_pem(), None).is_err());
        // The server's own certificate is none of a client.
        let server = Identity {
            certificate_pem: fs::read_to_string(directory.path().join("pki/server.crt")).unwrap(),
            key_pem: fs::read_to_string(directory.path().join("pki/server.key")).unwrap(),
        };
        assert!(shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&server)).is_err());
        let expired = pki.issue_client("late", &[], Duration::ZERO).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        assert!(shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&expired)).is_err());
        assert!(pki.issue_client("u", &["a", "b"], DAY).is_err());
        assert!(crate::x509::user(b"nonsense").is_err());
    }

    #[test]
    fn a_second_start_finds_what_the_first_made_and_nobody_else_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pki");
        let first = Pki::open(&path, &names()).unwrap();
        let second = Pki::open(&path, &names()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(leaf(&first), leaf(&second));
        assert_eq!(first.token_key(), second.token_key());
        assert!(!second.renew().unwrap());
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        crate::Tokens::new(first.token_key(), "i".to_owned(), vec![]).unwrap();
    }

    #[test]
    fn a_leaf_is_reissued_in_time_while_it_runs_and_at_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let pki = Pki::open_at(directory.path(), &names(), now - 250 * DAY).unwrap();
        let old = leaf(&pki);
        let config = pki.server_config().unwrap();
        assert!(!pki.renew_at(now - 200 * DAY).unwrap());
        assert!(pki.renew_at(now).unwrap());
        assert_ne!(leaf(&pki), old);
        assert_eq!(
            shake(config, pki.ca_pem(), None),
            Ok(None),
            "the same configuration serves the new one"
        );
        let later = now + 400 * DAY;
        let again = Pki::open_at(directory.path(), &names(), later).unwrap();
        assert_ne!(
            leaf(&again),
            leaf(&pki),
            "it has expired: that is no reason to stay down"
        );
        assert_eq!(again.ca_pem(), pki.ca_pem());
        // The CA too, with its key: what it signed stays good.
        let client = pki.issue_client("u", &[], 20 * CA_VALID / 10).unwrap();
        let much_later = Pki::open_at(directory.path(), &names(), now + CA_VALID).unwrap();
        assert_ne!(much_later.ca_pem(), pki.ca_pem());
        let (_, ca) = x509_parser::pem::parse_x509_pem(much_later.ca_pem().as_bytes()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca.contents).unwrap();
        let client = der(&client.certificate_pem).unwrap();
        let (_, client) = X509Certificate::from_der(&client).unwrap();
        client.verify_signature(Some(ca.public_key())).unwrap();
    }

    #[test]
    fn another_name_gets_another_leaf_and_damage_is_repaired_where_it_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let first = Pki::open(path, &names()).unwrap();
        let mut more = names();
        more.addresses.push("192.0.2.7".parse().unwrap());
        let second = Pki::open(path, &more).unwrap();
        assert_ne!(leaf(&first), leaf(&second));
        for (file, text) in [
            ("server.crt", Some("nonsense")),
            ("server.crt", None),
            ("server.key", None),
            ("ca.crt", Some("half -----BEGIN")),
        ] {
            match text {
                Some(text) => fs::write(path.join(file), text).unwrap(),
                None => fs::remove_file(path.join(file)).unwrap(),
            }
            let pki = Pki::open(path, &more).unwrap();
            assert_eq!(
                shake(pki.server_config().unwrap(), pki.ca_pem(), None),
                Ok(None),
                "{file}"
            );
        }
        // What others trust isn't replaced behind their backs.
        fs::rename(path.join("ca.key"), path.join("aside")).unwrap();
        let refused = Pki::open(path, &more).unwrap_err().to_string();
        assert!(refused.contains("ca.key is missing"), "{refused}");
        fs::write(path.join("ca.key"), "nonsense").unwrap();
        assert!(Pki::open(path, &more).is_err());
    }

    #[test]
    fn a_request_is_signed_as_it_stands_and_never_as_a_ca() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), &names()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::new(vec!["node.example".to_owned()]).unwrap();
        asked.distinguished_name = DistinguishedName::new();
        asked
            .distinguished_name
            .push(DnType::CommonName, "system:node:n1");
        asked
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        let pem = asked.serialize_request(&key).unwrap().pem().unwrap();
        let signed = pki.sign(&pem, &[Usage::Client], DAY).unwrap();
        let signed = Identity {
            certificate_pem: signed,
            key_pem: key.serialize_pem(),
        };
        let seen = shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&signed))
            .unwrap()
            .unwrap();
        let user = crate::x509::user(&seen).unwrap();
        assert_eq!(crate::node::name(&user), Some("n1"));
        let (_, seen) = X509Certificate::from_der(&seen).unwrap();
        assert!(!seen.is_ca());
        assert!(pki.sign("nonsense", &[], DAY).is_err());
        assert!(pki.sign(&pem.replace("MII", "MIJ"), &[], DAY).is_err());
        let mut nobody = asked.clone();
        nobody.distinguished_name = DistinguishedName::new();
        let pem = nobody.serialize_request(&key).unwrap().pem().unwrap();
        assert!(pki.sign(&pem, &[], DAY).is_err());
    }
}
