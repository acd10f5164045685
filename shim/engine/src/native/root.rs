//! What a container sees of files: its root with everything mounted in it, and nothing of the node.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_kernel::mount::{Change, set_attributes};
use oci_spec::runtime::{Linux, Mount};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, major, minor},
    io::Errno,
    mount::{
        MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        mount_change, move_mount, open_tree,
    },
};

use super::{
    beneath, device,
    mount::{self, Options},
};
use crate::{Error, cgroup::Cgroup};

/// Device number of `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// The root as a spec describes it.
pub(super) struct Plan<'a> {
    pub path: PathBuf,
    pub read_only: bool,
    pub mounts: &'a [Mount],
    pub linux: &'a Linux,
    pub cgroup: &'a Cgroup,
}

/// Builds the root in this process's own mount namespace, with the node's root still below it. Answers the root.
pub(super) fn build(plan: &Plan<'_>) -> Result<OwnedFd, Error> {
    let options: Vec<Options> = plan.mounts.iter().map(Options::of).collect();
    // Binds that keep their source's peers are taken before this namespace loses them.
    let mut taken = Vec::with_capacity(plan.mounts.len());
    for (mount, options) in plan.mounts.iter().zip(&options) {
        let source = mount.source().as_deref().filter(|_| options.propagates());
        taken.push(match source {
            Some(source) => Some(mount::bind(source, options).map_err(Error::io(format!(
                "take the source of mount {} ({})",
                mount.destination().display(),
                source.display()
            )))?),
            None => None,
        });
    }
    // From here on nothing that is mounted here is seen on the node.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(Error::errno("cut the mounts off from the node's"))?;

    let root =
        attach(&plan.path).map_err(Error::io(format!("mount the root {}", plan.path.display())))?;
    for ((mount, options), taken) in plan.mounts.iter().zip(&options).zip(taken) {
        mount::mount(root.as_fd(), mount, options, taken, plan.cgroup)?;
    }
    let at = |path: &str| {
        let mut mounts = plan.mounts.iter().zip(&options);
        mounts.find(|(mount, _)| mount.destination() == Path::new(path))
    };
    let bound_dev = at("/dev").is_some_and(|(_, options)| options.is_bind());
    // A /dev of the node's has its nodes, and they are not ours to change.
    if !bound_dev {
        let devices = plan.linux.devices().as_deref().unwrap_or_default();
        device::make_all(root.as_fd(), devices)?;
        device::make_links(root.as_fd(), at("/dev/pts").is_some())?;
    }
    mask(&root, plan.linux)?;
    for path in plan.linux.readonly_paths().iter().flatten() {
        make_read_only(&root, Path::new(path))
            .map_err(Error::io(format!("make {path} read-only")))?;
    }
    Ok(root)
}

/// The root, mounted over itself: a pivot wants a mount.
fn attach(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags)?;
    mount::cut_off(&tree)?;
    move_mount(
        &tree,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(tree)
}

/// Hides files under the node's null device, and directories under an empty tmpfs that all of them share. Never the container's
/// own /dev/null: an image may have made a link of it (SEC-ENG-03, CVE-2025-31133).
fn mask(root: &OwnedFd, linux: &Linux) -> Result<(), Error> {
    // Of files, and of directories: made once, cloned for each.
    let mut covers: [Option<OwnedFd>; 2] = [None, None];
    for path in linux.masked_paths().iter().flatten() {
        let step = || Error::io(format!("mask {path}"));
        let place = match beneath::open(root.as_fd(), Path::new(path)) {
            Ok(place) => place,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(step()(error)),
        };
        let directory = beneath::is_directory(&place).map_err(step())?;
        let kept = &mut covers[usize::from(directory)];
        let cover = match (kept.take(), directory) {
            (Some(cover), _) => cover,
            (None, true) => empty_directory().map_err(step())?,
            (None, false) => null_device().map_err(step())?,
        };
        mount::clone_place(cover.as_fd(), false)
            .and_then(|tree| mount::attach(&tree, &place))
            .map_err(step())?;
        *kept = Some(cover);
    }
    Ok(())
}

fn empty_directory() -> io::Result<OwnedFd> {
    let read_only = Change {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..Change::default()
    };
    let data = ["size=0".to_owned(), "nr_inodes=1".to_owned()];
    mount::filesystem("tmpfs", "tmpfs", &data, read_only)
}

/// The node's null device, checked to be it.
fn null_device() -> io::Result<OwnedFd> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = rustix::fs::statat(&null, "", AtFlags::EMPTY_PATH)?;
    let genuine = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL;
    if !genuine {
        return Err(io::Error::other(
            "the node's /dev/null is not the null device",
        ));
    }
    let tree = mount::clone_place(null.as_fd(), false)?;
    mount::cut_off(&tree)?;
    Ok(tree)
}

/// Mounts a path over itself, read-only. What is not there needs no protection.
fn make_read_only(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let place = match beneath::open(root.as_fd(), path) {
        Ok(place) => place,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let tree = mount::clone_place(place.as_fd(), true)?;
    mount::read_only(&tree)?;
    mount::attach(&tree, &place)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Makes the built root this process's own, and takes the node's away.
pub(super) fn enter(root: &OwnedFd) -> Result<(), Error> {
    let step = || Error::errno("make the container's root this process's");
    let node = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step())?;
    rustix::process::fchdir(root).map_err(step())?;
    // The same directory twice: the old root comes to lie over the new one, and needs no place of its own in an image that may be read-only.
    rustix::process::pivot_root(".", ".").map_err(step())?;
    rustix::process::fchdir(&node).map_err(step())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(step())?;
    rustix::process::chdir("/").map_err(step())
}

/// The last of the root: its own propagation, and that nothing in it can be written.
pub(super) fn finish(root: &OwnedFd, plan: &Plan<'_>) -> Result<(), Error> {
    let asked = plan
        .linux
        .rootfs_propagation()
        .as_deref()
        .unwrap_or_default();
    let name = asked.strip_prefix('r').unwrap_or(asked);
    let kind = match name {
        "" | "private" => None,
        // What is below has its own by now.
        "shared" => Some(MountPropagationFlags::SHARED),
        "slave" => Some(MountPropagationFlags::DOWNSTREAM),
        "unbindable" => Some(MountPropagationFlags::UNBINDABLE),
        _ => {
            let refused = Error::errno(format!("set the root's propagation to {asked:?}"));
            return Err(refused(Errno::INVAL));
        }
    };
    if let Some(kind) = kind {
        let change = Change {
            propagation: kind.bits().into(),
            ..Change::default()
        };
        set_attributes(root.as_fd(), false, change)
            .map_err(Error::io(format!("set the root's propagation to {asked}")))?;
    }
    if plan.read_only {
        mount::read_only(root).map_err(Error::io("make the root read-only"))?;
    }
    Ok(())
}
