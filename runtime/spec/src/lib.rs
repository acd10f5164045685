//! From CRI configurations to OCI runtime specs: pure but for reading what a spec depends on (the container's passwd and group
//! files, the host paths of its mounts and devices, a seccomp profile on disk).
//!
//! What the caller asks for is given or refused, never quietly weakened; what the machine can't keep (a swap limit, a capability
//! beyond the daemon's own) is a note for the log.
//!
//! Invariant: annotations and labels of callers and images are not part of a spec. Engines take some of them for orders. One kind is
//! read: `cdi.k8s.io/…` of a container names devices, as a kubelet's device plugins ask for them.

mod accounts;
mod capabilities;
mod cdi;
mod cgroup_driver;
mod check;
mod cpuset;
mod devices;
mod error;
mod host;
mod mounts;
mod process;
mod resources;
mod seccomp;
mod security;
mod sysctl;
mod user;
mod userns;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use berth_proto::cri;
use oci_spec::{
    image::ImageConfiguration,
    runtime::{
        LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources,
        Process, RootBuilder, Spec, SpecBuilder,
    },
};

pub use cdi::{cdi_devices, inject_cdi};
pub use cgroup_driver::CgroupDriver;
pub use check::{check_container, check_runtime_handler, check_sandbox};
pub use cpuset::check_cpuset;
pub use error::{Error, Kind, quoted};
pub use host::Host;
pub use mounts::volume_image;
pub use security::{
    APPARMOR_DEFAULT, apparmor_is_loaded, check_sandbox_modules, wants_apparmor_default,
};
pub use sysctl::sandbox_sysctls;
pub use userns::user_namespace;

/// The OCI version that the spec's fields are of.
const OCI_VERSION: &str = "1.2.0";

/// Annotations by which stock shims group the containers of a pod; containerd's own names.
mod annotation {
    pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
    pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
    pub const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
    pub const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
    pub const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
}

/// The node's user namespace.
const NODE: cri::UserNamespace = cri::UserNamespace {
    mode: cri::NamespaceMode::Node as i32,
    uids: Vec::new(),
    gids: Vec::new(),
};

/// What a container's spec is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod_id: &'a str,
    pub container_id: &'a str,
    pub sandbox: &'a cri::PodSandboxConfig,
    pub container: &'a cri::ContainerConfig,
    pub image: &'a ImageConfiguration,
    /// The mounted root filesystem on the host: passwd and group are read beneath it, never through its links.
    pub rootfs: &'a Path,
    /// Files that berthd made for the pod, bind-mounted where the container brings none of its own.
    pub resolv_conf: &'a Path,
    pub hosts: &'a Path,
    pub hostname: &'a Path,
    /// The pod's /dev/shm (a tmpfs that berthd or the node has).
    pub shm: &'a Path,
    /// Relative to the root of each hierarchy: `/kubepods/…/<container id>`.
    pub cgroup_path: &'a Path,
    /// Where devices of the Container Device Interface are described; the later directory goes before.
    pub cdi_spec_dirs: &'a [PathBuf],
    /// Where the images that the container mounts are, by the number of their mount.
    pub image_volumes: &'a BTreeMap<usize, PathBuf>,
    /// Whether [`APPARMOR_DEFAULT`] is loaded; why not. Of no matter where the container does not want it ([`wants_apparmor_default`]).
    pub apparmor_default: Result<(), &'a str>,
    pub host: &'a Host,
}

/// The container's spec, and what could not be given as asked (each a line for the log).
#[derive(Debug)]
pub struct Built {
    pub spec: Spec,
    pub notes: Vec<String>,
}

impl Built {
    /// Whom the first process runs as, as ContainerStatus tells it.
    pub fn user(&self) -> cri::LinuxContainerUser {
        let user = self
            .spec
            .process()
            .as_ref()
            .map(|process| process.user().clone())
            .unwrap_or_default();
        cri::LinuxContainerUser {
            uid: user.uid().into(),
            gid: user.gid().into(),
            supplemental_groups: user
                .additional_gids()
                .iter()
                .flatten()
                .map(|gid| i64::from(*gid))
                .collect(),
        }
    }
}

/// The limits of a container that is there already: what `resources` leaves at zero or empty stays as it is. With a note for each that
/// this machine can't keep.
pub fn container_limits(
    resources: &cri::LinuxContainerResources,
    host: &Host,
) -> Result<(LinuxResources, Vec<String>), Error> {
    let mut notes = Vec::new();
    let limits = resources::build(resources, host, &mut notes)?;
    Ok((limits, notes))
}

