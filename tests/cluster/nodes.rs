//! `berth controllers` at our API server, by real kubectl: nodes that fall silent, taints that evict, endpoints that follow pods, drains within budgets. The
//! nodes are hollow: the test renews their leases and tells how their pods do, as kubelets would.

mod budgets;
mod claims;
mod endpoints;
mod silence;
mod taints;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use berth_tests::cluster::{Component, Proxy, Server};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// A watch that was cut is tried again after half a minute at the latest.
const WITHIN: Duration = Duration::from_secs(120);
/// So often hollow nodes renew their leases.
const RENEWED: Duration = Duration::from_millis(200);
const MERGE: &str = "application/merge-patch+json";
/// Those that this file is about: others may come, and do what they do.
const NAMES: &str = "node-lifecycle-controller,taint-eviction-controller,endpointslice-controller,endpoints-controller,\
                     endpointslice-mirroring-controller,disruption-controller,node-ipam-controller,ttl-controller,\
                     persistentvolumeclaim-protection-controller,ephemeral-volume-controller";
/// Silence is noticed soon; but not so soon that a busy machine is taken for one.
const QUICK: &[&str] = &[
    "--node-monitor-period=200ms",
    "--node-monitor-grace-period=8s",
    "--node-eviction-rate=5",
];

fn controllers(server: &Server, arguments: &[&str]) -> Result<Component> {
    controllers_at(server, &server.kubeconfig(), arguments)
}

fn controllers_at(server: &Server, kubeconfig: &Path, arguments: &[&str]) -> Result<Component> {
    let own = ["--leader-elect=false", "--controllers", NAMES];
    let arguments = [&own, arguments].concat();
    Component::start_at(server, kubeconfig, "controllers", &arguments)
}

/// Nodes without a machine: alive as long as their leases are renewed.
struct Hollow {
    proxy: Arc<Proxy>,
    alive: Arc<Mutex<BTreeSet<String>>>,
    ends: Arc<AtomicBool>,
    renews: Option<JoinHandle<()>>,
}

fn lease(name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}")
}

/// Of a clock that is years behind: only that it changes may count.
fn renewal(round: u64) -> Value {
    let time = format!(
        "2001-01-01T{:02}:{:02}:{:02}.000000Z",
        round / 3600 % 24,
        round / 60 % 60,
        round % 60
    );
    json!({"spec": {"renewTime": time}})
}

impl Hollow {
    fn start(server: &Server) -> Result<Self> {
        let proxy = Arc::new(server.proxy()?);
        let alive = Arc::new(Mutex::new(BTreeSet::<String>::new()));
        let ends = Arc::new(AtomicBool::new(false));
        let renews = std::thread::spawn({
            let (proxy, alive, ends) = (proxy.clone(), alive.clone(), ends.clone());
            move || {
                let mut round = 0;
                while !ends.load(Ordering::Relaxed) {
                    round += 1;
                    let names = alive.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    for name in names {
                        // While the server is away it fails, as a kubelet's would.
                        let _ = proxy.request(
                            "PATCH",
                            &lease(&name),
                            MERGE,
                            renewal(round).to_string().as_bytes(),
                        );
                    }
                    std::thread::sleep(RENEWED);
                }
            }
        });
        Ok(Self {
            proxy,
            alive,
            ends,
            renews: Some(renews),
        })
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let kind = if method == "PATCH" {
            MERGE
        } else {
            "application/json"
        };
        let answer = self
            .proxy
            .request(method, path, kind, body.to_string().as_bytes())?;
        ensure!(
            answer.code < 300,
            "{method} {path}: {} {}",
            answer.code,
            answer.body
        );
        answer.json()
    }

    /// It is there, and has said nothing yet.
    fn register(&self, name: &str, zone: &str) -> Result<Value> {
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        let made = self.ask("POST", "/api/v1/nodes", &node)?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40},
        });
        self.ask(
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            &lease,
        )?;
        Ok(made)
    }

    /// It says that it is ready, and goes on living.
    fn ready(&self, name: &str) -> Result<()> {
        self.alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned());
        let time = now();
        let status = json!({"status": {
            "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}, "capacity": {"cpu": "8", "memory": "8Gi", "pods": "110"},
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": time, "lastTransitionTime": time},
                {"type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory", "lastHeartbeatTime": time},
            ],
        }});
        self.ask("PATCH", &format!("/api/v1/nodes/{name}/status"), &status)
            .map(drop)
    }

    fn join(&self, name: &str, zone: &str) -> Result<()> {
        self.register(name, zone)?;
        self.ready(name)
    }

    fn fall_silent(&self, name: &str) {
        self.alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    /// A pod that runs on `node`, and is ready.
    fn pod(&self, name: &str, node: &str, ip: &str, more: &Value) -> Result<()> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "example/c:1", "ports": [{"name": "http", "containerPort": 8080}]}],
            },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            match key.as_str() {
                "metadata" => {
                    for (key, value) in value.as_object().into_iter().flatten() {
                        pod["metadata"][key] = value.clone();
                    }
                }
                _ => pod["spec"][key] = value.clone(),
            }
        }
        self.ask("POST", "/api/v1/namespaces/default/pods", &pod)?;
        self.says(name, ip, true)
    }

    fn says(&self, name: &str, ip: &str, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": now()}],
        }});
        self.ask(
            "PATCH",
            &format!("/api/v1/namespaces/default/pods/{name}/status"),
            &status,
        )
        .map(drop)
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(renews) = self.renews.take() {
            let _ = renews.join();
        }
    }
}

/// RFC 3339.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second())
        .unwrap_or_default()
        .to_string()
}

fn eventually<T>(what: &str, mut try_it: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(found) = try_it()? {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("not within {} s: {what}", WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// `KEY:EFFECT` of each, without what all begin with.
fn taints(server: &Server, node: &str) -> Result<BTreeSet<String>> {
    let node = server.json(&["get", "node", node])?;
    Ok(taints_of(&node))
}

fn taints_of(node: &Value) -> BTreeSet<String> {
    let taints = node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let text = |taint: &Value| {
        let key = taint["key"].as_str().unwrap_or_default();
        let effect = taint["effect"].as_str().unwrap_or_default();
        format!("{}:{effect}", key.trim_start_matches("node.kubernetes.io/"))
    };
    taints.iter().map(text).collect()
}

fn has_taints(server: &Server, node: &str, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = wanted.iter().map(|&text| text.to_owned()).collect();
    eventually(&format!("{node} has the taints {wanted:?}"), || {
        Ok((taints(server, node)? == wanted).then_some(()))
    })
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.into_iter().find(|one| one["type"] == kind);
    found.unwrap_or_default()
}

fn is_ending(server: &Server, pod: &str) -> Result<bool> {
    Ok(!server.json(&["get", "pod", pod])?["metadata"]["deletionTimestamp"].is_null())
}

fn event(server: &Server, reason: &str, text: &str) -> Result<()> {
    eventually(&format!("an event {reason} says {text:?}"), || {
        let events = server.kubectl(&[
            "get",
            "events",
            "-A",
            "--field-selector",
            &format!("reason={reason}"),
        ])?;
        Ok(events.contains(text).then_some(()))
    })
}

fn tolerates(keys: &[&str], seconds: Option<u32>) -> Value {
    let one = |key: &&str| {
        let mut one = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            one["tolerationSeconds"] = seconds.into();
        }
        one
    };
    json!({"tolerations": keys.iter().map(one).collect::<Vec<_>>()})
}

const REACH: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];
