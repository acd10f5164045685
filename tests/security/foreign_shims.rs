//! SEC-ENG-14, REL-03: shims that a handler names and that do not keep to the contract. Each is an error that names it and the step; the
//! pod leaves nothing, and others go on.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{BUSYBOX, Node, Setup, container, cri::refused, process};
use tonic::Code;

/// What makes no sense is refused as soon as it is read: all at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);

/// The name of a handler, its program, and what the refusal of its pods says.
const SHIMS: [(&str, &str, &[&str]); 12] = [
    (
        "dies",
        "#!/bin/sh\necho it does not work >&2\nexit 7\n",
        &["`start`", "it does not work"],
    ),
    ("silent", "#!/bin/sh\nexit 0\n", &["`start`", "no address"]),
    (
        "garbage",
        "#!/bin/sh\nhead -c 3000 /dev/urandom\n",
        &["`start`", "it printed"],
    ),
    (
        "version",
        "#!/bin/sh\necho '{\"version\":77,\"address\":\"unix:///x\",\"protocol\":\"ttrpc\"}'\n",
        &["`start`", "version 77 is not known"],
    ),
    (
        "protocol",
        "#!/bin/sh\necho '{\"version\":3,\"address\":\"unix:///x\",\"protocol\":\"grpc\"}'\n",
        &["`start`", "grpc", "only ttrpc"],
    ),
    (
        "nobody",
        "#!/bin/sh\necho unix:///nobody/listens/here\n",
        &["connect to /nobody/listens/here"],
    ),
    // What it leaves running is in another session and holds its stdout.
    (
        "litters",
        "#!/bin/sh\nsetsid sleep 1234 &\n(setsid setsid sleep 1234 &)\nexit 1\n",
        &["`start`", "exited with 1"],
    ),
    ("noise", SERVER, &["Create", "no ttrpc"]),
    ("huge", SERVER, &["Create", "4294967295 bytes"]),
    ("closes", SERVER, &["Create"]),
    // Its pause is to be the node's init, by its word.
    ("init", SERVER, &["Create", "pid 1"]),
    ("text", "no program\n", &["executed"]),
];

/// A shim in Python that serves as the handler's name says: this file is written once for each, and its directory names it.
const SERVER: &str = r#"#!/usr/bin/python3
import os, socket, struct, sys
if "delete" in sys.argv:
    sys.exit(0)
here = os.path.dirname(os.path.abspath(__file__))
mode = os.path.basename(here)
path = "%s/%d.sock" % (here, os.getpid())
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(8)
print("unix://" + path, flush=True)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3):
    os.dup2(null, fd)
def serve(connection):
    while True:
        header = connection.recv(10, socket.MSG_WAITALL)
        if len(header) < 10:
            return
        size, stream, _, _ = struct.unpack(">IIBB", header)
        connection.recv(size, socket.MSG_WAITALL)
        if mode == "noise":
            connection.sendall(os.urandom(4096))
        elif mode == "huge":
            connection.sendall(struct.pack(">IIBB", 0xffffffff, stream, 2, 0) + b"x" * 4096)
        elif mode == "closes":
            return
        elif mode == "init":
            answer = b"\x12\x02\x08\x01"
            connection.sendall(struct.pack(">IIBB", len(answer), stream, 2, 0) + answer)
while True:
    connection, _ = listener.accept()
    if os.fork() == 0:
        try:
            serve(connection)
        finally:
            os._exit(0)
    connection.close()
"#;

