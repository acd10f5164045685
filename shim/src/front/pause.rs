//! A pause for shims that have none: a container of its own in a bundle that is made here, with nothing in its root but the pause.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use berth_engine::Pause;
use serde_json::{Value, json};

use crate::{bundle, error::Error};

/// Of the OCI runtime spec. What came after it is not asked of another shim, and crun before 1.9 takes no other.
const OCI_VERSION: &str = "1.0.2";

/// As `build.rs` has assembled it of pause.S.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
/// Nobody's ids: of no account of a node, and none of Kubernetes' own.
const NOBODY: u32 = 65535;

/// The cgroup of a pod's pause, as that of a container whose id is the pod's.
pub fn cgroup(pause: &Pause, pod_id: &str) -> String {
    let parent = pause.cgroup_parent.trim_end_matches('/');
    match pause.systemd_cgroup {
        true => {
            let slice = parent.rsplit('/').next().unwrap_or_default();
            format!("{slice}:berth:{pod_id}")
        }
        false => format!("{parent}/{pod_id}"),
    }
}

/// Writes the bundle. It is there already where a start is tried again.
pub fn write(dir: &Path, pod_id: &str, pause: &Pause) -> Result<(), Error> {
    let rootfs = dir.join("rootfs");
    let step = || format!("make the pause's bundle {}", dir.display());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(Error::io(step()))?;
    // Others than root look for the program in it. What is to be mounted on has to be there in a root that is read-only.
    for path in [rootfs.clone(), rootfs.join("proc"), rootfs.join("dev")] {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(step())(error));
            }
            _ => {}
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).map_err(Error::io(step()))?;
    }
    let program: PathBuf = rootfs.join("pause");
    if !program.exists() {
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o555)
            .open(&program)
            .and_then(|mut file| {
                file.write_all(PROGRAM)?;
                file.set_permissions(PermissionsExt::from_mode(0o555))
            })
            .map_err(Error::io(step()))?;
    }
    bundle::write(dir, &spec(pod_id, pause))
}

fn spec(pod_id: &str, pause: &Pause) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if let Some(netns) = &pause.netns {
        namespaces.push(json!({ "type": "network", "path": netns }));
    }
    for (new, kind) in [
        (pause.new_ipc, "ipc"),
        (pause.new_uts, "uts"),
        (pause.new_pid, "pid"),
    ] {
        if new {
            namespaces.push(json!({ "type": kind }));
        }
    }
    let sysctls: serde_json::Map<String, Value> = pause
        .sysctls
        .iter()
        .map(|(name, value)| (name.replace('/', "."), json!(value)))
        .collect();
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": { "uid": NOBODY, "gid": NOBODY },
            "args": ["/pause"],
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": { "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": [] },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": pod_id,
        },
        "linux": {
            "namespaces": namespaces,
            "sysctl": sysctls,
            "cgroupsPath": cgroup(pause, pod_id),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }], "cpu": { "shares": 2 } },
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/sched_debug", "/proc/scsi"],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if let Some(hostname) = &pause.hostname {
        spec["hostname"] = json!(hostname);
    }
    if let Some(score) = pause.oom_score_adj {
        spec["process"]["oomScoreAdj"] = json!(score);
    }
    spec
}

/// What a shim is told of a container by its spec: that it is one of the pod's, and whether it has a terminal. Answers its cgroup.
pub fn introduce(bundle: &Path, pod_id: &str, tty: bool) -> Result<Option<String>, Error> {
    let mut spec = bundle::read(bundle)?;
    let not_an_object = || Error::invalid("config.json", "it is not an object of objects");
    for (part, key, value) in [
        (
            "annotations",
            "io.kubernetes.cri.container-type",
            json!("container"),
        ),
        ("annotations", "io.kubernetes.cri.sandbox-id", json!(pod_id)),
        ("process", "terminal", json!(tty)),
    ] {
        spec.as_object_mut()
            .ok_or_else(not_an_object)?
            .entry(part)
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .ok_or_else(not_an_object)?
            .insert(key.into(), value);
    }
    spec["ociVersion"] = json!(OCI_VERSION);
    bundle::write(bundle, &spec)?;
    Ok(spec
        .pointer("/linux/cgroupsPath")
        .and_then(Value::as_str)
        .map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;

    #[test]
    fn the_pause_needs_nothing_of_its_root_and_stays_until_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "p", &Pause::default()).unwrap();
        write(dir.path(), "p", &Pause::default()).unwrap();
        let mut child = Command::new(dir.path().join("rootfs/pause"))
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let ignored = status
            .lines()
            .find(|line| line.starts_with("SigIgn"))
            .unwrap();
        let ignored = u64::from_str_radix(ignored.split_whitespace().nth(1).unwrap(), 16).unwrap();
        assert_eq!(ignored >> 16 & 1, 1, "SIGCHLD is ignored: {status}");
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(PROGRAM.len() < 2048, "{} bytes", PROGRAM.len());
    }

    #[test]
    fn the_pause_has_the_namespaces_that_were_asked_for_and_nothing_else() {
        let pause = Pause {
            hostname: Some("h".into()),
            netns: Some("/run/n".into()),
            new_ipc: true,
            new_uts: true,
            new_pid: false,
            sysctls: vec![("net/ipv4/ip_forward".into(), "1".into())],
            oom_score_adj: Some(-998),
            user: None,
            cgroup_parent: "/pods/a/".into(),
            systemd_cgroup: false,
        };
        let spec = spec("p", &pause);
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{ "type": "mount" }, { "type": "network", "path": "/run/n" }, { "type": "ipc" }, { "type": "uts" }])
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/pods/a/p");
        let by_systemd = Pause {
            cgroup_parent: "/a.slice/a-b.slice".into(),
            systemd_cgroup: true,
            ..Pause::default()
        };
        assert_eq!(cgroup(&by_systemd, "p"), "a-b.slice:berth:p");
        assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_forward"], "1");
        assert_eq!(spec["process"]["oomScoreAdj"], -998);
        assert_eq!(spec["process"]["capabilities"]["bounding"], json!([]));
    }
}
