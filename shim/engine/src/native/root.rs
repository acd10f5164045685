//! What a container sees of files: its root with everything mounted in it, and nothing of the node.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_kernel::mount::{Change, set_attributes};
use nix::sched::CloneFlags;
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
    mount::{self, Ground, Options},
    userns::{IdMap, Userns},
};
use crate::{Error, cgroup::Cgroup};

/// Device number of `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// The root as a spec describes it.
pub(super) struct Plan<'a> {
    pub path: PathBuf,
    pub read_only: bool,
    pub cwd: &'a Path,
    pub mounts: &'a [Mount],
    /// One for each mount.
    pub id_maps: &'a [Option<IdMap>],
    pub linux: &'a Linux,
    pub cgroup: &'a Cgroup,
    /// Where there is one, [`build`] runs outside of it, and [`complete`] inside.
    pub userns: Option<&'a Userns>,
    /// Namespaces that are born with init.
    pub born: CloneFlags,
}

/// A root that is built, but for the mounts that are init's to make: their numbers, and the trees of binds among them.
pub(super) struct Built {
    pub root: OwnedFd,
    late: Vec<(usize, Option<OwnedFd>)>,
}

impl Plan<'_> {
    /// What shows a namespace that is not there yet, and what lies in such a mount.
    fn is_late(&self, at: usize) -> bool {
        let shown = |mount: &Mount, options: &Options| match mount.typ().as_deref() {
            _ if options.is_bind() => CloneFlags::empty(),
            Some("proc") => CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER,
            Some("sysfs") => CloneFlags::CLONE_NEWNET,
            Some("mqueue") => CloneFlags::CLONE_NEWIPC,
            Some("cgroup" | "cgroup2") if self.cgroup.is_unified() => CloneFlags::CLONE_NEWCGROUP,
            _ => CloneFlags::empty(),
        };
        let born = self.born | CloneFlags::CLONE_NEWUSER;
        let destination = self.mounts[at].destination();
        self.userns.is_some()
            && self.mounts[..=at].iter().any(|mount| {
                shown(mount, &Options::of(mount)).intersects(born)
                    && destination.starts_with(mount.destination())
            })
    }

    fn is_in_late(&self, path: &Path) -> bool {
        self.mounts
            .iter()
            .enumerate()
            .any(|(at, mount)| path.starts_with(mount.destination()) && self.is_late(at))
    }
}

/// Builds the root in this process's own mount namespace, with the node's root still below it.
pub(super) fn build(plan: &Plan<'_>) -> Result<Built, Error> {
    let options: Vec<Options> = plan.mounts.iter().map(Options::of).collect();
    let take = |at: usize| mount::take(&plan.mounts[at], &options[at], plan.id_maps[at].as_ref());
    // Binds that keep their source's peers are taken before this namespace loses them.
    let mut taken = Vec::with_capacity(plan.mounts.len());
    for (at, options) in options.iter().enumerate() {
        taken.push(match options.propagates() {
            true => Some(take(at)?),
            false => None,
        });
    }
    // From here on nothing that is mounted here is seen on the node.
    cut_off()?;

    let root =
        attach(&plan.path).map_err(Error::io(format!("mount the root {}", plan.path.display())))?;
    let ground = Ground {
        cgroup: plan.cgroup,
        userns: plan.userns,
    };
    let mut late = Vec::new();
    for (at, (mount, options)) in plan.mounts.iter().zip(&options).enumerate() {
        let tree = match taken[at].take() {
            None if options.is_bind() => Some(take(at)?),
            tree => tree,
        };
        if plan.is_late(at) {
            // A place in the root is made now: it may be read-only when the mount comes.
            if !plan.mounts[..at]
                .iter()
                .any(|m| mount.destination().starts_with(m.destination()))
            {
                mount::place(root.as_fd(), mount, options, tree.as_ref())?;
            }
            late.push((at, tree));
        } else {
            mount::mount(root.as_fd(), mount, options, tree, ground)?;
        }
    }
    let at = |path: &str| {
        let mut mounts = plan.mounts.iter().zip(&options);
        mounts.find(|(mount, _)| mount.destination() == Path::new(path))
    };
    let bound_dev = at("/dev").is_some_and(|(_, options)| options.is_bind());
    // A /dev of the node's has its nodes, and they are not ours to change.
    if !bound_dev {
        let devices = plan.linux.devices().as_deref().unwrap_or_default();
        device::make_all(root.as_fd(), devices, plan.userns.is_some())?;
        device::make_links(root.as_fd(), at("/dev/pts").is_some())?;
    }
    protect(&root, plan, false)?;
    if plan.userns.is_some() {
        if !plan.is_in_late(plan.cwd) {
            make_working_directory(&root, plan.cwd)?;
        }
        // Here it is locked; [`finish`] finds it done.
        if plan.read_only {
            mount::read_only(&root).map_err(Error::io("make the root read-only"))?;
        }
        // Where the root is, in the copy that init is born with.
        rustix::process::fchdir(&root).map_err(Error::errno("enter the container's root"))?;
    }
    Ok(Built { root, late })
}

