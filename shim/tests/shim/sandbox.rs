//! The sandbox: the pause, its namespaces, stop, and what is refused.

use std::{collections::HashMap, fs, process::Command};

use berth_proto::shim::{
    api::{CheckpointTaskRequest, CreateTaskRequest, StartRequest},
    sandbox_api::{
        CreateSandboxRequest, SandboxMetricsRequest, SandboxStatusRequest, StartSandboxRequest,
        WaitSandboxRequest,
    },
    v1::{
        pod::{ChangesRequest, InspectRequest, NamespaceMode, SandboxOptions, TaskState},
        sandbox_config::{DNSConfig, LinuxPodSandboxConfig, PodSandboxConfig},
    },
};
use protobuf::MessageField;

use crate::harness::{Pod, alive, any, code, ctx, eventually, namespace};

#[tokio::test]
async fn the_pause_holds_the_pods_namespaces_and_ends_with_stop() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let state = shim
        .pod
        .inspect(ctx(), &InspectRequest::new())
        .await
        .unwrap();
    assert_eq!(state.sandbox_state, TaskState::RUNNING.into());
    let pause = state.sandbox_pid;
    let own = std::process::id();
    for kind in ["ipc", "uts", "pid"] {
        assert_ne!(namespace(pause, kind), namespace(own, kind), "{kind}");
    }
    assert_eq!(namespace(pause, "net"), namespace(own, "net"));
    let status = SandboxStatusRequest {
        sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let before = shim.sandbox.sandbox_status(ctx(), &status).await.unwrap();
    assert_eq!(
        (before.pid, before.state.as_str()),
        (pause, "SANDBOX_READY")
    );
    shim.stop(&pod).await;
    assert!(!alive(pause));
    shim.stop(&pod).await;
    let wait = WaitSandboxRequest {
        sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(
        shim.sandbox
            .wait_sandbox(ctx(), &wait)
            .await
            .unwrap()
            .exit_status,
        137
    );
    let after = shim.sandbox.sandbox_status(ctx(), &status).await.unwrap();
    assert_eq!(after.state, "SANDBOX_NOTREADY");
    assert!(after.exited_at.is_some());
}

#[tokio::test]
async fn create_and_start_of_the_same_sandbox_again_answer_the_same_rel_21() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let options = SandboxOptions {
        hostname: "berth-pod".into(),
        ..Default::default()
    };
    shim.sandbox
        .create_sandbox(ctx(), &pod.create_sandbox(options))
        .await
        .unwrap();
    let pause = shim
        .pod
        .inspect(ctx(), &InspectRequest::new())
        .await
        .unwrap()
        .sandbox_pid;
    let start = StartSandboxRequest {
        sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(
        shim.sandbox.start_sandbox(ctx(), &start).await.unwrap().pid,
        pause
    );
    let other = SandboxOptions {
        hostname: "another".into(),
        ..Default::default()
    };
    let refused = shim
        .sandbox
        .create_sandbox(ctx(), &pod.create_sandbox(other))
        .await
        .unwrap_err();
    assert_eq!(code(refused), ttrpc::Code::ALREADY_EXISTS);
    let unknown = CreateSandboxRequest {
        sandbox_id: "another".into(),
        ..Default::default()
    };
    assert_eq!(
        code(
            shim.sandbox
                .create_sandbox(ctx(), &unknown)
                .await
                .unwrap_err()
        ),
        ttrpc::Code::NOT_FOUND
    );
}

#[tokio::test]
async fn the_death_of_the_pause_is_seen_by_a_poll_that_waits() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let now = shim
        .pod
        .inspect(ctx(), &InspectRequest::new())
        .await
        .unwrap();
    let poll = ChangesRequest {
        after_generation: now.generation,
        ..Default::default()
    };
    let (client, request) = (shim.pod.clone(), poll.clone());
    let polled = tokio::spawn(async move { client.changes(ctx(), &request).await.unwrap() });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!polled.is_finished());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(now.sandbox_pid as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let changed = polled.await.unwrap();
    assert!(changed.generation > now.generation);
    assert_eq!(changed.sandbox_state, TaskState::EXITED.into());
    assert!(
        changed.sandbox_exited_at >= changed.sandbox_created_at && changed.sandbox_created_at > 0
    );
}

