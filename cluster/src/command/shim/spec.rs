use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use super::bundle::GROUPS;
use crate::error::Error;

/// The spec's version.
const OCI_VERSION: &str = "1.0.2";
/// What containerd and docker give a container that asks for nothing.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Make a bundle of a root directory: write a minimal config.json for it
#[derive(Debug, Args)]
pub struct Spec {
    /// The directory with the root file system
    rootfs: PathBuf,
    /// The bundle that the config.json is written into; made if it is not there
    #[arg(long, short, default_value = ".")]
    bundle: PathBuf,
    /// Write over a config.json that is there
    #[arg(long, short)]
    force: bool,
    /// With a terminal
    #[arg(long, short)]
    tty: bool,
    /// Its root file system can't be written to
    #[arg(long)]
    read_only: bool,
    /// On this machine's network, and not on one of its own with nothing but lo
    #[arg(long)]
    host_network: bool,
    /// The directory that it starts in
    #[arg(long, default_value = "/")]
    cwd: String,
    /// More of its environment
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Its cgroup; without it one by the container's id
    #[arg(long, value_name = "PATH")]
    cgroups_path: Option<String>,
    /// Containers of one group share a shim, as those of a pod do
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// The command and its arguments
    #[arg(last = true, default_value = "sh", value_name = "COMMAND")]
    command: Vec<String>,
}

impl Spec {
    pub fn run(self) -> Result<ExitCode, Error> {
        let path = self.bundle.join("config.json");
        let failed = |what, path: &PathBuf| {
            let path = path.clone();
            move |source| Error::File { what, path, source }
        };
        // Relative to the bundle is what it would be taken as.
        let rootfs =
            fs::canonicalize(&self.rootfs).map_err(failed("find root directory", &self.rootfs))?;
        fs::create_dir_all(&self.bundle).map_err(failed("make", &self.bundle))?;
        let text =
            serde_json::to_string_pretty(&self.spec(rootfs)).map_err(|error| Error::Format {
                format: "JSON",
                message: error.to_string(),
            })?;
        let mut options = fs::File::options();
        options.write(true);
        if self.force {
            options.create(true).truncate(true);
        } else {
            options.create_new(true);
        }
        options
            .open(&path)
            .and_then(|mut file| writeln!(file, "{text}"))
            .map_err(failed("write", &path))?;
        Ok(ExitCode::SUCCESS)
    }

    fn spec(&self, rootfs: PathBuf) -> Value {
        let mut env =
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        if self.tty {
            env.push("TERM=xterm".into());
        }
        env.extend(self.env.iter().cloned());
        let mut namespaces = vec![
            json!({"type": "pid"}),
            json!({"type": "ipc"}),
            json!({"type": "uts"}),
            json!({"type": "mount"}),
        ];
        if !self.host_network {
            namespaces.push(json!({"type": "network"}));
        }
        let mut spec = json!({
            "ociVersion": OCI_VERSION,
            "process": {
                "terminal": self.tty,
                "user": {"uid": 0, "gid": 0},
                "args": self.command,
                "env": env,
                "cwd": self.cwd,
                "capabilities": {
                    "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES
                },
                "noNewPrivileges": true,
            },
            "root": {"path": rootfs, "readonly": self.read_only},
            "hostname": "berth-shim",
            "mounts": [
                mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", "devpts",
                    &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
                mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
                mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "namespaces": namespaces,
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        if let Some(path) = &self.cgroups_path {
            spec["linux"]["cgroupsPath"] = json!(path);
        }
        if let Some(group) = &self.group {
            spec["annotations"] = json!({ GROUPS[0]: group });
        }
        spec
    }
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}
