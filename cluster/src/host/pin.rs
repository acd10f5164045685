//! A cluster's CA by its hash: whoever joins knows the hash alone, and the server shows the certificate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    },
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
    let provider = Arc::new(ring::default_provider());
    let shown = Arc::new(Shown {
        chain: Mutex::default(),
        provider: provider.clone(),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(what(), error))?
        .dangerous()
        .with_custom_certificate_verifier(shown.clone())
        .with_no_client_auth();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| failed(what(), error))?;
    let connection = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(late)?
        .map_err(|error| failed(what(), error))?;
    timeout(
        CONNECT,
        TlsConnector::from(Arc::new(config)).connect(name, connection),
    )
    .await
    .map_err(late)?
    .map_err(|error| failed(what(), error))?;
    let chain = std::mem::take(&mut *shown.chain.lock().unwrap_or_else(PoisonError::into_inner));
    for certificate in chain {
        if hash(&certificate)? == wanted {
            return Ok(certificate);
        }
    }
    Err(failed(
        what(),
        format!(
            "it shows no certificate whose public key has the hash {wanted}: it is another cluster, or somebody in between"
        ),
    ))
}

/// Takes any chain, and keeps it to be looked at.
#[derive(Debug)]
struct Shown {
    chain: Mutex<Vec<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, tokio_rustls::rustls::Error> {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        *chain = [leaf]
            .into_iter()
            .chain(others)
            .map(|it| it.clone().into_owned())
            .collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
