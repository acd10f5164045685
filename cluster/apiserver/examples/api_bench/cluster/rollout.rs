//! A Deployment is made and rolled: each pod gets a node by the scheduler, and is ready as soon as this process has said so.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    super::{
        Result,
        client::{Client, Target},
        objects::PODS,
        say,
        server::Server,
    },
    WITHIN,
    hollow::{Pods, node},
    make,
};

const NODES: u64 = 100;
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// As kubelets do.
const RENEWED: Duration = Duration::from_secs(10);
/// Requests of hollow kubelets under way.
const AT_ONCE: usize = 64;

/// What was seen of the Deployment's pods while it was made or rolled.
#[derive(Default)]
struct Counts {
    most: usize,
    least_ready: usize,
}

struct Kubelets {
    client: Client,
    watch: Pods,
    /// Whether each is ready; those that are asked to end are not among them.
    pods: HashMap<String, bool>,
    under_way: Arc<Semaphore>,
}

pub async fn round(berth: &Path, directory: &Path, replicas: u64) -> Result<()> {
    let server = Server::start_parts(berth, directory, &[])?;
    let target = Target::of(&server)?;
    let client = Client::connect(&target).await?;
    make(&target, LEASES, NODES, |n| {
        let mut lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": format!("n{n}")}});
        lease["spec"] = renewed(n);
        lease
    })
    .await?;
    make(&target, "/api/v1/nodes", NODES, node).await?;
    let renews = tokio::spawn(renew(client.clone()));
    let mut kubelets = Kubelets {
        watch: Pods::watch(&client).await?,
        client: client.clone(),
        pods: HashMap::new(),
        under_way: Arc::new(Semaphore::new(AT_ONCE)),
    };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "containers": [{"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "10m"}}}],
            }},
        },
    });
    let (begun, cpu) = (Instant::now(), server.cpu()?);
    client
        .send("POST", DEPLOYMENTS, deployment.to_string().into())
        .await?;
    kubelets.until_rolled(replicas).await?;
    let (made, cpu_made) = (begun.elapsed(), server.cpu()? - cpu);
    let begun = Instant::now();
    let next = json!({"spec": {"template": {"metadata": {"annotations": {"turn": "2"}}}}});
    client
        .send("PATCH", DEPLOYMENT, next.to_string().into())
        .await?;
    let counts = kubelets.until_rolled(replicas).await?;
    say(&json!({
        "round": "a Deployment", "replicas": replicas, "nodes": NODES,
        "made_s": made.as_secs_f64(), "made_cpu_s": cpu_made.as_secs_f64(), "rolled_s": begun.elapsed().as_secs_f64(),
        "most_pods": counts.most, "least_ready": counts.least_ready,
    }));
    renews.abort();
    Ok(())
}

fn renewed(n: u64) -> Value {
    let now = jiff::Timestamp::now();
    json!({"holderIdentity": format!("n{n}"), "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}")})
}

async fn renew(client: Client) -> Result<()> {
    loop {
        tokio::time::sleep(RENEWED).await;
        for n in 0..NODES {
            let spec = json!({"spec": renewed(n)}).to_string().into();
            client
                .send("PATCH", &format!("{LEASES}/n{n}"), spec)
                .await?;
        }
    }
}

impl Kubelets {
    /// Does what kubelets would, until the Deployment's status says that it is as its spec.
    async fn until_rolled(&mut self, replicas: u64) -> Result<Counts> {
        let until = Instant::now() + WITHIN;
        let mut counts = Counts {
            most: self.pods.len(),
            least_ready: self.ready(),
        };
        let rolled = rolled(self.client.clone(), replicas);
        let mut rolled = std::pin::pin!(rolled);
        loop {
            let seen = tokio::select! {
                done = &mut rolled => {
                    done?;
                    return Ok(counts);
                }
                seen = self.watch.next(until) => seen?,
            };
            for one in seen {
                if one.gone || one.deleting {
                    self.pods.remove(&one.name);
                } else {
                    self.pods.insert(one.name.clone(), one.ready);
                }
                counts.most = counts.most.max(self.pods.len());
                counts.least_ready = counts.least_ready.min(self.ready());
                let path = format!("{PODS}/{}", one.name);
                if one.gone || one.node.is_none() {
                    continue;
                }
                if one.deleting {
                    let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
                    self.ask("DELETE", path, &now).await?;
                } else if !one.ready {
                    let now = jiff::Timestamp::now().strftime("%FT%TZ").to_string();
                    let condition =
                        json!({"type": "Ready", "status": "True", "lastTransitionTime": now});
                    let status = json!({"status": {"phase": "Running", "conditions": [condition]}});
                    self.ask("PATCH", format!("{path}/status"), &status).await?;
                }
            }
        }
    }

    fn ready(&self) -> usize {
        self.pods.values().filter(|ready| **ready).count()
    }

    /// What it asks may have changed or gone meanwhile: then the watch says so.
    async fn ask(&self, method: &'static str, path: String, body: &Value) -> Result<()> {
        let place = self.under_way.clone().acquire_owned().await?;
        let (client, body) = (self.client.clone(), Bytes::from(body.to_string()));
        tokio::spawn(async move {
            let _ = client.send(method, &path, body).await;
            drop(place);
        });
        Ok(())
    }
}

async fn rolled(client: Client, replicas: u64) -> Result<()> {
    loop {
        let deployment: Value = serde_json::from_slice(&client.get(DEPLOYMENT).await?)?;
        let status = &deployment["status"];
        let all = ["replicas", "updatedReplicas", "availableReplicas"];
        if status["observedGeneration"] == deployment["metadata"]["generation"]
            && all.iter().all(|count| status[*count] == replicas)
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
