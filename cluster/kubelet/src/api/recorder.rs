//! What happens to pods, told as Events of the API. They are for people: when too many wait, or the server is away, the newest are let go.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Cluster, Failed, within};
use crate::{Happening, Level};

/// That wait to be written.
const WAITING: usize = 512;
/// Of which it is remembered that they were told, so that the next of their kind is a count.
const REMEMBERED: usize = 1024;
/// So often at most one and the same event is written again; in between it is counted.
const SAME_EVERY: Duration = Duration::from_secs(10);
/// A server bounds it.
const MESSAGE_BYTES: usize = 1024;

/// Takes what happens, and never waits.
#[derive(Debug, Clone)]
pub struct Recorder(mpsc::Sender<(Happening, Timestamp)>);

#[derive(Debug)]
struct Told {
    name: String,
    count: i32,
    written: tokio::time::Instant,
}

impl Recorder {
    /// With the task that writes; it ends with the last recorder.
    pub fn new(cluster: Cluster) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), write(cluster, receiver))
    }

    pub fn record(&self, happening: &Happening) {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        // full: it was in the log
        let _ = self.0.try_send((happening.clone(), now));
    }
}

/// What makes two the same: pod, field, reason and message.
type Key = (String, String, &'static str, String);

async fn write(cluster: Cluster, mut receiver: mpsc::Receiver<(Happening, Timestamp)>) {
    let mut told: HashMap<Key, Told> = HashMap::new();
    while let Some((happening, at)) = receiver.recv().await {
        let Some((namespace, name)) = happening.pod.split_once('/') else {
            continue;
        };
        let message = cut(&happening.message);
        let key = (
            happening.uid.clone(),
            happening.field.clone(),
            happening.reason,
            message.to_owned(),
        );
        let api = Api::<Event>::namespaced(cluster.client.clone(), namespace);
        if let Some(before) = told.get_mut(&key) {
            before.count = before.count.saturating_add(1);
            if before.written.elapsed() < SAME_EVERY {
                continue;
            }
            before.written = tokio::time::Instant::now();
            let patch = json!({"count": before.count, "lastTimestamp": Time(at)});
            let params = PatchParams::default();
            let patch = Patch::Merge(&patch);
            match within(api.patch(&before.name, &params, &patch)).await {
                // it was kept as long as the server keeps them
                Err(Failed::NotFound) => {
                    told.remove(&key);
                }
                Err(failed) => tracing::debug!(%failed, "an event is not counted"),
                Ok(_) => continue,
            }
            if told.contains_key(&key) {
                continue;
            }
        }
        let event = event(&cluster.node, namespace, name, &happening, message, at);
        match within(api.create(&PostParams::default(), &event)).await {
            Ok(made) => {
                if told.len() >= REMEMBERED {
                    told.clear();
                }
                let made = Told {
                    name: made.metadata.name.unwrap_or_default(),
                    count: 1,
                    written: tokio::time::Instant::now(),
                };
                told.insert(key, made);
            }
            Err(failed) => tracing::debug!(%failed, "an event is not written"),
        }
    }
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

fn event(
    node: &str,
    namespace: &str,
    name: &str,
    happening: &Happening,
    message: &str,
    at: Timestamp,
) -> Event {
    let kind = match happening.level {
        Level::Normal => "Normal",
        Level::Warning => "Warning",
    };
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}.")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(happening.uid.clone()),
            field_path: Some(happening.field.clone()).filter(|field| !field.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some(kind.into()),
        reason: Some(happening.reason.to_owned()),
        message: Some(message.to_owned()),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        count: Some(1),
        ..Event::default()
    }
}
