//! A container's user namespace, and maps of mounts.
//!
//! Nobody comes back from a user namespace, so what needs root of the node is done before it is entered: the worker builds the whole root
//! in a mount namespace of the node's, its files made as the container's root ([`Userns::as_root`]). Then it enters, and init is born
//! with a copy of that mount namespace, which belongs to the container's user namespace. In such a copy the kernel locks every mount
//! (mount_namespaces(7), "Restrictions on mount namespaces"): what is read-only, masked or mounted over stays so, even for a
//! container that has CAP_SYS_ADMIN there. Left for init are the mounts that show namespaces which are born with it: /proc.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use berth_kernel::userns::{self, IdMaps};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount};

use super::mount::Options;
use crate::{Error, idmap};

/// The user namespace that a container is in, and its maps as the node sees them.
#[derive(Debug)]
pub(super) struct Userns {
    namespace: Rc<OwnedFd>,
    pub(super) maps: IdMaps,
    root: (u32, u32),
}

impl Userns {
    /// The one that a spec names or asks for.
    pub(super) fn of(id: &str, linux: &Linux) -> Result<Option<Userns>, Error> {
        let mut namespaces = linux.namespaces().iter().flatten();
        let Some(asked) = namespaces.find(|n| n.typ() == LinuxNamespaceType::User) else {
            return Ok(None);
        };
        let refuse = |reason: &str| Error::Spec {
            id: id.to_owned(),
            reason: reason.to_owned(),
        };
        let maps = idmap::maps(linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref());
        let root = maps
            .uid(0)
            .zip(maps.gid(0))
            .ok_or_else(|| refuse("its user namespace maps no root (linux.uidMappings)"))?;
        let namespace = match asked.path() {
            Some(path) if !path.as_os_str().is_empty() => File::open(path)
                .map_err(Error::io(format!("open namespace {}", path.display())))?
                .into(),
            _ => {
                let made = userns::make(&maps, false);
                made.map_err(Error::io("make the container's user namespace"))?
                    .user
            }
        };
        Ok(Some(Userns {
            namespace: Rc::new(namespace),
            maps,
            root,
        }))
    }

    /// User and group of the node that are its root.
    pub(super) fn root(&self) -> (u32, u32) {
        self.root
    }

    /// Does something to files as the container's root: what it makes is his. It keeps the capabilities of this process.
    pub(super) fn as_root<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let step = || Error::errno("act on files as the container's root");
        let (uid, gid) = self.root;
        let sets = rustix::thread::capabilities(None).map_err(step())?;
        let become_user = |uid: u32, gid: u32| -> Result<(), Error> {
            setfsgid(Gid::from_raw(gid));
            setfsuid(Uid::from_raw(uid));
            // The calls tell no errors; the second answers whom the first has made.
            let is = setfsuid(Uid::from_raw(uid)).as_raw() == uid
                && setfsgid(Gid::from_raw(gid)).as_raw() == gid;
            // The kernel takes file capabilities from who leaves fsuid 0 (capabilities(7)).
            rustix::thread::set_capabilities(None, sets).map_err(step())?;
            match is {
                true => Ok(()),
                false => Err(step()(rustix::io::Errno::PERM)),
            }
        };
        become_user(uid, gid)?;
        let done = work();
        become_user(0, 0)?;
        done
    }

    /// A mount namespace for the worker to build in: still the node's.
    pub(super) fn begin() -> Result<(), Error> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::io("make a mount namespace")(e.into()))
    }

    /// For good.
    pub(super) fn enter(&self) -> Result<(), Error> {
        setns(&self.namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(|e| Error::io("enter the container's user namespace")(e.into()))
    }

    /// In init, which is inside: its maps are the ones that were asked for, or it goes no further (SEC-ENG-13).
    pub(super) fn verify(&self, proc: &OwnedFd) -> Result<(), Error> {
        let step = |file: &str| Error::io(format!("read {file} of the container's init"));
        let read = |file: &str| {
            use std::io::Read;
            let path = Path::new("thread-self").join(file);
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            let mut text = String::new();
            rustix::fs::openat(proc, path, flags, rustix::fs::Mode::empty())
                .map_err(Into::into)
                .and_then(|fd| File::from(fd).read_to_string(&mut text))
                .and_then(|_| userns::parse(&text))
                .map_err(step(file))
        };
        let maps = IdMaps {
            uids: read("uid_map")?,
            gids: read("gid_map")?,
        };
        if maps == self.maps {
            return Ok(());
        }
        Err(Error::io("enter the container's user namespace")(
            std::io::Error::other("its maps are not the ones that the container asks for"),
        ))
    }
}

/// How a mount's owners are shown.
#[derive(Debug, Clone)]
pub(super) struct IdMap {
    pub(super) namespace: Rc<OwnedFd>,
    /// Also of what is mounted below.
    pub(super) recursive: bool,
}

impl IdMap {
    /// Of each mount of a spec. Made ahead of the container: maps come with user namespaces, and those with processes.
    pub(super) fn of_all(
        mounts: &[Mount],
        userns: Option<&Userns>,
    ) -> Result<Vec<Option<IdMap>>, Error> {
        let mut made: Vec<(IdMaps, Rc<OwnedFd>)> = userns
            .map(|userns| (userns.maps.clone(), Rc::clone(&userns.namespace)))
            .into_iter()
            .collect();
        let mut all = Vec::with_capacity(mounts.len());
        for mount in mounts {
            let options = Options::of(mount);
            let (uids, gids) = (mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
            let asked = match (uids, gids) {
                (None, None) if options.id_mapped.is_none() => {
                    all.push(None);
                    continue;
                }
                (None, None) => userns.map(|userns| userns.maps.clone()),
                _ => Some(idmap::maps(uids, gids)),
            };
            let step = || {
                Error::io(format!(
                    "make the id map of mount {}",
                    mount.destination().display()
                ))
            };
            let refuse = |why: &str| Error::Unfit {
                step: format!("make the id map of mount {}", mount.destination().display()),
                reason: why.to_owned(),
            };
            let asked = asked.ok_or_else(|| refuse("none is given"))?;
            if !options.is_bind() {
                return Err(refuse("only a bind mount can have one"));
            }
            let namespace = match made.iter().find(|(maps, _)| *maps == asked) {
                Some((_, namespace)) => Rc::clone(namespace),
                None => {
                    let namespace = Rc::new(userns::make(&asked, false).map_err(step())?.user);
                    made.push((asked, Rc::clone(&namespace)));
                    namespace
                }
            };
            all.push(Some(IdMap {
                namespace,
                recursive: options.id_mapped == Some(true),
            }));
        }
        Ok(all)
    }

    pub(super) fn namespace(&self) -> std::os::fd::BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
