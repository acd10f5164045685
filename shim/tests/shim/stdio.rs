//! Streams as containerd's clients name them: files, logging programs, messages over the shim's own socket.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use berth_proto::shim::{
    api::{CloseIORequest, CreateTaskRequest, DeleteRequest, KillRequest, StartRequest},
    shim_async::Client,
};
use protobuf::{
    Message,
    well_known_types::{
        any::Any,
        wrappers::{BytesValue, Int32Value, StringValue},
    },
};
use ttrpc::{
    r#async::{CSReceiver, CSSender, ClientStream},
    proto::Request,
};

use crate::harness::{Pod, Shim, code, ctx, eventually};

const INIT: &str = "containerd.services.streaming.v1.StreamInit";
const DATA: &str = "containerd.types.transfer.Data";
const WINDOW: &str = "containerd.types.transfer.WindowUpdate";

/// A request without our own options: as containerd sends it.
fn request(pod: &Pod, id: &str, [stdin, stdout, stderr]: [&str; 3]) -> CreateTaskRequest {
    CreateTaskRequest {
        id: id.into(),
        bundle: pod.container_dir(id).display().to_string(),
        stdin: stdin.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
        ..Default::default()
    }
}

async fn run(pod: &Pod, shim: &Shim, id: &str, args: &[&str], streams: [&str; 3]) {
    pod.lay_bundle(id, args, |_| {});
    let created = shim.task.create(ctx(), &request(pod, id, streams)).await;
    created.unwrap_or_else(|e| panic!("create: {e}: {}", pod.log()));
    start(shim, id).await;
}

async fn start(shim: &Shim, id: &str) {
    let request = StartRequest {
        id: id.into(),
        ..Default::default()
    };
    shim.task.start(ctx(), &request).await.unwrap();
}

async fn delete(shim: &Shim, id: &str) {
    shim.ended(id).await;
    let request = DeleteRequest {
        id: id.into(),
        ..Default::default()
    };
    shim.task.delete(ctx(), &request).await.unwrap();
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn output_is_appended_to_files_and_other_schemes_are_refused_by_name() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let log = pod.dir.path().join("logs of pods/a.log");
    let uri = format!("file://{}", log.display()).replace(' ', "%20");
    for id in ["a1", "a2"] {
        run(
            &pod,
            &shim,
            id,
            &["sh", "-c", "echo out; echo err >&2"],
            ["", &uri, &uri],
        )
        .await;
        delete(&shim, id).await;
    }
    let mut lines: Vec<String> = text(&log).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "err", "out", "out"]);
    for streams in [
        ["", "npipe:////./pipe/x", ""],
        ["", "streaming+ttrpc:///x", ""],
        ["file:///etc/hosts", "", ""],
        ["", "file:///dev/kmsg", ""],
        ["", "", "binary:///bin/true"],
        ["", "ttrpc+unix:///another/socket?streaming_id=x", ""],
        ["", "binary:///no/such/program", "binary:///no/such/program"],
    ] {
        pod.lay_bundle("bad", &["true"], |_| {});
        let refused = shim
            .task
            .create(ctx(), &request(&pod, "bad", streams))
            .await;
        let error = refused.expect_err(streams[1]).to_string();
        assert!(!error.is_empty(), "{streams:?}");
        fs::remove_dir_all(pod.container_dir("bad")).unwrap();
    }
    assert!(shim.containers().await.is_empty());
}