/// The OCI spec of a container, to be written as its bundle's `config.json`.
///
/// Whether the machine has the CPUs that it asks for is to be asked before anything is made: [`check_cpuset`].
///
/// Namespaces: mount, pid, ipc, uts and network are always listed, and on cgroup v2 cgroup; none carries a path, so each would be
/// new; user is listed where the pod has one. The shim gives those that the pod shares their paths, and takes out those that are the node's. Engine-neutral: masks of
/// `SCMP_CMP_MASKED_EQ` are in `value`, as the OCI specification has it.
pub fn container_spec(inputs: &Inputs<'_>) -> Result<Built, Error> {
    check_container(inputs.sandbox, inputs.container)?;
    let mut notes = Vec::new();
    let empty = cri::LinuxContainerConfig::default();
    let linux = inputs.container.linux.as_ref().unwrap_or(&empty);
    let mut security = linux.security_context.clone().unwrap_or_default();
    let userns = userns::user_namespace(inputs.sandbox);
    // A container that says nothing is where its pod is.
    security
        .namespace_options
        .get_or_insert_default()
        .userns_options
        .get_or_insert_with(|| userns.cloned().unwrap_or(NODE));
    let resources = linux.resources.clone().unwrap_or_default();

    security::selinux(
        security.selinux_options.as_ref(),
        inputs.host,
        security.privileged,
    )?;
    security::relabel(inputs.container, inputs.host)?;
    let process = process(inputs, &security, &resources, &mut notes)?;
    let bounding = process
        .capabilities()
        .as_ref()
        .and_then(|sets| sets.bounding().clone())
        .unwrap_or_default();
    let mounts = mounts::build(inputs, security.privileged, security.readonly_rootfs)?;
    let devices = devices::build(inputs.container, security.privileged)?;
    let mut limits = resources::build(&resources, inputs.host, &mut notes)?;
    limits.set_devices(Some(devices.rules));
    let (masked_paths, mut readonly_paths) = security::paths(&security);
    readonly_paths.extend(mounts.readonly_paths);

    let mut linux = LinuxBuilder::default()
        .resources(limits)
        .cgroups_path(inputs.cgroup_path)
        .namespaces(namespaces(inputs.host)?)
        .devices(devices.nodes)
        .rootfs_propagation(mounts.rootfs_propagation)
        .masked_paths(masked_paths)
        .readonly_paths(readonly_paths)
        .build()?;
    linux.set_seccomp(seccomp::filter(&security, &bounding)?);
    if let Some(userns) = userns {
        let user = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::User)
            .build()?;
        let namespaces = linux.namespaces().iter().flatten().cloned();
        linux
            .set_namespaces(Some(namespaces.chain([user]).collect()))
            .set_uid_mappings(Some(userns::to_oci(&userns.uids)?))
            .set_gid_mappings(Some(userns::to_oci(&userns.gids)?));
    }

    let mut spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(security.readonly_rootfs)
                .build()?,
        )
        .mounts(mounts.list)
        .process(process)
        .annotations(annotations(inputs))
        .linux(linux)
        .build()?;
    // the pod's UTS namespace has its name already
    spec.set_hostname(None);
    inject_cdi(
        &mut spec,
        &cdi_devices(inputs.container)?,
        inputs.cdi_spec_dirs,
    )?;
    Ok(Built { spec, notes })
}

fn process(
    inputs: &Inputs<'_>,
    security: &cri::LinuxContainerSecurityContext,
    resources: &cri::LinuxContainerResources,
    notes: &mut Vec<String>,
) -> Result<Process, Error> {
    let accounts = accounts::Accounts::read(inputs.rootfs)?;
    let image_user = inputs
        .image
        .config()
        .as_ref()
        .and_then(|config| config.user().as_deref())
        .unwrap_or_default();
    let identity = user::resolve(security, image_user, &accounts)?;
    if let Some(userns) = userns::user_namespace(inputs.sandbox) {
        identity.check_mapped(userns)?;
    }
    let hostname = hostname(inputs);
    let arguments = process::arguments(inputs.container, inputs.image)?;
    let environment = process::environment(
        inputs.container,
        inputs.image,
        hostname.as_deref(),
        &identity.home,
        notes,
    )?;
    process::check_total(&arguments, &environment)?;

    let mut process = Process::default();
    process
        .set_terminal(Some(inputs.container.tty))
        .set_user(identity.to_oci()?)
        .set_args(Some(arguments))
        .set_env(Some(environment))
        .set_cwd(process::working_directory(inputs.container, inputs.image)?)
        .set_capabilities(Some(capabilities::sets(security, inputs.host, notes)?))
        .set_rlimits(None)
        // Absent rather than false: libcontainer 0.7 takes a false for a true when it picks the moment to load the filter.
        .set_no_new_privileges(security.no_new_privs.then_some(true))
        .set_apparmor_profile(security::apparmor(
            security,
            inputs.host,
            inputs.apparmor_default,
            notes,
        )?)
        .set_oom_score_adj(Some(resources::oom_score_adj(
            resources,
            inputs.host,
            notes,
        )));
    Ok(process)
}

/// The pod's, else what berthd wrote for it.
fn hostname(inputs: &Inputs<'_>) -> Option<String> {
    /// A host name has 64 bytes at most.
    const LIMIT: u64 = 256;
    if !inputs.sandbox.hostname.is_empty() {
        return Some(inputs.sandbox.hostname.clone());
    }
    let mut text = String::new();
    File::open(inputs.hostname)
        .ok()?
        .take(LIMIT)
        .read_to_string(&mut text)
        .ok()?;
    let name = text.lines().next()?.trim();
    (!name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}

fn namespaces(host: &Host) -> Result<Vec<LinuxNamespace>, Error> {
    let always = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Network,
    ];
    // On v1 a cgroup namespace would hide where the container is from those who read /proc/self/cgroup and the binds of its
    // hierarchies together.
    let cgroup = host.cgroup_v2.then_some(LinuxNamespaceType::Cgroup);
    let made = always
        .into_iter()
        .chain(cgroup)
        .map(|typ| LinuxNamespaceBuilder::default().typ(typ).build());
    Ok(made.collect::<Result<_, _>>()?)
}

fn annotations(inputs: &Inputs<'_>) -> HashMap<String, String> {
    let pod = inputs.sandbox.metadata.clone().unwrap_or_default();
    let container = inputs.container.metadata.clone().unwrap_or_default();
    [
        (annotation::CONTAINER_TYPE, "container".to_owned()),
        (annotation::SANDBOX_ID, inputs.pod_id.to_owned()),
        (annotation::SANDBOX_NAME, pod.name),
        (annotation::SANDBOX_NAMESPACE, pod.namespace),
        (annotation::SANDBOX_UID, pod.uid),
        (annotation::CONTAINER_NAME, container.name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests;
