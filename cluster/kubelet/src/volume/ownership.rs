//! fsGroup: a volume's files become a group's (upstream's `SetVolumeOwnership`). Whoever has the volume already may change it meanwhile, so each file
//! is held while it is looked at and changed, and no link is followed.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, chownat, fstat},
    io::Errno,
};

const READ_AND_WRITE: u32 = 0o660;
const OF_DIRECTORY: u32 = 0o2110;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Directories that wait while others are gone through; some ten megabytes.
const MOST_PENDING: usize = 200_000;

/// Whether the root is the group's already, as [`give`] leaves it: it is the last to change.
pub(super) fn is_given(root: &OwnedFd, group: u32) -> io::Result<bool> {
    let stat = fstat(root)?;
    let mode = READ_AND_WRITE | OF_DIRECTORY;
    Ok(stat.st_gid == group && stat.st_mode & mode == mode)
}

/// Gives all that is in `root`, in this file system, to `group`. `goes_on` is asked for each.
///
/// # Errors
/// Where something can't be changed, and what; or that it was told to end.
pub(super) fn give(root: &OwnedFd, group: u32, goes_on: &dyn Fn() -> bool) -> Result<(), String> {
    let mut pending = vec![PathBuf::from(".")];
    while let Some(path) = pending.pop() {
        let failed =
            |error: io::Error| format!("give {} to group {group}: {error}", path.display());
        match directory(root, &path, group, &mut pending, goes_on) {
            // it went, or became another's mount or a link, while others were gone through
            Err(error) if is_other(&error) && path != Path::new(".") => {}
            done => done.map_err(failed)?,
        }
        if pending.len() > MOST_PENDING {
            return Err(format!(
                "give it to group {group}: there are more than {MOST_PENDING} directories side by side. Do it beforehand, and say fsGroupChangePolicy: OnRootMismatch"
            ));
        }
    }
    change(root, group).map_err(|error| format!("give it to group {group}: {error}"))
}

fn is_other(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}

fn directory(
    root: &OwnedFd,
    path: &Path,
    group: u32,
    pending: &mut Vec<PathBuf>,
    goes_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = berth_beneath::openat2(root, path, flags, Mode::empty(), BENEATH)?;
    for entry in Dir::read_from(&dir)? {
        if !goes_on() {
            return Err(io::Error::other("the pod ends"));
        }
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let held = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let here = BENEATH.difference(ResolveFlags::NO_SYMLINKS);
        let file = match berth_beneath::openat2(&dir, name, held, Mode::empty(), here) {
            // it is gone, or another's mount
            Err(Errno::NOENT | Errno::XDEV) => continue,
            opened => opened?,
        };
        let stat = fstat(&file)?;
        change(&file, group)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            pending.push(path.join(OsStr::from_bytes(name.to_bytes())));
        }
    }
    Ok(())
}

/// What is held; a link has a group, and no mode.
fn change(file: &OwnedFd, group: u32) -> io::Result<()> {
    let of_it = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let stat = fstat(file)?;
    chownat(
        file,
        c"",
        None,
        Some(Gid::from_raw(group)),
        AtFlags::EMPTY_PATH,
    )?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind.is_symlink() {
        return Ok(());
    }
    let more = match kind.is_dir() {
        true => READ_AND_WRITE | OF_DIRECTORY,
        false => READ_AND_WRITE,
    };
    // always: chown has taken bits away
    let mode = stat.st_mode & 0o7777 | more;
    fs::set_permissions(&of_it, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use rustix::fs::open;

    use super::*;

    fn opened(path: &Path) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn all_files_are_the_groups_and_what_links_lead_to_is_not() {
        let top = tempfile::tempdir().unwrap();
        let (root, other) = (top.path().join("root"), top.path().join("other"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&other).unwrap();
        for path in [root.join("file"), root.join("a/b/file"), other.join("file")] {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&other, root.join("a/out")).unwrap();
        symlink(other.join("file"), root.join("link")).unwrap();
        symlink("nowhere", root.join("broken")).unwrap();
        let dir = opened(&root);
        assert!(!is_given(&dir, 4321).unwrap());
        give(&dir, 4321, &|| true).unwrap();
        let seen = |path: PathBuf| {
            let it = path.symlink_metadata().unwrap();
            (it.gid(), it.mode() & 0o7777)
        };
        for (path, mode) in [("file", 0o660), ("a/b/file", 0o660)] {
            assert_eq!(seen(root.join(path)), (4321, mode), "{path}");
        }
        for path in ["", "a", "a/b"] {
            let (group, mode) = seen(root.join(path));
            assert_eq!((group, mode & 0o2770), (4321, 0o2770), "{path}");
        }
        assert_eq!(seen(root.join("link")).0, 4321);
        assert_eq!(seen(other.join("file")), (0, 0o600));
        assert_eq!(seen(other).0, 0);
        assert!(is_given(&dir, 4321).unwrap() && !is_given(&dir, 1).unwrap());
    }

    #[test]
    fn it_ends_when_it_is_told_to_and_the_root_is_the_last_to_change() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        chown(top.path(), None, Some(0)).unwrap();
        let dir = opened(top.path());
        let said = give(&dir, 4321, &|| false).unwrap_err();
        assert_eq!(said, "give . to group 4321: the pod ends");
        assert!(!is_given(&dir, 4321).unwrap());
    }
}
