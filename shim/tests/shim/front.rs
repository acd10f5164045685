//! A shim behind ours, which is ours again: as a stranger it is called by containerd's contract alone.

use std::{fs, os::unix::fs::PermissionsExt};

use berth_proto::shim::{
    api::{ConnectRequest, DeleteRequest},
    events::task::TaskOOM,
};
use protobuf::{Message, well_known_types::any::Any};
use serde_json::json;

use crate::harness::{EXECUTABLE, Pod, Shim, alive, ctx, eventually};

/// What a pod's other shim is: it tells one event by the publish binary that it was given, and then does as ours.
fn behind() -> Pod {
    let mut pod = Pod::new();
    let dir = pod.dir.path();
    let told = TaskOOM {
        container_id: "told-by-binary".into(),
        ..Default::default()
    };
    let event = Any {
        type_url: "containerd.events.TaskOOM".into(),
        value: told.write_to_bytes().unwrap(),
        ..Default::default()
    };
    fs::write(dir.join("event"), event.write_to_bytes().unwrap()).unwrap();
    let program = dir.join("containerd-shim-other-v2");
    let (here, publish) = (
        dir.display(),
        r#""$publish" --address "$TTRPC_ADDRESS" publish"#,
    );
    let script = format!(
        "#!/bin/sh\nfor word; do\n  [ \"$before\" = -publish-binary ] && publish=$word\n  before=$word\ndone\n\
         case \"$*\" in *start) {publish} --topic /tasks/oom --namespace k8s.io <{here}/event ;; esac\n\
         export BERTH_SHIM_SOCKET_DIR={here}/o\nexec {EXECUTABLE} \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    for word in [
        "-front",
        &program.display().to_string(),
        "-publish-binary",
        EXECUTABLE,
    ] {
        pod.flags.push(word.into());
    }
    pod
}

async fn connect(shim: &Shim, id: &str) -> (u32, u32) {
    let request = ConnectRequest {
        id: id.into(),
        ..Default::default()
    };
    let answer = shim.task.connect(ctx(), &request).await.unwrap();
    (answer.shim_pid, answer.task_pid)
}

#[tokio::test]
async fn another_shim_answers_in_json_and_tells_its_events_by_ttrpc_and_by_the_publish_binary() {
    let pod = behind();
    let shim = pod.up().await;
    assert!(pod.log().contains("serves task API v3"), "{}", pod.log());
    let tells = |id: &str| format!("tells that {id} was out of memory");
    eventually("the event that the publish binary told", || {
        pod.log().contains(&tells("told-by-binary"))
    })
    .await;

    // Its init lives when a child of it is killed: nothing but the event tells.
    let command = ["sh", "-c", "tail /dev/zero; sleep 1000"];
    pod.lay_bundle("greedy", &command, |spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 } });
    });
    let pid = pod
        .create_and_start(&shim, "greedy", pod.options("greedy"))
        .await;
    eventually("the event that the shim told itself", || {
        pod.log().contains(&tells("greedy"))
    })
    .await;
    assert!(alive(pid));
    assert_eq!(
        shim.exec("greedy", &["echo", "here"], 10_000)
            .await
            .unwrap()
            .stdout,
        b"here\n"
    );
    let (front, task) = connect(&shim, "greedy").await;
    assert!(front > 1 && task == pid);

    shim.stop(&pod).await;
    let request = DeleteRequest {
        id: "greedy".into(),
        ..Default::default()
    };
    shim.task.delete(ctx(), &request).await.unwrap();
    shim.shutdown(&pod).await;
    eventually("the end of both shims", || {
        !alive(front) && none_is_left(&pod)
    })
    .await;
}

/// Of the other shim, by its directory for sockets.
fn none_is_left(pod: &Pod) -> bool {
    let wanted = format!("BERTH_SHIM_SOCKET_DIR={}/o", pod.dir.path().display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    !processes
        .map(|entry| entry.path().join("environ"))
        .any(|path| {
            fs::read(path).is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == wanted.as_bytes())
            })
        })
}
