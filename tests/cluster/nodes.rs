//! `berth controllers` at our API server, by real kubectl: nodes that fall silent, taints that evict, endpoints that follow pods, drains within budgets. The
//! nodes are hollow: the test renews their leases and tells how their pods do, as kubelets would.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
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

/// BO-12, SH-01, AR-01, AR-02, TT-07
#[test]
fn a_silent_node_is_told_of_its_pods_leave_and_it_may_come_back() -> Result<()> {
    let server = Server::start_with(
        "memory",
        &["--enable-admission-plugins=TaintNodesByCondition"],
    )?;
    let hollow = Hollow::start(&server)?;
    for name in ["n1", "n2", "n3"] {
        let made = hollow.register(name, "a")?;
        ensure!(taints_of(&made).contains("not-ready:NoSchedule"), "{made}");
        hollow.ready(name)?;
    }
    let _controllers = controllers(&server, QUICK)?;
    for name in ["n1", "n2", "n3"] {
        has_taints(&server, name, &[])?;
        event(
            &server,
            "RegisteredNode",
            &format!("Registered Node {name} in Controller"),
        )?;
    }
    hollow.pod("stays", "n1", "10.0.0.1", &json!({}))?;
    hollow.pod("leaves", "n1", "10.0.0.2", &tolerates(&REACH, Some(1)))?;
    hollow.pod("always", "n1", "10.0.0.3", &tolerates(&REACH, None))?;
    hollow.pod("elsewhere", "n2", "10.0.0.4", &json!({}))?;

    hollow.fall_silent("n1");
    has_taints(
        &server,
        "n1",
        &["unreachable:NoSchedule", "unreachable:NoExecute"],
    )?;
    let node = server.json(&["get", "node", "n1"])?;
    for (kind, reason) in [
        ("Ready", "NodeStatusUnknown"),
        ("MemoryPressure", "NodeStatusUnknown"),
        ("DiskPressure", "NodeStatusNeverUpdated"),
        ("PIDPressure", "NodeStatusNeverUpdated"),
    ] {
        let said = condition(&node, kind);
        ensure!(
            said["status"] == "Unknown" && said["reason"] == reason,
            "{kind}: {said}"
        );
    }
    ensure!(server.kubectl(&["get", "node", "n1"])?.contains("NotReady"));
    event(
        &server,
        "NodeNotReady",
        "Node n1 status is now: NodeNotReady",
    )?;
    for pod in ["stays", "always"] {
        eventually(&format!("{pod} isn't ready"), || {
            let pod = server.json(&["get", "pod", pod])?;
            Ok((condition(&pod, "Ready")["status"] == "False").then_some(()))
        })?;
    }
    eventually("the pod whose time is over ends", || {
        Ok(is_ending(&server, "leaves")?.then_some(()))
    })?;
    let left = server.json(&["get", "pod", "leaves"])?;
    let target = condition(&left, "DisruptionTarget");
    ensure!(
        target["status"] == "True" && target["reason"] == "DeletionByTaintManager",
        "{left}"
    );
    event(
        &server,
        "TaintManagerEviction",
        "Marking for deletion Pod default/leaves",
    )?;
    for pod in ["stays", "always", "elsewhere"] {
        ensure!(!is_ending(&server, pod)?, "{pod}");
    }

    // It comes back, and nothing of it is left.
    hollow.ready("n1")?;
    has_taints(&server, "n1", &[])?;
    event(
        &server,
        "TaintManagerEviction",
        "Cancelling deletion of Pod default/stays",
    )?;
    ensure!(!is_ending(&server, "stays")?);
    let node = server.json(&["get", "node", "n1"])?;
    ensure!(condition(&node, "Ready")["status"] == "True", "{node}");

    server.kubectl(&["delete", "node", "n3"])?;
    event(&server, "RemovingNode", "Removing Node n3 from Controller")
}

