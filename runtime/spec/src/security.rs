//! Paths that are hidden or read-only, and the names of LSM profiles.
//!
//! The wire can't tell an empty list of paths from a missing one. A kubelet sends both lists unless a pod asks for
//! `procMount: Unmasked`, which Kubernetes admits only together with a user namespace; other clients send none and expect a
//! container that is safe. So an empty list means our defaults, unless the pod has a user namespace of its own.

use std::{fs, path::Path};

use berth_proto::cri::{self, security_profile::ProfileType};

use crate::{
    error::{Error, because, quoted},
    host::Host,
};

/// Paths of one list.
const PATHS_LIMIT: usize = 256;

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Masked and read-only paths.
pub(crate) fn paths(security: &cri::LinuxContainerSecurityContext) -> (Vec<String>, Vec<String>) {
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    let own_user_namespace = security
        .namespace_options
        .as_ref()
        .and_then(|options| options.userns_options.as_ref())
        .is_some_and(|userns| userns.mode == cri::NamespaceMode::Pod as i32);
    let or_default = |given: &[String], default: &[&str]| {
        if given.is_empty() && !own_user_namespace {
            default.iter().map(ToString::to_string).collect()
        } else {
            given.to_vec()
        }
    };
    (
        or_default(&security.masked_paths, &MASKED),
        or_default(&security.readonly_paths, &READONLY),
    )
}

pub(crate) fn check(security: &cri::LinuxContainerSecurityContext) -> Result<(), Error> {
    for (field, paths) in [
        ("masked_paths", &security.masked_paths),
        ("readonly_paths", &security.readonly_paths),
    ] {
        if paths.len() > PATHS_LIMIT {
            return Err(Error::invalid(
                field,
                format!("{} paths; at most {PATHS_LIMIT} are taken", paths.len()),
            ));
        }
        if let Some(path) = paths
            .iter()
            .find(|path| !path.starts_with('/') || path.contains('\0') || path.contains("/.."))
        {
            return Err(Error::invalid(
                field,
                format!("{} is not a plain absolute path", quoted(path)),
            ));
        }
    }
    apparmor_name(security).map(drop)
}

/// The AppArmor profile of a container that names none, or asks for the runtime's.
pub const APPARMOR_DEFAULT: &str = "berth-default";

/// Where the kernel tells which profiles are loaded, a line each: `name (enforce)`.
const APPARMOR_LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Whether the kernel has a profile of that name. Errors: securityfs is not mounted, or not ours to read.
pub fn apparmor_is_loaded(profile: &str) -> std::io::Result<bool> {
    let loaded = fs::read_to_string(APPARMOR_LOADED)?;
    Ok(loaded.lines().any(|line| {
        line.rsplit_once(" (")
            .is_some_and(|(name, _)| name == profile)
    }))
}

/// Whether [`APPARMOR_DEFAULT`] will confine the container, and so has to be loaded.
pub fn wants_apparmor_default(container: &cri::ContainerConfig, host: &Host) -> bool {
    let security = container
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.clone())
        .unwrap_or_default();
    host.apparmor
        && !security.privileged
        && matches!(apparmor_name(&security), Ok(AppArmor::Default { .. }))
}

/// The AppArmor profile to set, if any. One that is asked for and can't be had refuses the container. `default`: why
/// [`APPARMOR_DEFAULT`] is not loaded.
pub(crate) fn apparmor(
    security: &cri::LinuxContainerSecurityContext,
    host: &Host,
    default: Result<(), &str>,
    notes: &mut Vec<String>,
) -> Result<Option<String>, Error> {
    let refused = |name: &str, why: String| Error::SecurityModule {
        module: "AppArmor",
        profile: quoted(name),
        why,
    };
    let name = match apparmor_name(security)? {
        _ if security.privileged => return Ok(None),
        AppArmor::Unconfined => return Ok(None),
        AppArmor::Default { .. } if !host.apparmor => return Ok(None),
        AppArmor::Default { asked } => {
            return match default {
                Ok(()) => Ok(Some(APPARMOR_DEFAULT.to_owned())),
                Err(why) if asked => Err(refused(APPARMOR_DEFAULT, why.to_owned())),
                Err(why) => {
                    notes.push(format!(
                        "AppArmor: the container runs unconfined, its default profile can't be had: {why}"
                    ));
                    Ok(None)
                }
            };
        }
        AppArmor::Named(name) => name,
    };
    if !host.apparmor {
        return Err(refused(
            name,
            "this machine's kernel has no AppArmor".into(),
        ));
    }
    match apparmor_is_loaded(name) {
        Ok(true) => Ok(Some(name.to_owned())),
        Ok(false) => Err(refused(name, "it is not loaded".into())),
        Err(err) => Err(refused(name, because("read the loaded profiles", err))),
    }
}

