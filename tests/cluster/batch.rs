//! Jobs, CronJobs, autoscalers and what cleans up after them, by real kubectl at our API server. The node is hollow: where a kubelet would say how a pod is, this does.

mod autoscale;
mod cron;
mod garbage;
mod jobs;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use berth_tests::cluster::{Component, Server};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
const CONTROLLERS: &str = "job-controller,cronjob-controller,ttl-after-finished-controller,horizontal-pod-autoscaler-controller,pod-garbage-collector-controller";
const LOOPBACK: &str = "127.0.0.1";
const TRACKED: &str = "batch.kubernetes.io/job-tracking";

fn controllers(server: &Server) -> Result<Component> {
    controllers_at(server, &server.kubeconfig())
}

fn controllers_at(server: &Server, kubeconfig: &Path) -> Result<Component> {
    let arguments = ["--leader-elect=false", "--controllers", CONTROLLERS];
    Component::start_at(server, kubeconfig, "controllers", &arguments)
}

fn server() -> Result<Server> {
    Server::start("memory")
}

fn eventually<T>(
    server: &Server,
    what: &str,
    mut try_it: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(found) = try_it()? {
            return Ok(found);
        }
        if Instant::now() > until {
            let log =
                std::fs::read_to_string(server.dir().join("controllers.log")).unwrap_or_default();
            bail!(
                "not within {} s: {what}\ncontrollers: {log}",
                WITHIN.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn create(server: &Server, object: &Value) -> Result<()> {
    server
        .kubectl_with(&["create", "-f", "-"], &object.to_string())
        .map(drop)
}

fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example/c:1"}]}}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn items(server: &Server, arguments: &[&str]) -> Result<Vec<Value>> {
    let list = server.json(arguments)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn pods(server: &Server, job: &str) -> Result<Vec<Value>> {
    let selector = format!("batch.kubernetes.io/job-name={job}");
    items(server, &["get", "pods", "-l", &selector])
}

fn is_active(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed") && pod["metadata"]["deletionTimestamp"].is_null()
}

fn is_tracked(pod: &Value) -> bool {
    pod["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| all.contains(&json!(TRACKED)))
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// What a kubelet says of it.
fn say(server: &Server, kind: &str, name: &str, status: Value) -> Result<()> {
    let patch = json!({"status": status}).to_string();
    server
        .kubectl(&[
            "patch",
            kind,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
        .map(drop)
}

fn ends(server: &Server, pod: &Value, phase: &str) -> Result<()> {
    say(server, "pod", name(pod), json!({"phase": phase}))
}

/// Waits until so many are active.
fn active(server: &Server, job: &str, count: usize) -> Result<Vec<Value>> {
    eventually(server, &format!("{count} pods of {job} are active"), || {
        let mut pods = pods(server, job)?;
        pods.retain(is_active);
        Ok((pods.len() == count).then_some(pods))
    })
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let mut conditions = object["status"]["conditions"].as_array()?.iter();
    conditions.find(|one| one["type"] == type_)
}

fn finished(server: &Server, job: &str, type_: &str) -> Result<Value> {
    eventually(server, &format!("{job} is {type_}"), || {
        let job = server.json(&["get", "job", job])?;
        let is = condition(&job, type_).is_some_and(|one| one["status"] == "True");
        Ok(is.then_some(job))
    })
}

/// That `kubectl describe` shows all of them.
fn told(server: &Server, kind: &str, name: &str, words: &[&str]) -> Result<()> {
    eventually(server, &format!("{kind} {name} is told {words:?}"), || {
        let text = server.kubectl(&["describe", kind, name])?;
        Ok(words.iter().all(|word| text.contains(word)).then_some(()))
    })
}
