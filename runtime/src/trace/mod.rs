//! What the daemon tells while it works: log lines, and spans for an OTLP collector.
//!
//! Both come from `tracing` spans: one an RPC ([`crate::rpc`]), one a piece of a driver's work below it (it names the pod, and survives the
//! RPC that asked for it), one a phase of that work ([`phase`]). [`lines`] writes each event with the ids of the spans around it; [`spans`],
//! where an endpoint is configured, keeps what belongs to a sampled trace until it ends, and [`export`] sends it. Without an endpoint the
//! latter two are not there: no queue, no task, no memory.
//!
//! Written on `tracing-subscriber` alone. OpenTelemetry's SDK was weighed and left out: its batch processor has a thread of its own, tells
//! nobody what it dropped, and with its exporter and the bridge to `tracing` it is four crates for one message of OTLP, which `berth-proto`
//! has beside the others.

mod context;
mod export;
mod fields;
mod lines;
mod spans;

use std::{fmt::Display, io};

use tracing::{Instrument, Metadata, Span};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, FilterFn, LevelFilter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{Config, LogLevel};
pub use export::Exporter;

/// Sets up log lines on stderr and, where there is an endpoint, spans. The exporter is to be run once there is a runtime.
pub fn setup(config: &Config) -> Option<Exporter> {
    let lines = lines::Lines::new(
        config.log_format,
        io::IsTerminal::is_terminal(&io::stderr()),
    );
    // A span is what lines take their ids from, whatever their level.
    let lines = lines.with_filter(EnvFilter::new(directives(config.log_level)).or(own_spans()));
    let (spans, exporter) = match config.tracing.endpoint.as_str() {
        "" => (None, None),
        endpoint => {
            let rate = config.tracing.sampling_rate_per_million;
            let (spans, exporter) = export::channel(endpoint, rate);
            (Some(spans.with_filter(own_spans())), Some(exporter))
        }
    };
    // Somebody set one already: then it is good.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(spans)
        .try_init();
    exporter
}

/// Our own lines at `level`; the libraries below only where something is wrong, unless everything is asked for.
fn directives(level: LogLevel) -> String {
    match level {
        LogLevel::Trace => "trace".to_owned(),
        level => format!(
            "warn,berthd={0},berth_image={0},berth_network={0},berth_nri={0},berth_spec={0},berth_state={0},berth_stream={0}",
            level.as_str()
        ),
    }
}

/// All of our spans are of one level, which is the hint: events below it stay as cheap as the log level makes them.
fn own_spans() -> FilterFn {
    FilterFn::new(is_own_span as fn(&Metadata<'_>) -> bool).with_max_level_hint(LevelFilter::INFO)
}

fn is_own_span(of: &Metadata<'_>) -> bool {
    of.is_span() && of.target().starts_with("berth")
}

/// The span of a step, for [`phase`].
macro_rules! step {
    ($name:literal) => {
        tracing::info_span!($name, otel.error = tracing::field::Empty)
    };
}
pub(crate) use step;

/// A phase of what the current span is about: `phase(step!("…"), work)`. Its error, if any, is the span's.
pub async fn phase<T, E: Display>(
    span: Span,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let result = work.instrument(span.clone()).await;
    failed(&span, &result);
    result
}

/// A [`phase`] that blocks, or takes no time worth waiting for.
pub fn phase_now<T, E: Display>(span: Span, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let result = span.in_scope(work);
    failed(&span, &result);
    result
}

fn failed<T, E: Display>(span: &Span, result: &Result<T, E>) {
    if let Err(e) = result {
        span.record(fields::ERROR, tracing::field::display(e));
    }
}
