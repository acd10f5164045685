//! A sandbox as containerd 2 asks for it (`sandboxer = "shim"`): the CRI's own PodSandboxConfig as the options of CreateSandbox. The built-in
//! pause is the sandbox; what containerd leaves to the shim then is made here: the pod's hostname, hosts, resolv.conf and /dev/shm, in
//! the sandbox's bundle, and their mounts in the spec of each container that has none of its own there.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use berth_proto::shim::v1::{
    pod::{IdMapping, NamespaceMode, SandboxOptions},
    sandbox_config::{
        DNSConfig, IDMapping, NamespaceMode as CriMode, PodSandboxConfig, SELinuxOption,
    },
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::error::Error;

/// What the type of the options is called.
pub const CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// What a pod may have in /dev/shm, as under every runtime of Kubernetes.
const SHM: &str = "mode=1777,size=65536k";
/// resolv.conf(5): more are not read, and no line is longer.
const MAX_LINE_BYTES: usize = 4096;
const MAX_DNS_ENTRIES: usize = 64;

/// The pod's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    dir: PathBuf,
    /// Its ipc namespace is the node's, and so is its shared memory.
    node_ipc: bool,
    /// `uidMappings` and `gidMappings` of the mounts.
    maps: Option<(Value, Value)>,
}

/// What the shim's own options are for this configuration. What can't be done is refused by name.
pub fn options(config: &PodSandboxConfig) -> Result<SandboxOptions, Error> {
    let linux = config.linux.get_or_default();
    let security = linux.security_context.get_or_default();
    let namespaces = security.namespace_options.get_or_default();
    if let Some(label) = security.selinux_options.as_ref()
        && *label != SELinuxOption::default()
    {
        return Err(Error::invalid(
            "selinux_options of the sandbox",
            "SELinux is not built",
        ));
    }
    let mode = |name: &str, mode: protobuf::EnumOrUnknown<CriMode>| match mode.enum_value() {
        Ok(CriMode::POD) => Ok(NamespaceMode::POD),
        Ok(CriMode::NODE) => Ok(NamespaceMode::NODE),
        // Of the containers; the pod has none then.
        Ok(CriMode::CONTAINER) if name == "pid" => Ok(NamespaceMode::CONTAINER),
        _ => Err(Error::invalid(
            format!("{name} namespace of the sandbox"),
            "a sandbox has its own or the node's",
        )),
    };
    let network = mode("network", namespaces.network)?;
    let (uids, gids) = match namespaces.userns_options.as_ref() {
        Some(user) if user.mode == CriMode::POD.into() => (maps(&user.uids), maps(&user.gids)),
        Some(user) if user.mode != CriMode::NODE.into() => {
            return Err(Error::invalid(
                "user namespace of the sandbox",
                "a sandbox has its own or the node's",
            ));
        }
        _ => Default::default(),
    };
    Ok(SandboxOptions {
        hostname: config.hostname.clone(),
        ipc: mode("ipc", namespaces.ipc)?.into(),
        // A pod on the node's network has its name, too.
        uts: network.into(),
        pid: mode("pid", namespaces.pid)?.into(),
        sysctls: linux.sysctls.clone(),
        cgroup_parent: linux.cgroup_parent.clone(),
        uids,
        gids,
        ..Default::default()
    })
}

fn maps(given: &[IDMapping]) -> Vec<IdMapping> {
    let one = |given: &IDMapping| IdMapping {
        host_id: given.host_id,
        container_id: given.container_id,
        length: given.length,
        ..Default::default()
    };
    given.iter().map(one).collect()
}

