//! What is mounted below a directory.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
};

use crate::Error;

/// A volume that is mounted over and over by somebody is given up.
const ROUNDS: usize = 8;

pub(super) fn is_mounted(path: &Path) -> Result<bool, Error> {
    let Some(path) = canonical(path)? else {
        return Ok(false);
    };
    Ok(below(&path)?.contains(&path))
}

/// The deepest first.
fn below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = std::fs::read(TABLE).map_err(Error::file("read", TABLE))?;
    Ok(parse(&table, dir))
}

/// As the kernel names it in its table, which has no links: the kubelet's directory may lie behind one. None where there is nothing.
fn canonical(path: &Path) -> Result<Option<PathBuf>, Error> {
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("find", path)(error)),
    }
}

fn parse(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|path| path.starts_with(dir))
        .collect();
    // later mounts stand later in the table, and over the earlier ones
    found.reverse();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// `\040` is a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Detaches what is mounted at `path` and below it; that nothing is is fine.
///
/// # Errors
/// That something still is.
pub(super) fn unmount_below(path: &Path) -> Result<(), Error> {
    let Some(path) = canonical(path)? else {
        return Ok(());
    };
    for _ in 0..ROUNDS {
        let mounts = below(&path)?;
        if mounts.is_empty() {
            return Ok(());
        }
        // The topmost first. What lies below one of the node's own that is shared would otherwise go there, too.
        for mount in mounts.iter().rev() {
            let_go(mount)?;
        }
        for mount in mounts {
            let_go(&mount)?;
            match unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // gone since the look
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(errno) => return Err(Error::file("unmount", mount)(errno.into())),
            }
        }
    }
    Err(Error::file("unmount all below", path)(
        std::io::Error::other("it is mounted again and again"),
    ))
}

/// Has what happens below a mount happen nowhere else.
fn let_go(mount: &Path) -> Result<(), Error> {
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    match mount_change(mount, alone) {
        // gone since the look, or behind another mount
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::file("make private", mount)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, mount, mount_bind_recursive};

    use super::*;
    use crate::volume::tests::in_own_mounts;

    #[test]
    fn a_directory_is_looked_up_as_the_kernel_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir_all(real.join("pods")).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let of = |name: &str| canonical(&dir.path().join(name)).unwrap();
        assert_eq!(of("link/pods"), Some(real.join("pods")));
        assert_eq!(of("link/none"), None);
        assert!(is_mounted(Path::new("/proc/self/../../proc")).unwrap());
        assert!(!is_mounted(&real).unwrap());
    }

    /// On a machine whose mounts are shared, as under systemd.
    #[test]
    fn what_is_unmounted_below_a_copy_stays_where_it_was() {
        in_own_mounts(|| {
            let top = tempfile::tempdir().unwrap();
            let at = |name: &str| top.path().join(name);
            for name in ["host", "pod"] {
                std::fs::create_dir(at(name)).unwrap();
            }
            let tmpfs = |path: &Path| mount("t", path, "tmpfs", MountFlags::empty(), c"").unwrap();
            tmpfs(&at("host"));
            mount_change(at("host"), MountPropagationFlags::SHARED).unwrap();
            std::fs::create_dir(at("host/disk")).unwrap();
            tmpfs(&at("host/disk"));
            std::fs::write(at("host/disk/file"), "").unwrap();
            mount_bind_recursive(at("host"), at("pod")).unwrap();
            // one over the other
            mount_bind_recursive(at("host"), at("pod")).unwrap();
            assert!(is_mounted(&at("pod/disk")).unwrap());
            unmount_below(&at("pod")).unwrap();
            assert!(!is_mounted(&at("pod")).unwrap() && !at("pod/disk").exists());
            assert!(is_mounted(&at("host/disk")).unwrap() && at("host/disk/file").exists());
            unmount_below(&at("host")).unwrap();
        });
    }

    #[test]
    fn mounts_below_a_directory_are_found_the_deepest_first() {
        let table = b"1 2 0:1 / / rw - ext4 x rw\n\
                      3 1 0:2 / /k/pods/a rw - tmpfs t rw\n\
                      4 1 0:2 / /k/pods/a/v\\040w/x rw shared:1 - tmpfs t rw\n\
                      5 1 0:2 / /k/pods/ab rw - tmpfs t rw\n";
        assert_eq!(
            parse(table, Path::new("/k/pods/a")),
            [Path::new("/k/pods/a/v w/x"), Path::new("/k/pods/a")]
        );
        assert!(parse(table, Path::new("/k/pods/b")).is_empty());
        assert_eq!(unescape(b"a\\134b\\0"), b"a\\b\\0");
    }
}
