//! Events for a containerd that listens, and for one that is away.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::shim::{
    api::{
        DeleteRequest, Empty, ExecProcessRequest, ForwardRequest, PauseRequest, ResumeRequest,
        StartRequest, WaitRequest,
    },
    events::task::{TaskCreate, TaskExit},
    shim_async::{Events, create_events},
};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use serde_json::json;
use ttrpc::r#async::{Server, TtrpcContext};

use crate::harness::{Pod, Shim, ctx, eventually};

/// What it was told.
#[derive(Debug, Default)]
struct Listener {
    heard: Mutex<Vec<ForwardRequest>>,
    /// Answers all with an error.
    refuses: bool,
}

impl Listener {
    fn topics(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let topics = heard.iter().map(|one| one.envelope.topic.clone());
        topics
            .map(|topic| topic.strip_prefix("/tasks/").unwrap().to_owned())
            .collect()
    }

    fn event<M: Message>(&self, at: usize) -> M {
        let heard = self.heard.lock().unwrap();
        M::parse_from_bytes(&heard[at].envelope.event.value).unwrap()
    }
}

struct Service(Arc<Listener>);

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        assert_eq!(request.envelope.namespace, "k8s.io");
        assert!(
            request
                .envelope
                .event
                .type_url
                .starts_with("containerd.events.Task")
        );
        self.0.heard.lock().unwrap().push(request);
        if self.0.refuses {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                ttrpc::Code::INVALID_ARGUMENT,
                "no",
            )));
        }
        Ok(Empty::new())
    }
}

/// A pod whose shim tells its events to the address, where nobody listens yet.
fn pod_that_tells() -> (Pod, String) {
    let mut pod = Pod::new();
    let address = format!("unix://{}", pod.dir.path().join("events").display());
    let path = address.strip_prefix("unix://").unwrap();
    pod.env.insert("TTRPC_ADDRESS".into(), path.into());
    (pod, address)
}

async fn listen(address: &str, refuses: bool) -> (Server, Arc<Listener>) {
    let heard = Arc::new(Listener {
        refuses,
        ..Listener::default()
    });
    let mut server = Server::new()
        .bind(address)
        .unwrap()
        .register_service(create_events(Arc::new(Service(heard.clone()))));
    server.start().await.unwrap();
    (server, heard)
}

async fn delete(shim: &Shim, id: &str) {
    let request = DeleteRequest {
        id: id.into(),
        ..Default::default()
    };
    shim.task.delete(ctx(), &request).await.unwrap();
}

/// Runs an exec to its end.
async fn exec(shim: &Shim, id: &str, exec_id: &str) {
    let process = json!({ "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] });
    let request = ExecProcessRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        spec: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    shim.task.exec(ctx(), &request).await.unwrap();
    let request = StartRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    shim.task.start(ctx(), &request).await.unwrap();
    let request = WaitRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    shim.task.wait(ctx(), &request).await.unwrap();
}

#[tokio::test]
async fn events_of_a_container_are_told_in_order() {
    let (pod, address) = pod_that_tells();
    let (_server, heard) = listen(&address, false).await;
    let shim = pod.up().await;
    pod.run_container(&shim, "c1", &["sh", "-c", "sleep 1000 & wait"])
        .await;
    exec(&shim, "c1", "e1").await;
    let pause = PauseRequest {
        id: "c1".into(),
        ..Default::default()
    };
    shim.task.pause(ctx(), &pause).await.unwrap();
    let resume = ResumeRequest {
        id: "c1".into(),
        ..Default::default()
    };
    shim.task.resume(ctx(), &resume).await.unwrap();
    shim.stop(&pod).await;
    shim.ended("c1").await;
    delete(&shim, "c1").await;
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
    ];
    eventually("all events", || heard.topics().len() == expected.len()).await;
    assert_eq!(heard.topics(), expected);
    let created: TaskCreate = heard.event(0);
    assert_eq!(created.container_id, "c1");
    assert!(created.pid > 1 && created.bundle.ends_with("/c1"));
    let of_exec: TaskExit = heard.event(4);
    assert_eq!(
        (of_exec.container_id.as_str(), of_exec.id.as_str()),
        ("c1", "e1")
    );
    let exit: TaskExit = heard.event(7);
    assert_eq!(
        (exit.id.as_str(), exit.exit_status, exit.pid),
        ("c1", 137, created.pid)
    );
}

#[tokio::test]
async fn events_are_kept_while_nobody_listens_and_told_in_order_afterwards() {
    let (pod, address) = pod_that_tells();
    let shim = pod.up().await;
    pod.run_container(&shim, "c1", &["sh", "-c", "exit 7"])
        .await;
    let ended = shim.ended("c1").await;
    delete(&shim, "c1").await;
    pod.run_container(&shim, "c2", &["sleep", "1000"]).await;
    // Longer than any number of tries that an event could be given up after.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (mut server, heard) = listen(&address, false).await;
    let expected = ["create", "start", "exit", "delete", "create", "start"];
    eventually("what was kept", || heard.topics().len() >= expected.len()).await;
    assert_eq!(heard.topics(), expected);
    let exit: TaskExit = heard.event(2);
    assert_eq!((exit.container_id.as_str(), exit.exit_status), ("c1", 7));
    // When it was, and not when it is told.
    let at = exit.exited_at.seconds * 1_000_000_000 + i64::from(exit.exited_at.nanos);
    assert_eq!(at, ended.finished_at);
    assert!(pod.log().contains("is away"), "{}", pod.log());

    // Away again, and back at the same address.
    server.shutdown().await.unwrap();
    drop(server);
    std::fs::remove_file(address.strip_prefix("unix://").unwrap()).unwrap();
    shim.stop(&pod).await;
    let (_server, heard) = listen(&address, false).await;
    eventually("the end of c2", || !heard.topics().is_empty()).await;
    assert_eq!(heard.topics(), ["exit"]);
}

#[tokio::test]
async fn a_listener_that_refuses_or_is_gone_holds_up_neither_a_container_nor_the_shims_end() {
    let (pod, address) = pod_that_tells();
    let (mut server, heard) = listen(&address, true).await;
    let shim = pod.up().await;
    pod.run_container(&shim, "c1", &["true"]).await;
    shim.ended("c1").await;
    eventually("five tries of the first", || heard.topics().len() > 5).await;
    assert_eq!(
        heard.topics()[..6],
        ["create", "create", "create", "create", "create", "start"]
    );
    assert!(pod.log().contains("was refused"), "{}", pod.log());
    server.shutdown().await.unwrap();
    let began = std::time::Instant::now();
    shim.shutdown(&pod).await;
    eventually("the shim's end", || {
        pod.log().contains("are lost with this shim")
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_container_that_runs_out_of_memory_is_told_of_while_its_init_lives() {
    let (pod, address) = pod_that_tells();
    let (_server, heard) = listen(&address, false).await;
    let shim = pod.up().await;
    // The child is the one that is killed: it is the larger one.
    pod.lay_bundle(
        "greedy",
        &["sh", "-c", "tail /dev/zero; sleep 1000"],
        |spec| {
            spec["linux"]["resources"] =
                json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
        },
    );
    pod.create_and_start(&shim, "greedy", pod.options("greedy"))
        .await;
    eventually("oom", || heard.topics().len() == 3).await;
    assert_eq!(heard.topics(), ["create", "start", "oom"]);
    shim.stop(&pod).await;
    eventually("its end", || heard.topics().len() == 4).await;
    assert_eq!(heard.topics()[3], "exit", "told once");
}
