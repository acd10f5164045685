//! The mounts that the daemon makes: a container's root and a pod's /dev/shm. Each is in the ledger before it is there.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_image::Snapshot;
use berth_kernel::{mount::id_mapped, userns::IdMaps};
use berth_state::{Ledger, Object};
use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
    },
};

use crate::error::Error;

/// As Docker and containerd have it; pods that need more mount a memory volume.
const SHM_BYTES: u64 = 64 << 20;
/// A process in its last moments may still hold the root: it has ended, the kernel only needs to reap it.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Whose the files of a snapshot are to be.
#[derive(Debug)]
pub struct Owners {
    pub maps: IdMaps,
    /// The directory that all of it lies below.
    pub store: PathBuf,
}

/// Mounts the snapshot's overlay at `rootfs`.
pub fn overlay(
    ledger: &Ledger,
    owner: &str,
    snapshot: &Snapshot,
    owners: Option<&Owners>,
    rootfs: &Path,
) -> Result<(), Error> {
    ledgered(ledger, owner, rootfs)?;
    let mounted = match owners {
        None => by_either(overlay_by_fsconfig, overlay_by_mount, snapshot, rootfs),
        Some(owners) => own_upper(snapshot, &owners.maps).and_then(|()| {
            through_store(owners, rootfs, |at| {
                let snapshot = Snapshot {
                    lowerdirs: moved(&snapshot.lowerdirs, &owners.store, at)?,
                    ..snapshot.clone()
                };
                by_either(overlay_by_fsconfig, overlay_by_mount, &snapshot, rootfs)
            })
        }),
    };
    mounted.map_err(Error::io("mount overlay at", rootfs))
}

/// By the first way, or by the second where the kernel does not know all of the first: "lowerdir+" came with Linux 6.5.
fn by_either<T: ?Sized>(
    first: impl Fn(&T, &Path) -> rustix::io::Result<()>,
    second: impl Fn(&T, &Path) -> rustix::io::Result<()>,
    what: &T,
    at: &Path,
) -> io::Result<()> {
    match first(what, at) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(second(what, at)?),
        other => Ok(other?),
    }
}

/// Mounts an overlay over `place` whose layers are reached through a mount of the store with the pod's maps, at the path that `mount` is
/// given.
///
/// An overlay can't be id-mapped itself (EINVAL up to Linux 6.18), but its layers can (Linux 5.19): by way of one mount, and so shared with
/// every other pod's, whatever its maps. The upper directory is not: the kernel works in it as the node's root, who is nobody
/// in such a mount, and would mount the overlay read-only.
fn through_store(
    owners: &Owners,
    place: &Path,
    mount: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let store = id_mapped(&owners.store, &owners.maps)?;
    let nowhere = PathBuf::from(format!("/proc/self/fd/{}", store.as_raw_fd()));
    match mount(&nowhere) {
        // Layers of a mount that is nowhere are taken from Linux 6.15 on.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            through_attached(&store, place, mount)
        }
        other => other,
    }
}

/// With the store's mount where the overlay is going to be, and hidden below it.
fn through_attached(
    store: &OwnedFd,
    place: &Path,
    mount: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(store, "", CWD, place, flags)?;
    mount(place)
}

/// Layers as they are reached by way of another mount of the store.
fn moved(lowerdirs: &[PathBuf], store: &Path, at: &Path) -> io::Result<Vec<PathBuf>> {
    let moved = |path: &PathBuf| match path.strip_prefix(store) {
        Ok(below) => Ok(at.join(below)),
        Err(_) => Err(io::Error::other(format!(
            "{} does not lie in {}",
            path.display(),
            store.display()
        ))),
    };
    lowerdirs.iter().map(moved).collect()
}

/// The root's owner is the one that the topmost layer has.
fn own_upper(snapshot: &Snapshot, maps: &IdMaps) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(&snapshot.lowerdirs[0])?;
    let Some((uid, gid)) = maps.uid(meta.uid()).zip(maps.gid(meta.gid())) else {
        return Err(io::Error::other(format!(
            "the owner of the image's root, {}:{}, is not mapped",
            meta.uid(),
            meta.gid()
        )));
    };
    std::os::unix::fs::chown(&snapshot.upperdir, Some(uid), Some(gid))
}

