//! Removes a directory tree by descriptors: it follows no link, crosses no mount, needs no free space and no path (SEC-IMG-16).

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::error::Error;

/// Descriptors that one removal holds at most. What lies deeper is moved up to the top of the tree first.
const MAX_OPEN_LEVELS: usize = 64;
/// A directory that fills again this often while it is emptied is being written to.
const MAX_PASSES: usize = 1000;

struct Level {
    fd: OwnedFd,
    entries: Dir,
    name: CString,
    passes: usize,
}

/// Removes what is at `path`, whatever it is. Nothing there is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::io("remove", path, Errno::INVAL));
    };
    let parent = match rustix::fs::openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Error::io("open to remove", parent, errno)),
    };
    let name = CString::new(name.as_encoded_bytes())
        .map_err(|_| Error::io("remove", path, Errno::INVAL))?;
    remove_at(parent.as_fd(), &name, path)
}

/// Removes `name` in `parent`; `shown` is its path for messages.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr, shown: &Path) -> Result<(), Error> {
    let mut stack: Vec<Level> = Vec::new();
    match try_unlink(parent, name, None) {
        Ok(Unlinked::Gone) => return Ok(()),
        Ok(Unlinked::NotEmpty) => stack.push(open(parent, name, shown)?),
        Err(errno) => return Err(failed(shown.to_owned(), errno)),
    }
    let mut serial = 0u64;
    while let Some(level) = stack.last_mut() {
        let entry = level.entries.read();
        let Some(entry) = entry else {
            // All read: now it should be empty, or something came in behind the reader (our own moves do).
            let level = stack.pop().expect("a level was just seen");
            let above = stack.last().map_or(parent, |l| l.fd.as_fd());
            match rustix::fs::unlinkat(above, level.name.as_c_str(), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY) if level.passes < MAX_PASSES => {
                    let passes = level.passes + 1;
                    let name = level.name.clone();
                    drop(level);
                    let mut again = open(above, &name, &path_of(shown, &stack, &name))?;
                    again.passes = passes;
                    stack.push(again);
                }
                Err(errno) => return Err(failed(path_of(shown, &stack, &level.name), errno)),
            }
            continue;
        };
        let entry = entry.map_err(|errno| Error::io("read directory", shown, errno))?;
        let name = entry.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let above = stack.last().expect("a level was just seen").fd.as_fd();
        match try_unlink(above, &name, Some(entry.file_type())) {
            Ok(Unlinked::Gone) => {}
            Ok(Unlinked::NotEmpty) if stack.len() < MAX_OPEN_LEVELS => {
                let next = open(above, &name, &path_of(shown, &stack, &name))?;
                stack.push(next);
            }
            Ok(Unlinked::NotEmpty) => {
                serial += 1;
                let target = format!(".removed-{serial}-{:016x}", rand::random::<u64>());
                rustix::fs::renameat(above, name.as_c_str(), &stack[0].fd, target.as_str())
                    .map_err(|errno| failed(path_of(shown, &stack, &name), errno))?;
            }
            Err(errno) => return Err(failed(path_of(shown, &stack, &name), errno)),
        }
    }
    Ok(())
}

enum Unlinked {
    Gone,
    NotEmpty,
}

fn try_unlink(
    parent: BorrowedFd<'_>,
    name: &CStr,
    kind: Option<FileType>,
) -> Result<Unlinked, Errno> {
    if !matches!(kind, Some(FileType::Directory)) {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Unlinked::Gone),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Gone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Unlinked::NotEmpty),
        // Swapped for something else since it was listed.
        Err(Errno::NOTDIR) => match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Gone),
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    }
}

fn open(parent: BorrowedFd<'_>, name: &CStr, shown: &Path) -> Result<Level, Error> {
    // NO_XDEV refuses bind mounts of the same file system too (openat2, Linux 5.6).
    let fd = berth_beneath::openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
    .map_err(|errno| failed(shown.to_owned(), errno))?;
    let entries = Dir::read_from(&fd).map_err(|errno| failed(shown.to_owned(), errno))?;
    Ok(Level {
        fd,
        entries,
        name: name.to_owned(),
        passes: 0,
    })
}

fn failed(path: PathBuf, errno: Errno) -> Error {
    match errno {
        Errno::XDEV | Errno::BUSY => Error::MountInside { path },
        errno => Error::io("remove", path, errno),
    }
}

fn path_of(shown: &Path, stack: &[Level], name: &CStr) -> PathBuf {
    let mut path = shown.to_owned();
    // The first level is `shown` itself.
    for level in stack.iter().skip(1) {
        path.push(String::from_utf8_lossy(level.name.to_bytes()).as_ref());
    }
    if !stack.is_empty() {
        path.push(String::from_utf8_lossy(name.to_bytes()).as_ref());
    }
    path
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn removal_follows_no_link_and_crosses_no_mount() {
        // SEC-IMG-16
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("token"), "alive").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&canary, tree.join("a/link")).unwrap();
        symlink("/", tree.join("root")).unwrap();
        fs::create_dir(tree.join("a/bind")).unwrap();
        mount(
            Some(&canary),
            &tree.join("a/bind"),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();

        let error = remove_tree(&tree).unwrap_err();
        umount2(&tree.join("a/bind"), MntFlags::MNT_DETACH).unwrap();
        assert!(
            matches!(&error, Error::MountInside { path } if path.ends_with("tree/a/bind")),
            "{error}"
        );
        assert_eq!(fs::read_to_string(canary.join("token")).unwrap(), "alive");

        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(canary.join("token")).unwrap(), "alive");
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("no/such")).unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_tree_is_removed_and_not_what_it_points_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/token"), "alive").unwrap();
        symlink("canary", dir.path().join("tree")).unwrap();
        remove_tree(&dir.path().join("tree")).unwrap();
        assert!(dir.path().join("canary/token").exists());
        assert!(!dir.path().join("tree").is_symlink());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed_with_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut fd =
            rustix::fs::open(&tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&fd, "d", Mode::RWXU).unwrap();
            rustix::fs::mknodat(&fd, "f", FileType::RegularFile, Mode::RWXU, 0).unwrap();
            fd = rustix::fs::openat(&fd, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .unwrap();
        }
        drop(fd);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
