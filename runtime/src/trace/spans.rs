//! Spans of sampled traces, kept while they are open and handed to [`super::export`] when they close.
//!
//! A trace begins with the span of an RPC: the client's decision counts where it sent one, else chance. What is below no such span
//! (recovery, the watch of a shim) is not traced.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use berth_proto::otlp::{AnyValue, KeyValue, Span, SpanKind, Status, StatusCode, any_value};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::{Subscriber, span};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use super::{
    context::{self, Remote},
    fields::{CODE, ERROR, Fields, NAME, PARENT},
};
use crate::metrics::Counter;

/// Name of the `tracing` span with which a trace begins.
pub const ROOT: &str = "rpc";
/// Of a million.
const MILLION: u32 = 1_000_000;
/// OTLP's flags of a span: W3C's "sampled", and that it is known whether the parent is another process' (and that it is).
const SAMPLED: u32 = 1;
const KNOWS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

#[derive(Debug)]
pub struct Spans {
    pub(super) queue: mpsc::Sender<Span>,
    pub(super) dropped: Arc<Counter>,
    pub(super) rate_per_million: u32,
}

/// A span that is open.
#[derive(Debug)]
struct Open {
    span: Span,
    fields: Fields,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let Some(here) = context.span(id) else { return };
        let mut fields = Fields::default();
        let parent = here.parent().and_then(|parent| {
            let extensions = parent.extensions();
            let Open { span, .. } = extensions.get::<Open>()?;
            Some((span.trace_id.clone(), span.span_id.clone()))
        });
        let is_root = attributes.metadata().name() == ROOT;
        let ((trace_id, parent_span_id), flags) = match parent {
            Some(parent) => (parent, SAMPLED | KNOWS_REMOTE),
            None if is_root => {
                attributes.record(&mut fields);
                let remote = fields.take(PARENT);
                let remote = remote
                    .as_ref()
                    .and_then(Value::as_str)
                    .and_then(context::parse);
                match self.begin(remote) {
                    Some(begun) => begun,
                    None => return,
                }
            }
            None => return,
        };
        if fields.0.is_empty() {
            attributes.record(&mut fields);
        }
        let span = Span {
            trace_id,
            span_id: rand::random::<[u8; 8]>().to_vec(),
            parent_span_id,
            flags,
            name: attributes.metadata().name().to_owned(),
            kind: match is_root {
                true => SpanKind::Server.into(),
                false => SpanKind::Internal.into(),
            },
            start_time_unix_nano: now_ns(),
            ..Span::default()
        };
        here.extensions_mut().insert(Open { span, fields });
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let Some(here) = context.span(id) else { return };
        let mut extensions = here.extensions_mut();
        let Some(open) = extensions.get_mut::<Open>() else {
            return;
        };
        values.record(&mut open.fields);
        // The RPC is answered; its driver may hold the span a moment longer.
        if open.fields.0.iter().any(|(name, _)| *name == CODE) && open.span.end_time_unix_nano == 0
        {
            open.span.end_time_unix_nano = now_ns();
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let open = context
            .span(&id)
            .and_then(|here| here.extensions_mut().remove::<Open>());
        if let Some(open) = open
            && self.queue.try_send(open.close()).is_err()
        {
            self.dropped.add(1);
        }
    }
}

/// Ids of a trace and of a parent in it (none for a first span).
type Origin = (Vec<u8>, Vec<u8>);

impl Spans {
    /// Trace and parent of a first span, with its flags; `None`: not sampled.
    fn begin(&self, remote: Option<Remote>) -> Option<(Origin, u32)> {
        match remote {
            Some(Remote {
                trace_id,
                span_id,
                sampled: true,
            }) => Some((
                (trace_id.to_vec(), span_id.to_vec()),
                SAMPLED | KNOWS_REMOTE | IS_REMOTE,
            )),
            Some(_) => None,
            None => {
                let sampled = rand::random::<u32>() % MILLION < self.rate_per_million;
                let begun = || {
                    let trace_id = rand::random::<[u8; 16]>().to_vec();
                    ((trace_id, vec![]), SAMPLED | KNOWS_REMOTE)
                };
                sampled.then(begun)
            }
        }
    }
}

impl Open {
    fn close(self) -> Span {
        let Self {
            mut span,
            mut fields,
        } = self;
        if span.end_time_unix_nano == 0 {
            span.end_time_unix_nano = now_ns();
        }
        if let Some(Value::String(name)) = fields.take(NAME) {
            span.name = name;
        }
        let error = fields.take(ERROR);
        let code = fields.take(CODE).and_then(|code| code.as_i64());
        let failed = error.is_some() || code.is_some_and(|code| code != 0);
        span.status = failed.then(|| Status {
            message: error
                .as_ref()
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            code: StatusCode::Error.into(),
        });
        if let Some(code) = code {
            span.attributes
                .push(attribute("rpc.grpc.status_code", code.into()));
            span.attributes.push(attribute("rpc.system", "grpc".into()));
        }
        span.attributes.extend(
            fields
                .0
                .into_iter()
                .map(|(name, value)| attribute(key(name), value)),
        );
        span
    }
}