/// containerd opens its end in a thread of its own: on a busy machine later than a short command has ended.
#[tokio::test]
async fn a_client_that_comes_when_the_command_has_ended_has_its_output_and_its_end() {
    let pod = Pod::new();
    let shim = pod.up().await;
    for (id, script, expected) in [("said", "echo late", "late\n"), ("silent", "true", "")] {
        let fifo = pod.dir.path().join(format!("fifo-{id}"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = fifo.display().to_string();
        run(&pod, &shim, id, &["sh", "-c", script], ["", &path, ""]).await;
        delete(&shim, id).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let read = tokio::task::spawn_blocking(move || fs::read_to_string(fifo));
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        let Ok(read) = read else {
            // Whoever waits in an open can only be helped by a writer.
            let _ = fs::File::options().write(true).open(&path);
            panic!("{id}: the client waits for a writer that never comes");
        };
        assert_eq!(read.unwrap().unwrap(), expected, "{id}");
    }
}

/// A program as `binary://` names it: what it is given is in files beside it.
fn logging_program(pod: &Pod, lines: &str) -> String {
    let path = pod.dir.path().join("logger");
    let script = format!("#!/bin/sh\ncd {}\n{lines}\n", pod.dir.path().display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    format!("binary://{}?--name=a%20b", path.display())
}

#[tokio::test]
async fn a_logging_program_has_the_output_the_names_and_the_time_to_end() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let uri = logging_program(
        &pod,
        "env > env; echo \"$@\" > args; ls -l /proc/self/fd > fds; exec 5>&-\n\
         cat <&4 >err & cat <&3 >out; wait; sleep 0.3; echo done > done",
    );
    run(
        &pod,
        &shim,
        "c1",
        &["sh", "-c", "echo hello; echo bad >&2"],
        ["", &uri, &uri],
    )
    .await;
    delete(&shim, "c1").await;
    let file = |name: &str| pod.dir.path().join(name);
    eventually("its end", || text(&file("done")) == "done\n").await;
    assert_eq!(text(&file("out")), "hello\n");
    assert_eq!(text(&file("err")), "bad\n");
    assert_eq!(text(&file("args")), "--name a b\n");
    let env = text(&file("env"));
    assert!(
        env.contains("CONTAINER_ID=c1\n") && env.contains("CONTAINER_NAMESPACE=k8s.io\n"),
        "{env}"
    );
    assert!(!env.contains("BERTH"), "{env}");
    // 0 to 5, and the directory that ls reads: no descriptor of the shim.
    assert_eq!(
        text(&file("fds")).lines().count(),
        8,
        "{}",
        text(&file("fds"))
    );
}

#[tokio::test]
async fn a_logging_program_that_dies_stops_no_container_and_one_that_never_starts_makes_none() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let uri = logging_program(&pod, "exec 5>&-; read line <&3; echo $line > out; exit 1");
    let much = "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done; exit 4";
    run(&pod, &shim, "c1", &["sh", "-c", much], ["", &uri, &uri]).await;
    assert_eq!(shim.ended("c1").await.exit_code, 4);
    assert_eq!(text(&pod.dir.path().join("out")), "line 0\n");
    delete(&shim, "c1").await;

    let uri = logging_program(&pod, "sleep 1000");
    pod.lay_bundle("c2", &["true"], |_| {});
    let began = std::time::Instant::now();
    let refused = shim
        .task
        .create(ctx(), &request(&pod, "c2", ["", &uri, &uri]))
        .await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("descriptor 5"), "{error}");
    assert!(began.elapsed() < std::time::Duration::from_secs(15));
    assert!(shim.containers().await.is_empty());
}

/// A client of the streaming service.
struct Carrier {
    to: CSSender<Any>,
    from: CSReceiver<Any>,
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: name.into(),
        value: message.write_to_bytes().unwrap(),
        ..Default::default()
    }
}

impl Carrier {
    async fn open(address: &str, id: &str) -> Carrier {
        let client = Client::connect(address).await.unwrap();
        let request = Request {
            service: "containerd.services.streaming.v1.Streaming".into(),
            method: "Stream".into(),
            ..Default::default()
        };
        let stream = client.new_stream(request, true, true).await.unwrap();
        let (to, mut from) = ClientStream::<Any, Any>::new(stream).split();
        let id = StringValue {
            value: id.into(),
            ..Default::default()
        };
        // As Go's client does.
        to.send(&Any::default()).await.unwrap();
        to.send(&any(INIT, &id)).await.unwrap();
        from.recv().await.unwrap();
        Carrier { to, from }
    }

    async fn grant(&self, bytes: i32) {
        let window = Int32Value {
            value: bytes,
            ..Default::default()
        };
        self.to.send(&any(WINDOW, &window)).await.unwrap();
    }

    async fn send(&self, text: &str) {
        let data = BytesValue {
            value: text.into(),
            ..Default::default()
        };
        self.to.send(&any(DATA, &data)).await.unwrap();
    }

