//! What is created: pods as clusters have them, of some 4.4 KB once they are stored.

use bytes::Bytes;
use serde_json::{Value, json};

pub const PODS: &str = "/api/v1/namespaces/default/pods";
/// As many nodes as there are watchers.
pub const NODES: u64 = 1000;

pub fn path(n: u64) -> String {
    format!("{PODS}/pod-{n:06}")
}

pub fn pod(n: u64) -> Bytes {
    let variables: Vec<Value> = (0..12)
        .map(|k| json!({"name": format!("SETTING_{k}"), "value": format!("{:032x}", u128::from(n) * 7919 + k)}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name,
            "image": format!("registry.example.com/team/{name}:1.{n}"),
            "env": variables,
            "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
        })
    };
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{n:06}"),
            "labels": {"app": format!("app-{}", n % 100), "pod-template-hash": format!("{:x}", n % 100)},
        },
        "spec": {
            "nodeName": format!("node-{}", n % NODES),
            "containers": [container("app"), container("sidecar")],
            "volumes": [{"name": "config", "configMap": {"name": "app"}}],
        },
    });
    pod.to_string().into()
}
