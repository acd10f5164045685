//! Keeps a cluster as its objects say.
//!
//! ```text
//! API server ── one list and watch a kind ──▶ caches ── handlers ──▶ a work queue a controller ──▶ workers: read the caches, write the difference
//!            ◀──────────────────────────────────────── writes ──────────────────────────────────────┘ (and into the caches at once)
//! ```
//!
//! Invariant: a controller is a function of what is: it can be killed between any two writes, and whoever comes next goes on.
//! Invariant: a controller sees what it wrote: what it made is in the cache before it looks again, so nothing is made twice.

mod account_tokens;
mod autoscale;
mod cache;
mod claim;
mod condition;
mod context;
mod controller;
mod crew;
mod cron_job;
mod daemonset;
mod deployment;
mod disruption;
mod endpoint_mirror;
mod endpoint_slices;
mod endpoints;
mod ephemeral_volumes;
mod error;
mod job;
mod key;
mod node_ipam;
mod node_lifecycle;
mod options;
pub mod owner;
mod percent;
mod pod;
mod pod_gc;
mod pods_on_nodes;
mod queue;
mod replicaset;
mod revision;
mod service_pods;
mod slow_start;
mod statefulset;
mod taint_eviction;
mod template;
mod ttl;
mod ttl_after_finished;
mod volume_binder;
mod volume_protection;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

pub use self::{
    account_tokens::AccountTokens,
    cache::{Cache, Kind},
    context::{Callers, Context, Merge, get},
    error::{Call, Error},
    key::Key,
    node_ipam::PodNetwork,
    node_lifecycle::NodeMonitor,
    options::Options,
    queue::Queue,
};
use crate::{
    account_tokens::TokenSecrets,
    autoscale::Autoscalers,
    controller::{Controller, Ready, ready},
    cron_job::CronJobs,
    daemonset::DaemonSets,
    deployment::Deployments,
    disruption::Disruption,
    endpoint_mirror::EndpointMirror,
    endpoint_slices::EndpointSlices,
    endpoints::EndpointsOfServices,
    ephemeral_volumes::EphemeralVolumes,
    job::Jobs,
    node_ipam::NodeIpam,
    node_lifecycle::NodeLifecycle,
    pod_gc::PodGarbageCollector,
    replicaset::ReplicaSets,
    statefulset::StatefulSets,
    taint_eviction::TaintEviction,
    ttl::Ttl,
    ttl_after_finished::TtlAfterFinished,
    volume_binder::VolumeBinder,
    volume_protection::{ClaimProtection, VolumeProtection},
};

type Begins = fn(&Context, &CancellationToken) -> Ready;

/// All there are, by upstream's names.
const ALL: &[(&str, Begins)] = &[
    (ClaimProtection::NAME, ready::<ClaimProtection>),
    (Disruption::NAME, ready::<Disruption>),
    (EndpointMirror::NAME, ready::<EndpointMirror>),
    (EndpointSlices::NAME, ready::<EndpointSlices>),
    (EndpointsOfServices::NAME, ready::<EndpointsOfServices>),
    (EphemeralVolumes::NAME, ready::<EphemeralVolumes>),
    (NodeIpam::NAME, ready::<NodeIpam>),
    (NodeLifecycle::NAME, ready::<NodeLifecycle>),
    (TaintEviction::NAME, ready::<TaintEviction>),
    (TokenSecrets::NAME, ready::<TokenSecrets>),
    (Ttl::NAME, ready::<Ttl>),
    (VolumeBinder::NAME, ready::<VolumeBinder>),
    (VolumeProtection::NAME, ready::<VolumeProtection>),
    (Autoscalers::NAME, ready::<Autoscalers>),
    (CronJobs::NAME, ready::<CronJobs>),
    (Jobs::NAME, ready::<Jobs>),
    (PodGarbageCollector::NAME, ready::<PodGarbageCollector>),
    (TtlAfterFinished::NAME, ready::<TtlAfterFinished>),
    (DaemonSets::NAME, ready::<DaemonSets>),
    (Deployments::NAME, ready::<Deployments>),
    (ReplicaSets::NAME, ready::<ReplicaSets>),
    (StatefulSets::NAME, ready::<StatefulSets>),
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
pub async fn run(
    callers: Callers,
    selection: &Selection,
    options: Options,
    ends: CancellationToken,
) {
    let context = Context::new(callers, options, ends.clone());
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
