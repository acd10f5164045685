//! subPath: a part of a volume, found beneath the volume's root by the kernel and held by a mount, so that no link in it leads out of the
//! volume, neither now nor when somebody puts one there while we look (SEC-KUB-01).

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open},
    io::Errno,
    mount::mount_bind_recursive,
};

use super::mounted::unmount_below;
use crate::store;

const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Makes `target` the part `sub` of the volume at `root`. What is missing in the volume is made as a directory.
pub(super) fn bind(root: &Path, sub: &str, target: &Path) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        format!("{what} subPath {sub:?} of {}: {error}", root.display())
    };
    if Path::new(sub).is_absolute() || sub.split('/').any(|part| part == "..") {
        return Err(failed("take", &"it is not a relative path without '..'"));
    }
    // the volume itself may be a link of the node's administrator
    let volume = open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| failed("open the volume of", &errno))?;
    let part = find(&volume, sub).map_err(|error| failed("find", &error))?;
    let stat = fstat(&part).map_err(|errno| failed("look at", &errno))?;
    // of the container's last start
    unmount_below(target).map_err(|error| error.to_string())?;
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let parent = target.parent().unwrap_or(target);
    store::make_dir(parent).map_err(|error| error.to_string())?;
    let fits = target
        .symlink_metadata()
        .is_ok_and(|it| it.is_dir() == is_dir);
    if !fits {
        // An empty directory or file of our own, made for the other kind at the last start.
        let _ = std::fs::remove_dir(target);
        let _ = std::fs::remove_file(target);
        match is_dir {
            true => store::make_dir(target).map_err(|error| error.to_string())?,
            false => File::create_new(target)
                .map(drop)
                .map_err(|error| failed("make a place for", &error))?,
        }
    }
    let held = format!("/proc/self/fd/{}", part.as_raw_fd());
    mount_bind_recursive(held.as_str(), target).map_err(|errno| failed("mount", &errno))
}

fn find(volume: &OwnedFd, sub: &str) -> std::io::Result<OwnedFd> {
    match berth_beneath::openat2(
        volume.as_fd(),
        sub,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        WITHIN,
    ) {
        Ok(part) => Ok(part),
        Err(Errno::NOENT) => berth_beneath::ensure_directory(volume, Path::new(sub)),
        Err(errno) => Err(errno.into()),
    }
}
