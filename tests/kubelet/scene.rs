//! `berth kubelet` beside a test's daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use berth_tests::{Node, daemon::bin_dir, machine::patient};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The node's name, which static pods have behind their own.
const NODE: &str = "n1";
/// How long anything may take that is not told to take longer.
const LIMIT: Duration = Duration::from_secs(30);

pub struct Kubelet {
    child: Option<Child>,
    command: Vec<String>,
    environment: Vec<(&'static str, String)>,
    dir: PathBuf,
    /// Of all its pods.
    cgroup: String,
}

impl Kubelet {
    /// Starts one for the node's daemon.
    pub fn start(node: &Node) -> Result<Self> {
        Self::start_with(node, &[])
    }

    /// … with more flags.
    pub fn start_with(node: &Node, flags: &[&str]) -> Result<Self> {
        Self::start_at(node, &node.daemon.socket(), flags)
    }

    /// … for the runtime at `socket`.
    pub fn start_at(node: &Node, socket: &Path, flags: &[&str]) -> Result<Self> {
        Self::start_in(node, socket, flags, &[])
    }

    /// … with variables of its own.
    pub fn start_in(
        node: &Node,
        socket: &Path,
        flags: &[&str],
        environment: &[(&'static str, String)],
    ) -> Result<Self> {
        let mut kubelet = Self::of(node, socket, flags)?;
        kubelet.environment = environment.to_vec();
        kubelet.spawn()?;
        Ok(kubelet)
    }

    fn of(node: &Node, socket: &Path, flags: &[&str]) -> Result<Self> {
        let dir = node.dir.clone();
        let at = |name: &str| dir.join(name).display().to_string();
        fs::create_dir_all(at("manifests"))?;
        let command = [
            "--endpoint".into(),
            format!("unix://{}", socket.display()),
            "kubelet".into(),
            "--manifests".into(),
            at("manifests"),
            "--kubelet-dir".into(),
            at("kubelet"),
            "--logs-dir".into(),
            at("logs"),
            "--node-name".into(),
            NODE.into(),
            "--cgroup-root".into(),
            node.cgroup_parent.clone(),
        ];
        let flags = flags.iter().map(ToString::to_string);
        Ok(Self {
            child: None,
            command: command.into_iter().chain(flags).collect(),
            environment: Vec::new(),
            dir,
            cgroup: node.own_cgroup_parent("kubepods"),
        })
    }

    pub fn spawn(&mut self) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = self
            .another()?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        self.child = Some(child.context("start berth kubelet")?);
        Ok(())
    }

    /// The command of one more with the same directories.
    pub fn another(&self) -> Result<Command> {
        let mut command = Command::new(bin_dir()?.join("berth"));
        command
            .args(&self.command)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .env("BERTH_LOG", "info,berth_kubelet=debug");
        Ok(command)
    }

    /// Starts with these variables from now on.
    pub fn set_environment(&mut self, environment: &[(&'static str, String)]) {
        self.environment = environment.to_vec();
    }

    /// Starts with one more flag from now on, in place of what it had before it.
    pub fn with_flag(&mut self, flag: &str) {
        if let Some((name, _)) = flag.split_once('=') {
            let same = format!("{name}=");
            self.command.retain(|other| !other.starts_with(&same));
        }
        self.command.push(flag.to_owned());
    }

    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end, and waits until it has; how long that took.
    pub fn end(&mut self) -> Result<Duration> {
        let mut child = self.child.take().context("it does not run")?;
        let begun = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        while child.try_wait()?.is_none() {
            if begun.elapsed() > patient(LIMIT) {
                let _ = child.kill();
                let _ = child.wait();
                bail!("it does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(begun.elapsed())
    }

    pub fn put(&self, file: &str, text: &str) -> Result<()> {
        // whole, as who writes manifests should
        let hidden = self.dir.join("manifests").join(format!(".{file}"));
        fs::write(&hidden, text)?;
        Ok(fs::rename(hidden, self.dir.join("manifests").join(file))?)
    }

    pub fn take(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.dir.join("manifests").join(file))?)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("kubelet.log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn pods_dir(&self) -> PathBuf {
        self.dir.join("kubelet/pods")
    }

    /// The directory of the static pod `name`.
    pub fn pod_dir(&self, name: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(self.pods_dir())
            .into_iter()
            .flatten()
            .flatten();
        entries.map(|entry| entry.path()).find(|dir| {
            let kept = fs::read(dir.join("pod.json")).ok();
            let kept: Option<Value> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            kept.is_some_and(|kept| kept["pod"]["metadata"]["name"] == format!("{name}-{NODE}"))
        })
    }

    /// What was last told of it.
    pub fn status(&self, name: &str) -> Option<Value> {
        let bytes = fs::read(self.pod_dir(name)?.join("status.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Waits until the status is as `is` wants it.
    pub async fn wait(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + patient(LIMIT);
        loop {
            let status = self.status(name);
            if let Some(status) = status.as_ref().filter(|status| is(status)) {
                return Ok(status.clone());
            }
            if Instant::now() > deadline {
                bail!(
                    "{name} is not {what} in time: {status:#?}\n---- the kubelet's log\n{}",
                    self.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn wait_ready(&self, name: &str) -> Result<Value> {
        self.wait(name, "ready", |status| condition(status, "Ready") == "True")
            .await
    }

    /// Waits until nothing is left of the pod, neither here nor in the runtime.
    pub async fn wait_gone(&self, node: &Node, name: &str) -> Result<()> {
        let deadline = Instant::now() + patient(LIMIT);
        loop {
            let pods = node.cri.pods(None).await?;
            let known = pods.iter().any(|pod| {
                let metadata = pod.metadata.as_ref();
                metadata.is_some_and(|it| it.name == format!("{name}-{NODE}"))
            });
            if !known && self.pod_dir(name).is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{name} is not gone in time:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Kubelet {
    /// Waits until nothing is left of any pod. The API forgets one as soon as nothing of it runs, and its sandbox goes after that.
    pub fn wait_empty(&self) -> Result<()> {
        let until = Instant::now() + patient(LIMIT);
        loop {
            let left = berth_tests::cgroup::tree(&self.cgroup);
            let pods = left.iter().filter(|dir| {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("pod") || name.contains("-pod")
            });
            // of one that was evicted the cgroup goes first
            let dirs = fs::read_dir(self.pods_dir())
                .into_iter()
                .flatten()
                .flatten();
            let mut left = pods.cloned().chain(dirs.map(|dir| dir.path()));
            let Some(left) = left.next() else {
                return Ok(());
            };
            if Instant::now() > until {
                bail!("{} stays\n{}", left.display(), self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.kill_9();
        // It keeps them for the next one. Those with processes are a failed test's.
        let until = Instant::now() + Duration::from_secs(3);
        while berth_tests::cgroup::remove(&self.cgroup).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The status of a condition.
pub fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let all = status["conditions"].as_array();
    let one = all.into_iter().flatten().find(|one| one["type"] == kind);
    one.and_then(|one| one["status"].as_str()).unwrap_or("")
}

/// The status of a container, of whichever list.
pub fn container<'a>(status: &'a Value, name: &str) -> &'a Value {
    const NONE: &Value = &Value::Null;
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .flat_map(|list| status[*list].as_array().into_iter().flatten())
        .find(|one| one["name"] == name)
        .unwrap_or(NONE)
}

/// A manifest of these lines under `spec:`.
pub fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: test}}}}\nspec:\n{spec}\n"
    )
}