/// SELinux labels: refused where they would have no effect, but for `spc_t`, whose meaning is no confinement.
pub(crate) fn selinux(
    options: Option<&cri::SeLinuxOption>,
    host: &Host,
    privileged: bool,
) -> Result<(), Error> {
    let Some(options) = options else {
        return Ok(());
    };
    let asks = [
        &options.user,
        &options.role,
        &options.r#type,
        &options.level,
    ]
    .into_iter()
    .any(|part| !part.is_empty());
    if !asks || privileged || options.r#type == "spc_t" {
        return Ok(());
    }
    let label = format!(
        "{}:{}:{}:{}",
        options.user, options.role, options.r#type, options.level
    );
    let why = if host.selinux {
        "labels are not implemented in this version of Berth"
    } else {
        "this machine's kernel has no SELinux"
    };
    Err(Error::SecurityModule {
        module: "SELinux",
        profile: quoted(label),
        why: why.into(),
    })
}

/// Whether the kernel has the security modules that a pod asks for. Its containers would be refused one by one later; a caller should
/// hear it before anything is made.
pub fn check_sandbox_modules(config: &cri::PodSandboxConfig, host: &Host) -> Result<(), Error> {
    let Some(security) = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
    else {
        return Ok(());
    };
    selinux(security.selinux_options.as_ref(), host, security.privileged)?;
    let of_pod = cri::LinuxContainerSecurityContext {
        apparmor: security.apparmor.clone(),
        privileged: security.privileged,
        ..Default::default()
    };
    // Its default is loaded when the first container needs it, and refuses that one where it can't be.
    apparmor(&of_pod, host, Ok(()), &mut Vec::new()).map(drop)
}

enum AppArmor<'a> {
    /// `asked`: by name; else for want of another.
    Default {
        asked: bool,
    },
    Unconfined,
    Named(&'a str),
}

fn apparmor_name(security: &cri::LinuxContainerSecurityContext) -> Result<AppArmor<'_>, Error> {
    let (field, name) = match &security.apparmor {
        Some(profile) => match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => return Ok(AppArmor::Default { asked: true }),
            Ok(ProfileType::Unconfined) => return Ok(AppArmor::Unconfined),
            Ok(ProfileType::Localhost) => {
                ("apparmor.localhost_ref", profile.localhost_ref.as_str())
            }
            Err(_) => {
                return Err(Error::invalid(
                    "apparmor.profile_type",
                    format!("{} is no profile type", profile.profile_type),
                ));
            }
        },
        // Deprecated since Kubernetes 1.24, and still sent beside the new field.
        #[allow(deprecated)]
        None => match security.apparmor_profile.as_str() {
            "" => return Ok(AppArmor::Default { asked: false }),
            "runtime/default" => return Ok(AppArmor::Default { asked: true }),
            "unconfined" => return Ok(AppArmor::Unconfined),
            name if name.starts_with("localhost/") => ("apparmor_profile", name),
            name => {
                let why = format!(
                    "{} is none of runtime/default, unconfined and localhost/<name>",
                    quoted(name)
                );
                return Err(Error::invalid("apparmor_profile", why));
            }
        },
    };
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if name.is_empty() || name.len() > 4096 || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            field,
            format!("{} is not the name of a profile", quoted(name)),
        ));
    }
    Ok(AppArmor::Named(name))
}

