//! Nodes that say nothing, and servers that hear nothing.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;
use serde_json::json;

use super::{
    Hollow, QUICK, REACH, condition, controllers, controllers_at, event, eventually, has_taints,
    is_ending, taints, taints_of, tolerates,
};

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
