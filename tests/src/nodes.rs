//! A whole cluster for one test: `berth up --nodes`, with a real kubectl and a registry, in a machine of the test's own.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::{
    cgroup,
    cluster::{Kubectl, Said},
    daemon::bin_dir,
    debian, machine,
    machine::patient,
    node::{MIRRORED, Place, mount_storage},
    process,
    registry::{Registry, write_mirrors},
};

/// Where the nodes find the registry: this machine, as they see it.
const REGISTRY: &str = "10.240.0.1:5000";
/// Until all nodes are ready, from the start of `berth up`.
const READY: Duration = Duration::from_secs(60);
/// For what a cluster does by itself.
pub const WITHIN: Duration = Duration::from_secs(90);

/// A cluster whose nodes are network namespaces.
#[derive(Debug)]
pub struct Nodes {
    pub dir: PathBuf,
    pub kubectl: Kubectl,
    /// Of the nodes' names, which end in their numbers.
    prefix: String,
    count: u8,
    up: Option<Child>,
    arguments: Vec<String>,
    _registry: Registry,
}

impl Nodes {
    /// Runs `test` in a cluster of `count` nodes; afterwards `berth down` leaves nothing, and nothing of Berth is lost or left on a node.
    pub fn test(count: u8, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::test_with(count, &[], test)
    }

    /// With further arguments of `berth up`.
    pub fn test_with(
        count: u8,
        arguments: &[&str],
        test: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let images = debian::storage()?;
        machine::isolate()?;
        let mut place = Place::make(false)?;
        let outcome = Self::start(&place.dir, &images, count, arguments).and_then(|mut nodes| {
            let outcome = test(&mut nodes)
                .with_context(|| nodes.told())
                .and_then(|()| nodes.audit())
                .and_then(|()| nodes.down());
            if outcome.is_err() {
                nodes.give_up();
            }
            outcome
        });
        place.failed = outcome.is_err();
        outcome
    }

    fn start(dir: &Path, images: &Path, count: u8, arguments: &[&str]) -> Result<Self> {
        // what `ip netns` and the nodes' runtimes have there is to be this test's alone
        for path in ["/run/netns", "/run/berth-nodes"] {
            fs::create_dir_all(path)?;
            mount(
                Some("tmpfs"),
                path,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .with_context(|| format!("mount a tmpfs on {path}"))?;
        }
        mount_storage(dir, images)?;
        fs::create_dir_all(dir.join("certs.d"))?;
        let registry = Registry::start(
            &dir.join("registry"),
            &dir.join("storage"),
            "0.0.0.0:5000",
            false,
        )?;
        write_mirrors(&dir.join("certs.d"), &MIRRORED, REGISTRY)?;
        // cgroups are the host's, so the names are no other test's
        let prefix = format!("w{}", std::process::id());
        let mut nodes = Self {
            kubectl: Kubectl {
                kubeconfig: dir.join("data/admin.kubeconfig"),
                home: dir.to_owned(),
                log: dir.join("up.log"),
            },
            dir: dir.to_owned(),
            prefix,
            count,
            up: None,
            arguments: arguments.iter().map(|&it| it.to_owned()).collect(),
            _registry: registry,
        };
        let started = nodes.up();
        if started.is_err() {
            nodes.give_up();
        }
        started.map(|()| nodes)
    }

    /// The name of a node; the first is number 1.
    pub fn node(&self, number: u8) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// All nodes' names.
    pub fn names(&self) -> BTreeSet<String> {
        (1..=self.count).map(|number| self.node(number)).collect()
    }

    /// Starts `berth up`, and waits until all nodes are ready.
    pub fn up(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join("up.log"))?;
        let mut child = Command::new(bin_dir()?.join("berth"))
            .args(["up", "--nodes", &self.count.to_string(), "--node-name", &self.prefix])
            .arg("--data")
            .arg(self.dir.join("data"))
            .arg("--hosts-dir")
            .arg(self.dir.join("certs.d"))
            // how full the machine's disk is, is not what is tested
            .arg("--kubelet-arg=--eviction-hard=nodefs.available<0%,nodefs.inodesFree<0%,imagefs.available<0%,imagefs.inodesFree<0%,pid.available<0%")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        self.up = Some(child);
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let until = Instant::now() + patient(READY);
        let mut ready = 0;
        while ready < self.count {
            let left = until.saturating_duration_since(Instant::now());
            let line = lines.recv_timeout(left);
            let line = line.with_context(|| format!("{ready} nodes are ready: {}", self.told()))?;
            ready += u8::from(line.contains(" is ready "));
        }
        Ok(())
    }

    /// SIGKILL to `berth up` alone; what it has started goes on.
    pub fn kill_up(&mut self) -> Result<()> {
        let mut up = self.up.take().context("it does not run")?;
        up.kill()?;
        up.wait()?;
        Ok(())
    }

    /// SIGKILL to a node's `kubelet` or `berthd`, which is started again.
    pub fn kill_9(&self, number: u8, program: &str) -> Result<()> {
        let path = self.node_dir(number).join(format!("{program}.pid"));
        // one that is being started again has none for a moment
        let pid = self.eventually("a program has a pid", || {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
            Ok(Some(pid.with_context(|| text.clone())?))
        })?;
        process::kill_9(pid);
        Ok(())
    }

    /// Where a node keeps what it has.
    pub fn node_dir(&self, number: u8) -> PathBuf {
        self.dir.join("data/nodes").join(self.node(number))
    }

    /// Whether a node reaches the others and the server.
    pub fn plug(&self, number: u8, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        let link = format!("berth-n{number}");
        let status = Command::new("ip")
            .args(["link", "set", &link, state])
            .status()?;
        ensure!(status.success(), "ip link set {link} {state}: {status}");
        Ok(())
    }

