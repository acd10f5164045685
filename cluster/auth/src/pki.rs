//! The cluster's certificates, in a directory of their own (0700, keys 0600): a CA made at the first start, the server's leaf, which is
//! renewed while it runs, and leaves for clients.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use crate::Error;

/// What the server is called, for the names in its certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// A certificate (with its chain) and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What a certificate that is asked for may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

#[derive(Debug)]
pub struct Pki {}

impl Pki {
    /// Reads what is in `directory` and makes what is missing, expired or near it.
    pub fn open(directory: &Path, names: &ServerNames) -> Result<Self, Error> {
        let _ = (directory, names);
        Err(Error::Certificate {
            act: "open the PKI",
            why: "not built yet".to_owned(),
        })
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> &str {
        ""
    }

    /// TLS for the server: its leaf is always the newest one, clients may show a certificate of this CA or none.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        Err(Error::Certificate {
            act: "configure TLS",
            why: "not built yet".to_owned(),
        })
    }

    /// A certificate for a client: `user` is its CN, `groups` its O. A key is made for it.
    pub fn issue_client(
        &self,
        user: &str,
        groups: &[&str],
        valid: Duration,
    ) -> Result<Identity, Error> {
        let _ = (user, groups, valid);
        Err(Error::Certificate {
            act: "issue a certificate",
            why: "not built yet".to_owned(),
        })
    }

    /// Signs a request (PEM) as it stands, for the CSR API: whether it may be signed is the caller's to decide. The certificate in PEM.
    pub fn sign(
        &self,
        request_pem: &str,
        usages: &[Usage],
        valid: Duration,
    ) -> Result<String, Error> {
        let _ = (request_pem, usages, valid);
        Err(Error::Certificate {
            act: "sign a request",
            why: "not built yet".to_owned(),
        })
    }

    /// Renews the server's leaf where less than a third of its time is left; whether it did. To be called now and then (hourly).
    pub fn renew(&self) -> Result<bool, Error> {
        Ok(false)
    }

    /// The key (PKCS#8, DER) that signs the tokens of ServiceAccounts.
    pub fn token_key(&self) -> &[u8] {
        &[]
    }
}