    /// The next piece; none at the end.
    async fn data(&mut self) -> Option<Vec<u8>> {
        let got = self.from.recv().await.ok()?;
        assert_eq!(got.type_url, DATA);
        Some(BytesValue::parse_from_bytes(&got.value).unwrap().value)
    }
}

#[tokio::test]
async fn streams_carry_what_the_window_allows_and_a_client_that_comes_again_misses_nothing() {
    let pod = Pod::new();
    let address = pod.start();
    let shim = pod.up().await;
    let uri = |name: &str| format!("ttrpc+{address}?streaming_id={name}");
    // Before the task is made, as containerd does.
    let stdin = Carrier::open(&address, "c1-stdin").await;
    let mut stdout = Carrier::open(&address, "c1-stdout").await;
    stdout.grant(4).await;
    let (a, b) = (uri("c1-stdin"), uri("c1-stdout"));
    run(
        &pod,
        &shim,
        "c1",
        &["sh", "-c", "cat; echo end; exit 6"],
        [&a, &b, ""],
    )
    .await;
    stdin.send("hello ").await;
    assert_eq!(stdout.data().await.unwrap(), b"hell");
    // It goes away with a part unread, and another comes.
    drop(stdout);
    stdin.send("again\n").await;
    let mut stdout = Carrier::open(&address, "c1-stdout").await;
    stdout.grant(1 << 20).await;
    stdin.to.close_send().await.unwrap();
    let mut rest = Vec::new();
    while let Some(piece) = stdout.data().await {
        rest.extend(piece);
    }
    assert_eq!(String::from_utf8(rest).unwrap(), "o again\nend\n");
    assert_eq!(shim.ended("c1").await.exit_code, 6);
    delete(&shim, "c1").await;
}

#[tokio::test]
async fn a_stream_is_bounded_and_its_rules_hold() {
    let pod = Pod::new();
    let address = pod.start();
    let shim = pod.up().await;
    let uri = |name: &str| format!("ttrpc+{address}?streaming_id={name}");
    let (a, b) = (uri("in"), uri("out"));
    pod.lay_bundle("c1", &["sh", "-c", "yes"], |_| {});
    shim.task
        .create(ctx(), &request(&pod, "c1", [&a, &b, ""]))
        .await
        .unwrap();
    // Each is one task's.
    pod.lay_bundle("c2", &["true"], |_| {});
    let twice = shim
        .task
        .create(ctx(), &request(&pod, "c2", ["", &b, ""]))
        .await;
    assert_eq!(code(twice.unwrap_err()), ttrpc::Code::ALREADY_EXISTS);
    start(&shim, "c1").await;
    let mut out = Carrier::open(&address, "out").await;
    out.grant(100_000).await;
    let mut got = 0;
    while got < 100_000 {
        got += out.data().await.unwrap().len();
    }
    let more = tokio::time::timeout(std::time::Duration::from_millis(300), out.from.recv()).await;
    assert!((got, more.is_err()) == (100_000, true), "{got} bytes came");
    // A second client takes the stream over.
    let second = Carrier::open(&address, "out").await;
    let error = out.from.recv().await.unwrap_err().to_string();
    assert!(error.contains("another client"), "{error}");
    second.grant(-1).await;
    let mut second = second;
    assert!(second.from.recv().await.is_err());
    // More than was granted, and what is no message of a stream.
    let mut input = Carrier::open(&address, "in").await;
    input.send(&"x".repeat(100 << 10)).await;
    assert_eq!(input.from.recv().await.unwrap().type_url, WINDOW);
    assert!(input.from.recv().await.is_err());
    let mut input = Carrier::open(&address, "in").await;
    let wrong = StringValue::default();
    input.to.send(&any("some.Thing", &wrong)).await.unwrap();
    assert_eq!(input.from.recv().await.unwrap().type_url, WINDOW);
    assert!(input.from.recv().await.is_err());
    let kill = KillRequest {
        id: "c1".into(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    let close = CloseIORequest {
        id: "c1".into(),
        stdin: true,
        ..Default::default()
    };
    shim.task.close_io(ctx(), &close).await.unwrap();
    shim.task.kill(ctx(), &kill).await.unwrap();
    delete(&shim, "c1").await;
    // The names are free again.
    run(&pod, &shim, "c3", &["true"], ["", &b, ""]).await;
    delete(&shim, "c3").await;
}