/// Our own connection may be what has failed.
#[test]
fn while_all_nodes_are_silent_nobody_is_evicted() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    // They fall silent one after another, however little later.
    let quick = [
        "--node-monitor-period=200ms",
        "--node-monitor-grace-period=15s",
        "--node-eviction-rate=5",
    ];
    let names = ["n1", "n2", "n3", "n4"];
    for (at, name) in names.iter().enumerate() {
        hollow.join(name, if at < 3 { "a" } else { "b" })?;
        hollow.pod(
            &format!("on-{name}"),
            name,
            &format!("10.0.0.{at}"),
            &tolerates(&REACH, Some(0)),
        )?;
    }
    let _controllers = controllers(&server, &quick)?;
    for name in names {
        event(
            &server,
            "RegisteredNode",
            &format!("Registered Node {name} in Controller"),
        )?;
    }
    for name in names {
        hollow.fall_silent(name);
    }
    for name in names {
        has_taints(&server, name, &["unreachable:NoSchedule"])?;
    }
    // One is back: of the others most of a small zone is gone still, and all of another.
    hollow.ready("n1")?;
    has_taints(&server, "n1", &[])?;
    eventually("the other zone loses its pods", || {
        let gone = server.ask(
            &[
                "get",
                "pod",
                "on-n4",
                "-o",
                "jsonpath={.metadata.deletionTimestamp}",
            ],
            "",
        )?;
        Ok((!gone.ok || !gone.stdout.is_empty()).then_some(()))
    })?;
    ensure!(taints(&server, "n4")?.contains("unreachable:NoExecute"));
    ensure!(!is_ending(&server, "on-n1")?);
    Ok(())
}

/// A way to the server that can be made to fail: it answers with a code of its own then, and cuts what is under way.
struct Faulty {
    port: u16,
    code: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Faulty {
    fn start(proxy: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let faulty = Self {
            port: listener.local_addr()?.port(),
            code: Arc::default(),
            open: Arc::default(),
        };
        let (code, open) = (faulty.code.clone(), faulty.open.clone());
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (code, open) = (code.clone(), open.clone());
                std::thread::spawn(move || pass_on(client, proxy, &code, &open));
            }
        });
        Ok(faulty)
    }

    /// 0: it works.
    fn fails_with(&self, code: u16) {
        self.code.store(code, Ordering::SeqCst);
        for stream in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn kubeconfig(&self, server: &Server) -> Result<PathBuf> {
        let path = server.dir().join("faulty.kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{}", self.port)}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

fn pass_on(
    mut client: TcpStream,
    proxy: u16,
    code: &AtomicU16,
    open: &Mutex<Vec<TcpStream>>,
) -> Option<()> {
    let code = code.load(Ordering::SeqCst);
    if code != 0 {
        let mut head = [0; 4096];
        let _ = client.read(&mut head);
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too busy", "code": code}).to_string();
        let answer = format!(
            "HTTP/1.1 {code} No\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{status}",
            status.len()
        );
        let _ = client.write_all(answer.as_bytes());
        return None;
    }
    let mut server = TcpStream::connect(("127.0.0.1", proxy)).ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(client.try_clone().ok()?);
        open.push(server.try_clone().ok()?);
    }
    let up = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    None
}

/// A server that is too busy for us is no sign that nodes are gone.
#[test]
fn a_server_that_answers_429_and_500_makes_no_node_silent() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    for name in ["n1", "n2", "n3"] {
        hollow.join(name, "a")?;
    }
    hollow.pod("short", "n1", "10.0.0.1", &tolerates(&REACH, Some(0)))?;
    let faulty = Faulty::start(hollow.proxy.port())?;
    let kubeconfig = faulty.kubeconfig(&server)?;
    let _controllers = controllers_at(&server, &kubeconfig, QUICK)?;
    event(
        &server,
        "RegisteredNode",
        "Registered Node n3 in Controller",
    )?;
    let before = server.json(&["get", "node", "n1"])?;
    for code in [429, 500, 503] {
        faulty.fails_with(code);
        std::thread::sleep(Duration::from_secs(4));
    }
    // While it can't be heard, something changes.
    server.kubectl(&["cordon", "n2"])?;
    faulty.fails_with(0);
    has_taints(&server, "n2", &["unschedulable:NoSchedule"])?;
    hollow.fall_silent("n2");
    has_taints(
        &server,
        "n2",
        &[
            "unschedulable:NoSchedule",
            "unreachable:NoSchedule",
            "unreachable:NoExecute",
        ],
    )?;
    let after = server.json(&["get", "node", "n1"])?;
    ensure!(
        condition(&before, "Ready") == condition(&after, "Ready"),
        "{after}"
    );
    ensure!(!is_ending(&server, "short")?);
    Ok(())
}

