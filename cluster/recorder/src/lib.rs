//! What happens to objects, told as Events of the API. They are for people: when too many wait, or the server is away, the newest are let go.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

/// That wait to be written.
const WAITING: usize = 512;
/// Of which it is remembered that they were told, so that the next of their kind is a count.
const REMEMBERED: usize = 1024;
/// So often at most one and the same event is written again; in between it is counted.
const SAME_EVERY: Duration = Duration::from_secs(10);
/// A server bounds it.
const MESSAGE_BYTES: usize = 1024;
/// One request.
const CALL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    Normal,
    Warning,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Who tells.
#[derive(Debug, Clone)]
pub struct Teller {
    /// `kubelet`, `deployment-controller`, …
    pub component: String,
    /// Where: the node of a kubelet, empty for what is not of a node.
    pub host: String,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Happening {
    pub level: Level,
    /// In CamelCase: `Pulled`, `SuccessfulCreate`, …
    pub reason: String,
    pub message: String,
    /// To what: kind, namespace, name, uid, and the field if it is about one.
    pub about: ObjectReference,
    pub by: Teller,
}

/// What an event says of the object that it is about.
pub fn about<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

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
    pub fn new(client: Client) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), write(client, receiver))
    }

    pub fn record(&self, happening: Happening) {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        if let Err(error) = self.0.try_send((happening, now)) {
            let (happening, _) = error.into_inner();
            tracing::debug!(reason = happening.reason, "too many events: one is let go");
        }
    }
}

/// What makes two the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Same {
    component: String,
    uid: String,
    field: String,
    level: Level,
    reason: String,
    message: String,
}

async fn write(client: Client, mut receiver: mpsc::Receiver<(Happening, Timestamp)>) {
    let mut told: HashMap<Same, Told> = HashMap::new();
    while let Some((mut happening, at)) = receiver.recv().await {
        let end = happening.message.floor_char_boundary(MESSAGE_BYTES);
        happening.message.truncate(end);
        let same = Same {
            component: happening.by.component.clone(),
            uid: happening.about.uid.clone().unwrap_or_default(),
            field: happening.about.field_path.clone().unwrap_or_default(),
            level: happening.level,
            reason: happening.reason.clone(),
            message: happening.message.clone(),
        };
        // of what has no namespace
        let namespace = happening.about.namespace.as_deref().unwrap_or("default");
        let api = Api::<Event>::namespaced(client.clone(), namespace);
        if let Some(before) = told.get_mut(&same) {
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
                    told.remove(&same);
                }
                Err(Failed::Because(why)) => {
                    tracing::debug!(why, "an event is not counted");
                    continue;
                }
                Ok(_) => continue,
            }
        }
        match within(api.create(&PostParams::default(), &event(&happening, namespace, at))).await {
            Ok(made) => {
                if told.len() >= REMEMBERED {
                    told.clear();
                }
                let made = Told {
                    name: made.metadata.name.unwrap_or_default(),
                    count: 1,
                    written: tokio::time::Instant::now(),
                };
                told.insert(same, made);
            }
            Err(Failed::NotFound) => {}
            Err(Failed::Because(why)) => tracing::debug!(why, "an event is not written"),
        }
    }
}

enum Failed {
    NotFound,
    Because(String),
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Failed::NotFound),
        Ok(Err(error)) => Err(Failed::Because(error.to_string())),
        Err(_) => Err(Failed::Because(format!(
            "no answer within {} s",
            CALL.as_secs()
        ))),
    }
}

fn event(happening: &Happening, namespace: &str, at: Timestamp) -> Event {
    let name = happening.about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}.")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: happening.about.clone(),
        type_: Some(happening.level.name().into()),
        reason: Some(happening.reason.clone()),
        message: Some(happening.message.clone()),
        source: Some(EventSource {
            component: Some(happening.by.component.clone()),
            host: Some(happening.by.host.clone()).filter(|host| !host.is_empty()),
        }),
        reporting_component: Some(happening.by.component.clone()),
        reporting_instance: Some(happening.by.host.clone()),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        count: Some(1),
        ..Event::default()
    }
}
