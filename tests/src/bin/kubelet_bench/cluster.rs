//! The API server, the kubelet, and a client of the admin's that makes pods and watches them.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use berth_tests::{Node as Machine, cgroup, cluster::Server, daemon::bin_dir};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

const NODE: &str = "n1";
/// Creates in flight.
const CREATES: usize = 30;
/// Longer than anything takes that comes to its end at all.
const LIMIT: Duration = Duration::from_secs(900);

/// Ends with SIGTERM, at once.
pub const SLEEPER: &str = r#"{"containers": [{"name": "a", "image": "busybox", "imagePullPolicy": "IfNotPresent",
  "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"]}]}"#;
/// … with probes as most pods have them.
pub const PROBED: &str = r#"{"containers": [{"name": "a", "image": "busybox", "imagePullPolicy": "IfNotPresent",
  "command": ["sh", "-c", "trap 'exit 0' TERM; httpd -p 8080 -h /etc; sleep 1000000 & wait"],
  "livenessProbe": {"httpGet": {"path": "/passwd", "port": 8080}, "periodSeconds": 10, "initialDelaySeconds": 1},
  "readinessProbe": {"httpGet": {"path": "/passwd", "port": 8080}, "periodSeconds": 10, "initialDelaySeconds": 1}}]}"#;

/// Pods as a watch tells of them, by name.
#[derive(Debug, Default)]
struct Seen {
    all: BTreeSet<String>,
    running: BTreeSet<String>,
}

/// Ended when it is dropped.
struct Kubelet(Child);

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Cluster {
    server: Server,
    kubelet: Kubelet,
    pods: Api<Pod>,
    seen: watch::Receiver<Seen>,
    watches: JoinHandle<()>,
    log: std::path::PathBuf,
    /// Of all pods: a kubelet leaves it to the next one.
    cgroup: String,
}

