//! What all requests share, and what one request is.

use std::sync::{Arc, Mutex, PoisonError};

use berth_auth::{Authorizer, NodeAuthorizer, Pki, Rbac, Tokens, User};
use bytes::Bytes;
use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{quota::Quotas, webhooks::Calls},
    cache::Cache,
    catalog::{Resource, Served},
    failure::Failure,
    metrics::Metrics,
    passage::Passages,
    request::Asked,
    respond::Wants,
    service_ip::ServiceIps,
    storage::Storage,
};

/// What a server is made of.
#[derive(Debug)]
pub struct Api {
    pub served: Arc<Served>,
    pub cache: Arc<Cache>,
    pub storage: Storage,
    pub rbac: Arc<Rbac>,
    pub nodes: Arc<NodeAuthorizer>,
    pub authorizer: Arc<dyn Authorizer>,
    pub tokens: Arc<Tokens>,
    pub pki: Arc<Pki>,
    pub service_ips: ServiceIps,
    pub metrics: Metrics,
    pub passages: Passages,
    pub quotas: Quotas,
    pub webhooks: Calls,
    /// Long requests end when it is cancelled.
    pub ends: CancellationToken,
    /// `https://HOST:PORT`, as clients reach it.
    pub address: std::net::SocketAddr,
}

/// On whose behalf something is written, and how.
#[derive(Debug, Default)]
pub struct Actor {
    pub user: User,
    /// The manager of the fields that are written.
    pub manager: String,
    /// It is a server-side apply.
    pub applies: bool,
    pub dry_run: bool,
    /// It is the server's own doing, whatever user it does it as.
    pub internal: bool,
    pub warnings: Mutex<Vec<String>>,
}

impl Actor {
    /// The server itself, as its part `name`.
    pub fn internal(name: &str) -> Self {
        Self {
            user: User {
                username: "system:apiserver".into(),
                groups: vec![berth_auth::MASTERS.into()],
                ..User::default()
            },
            manager: name.into(),
            internal: true,
            ..Self::default()
        }
    }

    pub fn warn(&self, warning: impl Into<String>) {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(warning.into());
    }
}

/// A request for a resource that is served, by someone who may ask it.
#[derive(Debug)]
pub struct Call {
    pub asked: Asked,
    pub resource: Arc<Resource>,
    pub actor: Actor,
    pub wants: Wants,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    /// `dryRun`: all or nothing.
    pub fn parse_dry_run(asked: &Asked) -> Result<bool, Failure> {
        let mut dry_run = false;
        for value in asked.query.all("dryRun") {
            match value {
                "" => {}
                "All" => dry_run = true,
                other => {
                    return Err(Failure::unprocessable(format!(
                        " \"\" is invalid: dryRun: Unsupported value: {other:?}: supported values: \"All\""
                    )));
                }
            }
        }
        Ok(dry_run)
    }

    pub fn content_type(&self) -> &str {
        let value = self
            .headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }
}
