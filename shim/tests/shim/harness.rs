//! The real shim in a directory of its own, driven over ttrpc, with containers made of Debian's static busybox.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use berth_engine::cgroup::Cgroup;
use berth_proto::shim::{
    api::{CreateTaskRequest, StartRequest},
    sandbox_api::{
        CreateSandboxRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
    },
    sandbox_async::SandboxClient,
    shim_async::{Client, TaskClient},
    v1::{
        pod::{
            ContainerState, CreateOptions, ExecSyncRequest, ExecSyncResponse, InspectRequest,
            SandboxOptions, TaskState,
        },
        pod_ttrpc::PodClient,
    },
};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use serde_json::{Value, json};
use tempfile::TempDir;
use ttrpc::context::{self, Context};

pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_containerd-shim-berth-v2");
/// Nothing here takes this long.
pub const PATIENCE: Duration = Duration::from_secs(30);
const BUSYBOX: &str = "/bin/busybox";

pub fn ctx() -> Context {
    context::with_duration(PATIENCE)
}

pub fn any(name: &str, message: &impl Message) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.write_to_bytes().unwrap(),
        ..Default::default()
    })
}

/// A pod's directory and its shim; all of it is gone when this is dropped.
pub struct Pod {
    pub id: String,
    pub dir: TempDir,
    pub bundle: PathBuf,
    pub env: HashMap<String, String>,
    /// Beside those that every action is called with.
    pub flags: Vec<String>,
    pub cgroup: String,
}

/// The three services of a running shim.
pub struct Shim {
    pub task: TaskClient,
    pub sandbox: SandboxClient,
    pub pod: PodClient,
}

impl Pod {
    pub fn new() -> Pod {
        assert!(
            Path::new(BUSYBOX).exists(),
            "{BUSYBOX} is missing: install Debian's busybox-static"
        );
        let dir = tempfile::Builder::new()
            .prefix("berth-shim-")
            .tempdir()
            .unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        // 64 hexadecimal digits, as random as the directory's name; its random end comes first and so names the socket.
        let digits: String = name.bytes().rev().map(|b| format!("{b:02x}")).collect();
        let id = format!("{digits:0<64}")[..64].to_owned();
        let bundle = dir.path().join("pods").join(&id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(bundle.join("exits"))
            .unwrap();
        let sockets = dir.path().join("s").display().to_string();
        let env = HashMap::from([
            ("BERTH_SHIM_SOCKET_DIR".into(), sockets),
            ("MAX_SHIM_VERSION".into(), "3".into()),
        ]);
        Pod {
            cgroup: format!("/{name}"),
            id,
            dir,
            bundle,
            env,
            flags: Vec::new(),
        }
    }

    pub fn run(&self, action: &[&str]) -> Output {
        Command::new(EXECUTABLE)
            .args([
                "-namespace",
                "k8s.io",
                "-id",
                &self.id,
                "-address",
                "/nowhere",
                "-publish-binary",
                "",
            ])
            .args(&self.flags)
            .args(action)
            .current_dir(&self.bundle)
            .envs(&self.env)
            .output()
            .unwrap()
    }

    /// `start`: the answer's address.
    pub fn start(&self) -> String {
        let output = self.run(&["start"]);
        assert!(
            output.status.success(),
            "start: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&answer["version"], &answer["protocol"]),
            (&json!(3), &json!("ttrpc")),
            "{answer}"
        );
        answer["address"].as_str().unwrap().to_owned()
    }

    pub async fn connect(&self, address: &str) -> Shim {
        let client = Client::connect(address).await.unwrap();
        Shim {
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client.clone()),
            pod: PodClient::new(client),
        }
    }

    /// A shim with a running sandbox.
    pub async fn up(&self) -> Shim {
        self.up_with(
            SandboxOptions {
                hostname: "berth-pod".into(),
                ..Default::default()
            },
            "",
        )
        .await
    }

    pub async fn up_with(&self, options: SandboxOptions, netns: &str) -> Shim {
        let shim = self.connect(&self.start()).await;
        let mut request = self.create_sandbox(options);
        request.netns_path = netns.into();
        shim.sandbox
            .create_sandbox(ctx(), &request)
            .await
            .unwrap_or_else(|e| panic!("{e}: {}", self.log()));
        let start = StartSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        let started = shim
            .sandbox
            .start_sandbox(ctx(), &start)
            .await
            .unwrap_or_else(|e| panic!("{e}: {}", self.log()));
        assert!(started.pid > 1);
        shim
    }