impl Cluster {
    /// A node that is ready and has room for `pods`.
    pub async fn start(machine: &Machine, pods: usize) -> Result<Self> {
        let server = Server::start("fjall")?;
        let kubeconfig = server.node_kubeconfig(NODE)?;
        let log = machine.dir.join("kubelet.log");
        let file = fs::File::create(&log)?;
        #[rustfmt::skip]
        let kubelet = Command::new(bin_dir()?.join("berth"))
            .arg("--endpoint").arg(format!("unix://{}", machine.daemon.socket().display()))
            .arg("kubelet")
            .arg("--kubeconfig").arg(kubeconfig)
            .arg("--kubelet-dir").arg(machine.dir.join("kubelet"))
            .arg("--logs-dir").arg(machine.dir.join("logs"))
            .args(["--node-name", NODE, "--node-ip", "127.0.0.1", "--listen", "127.0.0.1:0"])
            .args(["--max-pods", &(pods + 100).to_string()])
            .args(["--cgroup-root", &machine.cgroup_parent])
            // how full the machine's disk is, is not what is measured
            .args(["--eviction-hard", "nodefs.available<0%,nodefs.inodesFree<0%,imagefs.available<0%,imagefs.inodesFree<0%,pid.available<0%"])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start berth kubelet")?;
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let pods = Api::<Pod>::namespaced(client.clone(), "default");
        let (told, seen) = watch::channel(Seen::default());
        let watches = tokio::spawn(look(pods.clone(), told));
        let cluster = Self {
            server,
            kubelet: Kubelet(kubelet),
            pods,
            seen,
            watches,
            log,
            cgroup: machine.own_cgroup_parent("kubepods"),
        };
        let nodes = Api::<Node>::all(client.clone());
        let accounts = Api::<ServiceAccount>::namespaced(client, "default");
        let ready = async {
            loop {
                let node = nodes.get_opt(NODE).await?;
                let conditions = node.and_then(|it| it.status?.conditions);
                let is_ready = conditions
                    .iter()
                    .flatten()
                    .any(|one| one.type_ == "Ready" && one.status == "True");
                if is_ready && accounts.get_opt("default").await?.is_some() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        cluster.within("the node is ready", ready).await?;
        Ok(cluster)
    }

    pub fn kubelet_pid(&self) -> i32 {
        self.kubelet.0.id() as i32
    }

    /// Makes a pod; returns when it runs.
    pub async fn create(&self, name: &str, spec: &str) -> Result<()> {
        self.create_all(&[name.to_owned()], spec).await
    }

    /// Makes pods, [`CREATES`] at a time; returns when all run.
    pub async fn create_all(&self, names: &[String], spec: &str) -> Result<()> {
        let mut seen = self.seen.clone();
        let create = async {
            let made = stream::iter(names.iter().map(Ok)).try_for_each_concurrent(
                CREATES,
                async |name| -> Result<()> {
                    let pod = serde_json::from_value(pod(name, spec)?)?;
                    self.pods.create(&PostParams::default(), &pod).await?;
                    Ok(())
                },
            );
            let running =
                seen.wait_for(|seen| names.iter().all(|name| seen.running.contains(name)));
            let (made, running) = tokio::join!(made, running);
            made?;
            running?;
            Ok(())
        };
        self.within("the pods run", create).await
    }

    /// As a person does.
    pub async fn create_by_kubectl(&self, name: &str) -> Result<()> {
        let mut seen = self.seen.clone();
        let text = pod(name, SLEEPER)?.to_string();
        self.server.kubectl_with(&["create", "-f", "-"], &text)?;
        let running = async {
            seen.wait_for(|seen| seen.running.contains(name)).await?;
            Ok(())
        };
        self.within("the pod runs", running).await
    }

    /// All pods, by one request; returns when none is left.
    pub async fn delete_all(&self) -> Result<()> {
        let mut seen = self.seen.clone();
        let delete = async {
            self.pods
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await?;
            seen.wait_for(|seen| seen.all.is_empty()).await?;
            Ok(())
        };
        self.within("the pods are gone", delete).await
    }

    async fn within(&self, what: &str, act: impl Future<Output = Result<()>>) -> Result<()> {
        match tokio::time::timeout(LIMIT, act).await {
            Ok(done) => done.with_context(|| format!("until {what}")),
            Err(_) => {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                bail!(
                    "in vain waited until {what}; the kubelet's last words:\n{}",
                    last.join("\n")
                )
            }
        }
    }

    /// Deletes what is left, whatever went wrong before, and ends all that was started.
    pub async fn end(self) -> Result<()> {
        self.watches.abort();
        let gone = async {
            loop {
                let all = self.pods.list(&ListParams::default().limit(1)).await?;
                if all.items.is_empty() {
                    return Ok(());
                }
                self.pods
                    .delete_collection(&DeleteParams::default(), &ListParams::default())
                    .await?;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let ended = self.within("nothing is left", gone).await;
        drop(self.kubelet);
        let removed = cgroup::remove(&self.cgroup);
        ended.and(removed.context("remove the pods' cgroup"))
    }
}

fn pod(name: &str, spec: &str) -> Result<Value> {
    let mut spec: Value = serde_json::from_str(spec)?;
    spec["nodeName"] = NODE.into();
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}))
}

/// Follows the pods until nobody listens.
async fn look(pods: Api<Pod>, told: watch::Sender<Seen>) {
    let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()));
    let mut listed = Seen::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = Seen::default(),
            Ok(Event::InitApply(pod)) => listed.put(pod),
            Ok(Event::InitDone) => {
                told.send_replace(std::mem::take(&mut listed));
            }
            Ok(Event::Apply(pod)) => told.send_modify(|seen| seen.put(pod)),
            Ok(Event::Delete(pod)) => told.send_modify(|seen| {
                let name = pod.metadata.name.unwrap_or_default();
                seen.all.remove(&name);
                seen.running.remove(&name);
            }),
            Err(error) => eprintln!("the watch of pods: {error}"),
        }
    }
}

impl Seen {
    fn put(&mut self, pod: Pod) {
        let name = pod.metadata.name.unwrap_or_default();
        if pod
            .status
            .is_some_and(|it| it.phase.as_deref() == Some("Running"))
        {
            self.running.insert(name.clone());
        }
        self.all.insert(name);
    }
}
