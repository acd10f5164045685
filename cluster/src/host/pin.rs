//! A cluster's CA by its hash: whoever joins knows the hash alone, and the server shows the certificate.

use std::{sync::Arc, time::Duration};

use berth_auth::any_certificate;
use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::failed;
use crate::error::Error;

const CONNECT: Duration = Duration::from_secs(10);

/// `sha256:HEX` of a certificate's public key (SubjectPublicKeyInfo, RFC 5280 4.1), as kubeadm's `--discovery-token-ca-cert-hash` has it.
///
/// # Errors
/// It is no certificate.
pub fn hash(der: &[u8]) -> Result<String, Error> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| failed("cannot read a certificate", error))?;
    let digest = Sha256::digest(certificate.public_key().raw);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// The same of one in PEM.
///
/// # Errors
/// It is no certificate.
pub fn hash_of_pem(pem: &[u8]) -> Result<String, Error> {
    let der = CertificateDer::from_pem_slice(pem)
        .map_err(|error| failed("cannot read a certificate", error))?;
    hash(&der)
}

/// The certificate with this hash that the server at `address` (HOST:PORT) shows. Nothing is said to the server: the connection ends with the handshake, and only a later one,
/// which trusts this certificate alone, carries anything.
///
/// # Errors
/// The server can't be reached, or shows no such certificate.
pub async fn fetch(address: &str, wanted: &str) -> Result<CertificateDer<'static>, Error> {
    let what = || format!("cannot get the CA of {address}");
    let late = |_| failed(what(), format!("no answer within {} s", CONNECT.as_secs()));
    let config = any_certificate()
        .map_err(|error| failed(what(), error))?
        .with_no_client_auth();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| failed(what(), error))?;
    let connection = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(late)?
        .map_err(|error| failed(what(), error))?;
    let connection = timeout(
        CONNECT,
        TlsConnector::from(Arc::new(config)).connect(name, connection),
    )
    .await
    .map_err(late)?
    .map_err(|error| failed(what(), error))?;
    let chain = connection.get_ref().1.peer_certificates();
    for certificate in chain.unwrap_or_default() {
        if hash(certificate)? == wanted {
            return Ok(certificate.clone().into_owned());
        }
    }
    Err(failed(
        what(),
        format!(
            "it shows no certificate whose public key has the hash {wanted}: it is another cluster, or somebody in between"
        ),
    ))
}
