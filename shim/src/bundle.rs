//! A container's bundle: its spec, with the pod's namespaces filled in.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use berth_proto::shim::v1::pod::{CreateOptions, NamespaceMode};
use serde_json::{Value, json};

use crate::error::Error;

/// A spec carries a seccomp profile and the image's environment: far below this. A larger file is no spec.
const MAX_SPEC_BYTES: u64 = 8 << 20;

/// What the shim needs to know of a spec after the container is made.
#[derive(Debug)]
pub struct Spec {
    /// `process` as JSON: what an exec starts from.
    pub process: Box<str>,
    pub cgroups_path: Option<String>,
    /// Its init is pid 1 of a namespace of its own: with it, the kernel ends the rest.
    pub own_pid_namespace: bool,
}

/// Which process holds the namespaces that the container joins.
#[derive(Debug, Clone, Copy)]
pub struct Holders {
    /// The pod's pause.
    pub pause: i32,
    /// Init of the container whose pid namespace is joined (`pid = TARGET`).
    pub target: Option<i32>,
    /// The network, ipc, uts and pid namespaces that are the pod's own; the rest of POD is the node's.
    pub pod_net: bool,
    pub pod_ipc: bool,
    pub pod_uts: bool,
    pub pod_pid: bool,
    /// The pod has a user namespace, which all of its containers join.
    pub pod_user: bool,
}

pub fn read(bundle: &Path) -> Result<Value, Error> {
    let path = bundle.join("config.json");
    let step = || format!("read {}", path.display());
    let meta = std::fs::symlink_metadata(&path).map_err(Error::io(step()))?;
    if !meta.is_file() || meta.len() > MAX_SPEC_BYTES {
        return Err(Error::invalid(
            path.display().to_string(),
            format!("not a regular file of at most {MAX_SPEC_BYTES} bytes"),
        ));
    }
    let bytes = std::fs::read(&path).map_err(Error::io(step()))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid(path.display().to_string(), error))
}

/// Replaces the spec whole: a create that is cut in the middle leaves the old one.
pub fn write(bundle: &Path, spec: &Value) -> Result<(), Error> {
    let (path, temporary) = (bundle.join("config.json"), bundle.join(".config.json.tmp"));
    let step = || format!("write {}", path.display());
    let bytes = serde_json::to_vec(spec).map_err(|error| Error::io(step())(error))?;
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(Error::io(step()))
}

/// What is needed of a spec later.
pub fn summary(spec: &Value) -> Result<Spec, Error> {
    let process = spec
        .get("process")
        .ok_or_else(|| Error::invalid("config.json", "it has no process"))?;
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    Ok(Spec {
        process: process.to_string().into(),
        cgroups_path: spec
            .pointer("/linux/cgroupsPath")
            .and_then(Value::as_str)
            .map(str::to_owned),
        own_pid_namespace: namespaces.is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == "pid" && one["path"].as_str().is_none_or(str::is_empty))
        }),
    })
}

