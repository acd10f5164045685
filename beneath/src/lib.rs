//! Paths that others wrote (an image, a pod), resolved by the kernel beneath a root that we chose: openat2(2), Linux 5.6.
//!
//! A crate of its own because both sides need it: berthd for layers and accounts, the shim's engine for working directories.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, mkdirat},
    io::Errno,
    path::Arg,
};

/// A machine that renames without pause may come in between some times in a row; this often means that something else is wrong.
const TRIES: usize = 1000;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Links are followed, with the root for their `/`; those of /proc, which are no paths, are not.
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// What an image's author would have made.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// openat2, asked again where it could not be sure: where a path has `..` in it (in a link, say), any rename or mount on the machine
/// at that moment makes the kernel answer EAGAIN rather than risk an escape.
pub fn openat2<P: Arg + Copy>(
    dir: impl AsFd,
    path: P,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut answer = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        answer = rustix::fs::openat2(dir.as_fd(), path, flags, mode, resolve);
        if !matches!(answer, Err(Errno::AGAIN)) {
            break;
        }
        std::thread::yield_now();
    }
    answer
}

/// The directory `path` with `root` as its `/`, opened O_PATH: it can be entered and looked beneath.
pub fn directory(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(root, path, DIRECTORY, Mode::empty(), WITHIN)
}

/// [`directory`], made where it is missing, with those above it: mode 0755 less the umask.
///
/// Errors: what is there and no directory (ENOTDIR), a link to nowhere (ENOENT), a missing one with `..` in its path (EINVAL), and
/// mkdir's own.
pub fn ensure_directory(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    match directory(root.as_fd(), path) {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    let mut dir = directory(root.as_fd(), Path::new("/"))?;
    let mut at = PathBuf::from("/");
    for part in path.components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
        };
        at.push(name);
        dir = match directory(root.as_fd(), &at) {
            Err(Errno::NOENT) => {
                match mkdirat(&dir, name, DIRECTORY_MODE) {
                    // Somebody was faster, or it is a link to nowhere: the next look tells.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                directory(root.as_fd(), &at)?
            }
            found => found?,
        };
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::atomic::AtomicBool, thread};

    use super::*;

    // SEC-ENG-07
    #[test]
    fn directories_are_made_and_links_do_not_lead_out() {
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        fs::create_dir_all(root.join("real")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("/real", root.join("inner")).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../outside", root.join("upwards")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let opened = fs::File::open(&root).unwrap();
        for (path, made) in [
            ("/", Ok("")),
            ("/a/./b/c", Ok("a/b/c")),
            ("/a/b/c", Ok("a/b/c")),
            ("/inner/x", Ok("real/x")),
            ("/absolute", Err(Errno::NOENT)),
            ("/absolute/x", Err(Errno::NOENT)),
            ("/upwards/x", Err(Errno::NOENT)),
            ("/magic/x", Err(Errno::NOENT)),
            ("/file/x", Err(Errno::NOTDIR)),
            ("/file", Err(Errno::NOTDIR)),
            ("/a/../../x", Err(Errno::INVAL)),
        ] {
            let answer = ensure_directory(&opened, Path::new(path));
            match made {
                Ok(made) => {
                    let got = rustix::fs::fstat(answer.unwrap()).unwrap();
                    let want = rustix::fs::stat(root.join(made)).unwrap();
                    assert_eq!(
                        (got.st_dev, got.st_ino),
                        (want.st_dev, want.st_ino),
                        "{path}"
                    );
                }
                Err(errno) => assert_eq!(
                    answer.unwrap_err().raw_os_error(),
                    Some(errno.raw_os_error()),
                    "{path}"
                ),
            }
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    // SEC-ENG-07: one way of the path is a link outside, for every other instant.
    #[test]
    fn a_part_that_is_exchanged_all_the_time_leads_nowhere_outside() {
        /// Enough for each order of the two to come up on a machine of two processors.
        const ROUNDS: usize = 3000;
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        fs::create_dir_all(root.join("part")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink("../../outside", root.join("other")).unwrap();
        let opened = fs::File::open(&root).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    rustix::fs::renameat_with(
                        &opened,
                        "part",
                        &opened,
                        "other",
                        rustix::fs::RenameFlags::EXCHANGE,
                    )
                    .unwrap();
                }
            });
            let mut found = [0, 0];
            for round in 0..ROUNDS {
                let path = format!("/part/{}", round % 7);
                let answer = ensure_directory(&opened, Path::new(&path));
                found[usize::from(answer.is_ok())] += 1;
                assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(found[1] > 0, "never made: {found:?}");
        });
    }
}