/// Writes the pod's files into `bundle`. Idempotent.
pub fn make_files(
    bundle: &Path,
    config: &PodSandboxConfig,
    options: &SandboxOptions,
) -> Result<Files, Error> {
    let write = |name: &str, text: &[u8]| {
        let path = bundle.join(name);
        fs::write(&path, text).map_err(Error::io(format!("write {}", path.display())))
    };
    let node = |path: &str| fs::read(path).map_err(Error::io(format!("read {path}")));
    let own_name = options.uts == NamespaceMode::POD.into() && !config.hostname.is_empty();
    let hostname = if own_name {
        format!("{}\n", config.hostname).into_bytes()
    } else {
        node("/proc/sys/kernel/hostname")?
    };
    write("hostname", &hostname)?;
    write("hosts", &node("/etc/hosts").unwrap_or_default())?;
    let resolv = match config.dns_config.as_ref() {
        Some(dns) if *dns != DNSConfig::default() => resolv_conf(dns)?.into_bytes(),
        _ => node("/etc/resolv.conf").unwrap_or_default(),
    };
    write("resolv.conf", &resolv)?;
    let node_ipc = options.ipc == NamespaceMode::NODE.into();
    let shm = bundle.join("shm");
    if !node_ipc && !shm.exists() {
        let step = || format!("mount {}", shm.display());
        DirBuilder::new()
            .mode(0o700)
            .create(&shm)
            .map_err(Error::io(step()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM)).map_err(Error::io(step()))?;
    }
    let list = |maps: &[IdMapping]| {
        let one = |map: &IdMapping| json!({ "containerID": map.container_id, "hostID": map.host_id, "size": map.length });
        maps.iter().map(one).collect::<Value>()
    };
    let has_maps = !options.uids.is_empty();
    Ok(Files {
        dir: bundle.to_owned(),
        node_ipc,
        maps: has_maps.then(|| (list(&options.uids), list(&options.gids))),
    })
}

