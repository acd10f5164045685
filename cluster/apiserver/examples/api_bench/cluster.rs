//! What a whole control plane does for hollow nodes: objects only, whose kubelet this process is.

mod hollow;
mod rollout;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Result, at,
    client::{Client, Target},
    objects::PODS,
    say,
    server::Server,
};
use hollow::{Pods, node};

/// Who makes nodes and pods.
const CREATORS: usize = 64;
/// Pods that come one after another: so many a second, as many in all.
const ARRIVING_A_SECOND: u64 = 500;
const ARRIVING: u64 = 5_000;
/// Of one round: what takes longer hangs.
const WITHIN: Duration = Duration::from_secs(300);

pub struct Size {
    nodes: u64,
    pods: u64,
    replicas: u64,
}

impl Size {
    pub fn of(numbers: &[&str]) -> Result<Self> {
        let number = |at: usize, default: u64| {
            numbers
                .get(at)
                .map_or(Ok(default), |number| number.parse::<u64>())
        };
        Ok(Self {
            nodes: number(0, 5_000)?,
            pods: number(1, 10_000)?,
            replicas: number(2, 1_000)?,
        })
    }
}

pub async fn rounds(berth: &Path, directory: &Path, size: Size) -> Result<()> {
    for kind in ["basic", "affinity"] {
        waiting(berth, &directory.join(kind), kind, &size).await?;
    }
    arriving(berth, &directory.join("arriving"), &size).await?;
    rollout::round(berth, &directory.join("rollout"), size.replicas).await
}

/// As kube-scheduler's own benchmarks have them.
fn pod(kind: &str, n: u64) -> Value {
    let app = format!("a{}", n % 40);
    let mut spec = json!({"containers": [{"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]});
    if kind == "affinity" {
        spec["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "topology.kubernetes.io/zone"},
        ]}});
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{n}"), "labels": {"app": app}}, "spec": spec})
}

/// `count` objects, made by [`CREATORS`] clients; how many a second.
async fn make(
    target: &Target,
    path: &'static str,
    count: u64,
    object: impl Fn(u64) -> Value + Clone + Send + 'static,
) -> Result<f64> {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..CREATORS {
        let client = Client::connect(target).await?;
        let (next, object) = (next.clone(), object.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(());
                }
                client
                    .send("POST", path, object(n).to_string().into())
                    .await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Pods that are all there before the scheduler starts.
async fn waiting(berth: &Path, directory: &Path, kind: &'static str, size: &Size) -> Result<()> {
    let server = Server::start(berth, directory)?;
    let target = Target::of(&server)?;
    let nodes = make(&target, "/api/v1/nodes", size.nodes, node).await?;
    let pods = make(&target, PODS, size.pods, move |n| pod(kind, n)).await?;
    let server = server.restart_parts(&[])?;
    let client = Client::connect(&Target::of(&server)?).await?;
    let cpu = server.cpu()?;
    let mut watch = Pods::watch(&client).await?;
    let (mut bound, mut times) = (HashMap::new(), Vec::new());
    let begun = Instant::now();
    while (bound.len() as u64) < size.pods {
        for seen in watch.next(begun + WITHIN).await? {
            if let Some(node) = seen.node
                && bound.insert(seen.name, node).is_none()
            {
                times.push(begun.elapsed());
            }
        }
    }
    let (first, last) = (times[0], times[times.len() - 1]);
    let mut crowds: HashMap<&str, u64> = HashMap::new();
    for node in bound.values() {
        *crowds.entry(node).or_default() += 1;
    }
    say(&json!({
        "round": format!("bound: {kind}"), "nodes": size.nodes, "pods": size.pods,
        "nodes_made_a_second": nodes.round(), "pods_made_a_second": pods.round(),
        "bound_a_second": (size.pods as f64 / (last - first).as_secs_f64()).round(),
        "first_ms": super::ms(first), "seconds": (last - first).as_secs_f64(),
        "cpu_us_a_pod": ((server.cpu()? - cpu).as_secs_f64() * 1e6 / size.pods as f64).round(),
        "most_on_a_node": crowds.values().max(),
    }));
    Ok(())
}

/// Pods that come one after another, as fast as they are made anyway: from the request that makes one until it is seen to have a node.
async fn arriving(berth: &Path, directory: &Path, size: &Size) -> Result<()> {
    let server = Server::start(berth, directory)?;
    make(&Target::of(&server)?, "/api/v1/nodes", size.nodes, node).await?;
    let server = server.restart_parts(&[])?;
    let client = Client::connect(&Target::of(&server)?).await?;
    let mut watch = Pods::watch(&client).await?;
    let begun = Instant::now();
    let creates = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / ARRIVING_A_SECOND as u32);
        let mut tasks = Vec::new();
        for n in 0..ARRIVING {
            ticks.tick().await;
            let (client, asked) = (client.clone(), begun.elapsed());
            tasks.push(tokio::spawn(async move {
                let object = pod("basic", n).to_string().into();
                client
                    .send("POST", PODS, object)
                    .await
                    .map(|_| (format!("p{n}"), asked))
            }));
        }
        let mut asked = HashMap::new();
        for task in tasks {
            let (name, at) = task.await??;
            asked.insert(name, at);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(asked)
    });
    let mut bound = HashMap::new();
    while (bound.len() as u64) < ARRIVING {
        for seen in watch.next(begun + WITHIN).await? {
            if seen.node.is_some() {
                let elapsed = begun.elapsed();
                bound.entry(seen.name).or_insert(elapsed);
            }
        }
    }
    let asked = creates.await??;
    let mut took: Vec<Duration> = asked
        .iter()
        .filter_map(|(name, asked)| bound.get(name)?.checked_sub(*asked))
        .collect();
    took.sort_unstable();
    say(&json!({
        "round": "pods that come one after another", "nodes": size.nodes, "pods": took.len(), "a_second": ARRIVING_A_SECOND,
        "p50_ms": at(&took, 0.5), "p99_ms": at(&took, 0.99), "max_ms": at(&took, 1.0),
    }));
    Ok(())
}
