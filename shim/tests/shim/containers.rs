//! Containers: their life, their namespaces, how they end.

use std::fs;

use berth_proto::shim::{
    api::{
        CloseIORequest, DeleteRequest, KillRequest, PauseRequest, PidsRequest, ResumeRequest,
        StartRequest, StateRequest, Status, WaitRequest,
    },
    v1::pod::{
        CreateOptions, InspectRequest, NamespaceMode, SandboxOptions, StatsRequest, TaskState,
    },
};
use serde_json::{Value, json};

use crate::harness::{Pod, Shim, alive, code, ctx, eventually, namespace};

async fn kill(shim: &Shim, id: &str, signal: u32) {
    shim.task
        .kill(
            ctx(),
            &KillRequest {
                id: id.into(),
                signal,
                ..Default::default()
            },
        )
        .await
        .unwrap();
}

async fn delete(shim: &Shim, id: &str) -> ttrpc::Result<u32> {
    let request = DeleteRequest {
        id: id.into(),
        ..Default::default()
    };
    shim.task
        .delete(ctx(), &request)
        .await
        .map(|deleted| deleted.exit_status)
}

fn exit_record(pod: &Pod, id: &str) -> Value {
    let text = fs::read_to_string(pod.bundle.join("exits").join(id)).unwrap();
    let (header, body) = text.split_once('\n').unwrap();
    assert_eq!(
        header,
        format!(
            "berth-record 1 {:08x} {}",
            crc32c::crc32c(body.as_bytes()),
            body.len()
        )
    );
    serde_json::from_str(body).unwrap()
}