#[tokio::test]
async fn sysctls_are_written_in_the_pods_namespaces_and_never_on_the_node_sec_cri_03() {
    const PARAMETER: &str = "/proc/sys/kernel/shm_rmid_forced";
    let before = fs::read_to_string(PARAMETER).unwrap();
    let wanted = if before.trim() == "1" { "0" } else { "1" };
    let pod = Pod::new();
    let sysctls = HashMap::from([("kernel.shm_rmid_forced".to_owned(), wanted.to_owned())]);
    let shim = pod
        .up_with(
            SandboxOptions {
                sysctls,
                ..Default::default()
            },
            "",
        )
        .await;
    assert_eq!(
        fs::read_to_string(PARAMETER).unwrap(),
        before,
        "the node's own"
    );
    pod.run_container(&shim, "c1", &["cat", PARAMETER]).await;
    shim.ended("c1").await;
    assert_eq!(pod.log_lines("c1")[0].2, wanted);
}

#[tokio::test]
async fn sysctls_that_are_not_the_pods_are_invalid_sec_cri_03() {
    let pod = Pod::new();
    let shim = pod.connect(&pod.start()).await;
    for (name, value) in [
        ("kernel.core_pattern", "x"),
        ("net.ipv4.ip_forward", "1"), // no network namespace of its own
        ("kernel.shmmax", "1\n2"),
        ("kernel/../vm.swappiness", "1"),
    ] {
        let sysctls = HashMap::from([(name.to_owned(), value.to_owned())]);
        let request = pod.create_sandbox(SandboxOptions {
            sysctls,
            ..Default::default()
        });
        let refused = shim
            .sandbox
            .create_sandbox(ctx(), &request)
            .await
            .unwrap_err();
        assert_eq!(code(refused), ttrpc::Code::INVALID_ARGUMENT, "{name}");
    }
    let sysctls = HashMap::from([("kernel.shmmax".to_owned(), "1".to_owned())]);
    let node_ipc = SandboxOptions {
        sysctls,
        ipc: NamespaceMode::NODE.into(),
        ..Default::default()
    };
    let refused = shim
        .sandbox
        .create_sandbox(ctx(), &pod.create_sandbox(node_ipc))
        .await
        .unwrap_err();
    assert_eq!(code(refused), ttrpc::Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn the_pod_joins_the_network_namespace_that_it_is_given() {
    let name = format!("berth-shim-{}", std::process::id());
    let ip = |args: &[&str]| {
        assert!(
            Command::new("ip").args(args).status().unwrap().success(),
            "ip {args:?}"
        )
    };
    ip(&["netns", "add", &name]);
    struct Netns(String);
    impl Drop for Netns {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    let netns = Netns(name);
    let pod = Pod::new();
    let shim = pod
        .up_with(
            SandboxOptions::default(),
            &format!("/run/netns/{}", netns.0),
        )
        .await;
    let pause = shim
        .pod
        .inspect(ctx(), &InspectRequest::new())
        .await
        .unwrap()
        .sandbox_pid;
    assert_ne!(
        namespace(pause, "net"),
        namespace(std::process::id(), "net")
    );
    let first = pod.run_container(&shim, "c1", &["sleep", "1000"]).await;
    assert_eq!(namespace(first, "net"), namespace(pause, "net"));
    shim.shutdown(&pod).await;
    eventually("the container's end", || !alive(first)).await;
}

#[tokio::test]
async fn a_checkpoint_of_what_is_not_there_is_refused() {
    let pod = Pod::new();
    let shim = pod.connect(&pod.start()).await;
    let error = shim
        .task
        .checkpoint(ctx(), &CheckpointTaskRequest::new())
        .await
        .unwrap_err();
    assert_eq!(code(error), ttrpc::Code::NOT_FOUND);
}

#[tokio::test]
async fn a_sandbox_as_containerd_asks_for_it_has_its_namespaces_files_and_sysctls() {
    let pod = Pod::new();
    let shim = pod.connect(&pod.start()).await;
    let config = PodSandboxConfig {
        hostname: "harbour".into(),
        dns_config: MessageField::some(DNSConfig {
            servers: vec!["10.0.0.10".into()],
            ..Default::default()
        }),
        linux: MessageField::some(LinuxPodSandboxConfig {
            cgroup_parent: pod.cgroup.clone(),
            sysctls: HashMap::from([("kernel.shm_rmid_forced".into(), "1".into())]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = |config: &PodSandboxConfig| CreateSandboxRequest {
        sandbox_id: pod.id.clone(),
        bundle_path: pod.bundle.display().to_string(),
        options: any("runtime.v1.PodSandboxConfig", config),
        ..Default::default()
    };
    // What is refused leaves nothing: the next one is taken.
    let mut bad = config.clone();
    let sysctls = &mut bad.linux.mut_or_insert_default().sysctls;
    sysctls.insert("kernel.hostname".into(), "x".into());
    let refused = shim.sandbox.create_sandbox(ctx(), &request(&bad)).await;
    assert_eq!(code(refused.unwrap_err()), ttrpc::Code::INVALID_ARGUMENT);
    assert!(!pod.bundle.join("shm").exists());
    let request = request(&config);
    shim.sandbox.create_sandbox(ctx(), &request).await.unwrap();
    shim.sandbox.create_sandbox(ctx(), &request).await.unwrap();
    let start = StartSandboxRequest {
        sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let pause = shim.sandbox.start_sandbox(ctx(), &start).await.unwrap().pid;

    // Its containers come as containerd sends them: without our options, their namespaces by the pause's pid.
    let out = pod.dir.path().join("out");
    let uri = format!("file://{}", out.display());
    let script = "hostname; cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shm_rmid_forced; cat /dev/shm/* 2>/dev/null; echo hi > /dev/shm/$0";
    for id in ["c1", "c2"] {
        pod.lay_bundle(id, &["sh", "-c", script, id], |spec| {
            let of_pod = |kind: &str, link: &str| serde_json::json!({ "type": kind, "path": format!("/proc/{pause}/ns/{link}") });
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.extend([of_pod("uts", "uts"), of_pod("ipc", "ipc"), of_pod("network", "net")]);
        });
        let create = CreateTaskRequest {
            id: id.into(),
            bundle: pod.container_dir(id).display().to_string(),
            stdout: uri.clone(),
            stderr: uri.clone(),
            ..Default::default()
        };
        shim.task.create(ctx(), &create).await.unwrap();
        let start = StartRequest {
            id: id.into(),
            ..Default::default()
        };
        shim.task.start(ctx(), &start).await.unwrap();
        assert_eq!(shim.ended(id).await.exit_code, 0, "{}", pod.log());
    }
    let said = "harbour\nharbour\nnameserver 10.0.0.10\n1\n";
    assert_eq!(
        fs::read_to_string(&out).unwrap(),
        format!("{said}{said}hi\n")
    );
    let metrics = SandboxMetricsRequest {
        sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let metrics = shim.sandbox.sandbox_metrics(ctx(), &metrics).await.unwrap();
    assert!(
        metrics
            .metrics
            .data
            .type_url
            .starts_with("io.containerd.cgroups.v")
    );
    shim.shutdown(&pod).await;
    eventually("the pod's shared memory unmounted", || {
        !pod.bundle.join("shm").exists()
    })
    .await;
    assert!(!alive(pause));
}
