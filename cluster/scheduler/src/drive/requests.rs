//! What is asked of the API server, one request each.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        Binding, Event, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    pod::PodFacts,
    volumes::{SELECTED_NODE, Step},
};

/// One request.
pub(super) const CALL: Duration = Duration::from_secs(10);

/// What is told somebody.
pub(super) enum Note {
    Event(Box<Event>),
    /// A pod, why it waits, and where room is made for it.
    Waits(Box<PodFacts>, String, Option<Arc<str>>),
}

pub(super) struct Failed {
    pub why: String,
    /// It may be for the node that it was not taken: not for what the server has just now, nor for what has become of the pod.
    pub of_node: bool,
}

impl Failed {
    fn of(error: &kube::Error) -> Self {
        let code = match error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        Self {
            why: error.to_string(),
            of_node: (400..500).contains(&code) && !matches!(code, 401 | 404 | 409 | 429),
        }
    }
}

impl Note {
    /// The uid of a pod that could not be told why it waits.
    pub async fn write(self, client: Client) -> Option<Arc<str>> {
        match self {
            Self::Event(event) => {
                let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
                let api = Api::<Event>::namespaced(client, namespace);
                if let Err(why) = within(api.create(&PostParams::default(), &event)).await {
                    tracing::debug!(why, "an event is not written");
                }
                None
            }
            Self::Waits(pod, message, at) => {
                let why = waits(client, &pod, &message, at).await.err()?;
                tracing::debug!(pod = pod.shown(), why, "a pod is not told why it waits");
                Some(pod.uid)
            }
        }
    }
}

/// In whole seconds, as the API keeps it.
pub(super) fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default()
}

async fn asked<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match timeout(CALL, call).await {
        Ok(answer) => answer.map_err(|error| Failed::of(&error)),
        Err(_) => Err(Failed {
            why: format!("no answer within {} s", CALL.as_secs()),
            of_node: false,
        }),
    }
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    asked(call).await.map_err(|failed| failed.why)
}

fn pods(client: Client, pod: &PodFacts) -> Api<Pod> {
    Api::namespaced(client, &pod.wants().namespace)
}

pub(super) async fn bind(client: Client, pod: &PodFacts, node: &str) -> Result<(), Failed> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.to_string()),
            namespace: Some(pod.wants().namespace.clone()),
            uid: Some(pod.uid.to_string()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = pods(client, pod);
    let params = PostParams::default();
    let call = api.create_subresource::<_, Status>("binding", &pod.name, &params, &binding);
    asked(call).await.map(drop)
}

/// What its claims need at the node. The volume binder does the rest.
pub(super) async fn keep(client: Client, steps: &[Step], node: &str) -> Result<(), String> {
    let params = PatchParams::default();
    for step in steps {
        match step {
            Step::Keep { volume, claim } => {
                let patch = json!({
                    "metadata": {
                        "uid": volume.uid,
                        "resourceVersion": volume.resource_version,
                        "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
                    },
                    "spec": {"claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace, "name": claim.name,
                        "uid": claim.uid, "resourceVersion": claim.resource_version,
                    }},
                });
                let api = Api::<PersistentVolume>::all(client.clone());
                let patch = Patch::Merge(patch);
                within(api.patch(&volume.name, &params, &patch)).await?;
            }
            Step::Make { claim } => {
                let patch = json!({"metadata": {
                    "uid": claim.uid,
                    "resourceVersion": claim.resource_version,
                    "annotations": {SELECTED_NODE: node},
                }});
                let api =
                    Api::<PersistentVolumeClaim>::namespaced(client.clone(), &claim.namespace);
                let patch = Patch::Merge(patch);
                within(api.patch(&claim.name, &params, &patch)).await?;
            }
        }
    }
    Ok(())
}

/// Tells the pod why it waits, and where room is made for it.
async fn waits(
    client: Client,
    pod: &PodFacts,
    message: &str,
    nominated: Option<Arc<str>>,
) -> Result<(), String> {
    let mut status = json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message, "lastTransitionTime": now().to_string(),
    }]});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = json!(*node);
    }
    let patch = Patch::Strategic(json!({"metadata": {"uid": *pod.uid}, "status": status}));
    let api = pods(client, pod);
    let params = PatchParams::default();
    let call = api.patch_status(&pod.name, &params, &patch);
    within(call).await.map(drop)
}

pub(super) async fn preempt(client: Client, victim: &PodFacts) -> Result<(), String> {
    let api = pods(client, victim);
    let condition = json!({"metadata": {"uid": *victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod", "lastTransitionTime": now().to_string(),
    }]}});
    let patch = Patch::Strategic(condition);
    within(api.patch_status(&victim.name, &PatchParams::default(), &patch)).await?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(victim.uid.to_string()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    within(api.delete(&victim.name, &params)).await.map(drop)
}
