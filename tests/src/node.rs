//! A node for one test: a machine of its own, a registry, a host tree that nothing may touch, and a daemon. Started fresh, checked at
//! the end, and taken away whatever the test did.

use std::{
    collections::BTreeSet,
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerConfig, DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    PodSandboxConfig, PodSandboxMetadata,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{
    canary::Canary,
    cgroup,
    cri::Cri,
    daemon::Daemon,
    debian,
    host::Snapshot,
    invariant, machine, process,
    registry::{ADDRESS, Registry, write_mirrors},
    request::runtime_default,
    systemd,
};

/// The registries whose names resolve to the test's own.
pub(crate) const MIRRORED: [&str; 5] = [
    "docker.io",
    "registry.k8s.io",
    "quay.io",
    "gcr.io",
    "localhost:5000",
];
/// Names the shim of each node's default handler, where it is not to be Berth's own.
const HANDLER_VARIABLE: &str = "BERTH_TEST_SHIM";
/// The built-in bridge's default name.
pub const BRIDGE: &str = "berth0";

/// How a test's node differs from the plain one.
#[derive(Debug, Default)]
pub struct Setup {
    /// `FAILPOINTS` of the first start.
    pub failpoints: String,
    /// The root directory is a tmpfs of so many bytes.
    pub root_bytes: Option<u64>,
    /// … and holds so many files and directories.
    pub root_inodes: Option<u64>,
    /// The daemon starts with umask 0.
    pub umask_zero: bool,
    /// Descriptors that the daemon inherits.
    pub inherited: Vec<OwnedFd>,
    /// More flags of the daemon.
    pub arguments: Vec<String>,
    /// More variables of the daemon; `$DIR` is the test's directory.
    pub environment: Vec<(String, String)>,
    /// Cgroups are made by systemd, which is PID 1 (see [`crate::systemd`]). Also with `BERTH_TEST_CGROUP_DRIVER=systemd`.
    pub by_systemd: bool,
    /// No kill -9 and second check at the end: for tests that do so all the time.
    pub no_restart: bool,
    /// More lines of configuration, whole tables; `$DIR` is the test's directory.
    pub config: String,
    /// More lines of the table `[network]`.
    pub network: String,
    /// More lines of the table `[nri]`, and tables below it.
    pub nri: String,
    /// What the machine has before the daemon comes; it is given the test's directory.
    pub before: Option<fn(&Path) -> Result<()>>,
}

#[derive(Debug)]
pub struct Node {
    pub dir: PathBuf,
    /// The cgroup parent that the daemon puts pods under.
    pub cgroup_parent: String,
    pub cri: Cri,
    pub canary: Canary,
    pub registry: Registry,
    pub host: Snapshot,
    pub daemon: Daemon,
    setup: Setup,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: String,
    pub config: PodSandboxConfig,
}

impl Node {
    /// Runs `test` on a plain node, then the invariants.
    pub fn test(test: impl AsyncFnOnce(&mut Node) -> Result<()>) -> Result<()> {
        Self::test_with(Setup::default(), test)
    }

    pub fn test_with(setup: Setup, test: impl AsyncFnOnce(&mut Node) -> Result<()>) -> Result<()> {
        let images = debian::storage()?;
        machine::isolate()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let by_systemd = setup.by_systemd || systemd::is_wanted();
            let mut place = Place::make(by_systemd)?;
            let outcome = async {
                let mut node = Node::start(&place, &images, setup).await?;
                test(&mut node).await?;
                invariant::at_the_end(&mut node)
                    .await
                    .context("after the test")?;
                drop(node);
                Ok(())
            }
            .await;
            place.failed = outcome.is_err();
            outcome
        })
    }

    async fn start(place: &Place, images: &Path, mut setup: Setup) -> Result<Self> {
        let dir = place.dir.clone();
        let storage = dir.join("storage");
        for part in ["lib", "run", "logs", "certs.d", "cni", "volumes"] {
            fs::create_dir_all(dir.join(part))?;
        }
        mount_storage(&dir, images)?;
        if let Some(bytes) = setup.root_bytes {
            let mut options = format!("size={bytes},mode=0700");
            if let Some(inodes) = setup.root_inodes {
                options.push_str(&format!(",nr_inodes={inodes}"));
            }
            mount(
                Some("tmpfs"),
                &dir.join("lib"),
                Some("tmpfs"),
                MsFlags::empty(),
                Some(options.as_str()),
            )
            .context("mount a small root")?;
        }
        let registry = Registry::start(&dir.join("registry"), &storage, ADDRESS, false)?;
        write_mirrors(&dir.join("certs.d"), &MIRRORED, ADDRESS)?;
        let canary = Canary::plant(&dir.join("canary"))?;
        let config = format!(
            "[image]\nhosts_dir = \"{0}/certs.d\"\n\n[cgroup]\nparent = \"{1}\"\n\n[network]\ncni_conf_dir = \"{0}/cni\"\nbridge = \"{BRIDGE}\"\n{3}\n\n[nri]\nsocket = \"{0}/nri/nri.sock\"\nplugin_dir = \"{0}/nri-plugins\"\nplugin_config_dir = \"{0}/nri-conf.d\"\n{4}\n\n{2}",
            dir.display(),
            place.cgroup_parent,
            setup.config.replace("$DIR", &dir.display().to_string()),
            setup.network.replace("$DIR", &dir.display().to_string()),
            setup.nri,
        );
        // The whole suite can be asked of a node whose pods another shim serves.
        let config = match std::env::var(HANDLER_VARIABLE) {
            Ok(shim) if !config.contains("[runtime") => format!(
                "{config}\n[runtime]\ndefault_handler = \"other\"\n[runtime.handlers.berth]\n[runtime.handlers.other]\nshim = {shim:?}\n"
            ),
            _ => config,
        };
        if let Some(before) = setup.before {
            before(&dir).context("prepare the machine")?;
        }
        let host = Snapshot::take();
        let mut daemon = Daemon::new(&dir, &config)?;
        daemon.failpoints = std::mem::take(&mut setup.failpoints);
        daemon.inherited = std::mem::take(&mut setup.inherited);
        daemon.arguments = std::mem::take(&mut setup.arguments);
        for (name, value) in std::mem::take(&mut setup.environment) {
            let value = value.replace("$DIR", &dir.display().to_string());
            daemon.environment.push((name, value));
        }
        let umask = setup
            .umask_zero
            .then(|| nix::sys::stat::umask(nix::sys::stat::Mode::empty()));
        let spawned = daemon.spawn();
        if let Some(umask) = umask {
            nix::sys::stat::umask(umask);
        }
        spawned?;
        let cri = daemon.ready().await?;
        daemon.failpoints = String::new();
        Ok(Self {
            dir,
            cgroup_parent: place.cgroup_parent.clone(),
            cri,
            canary,
            registry,
            host,
            daemon,
            setup,
        })
    }

    pub fn restarts_at_the_end(&self) -> bool {
        !self.setup.no_restart
    }

    /// Starts the daemon again, after it was killed or died.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon.kill_9();
        self.daemon.spawn()?;
        self.cri = self.daemon.ready().await?.remembering(&self.cri);
        Ok(())
    }

    /// A directory of the test's own on the host, to be mounted into containers.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("volumes").join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A pod as the kubelet asks for it: its own network and ipc namespace, containers with pid namespaces of their own.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let uid = format!("{:032x}", rand::random::<u128>());
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: uid.clone(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self
                .dir
                .join("logs")
                .join(format!("default_{name}_{uid}"))
                .display()
                .to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["192.0.2.53".into()],
                searches: vec!["svc.test".into()],
                options: vec!["ndots:5".into()],
            }),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(berth_proto::cri::NamespaceOption {
                        pid: berth_proto::cri::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A cgroup parent for a pod that names its own, below this test's.
    pub fn own_cgroup_parent(&self, name: &str) -> String {
        match self.cgroup_parent.ends_with(".slice") {
            true => systemd::slice_below(&self.cgroup_parent, name),
            false => format!("{}/{name}", self.cgroup_parent),
        }
    }

    pub async fn run(&self, config: PodSandboxConfig) -> Result<Pod> {
        // The kubelet makes the pod's log directory before it asks for the pod, and those of the containers before these.
        fs::create_dir_all(&config.log_directory)?;
        let id = self.cri.run_pod(&config).await.context("RunPodSandbox")?;
        Ok(Pod { id, config })
    }

    /// Creates a container (and pulls its image first, where it is not there).
    pub async fn create(&self, pod: &Pod, config: &ContainerConfig) -> Result<String> {
        let image = config
            .image
            .as_ref()
            .map(|spec| spec.image.clone())
            .unwrap_or_default();
        if self.cri.image(&image).await?.is_none() {
            self.cri
                .pull(&image)
                .await
                .with_context(|| format!("PullImage {image}"))?;
        }
        if let Some(dir) = self.log_path(pod, config).parent() {
            fs::create_dir_all(dir)?;
        }
        self.cri
            .create(&pod.id, config, &pod.config)
            .await
            .context("CreateContainer")
    }

    /// Creates and starts a container.
    pub async fn start_container(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let id = self.create(pod, &config).await?;
        self.cri.start(&id).await.context("StartContainer")?;
        Ok(id)
    }

    /// Runs a container to its end: its exit code and what it wrote to standard output.
    pub async fn outcome(&self, pod: &Pod, config: ContainerConfig) -> Result<(i32, String)> {
        let id = self.start_container(pod, config.clone()).await?;
        let status = self.cri.wait_exit(&id).await?;
        Ok((status.exit_code, self.log_text(pod, &config, "stdout")?))
    }

    pub fn log_path(&self, pod: &Pod, config: &ContainerConfig) -> PathBuf {
        Path::new(&pod.config.log_directory).join(&config.log_path)
    }

    /// What a container wrote to `stream`, put together from its CRI log.
    pub fn log_text(&self, pod: &Pod, config: &ContainerConfig, stream: &str) -> Result<String> {
        let path = self.log_path(pod, config);
        let log = fs::read(&path).with_context(|| format!("read the log {}", path.display()))?;
        Ok(String::from_utf8_lossy(&parse_log(&log, stream)?).into_owned())
    }

    /// Removes every pod over the CRI.
    pub async fn remove_all(&self) -> Result<()> {
        for pod in self.cri.pods(None).await? {
            self.cri
                .stop_pod(&pod.id)
                .await
                .with_context(|| format!("StopPodSandbox {}", pod.id))?;
            self.cri
                .remove_pod(&pod.id)
                .await
                .with_context(|| format!("RemovePodSandbox {}", pod.id))?;
        }
        Ok(())
    }

    /// Imports an archive with the `berth` command, as a person would.
    pub fn import(&self, archive: &Path) -> Result<String> {
        self.berth(&["image", "import", &archive.display().to_string()])
    }

    /// Runs the `berth` command against this node's daemon; its output, where it succeeded.
    pub fn berth(&self, args: &[&str]) -> Result<String> {
        let out = std::process::Command::new(crate::daemon::bin_dir()?.join("berth"))
            .arg("--endpoint")
            .arg(format!("unix://{}", self.daemon.socket().display()))
            .args(args)
            .output()
            .context("run berth")?;
        ensure!(
            out.status.success(),
            "berth {args:?}: {}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// What `berth audit` would print.
    pub fn audit(&self) -> Result<Vec<berth_state::audit::Finding>> {
        Ok(berth_state::audit::audit(
            &self.daemon.root,
            &self.daemon.state,
        )?)
    }
}

/// The bytes of one stream out of a CRI log; every line must be well-formed.
pub fn parse_log(log: &[u8], stream: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (time, name, tag, content) =
            (fields.next(), fields.next(), fields.next(), fields.next());
        let (Some(time), Some(name), Some(tag), Some(content)) = (time, name, tag, content) else {
            anyhow::bail!(
                "a log line without its four fields: {:?}",
                String::from_utf8_lossy(line)
            );
        };
        let time = String::from_utf8_lossy(time);
        ensure!(
            time.len() >= 20 && time.contains('T') && time.contains('.'),
            "a log line without a timestamp: {time:?}"
        );
        ensure!(
            matches!(name, b"stdout" | b"stderr"),
            "a log line of the stream {:?}",
            String::from_utf8_lossy(name)
        );
        let content = content
            .strip_suffix(b"\n")
            .with_context(|| format!("a log line without its end: {time}"))?;
        if name == stream.as_bytes() {
            out.extend_from_slice(content);
            match tag {
                b"F" => out.push(b'\n'),
                b"P" => {}
                other => anyhow::bail!(
                    "a log line with the tag {:?}",
                    String::from_utf8_lossy(other)
                ),
            }
        }
    }
    Ok(out)
}

/// The registry's storage, in `dir`/storage: every test may push to its registry, and writes to a layer over the images that all share.
pub(crate) fn mount_storage(dir: &Path, images: &Path) -> Result<()> {
    for part in ["storage", "storage-upper", "storage-work"] {
        fs::create_dir_all(dir.join(part))?;
    }
    let overlay = format!(
        "lowerdir={},upperdir={},workdir={}",
        images.display(),
        dir.join("storage-upper").display(),
        dir.join("storage-work").display()
    );
    mount(
        Some("overlay"),
        &dir.join("storage"),
        Some("overlay"),
        MsFlags::empty(),
        Some(overlay.as_str()),
    )
    .context("mount the registry's storage")
}

/// The directory, cgroups and processes of one test; taken away on drop.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) cgroup_parent: String,
    pub(crate) failed: bool,
}

/// Directories of tests: short, for the sockets in them must have paths below 108 bytes.
const PREFIX: &str = "/tmp/bt-";

impl Place {
    pub(crate) fn make(by_systemd: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let tag = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = PathBuf::from(format!("{PREFIX}{tag}"));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        // Containers with other users reach their volumes through here; what must be closed lies below with modes of its own.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            dir,
            cgroup_parent: match by_systemd {
                true => systemd::slice_of(&tag),
                false => format!("/berth-test-{tag}"),
            },
            failed: true,
        })
    }

    /// The last words of the daemon and of the shims, for whoever reads why a test failed.
    fn tell(&self) {
        let mut logs = vec![self.dir.join("berthd.log")];
        for pod in fs::read_dir(self.dir.join("run/pods"))
            .into_iter()
            .flatten()
            .flatten()
        {
            logs.push(pod.path().join("shim.log"));
        }
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- the end of {}", log.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.failed {
            self.tell();
        }
        if self.failed && std::env::var_os("BERTH_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
            return;
        }
        let machine: BTreeSet<i32> =
            if machine::mount_namespace("thread-self") == machine::mount_namespace("1") {
                BTreeSet::new()
            } else {
                process::of_this_machine()
                    .iter()
                    .map(|process| process.pid)
                    .collect()
            };
        clean(&self.dir, &self.cgroup_parent, machine);
    }
}