fn write(dir: &Path) -> Result<()> {
    for (name, text, _) in SHIMS {
        let dir = dir.join("shims").join(name);
        fs::create_dir_all(&dir)?;
        let program = dir.join("containerd-shim-hostile-v2");
        fs::write(&program, text)?;
        let mode = if name == "text" { 0o644 } else { 0o755 };
        fs::set_permissions(&program, PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

fn setup(names: impl IntoIterator<Item = &'static str>) -> Setup {
    let handler = |name: &str| {
        format!(
            "[runtime.handlers.{name}]\nshim = \"$DIR/shims/{name}/containerd-shim-hostile-v2\"\n"
        )
    };
    let mut config = String::from("[runtime.handlers.berth]\n");
    config.extend(names.into_iter().map(handler));
    Setup {
        config,
        before: Some(write),
        ..Default::default()
    }
}

fn processes(node: &Node) -> Vec<process::Process> {
    let shims = node.dir.join("shims").display().to_string();
    process::all()
        .into_iter()
        .filter(|process| {
            let line = process.cmdline();
            line.contains(&shims) && !line.contains("-front") || line.ends_with("sleep 1234")
        })
        .collect()
}

#[test]
fn a_shim_that_breaks_the_contract_is_named_with_the_step_and_leaves_nothing_sec_eng_14()
-> Result<()> {
    Node::test_with(setup(SHIMS.map(|(name, ..)| name)), async |node| {
        let other = node.run(node.pod("other")).await?;
        let id = node
            .start_container(&other, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let before = node.cri.pods(None).await?.len();
        let mut asked = tokio::task::JoinSet::new();
        for (name, _, says) in SHIMS {
            let (cri, config) = (node.cri.clone(), node.pod(name));
            asked.spawn(async move {
                let began = Instant::now();
                (
                    name,
                    says,
                    cri.run_pod_with(&config, name).await,
                    began.elapsed(),
                )
            });
        }
        while let Some(answer) = asked.join_next().await {
            let (name, says, answer, took) = answer?;
            let words: Vec<&str> = [&["containerd-shim-hostile-v2"], says].concat();
            refused(answer, Code::Internal, &words).with_context(|| name.to_owned())?;
            // None of them is waited for as one that is silent.
            ensure!(took < AT_ONCE, "{name}: {took:?}");
            ensure!(
                node.cri.exec(&id, &["echo", "here"]).await? == "here",
                "{name}"
            );
        }
        ensure!(
            process::eventually(Duration::from_secs(5), || processes(node).is_empty()),
            "left: {:?}",
            processes(node)
        );
        ensure!(node.cri.pods(None).await?.len() == before);
        for (name, ..) in SHIMS {
            let dir = node.dir.join("shims").join(name);
            let left = fs::read_dir(dir)?.flatten().count();
            ensure!(left == 1, "{name}: a socket is left");
        }
        Ok(())
    })
}

/// The server answers nothing in this mode; `start` of the other never ends.
#[test]
fn a_shim_that_hangs_is_given_up_in_time_and_leaves_nothing_rel_03() -> Result<()> {
    let write_hanging: fn(&Path) -> Result<()> = |dir| {
        for (name, text) in [
            (
                "hangs",
                "#!/bin/sh\necho going to sleep >&2\nsetsid sleep 1234\n",
            ),
            ("mute", SERVER),
        ] {
            let dir = dir.join("shims").join(name);
            fs::create_dir_all(&dir)?;
            let program = dir.join("containerd-shim-hostile-v2");
            fs::write(&program, text)?;
            fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        }
        Ok(())
    };
    let setup = Setup {
        before: Some(write_hanging),
        ..setup(["hangs", "mute"])
    };
    Node::test_with(setup, async |node| {
        let other = node.run(node.pod("other")).await?;
        let (hangs, mute) = (node.pod("hangs"), node.pod("mute"));
        let (hanging, muted, beside) = tokio::join!(
            node.cri.run_pod_with(&hangs, "hangs"),
            node.cri.run_pod_with(&mute, "mute"),
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let id = node
                    .start_container(&other, container("c", BUSYBOX, &["sleep", "1000"]))
                    .await?;
                ensure!(node.cri.exec(&id, &["echo", "here"]).await? == "here");
                Ok(())
            }
        );
        beside.context("a pod beside them")?;
        let words = ["containerd-shim-hostile-v2", "`start`", "going to sleep"];
        refused(hanging, Code::DeadlineExceeded, &words)?;
        let words = ["containerd-shim-hostile-v2", "Create", "no answer"];
        refused(muted, Code::DeadlineExceeded, &words)?;
        ensure!(
            process::eventually(Duration::from_secs(5), || processes(node).is_empty()),
            "left: {:?}",
            processes(node)
        );
        Ok(())
    })
}
