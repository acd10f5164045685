//! The place where cases run: an engine, a busybox root, and specs made by hand.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_engine::{
    Config, Create, Engine, Error, Exec, Launched, Maker, Process, Stdio, Zygote, cgroup::Cgroup,
};
use berth_kernel::pidfd::{self, Exit};
use serde_json::{Value, json};

/// Longer than anything here takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// busybox's commands that cases use.
const APPLETS: [&str; 24] = [
    "sh", "sleep", "cat", "echo", "id", "ls", "mount", "touch", "true", "hostname", "pwd", "stat",
    "dd", "mkdir", "kill", "readlink", "sysctl", "swapoff", "tail", "tty", "env", "chroot",
    "umount", "mknod",
];

pub struct World {
    pub directory: tempfile::TempDir,
    pub zygote: Arc<Zygote>,
    pub engine: Box<dyn Engine>,
    pub config: Config,
    next: u32,
    descriptors: usize,
}

/// A container's id and its bundle.
pub struct Bundle {
    pub id: String,
    pub path: PathBuf,
}

impl World {
    pub fn new() -> World {
        let zygote = Arc::new(Zygote::spawn().expect("launcher"));
        let directory = tempfile::Builder::new()
            .prefix("berth-engine-")
            .tempdir()
            .expect("directory");
        let config = Config {
            state_dir: directory.path().join("state"),
            seccomp_cache_dir: Some(directory.path().join("seccomp")),
            maker: Maker::default(),
        };
        let engine = Box::new(Launched::new(config.clone(), Arc::clone(&zygote)).expect("engine"));
        let root = directory.path().join("root");
        for name in [
            "bin", "dev", "proc", "sys", "tmp", "etc", "root", "work", "volume",
        ] {
            fs::create_dir_all(root.join(name)).expect("root");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("applet");
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .expect("passwd");
        fs::write(root.join("bin/not-executable"), "x").expect("file");
        fs::write(root.join("bin/nonsense"), "\x7fnot an ELF").expect("file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(root.join("bin/nonsense"), mode).expect("mode");
        let descriptors = descriptors();
        World {
            directory,
            zygote,
            engine,
            config,
            next: 0,
            descriptors,
        }
    }

    /// The cases that follow are made by it.
    pub fn choose(&mut self, maker: Maker) {
        self.config.maker = maker;
        let engine = Launched::new(self.config.clone(), Arc::clone(&self.zygote));
        self.engine = Box::new(engine.expect("engine"));
    }

    /// The cgroup below which this run's containers are.
    pub fn cgroup_parent(&self) -> String {
        format!("/berth-test-engine-{}", std::process::id())
    }

    /// A bundle with a root of its own; `change` gets the spec before it is written.
    pub fn bundle(&mut self, args: &[&str], change: impl FnOnce(&mut Value)) -> Bundle {
        self.next += 1;
        let id = format!("c{}-{}", std::process::id(), self.next);
        let path = self.directory.path().join("bundles").join(&id);
        let root = path.join("rootfs");
        copy_tree(&self.directory.path().join("root"), &root);
        let mut spec = spec(args, &format!("{}/{id}", self.cgroup_parent()));
        change(&mut spec);
        fs::write(path.join("config.json"), spec.to_string()).expect("config.json");
        Bundle { id, path }
    }

    pub fn create(&self, bundle: &Bundle, stdio: Stdio) -> Result<Process, Error> {
        self.engine.create(Create {
            id: bundle.id.clone(),
            bundle: bundle.path.clone(),
            stdio,
            tty: false,
            systemd_cgroup: false,
            restore: None,
        })
    }

    /// Creates and starts.
    pub fn up(&self, bundle: &Bundle) -> Process {
        let process = self.create(bundle, Stdio::default()).expect("create");
        self.engine.start(&bundle.id).expect("start");
        process
    }

    /// Runs a container to its end: exit and output of both streams.
    pub fn run(&mut self, args: &[&str], change: impl FnOnce(&mut Value)) -> (Exit, String) {
        let bundle = self.bundle(args, change);
        let (output, stdio) = captured();
        let process = self.create(&bundle, stdio).expect("create");
        self.engine.start(&bundle.id).expect("start");
        let text = read_all(output);
        let exit = wait(&process);
        self.down(&bundle);
        (exit, text)
    }

    /// Runs an exec to its end.
    pub fn exec(
        &self,
        bundle: &Bundle,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Result<(Exit, String), Error> {
        let (output, stdio) = captured();
        let process = self.exec_start(bundle, args, stdio, change)?;
        let text = read_all(output);
        Ok((wait(&process), text))
    }

    pub fn exec_start(
        &self,
        bundle: &Bundle,
        args: &[&str],
        stdio: Stdio,
        change: impl FnOnce(&mut Value),
    ) -> Result<Process, Error> {
        let text = fs::read_to_string(bundle.path.join("config.json")).expect("config.json");
        let spec: Value = serde_json::from_str(&text).expect("spec");
        let mut process = spec["process"].clone();
        process["args"] = json!(args);
        change(&mut process);
        let process = serde_json::from_value(process).expect("process");
        self.engine.exec(Exec {
            container_id: bundle.id.clone(),
            process,
            stdio,
            tty: false,
        })
    }

    /// Kills, reaps, deletes and removes.
    pub fn finish(&self, bundle: &Bundle, process: &Process) {
        self.engine.kill(&bundle.id, 9, false).expect("kill");
        wait(process);
        self.down(bundle);
    }

    pub fn down(&self, bundle: &Bundle) {
        self.engine.delete(&bundle.id).expect("delete");
        fs::remove_dir_all(&bundle.path).expect("bundle");
    }

    pub fn cgroup(&self, bundle: &Bundle) -> Cgroup {
        Cgroup::at(&format!("{}/{}", self.cgroup_parent(), bundle.id)).expect("path")
    }

    /// The invariants after each case.
    pub fn assert_nothing_left(&mut self) {
        let children = children();
        assert_eq!(
            children,
            BTreeSet::from([self.zygote.pid()]),
            "children other than the launcher"
        );
        let parent = Cgroup::at(&self.cgroup_parent()).expect("path");
        for directory in parent.directories().expect("hierarchies") {
            let below: Vec<PathBuf> = fs::read_dir(&directory)
                .map(|entries| {
                    entries
                        .flatten()
                        .map(|e| e.path())
                        .filter(|p| p.is_dir())
                        .collect()
                })
                .unwrap_or_default();
            assert!(below.is_empty(), "cgroups left: {below:?}");
        }
        assert_eq!(
            files(&self.config.state_dir),
            Vec::<PathBuf>::new(),
            "files left"
        );
        assert_eq!(
            files(&self.directory.path().join("bundles")),
            Vec::<PathBuf>::new(),
            "bundles left"
        );
        assert_eq!(mounts(self.directory.path()), 0, "mounts");
        assert_eq!(descriptors(), self.descriptors, "descriptors");
        // It closes its copy of a request's socket after its last word.
        until("the launcher's four descriptors", || {
            open_descriptors(self.zygote.pid()).len() == 4
        });
    }

    /// After a failed case: whatever is left goes, so that the next one is judged on its own.
    pub fn sweep(&mut self) {
        let parent = Cgroup::at(&self.cgroup_parent()).expect("path");
        let _ = parent.kill();
        let until = Instant::now() + DEADLINE;
        // Round and round: pid 1 of a namespace ends only after all that live in it are reaped.
        while Instant::now() < until {
            let mut left: Vec<i32> = children().into_iter().collect();
            left.retain(|child| *child != self.zygote.pid());
            if left.is_empty() {
                break;
            }
            for child in left {
                if let Ok(process) = pidfd::open(child) {
                    let _ = pidfd::send_signal(&process, 9);
                    let _ = pidfd::try_wait(&process);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = parent.remove();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mountinfo
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(4))
        {
            if Path::new(mount).starts_with(self.directory.path()) {
                let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
            }
        }
        for directory in [
            self.config.state_dir.clone(),
            self.directory.path().join("bundles"),
        ] {
            for path in files(&directory) {
                let _ = fs::remove_dir_all(path);
            }
        }
        self.descriptors = descriptors();
    }

    pub fn end(self) {
        let parent = Cgroup::at(&self.cgroup_parent()).expect("path");
        parent.remove().expect("cgroup");
    }
}

/// A pipe, and streams that write to it.
pub fn captured() -> (OwnedFd, Stdio) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let stdio = Stdio {
        stdin: None,
        stdout: Some(write.try_clone().expect("dup")),
        stderr: Some(write),
    };
    (read, stdio)
}

pub fn read_all(from: OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(from)
        .read_to_string(&mut text)
        .expect("output");
    text
}

pub fn wait(process: &Process) -> Exit {
    wait_fd(&process.pidfd)
}

pub fn wait_fd(pidfd: &impl AsFd) -> Exit {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(exit) = pidfd::try_wait(pidfd).expect("our child") {
            return exit;
        }
        assert!(Instant::now() < until, "a process does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A field of /proc/<pid>/status.
pub fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{key} in {text}"))
        .trim()
        .to_owned()
}

pub fn namespace(pid: &str, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("namespace")
}

/// What the descriptors of a process are.
pub fn open_descriptors(pid: i32) -> Vec<(i32, String)> {
    let mut found: Vec<(i32, String)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("fd")
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((
                number,
                fs::read_link(entry.path())
                    .ok()?
                    .to_string_lossy()
                    .into_owned(),
            ))
        })
        .collect();
    found.sort();
    found
}

fn children() -> BTreeSet<i32> {
    let me = std::process::id();
    let mut all = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{me}/task"))
        .expect("tasks")
        .flatten()
    {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    all
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("fd").count()
}

fn mounts(below: &Path) -> usize {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| Path::new(point).starts_with(below))
        .count()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("directory");
    for entry in fs::read_dir(from).expect("tree").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("kind");
        if kind.is_dir() {
            copy_tree(&source, &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source).expect("link"), &target)
                .expect("link");
        } else {
            fs::hard_link(&source, &target).expect("file");
        }
    }
}

/// The capabilities a container has by default.
pub const CAPABILITIES: [&str; 5] = [
    "CAP_CHOWN",
    "CAP_KILL",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_NET_BIND_SERVICE",
];

/// The same as bits.
pub const CAPABILITY_BITS: u64 = 1 | 1 << 5 | 1 << 7 | 1 << 6 | 1 << 10;

/// A profile of the usual kind, cut short: what is named fails, with unknown names among it.
pub fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["sethostname", "a_call_of_the_far_future"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        ],
    })
}

/// A spec like the one a CRI server makes.
pub fn spec(args: &[&str], cgroup: &str) -> Value {
    let sets = json!(CAPABILITIES);
    json!({
        "ociVersion": "1.2.0",
        "hostname": "berth-suite",
        "root": {"path": "rootfs", "readonly": false},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": args,
            "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": sets, "effective": sets, "permitted": sets, "inheritable": [], "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000}],
            "oomScoreAdj": 500,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=1024k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp(),
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            },
        },
    })
}
