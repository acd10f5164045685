//! A plugin that joins a node with a thousand pods, over a real socket.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use berth_nri::{Nri, Runtime, Settings, api, mux};
use berth_proto::nri::nri_ttrpc::{Plugin, RuntimeClient, create_plugin};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::r#async::{
    Client, Server, TtrpcContext,
    transport::{Listener, Socket},
};

const PODS: usize = 1000;
const CONTAINERS: usize = 3000;

/// Containers with the environment of a talkative image: 12 MiB in all, three messages and more.
struct Node;

#[async_trait]
impl Runtime for Node {
    async fn snapshot(&self) -> (Vec<api::PodSandbox>, Vec<api::Container>) {
        let pods = (0..PODS).map(|at| api::PodSandbox {
            id: format!("pod{at}"),
            ..Default::default()
        });
        let containers = (0..CONTAINERS).map(|at| api::Container {
            id: format!("container{at}"),
            pod_sandbox_id: format!("pod{}", at % PODS),
            env: vec!["x".repeat(4096)],
            ..Default::default()
        });
        (pods.collect(), containers.collect())
    }

    async fn update(
        &self,
        _: &str,
        updates: Vec<api::ContainerUpdate>,
    ) -> Vec<api::ContainerUpdate> {
        updates
    }
}

#[derive(Default)]
struct Seen {
    requests: usize,
    ids: Vec<String>,
    told: Vec<String>,
}

struct Script {
    seen: Arc<Mutex<Seen>>,
    takes_parts: bool,
}

#[async_trait]
impl Plugin for Script {
    async fn configure(
        &self,
        _: &TtrpcContext,
        _: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        Ok(Default::default())
    }

    async fn synchronize(
        &self,
        _: &TtrpcContext,
        request: api::SynchronizeRequest,
    ) -> ttrpc::Result<api::SynchronizeResponse> {
        let mut seen = self.seen.lock().unwrap();
        seen.requests += 1;
        seen.ids.extend(request.pods.into_iter().map(|pod| pod.id));
        seen.ids
            .extend(request.containers.into_iter().map(|c| c.id));
        Ok(api::SynchronizeResponse {
            more: request.more && self.takes_parts,
            ..Default::default()
        })
    }

    async fn run_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::RunPodSandboxRequest,
    ) -> ttrpc::Result<api::RunPodSandboxResponse> {
        self.seen.lock().unwrap().told.push(request.pod.id.clone());
        Ok(Default::default())
    }
}

fn settings(dir: &std::path::Path) -> Settings {
    Settings {
        enable: true,
        runtime_name: "test".into(),
        runtime_version: "0".into(),
        plugin_dir: dir.join("plugins"),
        config_dir: dir.join("conf.d"),
        registration_timeout: Duration::from_secs(20),
        request_timeout: Duration::from_secs(20),
        validator: Default::default(),
    }
}

/// The daemon's side, and the path of its socket.
async fn daemon(dir: &std::path::Path) -> (Arc<Nri>, std::path::PathBuf) {
    let nri = Nri::new(settings(dir));
    nri.start(Arc::new(Node)).await.unwrap();
    let path = dir.join("nri.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(nri.clone().serve(listener));
    (nri, path)
}

struct Connected {
    seen: Arc<Mutex<Seen>>,
    carrier: tokio::task::JoinHandle<std::io::Result<()>>,
    _server: Server,
    _client: RuntimeClient,
}

async fn connect(path: &std::path::Path, takes_parts: bool) -> Connected {
    let trunk = UnixStream::connect(path).await.unwrap();
    let (connections, carry) = mux::multiplex(trunk);
    let carrier = tokio::spawn(carry);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let service = Arc::new(Script {
        seen: seen.clone(),
        takes_parts,
    });
    let listener = Listener::new(futures_util::stream::iter([Ok(connections.plugin)]));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_plugin(service));
    server.start().await.unwrap();
    let client = RuntimeClient::new(Client::new(Socket::new(connections.runtime)));
    let request = api::RegisterPluginRequest {
        plugin_name: "thousand".into(),
        plugin_idx: "10".into(),
        ..Default::default()
    };
    let context = ttrpc::context::with_duration(Duration::from_secs(10));
    client.register_plugin(context, &request).await.unwrap();
    Connected {
        seen,
        carrier,
        _server: server,
        _client: client,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pods_are_told_each_once_in_messages_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (nri, path) = daemon(dir.path()).await;
    let pass = nri.pass().await;
    assert!(pass.is_idle());
    let plugin = connect(&path, true).await;
    // Something is under way: nobody joins before it is done.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(nri.names().is_empty() && plugin.seen.lock().unwrap().requests == 0);
    drop(pass);
    until("it joins", || nri.names() == ["10-thousand"]).await;
    {
        let seen = plugin.seen.lock().unwrap();
        assert!(seen.requests >= 3, "{}", seen.requests);
        let mut ids = seen.ids.clone();
        assert_eq!(ids.len(), PODS + CONTAINERS);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), PODS + CONTAINERS);
    }
    let pod = api::PodSandbox {
        id: "new".into(),
        ..Default::default()
    };
    let pass = nri.pass().await;
    pass.tell(api::Event::RUN_POD_SANDBOX, &pod, None)
        .await
        .unwrap();
    assert_eq!(plugin.seen.lock().unwrap().told, ["new"]);
    drop(pass);
    plugin.carrier.abort();
    until("it is gone", || nri.names().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_takes_one_message_only_is_turned_away_where_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    let (nri, path) = daemon(dir.path()).await;
    let plugin = connect(&path, false).await;
    until("it is turned away", || plugin.carrier.is_finished()).await;
    assert!(nri.names().is_empty());
    // And nobody waits for it.
    let pass = tokio::time::timeout(Duration::from_secs(1), nri.pass()).await;
    assert!(pass.unwrap().is_idle());
}
