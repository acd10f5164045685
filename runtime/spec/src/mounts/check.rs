//! Which mounts can be asked for, and at which places.

use std::path::{Component, Path, PathBuf};

use berth_proto::cri;
use rustix::fs::statfs;

use super::image_volume::{self, volume_image};
use crate::{
    error::{Error, quoted},
    userns,
};

/// Mounts of one container: the kernel's default for a whole mount namespace is 100,000.
const MOUNTS_LIMIT: usize = 1024;

/// PATH_MAX, with its NUL.
pub(super) const PATH_LIMIT: usize = 4096;

/// PROC_SUPER_MAGIC and SYSFS_MAGIC of linux/magic.h.
const PROC_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Below /proc only files that lxcfs emulates can be mounted: everything else there is what an engine writes to while it makes the
/// container (CVE-2019-16884, CVE-2025-52881).
const MOUNTABLE_IN_PROC: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
];

/// The part of the check that looks at no file.
pub(crate) fn check(
    sandbox: &cri::PodSandboxConfig,
    container: &cri::ContainerConfig,
) -> Result<(), Error> {
    if container.mounts.len() > MOUNTS_LIMIT {
        return Err(Error::invalid(
            "mounts",
            format!(
                "{} of them; at most {MOUNTS_LIMIT} are taken",
                container.mounts.len()
            ),
        ));
    }
    let mut destinations = Vec::with_capacity(container.mounts.len());
    for mount in &container.mounts {
        let destination = destination(mount)?;
        if destinations.contains(&destination) {
            return Err(wrong(mount, "container_path", "is the place of two mounts"));
        }
        destinations.push(destination);
        check_mount(sandbox, mount)?;
    }
    Ok(())
}

pub(super) fn check_mount(
    sandbox: &cri::PodSandboxConfig,
    mount: &cri::Mount,
) -> Result<(), Error> {
    let of_image = volume_image(mount).is_some();
    if of_image {
        image_volume::check(mount)?;
    } else if !mount.image_sub_path.is_empty() {
        return Err(wrong(mount, "image_sub_path", "is given, but no image"));
    }
    userns::check_mount(sandbox, mount)
        .map_err(|why| wrong(mount, "uidMappings and gidMappings", why))?;
    if !of_image
        && (!mount.host_path.starts_with('/')
            || mount.host_path.contains('\0')
            || mount.host_path.len() >= PATH_LIMIT)
    {
        return Err(wrong(
            mount,
            "host_path",
            format!("{} is not an absolute path", quoted(&mount.host_path)),
        ));
    }
    let propagation = propagation(mount)?;
    // The kernel lets no mount out of a mount namespace that belongs to a user namespace (mount_namespaces(7)).
    if propagation == cri::MountPropagation::PropagationBidirectional
        && userns::user_namespace(sandbox).is_some()
    {
        return Err(wrong(
            mount,
            "propagation",
            "PROPAGATION_BIDIRECTIONAL is not possible in a pod with a user namespace",
        ));
    }
    if mount.recursive_read_only && !mount.readonly {
        return Err(wrong(mount, "recursive_read_only", "needs readonly"));
    }
    // A mount that arrives later by propagation would not be read-only.
    if mount.recursive_read_only && propagation != cri::MountPropagation::PropagationPrivate {
        return Err(wrong(
            mount,
            "recursive_read_only",
            "needs private propagation",
        ));
    }
    Ok(())
}

/// Places where a mount would change what the engine itself works with while it makes the container.
pub(crate) fn check_place(
    mount: &cri::Mount,
    destination: &Path,
    source: &Path,
    privileged: bool,
) -> Result<(), Error> {
    let filesystem = || {
        statfs(source)
            .map(|fs| fs.f_type as u64)
            .unwrap_or_default()
    };
    if destination == Path::new("/proc") {
        if privileged && filesystem() == PROC_MAGIC {
            return Ok(());
        }
        return Err(wrong(
            mount,
            "container_path",
            "only a privileged container can have a mount there, and only the node's /proc",
        ));
    }
    if destination.starts_with("/proc")
        && !MOUNTABLE_IN_PROC
            .iter()
            .any(|allowed| destination == Path::new(allowed))
    {
        return Err(wrong(
            mount,
            "container_path",
            "nothing can be mounted inside /proc",
        ));
    }
    if destination == Path::new("/sys") && filesystem() != SYSFS_MAGIC {
        return Err(wrong(
            mount,
            "container_path",
            "only the node's /sys can be mounted there",
        ));
    }
    if destination == Path::new("/dev") {
        // libcontainer 0.7 would make its device nodes there and replace the node's /dev/ptmx.
        return Err(Error::Unimplemented(
            "a mount at /dev (mount single devices, or run privileged)".into(),
        ));
    }
    Ok(())
}

/// The container path, without `.` and superfluous slashes.
pub(crate) fn destination(mount: &cri::Mount) -> Result<PathBuf, Error> {
    let path = Path::new(&mount.container_path);
    if !path.is_absolute()
        || mount.container_path.contains('\0')
        || mount.container_path.len() >= PATH_LIMIT
    {
        return Err(wrong(mount, "container_path", "is not an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong(mount, "container_path", "has a `..` in it"));
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return Err(wrong(mount, "container_path", "is the root itself"));
    }
    Ok(clean)
}

pub(super) fn propagation(mount: &cri::Mount) -> Result<cri::MountPropagation, Error> {
    cri::MountPropagation::try_from(mount.propagation).map_err(|_| {
        wrong(
            mount,
            "propagation",
            format!("{} is no propagation mode", mount.propagation),
        )
    })
}

pub(super) fn wrong(mount: &cri::Mount, field: &str, why: impl Into<String>) -> Error {
    Error::invalid(
        format!("mounts[{}].{field}", quoted(&mount.container_path)),
        why,
    )
}
