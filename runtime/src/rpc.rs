//! What surrounds every RPC: its span, its count, and the time that its caller gives it.
//!
//! tonic keeps the time of `grpc-timeout` too, but answers CANCELLED, "Timeout expired". Where that reaches a client before its own clock
//! does, a deadline looks like somebody's change of mind. So the time is kept here, and is over first: this timer begins before tonic's,
//! which asks its own only when the call below has nothing to say.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use berth_proto::CRI_RPCS;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tonic::{Code, Status, body::Body};
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
    B: Default + Send + 'static,
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
        let limit = timeout(request.headers());
        let answer = span.in_scope(|| self.inner.call(request));
        let expired = limit.map(tokio::time::sleep);
        let surrounded = async move {
            let response = match expired {
                None => answer.await?,
                Some(expired) => tokio::select! {
                    biased;
                    answer = answer => answer?,
                    () = expired => late(path, limit.unwrap_or_default()).into_http(),
                },
            };
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

/// The time that a caller gives: `grpc-timeout` as gRPC's protocol over HTTP/2 has it, at most eight digits and a unit. `None`: any.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn late(path: &'static str, limit: Duration) -> Status {
    Status::deadline_exceeded(format!(
        "{}: no answer within the {limit:?} that the caller gives it",
        method(path)
    ))
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
    fn the_callers_time_is_read_as_grpc_writes_it() {
        for (text, time) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("20S", Some(Duration::from_secs(20))),
            ("1m", Some(Duration::from_millis(1))),
            ("999872u", Some(Duration::from_micros(999_872))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(359_999_996_400))),
            ("100000000n", None),
            ("", None),
            ("S", None),
            ("5", None),
            ("+1S", None),
            ("1s", None),
            ("1 S", None),
        ] {
            let headers = HeaderMap::from_iter([("grpc-timeout", text)].map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    value.parse().expect("a header's value"),
                )
            }));
            assert_eq!(timeout(&headers), time, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

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
