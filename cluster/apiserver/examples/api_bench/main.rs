//! `api_bench BERTH DIRECTORY [PODS]`: an API server of its own in DIRECTORY (on the disk that is to be measured), and what it takes to start, to lie idle,
//! to create pods durably, to list them, to tell watchers of changes, and to hold PODS of them (150,000). Prints a line of JSON a round.
//!
//! `api_bench BERTH DIRECTORY cluster [NODES] [PODS] [REPLICAS]`: a server with its scheduler and controllers, and hollow nodes: PODS (10,000) that wait for one of NODES (5,000)
//! are bound, bare ones and those with affinity; pods that come one after another are bound; a Deployment of REPLICAS (1,000) is made and rolled.
//!
//! The clients are real ones: TLS, a client certificate, HTTP/2, a connection each. They have one core between them, and so has the server on a
//! machine with two.

mod client;
mod cluster;
mod objects;
mod server;
mod watches;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use client::{Client, Target};
use serde_json::json;
use server::Server;

/// Of each round of creates.
const ROUND: Duration = Duration::from_secs(5);
/// As long as the server is watched while nobody wants anything of it.
const IDLE: Duration = Duration::from_secs(20);
const STARTS: usize = 5;
/// What the list is of.
const LISTED: u64 = 10_000;
const PODS: u64 = 150_000;
/// Who fills the store up to PODS.
const FILLERS: usize = 32;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [berth, directory, "cluster", ref numbers @ ..] => {
            let size = cluster::Size::of(numbers)?;
            runtime.block_on(cluster::rounds(
                Path::new(berth),
                Path::new(directory),
                size,
            ))
        }
        [berth, directory] => {
            runtime.block_on(rounds(Path::new(berth), Path::new(directory), PODS))
        }
        [berth, directory, pods] => {
            let pods = pods.parse()?;
            runtime.block_on(rounds(Path::new(berth), Path::new(directory), pods))
        }
        _ => {
            eprintln!(
                "api_bench BERTH DIRECTORY [PODS]\napi_bench BERTH DIRECTORY cluster [NODES] [PODS] [REPLICAS]"
            );
            std::process::exit(2);
        }
    }
}

async fn rounds(berth: &Path, directory: &Path, pods: u64) -> Result<()> {
    starts(berth, directory).await?;
    let server = Server::start(berth, &directory.join("server"))?;
    let target = Target::of(&server)?;
    let client = Client::connect(&target).await?;
    idle(&server).await?;
    let named = Arc::new(AtomicU64::new(0));
    for clients in [1, 64] {
        creates(&server, &target, clients, &named).await?;
    }
    fill(&target, &named, LISTED).await?;
    lists(&client, &server).await?;
    watches::own(&target, &server).await?;
    watches::shared(&target, &server).await?;
    fill(&target, &named, pods).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let count = client.get("/api/v1/pods?limit=1").await?;
    let count: serde_json::Value = serde_json::from_slice(&count)?;
    say(&json!({
        "round": "held",
        "pods": count["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) + 1,
        "bytes_a_pod": client.get(&objects::path(0)).await?.len(),
        "pss_mib": server.pss_mib()?,
        "rss_peak_mib": server.peak_mib()?,
        "disk_mib": server.disk_mib()?,
    }));
    drop(client);
    let begun = Instant::now();
    let server = server.restart()?;
    say(
        &json!({"round": "start again", "with_pods": named.load(Ordering::Relaxed), "ready_ms": ms(begun.elapsed()), "pss_mib": server.pss_mib()?}),
    );
    Ok(())
}

fn say(line: &serde_json::Value) {
    println!("{line}");
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 1e2
}

/// The percentile of sorted times, ms.
fn at(sorted: &[Duration], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(((sorted.len() as f64 * part) as usize).min(last))
        .map_or(f64::NAN, |took| ms(*took))
}

/// From the start of the process until `/readyz` is answered with 200: with nothing there yet, and with what the first start has made.
async fn starts(berth: &Path, directory: &Path) -> Result<()> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for n in 0..STARTS {
        let directory = directory.join(format!("start-{n}"));
        for took in [&mut first, &mut again] {
            let begun = Instant::now();
            let server = Server::start(berth, &directory)?;
            let client = Client::connect(&Target::of(&server)?).await?;
            client.get("/readyz").await?;
            took.push(begun.elapsed());
        }
    }
    first.sort_unstable();
    again.sort_unstable();
    say(
        &json!({"round": "start", "ready_ms": at(&first, 0.5), "ready_max_ms": at(&first, 1.0), "again_ms": at(&again, 0.5)}),
    );
    Ok(())
}

