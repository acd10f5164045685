//! Security contexts: the pod's holds where the container's says nothing.

use berth_proto::cri::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
    security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};

use crate::{
    image::ImageFacts,
    pod::{ContainerSpec, Desired, Role},
    problem::Problem,
    user_namespace::Ids,
};

/// Where the kubelet looks up seccomp profiles by their relative names.
const SECCOMP_DIR: &str = "/var/lib/kubelet/seccomp";

/// What of /proc and /sys tells too much of the node, or lets its state be changed: hidden.
const MASKED_PATHS: &[&str] = &[
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

/// The same, but programs need to read it.
const READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub(super) fn namespaces(pod: &Desired, ids: Option<Ids>) -> NamespaceOption {
    let spec = &pod.spec;
    let node_or_pod = |node: Option<bool>| {
        if node == Some(true) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: node_or_pod(spec.host_network).into(),
        pid: pid.into(),
        ipc: node_or_pod(spec.host_ipc).into(),
        userns_options: ids.map(Ids::options),
        ..Default::default()
    }
}

pub(super) fn of_sandbox(
    pod: &Desired,
    ids: Option<Ids>,
) -> Result<LinuxSandboxSecurityContext, Problem> {
    let context = pod.spec.security_context.clone().unwrap_or_default();
    let privileged = pod.containers.iter().any(|spec| {
        let own = spec.container.security_context.as_ref();
        own.and_then(|it| it.privileged) == Some(true)
    });
    let run_as_user = id("spec.securityContext.runAsUser", context.run_as_user)?;
    Ok(LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, ids)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        // the pause of a pod takes a group only together with a user
        run_as_group: if run_as_user.is_some() {
            id("spec.securityContext.runAsGroup", context.run_as_group)?
        } else {
            None
        },
        run_as_user,
        supplemental_groups: groups(&context)?,
        supplemental_groups_policy: groups_policy(&context)?.into(),
        privileged,
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// `target` is the container whose processes an ephemeral one wants to see.
pub(super) fn of_container(
    pod: &Desired,
    spec: &ContainerSpec,
    image: &ImageFacts,
    ids: Option<Ids>,
    target: Option<&str>,
) -> Result<LinuxContainerSecurityContext, Problem> {
    let path = |field: &str| format!("{}.securityContext.{field}", spec.path);
    let context = pod.spec.security_context.clone().unwrap_or_default();
    let own = spec.container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let mut namespaces = namespaces(pod, ids);
    if let (Role::Ephemeral, Some(target)) = (spec.role, target) {
        namespaces.pid = NamespaceMode::Target.into();
        namespaces.target_id = target.to_owned();
    }

    if own.allow_privilege_escalation == Some(false) {
        let adds_sys_admin = own
            .capabilities
            .iter()
            .flat_map(|it| it.add.iter().flatten())
            .any(|name| matches!(name.strip_prefix("CAP_").unwrap_or(name), "SYS_ADMIN"));
        if privileged || adds_sys_admin {
            return Err(Problem::new(
                path("allowPrivilegeEscalation"),
                "can't be false for a container that is privileged or has CAP_SYS_ADMIN",
            ));
        }
    }

    let mut run_as_user = id(&path("runAsUser"), own.run_as_user.or(context.run_as_user))?;
    let run_as_group = id(
        &path("runAsGroup"),
        own.run_as_group.or(context.run_as_group),
    )?;
    let mut run_as_username = String::new();
    if own.run_as_non_root.or(context.run_as_non_root) == Some(true) {
        not_root(&path("runAsNonRoot"), run_as_user, image)?;
    }
    if run_as_group.is_some() && run_as_user.is_none() {
        // the CRI takes a group only together with a user: name the image's
        match image {
            ImageFacts {
                user: Some(uid), ..
            } => run_as_user = Some(Int64Value { value: *uid }),
            image if !image.username.is_empty() => run_as_username = image.username.clone(),
            _ => run_as_user = Some(Int64Value { value: 0 }),
        }
    }

    let unmasked = match own.proc_mount.as_deref() {
        None | Some("Default") => privileged,
        Some("Unmasked") => true,
        Some(other) => {
            return Err(Problem::new(
                path("procMount"),
                format!("{other:?} is not Default or Unmasked"),
            ));
        }
    };
    let paths = |list: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            list.iter().map(|path| path.to_string()).collect()
        }
    };

    Ok(LinuxContainerSecurityContext {
        capabilities: own.capabilities.clone().map(|it| Capability {
            add_capabilities: it.add.unwrap_or_default(),
            drop_capabilities: it.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces),
        selinux_options: own
            .se_linux_options
            .as_ref()
            .or(context.se_linux_options.as_ref())
            .map(selinux),
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&context)?,
        supplemental_groups_policy: groups_policy(&context)?.into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED_PATHS),
        readonly_paths: paths(READONLY_PATHS),
        seccomp: Some(seccomp(spec, &own, &context, privileged)?),
        apparmor: apparmor(spec, &own, &context)?,
        ..Default::default()
    })
}

