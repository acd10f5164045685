//! How long it takes from the sending of an update until those who watch have it.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::task::LocalSet;

use super::{
    Result, at,
    client::{Client, Target},
    objects, say,
    server::Server,
};

const WATCHERS: u64 = objects::NODES;
/// Below what the server takes on one connection (250).
const WATCHERS_A_CONNECTION: u64 = 100;
const ROUND: Duration = Duration::from_secs(10);
const WRITERS: usize = 32;
/// In an annotation: the microseconds since the round began at which the update was sent.
const SENT: &[u8] = b"\"sent\":\"";

/// A thousand watchers of a node's pods each, as kubelets are, and a thousand updates a second: each is for one of them.
pub async fn own(target: &Target, server: &Server) -> Result<()> {
    round(target, server, "watchers of their own node", 1000, 1, |n| {
        (
            format!("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dnode-{n}"),
            objects::path(n),
        )
    })
    .await
}

/// A thousand watchers of the same: each update is for all of them.
pub async fn shared(target: &Target, server: &Server) -> Result<()> {
    let client = Client::connect(target).await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "watched"}, "data": {"a": "x".repeat(200)}});
    let path = "/api/v1/namespaces/default/configmaps";
    client.send("POST", path, map.to_string().into()).await?;
    round(
        target,
        server,
        "watchers of one object",
        20,
        WATCHERS,
        |_| {
            (
                format!("{path}?watch=true&fieldSelector=metadata.name%3Dwatched"),
                format!("{path}/watched"),
            )
        },
    )
    .await
}

/// `paths`: what the watcher of a number watches, and what is updated for it.
async fn round(
    target: &Target,
    server: &Server,
    name: &str,
    updates_a_second: u32,
    heard_by: u64,
    paths: impl Fn(u64) -> (String, String),
) -> Result<()> {
    let begun = Instant::now();
    let took = Rc::new(RefCell::new(Vec::new()));
    let local = LocalSet::new();
    let mut listening = Vec::new();
    let mut connection = Client::connect(target).await?;
    for n in 0..WATCHERS {
        if n % WATCHERS_A_CONNECTION == 0 && n > 0 {
            connection = Client::connect(target).await?;
        }
        let path = paths(n % WATCHERS).0;
        let response = connection
            .open("GET", &path, "application/json", Bytes::new())
            .await?;
        let mut body = response.into_body();
        let took = took.clone();
        listening.push(local.spawn_local(async move {
            let mut rest: Vec<u8> = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { break };
                let now = begun.elapsed();
                rest.extend_from_slice(&data);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    if let Some(sent) = sent(&rest[..end]) {
                        took.borrow_mut().push(now.saturating_sub(sent));
                    }
                    rest.drain(..=end);
                }
            }
        }));
    }
    let _ = local
        .run_until(tokio::time::timeout(
            Duration::from_secs(1),
            std::future::pending::<()>(),
        ))
        .await;
    took.borrow_mut().clear();
    let cpu = server.cpu()?;
    let updates = updates_a_second * u32::try_from(ROUND.as_secs())?;
    let mut writers = Vec::new();
    let mut targets = Vec::new();
    for n in 0..u64::from(updates) {
        targets.push(paths(n % WATCHERS).1);
    }
    let targets = Rc::new(targets);
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(Client::connect(target).await?);
    }
    let start = Instant::now();
    for (writer, client) in clients.into_iter().enumerate() {
        let targets = targets.clone();
        writers.push(local.spawn_local(async move {
            let mut replies = Vec::new();
            for (n, path) in targets.iter().enumerate().skip(writer).step_by(WRITERS) {
                let due = start + Duration::from_secs(1) / updates_a_second * u32::try_from(n)?;
                tokio::time::sleep_until(due.into()).await;
                let sent = begun.elapsed();
                let patch =
                    json!({"metadata": {"annotations": {"sent": sent.as_micros().to_string()}}});
                client.send("PATCH", path, patch.to_string().into()).await?;
                replies.push(begun.elapsed() - sent);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(replies)
        }));
    }
    let mut replies = Vec::new();
    local
        .run_until(async {
            for writer in writers {
                replies.extend(writer.await??);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        })
        .await?;
    let seconds = start.elapsed().as_secs_f64();
    let _ = local
        .run_until(tokio::time::timeout(
            Duration::from_secs(2),
            std::future::pending::<()>(),
        ))
        .await;
    let mut took = took.take();
    took.sort_unstable();
    replies.sort_unstable();
    say(&json!({
        "round": name,
        "watchers": WATCHERS,
        "updates_a_second": (f64::from(updates) / seconds).round(),
        "deliveries": took.len(),
        "expected": u64::from(updates) * heard_by,
        "delivery_p50_ms": at(&took, 0.5),
        "delivery_p99_ms": at(&took, 0.99),
        "reply_p50_ms": at(&replies, 0.5),
        "reply_p99_ms": at(&replies, 0.99),
        "cpu_share": ((server.cpu()? - cpu).as_secs_f64() / seconds * 100.0).round() / 100.0,
        "pss_mib": server.pss_mib()?,
    }));
    for task in listening {
        task.abort();
    }
    Ok(())
}

fn sent(event: &[u8]) -> Option<Duration> {
    let at = event
        .windows(SENT.len())
        .position(|window| window == SENT)?
        + SENT.len();
    let digits = event[at..].split(|byte| *byte == b'"').next()?;
    Some(Duration::from_micros(
        std::str::from_utf8(digits).ok()?.parse().ok()?,
    ))
}
