//! Device nodes, the links that /dev has, and the console.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Uid, major, makedev, minor},
    io::Errno,
};

use super::{
    beneath::{self, Kind},
    mount,
};
use crate::Error;

/// What every container has, whatever its spec says (runtime specification, "Default Devices"): name, major, minor.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const DEFAULT_MODE: u32 = 0o666;

/// Links of /dev ("Default Devices", and what a shell's `/dev/fd` needs).
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

struct Node<'a> {
    kind: FileType,
    number: u64,
    mode: u32,
    owner: Option<(u32, u32)>,
    path: &'a Path,
}

/// Makes the nodes of a spec and those that every container has, beneath `root`.
///
/// From outside of the container's user namespace (`outside`) the nodes of a spec keep the owner that they have on the node, as a bind of
/// the node's own would: whom it shuts out there, root of a container is not to be.
pub(super) fn make_all(
    root: BorrowedFd<'_>,
    devices: &[LinuxDevice],
    outside: bool,
) -> Result<(), Error> {
    let step = |path: &Path| {
        let step = format!("make device {}", path.display());
        // Without an errno it is our own word on what the image has there.
        move |source: io::Error| match source.raw_os_error() {
            Some(_) => Error::Io { step, source },
            None => Error::Unfit {
                step,
                reason: source.to_string(),
            },
        }
    };
    let dev_path = Path::new("/dev");
    let dev = beneath::ensure(root, dev_path, Kind::Directory, false).map_err(step(dev_path))?;
    for (name, major, minor) in DEFAULT {
        let path = dev_path.join(name);
        if devices.iter().any(|device| *device.path() == path) {
            continue;
        }
        let node = Node {
            kind: FileType::CharacterDevice,
            number: makedev(major, minor),
            mode: DEFAULT_MODE,
            owner: None,
            path: Path::new(name),
        };
        make(dev.as_fd(), &node).map_err(step(&path))?;
    }
    for device in devices {
        let path = device.path();
        let (parent, name) = beneath::split(path).map_err(step(path))?;
        let parent = beneath::ensure(root, parent, Kind::Directory, true).map_err(step(path))?;
        let number = makedev(device.major() as u32, device.minor() as u32);
        let node = Node {
            kind: match device.typ() {
                LinuxDeviceType::B => FileType::BlockDevice,
                LinuxDeviceType::P => FileType::Fifo,
                _ => FileType::CharacterDevice,
            },
            number,
            mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
            owner: Some((device.uid().unwrap_or(0), device.gid().unwrap_or(0)))
                .filter(|owner| outside || *owner != (0, 0)),
            path: Path::new(name),
        };
        make(parent.as_fd(), &node).map_err(step(path))?;
    }
    Ok(())
}

fn make(parent: BorrowedFd<'_>, node: &Node<'_>) -> io::Result<()> {
    let mode = Mode::from_raw_mode(node.mode);
    match rustix::fs::mknodat(parent, node.path, node.kind, mode, node.number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            // The image's own, or that of an earlier container on the same root: only the very device will do (SEC-ENG-03).
            let stat = rustix::fs::statat(parent, node.path, AtFlags::SYMLINK_NOFOLLOW)?;
            let same =
                FileType::from_raw_mode(stat.st_mode) == node.kind && stat.st_rdev == node.number;
            if !same {
                return Err(io::Error::other(format!(
                    "the image has something else there than device {}:{}",
                    major(node.number),
                    minor(node.number)
                )));
            }
        }
        Err(error) => return Err(error.into()),
    }
    if let Some((uid, gid)) = node.owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(
            parent,
            node.path,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

/// The links of /dev; what the image has at their names stays. `/dev/ptmx` is that of the container's own devpts.
pub(super) fn make_links(root: BorrowedFd<'_>, own_pts: bool) -> Result<(), Error> {
    let step = || Error::io("make the links of /dev");
    let dev = beneath::open_without_links(root, Path::new("/dev")).map_err(step())?;
    for (target, name) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(step()(error.into())),
        }
    }
    if own_pts {
        match rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(step()(error.into())),
        }
        rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx").map_err(|e| step()(e.into()))?;
    }
    Ok(())
}

/// Mounts a terminal at /dev/console: of the open terminal itself, not of a path that might name something else by now
/// (SEC-ENG-04, CVE-2025-52565).
pub(super) fn bind_console(root: BorrowedFd<'_>, slave: &OwnedFd) -> Result<(), Error> {
    let step = || Error::io("put the terminal at /dev/console");
    let place =
        beneath::ensure(root, Path::new("/dev/console"), Kind::File, false).map_err(step())?;
    let tree = mount::clone_place(slave.as_fd(), false).map_err(step())?;
    mount::attach(&tree, &place).map_err(step())
}
