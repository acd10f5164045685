//! Mounts whose owners are shown through the maps of a user namespace: containerd's options `uidmap=` and `gidmap=`, for pods that have one.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use berth_kernel::{
    mount::{id_mapped, set_id_map},
    userns::{self, IdMaps, Mapping},
};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

/// What the kernel takes (Linux 4.15).
const MAX_RANGES: usize = 340;

/// Ranges as containerd writes them: `inside:outside:count`, parted by commas.
pub fn ranges(text: &str) -> Result<Vec<Mapping>, String> {
    let range = |text: &str| {
        let mut numbers = text.split(':').map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let range = Mapping {
            inside: next()?,
            outside: next()?,
            count: next()?,
        };
        (numbers.next().is_none() && range.count > 0).then_some(range)
    };
    let all: Option<Vec<Mapping>> = text.split(',').take(MAX_RANGES + 1).map(range).collect();
    match all {
        Some(all) if all.len() <= MAX_RANGES => Ok(all),
        Some(_) => Err(format!("it has more than {MAX_RANGES} ranges")),
        None => Err("it is no list of ranges (inside:outside:count)".into()),
    }
}

/// Both maps, or none.
pub fn both(
    uids: Option<Vec<Mapping>>,
    gids: Option<Vec<Mapping>>,
) -> Result<Option<IdMaps>, String> {
    match (uids, gids) {
        (None, None) => Ok(None),
        (Some(uids), Some(gids)) => Ok(Some(IdMaps { uids, gids })),
        (Some(_), None) => Err("option uidmap needs a gidmap beside it".into()),
        (None, Some(_)) => Err("option gidmap needs a uidmap beside it".into()),
    }
}

/// Mounts an overlay at `target` by `mount`, which is given the paths of its layers as they are reached through a mount with the maps.
///
/// An overlay can't be id-mapped itself (EINVAL up to Linux 6.18), but its layers can (Linux 5.19): by way of one mount of the directory that
/// they all lie in. The upper directory is not: the kernel works in it as the node's root, and who has made it has given it its owner.
pub fn overlay(
    maps: &IdMaps,
    layers: &[String],
    target: &Path,
    mount: impl Fn(&[String]) -> io::Result<()>,
) -> io::Result<()> {
    let common = common_directory(layers).ok_or_else(|| {
        let why = "its layers lie in no directory but / together: it can't be id-mapped";
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    let store = id_mapped(&common, maps).map_err(|error| {
        let why = format!("mount {} id-mapped: {error}", common.display());
        io::Error::new(error.kind(), why)
    })?;
    let through = |at: &Path| -> Vec<String> {
        let below = |layer: &String| {
            Path::new(layer)
                .strip_prefix(&common)
                .map(|path| at.join(path))
        };
        let moved = layers.iter().flat_map(below);
        moved.map(|path| path.display().to_string()).collect()
    };
    let nowhere = PathBuf::from(format!("/proc/self/fd/{}", store.as_raw_fd()));
    match mount(&through(&nowhere)) {
        // Layers of a mount that is nowhere are taken from Linux 6.15 on: before, it is where the overlay is going to be, and hidden below.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&store, "", CWD, target, flags)?;
            mount(&through(target))
        }
        other => other,
    }
}

/// Shows what is mounted at `target` through the maps, by a copy of it that covers it.
pub fn cover(maps: &IdMaps, target: &Path) -> io::Result<()> {
    let user = userns::make(maps, false)?.user;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, target, flags)?;
    set_id_map(tree.as_fd(), true, user.as_fd())?;
    Ok(move_mount(
        &tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// The deepest directory that holds all of them; None where that is the root.
fn common_directory(layers: &[String]) -> Option<PathBuf> {
    let mut common = Path::new(layers.first()?).parent()?;
    for layer in layers {
        while !Path::new(layer).starts_with(common) || Path::new(layer) == common {
            common = common.parent()?;
        }
    }
    (common.is_absolute() && common.parent().is_some()).then(|| common.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_containerd_writes_them_or_refused() {
        let range = |inside, outside, count| Mapping {
            inside,
            outside,
            count,
        };
        assert_eq!(
            ranges("0:65536:1000,1000:5:1").unwrap(),
            [range(0, 65536, 1000), range(1000, 5, 1)]
        );
        for text in [
            "",
            "0",
            "0:1",
            "0:1:2:3",
            "0:1:x",
            "0:1:0",
            "-1:0:1",
            "0:1:2,",
            "0:4294967296:1",
        ] {
            assert!(ranges(text).is_err(), "{text}");
        }
        let many = vec!["0:1:1"; MAX_RANGES + 1].join(",");
        assert!(ranges(&many).unwrap_err().contains("340"));
        assert!(both(Some(Vec::new()), None).unwrap_err().contains("gidmap"));
        assert!(both(None, Some(Vec::new())).unwrap_err().contains("uidmap"));
    }

    #[test]
    fn layers_have_a_directory_in_common_or_none() {
        for (layers, common) in [
            (vec!["/s/1/fs", "/s/2/fs"], Some("/s")),
            (vec!["/s/1/fs"], Some("/s/1")),
            (vec!["/s/1/fs", "/s/1/fs"], Some("/s/1")),
            (vec!["/s/1", "/s/1/fs"], Some("/s")),
            (vec!["/s/1/fs", "/t/2/fs"], None),
            (vec!["/a"], None),
            (vec!["a/b"], None),
            (vec![], None),
        ] {
            let layers: Vec<String> = layers.into_iter().map(str::to_owned).collect();
            let found = common_directory(&layers);
            assert_eq!(found.as_deref(), common.map(Path::new), "{layers:?}");
        }
    }
}