/// A relabelled mount has no meaning without SELinux; with it, it would be silently left out.
pub(crate) fn relabel(container: &cri::ContainerConfig, host: &Host) -> Result<(), Error> {
    match container.mounts.iter().find(|mount| mount.selinux_relabel) {
        Some(mount) if host.selinux => Err(Error::Unimplemented(format!(
            "SELinux relabelling (mount at {})",
            Path::new(&mount.container_path).display()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Kind, tests::host};

    fn security() -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext::default()
    }

    #[test]
    fn lists_that_are_not_given_are_the_defaults() {
        let mut security = security();
        let (masked, readonly) = paths(&security);
        assert!(
            masked.contains(&"/proc/interrupts".into())
                && masked.contains(&"/sys/devices/virtual/powercap".into())
        );
        assert!(readonly.contains(&"/proc/sys".into()));

        security.masked_paths = vec!["/bin/ls".into()];
        let (masked, readonly) = paths(&security);
        assert_eq!(
            (masked, readonly.len()),
            (vec!["/bin/ls".to_owned()], READONLY.len())
        );

        let userns = cri::UserNamespace {
            mode: cri::NamespaceMode::Pod as i32,
            ..Default::default()
        };
        security.masked_paths.clear();
        security.namespace_options = Some(cri::NamespaceOption {
            userns_options: Some(userns),
            ..Default::default()
        });
        assert_eq!(
            paths(&security),
            (Vec::new(), Vec::new()),
            "procMount: Unmasked"
        );

        let mut privileged = self::security();
        (privileged.privileged, privileged.masked_paths) = (true, vec!["/proc/kcore".into()]);
        assert_eq!(paths(&privileged), (Vec::new(), Vec::new()));
    }

    // SEC-ENG-10
    #[test]
    fn a_named_profile_that_is_not_there_refuses_the_container() {
        let profile = |kind: ProfileType, name: &str| {
            Some(cri::SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: name.into(),
            })
        };
        #[allow(deprecated)]
        let table = [
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::Localhost, "mine"),
                    ..security()
                },
                Some(Kind::Precondition),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::Localhost, ""),
                    ..security()
                },
                Some(Kind::Invalid),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::Localhost, "a\nb"),
                    ..security()
                },
                Some(Kind::Invalid),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::RuntimeDefault, ""),
                    ..security()
                },
                None,
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::Unconfined, ""),
                    ..security()
                },
                None,
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor_profile: "localhost/mine".into(),
                    ..security()
                },
                Some(Kind::Precondition),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor_profile: "mine".into(),
                    ..security()
                },
                Some(Kind::Invalid),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor_profile: "runtime/default".into(),
                    ..security()
                },
                None,
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor_profile: "unconfined".into(),
                    ..security()
                },
                None,
            ),
        ];
        for (security, want) in table {
            let got = check(&security)
                .and_then(|()| apparmor(&security, &host(), Ok(()), &mut Vec::new()));
            assert_eq!(got.as_ref().err().map(Error::kind), want, "{security:?}");
            assert!(got.is_err() || got.unwrap().is_none());
        }
    }

    // SEC-ENG-10
    #[test]
    fn the_default_profile_is_had_refused_or_told_to_be_missing() {
        let mut host = host();
        host.apparmor = true;
        let profile = |kind: ProfileType| {
            Some(cri::SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: String::new(),
            })
        };
        let (had, missing) = (Ok(()), Err("no parser"));
        #[allow(deprecated)]
        for (security, default, want) in [
            (security(), had, Ok(Some(APPARMOR_DEFAULT))),
            (security(), missing, Ok(None)),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::RuntimeDefault),
                    ..security()
                },
                missing,
                Err(()),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor_profile: "runtime/default".into(),
                    ..security()
                },
                missing,
                Err(()),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    apparmor: profile(ProfileType::Unconfined),
                    ..security()
                },
                had,
                Ok(None),
            ),
            (
                cri::LinuxContainerSecurityContext {
                    privileged: true,
                    ..security()
                },
                had,
                Ok(None),
            ),
        ] {
            let mut notes = Vec::new();
            let got = apparmor(&security, &host, default, &mut notes);
            let got = got.map_err(|error| assert_eq!(error.kind(), Kind::Precondition));
            assert_eq!(
                got,
                want.map(|name| name.map(str::to_owned)),
                "{security:?}"
            );
            // Weaker than it could be is never silent.
            assert_eq!(notes.len(), usize::from(default.is_err() && want.is_ok()));
        }
    }

    // SEC-ENG-10
    #[test]
    fn a_label_without_selinux_refuses_the_container() {
        let option = |typ: &str, level: &str| cri::SeLinuxOption {
            r#type: typ.into(),
            level: level.into(),
            ..Default::default()
        };
        assert!(selinux(Some(&option("container_t", "s0")), &host(), false).is_err());
        assert!(selinux(Some(&option("", "s0:c1,c2")), &host(), false).is_err());
        assert!(selinux(Some(&option("spc_t", "s0")), &host(), false).is_ok());
        assert!(selinux(Some(&option("", "")), &host(), false).is_ok());
        assert!(selinux(None, &host(), false).is_ok());
        let mut selinux_host = host();
        selinux_host.selinux = true;
        assert!(selinux(Some(&option("container_t", "s0")), &selinux_host, false).is_err());
    }

    // SEC-ENG-10
    #[test]
    fn a_pod_that_asks_for_what_the_kernel_has_not_is_refused() {
        type Change = fn(&mut cri::LinuxSandboxSecurityContext);
        fn profile(kind: ProfileType) -> cri::SecurityProfile {
            cri::SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: "mine".into(),
            }
        }
        let table: [(Change, bool); 4] = [
            (|_| {}, true),
            (
                |security| {
                    security.selinux_options = Some(cri::SeLinuxOption {
                        level: "s0:c1,c2".into(),
                        ..Default::default()
                    });
                },
                false,
            ),
            (
                |security| security.apparmor = Some(profile(ProfileType::Localhost)),
                false,
            ),
            (
                |security| security.apparmor = Some(profile(ProfileType::RuntimeDefault)),
                true,
            ),
        ];
        for (row, (change, taken)) in table.into_iter().enumerate() {
            let mut security = cri::LinuxSandboxSecurityContext::default();
            change(&mut security);
            let config = cri::PodSandboxConfig {
                linux: Some(cri::LinuxPodSandboxConfig {
                    security_context: Some(security),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let got = check_sandbox_modules(&config, &host());
            assert_eq!(got.is_ok(), taken, "row {row}: {got:?}");
        }
    }

    #[test]
    fn paths_are_plain_and_absolute() {
        for path in ["", "proc", "/a/../b", "/a\0"] {
            assert!(
                check(&cri::LinuxContainerSecurityContext {
                    masked_paths: vec![path.into()],
                    ..security()
                })
                .is_err(),
                "{path:?}"
            );
            assert!(
                check(&cri::LinuxContainerSecurityContext {
                    readonly_paths: vec![path.into()],
                    ..security()
                })
                .is_err(),
                "{path:?}"
            );
        }
    }
}