async fn idle(server: &Server) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (cpu, written) = (server.cpu()?, server.written()?);
    tokio::time::sleep(IDLE).await;
    say(&json!({
        "round": "idle",
        "pss_mib": server.pss_mib()?,
        "cpu_ms_a_second": ms(server.cpu()? - cpu) / IDLE.as_secs_f64(),
        "bytes_a_second": (server.written()? - written) as f64 / IDLE.as_secs_f64(),
    }));
    Ok(())
}

async fn creates(
    server: &Server,
    target: &Target,
    clients: usize,
    named: &Arc<AtomicU64>,
) -> Result<()> {
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Client::connect(target).await?);
    }
    let (written, cpu) = (server.written()?, server.cpu()?);
    let begun = Instant::now();
    let tasks: Vec<_> = connected
        .into_iter()
        .map(|client| {
            let named = named.clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                while begun.elapsed() < ROUND {
                    let n = named.fetch_add(1, Ordering::Relaxed);
                    let pod = objects::pod(n);
                    let begun = Instant::now();
                    client.send("POST", objects::PODS, pod).await?;
                    took.push(begun.elapsed());
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let count = took.len() as f64;
    say(&json!({
        "round": "creates",
        "clients": clients,
        "creates_a_second": (count / seconds).round(),
        "p50_ms": at(&took, 0.5),
        "p99_ms": at(&took, 0.99),
        "bytes_a_create": ((server.written()? - written) as f64 / count).round(),
        "cpu_us_a_create": ((server.cpu()? - cpu).as_secs_f64() * 1e6 / count).round(),
    }));
    Ok(())
}

/// Pods until there are `until`.
async fn fill(target: &Target, named: &Arc<AtomicU64>, until: u64) -> Result<()> {
    let mut tasks = Vec::new();
    for _ in 0..FILLERS {
        let client = Client::connect(target).await?;
        let named = named.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok(n) = named.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < until).then_some(n + 1)
            }) {
                client.send("POST", objects::PODS, objects::pod(n)).await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn lists(client: &Client, server: &Server) -> Result<()> {
    for (name, path) in [
        ("list", format!("/api/v1/pods?limit={LISTED}")),
        (
            "list from the cache",
            format!("/api/v1/pods?limit={LISTED}&resourceVersion=0"),
        ),
        ("table of 500", "/api/v1/pods?limit=500".to_owned()),
    ] {
        let accept = if name.starts_with("table") {
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
        } else {
            "application/json"
        };
        let cpu = server.cpu()?;
        let mut took = Vec::new();
        let mut bytes = 0;
        for _ in 0..5 {
            let begun = Instant::now();
            bytes = client.get_as(&path, accept).await?.len();
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        say(&json!({
            "round": name,
            "bytes": bytes,
            "p50_ms": at(&took, 0.5),
            "max_ms": at(&took, 1.0),
            "cpu_ms_each": ms((server.cpu()? - cpu) / 5),
        }));
    }
    let begun = Instant::now();
    let mut token = String::new();
    let mut pages = 0;
    loop {
        let page = client
            .get(&format!("/api/v1/pods?limit=500&continue={token}"))
            .await?;
        pages += 1;
        let page: serde_json::Value = serde_json::from_slice(&page)?;
        match page["metadata"]["continue"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => break,
        }
    }
    say(&json!({"round": "list in pages of 500", "pages": pages, "ms": ms(begun.elapsed())}));
    Ok(())
}
