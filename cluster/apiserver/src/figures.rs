//! What nodes and pods use: `metrics.k8s.io`, where no other server has that group.
//!
//! ```text
//!   who asks ─▶ Figures ◀─ rates between two looks ◀─ looks, every 15 s ◀─ each kubelet's /metrics/resource (exposition)
//! ```
//!
//! Kubelets are asked as this server asks them for logs: by its own certificate, and what they listen on is in their Node. While nobody has asked for five
//! minutes, they are let alone, too; the first who asks then waits for two looks that are close together.
//!
//! Invariant: a node that does not answer is left out, and so is what was measured once only.

mod exposition;
mod rates;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::Request;
use http_body_util::Empty;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    api::{Api, Call},
    cache::Entry,
    clock,
    failure::Failure,
    passage,
    read::{Selection, path},
};
use exposition::Look;
use rates::{Rate, Track};

pub const GROUP: &str = "metrics.k8s.io";
/// As metrics-server.
const EVERY: Duration = Duration::from_secs(15);
/// Between the first two looks.
const FIRST_APART: Duration = Duration::from_secs(2);
/// Since somebody has asked last.
const REST: Duration = Duration::from_secs(300);
/// The first who asks waits no longer.
const FIRST_WITHIN: Duration = Duration::from_secs(8);
/// Of one kubelet.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 32;
/// Of a kubelet's answer; a node with 500 containers has some 0.3 MB.
const LARGEST: usize = 16 << 20;

/// Of a node, and of its pods by namespace and name.
#[derive(Debug, Default)]
struct NodeFigures {
    node: Option<Rate>,
    pods: BTreeMap<(String, String), Vec<(String, Rate)>>,
}

/// By the name of the node; none: nobody is asked just now.
type Measured = Option<BTreeMap<String, NodeFigures>>;

/// # Synchronization
/// One task looks ([`Figures::run`]); whoever asks notes it, wakes that task, and reads what it has published.
#[derive(Debug, Default)]
pub struct Figures {
    asked: Mutex<Option<Instant>>,
    wake: Notify,
    told: watch::Sender<Arc<Measured>>,
}

impl Figures {
    /// Looks while somebody asks. Ends with its task.
    pub async fn run(api: Arc<Api>) {
        let this = &api.figures;
        loop {
            this.wake.notified().await;
            let mut tracks: HashMap<String, Track> = HashMap::new();
            let mut looks = 0;
            while this.is_asked() {
                let begun = Instant::now();
                tracks = look(&api, tracks).await;
                looks += 1;
                // without a kubelet there is nothing to wait for
                if looks > 1 || tracks.is_empty() {
                    let measured = tracks.iter().map(|(name, track)| (name.clone(), of(track)));
                    this.told.send_replace(Arc::new(Some(measured.collect())));
                }
                let apart = if looks == 1 { FIRST_APART } else { EVERY };
                tokio::time::sleep(apart.saturating_sub(begun.elapsed())).await;
            }
            this.told.send_replace(Arc::default());
        }
    }

    fn is_asked(&self) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|at| at.elapsed() < REST)
    }

    async fn now(&self) -> Arc<Measured> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.wake.notify_one();
        let mut told = self.told.subscribe();
        let known = timeout(FIRST_WITHIN, told.wait_for(|measured| measured.is_some())).await;
        match known {
            Ok(Ok(measured)) => measured.clone(),
            _ => Arc::default(),
        }
    }
}

/// All kubelets, once. Who does not answer is not among those that are returned.
async fn look(api: &Api, mut tracks: HashMap<String, Track>) -> HashMap<String, Track> {
    let (nodes, _) = api.cache.shard("minions").list("", "");
    let mut looks: Vec<BoxFuture<'_, (String, Result<Look, String>)>> =
        Vec::with_capacity(nodes.len());
    for node in &nodes {
        let name = node.name().to_owned();
        looks.push(Box::pin(async move {
            let looked = match timeout(LOOK_WITHIN, ask(api, &name)).await {
                Ok(looked) => looked,
                Err(_) => Err(format!("no answer within {} s", LOOK_WITHIN.as_secs())),
            };
            (name, looked)
        }));
    }
    let looks: Vec<_> = stream::iter(looks)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut now = HashMap::with_capacity(looks.len());
    for (name, looked) in looks {
        match looked {
            Ok(look) => {
                let before = tracks.remove(&name).unwrap_or_default();
                now.insert(name, before.followed_by(look));
            }
            Err(why) => tracing::debug!(node = name, why, "a kubelet does not say what is used"),
        }
    }
    now
}