fn not_root(path: &str, user: Option<Int64Value>, image: &ImageFacts) -> Result<(), Problem> {
    let what = match (user, image) {
        (Some(Int64Value { value: 0 }), _) => "but runAsUser is 0".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, ImageFacts { user: Some(0), .. }) => {
            "but the image runs as root: set runAsUser".to_owned()
        }
        (None, ImageFacts { user: Some(_), .. }) => return Ok(()),
        (None, image) if image.username.is_empty() => {
            "but the image runs as root: set runAsUser".to_owned()
        }
        (None, image) => {
            format!(
                "but the image's user {:?} is a name, which may be root's: set runAsUser",
                image.username
            )
        }
    };
    Err(Problem::new(path, what))
}

/// User and group ids are 32 bits for the kernel, and all ones means none.
fn id(path: &str, id: Option<i64>) -> Result<Option<Int64Value>, Problem> {
    match id {
        Some(id) if !(0..i64::from(i32::MAX)).contains(&id) => Err(Problem::new(
            path,
            format!("{id} is not between 0 and {}", i32::MAX - 1),
        )),
        id => Ok(id.map(|value| Int64Value { value })),
    }
}

fn groups(pod: &PodSecurityContext) -> Result<Vec<i64>, Problem> {
    let mut groups = pod.supplemental_groups.clone().unwrap_or_default();
    for group in groups.iter().copied().chain(pod.fs_group) {
        id("spec.securityContext.supplementalGroups", Some(group))?;
    }
    // volumes belong to it, so every container is in it
    groups.extend(pod.fs_group.filter(|group| !groups.contains(group)));
    Ok(groups)
}

fn groups_policy(pod: &PodSecurityContext) -> Result<SupplementalGroupsPolicy, Problem> {
    match pod.supplemental_groups_policy.as_deref() {
        None | Some("Merge") => Ok(SupplementalGroupsPolicy::Merge),
        Some("Strict") => Ok(SupplementalGroupsPolicy::Strict),
        Some(other) => Err(Problem::new(
            "spec.securityContext.supplementalGroupsPolicy",
            format!("{other:?} is not Merge or Strict"),
        )),
    }
}

fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

/// As for a stock kubelet, no profile means none: `seccompDefault` is off there too.
fn seccomp(
    spec: &ContainerSpec,
    own: &SecurityContext,
    pod: &PodSecurityContext,
    privileged: bool,
) -> Result<SecurityProfile, Problem> {
    let (profile, path) = match (&own.seccomp_profile, &pod.seccomp_profile) {
        (Some(profile), _) => (
            profile.clone(),
            format!("{}.securityContext.seccompProfile", spec.path),
        ),
        (None, Some(profile)) => (
            profile.clone(),
            "spec.securityContext.seccompProfile".into(),
        ),
        (None, None) => (
            SeccompProfile {
                type_: "Unconfined".into(),
                ..Default::default()
            },
            String::new(),
        ),
    };
    let profile = security_profile(
        &path,
        &profile.type_,
        profile.localhost_profile.as_deref(),
        |name| {
            let inside = !name.starts_with('/') && name.split('/').all(|part| part != "..");
            inside.then(|| format!("{SECCOMP_DIR}/{name}"))
        },
    )?;
    if privileged {
        return Ok(SecurityProfile {
            profile_type: ProfileType::Unconfined.into(),
            ..Default::default()
        });
    }
    Ok(profile)
}

fn apparmor(
    spec: &ContainerSpec,
    own: &SecurityContext,
    pod: &PodSecurityContext,
) -> Result<Option<SecurityProfile>, Problem> {
    let (
        AppArmorProfile {
            type_,
            localhost_profile,
        },
        path,
    ) = match (&own.app_armor_profile, &pod.app_armor_profile) {
        (Some(profile), _) => (
            profile.clone(),
            format!("{}.securityContext.appArmorProfile", spec.path),
        ),
        (None, Some(profile)) => (
            profile.clone(),
            "spec.securityContext.appArmorProfile".into(),
        ),
        (None, None) => return Ok(None),
    };
    security_profile(&path, &type_, localhost_profile.as_deref(), |name| {
        Some(name.to_owned())
    })
    .map(Some)
}

fn security_profile(
    path: &str,
    kind: &str,
    localhost: Option<&str>,
    resolve: impl Fn(&str) -> Option<String>,
) -> Result<SecurityProfile, Problem> {
    let (profile_type, localhost_ref) = match (kind, localhost) {
        ("RuntimeDefault", None) => (ProfileType::RuntimeDefault, String::new()),
        ("Unconfined", None) => (ProfileType::Unconfined, String::new()),
        ("Localhost", Some(name)) if !name.is_empty() => match resolve(name) {
            Some(resolved) => (ProfileType::Localhost, resolved),
            None => {
                let what = format!("{name:?} is not a path within {SECCOMP_DIR}");
                return Err(Problem::new(format!("{path}.localhostProfile"), what));
            }
        },
        ("Localhost", _) => {
            return Err(Problem::new(
                format!("{path}.localhostProfile"),
                "must be set for Localhost",
            ));
        }
        ("RuntimeDefault" | "Unconfined", Some(_)) => {
            return Err(Problem::new(
                format!("{path}.localhostProfile"),
                format!("has no meaning for {kind}"),
            ));
        }
        _ => {
            let what = format!("{kind:?} is not RuntimeDefault, Unconfined or Localhost");
            return Err(Problem::new(format!("{path}.type"), what));
        }
    };
    Ok(SecurityProfile {
        profile_type: profile_type.into(),
        localhost_ref,
    })
}

#[cfg(test)]
mod tests;
