//! Deployments, ReplicaSets, DaemonSets and StatefulSets, by real kubectl. Their pods have no containers: hollow kubelets make them ready.

mod daemons;
mod deployments;
pub mod hollow;
mod sets;
mod settled;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::cluster::{Component, Server};
use serde_json::{Value, json};

use self::hollow::Hollow;

const WITHIN: Duration = Duration::from_secs(60);
/// Those that are asked for here, and what follows from them.
const NAMES: &str =
    "deployment-controller,replicaset-controller,daemonset-controller,statefulset-controller";

fn controllers(server: &Server) -> Result<Component> {
    Component::start(
        server,
        "controllers",
        &["--leader-elect=false", "--controllers", NAMES],
    )
}

/// Hollow kubelets, controllers and a server: in the order in which they end.
struct Cluster {
    hollow: Hollow,
    controllers: Option<Component>,
    server: Server,
}

impl Cluster {
    fn start() -> Result<Self> {
        let server = Server::start("memory")?;
        Ok(Self {
            controllers: Some(controllers(&server)?),
            hollow: Hollow::start(&server)?,
            server,
        })
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.server.kubectl(arguments)
    }

    fn apply(&self, object: &Value) -> Result<()> {
        self.server
            .kubectl_with(&["apply", "-f", "-"], &object.to_string())
            .map(drop)
    }

    fn patch(&self, what: &str, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        self.kubectl(&["patch", what, "--type=merge", "-p", &patch])
            .map(drop)
    }

    fn items(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut all = vec!["get"];
        all.extend(arguments);
        let list = self.server.json(&all)?;
        Ok(list["items"].as_array().context("items")?.clone())
    }

    /// Waits for what the objects that kubectl gets are to be.
    fn until(&self, what: &str, get: &[&str], is: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let until = Instant::now() + WITHIN;
        loop {
            let items = self.items(get)?;
            if is(&items) {
                return Ok(items);
            }
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.server.dir().join("controllers.log"));
                bail!(
                    "not within {} s: {what}: {items:#?}\ncontrollers: {log:?}",
                    WITHIN.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn rolled(&self, what: &str) -> Result<String> {
        let limit = format!("--timeout={}s", WITHIN.as_secs() - 5);
        self.kubectl(&["rollout", "status", what, &limit])
            .with_context(|| {
                std::fs::read_to_string(self.server.dir().join("controllers.log"))
                    .unwrap_or_default()
            })
    }

    fn sets(&self) -> Result<Vec<Value>> {
        self.items(&["rs"])
    }
}

fn images(pods: &[Value]) -> Vec<&str> {
    let mut images: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str())
        .collect();
    images.sort_unstable();
    images
}

/// Those that are not asked to go.
fn kept(objects: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = objects
        .iter()
        .filter(|object| object["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    names
}

fn names(objects: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = objects
        .iter()
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    names
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let mut conditions = object["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == type_)
}

fn workload(kind: &str, name: &str, more: &Value) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "nginx", "image": "nginx:1.7.9"}]},
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn set_image(cluster: &Cluster, what: &str, image: &str) -> Result<()> {
    let image = format!("nginx={image}");
    cluster.kubectl(&["set", "image", what, &image]).map(drop)
}

fn node(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}))
}
