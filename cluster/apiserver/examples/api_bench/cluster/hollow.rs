//! Nodes without a machine, and the watch by which pods are followed.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::super::{Result, client::Client};

pub fn node(n: u64) -> Value {
    let name = format!("n{n}");
    let room = json!({"cpu": "4", "memory": "32Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", n % 3)}},
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

/// What a watch says of a pod.
#[derive(Debug)]
pub struct Seen {
    pub name: String,
    pub node: Option<String>,
    pub ready: bool,
    pub deleting: bool,
    pub gone: bool,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

pub struct Pods {
    body: Incoming,
    rest: BytesMut,
}

impl Pods {
    /// All that there are, and what becomes of them.
    pub async fn watch(client: &Client) -> Result<Self> {
        let path = "/api/v1/pods?watch=true";
        let answer = client
            .open("GET", path, "application/json", Bytes::new())
            .await?;
        Ok(Self {
            body: answer.into_body(),
            rest: BytesMut::new(),
        })
    }

    /// What is said next: something, or an error at `until`.
    pub async fn next(&mut self, until: Instant) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        while seen.is_empty() {
            let frame = tokio::time::timeout_at(until.into(), self.body.frame()).await;
            let frame = frame.map_err(|_| "the round hangs: the watch says no more")?;
            let frame = frame.ok_or("the watch has ended")??;
            self.rest
                .extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                let event: Event<'_> = serde_json::from_slice(&line)?;
                if event.r#type == "ERROR" {
                    return Err(format!("the watch is ended: {}", event.object).into());
                }
                let object: Object = serde_json::from_str(event.object.get())?;
                let is_ready = |one: &Condition| one.r#type == "Ready" && one.status == "True";
                seen.push(Seen {
                    name: object.metadata.name,
                    node: object.spec.node_name,
                    ready: object.status.conditions.iter().any(is_ready),
                    deleting: object.metadata.deletion_timestamp.is_some(),
                    gone: event.r#type == "DELETED",
                });
            }
        }
        Ok(seen)
    }
}
