//! A task a probe: it asks in its interval, and tells the pod's worker what has changed.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{Check, Kind, Outcome, counter::Counter};
use crate::runtime::Runtime;

/// A probe has found something that counts.
#[derive(Debug)]
pub(crate) struct Report {
    pub container: String,
    pub name: String,
    pub kind: Kind,
    pub good: bool,
    /// Whether the threshold is reached; a failure below it is only told of.
    pub counts: bool,
    pub message: String,
    pub grace_seconds: Option<i64>,
}

/// What a probe's task is about.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub container: String,
    pub name: String,
    pub kind: Kind,
    pub probe: Probe,
    pub check: Check,
    /// How long the container has been running.
    pub age: Duration,
}

/// Ends when `reports` does, when nothing more can be found, or by the handle. Until `started`, only the probe for that asks.
pub(crate) fn spawn(
    watch: Watch,
    runtime: Runtime,
    started: watch::Sender<bool>,
    reports: mpsc::Sender<Report>,
) -> AbortHandle {
    tokio::spawn(run(watch, runtime, started, reports)).abort_handle()
}

async fn run(
    watch: Watch,
    runtime: Runtime,
    started: watch::Sender<bool>,
    reports: mpsc::Sender<Report>,
) {
    let seconds = |value: Option<i32>, default: u64| {
        value.map_or(default, |it| it.max(0).unsigned_abs().into())
    };
    let probe = &watch.probe;
    let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
    let within = Duration::from_secs(seconds(probe.timeout_seconds, 1).max(1));
    let delay =
        Duration::from_secs(seconds(probe.initial_delay_seconds, 0)).saturating_sub(watch.age);
    if watch.kind != Kind::Startup
        && started
            .subscribe()
            .wait_for(|started| *started)
            .await
            .is_err()
    {
        return;
    }
    let mut ticks = interval_at(Instant::now() + delay, period);
    // A late answer, or a machine that slept, is no reason to ask in a row.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counter = Counter::of(probe);
    let mut told = None;
    loop {
        ticks.tick().await;
        let asks = watch.check.ask(&runtime, &watch.container, within);
        // on the heap while it goes on: most of the time a probe waits for its next turn
        let (good, message) = match Box::pin(asks).await {
            Outcome::Good => (true, String::new()),
            Outcome::Bad(why) => (false, why),
            Outcome::Unknown(why) => {
                tracing::debug!(container = %watch.name, kind = watch.kind.as_str(), why, "a probe could not ask");
                continue;
            }
        };
        let reached = counter.take(good);
        let counts = reached.is_some();
        // A success is news once; each failure is worth an event.
        let is_news = !good || (counts && told != reached);
        if counts {
            told = reached;
        }
        if is_news {
            let report = Report {
                container: watch.container.clone(),
                name: watch.name.clone(),
                kind: watch.kind,
                good,
                counts,
                message,
                grace_seconds: probe.termination_grace_period_seconds,
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
        match (watch.kind, reached) {
            (Kind::Startup, Some(true)) => {
                let _ = started.send(true);
                return;
            }
            // the worker kills the container; the next one has a task of its own
            (Kind::Startup | Kind::Liveness, Some(false)) => return,
            _ => {}
        }
    }
}
