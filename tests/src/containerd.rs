//! A stock containerd with Berth's shim as its default runtime.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{Cri, daemon::bin_dir, debian, machine::patient};

/// How long it may take until it answers.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// What its CRI calls the image that pods are made of.
pub const PAUSE: &str = "localhost/pause:1";
/// The image of containers.
pub const IMAGE: &str = "localhost/busybox:1";

/// Ended with SIGKILL when it is dropped; its shims are not its children.
#[derive(Debug)]
pub struct Containerd {
    child: Option<Child>,
    dir: PathBuf,
}

impl Containerd {
    /// Starts it with its directories below `dir`, and gives it two images.
    pub async fn start(dir: &Path) -> Result<Self> {
        let dir = dir.join("containerd");
        fs::create_dir_all(dir.join("cni"))?;
        fs::write(
            dir.join("config.toml"),
            format!(
                r#"version = 2
root = "{0}/root"
state = "{0}/run"
[grpc]
address = "{0}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "berth"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.berth]
runtime_type = "io.containerd.berth.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{0}/cni"
"#,
                dir.display()
            ),
        )?;
        let mut containerd = Self { child: None, dir };
        containerd.spawn().await?;
        let image = debian::busybox_image()?;
        let pause = image.but(json!({"Entrypoint": ["sleep", "1000000000"], "Cmd": []}));
        for (image, name) in [(image, IMAGE), (pause, PAUSE)] {
            let archive = containerd.dir.join("image.tar");
            image.oci_archive(&archive, name)?;
            let archive = archive.display().to_string();
            for namespace in ["k8s.io", "default"] {
                containerd.ctr(&["-n", namespace, "images", "import", &archive])?;
            }
        }
        Ok(containerd)
    }

    async fn spawn(&mut self) -> Result<()> {
        let mut path = OsString::from(bin_dir()?);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("containerd.log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .env("PATH", path)
            .env("BERTH_SHIM_SOCKET_DIR", self.dir.join("s"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        self.child = Some(child.context("start containerd (Debian's package of that name)")?);
        let deadline = Instant::now() + patient(READY_LIMIT);
        loop {
            if let Ok(cri) = self.cri().await
                && cri.version().await.is_ok()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "containerd is not ready after {READY_LIMIT:?}: {}",
                    self.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last lines that it logged.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.join("\n")
    }

    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.dir.join("containerd.sock")).await
    }

    /// Its own client, not started yet.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a")
            .arg(self.dir.join("containerd.sock"))
            .args(arguments)
            .stdin(Stdio::null());
        ctr
    }

    /// Its own client.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let output = self.client(arguments).output().context("start ctr")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Listens to its events, from the next one on.
    pub fn listen(&self) -> Result<Listener> {
        let path = self.dir.join("events");
        let mut events = self.client(&["events"]);
        let child = events.stdout(fs::File::create(&path)?).spawn();
        let listener = Listener {
            child: child.context("start ctr")?,
            path,
        };
        // It says nothing of its own: a namespace's label is an event that comes at once.
        let deadline = Instant::now() + patient(READY_LIMIT);
        while !fs::read_to_string(&listener.path)?.contains("/namespaces/") {
            ensure!(Instant::now() < deadline, "ctr events hears nothing");
            self.ctr(&["namespaces", "label", "default", "berth.test=x"])?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(listener)
    }

    /// Where its sockets, bundles and mounts are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets it stand still, or go on.
    pub fn freeze(&self, still: bool) {
        let signal = if still {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        if let Some(child) = &self.child {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// SIGKILL, and another one with the same directories.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill_9();
        self.spawn().await
    }

    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `ctr events`; ended when it is dropped.
#[derive(Debug)]
pub struct Listener {
    child: Child,
    path: PathBuf,
}

impl Listener {
    /// What was heard of tasks: the last part of each topic, and its event.
    pub fn tasks(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let of_tasks = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(" /tasks/")?;
            let (topic, event) = rest.split_once(' ')?;
            Some((topic.to_owned(), serde_json::from_str(event).ok()?))
        });
        of_tasks.collect()
    }

    pub fn topics(&self) -> Vec<String> {
        self.tasks().into_iter().map(|(topic, _)| topic).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill_9();
    }
}