/// SH-01: what the server could not hear is nobody's silence; and a controller that is killed is not missed for long (CP-12).
#[test]
fn a_server_that_is_away_makes_no_node_silent() -> Result<()> {
    let mut server = Server::start("fjall")?;
    let hollow = Hollow::start(&server)?;
    for name in ["n1", "n2"] {
        hollow.join(name, "a")?;
    }
    hollow.pod("short", "n1", "10.0.0.1", &tolerates(&REACH, Some(0)))?;
    let first = controllers(&server, QUICK)?;
    event(
        &server,
        "RegisteredNode",
        "Registered Node n2 in Controller",
    )?;
    let before = server.json(&["get", "node", "n1"])?;
    server.kill_9()?;
    // Longer than a node may be silent.
    std::thread::sleep(Duration::from_secs(12));
    server.start_again_there()?;
    server.kubectl(&["cordon", "n2"])?;
    has_taints(&server, "n2", &["unschedulable:NoSchedule"])?;
    // Its passes go on as before, until whoever had been silent all the time would be told of.
    hollow.fall_silent("n2");
    eventually("who is silent is told of", || {
        let node = server.json(&["get", "node", "n2"])?;
        Ok((condition(&node, "Ready")["status"] == "Unknown").then_some(()))
    })?;
    let after = server.json(&["get", "node", "n1"])?;
    ensure!(
        condition(&before, "Ready") == condition(&after, "Ready"),
        "{after}"
    );
    ensure!(!is_ending(&server, "short")?);
    // The next one knows nothing of before, and evicts nobody for it.
    drop(first);
    let _controllers = controllers(&server, QUICK)?;
    hollow.ready("n2")?;
    has_taints(&server, "n2", &["unschedulable:NoSchedule"])?;
    server.kubectl(&["uncordon", "n2"])?;
    has_taints(&server, "n2", &[])?;
    ensure!(!is_ending(&server, "short")?);
    Ok(())
}

/// TT-02, TT-03, TT-04, TT-05, TT-07, and what else nodes get.
#[test]
fn taints_by_hand_evict_who_does_not_tolerate_them() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    let arguments = [
        QUICK,
        &[
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16,fd00:10::/48",
        ],
    ]
    .concat();
    let _controllers = controllers(&server, &arguments)?;
    for name in ["n1", "n2"] {
        hollow.join(name, "a")?;
    }
    server.kubectl(&["cordon", "n1"])?;
    has_taints(&server, "n1", &["unschedulable:NoSchedule"])?;
    ensure!(
        server
            .kubectl(&["describe", "node", "n1"])?
            .contains("node.kubernetes.io/unschedulable:NoSchedule")
    );
    server.kubectl(&["uncordon", "n1"])?;
    has_taints(&server, "n1", &[])?;

    hollow.pod("plain", "n1", "10.0.0.1", &json!({}))?;
    hollow.pod(
        "long",
        "n1",
        "10.0.0.2",
        &tolerates(&["env_role"], Some(3600)),
    )?;
    hollow.pod("always", "n1", "10.0.0.3", &tolerates(&["env_role"], None))?;
    server.kubectl(&["taint", "node", "n1", "env_role=yes:NoSchedule"])?;
    server.kubectl(&["taint", "node", "n1", "env_role=yes:NoExecute"])?;
    eventually("who does not tolerate it ends", || {
        Ok(is_ending(&server, "plain")?.then_some(()))
    })?;
    ensure!(!is_ending(&server, "long")? && !is_ending(&server, "always")?);
    server.kubectl(&["taint", "node", "n1", "env_role:NoExecute-"])?;
    event(
        &server,
        "TaintManagerEviction",
        "Cancelling deletion of Pod default/long",
    )?;
    has_taints(&server, "n1", &["env_role:NoSchedule"])?;
    // One that comes to a node that is tainted already.
    server.kubectl(&["taint", "node", "n2", "env_role=yes:NoExecute"])?;
    hollow.pod("late", "n2", "10.0.0.4", &tolerates(&["env_role"], Some(1)))?;
    eventually("who came late ends, too", || {
        Ok(is_ending(&server, "late")?.then_some(()))
    })?;

    let mut parts = BTreeSet::new();
    for name in ["n1", "n2"] {
        let node = eventually("it has its part of the pods' networks", || {
            let node = server.json(&["get", "node", name])?;
            Ok((!node["spec"]["podCIDR"].is_null()).then_some(node))
        })?;
        let both = node["spec"]["podCIDRs"]
            .as_array()
            .context("podCIDRs")?
            .clone();
        ensure!(
            both.len() == 2 && both[0] == node["spec"]["podCIDR"],
            "{both:?}"
        );
        parts.extend(
            both.iter()
                .filter_map(|part| part.as_str().map(String::from)),
        );
    }
    let of = |network: &str| {
        parts
            .iter()
            .filter(|part| part.starts_with(network))
            .count()
    };
    ensure!(
        of("10.244.") == 2 && of("fd00:10:") == 2,
        "four different ones: {parts:?}"
    );
    Ok(())
}

