//! What a spec may ask of the engines, in the form of the OCI runtime spec's features.md: known without a container, an image or root.
//!
//! `null` there means "unknown", and an empty list "none": nothing is listed that no engine makes. What the native engine does not build and
//! libcontainer does (hooks) counts, since such a container is left to it.

use serde_json::{Value, json};

use crate::confine;

/// Options of mounts that the engine takes itself; whatever else is told to the file system.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "idmap",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
];
/// Those that are run.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];
const SECCOMP_ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const SECCOMP_OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
const SECCOMP_ARCHITECTURES: [&str; 24] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
const SECCOMP_FLAGS: [&str; 3] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
];

/// The features document.
pub fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": confine::every_name(),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": SECCOMP_ARCHITECTURES,
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false },
        },
        "annotations": {
            "berth.engine": "native, else libcontainer",
            "berth.version": env!("CARGO_PKG_VERSION"),
        },
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{
        Arch, Features, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    };

    use super::*;
    use crate::{filter, native};

    #[test]
    fn the_document_is_one_of_the_runtime_spec() {
        let document: Features = serde_json::from_value(features()).unwrap();
        let linux = document.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), NAMESPACES.len());
        let capabilities = linux.capabilities().as_ref().unwrap();
        assert!(capabilities.len() >= 41, "{capabilities:?}");
        assert!(capabilities.iter().all(|name| name.starts_with("CAP_")));
        assert!(capabilities.contains(&"CAP_SYS_ADMIN".to_owned()));
    }

    #[test]
    fn every_option_of_mounts_that_is_told_is_taken_and_no_other_is() {
        for option in MOUNT_OPTIONS.iter().copied() {
            assert!(native::takes_mount_option(option), "{option}");
        }
        let all = "remount tmpcopyup copy-symlink size=1k mode=755 sync dirsync mand";
        for option in all.split(' ') {
            assert!(!MOUNT_OPTIONS.contains(&option), "{option}");
        }
        for option in [
            "ro",
            "rw",
            "suid",
            "nosuid",
            "dev",
            "nodev",
            "exec",
            "noexec",
            "diratime",
            "nodiratime",
            "symfollow",
            "nosymfollow",
            "atime",
            "noatime",
            "relatime",
            "norelatime",
            "strictatime",
            "nostrictatime",
            "private",
            "slave",
            "shared",
            "unbindable",
        ] {
            assert!(MOUNT_OPTIONS.contains(&option), "{option}");
            assert!(
                MOUNT_OPTIONS.contains(&format!("r{option}").as_str()),
                "r{option}"
            );
        }
    }

    #[test]
    fn every_word_of_seccomp_that_is_told_compiles() {
        let quoted = |name: &str| format!("{name:?}");
        for action in SECCOMP_ACTIONS {
            serde_json::from_str::<LinuxSeccompAction>(&quoted(action)).unwrap();
        }
        for operator in SECCOMP_OPERATORS {
            serde_json::from_str::<LinuxSeccompOperator>(&quoted(operator)).unwrap();
        }
        for architecture in SECCOMP_ARCHITECTURES {
            serde_json::from_str::<Arch>(&quoted(architecture)).unwrap();
        }
        for flag in SECCOMP_FLAGS {
            serde_json::from_str::<LinuxSeccompFilterFlag>(&quoted(flag)).unwrap();
        }
        for action in SECCOMP_ACTIONS {
            for operator in SECCOMP_OPERATORS {
                let profile = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_NATIVE"],
                    "flags": SECCOMP_FLAGS,
                    "syscalls": [{ "names": ["swapon"], "action": if action == "SCMP_ACT_ALLOW" { "SCMP_ACT_LOG" } else { action },
                        "args": [{ "index": 0, "value": 1, "valueTwo": 1, "op": operator }] }],
                });
                let profile = serde_json::from_value(profile).unwrap();
                filter::compile(&profile).unwrap_or_else(|e| panic!("{action} {operator}: {e}"));
            }
        }
    }
}
