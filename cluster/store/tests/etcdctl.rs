//! Stock etcdctl reads the embedded store (ET-06, ET-07).

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use berth_store::{Embedded, Keys, Op, Store, Txn, facade};
use bytes::Bytes;

async fn write(store: &dyn Store, op: Op) {
    let txn = Txn {
        then: vec![op],
        ..Txn::default()
    };
    store.txn(txn).await.unwrap();
}

fn put(key: &'static str, value: &'static str) -> Op {
    Op::Put {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
        lease: 0,
    }
}

fn etcdctl(socket: &Path, args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("etcdctl");
    command
        .arg(format!("--endpoints=unix://{}", socket.display()))
        .args(["--dial-timeout=5s", "--command-timeout=10s"])
        .args(args)
        .env("ETCDCTL_API", "3")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn said(socket: &Path, args: &[&str]) -> Output {
    let output = etcdctl(socket, args).output();
    tokio::time::timeout(Duration::from_secs(30), output)
        .await
        .expect("etcdctl hangs")
        .expect("etcd-client is not installed: hack/deps --test")
}

async fn text(socket: &Path, args: &[&str]) -> String {
    let output = said(socket, args).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_gets_and_watches_what_is_in_the_embedded_store() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("etcd.sock");
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&directory.path().join("store")).unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = {
        let (store, socket) = (store.clone(), socket.clone());
        tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            facade::serve(store, &socket, stop).await
        })
    };
    write(
        &*store,
        put("/registry/pods/default/web", "{\"kind\":\"Pod\"}"),
    )
    .await;
    write(&*store, put("/registry/pods/default/db", "{}")).await;
    write(&*store, put("/registry/namespaces/default", "{}")).await;
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mode = socket.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "SEC-API-12");

    // ET-06
    let keys = text(&socket, &["get", "--keys-only", "--prefix", "/"]).await;
    let keys: Vec<_> = keys.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(
        keys,
        [
            "/registry/namespaces/default",
            "/registry/pods/default/db",
            "/registry/pods/default/web"
        ]
    );
    let one = text(&socket, &["get", "/registry/pods/default/web"]).await;
    assert_eq!(one, "/registry/pods/default/web\n{\"kind\":\"Pod\"}\n");
    let down = text(
        &socket,
        &[
            "get",
            "--prefix",
            "/",
            "--keys-only",
            "--order=DESCEND",
            "--limit=1",
        ],
    )
    .await;
    assert_eq!(down.trim(), "/registry/pods/default/web");
    let count = text(
        &socket,
        &["get", "--prefix", "/", "--count-only", "-w=fields"],
    )
    .await;
    assert!(count.contains("\"Count\" : 3"), "{count}");
    let past = text(&socket, &["get", "--prefix", "/", "--keys-only", "--rev=2"]).await;
    assert_eq!(past.trim(), "/registry/pods/default/web");
    let status = text(&socket, &["endpoint", "status", "-w=json"]).await;
    assert!(status.contains("\"revision\":4"), "{status}");

    // ET-07
    let mut watch = etcdctl(&socket, &["watch", "--prefix", "/registry/pods", "--rev=2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = watch.stdout.take().unwrap().into_owned_fd().unwrap();
    let (lines, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(std::fs::File::from(stdout)).lines() {
            let Ok(line) = line else { return };
            let _ = lines.send(line);
        }
    });
    let mut expect = async |expected: &[&str]| {
        for expected in expected {
            let line = tokio::time::timeout(Duration::from_secs(20), told.recv())
                .await
                .unwrap_or_else(|_| panic!("{expected} is not told"))
                .unwrap();
            assert_eq!(line, *expected);
        }
    };
    expect(&["PUT", "/registry/pods/default/web", "{\"kind\":\"Pod\"}"]).await;
    expect(&["PUT", "/registry/pods/default/db", "{}"]).await;
    write(&*store, put("/registry/namespaces/other", "{}")).await;
    write(&*store, put("/registry/pods/default/new", "new")).await;
    let gone = Op::Delete(Keys::One(Bytes::from_static(b"/registry/pods/default/web")));
    write(&*store, gone).await;
    expect(&["PUT", "/registry/pods/default/new", "new"]).await;
    expect(&["DELETE", "/registry/pods/default/web", ""]).await;
    watch.kill().await.unwrap();

    // Whatever writes is refused, by its name.
    let before = store.status().await.unwrap().revision;
    for (args, name) in [
        (&["put", "/registry/x", "y"][..], "etcdserverpb.KV/Put"),
        (
            &["del", "/registry", "--prefix"],
            "etcdserverpb.KV/DeleteRange",
        ),
        (&["compaction", "3"], "etcdserverpb.KV/Compact"),
        (&["lease", "grant", "60"], "etcdserverpb.Lease/LeaseGrant"),
        (&["user", "list"], "etcdserverpb.Auth/UserList"),
        (&["member", "list"], "etcdserverpb.Cluster/MemberList"),
        (&["defrag"], "etcdserverpb.Maintenance/Defragment"),
    ] {
        let output = said(&socket, args).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains(name),
            "{args:?}: {error}"
        );
    }
    assert_eq!(store.status().await.unwrap().revision, before);
    store.compact(5).await.unwrap();
    let old = said(&socket, &["get", "/registry", "--prefix", "--rev=2"]).await;
    let error = String::from_utf8_lossy(&old.stderr);
    assert!(
        error.contains("required revision has been compacted"),
        "{error}"
    );

    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(!socket.exists());
}