#[test]
fn a_claim_that_is_used_outlives_its_deletion() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    hollow.join("n1", "a")?;
    let _controllers = controllers(&server, QUICK)?;
    let spec =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec});
    server.kubectl_with(&["apply", "-f", "-"], &claim.to_string())?;
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "own", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}},
    ]);
    hollow.pod(
        "uses",
        "n1",
        "10.0.0.1",
        &json!({"volumes": volumes, "terminationGracePeriodSeconds": 0}),
    )?;
    let own = eventually("its own claim is made", || {
        let said = server.ask(&["get", "pvc", "uses-own", "-o", "json"], "")?;
        Ok(said.ok.then(|| serde_json::from_str::<Value>(&said.stdout)))
    })??;
    ensure!(
        own["metadata"]["ownerReferences"][0]["name"] == "uses"
            && own["metadata"]["labels"]["a"] == "b",
        "{own}"
    );
    server.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    // One that nobody uses goes at once; the other one is there still then.
    let mut other = claim;
    other["metadata"]["name"] = "unused".into();
    server.kubectl_with(&["apply", "-f", "-"], &other.to_string())?;
    server.kubectl(&["delete", "pvc", "unused", "--timeout=60s"])?;
    ensure!(server.ask(&["get", "pvc", "data"], "")?.ok);
    server.kubectl(&["delete", "pod", "uses", "--grace-period=0", "--force"])?;
    for claim in ["data", "uses-own"] {
        eventually(&format!("{claim} is gone"), || {
            Ok((!server.ask(&["get", "pvc", claim], "")?.ok).then_some(()))
        })?;
    }
    Ok(())
}

/// Address, ready, serving, terminating.
type Told = (String, bool, bool, bool);

fn slices(server: &Server, service: &str) -> Result<Vec<Value>> {
    let label = format!("kubernetes.io/service-name={service}");
    let slices = server.json(&["get", "endpointslices", "-l", &label])?;
    Ok(slices["items"].as_array().cloned().unwrap_or_default())
}

fn told(slices: &[Value]) -> BTreeSet<Told> {
    let is = |one: &Value, name: &str| one["conditions"][name] == true;
    slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .map(|one| {
            let address = one["addresses"][0].as_str().unwrap_or_default().to_owned();
            (
                address,
                is(&one, "ready"),
                is(&one, "serving"),
                is(&one, "terminating"),
            )
        })
        .collect()
}

fn tells(
    server: &Server,
    service: &str,
    wanted: &[(&str, bool, bool, bool)],
) -> Result<Vec<Value>> {
    let wanted: BTreeSet<Told> = wanted
        .iter()
        .map(|(address, ready, serving, ends)| ((*address).to_owned(), *ready, *serving, *ends))
        .collect();
    eventually(&format!("{service} has {wanted:?}"), || {
        let slices = slices(server, service)?;
        Ok((told(&slices) == wanted).then_some(slices))
    })
}

