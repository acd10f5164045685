//! What all requests share, and what one request is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use berth_auth::{Authorizer, NodeAuthorizer, Pki, Rbac, Tokens, User};
use bytes::Bytes;
use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{policies::Policies, quota::Quotas, webhooks::Calls},
    cache::Cache,
    catalog::{Resource, Served},
    failure::Failure,
    figures::Figures,
    metrics::Metrics,
    passage::{Aggregation, Passages},
    request::Asked,
    respond::Wants,
    service_ip::ServiceIps,
    storage::Storage,
};

/// Bytes of one annotation of the audit log, where several are joined.
const ANNOTATION: usize = 10_240;

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
    /// What nodes and pods use.
    pub figures: Figures,
    pub passages: Passages,
    pub aggregation: Aggregation,
    pub quotas: Quotas,
    pub webhooks: Calls,
    pub policies: Policies,
    /// A node that is made is not ready until it says so, and until a node controller has seen it.
    pub taints_new_nodes: bool,
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
    /// For the audit log.
    pub annotations: Mutex<BTreeMap<String, String>>,
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

    /// Tells the audit log something; what was told under that key stays beside it.
    pub fn annotate(&self, key: String, text: String) {
        let mut annotations = self
            .annotations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        annotations
            .entry(key)
            .and_modify(|said| {
                // a policy with several parameters says something of each
                if said.len() + text.len() < ANNOTATION && *said != text {
                    said.push_str(", ");
                    said.push_str(&text);
                }
            })
            .or_insert(text);
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
