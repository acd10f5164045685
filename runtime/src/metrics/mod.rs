//! What the daemon counts of itself, for Prometheus (`--metrics-listen`).
//!
//! Counting costs an atomic add and is always on; [`gather`] reads the rest (pods by state, the ledger, the process) only when somebody asks
//! over [`http`]. Every label has a fixed set of values: RPCs by the names of their methods, never by anything that a client sends.

pub mod gather;
pub mod http;
mod text;
mod value;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::Code;

pub use value::{Counter, Histogram};

/// Of one node.
#[derive(Debug, Default)]
pub struct Metrics {
    pub rpcs: Rpcs,
    pub rpcs_in_flight: Counter,
    pub image_pulls: Timed,
    pub shim_starts: Timed,
    pub network_attaches: Timed,
    pub network_detaches: Timed,
    /// The exporter's.
    pub spans_exported: Arc<Counter>,
    pub spans_dropped: Arc<Counter>,
}

/// Something that succeeds or fails, and takes its time.
#[derive(Debug, Default)]
pub struct Timed {
    pub succeeded: Histogram,
    pub failed: Histogram,
}

impl Timed {
    /// Counts the end of what began at `since`.
    pub fn ended<T, E>(&self, since: Instant, result: &Result<T, E>) {
        match result {
            Ok(_) => self.succeeded.observe(since.elapsed()),
            Err(_) => self.failed.observe(since.elapsed()),
        }
    }
}

/// RPCs by method and code. Those that have been called: a node sees a few dozen of the pairs that there could be.
#[derive(Debug, Default)]
pub struct Rpcs(Mutex<BTreeMap<(&'static str, i32), Arc<Histogram>>>);

impl Rpcs {
    pub fn ended(&self, method: &'static str, code: Code, took: Duration) {
        self.of(method, code).observe(took);
    }

    fn of(&self, method: &'static str, code: Code) -> Arc<Histogram> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((method, code as i32)).or_default().clone()
    }

    fn all(&self) -> Vec<(&'static str, Code, Arc<Histogram>)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|((method, code), histogram)| (*method, Code::from(*code), histogram.clone()))
            .collect()
    }
}

/// gRPC's own word for a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpcs_are_counted_by_method_and_code() {
        let rpcs = Rpcs::default();
        for code in [Code::Ok, Code::Ok, Code::NotFound] {
            rpcs.ended("Version", code, Duration::from_millis(3));
        }
        let counts: Vec<_> = rpcs
            .all()
            .into_iter()
            .map(|(method, code, histogram)| (method, code_name(code), histogram.count()))
            .collect();
        assert_eq!(counts, [("Version", "OK", 2), ("Version", "NOT_FOUND", 1)]);
    }
}