/// PO-10, K8-02
#[test]
fn endpoints_follow_what_pods_say() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    hollow.join("n1", "a")?;
    let _controllers = controllers(&server, QUICK)?;
    for at in 1..=3 {
        hollow.pod(
            &format!("web-{at}"),
            "n1",
            &format!("10.0.0.{at}"),
            &json!({}),
        )?;
    }
    let service = |name: &str, spec: &Value| -> Result<()> {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"tier": "front"}}, "spec": spec});
        server
            .kubectl_with(&["apply", "-f", "-"], &service.to_string())
            .map(drop)
    };
    let ports = json!([{"name": "web", "port": 80, "targetPort": "http"}]);
    service("web", &json!({"selector": {"app": "web"}, "ports": ports}))?;
    let all = tells(
        &server,
        "web",
        &[
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", true, true, false),
            ("10.0.0.3", true, true, false),
        ],
    )?;
    let [slice] = all.as_slice() else {
        bail!("one is enough: {all:?}");
    };
    let labels = &slice["metadata"]["labels"];
    ensure!(
        labels["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
            && labels["tier"] == "front",
        "{labels}"
    );
    ensure!(
        slice["ports"] == json!([{"name": "web", "port": 8080, "protocol": "TCP"}]),
        "{slice}"
    );
    let first = &slice["endpoints"][0];
    ensure!(
        first["nodeName"] == "n1" && first["zone"] == "a" && first["targetRef"]["kind"] == "Pod",
        "{first}"
    );
    ensure!(
        !slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"]
            .is_null()
    );
    let described = eventually("kubectl describes them", || {
        let described = server.kubectl(&["describe", "service", "web"])?;
        Ok(described
            .contains("10.0.0.1:8080,10.0.0.2:8080,10.0.0.3:8080")
            .then_some(described))
    });
    described?;
    let old = eventually("the old form has them, too", || {
        let said = server.ask(&["get", "endpoints", "web", "-o", "json"], "")?;
        Ok(said.ok.then(|| serde_json::from_str::<Value>(&said.stdout)))
    })??;
    ensure!(
        old["subsets"][0]["addresses"]
            .as_array()
            .is_some_and(|all| all.len() == 3),
        "{old}"
    );

    // readiness, the end of a pod, and a pod that is gone
    hollow.says("web-2", "10.0.0.2", false)?;
    server.kubectl(&["delete", "pod", "web-3", "--wait=false"])?;
    tells(
        &server,
        "web",
        &[
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", false, false, false),
            ("10.0.0.3", false, true, true),
        ],
    )?;
    eventually("the old form tells them apart", || {
        let old = server.json(&["get", "endpoints", "web"])?;
        let subset = &old["subsets"][0];
        let ips = |name: &str| {
            subset[name]
                .as_array()
                .map(|all| all.iter().map(|one| one["ip"].clone()).collect::<Vec<_>>())
        };
        let right = ips("addresses") == Some(vec!["10.0.0.1".into()])
            && ips("notReadyAddresses") == Some(vec!["10.0.0.2".into()]);
        Ok(right.then_some(()))
    })?;
    server.kubectl(&["delete", "pod", "web-3", "--grace-period=0", "--force"])?;
    hollow.says("web-2", "10.0.0.2", true)?;
    let before = tells(
        &server,
        "web",
        &[
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", true, true, false),
        ],
    )?;

    // what no endpoint tells is no reason to write
    server.kubectl(&["annotate", "pod", "web-1", "seen=yes"])?;
    let published =
        json!({"selector": {"app": "web"}, "clusterIP": "None", "publishNotReadyAddresses": true});
    service("headless", &published)?;
    tells(
        &server,
        "headless",
        &[
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", true, true, false),
        ],
    )?;
    let after = slices(&server, "web")?;
    ensure!(after[0]["metadata"]["resourceVersion"] == before[0]["metadata"]["resourceVersion"]);
    hollow.pod("named", "n1", "10.0.0.9", &json!({"hostname": "first", "subdomain": "headless", "metadata": {"labels": {"app": "web", "own": "yes"}}}))?;
    hollow.says("named", "10.0.0.9", false)?;
    let headless = tells(
        &server,
        "headless",
        &[
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", true, true, false),
            ("10.0.0.9", true, false, false),
        ],
    )?;
    let named = headless[0]["endpoints"].as_array().context("endpoints")?;
    ensure!(
        named.iter().any(|one| one["hostname"] == "first"),
        "{named:?}"
    );
    ensure!(headless[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == "");
    server.kubectl(&["label", "pod", "named", "app=other", "--overwrite"])?;
    let after = tells(
        &server,
        "web",
        &[
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", true, true, false),
        ],
    )?;
    ensure!(after.len() == 1 && after[0]["metadata"]["uid"] == before[0]["metadata"]["uid"]);

    // nothing, and then the service is gone with all that was its
    server.kubectl(&["delete", "pod", "--all", "--grace-period=0", "--force"])?;
    let none = tells(&server, "web", &[])?;
    ensure!(none.len() == 1, "{none:?}");
    server.kubectl(&["delete", "service", "web"])?;
    eventually("its endpoints are gone", || {
        let old = server.ask(&["get", "endpoints", "web"], "")?;
        Ok((!old.ok && slices(&server, "web")?.is_empty()).then_some(()))
    })
}

#[test]
fn a_change_of_one_endpoint_of_many_is_one_small_write() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    hollow.join("n1", "a")?;
    let _controllers = controllers(&server, QUICK)?;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec});
    server.kubectl_with(&["apply", "-f", "-"], &service.to_string())?;
    const COUNT: usize = 130;
    for at in 0..COUNT {
        hollow.pod(
            &format!("web-{at}"),
            "n1",
            &format!("10.0.0.{at}"),
            &json!({}),
        )?;
    }
    let sizes = |slices: &[Value]| -> Vec<usize> {
        slices
            .iter()
            .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
            .collect()
    };
    let before = eventually("all are told of", || {
        let slices = slices(&server, "web")?;
        let ready = told(&slices).iter().filter(|(_, ready, ..)| *ready).count();
        Ok((ready == COUNT).then_some(slices))
    })?;
    ensure!(
        sizes(&before).iter().all(|size| *size <= 100) && before.len() == 2,
        "{:?}",
        sizes(&before)
    );
    hollow.says("web-7", "10.0.0.7", false)?;
    let after = eventually("one isn't ready", || {
        let slices = slices(&server, "web")?;
        let ready = told(&slices).iter().filter(|(_, ready, ..)| *ready).count();
        Ok((ready == COUNT - 1).then_some(slices))
    })?;
    let versions = |slices: &[Value]| -> BTreeSet<String> {
        slices
            .iter()
            .map(|slice| slice["metadata"]["resourceVersion"].to_string())
            .collect()
    };
    ensure!(
        versions(&before).intersection(&versions(&after)).count() == 1,
        "the other is as it was"
    );

    // who writes Endpoints by hand, for a service without a selector, has slices for them
    let by_hand = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": {"ports": [{"port": 5432}]}},
        {
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "outside", "labels": {"from": "hand"}},
            "subsets": [{"addresses": [{"ip": "192.168.7.1"}], "notReadyAddresses": [{"ip": "192.168.7.2"}], "ports": [{"port": 5432}]}],
        },
    ]});
    server.kubectl_with(&["apply", "-f", "-"], &by_hand.to_string())?;
    let mirrored = tells(
        &server,
        "outside",
        &[
            ("192.168.7.1", true, false, false),
            ("192.168.7.2", false, false, false),
        ],
    )?;
    ensure!(
        mirrored[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
            == "endpointslicemirroring-controller.k8s.io"
            && mirrored[0]["metadata"]["labels"]["from"] == "hand"
    );
    server.kubectl(&["delete", "endpoints", "outside"])?;
    tells(&server, "outside", &[])?;
    ensure!(!server.json(&["get", "endpoints", "web"])?["subsets"].is_null());
    Ok(())
}