/// Takes away what tests left that were killed.
fn sweep() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(tag) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) else {
            continue;
        };
        let Some(owner) = tag
            .split('-')
            .next()
            .and_then(|pid| pid.parse::<i32>().ok())
        else {
            continue;
        };
        if process::Process::read(owner).is_some() {
            continue;
        }
        let mine = |process: &process::Process| {
            let cwd = fs::read_link(format!("/proc/{}/cwd", process.pid)).unwrap_or_default();
            cwd.starts_with(&path) || process.cmdline().contains(&format!("{}/", path.display()))
        };
        let processes = process::all()
            .into_iter()
            .filter(mine)
            .map(|process| process.pid)
            .collect();
        systemd::forget(&systemd::slice_of(tag));
        clean(&path, &format!("/berth-test-{tag}"), processes);
    }
}

/// Kills these processes and what descends from them or sits in the cgroups, and removes cgroups, mounts and the directory.
fn clean(dir: &Path, cgroup_parent: &str, mut doomed: BTreeSet<i32>) {
    doomed.extend(
        process::descendants(&doomed)
            .into_iter()
            .map(|process| process.pid),
    );
    doomed.extend(
        process::in_cgroup(cgroup_parent.trim_start_matches('/'))
            .into_iter()
            .map(|process| process.pid),
    );
    doomed.remove(&(std::process::id() as i32));
    for pid in &doomed {
        process::kill_9(*pid);
    }
    let alive =
        |pid: &i32| process::Process::read(*pid).is_some_and(|process| process.state != 'Z');
    process::eventually(Duration::from_secs(5), || !doomed.iter().any(alive));
    process::eventually(Duration::from_secs(2), || {
        cgroup::remove(cgroup_parent).is_ok()
    });
    systemd::forget(cgroup_parent);
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let prefix = format!("{}/", dir.display());
    for target in mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|target| target.starts_with(&prefix))
    {
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("{} can't be removed: {error}", dir.display());
    }
}