    pub fn create_sandbox(&self, mut options: SandboxOptions) -> CreateSandboxRequest {
        options.exits_dir = self.bundle.join("exits").display().to_string();
        CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.bundle.display().to_string(),
            options: any("berth.shim.v1.SandboxOptions", &options),
            ..Default::default()
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle.join("shim.log")).unwrap_or_default()
    }

    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.bundle.join("containers").join(id)
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    /// A bundle whose root has a busybox, and a spec that runs `args` in it.
    pub fn lay_bundle(&self, id: &str, args: &[&str], edit: impl FnOnce(&mut Value)) {
        let dir = self.container_dir(id);
        let root = dir.join("rootfs");
        for sub in ["bin", "proc", "dev", "tmp", "etc", "sys"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "sleep", "cat", "head", "tail", "ls", "true", "hostname", "echo", "kill",
            "readlink", "yes", "printf",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": args, "env": ["PATH=/bin", "FROM_SPEC=yes"], "cwd": "/",
                "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
                "noNewPrivileges": true,
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "namespaces": [{ "type": "mount" }],
            },
        });
        edit(&mut spec);
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
    }

    pub fn create_request(&self, id: &str, options: CreateOptions) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.into(),
            bundle: self.container_dir(id).display().to_string(),
            options: any("berth.shim.v1.CreateOptions", &options),
            ..Default::default()
        }
    }

    pub fn options(&self, id: &str) -> CreateOptions {
        use berth_proto::shim::v1::pod::NamespaceMode::CONTAINER;
        CreateOptions {
            pid: CONTAINER.into(),
            log_path: self.log_path(id).display().to_string(),
            ..Default::default()
        }
    }

    /// Creates and starts a container. Answers init's pid.
    pub async fn run_container(&self, shim: &Shim, id: &str, args: &[&str]) -> u32 {
        self.lay_bundle(id, args, |_| {});
        self.create_and_start(shim, id, self.options(id)).await
    }

    pub async fn create_and_start(&self, shim: &Shim, id: &str, options: CreateOptions) -> u32 {
        let created = shim
            .task
            .create(ctx(), &self.create_request(id, options))
            .await;
        let pid = created
            .unwrap_or_else(|e| panic!("create: {e}: {}", self.log()))
            .pid;
        let start = StartRequest {
            id: id.into(),
            ..Default::default()
        };
        let started = shim
            .task
            .start(ctx(), &start)
            .await
            .unwrap_or_else(|e| panic!("start: {e}: {}", self.log()));
        assert_eq!(started.pid, pid);
        pid
    }

    /// The container's log as (stream, tag, text).
    pub fn log_lines(&self, id: &str) -> Vec<(String, String, String)> {
        parse_log(&self.log_path(id))
    }
}

pub fn parse_log(path: &Path) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let time = parts.next().unwrap();
            assert!(time.len() == 30 && time.ends_with('Z'), "{line:.100}");
            let mut part = || {
                parts
                    .next()
                    .unwrap_or_else(|| panic!("{line:.100}"))
                    .to_owned()
            };
            (part(), part(), part())
        })
        .collect()
}

impl Shim {
    pub async fn containers(&self) -> HashMap<String, ContainerState> {
        let pod = self
            .pod
            .inspect(ctx(), &InspectRequest::new())
            .await
            .unwrap();
        pod.containers
            .into_iter()
            .map(|container| (container.id.clone(), container))
            .collect()
    }

    /// Waits until the container has ended.
    pub async fn ended(&self, id: &str) -> ContainerState {
        let began = Instant::now();
        loop {
            let state = self.containers().await.remove(id).unwrap();
            if state.state == TaskState::EXITED.into() {
                return state;
            }
            assert!(began.elapsed() < PATIENCE, "{state:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn exec(
        &self,
        id: &str,
        args: &[&str],
        timeout_ms: u64,
    ) -> ttrpc::Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: id.into(),
            args: args.iter().map(ToString::to_string).collect(),
            timeout_ms,
            ..Default::default()
        };
        self.pod.exec_sync(ctx(), &request).await
    }

    pub async fn stop(&self, pod: &Pod) {
        let stop = StopSandboxRequest {
            sandbox_id: pod.id.clone(),
            ..Default::default()
        };
        self.sandbox.stop_sandbox(ctx(), &stop).await.unwrap();
    }

    pub async fn shutdown(&self, pod: &Pod) {
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: pod.id.clone(),
            ..Default::default()
        };
        self.sandbox
            .shutdown_sandbox(ctx(), &shutdown)
            .await
            .unwrap();
    }
}

impl Drop for Pod {
    /// Ends whatever a failed test has left: the shim's own `delete` does it.
    fn drop(&mut self) {
        let output = self.run(&["delete"]);
        let cgroup = Cgroup::at(&self.cgroup).unwrap();
        let removed = cgroup.kill().and_then(|()| cgroup.remove());
        if !std::thread::panicking() {
            assert!(
                output.status.success(),
                "delete: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            removed.unwrap();
        } else {
            eprintln!("shim.log:\n{}", self.log());
        }
    }
}

/// Waits for something that comes by itself.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn alive(pid: u32) -> bool {
    // A zombie is dead: only its parent has not looked.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

pub fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

pub fn code(error: ttrpc::Error) -> ttrpc::Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("no status: {other}"),
    }
}
