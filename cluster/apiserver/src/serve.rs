//! Connections: TLS, HTTP/1.1 and HTTP/2, and how much one client may take (SEC-API-06).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use berth_auth::Pki;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{authenticate::Peer, router::Router};

/// At once. 5,000 kubelets have two or three each.
const CONNECTIONS: usize = 16_384;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request must be there within it.
const HEADER: Duration = Duration::from_secs(15);
/// Of one connection; upstream's default.
const STREAMS: u32 = 250;
/// Of a request's head.
const HEADER_BYTES: u32 = 64 << 10;
/// Streams that a client resets before they are answered, at once: above it is a rapid reset (CVE-2023-44487).
const RESETS: usize = 64;
/// A silent HTTP/2 client is asked whether it lives.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);
/// What was sent is acknowledged within it, or the client is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// After the end was asked for, requests have this long.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Serves until `ends`; then waits for what is under way, at most [`DRAIN`].
pub async fn serve(
    listener: TcpListener,
    pki: Arc<Pki>,
    router: Router,
    ends: CancellationToken,
) -> Result<(), berth_auth::Error> {
    // It always answers with the newest leaf.
    let acceptor = TlsAcceptor::from(pki.server_config()?);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ends.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                // out of file descriptors: others end meanwhile
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%address, "refused: {CONNECTIONS} connections are open");
            continue;
        };
        let (acceptor, router, ends) = (acceptor.clone(), router.clone(), ends.clone());
        tasks.spawn(async move {
            connection(stream, address, acceptor, router, ends).await;
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    if timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "connections are cut");
    }
    Ok(())
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    ends: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    crate::passage::keep_alive(&stream);
    // A watcher that does not read holds its connection no longer than this.
    let millis = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_user_timeout(&stream, millis);
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "a handshake took too long");
            return;
        }
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| Arc::new(certificate.to_vec()));
    let peer = Arc::new(Peer {
        address: Some(address),
        certificate,
        user: None,
    });
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, peer) = (router.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(router.handle(request, &peer).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(HEADER_BYTES as usize)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ends.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "a connection ended");
    }
}
