//! Paths of a container, resolved beneath its root by the kernel (openat2, Linux 5.6): an image, or a neighbour with a shared volume,
//! may have put a link at any of them, or exchange one while we look (SEC-ENG-06, SEC-ENG-07).

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Opens a path as a place (O_PATH): links are followed, and lead nowhere outside of `root`.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_with(
        root,
        path,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// As [`open`], and a link anywhere in the path is ELOOP.
pub(super) fn open_without_links(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_with(
        root,
        path,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    )
}

fn open_with(root: BorrowedFd<'_>, path: &Path, how: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(berth_beneath::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        how,
    )?)
}

/// Opens a path, and makes what is missing of it: directories 0755, at its end what `kind` says. `links`: whether it may have any.
pub(super) fn ensure(
    root: BorrowedFd<'_>,
    path: &Path,
    kind: Kind,
    links: bool,
) -> io::Result<OwnedFd> {
    let opened = if links {
        open(root, path)
    } else {
        open_without_links(root, path)
    };
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let (parent, name) = split(path)?;
    let parent = ensure(root, parent, Kind::Directory, links)?;
    let made = match kind {
        Kind::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => rustix::fs::mknodat(
            &parent,
            name,
            FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        ),
    };
    match made {
        // A link to nothing is found below; what another container made meanwhile is as good.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open_without_links(parent.as_fd(), Path::new(name))
}

/// The directory and the last component of a path.
pub(super) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new("/")
            } else {
                parent
            };
            Ok((parent, name))
        }
        _ => Err(Errno::INVAL.into()),
    }
}

pub(super) fn is_directory(place: &OwnedFd) -> io::Result<bool> {
    let stat = rustix::fs::statat(place, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn path_of(fd: &OwnedFd) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn what_is_missing_is_made_inside_whatever_links_say() {
        let outside = tempfile::tempdir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("run")).unwrap();
        symlink("/run", root.join("absolute")).unwrap();
        symlink("../../../run", root.join("upwards")).unwrap();
        symlink(outside.path(), root.join("outside")).unwrap();
        symlink("/missing", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let fd = fs::File::open(root).unwrap();
        for (path, kind, at) in [
            ("/absolute/a/b", Kind::Directory, Some("run/a/b")),
            ("/upwards/c", Kind::File, Some("run/c")),
            ("/../../d", Kind::File, Some("d")),
            ("/new/../e", Kind::File, None),
            ("/outside/f", Kind::File, None),
            ("/dangling", Kind::Directory, None),
            ("/loop/g", Kind::Directory, None),
            ("/", Kind::Directory, Some("")),
        ] {
            let made = ensure(fd.as_fd(), Path::new(path), kind, true);
            match at {
                Some(at) => {
                    assert_eq!(path_of(&made.unwrap()), root.join(at), "{path}");
                    assert_eq!(root.join(at).is_dir(), kind == Kind::Directory, "{path}");
                }
                None => assert!(made.is_err(), "{path}"),
            }
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let refused = ensure(fd.as_fd(), Path::new("/absolute/x"), Kind::Directory, false);
        assert_eq!(
            refused.unwrap_err().raw_os_error(),
            Some(Errno::LOOP.raw_os_error())
        );
    }
}
