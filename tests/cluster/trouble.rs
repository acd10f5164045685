//! An API server that answers 429 and 500 for a while: `berth controllers` and `berth scheduler` get to it through a proxy which does that. In the end all is as it
//! should be, and nothing was done twice.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::{Component, Proxy, Server};
use serde_json::{Value, json};

use crate::workloads::hollow::Hollow;

const WITHIN: Duration = Duration::from_secs(90);
/// Requests that are refused before the server is well again.
const REFUSALS: usize = 100;
/// While it is not, one in so many is answered all the same.
const ANSWERED: usize = 5;

#[derive(Default)]
struct Mood {
    bad: AtomicBool,
    asked: AtomicUsize,
    refused: AtomicUsize,
    /// What watches are told over.
    watches: Mutex<Vec<TcpStream>>,
}

/// A way to the server on which it may be in a bad mood.
struct Way {
    mood: Arc<Mood>,
    kubeconfig: PathBuf,
    _proxy: Proxy,
}

impl Way {
    fn start(server: &Server) -> Result<Self> {
        let proxy = server.proxy()?;
        let (port, listener) = (proxy.port(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr()?)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let kubeconfig = server.dir().join("troubled");
        std::fs::write(&kubeconfig, config.to_string())?;
        let mood = Arc::new(Mood::default());
        let shared = mood.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mood = shared.clone();
                std::thread::spawn(move || answer(client, port, &mood));
            }
        });
        Ok(Self {
            mood,
            kubeconfig,
            _proxy: proxy,
        })
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Watches break, and nearly all requests are refused.
    fn worsen(&self) {
        self.mood.bad.store(true, Ordering::SeqCst);
        let mut watches = self
            .mood
            .watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for watch in watches.drain(..) {
            let _ = watch.shutdown(Shutdown::Both);
        }
    }

    fn improve(&self) {
        self.mood.bad.store(false, Ordering::SeqCst);
    }

    fn refused(&self) -> usize {
        self.mood.refused.load(Ordering::SeqCst)
    }
}

/// One request.
fn answer(mut client: TcpStream, port: u16, mood: &Mood) -> Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    let (line, rest) = head.split_once("\r\n").context("a line")?;
    let asked = mood.asked.fetch_add(1, Ordering::SeqCst);
    if mood.bad.load(Ordering::SeqCst) && !asked.is_multiple_of(ANSWERED) {
        let at = mood.refused.fetch_add(1, Ordering::SeqCst);
        let (code, reason, more) = match at % 2 {
            0 => (429, "TooManyRequests", "Retry-After: 1\r\n"),
            _ => (500, "InternalError", ""),
        };
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": "it is in a bad mood", "reason": reason, "code": code,
        })
        .to_string();
        write!(
            client,
            "HTTP/1.1 {code} {reason}\r\n{more}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{status}",
            status.len()
        )?;
        return Ok(client.shutdown(Shutdown::Both)?);
    }
    if line.contains("watch=true") {
        let mut watches = mood.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.push(client.try_clone()?);
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    write!(server, "{line}\r\nConnection: close\r\n{rest}")?;
    server.write_all(&body)?;
    std::io::copy(&mut server, &mut client)?;
    Ok(client.shutdown(Shutdown::Both)?)
}

fn deployment(name: &str, replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "10m"}}}],
            }},
        },
    })
}

fn apply(server: &Server, object: &Value) -> Result<()> {
    server
        .kubectl_with(&["apply", "-f", "-"], &object.to_string())
        .map(drop)
}

fn until(server: &Server, what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + WITHIN;
    while !is()? {
        if Instant::now() > until {
            let log = |name: &str| std::fs::read_to_string(server.dir().join(name));
            bail!(
                "not within {} s: {what}\ncontrollers: {:?}\nscheduler: {:?}",
                WITHIN.as_secs(),
                log("controllers.log"),
                log("scheduler.log")
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// All its pods are of its newest template, ready and counted, and there are no others.
fn is_rolled(server: &Server, name: &str, replicas: u64) -> Result<bool> {
    let deployment = server.json(&["get", "deployment", name])?;
    let status = &deployment["status"];
    let counts = ["replicas", "updatedReplicas", "availableReplicas"];
    let pods = server.json(&["get", "pods", "-l", &format!("app={name}")])?;
    Ok(
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && counts.iter().all(|count| status[*count] == replicas)
            && pods["items"].as_array().map(Vec::len) == usize::try_from(replicas).ok(),
    )
}

#[test]
fn a_server_that_refuses_for_a_while_is_waited_for_and_nothing_is_done_twice() -> Result<()> {
    let server = Server::start("memory")?;
    let room = json!({"cpu": "4", "memory": "4Gi", "pods": "20"});
    for name in ["n1", "n2"] {
        apply(
            &server,
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
        )?;
        let status = json!({"status": {"allocatable": room, "capacity": room, "conditions": [{"type": "Ready", "status": "True"}]}});
        let status = status.to_string();
        let patch = [
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
        ];
        server.kubectl(&[&patch[..], &[&status]].concat())?;
    }
    let hollow = Hollow::start_beside_a_scheduler(&server)?;
    let way = Way::start(&server)?;
    let alone = "--leader-elect=false";
    let names = "--controllers=deployment-controller,replicaset-controller";
    let _controllers =
        Component::start_at(&server, way.kubeconfig(), "controllers", &[alone, names])?;
    let _scheduler = Component::start_at(&server, way.kubeconfig(), "scheduler", &[alone])?;
    apply(&server, &deployment("web", 6, "example/c:1"))?;
    until(&server, "six pods are ready", || {
        is_rolled(&server, "web", 6)
    })?;

    hollow.begin();
    way.worsen();
    apply(&server, &deployment("web", 6, "example/c:2"))?;
    apply(&server, &deployment("late", 3, "example/c:1"))?;
    // it fits nowhere, and has to be told so in the end
    let mut large = deployment("large", 1, "example/c:1");
    large["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] =
        "64".into();
    apply(&server, &large)?;
    until(&server, "enough is refused", || {
        Ok(way.refused() >= REFUSALS)
    })?;
    way.improve();

    until(&server, "it is rolled", || is_rolled(&server, "web", 6))?;
    until(&server, "the late one is there", || {
        is_rolled(&server, "late", 3)
    })?;
    until(&server, "the large one is told why it waits", || {
        let pods = server.json(&["get", "pods", "-l", "app=large"])?;
        let conditions = pods["items"][0]["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        Ok(conditions.any(|it| it["type"] == "PodScheduled" && it["reason"] == "Unschedulable"))
    })?;
    let counts = hollow.counts();
    // six and two more, three, one; five of the first are ready all the time
    ensure!(counts.most <= 12 && counts.least_ready >= 5, "{counts:?}");
    for (app, ever) in [("web", 12), ("late", 3), ("large", 1)] {
        ensure!(
            hollow.ever("app", app) == ever,
            "{app}: {} pods instead of {ever}",
            hollow.ever("app", app)
        );
    }
    Ok(())
}
