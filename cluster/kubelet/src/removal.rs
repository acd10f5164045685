//! Directories go with all that is in them, but for what is mounted there: it may be somebody's volume. No link is followed and no mount is
//! crossed, also none that comes while this goes on: it is the kernel that refuses.
//!
//! A container may nest directories as deep as it likes. What lies too deep is moved up beside the topmost ones: so neither descriptors nor the stack
//! grow with the depth.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, open, renameat, unlinkat},
    io::Errno,
};

/// A mount is a way out, be it of the same file system.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Two descriptors each.
const MOST_DEPTH: usize = 64;

/// Removes `path`, which need not be there; of what is in it `last` goes when nothing else is left.
///
/// # Errors
/// Something is mounted there, or doesn't go; what was there of `last` still is.
pub(crate) fn remove(path: &Path, last: &[&CStr]) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Errno::INVAL.into());
    };
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    let above = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match open(parent.unwrap_or(Path::new(".")), above, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let dir = match berth_beneath::openat2(&parent, name, DIRECTORY, Mode::empty(), BENEATH) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        // a file, or a link, which goes and leaves what it leads to
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(&parent, name, AtFlags::empty())?),
        Err(errno) => return Err(mounted(errno, path)),
    };
    empty(&dir, last).map_err(|errno| mounted(errno, path))?;
    for name in last {
        match unlinkat(&dir, *name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(|errno| mounted(errno, path))
}

fn mounted(errno: Errno, path: &Path) -> io::Error {
    match errno {
        Errno::XDEV | Errno::BUSY => io::Error::other(format!(
            "something is mounted below {}, and nothing is removed through a mount",
            path.display()
        )),
        errno => errno.into(),
    }
}

/// All but `last`.
fn empty(root: &OwnedFd, last: &[&CStr]) -> rustix::io::Result<()> {
    let mut lifted = 0;
    // what was lifted is found by the next look
    below(root, last, 0, root, &mut lifted)
}

/// Empties a directory, but for `last`.
fn below(
    dir: &OwnedFd,
    last: &[&CStr],
    depth: usize,
    root: &OwnedFd,
    lifted: &mut u64,
) -> rustix::io::Result<()> {
    // what is removed while a directory is read may hide what is there
    loop {
        let mut found = false;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || last.contains(&name) {
                continue;
            }
            found = true;
            if is_gone(dir, name)? {
                continue;
            }
            if depth == MOST_DEPTH {
                lift(dir, name, root, lifted)?;
                continue;
            }
            let inner = berth_beneath::openat2(dir, name, DIRECTORY, Mode::empty(), BENEATH)?;
            below(&inner, &[], depth + 1, root, lifted)?;
            unlinkat(dir, name, AtFlags::REMOVEDIR)?;
        }
        if !found {
            return Ok(());
        }
    }
}

/// Moves a directory to `root`.
fn lift(dir: &OwnedFd, name: &CStr, root: &OwnedFd, lifted: &mut u64) -> rustix::io::Result<()> {
    loop {
        *lifted += 1;
        let new = format!(".going-{lifted}");
        match renameat(dir, name, root, new.as_str()) {
            // something has that name
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            renamed => return renamed,
        }
    }
}

/// Removes a file or an empty directory; false: a directory that is not empty.
fn is_gone(dir: impl AsFd, name: &CStr) -> rustix::io::Result<bool> {
    match unlinkat(dir.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(dir.as_fd(), name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::{
        fs::{mkdirat, openat},
        mount::{UnmountFlags, mount_bind, unmount},
    };

    use super::*;
    use crate::volume::tests::in_own_mounts;

    #[test]
    fn a_directory_goes_with_all_that_is_in_it_however_deep_and_what_links_lead_to_stays() {
        /// A path of so many is one that no call takes.
        const DEPTH: usize = 3 * MOST_DEPTH;
        let top = tempfile::tempdir().unwrap();
        let (dir, other) = (top.path().join("dir"), top.path().join("other"));
        fs::create_dir_all(dir.join("a/.going-1/b")).unwrap();
        fs::write(dir.join(".going-2"), "").unwrap();
        fs::create_dir_all(dir.join("d/e/f")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "kept").unwrap();
        symlink(&other, dir.join("link")).unwrap();
        symlink(&other, dir.join("d/e/link")).unwrap();
        let name = "deep".repeat(50);
        let mut at = open(&dir, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, &*name, Mode::RWXU).unwrap();
            at = openat(&at, &*name, DIRECTORY, Mode::empty()).unwrap();
        }
        fs::write(dir.join("last"), "").unwrap();
        remove(&dir, &[c"last"]).unwrap();
        assert!(!dir.exists());
        assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "kept");
        // nothing there, and a link itself
        remove(&dir, &[]).unwrap();
        remove(&dir.join("below"), &[]).unwrap();
        symlink(&other, &dir).unwrap();
        remove(&dir, &[]).unwrap();
        assert!(dir.symlink_metadata().is_err() && other.join("file").exists());
    }

    /// The worst of all: a volume that is mounted still when its pod's directory goes (PV-01).
    #[test]
    fn what_is_mounted_is_let_be_be_it_of_the_same_file_system_pv_01() {
        in_own_mounts(|| {
            let top = tempfile::tempdir().unwrap();
            let (dir, volume) = (top.path().join("dir"), top.path().join("volume"));
            let at = dir.join("volumes/v");
            fs::create_dir_all(&at).unwrap();
            fs::create_dir_all(volume.join("below/deeper")).unwrap();
            for file in ["file", "below/deeper/file"] {
                fs::write(volume.join(file), "data").unwrap();
            }
            let is_whole = || {
                ["file", "below/deeper/file"]
                    .iter()
                    .all(|file| fs::read_to_string(volume.join(file)).is_ok_and(|it| it == "data"))
            };
            fs::write(dir.join("last"), "").unwrap();
            mount_bind(&volume, &at).unwrap();
            let said = remove(&dir, &[c"last"]).unwrap_err().to_string();
            assert!(said.contains("something is mounted below"), "{said}");
            assert!(is_whole() && dir.join("last").exists());
            // a directory in the midst, and one that is the mount itself
            assert!(remove(&at, &[]).is_err() && is_whole());
            unmount(&at, UnmountFlags::empty()).unwrap();
            remove(&dir, &[c"last"]).unwrap();
            assert!(is_whole() && !dir.exists());
        });
    }

    #[test]
    fn what_is_to_go_last_is_there_as_long_as_anything_is() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("last"), "").unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        let dir = open(top.path(), DIRECTORY, Mode::empty()).unwrap();
        empty(&dir, &[c"last"]).unwrap();
        let left: Vec<_> = fs::read_dir(top.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "last");
    }
}