/// In init, inside the user namespace, in whose copy of the mounts the working directory is the root: what was left for it. Answers
/// the root.
pub(super) fn complete(plan: &Plan<'_>, built: Built) -> Result<OwnedFd, Error> {
    let step = || Error::errno("mount the root in the container's user namespace");
    // The kernel has locked the root's mount in its place, and makes a locked one nobody's root: a second one over it. What is mounted
    // below stays locked.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let root = open_tree(CWD, ".", flags).map_err(step())?;
    move_mount(&root, "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step())?;
    let ground = Ground {
        cgroup: plan.cgroup,
        userns: None,
    };
    for (at, tree) in built.late {
        let mount = &plan.mounts[at];
        mount::mount(root.as_fd(), mount, &Options::of(mount), tree, ground)?;
    }
    protect(&root, plan, true)?;
    Ok(root)
}

/// Cuts the mounts of this namespace off from the node's.
fn cut_off() -> Result<(), Error> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(Error::errno("cut the mounts off from the node's"))
}

/// Masks what is to be hidden and makes read-only what is not to be written: of what lies in late mounts, or of the rest.
fn protect(root: &OwnedFd, plan: &Plan<'_>, late: bool) -> Result<(), Error> {
    let ours = |path: &&String| plan.is_in_late(Path::new(path)) == late;
    mask(
        root,
        plan.linux.masked_paths().iter().flatten().filter(ours),
    )?;
    for path in plan.linux.readonly_paths().iter().flatten().filter(ours) {
        make_read_only(root, Path::new(path))
            .map_err(Error::io(format!("make {path} read-only")))?;
    }
    Ok(())
}

/// As a Dockerfile's WORKDIR, which may lie in a volume: made where it is missing. Beneath the container's root, and through no link of
/// its /proc: descriptors of the node are still open here.
pub(super) fn make_working_directory(root: &OwnedFd, cwd: &Path) -> Result<(), Error> {
    if !cwd.is_absolute() {
        return Ok(());
    }
    let Err(error) = berth_beneath::ensure_directory(root, cwd) else {
        return Ok(());
    };
    match Errno::from_io_error(&error) {
        // A file system that turns root away, and what is no plain path: entering it, perhaps as the user, tells more.
        Some(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::INVAL) => Ok(()),
        _ => Err(Error::io(format!(
            "make working directory {}",
            cwd.display()
        ))(error)),
    }
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
fn mask<'a>(root: &OwnedFd, paths: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    // Of files, and of directories: made once, and cloned from where they are attached (what is attached nowhere is cloned since 6.15 only).
    let mut covers: [Option<OwnedFd>; 2] = [None, None];
    for path in paths {
        let step = || Error::io(format!("mask {path}"));
        let place = match beneath::open(root.as_fd(), Path::new(path)) {
            Ok(place) => place,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(step()(error)),
        };
        let directory = beneath::is_directory(&place).map_err(step())?;
        let kept = &mut covers[usize::from(directory)];
        let cover = match (&kept, directory) {
            (Some(attached), _) => mount::clone_place(attached.as_fd(), false),
            (None, true) => empty_directory(),
            (None, false) => null_device(),
        };
        let cover = cover.map_err(step())?;
        mount::attach(&cover, &place).map_err(step())?;
        kept.get_or_insert(cover);
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