#[tokio::test]
async fn a_container_is_created_started_ends_and_is_deleted() {
    let pod = Pod::new();
    let shim = pod.up().await;
    pod.lay_bundle(
        "c1",
        &["sh", "-c", "echo hello from $FROM_SPEC; exit 3"],
        |_| {},
    );
    let created = shim
        .task
        .create(ctx(), &pod.create_request("c1", pod.options("c1")))
        .await
        .unwrap();
    let state = StateRequest {
        id: "c1".into(),
        ..Default::default()
    };
    assert_eq!(
        shim.task.state(ctx(), &state).await.unwrap().status,
        Status::CREATED.into()
    );
    assert!(pod.log_lines("c1").is_empty(), "nothing runs before start");
    shim.task
        .start(
            ctx(),
            &StartRequest {
                id: "c1".into(),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    let wait = WaitRequest {
        id: "c1".into(),
        ..Default::default()
    };
    assert_eq!(shim.task.wait(ctx(), &wait).await.unwrap().exit_status, 3);
    let ended = &shim.containers().await["c1"];
    assert_eq!(
        (ended.state, ended.exit_code, ended.reason.as_str()),
        (TaskState::EXITED.into(), 3, "Error")
    );
    assert_eq!(ended.pid, created.pid);
    assert!(
        ended.created_at <= ended.started_at
            && ended.started_at <= ended.finished_at
            && ended.created_at > 0
    );
    let record = exit_record(&pod, "c1");
    assert_eq!(
        (&record["exit_code"], &record["reason"]),
        (&json!(3), &json!("Error"))
    );
    assert_eq!(record["finished_at"], json!(ended.finished_at));
    assert_eq!(
        pod.log_lines("c1"),
        [("stdout".into(), "F".into(), "hello from yes".into())]
    );
    assert_eq!(delete(&shim, "c1").await.unwrap(), 3);
    assert_eq!(
        code(delete(&shim, "c1").await.unwrap_err()),
        ttrpc::Code::NOT_FOUND
    );
    assert!(shim.containers().await.is_empty());
}

#[tokio::test]
async fn a_paused_container_stands_still_goes_on_and_can_be_killed() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let pause = |id: &str| PauseRequest {
        id: id.into(),
        ..Default::default()
    };
    for id in ["killed", "stopped"] {
        let pid = pod
            .run_container(&shim, id, &["sh", "-c", "while :; do :; done"])
            .await;
        let used = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        shim.task.pause(ctx(), &pause(id)).await.unwrap();
        shim.task.pause(ctx(), &pause(id)).await.unwrap();
        let state = StateRequest {
            id: id.into(),
            ..Default::default()
        };
        let now = shim.task.state(ctx(), &state).await.unwrap().status;
        assert_eq!(now, Status::PAUSED.into());
        let before = used();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(used(), before, "it ran while it was paused");
        let resume = ResumeRequest {
            id: id.into(),
            ..Default::default()
        };
        shim.task.resume(ctx(), &resume).await.unwrap();
        let now = shim.task.state(ctx(), &state).await.unwrap().status;
        assert_eq!(now, Status::RUNNING.into());
        eventually("it goes on", || used() != before).await;
        shim.task.pause(ctx(), &pause(id)).await.unwrap();
    }
    kill(&shim, "killed", 9).await;
    assert_eq!(shim.ended("killed").await.exit_code, 137);
    let error = shim.task.pause(ctx(), &pause("killed")).await.unwrap_err();
    assert_eq!(code(error), ttrpc::Code::FAILED_PRECONDITION);
    shim.stop(&pod).await;
    assert_eq!(shim.ended("stopped").await.exit_code, 137);
}

#[tokio::test]
async fn exits_are_told_with_their_code_and_reason() {
    let pod = Pod::new();
    let shim = pod.up().await;
    for (id, script, exit_code, reason) in [
        ("done", "exit 0", 0, "Completed"),
        ("failed", "exit 255", 255, "Error"),
        ("killed", "kill -9 $$; sleep 5", 0, "Completed"), // pid 1 can't kill itself
        ("instant", "true", 0, "Completed"),
    ] {
        let script = if id == "killed" {
            "exec sleep 0"
        } else {
            script
        };
        pod.run_container(&shim, id, &["sh", "-c", script]).await;
        let ended = shim.ended(id).await;
        assert_eq!(
            (ended.exit_code, ended.reason.as_str()),
            (exit_code, reason),
            "{id}"
        );
        assert_eq!(exit_record(&pod, id)["exit_code"], json!(exit_code), "{id}");
    }
    pod.run_container(&shim, "signalled", &["sleep", "1000"])
        .await;
    assert_eq!(
        code(delete(&shim, "signalled").await.unwrap_err()),
        ttrpc::Code::FAILED_PRECONDITION
    );
    kill(&shim, "signalled", 9).await;
    assert_eq!(shim.ended("signalled").await.exit_code, 137);
    kill(&shim, "signalled", 9).await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_the_containers_own_failure() {
    let pod = Pod::new();
    let shim = pod.up().await;
    pod.lay_bundle("c1", &["/no/such/command"], |_| {});
    // A missing command may be told by create or by start; the kubelet sees it either way as the container's failure.
    shim.task
        .create(ctx(), &pod.create_request("c1", pod.options("c1")))
        .await
        .unwrap();
    let start = StartRequest {
        id: "c1".into(),
        ..Default::default()
    };
    let error = shim.task.start(ctx(), &start).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/command"), "{error}");
    let ended = shim.ended("c1").await;
    assert!([127, 128].contains(&ended.exit_code), "{ended:?}");
    assert_eq!(ended.reason, "StartError");
    assert!(
        ended.message.contains("/no/such/command"),
        "{}",
        ended.message
    );
    assert_eq!(exit_record(&pod, "c1")["reason"], json!("StartError"));
    delete(&shim, "c1").await.unwrap();
}

#[tokio::test]
async fn containers_of_a_pod_share_net_ipc_and_uts_and_have_their_own_pids() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let a = pod
        .run_container(&shim, "a", &["sh", "-c", "hostname; exec sleep 1000"])
        .await;
    let b = pod.run_container(&shim, "b", &["sleep", "1000"]).await;
    let pause = shim
        .pod
        .inspect(ctx(), &InspectRequest::new())
        .await
        .unwrap()
        .sandbox_pid;
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(a, kind), namespace(b, kind), "{kind}");
        assert_eq!(namespace(a, kind), namespace(pause, kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(a, kind), namespace(b, kind), "{kind}");
    }
    eventually("the hostname in the log", || {
        pod.log_lines("a").iter().any(|line| line.2 == "berth-pod")
    })
    .await;
    // The third joins the first's pid namespace.
    pod.lay_bundle("c", &["sh", "-c", "sleep 1000 & exec sleep 2000"], |_| {});
    let options = CreateOptions {
        pid: NamespaceMode::TARGET.into(),
        target_id: "a".into(),
        ..pod.options("c")
    };
    let c = pod.create_and_start(&shim, "c", options).await;
    assert_eq!(namespace(c, "pid"), namespace(a, "pid"));
    // There it is not pid 1: what it leaves is ended by its cgroup.
    let pids = PidsRequest {
        id: "c".into(),
        ..Default::default()
    };
    let mut all: Vec<u32> = Vec::new();
    for _ in 0..500 {
        all = shim
            .task
            .pids(ctx(), &pids)
            .await
            .unwrap()
            .processes
            .iter()
            .map(|process| process.pid)
            .collect();
        if all.len() == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(all.len(), 2, "{all:?}");
    kill(&shim, "c", 9).await;
    shim.ended("c").await;
    assert!(all.iter().all(|pid| !alive(*pid)), "what it left running");
    assert!(alive(a) && alive(b));
    shim.stop(&pod).await;
    assert!(!alive(a) && !alive(b) && !alive(pause));
}

#[tokio::test]
async fn in_a_shared_pid_namespace_the_pause_is_pid_one_and_reaps() {
    let pod = Pod::new();
    let shim = pod
        .up_with(
            SandboxOptions {
                pid: NamespaceMode::POD.into(),
                ..Default::default()
            },
            "",
        )
        .await;
    pod.lay_bundle(
        "c1",
        &["sh", "-c", "(sleep 0.1 &) ; sleep 0.5; exec sleep 1000"],
        |_| {},
    );
    let options = CreateOptions {
        pid: NamespaceMode::POD.into(),
        ..pod.options("c1")
    };
    let init = pod.create_and_start(&shim, "c1", options).await;
    let pause = shim
        .pod
        .inspect(ctx(), &InspectRequest::new())
        .await
        .unwrap()
        .sandbox_pid;
    assert_eq!(namespace(init, "pid"), namespace(pause, "pid"));
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    let children = fs::read_to_string(format!("/proc/{pause}/task/{pause}/children")).unwrap();
    assert_eq!(children.trim(), "", "the orphan was reaped");
}

#[tokio::test]
async fn a_container_in_a_stopped_sandbox_is_refused() {
    let pod = Pod::new();
    let shim = pod.up().await;
    shim.stop(&pod).await;
    pod.lay_bundle("c1", &["true"], |_| {});
    let refused = shim
        .task
        .create(ctx(), &pod.create_request("c1", pod.options("c1")))
        .await
        .unwrap_err();
    assert_eq!(code(refused), ttrpc::Code::FAILED_PRECONDITION);
    assert!(shim.containers().await.is_empty());
}

#[tokio::test]
async fn bad_creates_leave_nothing() {
    let pod = Pod::new();
    let shim = pod.up().await;
    pod.lay_bundle("c1", &["true"], |_| {});
    fs::write(pod.container_dir("c1").join("config.json"), "{").unwrap();
    let refused = shim
        .task
        .create(ctx(), &pod.create_request("c1", pod.options("c1")))
        .await
        .unwrap_err();
    assert_eq!(code(refused), ttrpc::Code::INVALID_ARGUMENT);
    let mut climbing = pod.create_request("c1", pod.options("c1"));
    climbing.id = "../c1".into();
    assert_eq!(
        code(shim.task.create(ctx(), &climbing).await.unwrap_err()),
        ttrpc::Code::INVALID_ARGUMENT
    );
    let nowhere = CreateOptions {
        log_path: "/no/such/directory/0.log".into(),
        ..pod.options("c2")
    };
    pod.lay_bundle("c2", &["true"], |_| {});
    assert!(
        shim.task
            .create(ctx(), &pod.create_request("c2", nowhere))
            .await
            .is_err()
    );
    pod.lay_bundle("c3", &["true"], |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["rbind"],
        }));
    });
    assert!(
        shim.task
            .create(ctx(), &pod.create_request("c3", pod.options("c3")))
            .await
            .is_err()
    );
    assert!(shim.containers().await.is_empty());
    pod.lay_bundle("c4", &["true"], |_| {});
    pod.create_and_start(&shim, "c4", pod.options("c4")).await;
    assert_eq!(
        shim.ended("c4").await.exit_code,
        0,
        "the id and the shim are still good"
    );
}