/// The semantic conventions' names, where they have one.
fn key(name: &'static str) -> &'static str {
    match name {
        "rpc" => "rpc.method",
        "otel.service" => "rpc.service",
        "pod_id" => "k8s.pod.sandbox_id",
        "container_id" => "container.id",
        "namespace" => "k8s.namespace.name",
        "name" => "k8s.pod.name",
        name => name,
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    use any_value::Value as Any;
    let value = match value {
        Value::Bool(value) => Any::BoolValue(value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(value), _) => Any::IntValue(value),
            (None, value) => Any::DoubleValue(value.unwrap_or_default()),
        },
        Value::String(text) => Any::StringValue(text),
        other => Any::StringValue(other.to_string()),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use tracing::{field::Empty, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT_ID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traced(rate_per_million: u32, queue: usize, work: impl FnOnce()) -> (Vec<Span>, u64) {
        let (sender, mut receiver) = mpsc::channel(queue);
        let dropped = Arc::new(Counter::default());
        let spans = Spans {
            queue: sender,
            dropped: dropped.clone(),
            rate_per_million,
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(spans), work);
        let mut closed = Vec::new();
        while let Ok(span) = receiver.try_recv() {
            closed.push(span);
        }
        (closed, dropped.get())
    }

    fn rpc(parent: Option<&str>) -> tracing::Span {
        info_span!(
            "rpc",
            rpc = "Version",
            otel.name = "S/Version",
            otel.traceparent = parent,
            otel.grpc_code = Empty
        )
    }

    #[test]
    fn spans_below_an_rpc_have_its_trace_and_each_its_parent() {
        let (spans, _) = traced(0, 16, || {
            let rpc = rpc(Some(PARENT_ID));
            rpc.in_scope(|| {
                info_span!(
                    "work",
                    otel.name = "run pod",
                    pod_id = "4f",
                    otel.error = Empty
                )
                .in_scope(|| {
                    tracing::Span::current().record("otel.error", "it broke");
                    info_span!("phase").in_scope(|| {});
                });
            });
            rpc.record("otel.grpc_code", 13);
        });
        let names: Vec<_> = spans.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["phase", "run pod", "S/Version"]);
        let [phase, work, rpc] = &spans[..] else {
            panic!()
        };
        assert_eq!(hex::encode(&rpc.parent_span_id), "b7ad6b7169203331");
        assert_eq!(work.parent_span_id, rpc.span_id);
        assert_eq!(phase.parent_span_id, work.span_id);
        for span in &spans {
            assert_eq!(
                hex::encode(&span.trace_id),
                "0af7651916cd43dd8448eb211c80319c"
            );
            assert!(
                span.end_time_unix_nano >= span.start_time_unix_nano
                    && span.start_time_unix_nano > 0
            );
        }
        assert_eq!(rpc.kind(), SpanKind::Server);
        let status = work.status.clone().unwrap();
        assert_eq!(
            (status.message.as_str(), status.code()),
            ("it broke", StatusCode::Error)
        );
        assert_eq!(rpc.status.clone().unwrap().code(), StatusCode::Error);
        assert_eq!(phase.status, None);
        assert!(
            work.attributes
                .iter()
                .any(|a| a.key == "k8s.pod.sandbox_id")
        );
        assert!(
            rpc.attributes
                .iter()
                .any(|a| a.key == "rpc.grpc.status_code")
        );
    }

    #[test]
    fn the_clients_decision_counts_and_else_the_rate() {
        let unsampled = PARENT_ID.replace("-01", "-00");
        for (parent, rate, sampled) in [
            (Some(PARENT_ID), 0, true),
            (Some(unsampled.as_str()), MILLION, false),
            (None, MILLION, true),
            (None, 0, false),
            (Some("rubbish"), 0, false),
            (Some("rubbish"), MILLION, true),
        ] {
            let (spans, _) = traced(rate, 16, || drop(rpc(parent).entered()));
            assert_eq!(spans.len(), usize::from(sampled), "{parent:?} {rate}");
        }
    }

    #[test]
    fn what_no_rpc_asked_for_is_not_traced() {
        let (spans, _) = traced(MILLION, 16, || info_span!("work").in_scope(|| {}));
        assert_eq!(spans, []);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (spans, dropped) = traced(MILLION, 2, || {
            for _ in 0..5 {
                drop(rpc(None));
            }
        });
        assert_eq!((spans.len(), dropped), (2, 3));
    }
}
