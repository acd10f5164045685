//! The workloads that walks make, of pods with one container.

use serde_json::{Value, json};

/// What a pod is made of: a container of busybox that runs `command`, and a second to end in.
pub fn busybox(command: &[&str]) -> Value {
    let container = json!({
        "name": "c",
        "image": "busybox",
        "imagePullPolicy": "IfNotPresent",
        "command": command,
    });
    json!({"terminationGracePeriodSeconds": 1, "containers": [container]})
}

/// One that does nothing, for longer than any walk lasts.
pub fn sleeper() -> Value {
    busybox(&["sleep", "100000"])
}

/// Of pods that have its name as their label `app`. `pod`: their spec.
pub fn deployment(name: &str, replicas: u64, pod: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    })
}

/// Two of its pods run at a time, and each once.
pub fn job(name: &str, completions: u64, mut pod: Value) -> Value {
    pod["restartPolicy"] = "Never".into();
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"completions": completions, "parallelism": 2, "template": {"spec": pod}},
    })
}
