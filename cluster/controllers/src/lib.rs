//! Keeps a cluster as its objects say.
//!
//! ```text
//! API server ── one list and watch a kind ──▶ caches ── handlers ──▶ a work queue a controller ──▶ workers: read the caches, write the difference
//!            ◀──────────────────────────────────────── writes ──────────────────────────────────────┘ (and into the caches at once)
//! ```
//!
//! Invariant: a controller is a function of what is: it can be killed between any two writes, and whoever comes next goes on.
//! Invariant: a controller sees what it wrote: what it made is in the cache before it looks again, so nothing is made twice.

mod autoscale;
mod cache;
mod context;
mod controller;
mod cron_job;
mod error;
mod job;
mod key;
pub mod owner;
mod pod_gc;
mod queue;
mod ttl;
mod ttl_after_finished;

use std::sync::Arc;

use futures_util::future::join_all;
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use self::{
    cache::{Cache, Kind},
    context::{Context, Merge, get},
    error::{Call, Error},
    key::Key,
    queue::Queue,
};
use crate::{
    autoscale::Autoscalers,
    controller::{Controller, Ready, ready},
    cron_job::CronJobs,
    job::Jobs,
    pod_gc::PodGarbageCollector,
    ttl::Ttl,
    ttl_after_finished::TtlAfterFinished,
};

type Begins = fn(&Arc<Context>, &CancellationToken) -> Ready;

/// All there are, by upstream's names.
const ALL: &[(&str, Begins)] = &[
    (Autoscalers::NAME, ready::<Autoscalers>),
    (CronJobs::NAME, ready::<CronJobs>),
    (Jobs::NAME, ready::<Jobs>),
    (PodGarbageCollector::NAME, ready::<PodGarbageCollector>),
    (Ttl::NAME, ready::<Ttl>),
    (TtlAfterFinished::NAME, ready::<TtlAfterFinished>),
];

/// Which controllers run: names, `-NAME` for all but that one, `*` for all. Upstream's `--controllers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection(Vec<String>);

impl Default for Selection {
    fn default() -> Self {
        Self(vec!["*".into()])
    }
}

impl std::str::FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
        for word in &words {
            let name = word.strip_prefix('-').unwrap_or(word);
            if word != "*" && !names().any(|known| known == name) {
                let known: Vec<&str> = names().collect();
                return Err(format!(
                    "there is no controller {name:?}: there are {}",
                    known.join(", ")
                ));
            }
        }
        Ok(Self(words))
    }
}

impl Selection {
    pub fn has(&self, name: &str) -> bool {
        let is = |word: &String, what: &str| word == what;
        if self.0.iter().any(|word| is(word, name)) {
            return true;
        }
        let refused = self
            .0
            .iter()
            .any(|word| word.strip_prefix('-') == Some(name));
        !refused && self.0.iter().any(|word| is(word, "*"))
    }
}

/// The names of all controllers.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

/// Runs the selected controllers until `ends`.
pub async fn run(client: Client, selection: &Selection, ends: CancellationToken) {
    let context = Context::new(client, ends.clone());
    let selected = ALL.iter().filter(|(name, _)| selection.has(name));
    let controllers: Vec<Ready> = selected
        .map(|(_, begins)| begins(&context, &ends))
        .collect();
    tokio::select! {
        () = context.listed() => {}
        () = ends.cancelled() => return,
    }
    tracing::info!(
        controllers = controllers.len(),
        "the cluster is kept as its objects say"
    );
    join_all(controllers).await;
}
