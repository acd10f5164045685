//! Network namespaces, pinned by a bind mount.
//!
//! The directory needs no mount of its own: removing the file takes the pin out of every mount namespace that has a copy of it
//! (Linux 3.18 detaches what is mounted on a file that is unlinked elsewhere), so no other process's copy keeps a pod's namespace.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use crate::{Error, netlink::Socket};

/// The calling thread's own namespace, whatever the process's others are in.
const OWN: &str = "/proc/thread-self/ns/net";
/// Mounts that may lie on top of each other at a pin (ours is one; a person may have made more).
const MAX_STACKED: usize = 16;

/// A thread's way back to the host's namespace.
#[derive(Debug)]
pub struct Home(File);

impl Home {
    pub fn remember() -> Result<Self, Error> {
        File::open(OWN).map(Self).map_err(|source| Error::Netns {
            what: "open the host's",
            path: OWN.into(),
            source,
        })
    }

    fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }
}

/// A new namespace, with a socket inside.
#[derive(Debug)]
pub struct Made {
    pub file: File,
    pub socket: Socket,
}

/// Makes a namespace and pins it at `path`, where nothing may be yet; `given`: one that is there already, new and empty. The thread is back home afterwards; on an error it may not be and must end.
pub fn make(home: &Home, path: &Path, given: Option<File>) -> Result<Made, Error> {
    let at = |what| {
        move |source: io::Error| Error::Netns {
            what,
            path: path.to_owned(),
            source,
        }
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(at("make the file of"))?;
    berth_failpoint::site!("network.netns.file_made").map_err(at("make"))?;
    let made = match given {
        Some(file) => furnish(home, file, path)?,
        None => make_unpinned(home, path)?,
    };
    bind(&made.file, path)?;
    berth_failpoint::site!("network.netns.pinned").map_err(at("pin"))?;
    Ok(made)
}

/// Makes a namespace that lives as long as its file is open; `path` is for errors. The thread is back home afterwards; on an error it may not be
/// and must end.
pub fn make_unpinned(home: &Home, path: &Path) -> Result<Made, Error> {
    let at = |what| {
        move |source: io::Error| Error::Netns {
            what,
            path: path.to_owned(),
            source,
        }
    };
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| at("make")(e.into()))?;
    let socket = settle(path)?;
    let file = File::open(OWN).map_err(at("open"))?;
    home.enter().map_err(at("come back from"))?;
    Ok(Made { file, socket })
}

/// The same of one that somebody else has made.
fn furnish(home: &Home, file: File, path: &Path) -> Result<Made, Error> {
    let at = |what| {
        move |source: io::Error| Error::Netns {
            what,
            path: path.to_owned(),
            source,
        }
    };
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| at("enter")(e.into()))?;
    let socket = settle(path);
    home.enter().map_err(at("come back from"))?;
    let socket = socket?;
    Ok(Made { file, socket })
}

/// What is done first in a new namespace, by a thread that is in it.
fn settle(path: &Path) -> Result<Socket, Error> {
    // Before the pod's link is there, so that it never takes a router's word (SEC-NET-04) or waits for duplicates of an address.
    for (key, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
        sysctl_ipv6("default", key, value)?;
    }
    Socket::open().map_err(|source| Error::Netns {
        what: "open a netlink socket in",
        path: path.to_owned(),
        source,
    })
}

/// Pins a namespace at `path`, where nothing may be yet.
pub fn pin(namespace: &File, path: &Path) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::Netns {
            what: "make the file of",
            path: path.to_owned(),
            source,
        })?;
    bind(namespace, path)
}

fn bind(namespace: &File, path: &Path) -> Result<(), Error> {
    let own = format!("/proc/thread-self/fd/{}", namespace.as_raw_fd());
    mount(
        Some(own.as_str()),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|e| Error::Netns {
        what: "pin",
        path: path.to_owned(),
        source: e.into(),
    })
}

/// A netlink socket inside the namespace that is pinned at `path`.
pub fn socket_in(home: &Home, path: &Path) -> Result<Socket, Error> {
    let at = |what| {
        move |source: io::Error| Error::Netns {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let file = File::open(path).map_err(at("open"))?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| at("enter")(e.into()))?;
    let socket = Socket::open().map_err(at("open a netlink socket in"));
    home.enter().map_err(at("come back from"))?;
    socket
}

/// Whether a namespace is pinned at `path`.
pub fn is_pinned(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
        && statfs(path).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Takes the pin away, whatever is at `path` by now: a namespace, a regular file (SEC-NET-08), a symlink, nothing.
pub fn unpin(path: &Path) -> Result<(), Error> {
    let at = |what| {
        move |source: io::Error| Error::Netns {
            what,
            path: path.to_owned(),
            source,
        }
    };
    for _ in 0..MAX_STACKED {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(errno) => return Err(at("unmount")(errno.into())),
        }
    }
    berth_failpoint::site!("network.netns.unmounted").map_err(at("unpin"))?;
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(at("remove the file of")(error))
        }
        _ => Ok(()),
    }
}

/// Sets an IPv6 key of a link in the thread's namespace. A kernel without IPv6 has none and needs none.
pub fn sysctl_ipv6(link: &str, key: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/{key}");
    match fs::write(&path, value) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Sysctl { path, source })
        }
        _ => Ok(()),
    }
}