#[tokio::test]
async fn memory_beyond_the_limit_is_oom_killed_and_the_neighbour_lives_rel_16() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let neighbour = pod
        .run_container(&shim, "neighbour", &["sleep", "1000"])
        .await;
    pod.lay_bundle("greedy", &["tail", "/dev/zero"], |spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
        // /dev of the container is an empty tmpfs but for the standard devices.
    });
    pod.create_and_start(&shim, "greedy", pod.options("greedy"))
        .await;
    let ended = shim.ended("greedy").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(exit_record(&pod, "greedy")["reason"], json!("OOMKilled"));
    assert!(alive(neighbour));
}

#[tokio::test]
async fn figures_of_a_running_container_come_from_its_cgroup() {
    let pod = Pod::new();
    let shim = pod.up().await;
    pod.run_container(&shim, "c1", &["sh", "-c", "while true; do true; done"])
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let stats = shim.pod.stats(ctx(), &StatsRequest::new()).await.unwrap();
    let figures = &stats.containers[0];
    assert_eq!(figures.id, "c1");
    assert!(figures.cpu.usage_ns > 10_000_000, "{figures:?}");
    assert!(figures.memory.usage > 0 && figures.pids >= 1, "{figures:?}");
}

#[tokio::test]
async fn stdin_is_kept_open_until_it_is_closed() {
    let pod = Pod::new();
    let shim = pod.up().await;
    pod.lay_bundle("c1", &["cat"], |_| {});
    let options = CreateOptions {
        stdin: true,
        ..pod.options("c1")
    };
    let init = pod.create_and_start(&shim, "c1", options).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(alive(init));
    shim.task
        .close_io(
            ctx(),
            &CloseIORequest {
                id: "c1".into(),
                stdin: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(shim.ended("c1").await.exit_code, 0);
}
