//! What the server counts, as `/metrics` tells it. Labels are verbs and codes only: what a client sends never becomes a series (SEC-API-04).

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    watchers: Arc<AtomicU64>,
}

/// Counts one watch while it lasts.
#[derive(Debug)]
pub struct Watching(Arc<AtomicU64>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn answered(&self, verb: &'static str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((verb, code)).or_default() += 1;
    }

    pub fn watching(&self) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(self.watchers.clone())
    }

    /// Prometheus' text form. `objects`: how many of each kind there are.
    pub fn text(&self, objects: &[(String, usize)]) -> String {
        let mut text = String::from(
            "# HELP apiserver_request_total Requests that were answered.\n# TYPE apiserver_request_total counter\n",
        );
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((verb, code), count) in requests.iter() {
            let _ = writeln!(
                text,
                "apiserver_request_total{{verb=\"{verb}\",code=\"{code}\"}} {count}"
            );
        }
        text.push_str(
            "# HELP apiserver_longrunning_requests Watches that are open.\n# TYPE apiserver_longrunning_requests gauge\n",
        );
        let watchers = self.watchers.load(Ordering::Relaxed);
        let _ = writeln!(
            text,
            "apiserver_longrunning_requests{{verb=\"watch\"}} {watchers}"
        );
        text.push_str(
            "# HELP apiserver_storage_objects Objects that are kept.\n# TYPE apiserver_storage_objects gauge\n",
        );
        for (storage, count) in objects {
            let _ = writeln!(
                text,
                "apiserver_storage_objects{{resource=\"{storage}\"}} {count}"
            );
        }
        text
    }
}