/// resolv.conf(5) of a pod's DNS configuration.
fn resolv_conf(dns: &DNSConfig) -> Result<String, Error> {
    let mut text = String::new();
    for (name, words) in [
        ("servers", &dns.servers),
        ("searches", &dns.searches),
        ("options", &dns.options),
    ] {
        let plain = |word: &String| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic()) && word.len() < 256
        };
        if words.len() > MAX_DNS_ENTRIES || !words.iter().all(plain) {
            return Err(Error::invalid(
                format!("{name} of the DNS configuration"),
                format!("not at most {MAX_DNS_ENTRIES} plain words"),
            ));
        }
    }
    let mut line = |keyword: &str, words: &[String]| {
        if !words.is_empty() {
            let line = format!("{keyword} {}", words.join(" "));
            text.push_str(&line[..line.len().min(MAX_LINE_BYTES)]);
            text.push('\n');
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    Ok(text)
}

impl Files {
    /// Unmounts what was mounted. Idempotent.
    pub fn remove(&self) -> Result<(), Error> {
        let shm = self.dir.join("shm");
        if self.node_ipc || !shm.exists() {
            return Ok(());
        }
        match umount2(&shm, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // No mount any more.
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(errno) => {
                let step = format!("unmount {}", shm.display());
                return Err(Error::io(step)(std::io::Error::from(errno)));
            }
        }
        fs::remove_dir(&shm).map_err(Error::io(format!("remove {}", shm.display())))
    }

    /// Mounts them in a container that has nothing of its own there.
    pub fn mount_in(&self, spec: &mut Value) {
        let read_only = spec["root"]["readonly"] == true;
        let Some(spec) = spec.as_object_mut() else {
            return;
        };
        let mounts = spec.entry("mounts").or_insert_with(|| json!([]));
        let Some(mounts) = mounts.as_array_mut() else {
            return;
        };
        for name in ["hostname", "hosts", "resolv.conf"] {
            let destination = format!("/etc/{name}");
            if mounts.iter().any(|one| one["destination"] == *destination) {
                continue;
            }
            let access = if read_only { "ro" } else { "rw" };
            let mut mount = json!({
                "destination": destination,
                "type": "bind",
                "source": self.dir.join(name),
                "options": ["bind", "rprivate", access],
            });
            if let Some((uids, gids)) = &self.maps {
                mount["uidMappings"] = uids.clone();
                mount["gidMappings"] = gids.clone();
            }
            mounts.push(mount);
        }
        let shm = if self.node_ipc {
            PathBuf::from("/dev/shm")
        } else {
            self.dir.join("shm")
        };
        let shm = json!({
            "destination": "/dev/shm", "type": "bind", "source": shm,
            "options": ["rbind", "rprivate", "nosuid", "nodev", "noexec"],
        });
        let present = mounts
            .iter()
            .position(|one| one["destination"] == "/dev/shm");
        match present {
            // The runtime spec's default: every container for itself.
            Some(at) if mounts[at]["type"] == "tmpfs" => mounts[at] = shm,
            Some(_) => {}
            None => mounts.push(shm),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::shim::v1::sandbox_config::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, UserNamespace,
    };
    use protobuf::MessageField;

    use super::*;

    fn config(edit: impl FnOnce(&mut NamespaceOption)) -> PodSandboxConfig {
        let mut namespaces = NamespaceOption::new();
        edit(&mut namespaces);
        PodSandboxConfig {
            hostname: "harbour".into(),
            linux: MessageField::some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                security_context: MessageField::some(LinuxSandboxSecurityContext {
                    namespace_options: MessageField::some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn each_namespace_is_the_pods_or_the_nodes_and_others_are_refused_by_name() {
        use NamespaceMode::{CONTAINER, NODE, POD};
        for (network, ipc, pid, expected) in [
            (
                CriMode::POD,
                CriMode::POD,
                CriMode::CONTAINER,
                [POD, POD, CONTAINER],
            ),
            (
                CriMode::NODE,
                CriMode::NODE,
                CriMode::NODE,
                [NODE, NODE, NODE],
            ),
            (CriMode::POD, CriMode::POD, CriMode::POD, [POD, POD, POD]),
        ] {
            let options = options(&config(|namespaces| {
                namespaces.network = network.into();
                namespaces.ipc = ipc.into();
                namespaces.pid = pid.into();
            }))
            .unwrap();
            assert_eq!(
                [options.uts, options.ipc, options.pid],
                expected.map(Into::into)
            );
            assert_eq!(options.cgroup_parent, "/kubepods/pod1");
        }
        for (edit, word) in [
            (
                (|n: &mut NamespaceOption| n.ipc = CriMode::TARGET.into())
                    as fn(&mut NamespaceOption),
                "ipc",
            ),
            (|n| n.network = CriMode::CONTAINER.into(), "network"),
            (
                |n| {
                    n.userns_options = MessageField::some(UserNamespace {
                        mode: CriMode::TARGET.into(),
                        ..Default::default()
                    })
                },
                "user namespace",
            ),
        ] {
            let error = options(&config(edit)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut labelled = config(|_| {});
        let security = &mut labelled.linux.mut_or_insert_default().security_context;
        security.mut_or_insert_default().selinux_options = MessageField::some(SELinuxOption {
            level: "s0".into(),
            ..Default::default()
        });
        let error = options(&labelled).unwrap_err().to_string();
        assert!(error.contains("selinux"), "{error}");
    }

    #[test]
    fn resolv_conf_has_a_line_each_and_no_word_that_would_be_two() {
        let dns = DNSConfig {
            servers: vec!["10.0.0.1".into(), "::1".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
            ..Default::default()
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n"
        );
        let hostile = DNSConfig {
            searches: vec!["a\nnameserver 6.6.6.6".into()],
            ..Default::default()
        };
        assert!(resolv_conf(&hostile).is_err());
    }

    #[test]
    fn the_pods_files_come_where_a_container_has_none_of_its_own() {
        let files = Files {
            dir: "/b".into(),
            node_ipc: false,
            maps: None,
        };
        let mut spec = json!({ "root": { "readonly": true }, "mounts": [
            { "destination": "/etc/hosts", "type": "bind", "source": "/mine" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
        ] });
        files.mount_in(&mut spec);
        let sources: Vec<_> = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                (
                    one["destination"].as_str().unwrap(),
                    one["source"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            sources,
            [
                ("/etc/hosts", "/mine"),
                ("/dev/shm", "/b/shm"),
                ("/etc/hostname", "/b/hostname"),
                ("/etc/resolv.conf", "/b/resolv.conf"),
            ]
        );
        assert_eq!(spec["mounts"][2]["options"][2], "ro");
    }
}
