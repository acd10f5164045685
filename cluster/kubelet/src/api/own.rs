//! The node's own object, as the server has it: labels and taints that others may have given it, by which pods are admitted; and what others say of how it does.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use kube::{
    Api,
    runtime::watcher::{self, Event, watcher},
};
use tokio::sync::watch;

use super::{Cluster, node_object, within};

/// Between two tries at a server that does not answer: the first, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(10);
/// A watch is begun anew so often: who is gone without a word is noticed then.
const WATCH_SECONDS: u32 = 120;
/// How long a look at the server itself may take: pods wait for it.
const LOOK: Duration = Duration::from_secs(2);

/// What of it counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// Nobody may give it pods; none: the server has not said anything yet.
    pub unschedulable: Option<bool>,
    /// Without their heartbeats. Whoever has not heard of the node for long says that they are Unknown.
    pub conditions: Vec<NodeCondition>,
}

/// The node's labels, taints and conditions, as they are known now.
#[derive(Debug, Clone)]
pub struct OwnNode {
    seen: watch::Receiver<Seen>,
    cluster: Option<Cluster>,
}

impl OwnNode {
    /// Without a server: nobody else gives it any.
    pub fn alone(name: &str, labels: &BTreeMap<String, String>) -> Self {
        let (_, seen) = watch::channel(first(name, labels));
        Self {
            seen,
            cluster: None,
        }
    }

    /// With the task that follows the server; until that has answered, `labels` are what the node registers with.
    pub fn of(
        cluster: Cluster,
        labels: &BTreeMap<String, String>,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let (told, seen) = watch::channel(first(&cluster.node, labels));
        let task = follow(cluster.clone(), told);
        let cluster = Some(cluster);
        (Self { seen, cluster }, task)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Whether it may be given pods, once that is known and other than `was`; never, where it is not told any more.
    pub(crate) async fn next_schedulable(&mut self, was: Option<bool>) -> bool {
        let is_news = |seen: &Seen| seen.unschedulable.is_some_and(|it| was != Some(!it));
        let seen = self.seen.wait_for(is_news).await;
        let is = seen.map(|seen| seen.unschedulable == Some(false));
        match is {
            Ok(is) => is,
            Err(_) => std::future::pending().await,
        }
    }

    /// As the server says at this moment, or as it is known: a label may have come just before a pod that wants it.
    pub(crate) async fn look(&self) -> Seen {
        let Some(cluster) = &self.cluster else {
            return self.seen();
        };
        let api = Api::<Node>::all(cluster.client.clone());
        match tokio::time::timeout(LOOK, within(api.get(&cluster.node))).await {
            Ok(Ok(node)) => of(&node),
            _ => self.seen(),
        }
    }
}

fn first(name: &str, labels: &BTreeMap<String, String>) -> Seen {
    let mut all = node_object::labels(name);
    all.extend(labels.clone());
    Seen {
        labels: all,
        taints: Vec::new(),
        unschedulable: None,
        conditions: Vec::new(),
    }
}

fn of(node: &Node) -> Seen {
    Seen {
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default(),
        unschedulable: Some(
            node.spec
                .as_ref()
                .and_then(|spec| spec.unschedulable)
                .unwrap_or(false),
        ),
        conditions: node.status.as_ref().map_or_else(Vec::new, |status| {
            node_object::without_heartbeat(status)
                .conditions
                .unwrap_or_default()
        }),
    }
}

async fn follow(cluster: Cluster, told: watch::Sender<Seen>) {
    let api = Api::<Node>::all(cluster.client.clone());
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={}", cluster.node))
        .timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(api, config));
    let mut wait = AGAIN;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = told.closed() => return,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::debug!(%error, "the node's own object can't be watched: its labels and taints are taken as they were");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN_MOST);
            }
            Some(Ok(Event::InitApply(node) | Event::Apply(node))) => {
                wait = AGAIN;
                let seen = of(&node);
                told.send_if_modified(|before| {
                    let is_news = *before != seen;
                    *before = seen;
                    is_news
                });
            }
            // it is registered again; and whoever begins or has listed is followed by the object
            Some(Ok(Event::Delete(_) | Event::Init | Event::InitDone)) => {}
        }
    }
}
