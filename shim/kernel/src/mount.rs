//! mount_setattr (Linux 5.12): the flags of a mount, and of what is mounted below it, in one call.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::CWD,
    mount::{OpenTreeFlags, open_tree},
};

use crate::userns::{self, IdMaps};

/// What changes; `MOUNT_ATTR_…` bits, and one of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
}

impl Change {
    /// Nothing to do.
    pub fn is_empty(self) -> bool {
        self == Change::default()
    }
}

/// Changes the mount that `mount` is the root of, and with `recursive` every one below it. The mount need not be attached
/// anywhere (open_tree, fsmount). EINVAL: `mount` is not the root of a mount.
pub fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, change: Change) -> io::Result<()> {
    set(
        mount,
        recursive,
        libc::mount_attr {
            attr_set: change.set,
            attr_clr: change.clear,
            propagation: change.propagation,
            userns_fd: 0,
        },
    )
}

/// Shows the owners of what is on a mount through the maps of a user namespace: an id-mapped mount (MOUNT_ATTR_IDMAP, Linux 5.12). The
/// mount must not be attached anywhere yet. EINVAL: its file system can't be mounted so. EPERM: it has a map already.
pub fn set_id_map(
    mount: BorrowedFd<'_>,
    recursive: bool,
    user_namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    set(
        mount,
        recursive,
        libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: user_namespace.as_raw_fd() as u64,
        },
    )
}

/// A mount of `directory`, nowhere to be seen, that shows the owners of what is in it through the maps. It is private: a copy of a
/// shared mount is its peer, and what is mounted over the one appears over the other. Errors as those of [`set_id_map`] and
/// [`userns::make`].
pub fn id_mapped(directory: &Path, maps: &IdMaps) -> io::Result<OwnedFd> {
    let user = userns::make(maps, false)?.user;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, directory, flags)?;
    set(
        tree.as_fd(),
        false,
        libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: libc::MS_PRIVATE,
            userns_fd: user.as_raw_fd() as u64,
        },
    )?;
    Ok(tree)
}

fn set(mount: BorrowedFd<'_>, recursive: bool, attributes: libc::mount_attr) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated string and `attributes` a live mount_attr of the size given; the kernel reads both.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_mount_is_refused() {
        let directory = std::fs::File::open("/proc/self").unwrap();
        let change = Change {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Change::default()
        };
        let refused = set_attributes(directory.as_fd(), false, change).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
