//! `write_cost memory|DIRECTORY PODS CHANGES [WATCHERS]`: what a write costs the API server's processor, without TLS and HTTP/2: PODS are created and CHANGES of them made, all
//! through the router in this process, by CLIENTS at once; WATCHERS (0) watch all pods meanwhile. Prints a line of JSON a round.
//!
//! Instructions are repeatable where times are not: run it under `valgrind --tool=callgrind` with two numbers of PODS, and divide the difference.

#[path = "api_bench/objects.rs"]
mod objects;

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_apiserver::{Config, InProcess, Server};
use berth_auth::{MASTERS, User};
use berth_store::{Embedded, Memory, Store};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use tower::Service as _;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CLIENTS: u64 = 32;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ([place, pods, changes], rest) = args
        .split_first_chunk::<3>()
        .ok_or("write_cost memory|DIRECTORY PODS CHANGES [WATCHERS]")?;
    let watchers = rest.first().map_or(Ok(0), |count| count.parse())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(rounds(place, pods.parse()?, changes.parse()?, watchers))
}

async fn rounds(place: &str, pods: u64, changes: u64, watchers: u64) -> Result<()> {
    let own = tempfile::tempdir()?;
    let directory = match place {
        "memory" => own.path(),
        place => Path::new(place),
    };
    let (begun, used) = (Instant::now(), processor()?);
    let store: Arc<dyn Store> = match place {
        "memory" => Arc::new(Memory::new()),
        _ => Arc::new(Embedded::open(&directory.join("store"))?),
    };
    let (opened, opened_used) = (begun.elapsed(), processor()? - used);
    let server = Server::start(Config {
        data: directory.join("data"),
        listen: "127.0.0.1:0".parse()?,
        kubeconfig: directory.join("kubeconfig"),
        store,
        services: (Ipv4Addr::new(10, 96, 0, 0), 16),
        etcd_listen: None,
        taints_new_nodes: false,
        names: Vec::new(),
    })
    .await?;
    println!(
        "{}",
        json!({
            "round": "start",
            "store_ms": opened.as_millis(),
            "store_cpu_ms": opened_used.as_millis(),
            "ready_ms": begun.elapsed().as_millis(),
            "cpu_ms": (processor()? - used).as_millis(),
        })
    );
    let client = server.in_process(User {
        username: "admin".into(),
        groups: vec![MASTERS.into()],
        ..User::default()
    });
    // A controller makes it, and no pod is made without.
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    while ask(&client, Method::GET, account, Bytes::new())
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listed = ask(&client, Method::GET, "/api/v1/pods?limit=1", Bytes::new()).await?;
    let listed: serde_json::Value = serde_json::from_slice(&listed)?;
    let there = listed["metadata"]["remainingItemCount"]
        .as_u64()
        .unwrap_or(0)
        + listed["items"].as_array().map_or(0, Vec::len) as u64;
    let mut watches = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let request = request(
            Method::GET,
            "/api/v1/namespaces/default/pods?watch=true",
            Bytes::new(),
        )?;
        let mut body = client.clone().call(request).await?.into_body();
        watches.spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
    }
    round(&client, "creates", pods, move |n| {
        (
            Method::POST,
            objects::PODS.to_owned(),
            objects::pod(there + n),
        )
    })
    .await?;
    let all = (there + pods).max(1);
    round(&client, "changes", changes, move |n| {
        let patch = json!({"metadata": {"annotations": {"sent": n.to_string()}}});
        (
            Method::PATCH,
            objects::path(n % all),
            patch.to_string().into(),
        )
    })
    .await?;
    Ok(())
}

async fn round(
    client: &InProcess,
    name: &str,
    count: u64,
    of: impl Fn(u64) -> (Method, String, Bytes) + Copy + Send + 'static,
) -> Result<()> {
    let (begun, used) = (Instant::now(), processor()?);
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..CLIENTS {
        let client = client.clone();
        tasks.spawn(async move {
            for n in (first..count).step_by(usize::try_from(CLIENTS)?) {
                let (method, path, body) = of(n);
                ask(&client, method, &path, body).await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    if count > 0 {
        let each = |all: Duration| (all.as_secs_f64() * 1e7 / count as f64).round() / 10.0;
        println!(
            "{}",
            json!({
                "round": name,
                "count": count,
                "us_each": each(begun.elapsed()),
                "cpu_us_each": each(processor()? - used),
            })
        );
    }
    Ok(())
}

fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    let content_type = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    Ok(Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .header("user-agent", "write_cost/1")
        .body(Full::new(body))?)
}

async fn ask(client: &InProcess, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
    let what = format!("{method} {path}");
    let response = client.clone().call(request(method, path, body)?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        return Err(format!("{what}: {status} {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(body)
}

/// Processor time of all threads that live, by the scheduler's count.
fn processor() -> Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse::<u64>()
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}
