//! Sends spans to a collector, by OTLP over gRPC.
//!
//! A collector that is down or hangs delays nobody: who ends a span never waits, the queue is bounded, and what does not fit or is not taken
//! in time is dropped and counted. Nothing is sent twice: a trace with a hole is worth more than a collector that is flooded when it comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_proto::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans,
    ScopeSpans, Span, any_value, trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

use super::spans::Spans;
use crate::metrics::Counter;

/// Spans that wait: those of some hundred pod starts, at most a few MiB.
const QUEUE: usize = 2048;
/// Spans of one request: some 200 KiB.
const BATCH: usize = 512;
/// A span waits so long for others to go with it.
const LINGER: Duration = Duration::from_secs(1);
/// A request that takes longer is given up.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// What is left when the daemon ends gets so long.
const LAST_WITHIN: Duration = Duration::from_millis(500);
/// That spans are lost is said once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The sending half. To be run, or dropped: then spans are dropped, too.
#[derive(Debug)]
pub struct Exporter {
    endpoint: String,
    queue: mpsc::Receiver<Span>,
    pub dropped: Arc<Counter>,
    pub exported: Arc<Counter>,
}

/// A running exporter.
#[derive(Debug)]
pub struct Running {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Both ends of the queue.
pub(super) fn channel(endpoint: &str, rate_per_million: usize) -> (Spans, Exporter) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let dropped = Arc::new(Counter::default());
    let spans = Spans {
        queue: sender,
        dropped: dropped.clone(),
        rate_per_million: rate_per_million as u32,
    };
    let exporter = Exporter {
        endpoint: endpoint.to_owned(),
        queue,
        dropped,
        exported: Arc::default(),
    };
    (spans, exporter)
}

impl Exporter {
    /// Sends from now on. In a runtime.
    pub fn run(self) -> Running {
        let (end, ended) = oneshot::channel();
        Running {
            end,
            task: tokio::spawn(self.send_until(ended)),
        }
    }

    async fn send_until(mut self, mut ended: oneshot::Receiver<()>) {
        let url = match self.endpoint.contains("://") {
            true => self.endpoint.clone(),
            false => format!("http://{}", self.endpoint),
        };
        let endpoint = match Endpoint::from_shared(url) {
            Ok(endpoint) => endpoint.connect_timeout(CONNECT_WITHIN),
            Err(e) => return tracing::error!("tracing endpoint {}: {e}", self.endpoint),
        };
        let mut client = TraceServiceClient::new(endpoint.connect_lazy());
        let mut complained: Option<Instant> = None;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                came = self.queue.recv_many(&mut batch, BATCH) => if came == 0 { return },
                _ = &mut ended => return self.last(&mut client).await,
            }
            if batch.len() < BATCH {
                tokio::select! {
                    () = sleep(LINGER) => {}
                    _ = &mut ended => {
                        self.export(&mut client, batch, LAST_WITHIN, &mut complained).await;
                        return self.last(&mut client).await;
                    }
                }
                while batch.len() < BATCH
                    && let Ok(span) = self.queue.try_recv()
                {
                    batch.push(span);
                }
            }
            self.export(&mut client, batch, EXPORT_WITHIN, &mut complained)
                .await;
        }
    }

    async fn last(&mut self, client: &mut TraceServiceClient<Channel>) {
        let mut batch = Vec::new();
        while let Ok(span) = self.queue.try_recv() {
            batch.push(span);
        }
        if !batch.is_empty() {
            self.export(client, batch, LAST_WITHIN, &mut None).await;
        }
    }

    async fn export(
        &self,
        client: &mut TraceServiceClient<Channel>,
        batch: Vec<Span>,
        within: Duration,
        complained: &mut Option<Instant>,
    ) {
        let count = batch.len() as u64;
        let (lost, why) = match timeout(within, client.export(request(batch))).await {
            Ok(Ok(answer)) => match answer.into_inner().partial_success {
                Some(refused) => (refused.rejected_spans.max(0) as u64, refused.error_message),
                None => (0, String::new()),
            },
            Ok(Err(status)) => (count, status.to_string()),
            Err(_) => (count, format!("no answer within {within:?}")),
        };
        let lost = lost.min(count);
        self.exported.add(count - lost);
        self.dropped.add(lost);
        if lost > 0 && complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            *complained = Some(Instant::now());
            let all = self.dropped.get();
            tracing::warn!(
                "tracing endpoint {} did not take {lost} spans ({all} are lost so far): {why}",
                self.endpoint
            );
        }
    }
}

impl Running {
    /// Sends what is left, and ends. Takes at most a second.
    pub async fn end(self) {
        let _ = self.end.send(());
        let _ = timeout(2 * LAST_WITHIN, self.task).await;
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let text = |key: &str, value: String| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value)),
        }),
    };
    let node = rustix::system::uname();
    let resource = Resource {
        attributes: vec![
            text("service.name", "berthd".into()),
            text("service.version", env!("CARGO_PKG_VERSION").into()),
            text("host.name", node.nodename().to_string_lossy().into_owned()),
        ],
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "berthd".into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                }),
                spans,
            }],
        }],
    }
}
