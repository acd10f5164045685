//! A shim as containerd keeps it: one for the containers of a pod, known by Connect and let go of by Shutdown.

use berth_proto::shim::api::{
    ConnectRequest, DeleteRequest, KillRequest, ShutdownRequest, WaitRequest,
};

use crate::harness::{Pod, Shim, alive, ctx, eventually};

async fn connect(shim: &Shim, id: &str) -> (u32, u32) {
    let request = ConnectRequest {
        id: id.into(),
        ..Default::default()
    };
    let answer = shim.task.connect(ctx(), &request).await.unwrap();
    assert!(!answer.version.is_empty());
    (answer.shim_pid, answer.task_pid)
}

/// What containerd asks when a container is to go.
async fn let_go(shim: &Shim, id: &str, now: bool) {
    let id = id.to_owned();
    let kill = KillRequest {
        id: id.clone(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    shim.task.kill(ctx(), &kill).await.unwrap();
    let wait = WaitRequest {
        id: id.clone(),
        ..Default::default()
    };
    assert_eq!(shim.task.wait(ctx(), &wait).await.unwrap().exit_status, 137);
    let delete = DeleteRequest {
        id: id.clone(),
        ..Default::default()
    };
    shim.task.delete(ctx(), &delete).await.unwrap();
    let shutdown = ShutdownRequest {
        id,
        now,
        ..Default::default()
    };
    // It may be gone before its answer is here.
    let _ = shim.task.shutdown(ctx(), &shutdown).await;
}

#[tokio::test]
async fn connect_names_the_shim_and_the_task_and_shutdown_waits_for_the_last_container() {
    let pod = Pod::new();
    let shim = pod.connect(&pod.start()).await;
    let mut pids = Vec::new();
    for id in ["a", "b"] {
        // containerd sends no options of ours: a container that joins nothing of a pod's.
        pod.lay_bundle(id, &["sleep", "1000"], |_| {});
        let mut request = pod.create_request(id, Default::default());
        request.options = Default::default();
        let pid = shim.task.create(ctx(), &request).await.unwrap().pid;
        let start = berth_proto::shim::api::StartRequest {
            id: id.into(),
            ..Default::default()
        };
        shim.task.start(ctx(), &start).await.unwrap();
        pids.push(pid);
    }
    let (own, task) = connect(&shim, "a").await;
    assert!(alive(own) && task == pids[0]);
    assert_eq!(connect(&shim, "b").await, (own, pids[1]));
    // Whose socket it is, is told to whom asks for a container that is not there, too.
    assert_eq!(connect(&shim, "none").await, (own, 0));
    // `start` for another container of the group finds this one.
    let again = pod.connect(&pod.start()).await;
    assert_eq!(connect(&again, "b").await, (own, pids[1]));

    let_go(&shim, "a", false).await;
    assert_eq!(connect(&shim, "b").await, (own, pids[1]), "it has b yet");
    let_go(&shim, "b", false).await;
    eventually("the shim's end", || !alive(own)).await;
}