    /// `berth` at a node's runtime.
    pub fn berth(&self, number: u8, arguments: &[&str]) -> Result<String> {
        let socket = format!("unix:///run/berth-nodes/{}/berth.sock", self.node(number));
        let output = Command::new(bin_dir()?.join("berth"))
            .args(["--endpoint", &socket])
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "berth {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Nothing that a node's runtime has made is lost or left over; and each controller may do what it does.
    pub fn audit(&self) -> Result<()> {
        let log = fs::read_to_string(self.dir.join("up.log"))?;
        let refused = log.lines().find(|line| {
            line.contains("forbidden: User") && line.contains("system:serviceaccount:kube-system:")
        });
        ensure!(refused.is_none(), "a controller was refused: {refused:?}");
        for number in 1..=self.count {
            let name = self.node(number);
            let root = self.node_dir(number).join("lib");
            let clean = self.eventually(&format!("the audit of {name} is clean"), || {
                let output = Command::new("nsenter")
                    .arg(format!("--net=/run/netns/berth-{name}"))
                    .arg(bin_dir()?.join("berth"))
                    .args(["audit", "--root"])
                    .arg(&root)
                    .args(["--state", &format!("/run/berth-nodes/{name}")])
                    .output()?;
                ensure!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stdout)
                );
                Ok(Some(()))
            });
            clean?;
        }
        Ok(())
    }

    /// Waits until `look` finds something.
    pub fn eventually<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let until = Instant::now() + patient(WITHIN);
        loop {
            match look() {
                Ok(Some(found)) => return Ok(found),
                Ok(None) if Instant::now() > until => bail!("{what}: not within {WITHIN:?}"),
                Err(error) if Instant::now() > until => return Err(error.context(what.to_owned())),
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Waits until what kubectl tells of `what` (as `["deployment/web"]`) is as it is wanted.
    pub fn until(
        &self,
        what: &[&str],
        why: &str,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let mut arguments = vec!["get"];
        arguments.extend(what);
        let found = self.eventually(why, || {
            last = self.kubectl.json(&arguments)?;
            Ok(holds(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("{what:?}: {last:#}"))
    }

    /// `manifest`: YAML or JSON.
    pub fn apply(&self, manifest: &(impl Display + ?Sized)) -> Result<String> {
        let manifest = manifest.to_string();
        self.kubectl.kubectl_with(&["apply", "-f", "-"], &manifest)
    }

    pub fn ask(&self, arguments: &[&str]) -> Result<Said> {
        self.kubectl.ask(arguments, "")
    }

    /// The ends of all logs.
    fn told(&self) -> String {
        let mut told = String::new();
        let mut paths = vec![self.dir.join("up.log")];
        for number in 1..=self.count {
            for name in ["kubelet.log", "berthd.log"] {
                paths.push(self.node_dir(number).join(name));
            }
        }
        // of a test that has them beside `berth up`
        let parts = ["controllers.log", "scheduler.log"].map(|name| self.dir.join(name));
        paths.extend(parts.into_iter().filter(|path| path.exists()));
        for path in paths {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            told += &format!("---- {}\n{}\n", path.display(), lines.join("\n"));
        }
        told
    }

    /// `berth down`: nothing is left.
    fn down(&mut self) -> Result<()> {
        let output = Command::new(bin_dir()?.join("berth"))
            .args(["down", "--data"])
            .arg(self.dir.join("data"))
            .output()?;
        ensure!(
            output.status.success(),
            "berth down: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.told()
        );
        if let Some(mut up) = self.up.take() {
            let status = up.wait()?;
            ensure!(
                status.success(),
                "berth up ended with {status}: {}",
                self.told()
            );
        }
        for name in self.names() {
            for parent in cgroup::roots() {
                let path = parent.join(format!("berth-{name}"));
                ensure!(!path.exists(), "{} is left", path.display());
            }
            ensure!(process::in_cgroup(&format!("berth-{name}")).is_empty());
        }
        let links = Command::new("ip").args(["-o", "link"]).output()?;
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        ensure!(links.lines().count() == 1, "links are left: {links}");
        let left: Vec<_> = fs::read_dir("/run/netns")?.flatten().collect();
        ensure!(left.is_empty(), "namespaces are left: {left:?}");
        let left: Vec<_> = fs::read_dir("/run/berth-nodes")?.flatten().collect();
        ensure!(left.is_empty(), "the runtimes leave {left:?}");
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let data = format!("{}/", self.dir.join("data").display());
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&data)).collect();
        ensure!(left.is_empty(), "mounts are left: {left:?}");
        let mine = |it: &process::Process| {
            let line = it.cmdline();
            it.state != 'Z' && (line.contains("berth up") || line.contains(&data))
        };
        let left: Vec<_> = process::of_this_machine()
            .into_iter()
            .filter(mine)
            .collect();
        ensure!(left.is_empty(), "processes are left: {left:?}");
        Ok(())
    }

    /// After a failure: what the place does not take away itself.
    fn give_up(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        for name in self.names() {
            let parent = format!("berth-{name}");
            // first who would make anew what is taken away
            for one in process::of_this_machine() {
                if one.cmdline().contains(&name) && one.pid != std::process::id() as i32 {
                    process::kill_9(one.pid);
                }
            }
            process::eventually(Duration::from_secs(10), || {
                let all = process::in_cgroup(&parent);
                for one in &all {
                    process::kill_9(one.pid);
                }
                all.is_empty()
            });
            process::eventually(Duration::from_secs(2), || {
                cgroup::remove(&format!("/{parent}")).is_ok()
            });
        }
    }
}
