//! The mounts that the daemon makes: a container's root and a pod's /dev/shm. Each is in the ledger before it is there.

use std::{
    ffi::CString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_image::Snapshot;
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

/// Mounts the snapshot's overlay at `rootfs`.
pub fn overlay(
    ledger: &Ledger,
    owner: &str,
    snapshot: &Snapshot,
    rootfs: &Path,
) -> Result<(), Error> {
    ledgered(ledger, owner, rootfs)?;
    match overlay_by_fsconfig(snapshot, rootfs) {
        // "lowerdir+" came with Linux 6.5.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            overlay_by_mount(snapshot, rootfs)
        }
        other => other,
    }
    .map_err(|e| Error::io("mount overlay at", rootfs)(e.into()))
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
    at: &Path,
) -> Result<(), Error> {
    ledgered(ledger, owner, at)?;
    match read_only_by_fsconfig(lowerdirs, at) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            read_only_by_mount(lowerdirs, at)
        }
        other => other,
    }
    .map_err(|e| Error::io("mount image at", at)(e.into()))
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
pub fn shm(ledger: &Ledger, owner: &str, at: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(at).map_err(Error::io("make", at))?;
    ledgered(ledger, owner, at)?;
    let options = CString::new(format!("mode=1777,size={SHM_BYTES}")).expect("no NUL in a number");
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
        overlay(&ledger, "a", &snapshot, &rootfs).unwrap();
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
    fn shm_can_be_written_by_everybody_and_holds_64_mib() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let at = dir.path().join("shm");
        shm(&ledger, "a", &at).unwrap();
        let mode = fs::metadata(&at).unwrap().mode() & 0o7777;
        let size = rustix::fs::statvfs(&at).unwrap();
        gone(&ledger, "a", &at).unwrap();
        assert_eq!(mode, 0o1777);
        assert_eq!(size.f_blocks * size.f_frsize, SHM_BYTES);
    }
}
