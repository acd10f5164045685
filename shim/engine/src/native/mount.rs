//! One mount of a spec: its options taken apart, made detached, and put in its place.
//!
//! A mount is made complete (flags, propagation) before it is anywhere to be seen: fsopen, open_tree and mount_setattr (Linux 5.2
//! and 5.12) make it, move_mount puts it where [`beneath`] has found its place.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_kernel::mount::{Change, set_attributes, set_id_map};
use oci_spec::runtime::Mount;
use rustix::{
    fs::{AtFlags, CWD, Gid, StatxFlags, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
        move_mount, open_tree,
    },
};

use super::{
    beneath::{self, Kind},
    userns::{IdMap, Userns},
};
use crate::{Error, cgroup::Cgroup};

/// A mount's options, as the runtime specification and mount(8) name them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    bind: bool,
    /// Also what is mounted below the source.
    recursive: bool,
    attributes: Change,
    /// For the whole tree: `rro`, `rnosuid` and their like.
    recursive_attributes: Change,
    propagation: u64,
    propagation_recursive: bool,
    /// Its owners are shown through a map; true: those of what is mounted below it, too.
    pub(super) id_mapped: Option<bool>,
    /// What the file system itself is told.
    data: Vec<String>,
}

/// Sets and clears of one flag.
fn attribute(name: &str) -> Option<Change> {
    let on = |flag: MountAttrFlags| {
        Some(Change {
            set: flag.bits().into(),
            ..Change::default()
        })
    };
    let off = |flag: MountAttrFlags| {
        Some(Change {
            clear: flag.bits().into(),
            ..Change::default()
        })
    };
    // The three are one field of the kernel's: the others are cleared with it.
    let atime = |flag: MountAttrFlags| {
        Some(Change {
            set: flag.bits().into(),
            clear: MountAttrFlags::MOUNT_ATTR__ATIME.bits().into(),
            ..Change::default()
        })
    };
    match name {
        "ro" => on(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "rw" => off(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "nosuid" => on(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "suid" => off(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "nodev" => on(MountAttrFlags::MOUNT_ATTR_NODEV),
        "dev" => off(MountAttrFlags::MOUNT_ATTR_NODEV),
        "noexec" => on(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "exec" => off(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "nodiratime" => on(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "diratime" => off(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => on(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => off(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => atime(MountAttrFlags::MOUNT_ATTR_NOATIME),
        "strictatime" => atime(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        // The kernel's default.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            atime(MountAttrFlags::MOUNT_ATTR_RELATIME)
        }
        _ => None,
    }
}

fn propagation(name: &str) -> Option<u64> {
    let flag = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "shared" => MountPropagationFlags::SHARED,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(flag.bits().into())
}

/// The later word counts.
fn and(before: Change, then: Change) -> Change {
    Change {
        set: before.set & !then.clear & !then.set | then.set,
        clear: before.clear & !then.set | then.clear,
        propagation: before.propagation,
    }
}

impl Options {
    pub(super) fn of(mount: &Mount) -> Options {
        let mut options = Options {
            bind: mount.typ().as_deref() == Some("bind"),
            ..Options::default()
        };
        for word in mount.options().iter().flatten() {
            let word = word.as_str();
            match word {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "idmap" => options.id_mapped = Some(false),
                "ridmap" => options.id_mapped = Some(true),
                "defaults" | "async" | "nomand" | "loud" => {}
                _ => {
                    if let Some(change) = attribute(word) {
                        options.attributes = and(options.attributes, change);
                    } else if let Some(kind) = propagation(word) {
                        (options.propagation, options.propagation_recursive) = (kind, false);
                    } else if let Some(kind) = word.strip_prefix('r').and_then(propagation) {
                        (options.propagation, options.propagation_recursive) = (kind, true);
                    } else if let Some(change) = word.strip_prefix('r').and_then(attribute) {
                        options.recursive_attributes = and(options.recursive_attributes, change);
                    } else {
                        options.data.push(word.to_owned());
                    }
                }
            }
        }
        options
    }

    #[cfg(test)]
    fn data_of(option: &str) -> Vec<String> {
        let mut mount = Mount::default();
        mount.set_options(Some(vec![option.to_owned()]));
        Options::of(&mount).data
    }

    pub(super) fn is_bind(&self) -> bool {
        self.bind
    }

    /// Whether mounts are to pass between the node and the container: such a bind keeps its source's peers, and so must be taken
    /// before this namespace's are cut off.
    pub(super) fn propagates(&self) -> bool {
        self.bind
            && [
                MountPropagationFlags::SHARED,
                MountPropagationFlags::DOWNSTREAM,
            ]
            .iter()
            .any(|flag| self.propagation == u64::from(flag.bits()))
    }
}

#[cfg(test)]
pub(super) fn takes(option: &str) -> bool {
    Options::data_of(option).is_empty()
}

/// What this engine does not build of a mount; the reference engine gets such a container.
pub(super) fn unsupported(mount: &Mount) -> Option<String> {
    let place = mount.destination().display();
    let own = ["tmpcopyup", "remount", "copy-symlink"];
    let options = mount.options().iter().flatten();
    options
        .into_iter()
        .find(|option| own.contains(&option.as_str()))
        .map(|option| format!("option {option} of mount {place}"))
}

fn clone_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(CWD, source, flags)?)
}

/// A second mount of what `place` is.
pub(super) fn clone_place(place: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(place, "", flags)?)
}

/// Puts a detached mount in its place.
pub(super) fn attach(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}

/// Makes every mount of a tree private: nothing passes to or from the node.
pub(super) fn cut_off(tree: &OwnedFd) -> io::Result<()> {
    let change = Change {
        propagation: MountPropagationFlags::PRIVATE.bits().into(),
        ..Change::default()
    };
    set_attributes(tree.as_fd(), true, change)
}

pub(super) fn read_only(tree: &OwnedFd) -> io::Result<()> {
    let change = Change {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..Change::default()
    };
    set_attributes(tree.as_fd(), false, change)
}

/// Why there is no tree.
#[derive(Debug)]
pub(super) enum Failed {
    Map(String),
    Bind(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Bind(error)
    }
}

/// A bind's tree, ready to be attached.
pub(super) fn bind(
    source: &Path,
    options: &Options,
    id_map: Option<&IdMap>,
) -> Result<OwnedFd, Failed> {
    let tree = clone_tree(source, options.recursive)?;
    if let Some(id_map) = id_map {
        // Never a plain bind instead (SEC-ENG-20).
        set_id_map(tree.as_fd(), id_map.recursive, id_map.namespace())
            .map_err(|error| not_mapped(source, options.recursive && id_map.recursive, error))?;
    }
    let default = u64::from(MountPropagationFlags::PRIVATE.bits());
    let (kind, recursive) = match options.propagation {
        0 => (default, true),
        kind => (kind, options.propagation_recursive),
    };
    let propagation = Change {
        propagation: kind,
        ..Change::default()
    };
    set_attributes(tree.as_fd(), recursive, propagation)?;
    for (change, recursive) in [
        (options.attributes, false),
        (options.recursive_attributes, true),
    ] {
        if !change.is_empty() {
            set_attributes(tree.as_fd(), recursive, change)?;
        }
    }
    Ok(tree)
}

/// Why a source can't be id-mapped, with the file systems that it might be for.
fn not_mapped(source: &Path, recursive: bool, error: io::Error) -> Failed {
    let kinds = file_systems(source, recursive).unwrap_or_default();
    let why = match Errno::from_io_error(&error) {
        Some(Errno::INVAL) => "this kernel can't mount that id-mapped".to_owned(),
        Some(Errno::PERM) => "it is id-mapped already".to_owned(),
        _ => error.to_string(),
    };
    Failed::Map(format!(
        "it lies on {}: {why}; a volume on a file system that can be (ext4, xfs, btrfs, tmpfs since Linux 6.3) would do, or a pod on the node's own users (hostUsers: true)",
        kinds.join(", ")
    ))
}

/// The kinds of the file system that a path lies on, and of those mounted below it.
fn file_systems(path: &Path, below: bool) -> io::Result<Vec<String>> {
    let path = path.canonicalize()?;
    let id = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let mountinfo = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mut kinds = Vec::new();
    for line in mountinfo.lines() {
        let (Some((left, right)), mut fields) = (line.split_once(" - "), line.split(' ')) else {
            continue;
        };
        let itself = fields.next().and_then(|id| id.parse().ok()) == Some(id);
        let inside = below
            && left
                .split(' ')
                .nth(4)
                .is_some_and(|at| Path::new(at).starts_with(&path));
        if let (true, Some(kind)) = (itself || inside, right.split(' ').next())
            && !kinds.iter().any(|known| known == kind)
        {
            kinds.push(kind.to_owned());
        }
    }
    Ok(kinds)
}

/// A file system of its own, ready to be attached.
pub(super) fn filesystem(
    kind: &str,
    source: &str,
    data: &[String],
    attributes: Change,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    for option in data {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::from_bits_retain(attributes.set as u32);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// What the mounts of a container have in common.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub cgroup: &'a Cgroup,
    /// The container's user namespace, where the mount is made from outside of it.
    pub userns: Option<&'a Userns>,
}

/// Makes one mount of a spec beneath `root`. `taken`: the tree of a bind that had to be taken before.
pub(super) fn mount(
    root: BorrowedFd<'_>,
    mount: &Mount,
    options: &Options,
    taken: Option<OwnedFd>,
    ground: Ground<'_>,
) -> Result<(), Error> {
    let destination = mount.destination();
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source = mount.source().as_deref();
    let step = step(mount);
    if kind == "cgroup" && !options.bind {
        return cgroups(root, destination, options, ground.cgroup).map_err(step("make"));
    }
    let tree = match taken {
        Some(tree) => tree,
        None if options.bind => {
            return Err(step("take the source of")(Errno::INVAL.into()));
        }
        None => {
            let source = source.and_then(Path::to_str).unwrap_or("none");
            let data = data(options, ground.userns).map_err(step("make"))?;
            let tree = filesystem(kind, source, &data, options.attributes).map_err(step("make"))?;
            if let (Some(userns), "devpts") = (ground.userns, kind) {
                own_terminals(&tree, userns).map_err(step("make"))?;
            }
            if options.propagation != 0 {
                let change = Change {
                    propagation: options.propagation,
                    ..Change::default()
                };
                set_attributes(tree.as_fd(), options.propagation_recursive, change)
                    .map_err(step("set the propagation of"))?;
            }
            tree
        }
    };
    let place = place(root, mount, options, Some(&tree))?;
    attach(&tree, &place).map_err(step("attach"))
}

fn step<'a>(mount: &'a Mount) -> impl Fn(&'a str) -> Box<dyn FnOnce(io::Error) -> Error> + 'a {
    move |what| Box::new(Error::io(named(mount, what)))
}

fn unfit(mount: &Mount, what: &str, reason: String) -> Error {
    Error::Unfit {
        step: named(mount, what),
        reason,
    }
}

fn named(mount: &Mount, what: &str) -> String {
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source = mount.source().as_deref().unwrap_or(Path::new("none"));
    format!(
        "{what} mount {} ({kind} {})",
        mount.destination().display(),
        source.display()
    )
}

/// Takes the tree of a bind.
pub(super) fn take(
    mount: &Mount,
    options: &Options,
    id_map: Option<&IdMap>,
) -> Result<OwnedFd, Error> {
    let step = step(mount);
    match mount.source().as_deref() {
        Some(source) => bind(source, options, id_map).map_err(|error| match error {
            // Our own words: of its id map.
            Failed::Map(reason) => unfit(mount, "map the ids of", reason),
            Failed::Bind(error) => step("take the source of")(error),
        }),
        None => Err(step("take the source of")(Errno::INVAL.into())),
    }
}

/// The place of a mount, made where it is missing. `tree`: what a bind will put there.
pub(super) fn place(
    root: BorrowedFd<'_>,
    mount: &Mount,
    options: &Options,
    tree: Option<&OwnedFd>,
) -> Result<OwnedFd, Error> {
    let step = step(mount);
    let directory = match tree {
        Some(tree) => beneath::is_directory(tree).map_err(step("look at"))?,
        None => true,
    };
    let kind = match directory {
        true => Kind::Directory,
        false => Kind::File,
    };
    // CVE-2023-27561: what is written to /proc and /sys later must be theirs.
    let links = options.bind || !matches!(mount.typ().as_deref(), Some("proc" | "sysfs"));
    let place = beneath::ensure(root, mount.destination(), kind, links)
        .map_err(step("find the place of"))?;
    // The kernel says EINVAL, which could mean anything.
    if beneath::is_directory(&place).map_err(step("look at"))? != directory {
        let reason = match directory {
            true => "a directory can't lie on the file that the image has there",
            false => "a file can't lie on the directory that the image has there",
        };
        return Err(unfit(mount, "attach", reason.to_owned()));
    }
    Ok(place)
}

/// What a file system is told. Users and groups are the container's, and so those of the node that they are mapped to where the file
/// system is made outside.
fn data(options: &Options, userns: Option<&Userns>) -> io::Result<Vec<String>> {
    let Some(Userns { maps, .. }) = userns else {
        return Ok(options.data.clone());
    };
    let mapped = |word: &String| {
        let (key, id) = match word.split_once('=') {
            Some((key @ ("uid" | "gid"), id)) => (key, id),
            _ => return Ok(word.clone()),
        };
        let mapped = id.parse().ok().and_then(|id| match key {
            "uid" => maps.uid(id),
            _ => maps.gid(id),
        });
        mapped
            .map(|id| format!("{key}={id}"))
            .ok_or_else(|| io::Error::other(format!("{word} is not mapped in its user namespace")))
    };
    options.data.iter().map(mapped).collect()
}

/// The kernel makes these root's of the namespace that mounts them.
fn own_terminals(tree: &OwnedFd, userns: &Userns) -> io::Result<()> {
    let (uid, gid) = userns.root();
    for (path, flags) in [
        ("", AtFlags::EMPTY_PATH),
        ("ptmx", AtFlags::SYMLINK_NOFOLLOW),
    ] {
        rustix::fs::chownat(
            tree,
            path,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            flags,
        )?;
    }
    Ok(())
}

/// The container's own cgroup: the v2 hierarchy seen from its cgroup namespace, or a tmpfs with a bind for each of v1's.
fn cgroups(
    root: BorrowedFd<'_>,
    destination: &Path,
    options: &Options,
    cgroup: &Cgroup,
) -> io::Result<()> {
    let place = beneath::ensure(root, destination, Kind::Directory, true)?;
    let Some(hierarchies) = cgroup.v1_places().map_err(io::Error::other)? else {
        let tree = filesystem("cgroup2", "cgroup", &[], options.attributes)?;
        return attach(&tree, &place);
    };
    let data = ["mode=755".to_owned(), "size=1m".to_owned()];
    let writable = Change {
        set: options.attributes.set & !u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
        ..Change::default()
    };
    let tmpfs = filesystem("tmpfs", "tmpfs", &data, writable)?;
    attach(&tmpfs, &place)?;
    for (name, directory) in hierarchies {
        let tree = clone_tree(&directory, false)?;
        cut_off(&tree)?;
        set_attributes(tree.as_fd(), false, options.attributes)?;
        let place = beneath::ensure(tmpfs.as_fd(), Path::new(&name), Kind::Directory, false)?;
        attach(&tree, &place)?;
    }
    set_attributes(tmpfs.as_fd(), false, options.attributes)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn options(words: &[&str]) -> Options {
        let mount = MountBuilder::default()
            .destination("/x")
            .options(words.iter().map(ToString::to_string).collect::<Vec<_>>())
            .build()
            .unwrap();
        Options::of(&mount)
    }

    #[test]
    fn words_are_flags_propagation_or_the_file_systems_own() {
        let rdonly = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
        let nosuid = u64::from(MountAttrFlags::MOUNT_ATTR_NOSUID.bits());
        let noatime = u64::from(MountAttrFlags::MOUNT_ATTR_NOATIME.bits());
        let atime = u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits());
        for (words, set, clear, data) in [
            (&["ro", "nosuid"][..], rdonly | nosuid, 0, &[][..]),
            // The later word counts.
            (&["ro", "rw"], 0, rdonly, &[]),
            (&["rw", "ro"], rdonly, 0, &[]),
            (&["noatime"], noatime, atime, &[]),
            (
                &["mode=755", "size=1m", "newinstance"],
                0,
                0,
                &["mode=755", "size=1m", "newinstance"],
            ),
        ] {
            let options = options(words);
            assert_eq!(options.attributes.set, set, "{words:?}");
            assert_eq!(options.attributes.clear, clear, "{words:?}");
            assert_eq!(options.data, data, "{words:?}");
        }
        let bound = options(&["rbind", "rslave", "rro"]);
        assert!(bound.bind && bound.recursive && bound.propagates());
        assert_eq!(bound.recursive_attributes.set, rdonly);
        assert!(bound.attributes.is_empty() && bound.propagation_recursive);
        assert!(!options(&["rbind", "rprivate"]).propagates());
        // A file system's word that begins with an r.
        assert_eq!(options(&["rootcontext=x"]).data, ["rootcontext=x"]);
    }
}
