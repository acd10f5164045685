//! What goes on through this server: to a kubelet (log, exec, attach, portforward, a node's proxy), to a pod, to a service, to an API server beside this one.
//!
//! ```text
//!   router ─┬─ streams ─┬─ kubelet ─┐                                    ┌─ an answer, as it comes
//!           ├─ aggregated (any request of a group)       …
//!           └─ proxy ───┴───────────┴─ backend ── address ── dial ── pass ┤
//!                                     where, how trusted   checked       └─ an upgrade: bytes both ways
//! ```
//!
//! Invariant: only an address that [`address`] allows is dialled, and it is the one that was looked at (SEC-API-03). No redirect is followed (SEC-API-02).
//! After an upgrade that was refused, nothing of the client's reaches the other side any more (SEC-API-01).

mod address;
pub mod aggregated;
mod backend;
mod dial;
mod headers;
mod kubelet;
mod pass;
mod proxy;
mod streams;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_auth::{Pki, User};
use bytes::Bytes;
use http::{Response, request::Parts};
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ClientConfig;

use crate::{
    admission::{Act, webhooks},
    api::{Actor, Api},
    catalog::Resource,
    failure::Failure,
    request::Asked,
    respond::Body,
};

pub use address::{may_be_called, may_be_dialled};
pub use aggregated::{Aggregation, Remote, Remotes};
pub use backend::Backend;
pub use dial::{Trust, keep_alive, named};
pub use headers::{BEARER_PROTOCOL, asks_to_upgrade};
pub use kubelet::of_node;
pub use pass::exchange;
pub use proxy::of_service_port;

/// A request's body, on its way through.
pub type Passed = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Upgraded connections at once: terminals, forwarded ports. Each has two buffers and two connections.
const TUNNELS: usize = 4096;
/// Of the certificate that kubelets are shown, and after how long the next one is issued.
const CLIENT_VALID: Duration = Duration::from_secs(7 * 24 * 3600);
const CLIENT_RENEWED: Duration = Duration::from_secs(24 * 3600);

/// What all passages share.
#[derive(Debug)]
pub struct Passages {
    tunnels: Arc<Semaphore>,
    kubelets: Mutex<Option<(Instant, Arc<ClientConfig>)>>,
}

impl Default for Passages {
    fn default() -> Self {
        Self {
            tunnels: Arc::new(Semaphore::new(TUNNELS)),
            kubelets: Mutex::new(None),
        }
    }
}

impl Passages {
    /// TLS to kubelets, with a certificate that is renewed while the server runs.
    fn kubelet_config(&self, pki: &Pki) -> Result<Arc<ClientConfig>, Failure> {
        let mut kept = self.kubelets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((issued, config)) = kept.as_ref()
            && issued.elapsed() < CLIENT_RENEWED
        {
            return Ok(config.clone());
        }
        let config = pki
            .kubelet_config(CLIENT_VALID)
            .map_err(Failure::internal)?;
        *kept = Some((Instant::now(), config.clone()));
        Ok(config)
    }
}

/// A request that goes on.
#[derive(Debug)]
pub struct Through<'a> {
    pub parts: &'a Parts,
    pub asked: &'a Asked,
    pub resource: &'a Resource,
    pub user: &'a User,
}

/// Whether a request is answered by another.
pub fn is_passed(resource: &Resource, subresource: &str) -> bool {
    resource.group.is_empty()
        && match subresource {
            "log" | "exec" | "attach" | "portforward" => resource.plural == "pods",
            "proxy" => matches!(resource.plural.as_str(), "pods" | "services" | "nodes"),
            _ => false,
        }
}

pub async fn handle(
    api: &Api,
    through: &Through<'_>,
    body: Passed,
) -> Result<Response<Body>, Failure> {
    let name = through.asked.subresource.as_str();
    let known = through
        .resource
        .subresource(name)
        .ok_or_else(Failure::no_such_path)?;
    if !known.verbs.contains(&through.asked.verb.as_str()) {
        return Err(Failure::method_not_allowed());
    }
    if name != "log" {
        admitted(api, through, known.name, known.kind).await?;
    }
    match name {
        "log" => streams::log(api, through).await,
        "proxy" => proxy::handle(api, through, body).await,
        _ => streams::upgrade(api, through).await,
    }
}

/// Webhooks are asked about what is passed on, too (`CONNECT`). Nothing of it is theirs to change.
async fn admitted(
    api: &Api,
    through: &Through<'_>,
    subresource: &'static str,
    kind: Option<(&'static str, &'static str, &'static str)>,
) -> Result<(), Failure> {
    let asked = through.asked;
    let mut options = json!({});
    if let Some((_, version, kind)) = kind {
        options["apiVersion"] = version.into();
        options["kind"] = kind.into();
    }
    let query = &asked.query;
    match subresource {
        "portforward" => {
            let ports = query.all("ports");
            options["ports"] = ports.filter_map(|port| port.parse::<u16>().ok()).collect();
        }
        "proxy" => options["path"] = asked.raw_rest.as_str().into(),
        _ => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(flag) {
                    options[flag] = true.into();
                }
            }
            if query.has("container") {
                options["container"] = query.get("container").into();
            }
            if query.has("command") {
                options["command"] = query.all("command").collect();
            }
        }
    }
    let actor = Actor {
        user: through.user.clone(),
        ..Actor::default()
    };
    let act = Act::connect(through.resource, &asked.namespace, &asked.name, subresource);
    webhooks::validate(api, &actor, &act, None, Some(&options)).await
}
