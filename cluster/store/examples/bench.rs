//! `bench embedded DIRECTORY` and `bench etcd URL PID`: durable puts of 1.2 KiB by 1 and by 64 clients, for some seconds each. Prints a line of JSON a
//! round: puts a second, percentiles in ms, and bytes that the process (this one, or PID) had written to the disk a put.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use berth_store::{Embedded, Etcd, Keys, Op, RangeRequest, Store, Txn};

const VALUE: usize = 1200;
/// Objects that are written over and over: as many as a small cluster has.
const KEYS: u64 = 2000;
const ROUND: Duration = Duration::from_secs(5);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["embedded", directory] => {
                let begun = Instant::now();
                let store = Embedded::open(Path::new(directory)).expect("open the store");
                let opened = begun.elapsed();
                let store: Arc<dyn Store> = Arc::new(store);
                rounds("embedded", &store, "self").await;
                drop(store);
                let begun = Instant::now();
                drop(Embedded::open(Path::new(directory)).expect("open the store again"));
                println!(
                    "{{\"store\":\"embedded\",\"open_ms\":{:.1},\"open_again_ms\":{:.1}}}",
                    opened.as_secs_f64() * 1e3,
                    begun.elapsed().as_secs_f64() * 1e3
                );
            }
            ["etcd", url, pid] => {
                let channel = tonic::transport::Endpoint::new(url.to_owned())
                    .expect("a URL")
                    .connect_lazy();
                let store: Arc<dyn Store> = Arc::new(Etcd::new(channel));
                rounds("etcd", &store, pid).await;
            }
            _ => {
                eprintln!("bench embedded DIRECTORY | bench etcd URL PID");
                std::process::exit(2);
            }
        }
    });
}

/// What a process has had written to the disk, by the kernel's count.
fn written(pid: &str) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("read the counts");
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
        .expect("write_bytes")
}

async fn rounds(name: &str, store: &Arc<dyn Store>, pid: &str) {
    for clients in [1, 64] {
        let end = Instant::now() + ROUND;
        let before = written(pid);
        let next = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..clients)
            .map(|_| {
                let (store, next) = (store.clone(), next.clone());
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    while Instant::now() < end {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let begun = Instant::now();
                        store.txn(put(n)).await.expect("a put");
                        took.push(begun.elapsed());
                    }
                    took
                })
            })
            .collect();
        let mut took = Vec::new();
        for writer in writers {
            took.extend(writer.await.expect("a writer"));
        }
        took.sort_unstable();
        let at = |part: f64| took[(took.len() as f64 * part) as usize].as_secs_f64() * 1e3;
        println!(
            "{{\"store\":\"{name}\",\"clients\":{clients},\"puts_per_s\":{:.0},\"p50_ms\":{:.2},\"p99_ms\":{:.2},\"bytes_per_put\":{}}}",
            took.len() as f64 / ROUND.as_secs_f64(),
            at(0.5),
            at(0.99),
            (written(pid) - before) / took.len() as u64
        );
    }
    let begun = Instant::now();
    let listed = store
        .range(RangeRequest {
            keys: Keys::prefix("/registry/"),
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
        })
        .await
        .expect("a list");
    println!(
        "{{\"store\":\"{name}\",\"listed\":{},\"list_ms\":{:.1}}}",
        listed.kvs.len(),
        begun.elapsed().as_secs_f64() * 1e3
    );
}

/// Half of it is noise, so that it shrinks as little as objects do.
fn put(n: u64) -> Txn {
    let mut value = vec![b'x'; VALUE];
    for byte in &mut value[..VALUE / 2] {
        *byte = rand::random();
    }
    Txn {
        then: vec![Op::Put {
            key: format!("/registry/pods/default/pod-{:05}", n % KEYS).into(),
            value: value.into(),
            lease: 0,
        }],
        ..Txn::default()
    }
}
