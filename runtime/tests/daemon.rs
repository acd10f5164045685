//! The real berthd on directories of its own: its command line, its socket, its end. Pods are the functional tests' matter.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use berth_proto::cri::{
    ImageStatusRequest, PodSandboxConfig, RemoveContainerRequest, RunPodSandboxRequest,
    StatusRequest, StopPodSandboxRequest, VersionRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::{Code, transport::Channel};

const BERTHD: &str = env!("CARGO_BIN_EXE_berthd");
/// Debug builds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = command(dir.path()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { dir, child };
        let since = Instant::now();
        while !daemon.socket().exists() {
            assert!(since.elapsed() < PATIENCE, "berthd does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/berth.sock")
    }

    async fn channel(&self) -> Channel {
        let uri = format!("unix://{}", self.socket().display());
        tonic::transport::Endpoint::from_shared(uri)
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(BERTHD);
    let config = dir.join("config.toml");
    // A name that no other test and no real bridge has.
    let bridge = format!("bt{}", std::process::id());
    fs::write(
        &config,
        format!(
            "[network]\nbridge = \"{bridge}\"\nsubnet = \"10.77.0.0/24\"\n[nri]\ndisable = true\n"
        ),
    )
    .unwrap();
    command
        .arg("--config")
        .arg(config)
        .arg("--root")
        .arg(dir.join("lib"))
        .arg("--state")
        .arg(dir.join("run"));
    command
}

fn run(arguments: &[&str]) -> Output {
    Command::new(BERTHD).args(arguments).output().unwrap()
}

#[test]
fn the_printed_default_is_a_valid_configuration() {
    let printed = run(&["config", "default"]);
    assert!(printed.status.success());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, &printed.stdout).unwrap();
    let checked = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{checked:?}");
    assert!(checked.stdout.is_empty() && checked.stderr.is_empty());
}

#[test]
fn a_bad_configuration_ends_it_with_the_key_the_line_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "[cgroup]\n\ndriver = \"systemc\"\n").unwrap();
    for arguments in [
        &["--config", file.to_str().unwrap()][..],
        &["config", "check", "--config", file.to_str().unwrap()],
    ] {
        let refused = run(arguments);
        assert!(!refused.status.success());
        let said = String::from_utf8(refused.stderr).unwrap();
        for part in ["line 3", "driver", "cgroupfs"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[tokio::test]
async fn it_serves_on_a_socket_for_root_alone() {
    let daemon = Daemon::start();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket()), 0o600);
    assert_eq!(mode(daemon.socket().parent().unwrap()), 0o700);
    let mut client = RuntimeServiceClient::new(daemon.channel().await);
    let version = client
        .version(VersionRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("berth", "v1")
    );
    let status = client
        .status(StatusRequest { verbose: true })
        .await
        .unwrap()
        .into_inner();
    assert!(status.status.unwrap().conditions.iter().all(|c| c.status));
    assert!(status.runtime_handlers.iter().any(|h| h.name == "berth"));
    for value in status.info.values() {
        serde_json::from_str::<serde_json::Value>(value).unwrap();
    }
}

#[tokio::test]
async fn another_user_is_refused_even_where_the_socket_lets_it_connect() {
    let daemon = Daemon::start();
    // Somebody loosened everything on the way.
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    open(&daemon.socket());
    open(daemon.socket().parent().unwrap());
    open(daemon.dir.path());
    // perl is part of every Debian. An HTTP/2 preface and empty settings; a server answers with its own.
    let probe = r#"use IO::Socket::UNIX; alarm 10; $SIG{PIPE} = 'IGNORE';
        my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!";
        syswrite $s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        print sysread($s, my $answer, 64) || 0;"#;
    let ask = |uid: u32| {
        Command::new("perl")
            .args(["-e", probe])
            .arg(daemon.socket())
            .uid(uid)
            .gid(uid)
            .output()
            .unwrap()
    };
    let root = ask(0);
    let said = String::from_utf8_lossy(&root.stdout).trim().to_owned();
    assert!(said.parse::<usize>().is_ok_and(|n| n > 0), "{root:?}");
    let nobody = ask(65534);
    let answered = String::from_utf8_lossy(&nobody.stdout)
        .trim()
        .parse::<usize>()
        .is_ok_and(|n| n > 0);
    assert!(!answered, "{nobody:?}");
}

#[tokio::test]
async fn what_is_not_known_is_removed_already_and_bad_input_is_refused_before_anything_is_made_rel_21()
 {
    let daemon = Daemon::start();
    let channel = daemon.channel().await;
    let mut client = RuntimeServiceClient::new(channel.clone());
    for id in ["nosuch", "0123abcd", &"f".repeat(64), "../../etc"] {
        client
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: id.into(),
            })
            .await
            .unwrap();
        client
            .remove_container(RemoveContainerRequest {
                container_id: id.into(),
            })
            .await
            .unwrap();
    }
    let nameless = client
        .run_pod_sandbox(RunPodSandboxRequest {
            config: Some(PodSandboxConfig::default()),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument, "{nameless}");
    let images = ImageServiceClient::new(channel)
        .image_status(ImageStatusRequest::default())
        .await
        .unwrap_err();
    assert_eq!(images.code(), Code::InvalidArgument);
    let empty = |path: &str| {
        fs::read_dir(daemon.dir.path().join(path))
            .unwrap()
            .next()
            .is_none()
    };
    assert!(empty("run/pods") && empty("run/ledger") && empty("lib/pods"));
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directories_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start();
    let second = command(daemon.dir.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(
        said.contains("another daemon uses this state directory"),
        "{said}"
    );
    let mut client = RuntimeServiceClient::new(daemon.channel().await);
    client.version(VersionRequest::default()).await.unwrap();
}

#[tokio::test]
async fn sigterm_ends_it_soon_and_takes_the_socket_along() {
    let mut daemon = Daemon::start();
    // An open, idle connection does not hold it.
    let _channel = daemon.channel().await;
    daemon.terminate();
    let since = Instant::now();
    let status = loop {
        if let Some(status) = daemon.child.try_wait().unwrap() {
            break status;
        }
        assert!(since.elapsed() < PATIENCE, "berthd does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(status.success(), "{status}");
    assert!(!daemon.socket().exists());
}

#[tokio::test]
async fn after_kill_9_a_new_one_replaces_the_stale_socket() {
    let mut daemon = Daemon::start();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(daemon.socket().exists());
    daemon.child = command(daemon.dir.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    loop {
        let uri = format!("unix://{}", daemon.socket().display());
        if tonic::transport::Endpoint::from_shared(uri)
            .unwrap()
            .connect()
            .await
            .is_ok()
        {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "berthd does not serve again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
