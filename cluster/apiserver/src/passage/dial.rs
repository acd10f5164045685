//! A connection to where a request goes on to.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use berth_auth::{
    any_certificate,
    pki::{Identity, is_of_node},
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, ConfigBuilder, RootCertStore,
        client::WantsClientCert,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::backend::Backend;

/// Of one address.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A silent other side is asked after so long whether it lives, and again after so long.
const ALIVE_AFTER: Duration = Duration::from_secs(60);
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// How the other side is known.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Not at all: plain HTTP.
    Plain,
    /// By this configuration, and the certificate must be this node's.
    Kubelet {
        node: String,
        config: Arc<ClientConfig>,
    },
    /// By this configuration, under this name.
    Named {
        name: String,
        config: Arc<ClientConfig>,
    },
    /// Encrypted, and not known: a pod's own TLS, whose CA nobody has told us (as upstream has it).
    Encrypted,
}

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub type Dialled = Box<dyn Io>;

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial tcp {address}: {}", Worded(.source))]
    Connect {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("dial tcp {0}: i/o timeout")]
    TimedOut(SocketAddr),
    #[error("TLS with {authority}: {why}")]
    Tls { authority: String, why: String },
    #[error("{0} has no address")]
    NoAddress(String),
}

/// Errors of connect(2) in the words that clients know from Go.
struct Worded<'a>(&'a io::Error);

impl fmt::Display for Worded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::ConnectionRefused => f.write_str("connect: connection refused"),
            io::ErrorKind::HostUnreachable => f.write_str("connect: no route to host"),
            io::ErrorKind::NetworkUnreachable => f.write_str("connect: network is unreachable"),
            io::ErrorKind::TimedOut => f.write_str("i/o timeout"),
            _ => write!(f, "{}", self.0),
        }
    }
}

pub async fn dial(backend: &Backend) -> Result<Dialled, DialError> {
    let stream = connect(backend).await?;
    let failed = |why: String| DialError::Tls {
        authority: backend.authority(),
        why,
    };
    let (config, name) = match &backend.trust {
        Trust::Plain => return Ok(Box::new(stream)),
        Trust::Kubelet { config, .. } => (config.clone(), &backend.host),
        Trust::Named { config, name } => (config.clone(), name),
        Trust::Encrypted => (
            unverified().map_err(|error| failed(error.to_string()))?,
            &backend.host,
        ),
    };
    let name = ServerName::try_from(name.clone()).map_err(|error| failed(error.to_string()))?;
    let shaken = timeout(
        HANDSHAKE_WITHIN,
        TlsConnector::from(config).connect(name, stream),
    );
    let stream = match shaken.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => {
            return Err(failed(format!(
                "no handshake within {} s",
                HANDSHAKE_WITHIN.as_secs()
            )));
        }
    };
    if let Trust::Kubelet { node, .. } = &backend.trust {
        let certificates = stream.get_ref().1.peer_certificates();
        let own = certificates
            .and_then(|chain| chain.first())
            .is_some_and(|leaf| is_of_node(leaf, node));
        if !own {
            return Err(failed(format!(
                "its certificate is not that of system:node:{node}"
            )));
        }
    }
    Ok(Box::new(stream))
}

async fn connect(backend: &Backend) -> Result<TcpStream, DialError> {
    let mut last = DialError::NoAddress(backend.authority());
    for &address in &backend.addresses {
        match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                keep_alive(&stream);
                return Ok(stream);
            }
            Ok(Err(source)) => last = DialError::Connect { address, source },
            Err(_) => last = DialError::TimedOut(address),
        }
    }
    Err(last)
}

/// A peer that is gone without a word is noticed, though nothing is sent.
pub fn keep_alive(stream: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, ALIVE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(stream, ALIVE_EVERY);
}

/// TLS with one that is called `name` and has a certificate of `bundle` (PEM).
///
/// # Errors
/// What is wrong with the bundle.
pub fn named(name: &str, bundle: &[u8]) -> Result<Trust, String> {
    let config = verified(bundle)?.with_no_client_auth();
    Ok(Trust::Named {
        name: name.to_owned(),
        config: Arc::new(config),
    })
}

/// The same, and it is shown who we are; without a bundle any certificate is taken.
///
/// # Errors
/// What is wrong with the bundle.
pub fn shown(name: &str, bundle: Option<&[u8]>, own: &Identity) -> Result<Trust, String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let builder = match bundle {
        Some(bundle) => verified(bundle)?,
        None => any_certificate().map_err(|error| text(&error))?,
    };
    let certificate = CertificateDer::from_pem_slice(own.certificate_pem.as_bytes())
        .map_err(|error| text(&error))?;
    let key =
        PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).map_err(|error| text(&error))?;
    let config = builder
        .with_client_auth_cert(vec![certificate], key)
        .map_err(|error| text(&error))?;
    Ok(Trust::Named {
        name: name.to_owned(),
        config: Arc::new(config),
    })
}

fn verified(bundle: &[u8]) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|error| format!("its caBundle: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("its caBundle: {error}"))?;
    }
    if roots.is_empty() {
        return Err("it has no caBundle, and no other CA is known here".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots))
}

/// TLS that takes any certificate.
fn unverified() -> Result<Arc<ClientConfig>, rustls::Error> {
    Ok(Arc::new(any_certificate()?.with_no_client_auth()))
}