fn budget_says(server: &Server, name: &str, wanted: &Value) -> Result<()> {
    eventually(&format!("{name} says {wanted}"), || {
        let budget = server.json(&["get", "pdb", name])?;
        let status = &budget["status"];
        let is_right = wanted
            .as_object()
            .into_iter()
            .flatten()
            .all(|(key, value)| status[key] == *value);
        Ok(
            (is_right && status["observedGeneration"] == budget["metadata"]["generation"])
                .then_some(()),
        )
    })
}

/// BO-10
#[test]
fn a_drain_takes_no_more_than_the_budget_allows() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    for name in ["n1", "n2"] {
        hollow.join(name, "a")?;
    }
    let _controllers = controllers(&server, QUICK)?;
    let at_once = json!({"terminationGracePeriodSeconds": 0});
    hollow.pod("a", "n1", "10.0.0.1", &at_once)?;
    hollow.pod("b", "n1", "10.0.0.2", &at_once)?;
    server.kubectl(&[
        "create",
        "pdb",
        "web",
        "--selector=app=web",
        "--min-available=1",
    ])?;
    budget_says(
        &server,
        "web",
        &json!({"expectedPods": 2, "currentHealthy": 2, "desiredHealthy": 1, "disruptionsAllowed": 1}),
    )?;
    let drain = ["drain", "n1", "--force", "--timeout=8s"];
    let refused = server.refused(&drain, "")?;
    ensure!(
        refused.contains("Cannot evict pod as it would violate the pod's disruption budget"),
        "{refused}"
    );
    has_taints(&server, "n1", &["unschedulable:NoSchedule"])?;
    let left = server.json(&["get", "pods"])?;
    ensure!(
        left["items"].as_array().is_some_and(|all| all.len() == 1),
        "{left}"
    );
    budget_says(
        &server,
        "web",
        &json!({"expectedPods": 1, "currentHealthy": 1, "disruptionsAllowed": 0}),
    )?;
    // Another one takes its place elsewhere, and the last may go.
    hollow.pod("c", "n2", "10.0.0.3", &at_once)?;
    budget_says(
        &server,
        "web",
        &json!({"expectedPods": 2, "disruptionsAllowed": 1}),
    )?;
    server.kubectl(&["drain", "n1", "--force"])?;
    let left = server.kubectl(&["get", "pods", "-o", "name"])?;
    ensure!(left.trim() == "pod/c", "{left}");

    // A share is one of how many there should be, not of those that there are.
    let template = json!({"metadata": {"labels": {"app": "set"}}, "spec": {"containers": [{"name": "c", "image": "example/c:1"}]}});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set", "namespace": "default"},
        "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "set"}}, "template": template},
    });
    let set = hollow.ask("POST", "/apis/apps/v1/namespaces/default/replicasets", &set)?;
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": set["metadata"]["uid"], "controller": true});
    for at in 0..3 {
        let meta = json!({"labels": {"app": "set"}, "ownerReferences": [owner]});
        hollow.pod(
            &format!("set-{at}"),
            "n2",
            &format!("10.0.1.{at}"),
            &json!({"metadata": meta}),
        )?;
    }
    server.kubectl(&[
        "create",
        "pdb",
        "share",
        "--selector=app=set",
        "--min-available=50%",
    ])?;
    budget_says(
        &server,
        "share",
        &json!({"expectedPods": 4, "currentHealthy": 3, "desiredHealthy": 2, "disruptionsAllowed": 1}),
    )?;
    server.kubectl(&["scale", "replicaset", "set", "--replicas=6"])?;
    budget_says(
        &server,
        "share",
        &json!({"expectedPods": 6, "currentHealthy": 3, "desiredHealthy": 3, "disruptionsAllowed": 0}),
    )?;
    hollow.says("set-0", "10.0.1.0", false)?;
    budget_says(
        &server,
        "share",
        &json!({"currentHealthy": 2, "disruptionsAllowed": 0}),
    )?;
    let budget = server.json(&["get", "pdb", "share"])?;
    ensure!(
        condition(&budget, "DisruptionAllowed")["reason"] == "InsufficientPods",
        "{budget}"
    );
    Ok(())
}
