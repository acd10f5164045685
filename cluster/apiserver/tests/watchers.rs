//! A thousand watchers of which a hundred do not read: those who read miss nothing, those who don't are cut and told so, and the server's memory stays bounded.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_apiserver::{Config, InProcess, Server};
use berth_auth::{MASTERS, User};
use berth_store::Memory;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::Service;

const READERS: usize = 900;
const SILENT: usize = 100;
/// That the readers read: of one object.
const CHANGES: usize = 200;
/// For each of them so many of another: all together more than wait for a watcher at most (2,048) and are on the way to it (three frames of 64 KiB).
const OTHERS: usize = 17;
const WITHIN: Duration = Duration::from_secs(300);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>>;

async fn ask(client: &InProcess, method: Method, path: &str, body: &Value) -> Answer {
    let content_type = if method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("a request");
    client.clone().call(request).await.expect("it answers")
}

/// The resident memory of this process.
fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.expect("VmRSS") / 1024
}

/// Reads until the last change; how many events there were, and whether they were in order.
async fn read(mut watch: Answer) -> (usize, bool) {
    let (mut rest, mut seen, mut last, mut ordered) = (Vec::new(), 0, 0, true);
    while seen < CHANGES {
        let Some(Ok(frame)) = watch.body_mut().frame().await else {
            break;
        };
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            let number = text
                .split("\"n\":\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next()?.parse::<usize>().ok());
            if let Some(number) = number {
                ordered &= number == last + 1;
                last = number;
                seen += 1;
            }
        }
    }
    (seen, ordered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_misses_nothing_beside_a_hundred_who_do_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(Config {
        data: directory.path().join("data"),
        listen: "127.0.0.1:0".parse().expect("an address"),
        kubeconfig: directory.path().join("kubeconfig"),
        store: Arc::new(Memory::new()),
        services: (Ipv4Addr::new(10, 96, 0, 0), 16),
        etcd_listen: None,
        taints_new_nodes: false,
        names: Vec::new(),
    })
    .await
    .expect("it starts");
    let client = server.in_process(User {
        username: "admin".into(),
        groups: vec![MASTERS.into()],
        ..User::default()
    });
    let other = json!({"metadata": {"name": "other"}, "data": {"other": "0"}});
    let made = ask(&client, Method::POST, MAPS, &other).await;
    assert_eq!(made.status(), 201);
    let map = json!({"metadata": {"name": "m"}, "data": {"n": "0"}});
    let made = ask(&client, Method::POST, MAPS, &map).await;
    assert_eq!(made.status(), 201);
    let made = made.into_body().collect().await.expect("a body").to_bytes();
    let made: Value = serde_json::from_slice(&made).expect("JSON");
    let version = made["metadata"]["resourceVersion"]
        .as_str()
        .expect("a version");
    let all = format!("{MAPS}?watch=true&resourceVersion={version}");
    let watch = format!("{all}&fieldSelector=metadata.name=m");
    let before = resident_mib();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        readers.spawn(read(ask(&client, Method::GET, &watch, &Value::Null).await));
    }
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(ask(&client, Method::GET, &all, &Value::Null).await);
    }
    let begun = Instant::now();
    for n in 1..=CHANGES {
        let patch = json!({"data": {"n": n.to_string()}});
        let patched = ask(&client, Method::PATCH, &format!("{MAPS}/m"), &patch).await;
        assert_eq!(patched.status(), 200);
        for other in 0..OTHERS {
            let patch = json!({"data": {"other": format!("{n} {other}")}});
            let patched = ask(&client, Method::PATCH, &format!("{MAPS}/other"), &patch).await;
            assert_eq!(patched.status(), 200);
        }
    }
    let read = tokio::time::timeout(WITHIN, readers.join_all())
        .await
        .expect("in time");
    assert!(
        read.iter().all(|one| *one == (CHANGES, true)),
        "{:?}",
        read.iter().find(|one| **one != (CHANGES, true))
    );
    // changes are shared: what a hundred have not read is held once
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 256, "{grown} MiB");
    for watch in silent {
        let body = watch.into_body().collect();
        let text = tokio::time::timeout(Duration::from_secs(60), body)
            .await
            .expect("it is cut")
            .expect("a body")
            .to_bytes();
        let text = String::from_utf8_lossy(&text);
        let last = format!("\"n\":\"{CHANGES}\"");
        assert!(
            !text.contains(&last),
            "it was held for as long as nobody read it"
        );
        // It is told why, or has ended since nobody took a frame for a minute.
        let end: Value = text.trim_end().lines().last().map_or(Value::Null, |line| {
            serde_json::from_str(line).expect("JSON")
        });
        if end["type"] == "ERROR" {
            assert_eq!(end["object"]["code"], 410, "{end}");
            assert_eq!(end["object"]["reason"], "Expired", "{end}");
        }
    }
    println!(
        "{READERS} watchers read {CHANGES} changes in {:?} beside {SILENT} that did not; {grown} MiB more",
        begun.elapsed()
    );
}
