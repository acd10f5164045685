//! The process itself: start, socket, delete, descriptors.

use std::{fs, io::Write, os::unix::fs::MetadataExt, process::Command};

use berth_proto::shim::{
    api::ConnectRequest,
    bootstrap_api::{BootstrapParams, BootstrapResult},
};
use protobuf::Message;

use crate::harness::{EXECUTABLE, Pod, Shim, alive, ctx, eventually};

pub async fn shim_pid(shim: &Shim) -> u32 {
    shim.task
        .connect(ctx(), &ConnectRequest::new())
        .await
        .unwrap()
        .shim_pid
}

#[tokio::test]
async fn a_second_start_answers_with_the_living_shim() {
    let pod = Pod::new();
    let address = pod.start();
    let pid = shim_pid(&pod.connect(&address).await).await;
    assert_eq!(pod.start(), address);
    assert_eq!(shim_pid(&pod.connect(&address).await).await, pid);
    assert_ne!(pid, 0);
}

#[tokio::test]
async fn the_socket_is_roots_alone_sec_eng_14() {
    let pod = Pod::new();
    let address = pod.start();
    let path = std::path::Path::new(address.strip_prefix("unix://").unwrap());
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), &pod.id[..16]);
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(
        fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
        0o700
    );
    let pid = shim_pid(&pod.connect(&address).await).await;
    let ours = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
    assert!(
        !ours
            .lines()
            .any(|line| line.contains(" @") && line.contains("berth")),
        "an abstract socket"
    );
}

#[tokio::test]
async fn the_shim_is_detached_and_holds_no_descriptor_of_its_caller_sec_eng_01() {
    let pod = Pod::new();
    // A descriptor without close-on-exec, as a careless caller leaves them: a shell opens such.
    let script = format!(
        "exec 7</etc/passwd 8</ 9>/dev/null; exec {EXECUTABLE} -namespace k8s.io -id {} start",
        pod.id
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .current_dir(&pod.bundle)
        .envs(&pod.env)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pid = shim_pid(&pod.connect(&pod.start()).await).await;
    let mut all = vec![pid];
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    all.extend(
        children
            .split_whitespace()
            .map(|child| child.parse::<u32>().unwrap()),
    );
    assert!(all.len() >= 2, "a launcher was expected beside the shim");
    for pid in all {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
            let target = target.to_str().unwrap();
            assert!(
                target != "/etc/passwd" && target != "/",
                "descriptor of the caller: {target}"
            );
        }
    }
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        pod.bundle
    );
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/fd/0")).unwrap().to_str(),
        Some("/dev/null")
    );
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/fd/2")).unwrap(),
        pod.bundle.join("shim.log")
    );
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    assert_eq!(session, pid.to_string(), "a session of its own");
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let pod = Pod::new();
    let address = pod.start();
    let first = shim_pid(&pod.connect(&address).await).await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("the shim's death", || !alive(first)).await;
    assert!(fs::exists(address.strip_prefix("unix://").unwrap()).unwrap());
    assert_eq!(pod.start(), address);
    assert_ne!(shim_pid(&pod.connect(&address).await).await, first);
}

#[tokio::test]
async fn a_shim_survives_a_stray_sigterm_and_ends_by_shutdown() {
    let pod = Pod::new();
    let shim = pod.up().await;
    let pid = shim_pid(&shim).await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(shim_pid(&shim).await, pid);
    shim.shutdown(&pod).await;
    eventually("the shim's end", || !alive(pid)).await;
    assert_eq!(
        fs::read_dir(pod.dir.path().join("s")).unwrap().count(),
        0,
        "the socket is gone"
    );
}

#[tokio::test]
async fn garbage_on_the_socket_closes_that_connection_only_sec_eng_14() {
    use std::io::Write;
    let pod = Pod::new();
    let address = pod.start();
    let shim = pod.connect(&address).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
    ] {
        let mut raw =
            std::os::unix::net::UnixStream::connect(address.strip_prefix("unix://").unwrap())
                .unwrap();
        let _ = raw.write_all(garbage);
    }
    let pid = shim_pid(&shim).await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let anonymous = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 8 << 10, "{kib} KiB");
}

#[test]
fn version_and_info_answer_without_an_id() {
    for flag in ["-v", "-info"] {
        let output = Command::new(EXECUTABLE).arg(flag).output().unwrap();
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{flag}"
        );
    }
    assert!(
        !Command::new(EXECUTABLE)
            .args(["-id", "../x", "start"])
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_person_who_runs_it_by_hand_is_told_what_to_do() {
    let run = |args: &[&str]| {
        let output = std::process::Command::new(EXECUTABLE)
            .args(args)
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    for (args, code, word) in [
        (&["--version"][..], 0, env!("CARGO_PKG_VERSION")),
        (&["-v"], 0, env!("CARGO_PKG_VERSION")),
        (&["--help"], 0, "Usage:"),
        (&["-info"], 0, "SCMP_ACT_ERRNO"),
        (&[], 2, "Usage:"),
        (&["run"], 2, "start, delete"),
        (&["-nonsense"], 2, "-nonsense"),
        (&["start"], 2, "-id"),
        (&["-id", "../x", "start"], 2, "only letters"),
        (
            &["-namespace", "n", "-id", "x", "start"],
            1,
            "no bundle of x",
        ),
        (
            &["-namespace", "n", "-id", "x", "delete"],
            1,
            "no bundle of x",
        ),
        (&["-namespace", "n", "-id", "x"], 1, "started by its action"),
    ] {
        let (got, said) = run(args);
        assert_eq!(got, code, "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[tokio::test]
async fn containerds_bootstrap_message_is_answered_by_one_and_older_callers_as_they_take_it() {
    let pod = Pod::new();
    let params = BootstrapParams {
        instance_id: pod.id.clone(),
        namespace: "k8s.io".into(),
        containerd_version: "2.3.4".into(),
        ..Default::default()
    };
    let start = |written: &[u8]| {
        let mut child = Command::new(EXECUTABLE)
            .args(["-namespace", "k8s.io", "-id", &pod.id, "start"])
            .current_dir(&pod.bundle)
            .envs(&pod.env)
            // What that containerd says to all shims.
            .env("MAX_SHIM_VERSION", "2")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(written).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    let answer = start(&params.write_to_bytes().unwrap());
    let result = BootstrapResult::parse_from_bytes(&answer).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let shim = pod.connect(&result.address).await;
    let connect = ConnectRequest {
        id: pod.id.clone(),
        ..Default::default()
    };
    assert!(shim.task.connect(ctx(), &connect).await.unwrap().shim_pid > 1);
    for written in [&b""[..], b"\x0a\x03abc", &[0xff; 100]] {
        let answer: serde_json::Value = serde_json::from_slice(&start(written)).unwrap();
        assert_eq!(answer["version"], 2, "{answer}");
        assert_eq!(answer["address"], result.address.as_str(), "{answer}");
    }
}