/// Puts network, ipc, uts and pid into `linux.namespaces` as the modes say.
pub fn fill_namespaces(
    spec: &mut Value,
    modes: &CreateOptions,
    holders: Holders,
) -> Result<(), Error> {
    let pid = modes.pid.enum_value_or_default();
    let uts = modes.uts.enum_value_or_default();
    let kinds = [
        (
            "network",
            "net",
            modes.network.enum_value_or_default(),
            holders.pod_net,
        ),
        (
            "ipc",
            "ipc",
            modes.ipc.enum_value_or_default(),
            holders.pod_ipc,
        ),
        ("uts", "uts", uts, holders.pod_uts),
        ("pid", "pid", pid, holders.pod_pid),
    ];
    let linux = spec
        .as_object_mut()
        .ok_or_else(|| Error::invalid("config.json", "not an object"))?
        .entry("linux")
        .or_insert_with(|| json!({}));
    let linux = linux
        .as_object_mut()
        .ok_or_else(|| Error::invalid("config.json", "linux is not an object"))?;
    let namespaces = linux.entry("namespaces").or_insert_with(|| json!([]));
    let namespaces = namespaces
        .as_array_mut()
        .ok_or_else(|| Error::invalid("config.json", "linux.namespaces is not a list"))?;
    namespaces.retain(|one| one["type"] != "user");
    if holders.pod_user {
        let path = format!("/proc/{}/ns/user", holders.pause);
        namespaces.push(json!({ "type": "user", "path": path }));
    }
    namespaces.retain(|one| kinds.iter().all(|(kind, ..)| one["type"] != *kind));
    for (kind, link, mode, of_pod) in kinds {
        let holder = match mode {
            NamespaceMode::NODE => continue,
            NamespaceMode::POD if of_pod => holders.pause,
            // What the pod has not of its own is the node's; only the pid namespace of such a pod is a container's own.
            NamespaceMode::POD if kind != "pid" => continue,
            NamespaceMode::POD | NamespaceMode::CONTAINER => {
                namespaces.push(json!({ "type": kind }));
                continue;
            }
            NamespaceMode::TARGET if kind == "pid" => holders
                .target
                .ok_or_else(|| Error::invalid("target_id", "TARGET needs a running container"))?,
            NamespaceMode::TARGET => {
                return Err(Error::invalid(
                    format!("{kind} mode TARGET"),
                    "only the pid namespace can be another container's",
                ));
            }
        };
        namespaces.push(json!({ "type": kind, "path": format!("/proc/{holder}/ns/{link}") }));
    }
    // A name is set in the uts namespace that the container ends up in: in a shared one it would rename the pod, or the node.
    if uts != NamespaceMode::CONTAINER
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("hostname");
        spec.remove("domainname");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDERS: Holders = Holders {
        pause: 10,
        target: Some(20),
        pod_net: true,
        pod_ipc: true,
        pod_uts: true,
        pod_pid: false,
        pod_user: false,
    };

    fn modes(
        network: NamespaceMode,
        ipc: NamespaceMode,
        uts: NamespaceMode,
        pid: NamespaceMode,
    ) -> CreateOptions {
        CreateOptions {
            network: network.into(),
            ipc: ipc.into(),
            uts: uts.into(),
            pid: pid.into(),
            ..Default::default()
        }
    }

    fn filled(modes: &CreateOptions, holders: Holders) -> Result<Value, Error> {
        let mut spec = json!({
            "hostname": "h", "process": {},
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid", "path": "/proc/1/ns/pid" }] },
        });
        fill_namespaces(&mut spec, modes, holders)?;
        Ok(spec)
    }

    #[test]
    fn each_mode_becomes_the_namespace_it_names() {
        use NamespaceMode::{CONTAINER, NODE, POD, TARGET};
        for (modes, expected) in [
            (
                modes(POD, POD, POD, CONTAINER),
                json!([{ "type": "mount" }, { "type": "network", "path": "/proc/10/ns/net" }, { "type": "ipc", "path": "/proc/10/ns/ipc" },
                    { "type": "uts", "path": "/proc/10/ns/uts" }, { "type": "pid" }]),
            ),
            (modes(NODE, NODE, NODE, NODE), json!([{ "type": "mount" }])),
            (
                modes(NODE, CONTAINER, CONTAINER, TARGET),
                json!([{ "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "pid", "path": "/proc/20/ns/pid" }]),
            ),
        ] {
            assert_eq!(
                filled(&modes, HOLDERS).unwrap()["linux"]["namespaces"],
                expected
            );
        }
    }

    #[test]
    fn the_user_namespace_is_the_pods_or_none() {
        use NamespaceMode::NODE;
        for (pod_user, expected) in [
            (false, json!([{ "type": "mount" }])),
            (
                true,
                json!([{ "type": "mount" }, { "type": "user", "path": "/proc/10/ns/user" }]),
            ),
        ] {
            let mut spec =
                json!({ "linux": { "namespaces": [{ "type": "mount" }, { "type": "user" }] } });
            let holders = Holders {
                pod_user,
                ..HOLDERS
            };
            fill_namespaces(&mut spec, &modes(NODE, NODE, NODE, NODE), holders).unwrap();
            assert_eq!(spec["linux"]["namespaces"], expected);
        }
    }

    #[test]
    fn what_the_pod_has_not_of_its_own_is_the_nodes() {
        use NamespaceMode::POD;
        let none = Holders {
            pod_net: false,
            pod_ipc: false,
            pod_uts: false,
            ..HOLDERS
        };
        let spec = filled(&modes(POD, POD, POD, POD), none).unwrap();
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{ "type": "mount" }, { "type": "pid" }])
        );
        let shared = Holders {
            pod_pid: true,
            ..HOLDERS
        };
        let spec = filled(&modes(POD, POD, POD, POD), shared).unwrap();
        assert_eq!(spec["linux"]["namespaces"][4]["path"], "/proc/10/ns/pid");
        assert!(!summary(&spec).unwrap().own_pid_namespace);
    }

    #[test]
    fn a_container_can_not_rename_the_pod_or_the_node() {
        use NamespaceMode::{CONTAINER, NODE, POD};
        for (uts, kept) in [(POD, false), (NODE, false), (CONTAINER, true)] {
            let spec = filled(&modes(POD, POD, uts, CONTAINER), HOLDERS).unwrap();
            assert_eq!(spec.get("hostname").is_some(), kept, "{uts:?}");
        }
    }

    #[test]
    fn target_is_for_the_pid_namespace_of_a_running_container_only() {
        use NamespaceMode::{POD, TARGET};
        assert!(filled(&modes(TARGET, POD, POD, POD), HOLDERS).is_err());
        assert!(
            filled(
                &modes(POD, POD, POD, TARGET),
                Holders {
                    target: None,
                    ..HOLDERS
                }
            )
            .is_err()
        );
    }
}
