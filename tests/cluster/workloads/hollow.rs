//! What kubelets and a scheduler would do to pods, without containers: pods get the node that they ask for, become ready, and go when they are asked to. It counts
//! what is there at each moment, as the API tells it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::Result;
use berth_tests::cluster::Server;
use futures_util::StreamExt;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// Pods with this in their image never become ready.
pub const BAD: &str = "bad";

/// Of pods that are not asked to end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub most: usize,
    pub least_ready: usize,
}

#[derive(Default)]
struct Seen {
    /// By uid: whether it is ready.
    pods: HashMap<String, bool>,
    counts: Counts,
    /// Of all that there ever were: their uids and labels.
    ever: HashMap<String, BTreeMap<String, String>>,
}

impl Seen {
    fn note(&mut self) {
        let ready = self.pods.values().filter(|ready| **ready).count();
        self.counts.most = self.counts.most.max(self.pods.len());
        self.counts.least_ready = self.counts.least_ready.min(ready);
    }

    fn begin(&mut self) {
        let ready = self.pods.values().filter(|ready| **ready).count();
        self.counts = Counts {
            most: self.pods.len(),
            least_ready: ready,
        };
    }
}

pub struct Hollow {
    seen: Arc<Mutex<Seen>>,
    ends: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Hollow {
    pub fn start(server: &Server) -> Result<Self> {
        Self::start_for(server, false)
    }

    /// Only for pods that have a node: a scheduler gives it to them.
    pub fn start_beside_a_scheduler(server: &Server) -> Result<Self> {
        Self::start_for(server, true)
    }

    fn start_for(server: &Server, bound_only: bool) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (ends, until) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let counts = seen.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = until => {}
                    done = follow(kubeconfig, &counts, bound_only) => {
                        if let Err(error) = done {
                            eprintln!("the hollow kubelets have ended: {error:#}");
                        }
                    }
                }
            });
        });
        Ok(Self {
            seen,
            ends: Some(ends),
            thread: Some(thread),
        })
    }

    /// Counts from now on.
    pub fn begin(&self) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .begin();
    }

    /// How many pods with this label there have ever been.
    pub fn ever(&self, label: &str, value: &str) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let has =
            |labels: &&BTreeMap<String, String>| labels.get(label).is_some_and(|is| is == value);
        seen.ever.values().filter(has).count()
    }

    pub fn counts(&self) -> Counts {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .counts
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        drop(self.ends.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn follow(kubeconfig: Kubeconfig, seen: &Mutex<Seen>, bound_only: bool) -> Result<()> {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let all: Api<Pod> = Api::all(client.clone());
    let mut events = watcher(all, watcher::Config::default())
        .default_backoff()
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                note(seen, &pod, true);
                let has_node = pod.spec.as_ref().is_some_and(|it| it.node_name.is_some());
                if has_node || !bound_only {
                    // it may have changed or gone meanwhile: then the watch says so
                    let _ = drive(&client, &pod).await;
                }
            }
            Ok(watcher::Event::Delete(pod)) => note(seen, &pod, false),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => eprintln!("the hollow kubelets' watch: {error}"),
        }
    }
    Ok(())
}

fn note(seen: &Mutex<Seen>, pod: &Pod, is_there: bool) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let uid = pod.uid().unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    seen.ever.insert(uid.clone(), labels);
    if is_there && pod.metadata.deletion_timestamp.is_none() {
        seen.pods.insert(uid, is_ready(pod));
    } else {
        seen.pods.remove(&uid);
    }
    seen.note();
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn drive(client: &Client, pod: &Pod) -> Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let (pods, name): (Api<Pod>, _) = (Api::namespaced(client.clone(), &namespace), pod.name_any());
    if pod.metadata.deletion_timestamp.is_some() {
        let now = DeleteParams::default().grace_period(0);
        pods.delete(&name, &now).await?;
        return Ok(());
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let Some(spec) = pod.spec.as_ref().filter(|_| phase == Some("Pending")) else {
        return Ok(());
    };
    let value: Value = serde_json::to_value(spec)?;
    let wanted = value.pointer(
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0",
    );
    if let (None, Some(node)) = (&spec.node_name, wanted.and_then(Value::as_str)) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        pods.create_subresource::<Value, Value>("binding", &name, &PostParams::default(), &binding)
            .await?;
        return Ok(());
    }
    let image = spec
        .containers
        .first()
        .and_then(|container| container.image.as_deref());
    if image.is_some_and(|image| image.contains(BAD)) {
        return Ok(());
    }
    let now = Time(Timestamp::now());
    let status = json!({"metadata": {"uid": pod.uid()}, "status": {
        "phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
    }});
    let patch = Patch::Strategic(&status);
    pods.patch_status(&name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}
