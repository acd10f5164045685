//! The HTTP server of `--metrics-listen`: GET /metrics, nothing else.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{gather::Source, text};
use crate::error::Error;

/// Connections at one time: a Prometheus or two, and a person. More wait in the kernel's queue.
const CONNECTIONS_LIMIT: usize = 8;
/// Bytes of a request's head; hyper's least.
const HEAD_LIMIT: usize = 8 << 10;
const HEADERS_LIMIT: usize = 64;
/// A client that takes longer for its request and our answer is let go: others may wait for its place.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// After an accept that failed (no descriptor is free) the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens; the address is the one that was taken for port 0.
pub async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source: io::Error| Error::Listen {
        what: "metrics",
        address,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "metrics are served beyond this machine, to whoever asks");
    }
    Ok((listener, address))
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, source: Source) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::debug!("accept a connection for metrics: {e}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let source = source.clone();
        tokio::spawn(async move {
            let _ = timeout(CONNECTION_WITHIN, connection(stream, source)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, source: Source) {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, source).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_LIMIT)
        .max_headers(HEADERS_LIMIT)
        // A connection kept open would keep one of the few places.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::debug!("connection for metrics: {e}");
    }
}

async fn answer(request: &Request<Incoming>, source: Source) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics here\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "");
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    match source.gather().await {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            let kind = HeaderValue::from_static(text::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(e) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{e}\n")),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.to_owned()));
    *response.status_mut() = status;
    response
}