/// One string a layer: no colon in a path needs escaping, and 500 layers don't have to fit into one page of options.
fn overlay_by_fsconfig(snapshot: &Snapshot, rootfs: &Path) -> rustix::io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", "berth")?;
    for lower in &snapshot.lowerdirs {
        fsconfig_set_string(&fs, "lowerdir+", lower)?;
    }
    fsconfig_set_string(&fs, "upperdir", &snapshot.upperdir)?;
    fsconfig_set_string(&fs, "workdir", &snapshot.workdir)?;
    fsconfig_create(&fs)?;
    let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(
        &mounted,
        "",
        CWD,
        rootfs,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// As an overlay's options in one string have a path.
fn escaped(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

/// Mounts layers alone, topmost first: read-only, and without devices, which are for the container's own configuration to give.
pub fn read_only_overlay(
    ledger: &Ledger,
    owner: &str,
    lowerdirs: &[PathBuf],
    owners: Option<&Owners>,
    at: &Path,
) -> Result<(), Error> {
    ledgered(ledger, owner, at)?;
    let make =
        |lowerdirs: &[PathBuf]| by_either(read_only_by_fsconfig, read_only_by_mount, lowerdirs, at);
    let mounted = match owners {
        None => make(lowerdirs),
        Some(owners) => through_store(owners, at, |store| {
            make(&moved(lowerdirs, &owners.store, store)?)
        }),
    };
    mounted.map_err(Error::io("mount image at", at))
}

fn read_only_by_fsconfig(lowerdirs: &[PathBuf], at: &Path) -> rustix::io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", "berth")?;
    for lower in lowerdirs {
        fsconfig_set_string(&fs, "lowerdir+", lower)?;
    }
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(
        &mounted,
        "",
        CWD,
        at,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn read_only_by_mount(lowerdirs: &[PathBuf], at: &Path) -> rustix::io::Result<()> {
    let lower: Vec<Vec<u8>> = lowerdirs.iter().map(|dir| escaped(dir)).collect();
    let options = [&b"lowerdir="[..], &lower.join(&b':')].concat();
    let options = CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    mount("berth", at, "overlay", flags, options.as_c_str())
}

fn overlay_by_mount(snapshot: &Snapshot, rootfs: &Path) -> rustix::io::Result<()> {
    let lower: Vec<Vec<u8>> = snapshot.lowerdirs.iter().map(|dir| escaped(dir)).collect();
    let mut options = b"lowerdir=".to_vec();
    options.extend(lower.join(&b':'));
    for (key, dir) in [
        (&b",upperdir="[..], &snapshot.upperdir),
        (&b",workdir="[..], &snapshot.workdir),
    ] {
        options.extend(key);
        options.extend(escaped(dir));
    }
    let options = CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    mount(
        "berth",
        rootfs,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
}

/// The /dev/shm that the containers of a pod share.
pub fn shm(ledger: &Ledger, owner: &str, at: &Path, (uid, gid): (u32, u32)) -> Result<(), Error> {
    std::fs::create_dir_all(at).map_err(Error::io("make", at))?;
    ledgered(ledger, owner, at)?;
    let options = CString::new(format!("mode=1777,size={SHM_BYTES},uid={uid},gid={gid}"))
        .expect("no NUL in a number");
    mount(
        "shm",
        at,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        options.as_c_str(),
    )
    .map_err(|e| Error::io("mount tmpfs at", at)(e.into()))
}

fn ledgered(ledger: &Ledger, owner: &str, at: &Path) -> Result<(), Error> {
    ledger
        .intend(owner, &Object::Mount(at.to_owned()))
        .map_err(Error::io("write ledger for", at))
}

/// Takes the mount at `at` away and strikes it off. Idempotent.
pub fn gone(ledger: &Ledger, owner: &str, at: &Path) -> Result<(), Error> {
    away(at).map_err(Error::io("unmount", at))?;
    ledger
        .strike(owner, &Object::Mount(at.to_owned()))
        .map_err(Error::io("write ledger for", at))
}

/// Unmounts whatever is mounted at `at`, be it several times.
fn away(at: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    let mut busy = 0;
    loop {
        match unmount(at, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: not a mount point.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if busy < BUSY_RETRIES => {
                busy += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            // Out of the name space at once; gone for good when its last user is.
            Err(Errno::BUSY) => unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?,
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

    use super::*;

    fn layer(dir: &Path, name: &str) -> PathBuf {
        let at = dir.join(name);
        fs::create_dir(&at).unwrap();
        fs::write(at.join(name), name).unwrap();
        at
    }

    #[test]
    fn an_overlay_shows_its_layers_and_is_gone_after_its_removal_rel_19() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let [upper, work, rootfs] = ["upper", "work", "rootfs"].map(|n| dir.path().join(n));
        for dir in [&upper, &work, &rootfs] {
            fs::create_dir(dir).unwrap();
        }
        let snapshot = Snapshot {
            dir: dir.path().to_owned(),
            upperdir: upper.clone(),
            workdir: work,
            lowerdirs: vec![
                layer(dir.path(), "top:with,colon"),
                layer(dir.path(), "base"),
            ],
        };
        for make in [overlay_by_fsconfig, overlay_by_mount] {
            make(&snapshot, &rootfs).unwrap();
            assert_eq!(fs::read(rootfs.join("base")).unwrap(), b"base");
            assert!(rootfs.join("top:with,colon").exists());
            gone(&ledger, "a", &rootfs).unwrap();
            assert!(!rootfs.join("base").exists());
        }
        overlay(&ledger, "a", &snapshot, None, &rootfs).unwrap();
        assert_eq!(ledger.outstanding("a").unwrap().len(), 1);
        fs::write(rootfs.join("new"), "").unwrap();
        assert!(upper.join("new").exists());
        for _ in 0..2 {
            gone(&ledger, "a", &rootfs).unwrap();
        }
        assert!(ledger.outstanding("a").unwrap().is_empty());
        let _ = fs::remove_dir_all(dir.path().join("work"));
    }

    #[test]
    fn an_overlay_of_id_mapped_layers_shows_the_owners_of_the_map() {
        use berth_kernel::userns::Mapping;
        use rustix::mount::{MountPropagationFlags as Propagation, mount_change};
        // Mounts are shared, as systemd has a node's: what is mounted over one appears over its peers. But not the node's own.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        for propagation in [Propagation::PRIVATE, Propagation::SHARED] {
            mount_change("/", propagation | Propagation::REC).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let [upper, work, rootfs] = ["upper", "work", "rootfs"].map(|n| dir.path().join(n));
        for dir in [&upper, &work, &rootfs] {
            fs::create_dir(dir).unwrap();
        }
        let snapshot = Snapshot {
            dir: dir.path().to_owned(),
            upperdir: upper.clone(),
            workdir: work,
            lowerdirs: vec![layer(dir.path(), "top"), layer(dir.path(), "base")],
        };
        std::os::unix::fs::chown(dir.path().join("base/base"), Some(33), Some(34)).unwrap();
        let list = vec![Mapping {
            inside: 0,
            outside: 700_000,
            count: 1000,
        }];
        let owners = Owners {
            maps: IdMaps {
                uids: list.clone(),
                gids: list,
            },
            store: dir.path().to_owned(),
        };
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        for attached in [false, true] {
            if attached {
                own_upper(&snapshot, &owners.maps).unwrap();
                let store = id_mapped(&owners.store, &owners.maps).unwrap();
                let mount = |at: &Path| {
                    let snapshot = Snapshot {
                        lowerdirs: moved(&snapshot.lowerdirs, &owners.store, at)?,
                        ..snapshot.clone()
                    };
                    Ok(overlay_by_mount(&snapshot, &rootfs)?)
                };
                through_attached(&store, &rootfs, mount).unwrap();
            } else {
                overlay(&ledger, "a", &snapshot, Some(&owners), &rootfs).unwrap();
            }
            let owner = |path: &Path| {
                let meta = fs::metadata(path).unwrap();
                (meta.uid(), meta.gid())
            };
            assert_eq!(owner(&rootfs), (700_000, 700_000));
            assert_eq!(owner(&rootfs.join("base")), (700_033, 700_034));
            // Copied up, it is whose it was.
            fs::write(rootfs.join("base"), "more").unwrap();
            assert_eq!(owner(&upper.join("base")), (700_033, 700_034));
            assert_eq!(owner(&rootfs.join("base")), (700_033, 700_034));
            assert_eq!(owner(&dir.path().join("base/base")), (33, 34));
            fs::remove_file(upper.join("base")).unwrap();
            gone(&ledger, "a", &rootfs).unwrap();
            assert!(!rootfs.join("top").exists());
        }
        let outside = Owners {
            store: "/usr".into(),
            ..owners
        };
        assert!(overlay(&ledger, "a", &snapshot, Some(&outside), &rootfs).is_err());
        let _ = fs::remove_dir_all(dir.path().join("work"));
    }

    #[test]
    fn shm_can_be_written_by_everybody_and_holds_64_mib() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let at = dir.path().join("shm");
        shm(&ledger, "a", &at, (0, 0)).unwrap();
        let mode = fs::metadata(&at).unwrap().mode() & 0o7777;
        let size = rustix::fs::statvfs(&at).unwrap();
        gone(&ledger, "a", &at).unwrap();
        assert_eq!(mode, 0o1777);
        assert_eq!(size.f_blocks * size.f_frsize, SHM_BYTES);
    }
}
