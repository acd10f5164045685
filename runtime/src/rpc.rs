//! What surrounds every RPC: its span and its count.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use berth_proto::CRI_RPCS;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tonic::{Code, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field::Empty, info_span};

use crate::node::Node;

/// Paths beyond the CRI's.
const ADMIN_RPCS: [&str; 2] = [
    "/berth.admin.v1.Images/Import",
    "/berth.admin.v1.Images/Pull",
];
/// A path that nobody serves; what a client sends is no label of ours.
const UNKNOWN: &str = "/unknown/Unknown";

/// Wraps a server's services.
#[derive(Debug, Clone)]
pub struct Surrounding(pub Arc<Node>);

/// A wrapped service.
#[derive(Debug, Clone)]
pub struct Surrounded<S> {
    inner: S,
    node: Arc<Node>,
}

impl<S> Layer<S> for Surrounding {
    type Service = Surrounded<S>;

    fn layer(&self, inner: S) -> Surrounded<S> {
        Surrounded {
            inner,
            node: self.0.clone(),
        }
    }
}

impl<S, B> Service<Request<Body>> for Surrounded<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = known(request.uri().path());
        let span = span(path, request.headers());
        let mut counted = Counted::begin(self.node.clone(), path, span.clone());
        let answer = span.in_scope(|| self.inner.call(request));
        let surrounded = async move {
            let response = answer.await?;
            counted.code = code(response.headers());
            drop(counted);
            Ok(response)
        };
        Box::pin(surrounded.instrument(span))
    }
}

/// Our own constant for a path: what is counted by it is bounded.
fn known(path: &str) -> &'static str {
    let all = CRI_RPCS.iter().chain(&ADMIN_RPCS);
    all.copied().find(|rpc| *rpc == path).unwrap_or(UNKNOWN)
}

fn method(path: &'static str) -> &'static str {
    path.rsplit_once('/').map_or(path, |(_, method)| method)
}

fn span(path: &'static str, headers: &HeaderMap) -> Span {
    let name = path.trim_start_matches('/');
    let service = name.split_once('/').map_or("", |(service, _)| service);
    let parent = headers.get("traceparent").and_then(|v| v.to_str().ok());
    info_span!(
        "rpc",
        rpc = method(path),
        pod_id = Empty,
        container_id = Empty,
        namespace = Empty,
        name = Empty,
        otel.name = name,
        otel.service = service,
        otel.traceparent = parent,
        otel.grpc_code = Empty,
    )
}

/// An error is in the headers, an answer ends with its code.
fn code(headers: &HeaderMap) -> Code {
    match headers.get("grpc-status") {
        Some(status) => Code::from_bytes(status.as_bytes()),
        None => Code::Ok,
    }
}

/// Counts at its end, also where the client has left and the call is dropped.
struct Counted {
    node: Arc<Node>,
    path: &'static str,
    since: Instant,
    span: Span,
    code: Code,
}

impl Counted {
    fn begin(node: Arc<Node>, path: &'static str, span: Span) -> Self {
        node.metrics.rpcs_in_flight.add(1);
        Self {
            node,
            path,
            since: Instant::now(),
            span,
            code: Code::Cancelled,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let metrics = &self.node.metrics;
        metrics.rpcs_in_flight.sub(1);
        metrics
            .rpcs
            .ended(method(self.path), self.code, self.since.elapsed());
        self.span.record("otel.grpc_code", self.code as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sends_is_no_label() {
        assert_eq!(
            method(known("/runtime.v1.RuntimeService/Version")),
            "Version"
        );
        for path in [
            "/x",
            "",
            "/runtime.v1.RuntimeService/version",
            "//",
            "/a/b/c",
        ] {
            assert_eq!(known(path), UNKNOWN);
        }
        let mut methods: Vec<_> = CRI_RPCS
            .iter()
            .chain(&ADMIN_RPCS)
            .map(|p| method(p))
            .collect();
        let all = methods.len();
        methods.sort_unstable();
        methods.dedup();
        assert_eq!(methods.len(), all, "two services have a method of one name");
    }
}
