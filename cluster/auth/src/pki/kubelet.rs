//! The way to kubelets: who the API server is to them, and whom it takes them for.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, pem::PemObject},
};

use super::{Pki, certificate, der};
use crate::{Error, NODE_PREFIX, x509};

/// The user that kubelets see; its binding gives it `system:kubelet-api-admin` and nothing else, so that a kubelet that is none gains nothing by it.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

impl Pki {
    /// TLS to a kubelet: its certificate must be of this CA and have the address that is dialled, and it is shown one of [`KUBELET_CLIENT`], which holds for
    /// `valid`. Whose the certificate is has to be asked after the handshake: [`is_of_node`].
    pub fn kubelet_config(&self, valid: Duration) -> Result<Arc<ClientConfig>, Error> {
        const ACT: &str = "configure TLS to kubelets";
        let identity = self.issue_client(KUBELET_CLIENT, &[], valid)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
            .map_err(|e| certificate(ACT, &e))?;
        let mut roots = RootCertStore::empty();
        roots
            .add(self.ca_der.clone())
            .map_err(|e| certificate(ACT, &e))?;
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|e| certificate(ACT, &e))?
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![der(&identity.certificate_pem)?], key)
                .map_err(|e| certificate(ACT, &e))?;
        Ok(Arc::new(config))
    }
}

/// Whether a certificate (DER, checked) is the one of this node's kubelet: the signer `kubernetes.io/kubelet-serving` gives no other subject.
pub fn is_of_node(certificate_der: &[u8], node: &str) -> bool {
    x509::user(certificate_der)
        .is_ok_and(|user| user.username.strip_prefix(NODE_PREFIX) == Some(node))
}
