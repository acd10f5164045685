//! The kubelet's HTTPS server: logs, exec, attach, port-forward, and what the node uses.
//!
//! ```text
//! TLS ─▶ access: who is it, and may they? (the API server is asked) ─▶ logs     files of the node, safely opened
//!                                                                   ├▶ streams  the runtime's own URL, bytes both ways
//!                                                                   └▶ figures  /pods, /stats/summary, /metrics
//! ```
//!
//! Invariant: nothing but `/healthz` is answered to who has not said who they are and may (SEC-KUB-02).
//! Invariant: whoever changes something in a container has `create`, by whatever method they ask (SEC-KUB-03).

mod access;
mod certificate;
mod figures;
mod logs;
mod streams;
mod summary;

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, crypto::ring, pki_types::CertificateDer,
        server::WebPkiClientVerifier,
    },
};

use crate::{Cluster, Error, Kubelet, node::Node};

use access::{Access, Denied};
pub use certificate::Certificate;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// At once.
const CONNECTIONS: usize = 1024;
/// Upgraded connections at once: terminals, forwarded ports.
const TUNNELS: usize = 512;
/// A handshake, and the head of a request, must be there within it.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(15);
/// Of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// A silent other side is asked after so long whether it lives, and again after so long.
const ALIVE_AFTER: Duration = Duration::from_secs(60);
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Where, and as whom.
#[derive(Debug)]
pub struct Listen {
    pub address: SocketAddr,
    pub certificate: Certificate,
    /// The CA (PEM) of clients with certificates; by default the one of the API server.
    pub client_ca: Option<PathBuf>,
}

/// Listens; serves once it is run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    identity: Arc<certificate::Identity>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: Node,
    access: Access,
    figures: figures::Figures,
    tunnels: Arc<Semaphore>,
}

impl Server {
    /// # Errors
    /// The port is taken, or a certificate can't be used.
    pub async fn bind(kubelet: &Kubelet, cluster: Cluster, listen: Listen) -> Result<Self, Error> {
        let failed = |why: String| Error::Serve {
            address: listen.address.to_string(),
            why,
        };
        let node = kubelet.node();
        let listener = TcpListener::bind(listen.address)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let address = listener
            .local_addr()
            .map_err(|error| failed(error.to_string()))?;
        let identity = certificate::Identity::open(
            listen.certificate,
            &node.config.node,
            &node.config.kubelet_dir.join("pki"),
            cluster.clone(),
        )
        .map_err(failed)?;
        let roots = match &listen.client_ca {
            Some(path) => certificate::read_roots(path).map_err(failed)?,
            None => cluster
                .ca
                .iter()
                .map(|der| CertificateDer::from(der.clone()))
                .collect(),
        };
        let tls = tls(roots, identity.clone()).map_err(failed)?;
        let shared = Arc::new(Shared {
            access: Access::new(cluster),
            figures: figures::Figures::default(),
            tunnels: Arc::new(Semaphore::new(TUNNELS)),
            node,
        });
        Ok(Self {
            listener,
            address,
            tls,
            identity,
            shared,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let acceptor = TlsAcceptor::from(self.tls);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let shared = self.shared;
        let mut connections = tokio::task::JoinSet::new();
        connections.spawn(self.identity.keep());
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    // out of file descriptors: others end meanwhile
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!("refused: {CONNECTIONS} connections are open");
                continue;
            };
            let (acceptor, shared) = (acceptor.clone(), shared.clone());
            connections.spawn(async move {
                connection(stream, acceptor, shared).await;
                drop(place);
            });
        }
    }
}

/// Who shows a certificate must have a good one; who shows none may have a token.
fn tls(
    roots: Vec<CertificateDer<'static>>,
    identity: Arc<certificate::Identity>,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root).map_err(|error| error.to_string())?;
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match store.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| error.to_string())?,
        ),
    };
    Ok(Arc::new(builder.with_cert_resolver(identity)))
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let _ = sockopt::set_tcp_keepidle(&stream, ALIVE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(&stream, ALIVE_EVERY);
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| Arc::new(certificate.to_vec()));
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, certificate) = (shared.clone(), certificate.clone());
        async move {
            let certificate = certificate.as_ref().map(|it| it.as_slice());
            Ok::<_, Infallible>(shared.answer(request, certificate).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

impl Shared {
    async fn answer(
        &self,
        request: Request<Incoming>,
        certificate: Option<&[u8]>,
    ) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::OK, "ok");
        }
        if let Err(denied) = self.access.check(&request, certificate).await {
            return match denied {
                Denied::Nobody => text(StatusCode::UNAUTHORIZED, "Unauthorized"),
                Denied::MayNot(why) => text(StatusCode::FORBIDDEN, &why),
                Denied::NotKnown(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &why),
            };
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let is_get = request.method() == Method::GET;
        match parts.as_slice() {
            ["containerLogs", namespace, pod, container] if is_get => {
                let (namespace, pod, container) = (
                    (*namespace).to_owned(),
                    (*pod).to_owned(),
                    (*container).to_owned(),
                );
                logs::answer(
                    &self.node,
                    &namespace,
                    &pod,
                    &container,
                    request.uri().query(),
                )
                .await
            }
            ["exec" | "attach" | "portForward", ..] => {
                streams::answer(&self.node, self.tunnels.clone(), request).await
            }
            ["pods"] if is_get => {
                let items: Vec<_> = self.node.view.all().iter().map(|it| it.whole()).collect();
                json(
                    &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
                )
            }
            ["stats", "summary"] if is_get => match self.figures.summary(&self.node).await {
                Ok(summary) => json(&summary),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            ["metrics"] if is_get => metrics(self.figures.own(&self.node)),
            ["metrics", "resource"] if is_get => match self.figures.resource(&self.node).await {
                Ok(all) => metrics(all),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }
}

pub(crate) fn text(status: StatusCode, text: &str) -> Response<Body> {
    whole(status, "text/plain; charset=utf-8", text.to_owned().into())
}

fn json(value: &serde_json::Value) -> Response<Body> {
    whole(StatusCode::OK, "application/json", value.to_string().into())
}

fn metrics(text: String) -> Response<Body> {
    whole(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        text.into(),
    )
}

fn whole(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response<Body> {
    let body = Full::new(bytes).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}