async fn ask(api: &Api, node: &str) -> Result<Look, String> {
    let backend = passage::of_node(api, node)
        .await
        .map_err(|failure| failure.message)?;
    let request = Request::get("/metrics/resource").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let reached = passage::exchange(&backend, request)
        .await
        .map_err(|error| error.to_string())?;
    let status = reached.response.status();
    if !status.is_success() {
        return Err(format!("{status}: {}", reached.text().await));
    }
    // what has no time of its own is as of now
    let now = Timestamp::now();
    let text = reached.bytes(LARGEST).await?;
    let text = std::str::from_utf8(&text).map_err(|error| error.to_string())?;
    Ok(exposition::read(text, now))
}

fn of(track: &Track) -> NodeFigures {
    let mut figures = NodeFigures {
        node: track.node(),
        pods: BTreeMap::new(),
    };
    for ((namespace, pod, container), rate) in track.containers() {
        let of_pod = figures
            .pods
            .entry((namespace.clone(), pod.clone()))
            .or_default();
        // one that is not known yet would make the pod's sum too little
        of_pod.push((container.clone(), rate));
    }
    figures
        .pods
        .retain(|(namespace, pod), known| track.count(namespace, pod) == known.len());
    figures
}

/// NodeMetrics or PodMetrics that are asked for: all that are selected, or one by its name.
pub async fn read(api: &Api, call: &Call) -> Result<Vec<Value>, Failure> {
    let of_nodes = call.resource.plural == "nodes";
    let catalog = api.served.now();
    let resource = catalog
        .resource("", "v1", &call.resource.plural)
        .ok_or_else(Failure::no_such_path)?;
    let mut selection = Selection::of(resource, &call.asked.namespace, &call.asked.query)?;
    if !call.asked.name.is_empty() {
        selection.prefix = path(resource, &call.asked.namespace, &call.asked.name);
    }
    let measured = api.figures.now().await;
    let Some(measured) = measured.as_ref() else {
        return Ok(Vec::new());
    };
    let shard = api.cache.shard(&resource.storage);
    let (entries, _) = shard.list(&selection.prefix, "");
    let selected = entries.iter().filter(|entry| selection.selects(entry));
    Ok(selected
        .filter_map(|entry| match of_nodes {
            true => of_a_node(entry, measured.get(entry.name())?),
            false => of_a_pod(entry, measured.get(entry.field("spec.nodeName"))?),
        })
        .collect())
}

fn of_a_node(entry: &Entry, figures: &NodeFigures) -> Option<Value> {
    let rate = figures.node.as_ref()?;
    let mut object = object("NodeMetrics", entry, rate);
    object["usage"] = rate.usage();
    Some(object)
}

fn of_a_pod(entry: &Entry, figures: &NodeFigures) -> Option<Value> {
    let id = (entry.namespace().to_owned(), entry.name().to_owned());
    let containers = figures.pods.get(&id)?;
    // its time is that of the container that was looked at first
    let (_, oldest) = containers.iter().min_by_key(|(_, rate)| rate.until)?;
    let mut object = object("PodMetrics", entry, oldest);
    object["metadata"]["namespace"] = entry.namespace().into();
    object["containers"] = containers
        .iter()
        .map(|(name, rate)| json!({"name": name, "usage": rate.usage()}))
        .collect();
    Some(object)
}

fn object(kind: &str, entry: &Entry, rate: &Rate) -> Value {
    let labels: Map<String, Value> = entry
        .labels
        .iter()
        .map(|(key, value)| (key.to_string(), value.as_ref().into()))
        .collect();
    let mut metadata =
        json!({"name": entry.name(), "creationTimestamp": clock::time(clock::now())});
    if !labels.is_empty() {
        metadata["labels"] = labels.into();
    }
    json!({
        "apiVersion": "metrics.k8s.io/v1beta1",
        "kind": kind,
        "metadata": metadata,
        "timestamp": clock::time(rate.until.as_second()),
        "window": rate.window(),
    })
}
