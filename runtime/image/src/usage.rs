//! What a tree takes on the disk, as `du` counts: blocks and inodes, a file with several names once.

use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::{Usage, error::Error};

/// Deeper than this is not counted: each level holds a descriptor. No path of a program is half as deep.
const MAX_DEPTH: usize = 2048;
/// A figure is kept this long at least …
const MIN_AGE: Duration = Duration::from_secs(1);
/// … and this much longer than it took to count, so that counting never takes more than a hundredth of a processor.
const AGE_FACTOR: u32 = 100;
const MAX_AGE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct UsageCache {
    counted: Mutex<HashMap<PathBuf, (Usage, Instant, Duration)>>,
}

impl UsageCache {
    /// Use of the `upper` directory of a snapshot, or of `dir` where it has none.
    pub(crate) fn of(&self, dir: &Path) -> Result<Usage, Error> {
        let cached = self
            .counted
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get(dir)
            .copied();
        if let Some((usage, at, age)) = cached
            && at.elapsed() < age
        {
            return Ok(usage);
        }
        let start = Instant::now();
        let upper = dir.join("upper");
        let usage = count(if upper.is_dir() { &upper } else { dir })?;
        let age = (start.elapsed() * AGE_FACTOR).clamp(MIN_AGE, MAX_AGE);
        self.counted
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(dir.to_owned(), (usage, Instant::now(), age));
        Ok(usage)
    }

    pub(crate) fn forget(&self, dir: &Path) {
        self.counted
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .remove(dir);
    }
}

/// Counts `root` and what is in it; follows no link, crosses no mount. What goes away meanwhile is not counted.
pub(crate) fn count(root: &Path) -> Result<Usage, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(|e| Error::io("open", root, e))?;
    let stat = rustix::fs::fstat(&top).map_err(|e| Error::io("stat", root, e))?;
    let mut usage = Usage {
        bytes: stat.st_blocks as u64 * 512,
        inodes: 1,
    };
    let mut linked: HashSet<(u64, u64)> = HashSet::new();
    let open =
        |fd: OwnedFd| -> Result<(OwnedFd, Dir), Errno> { Dir::read_from(&fd).map(|dir| (fd, dir)) };
    let mut stack = vec![open(top).map_err(|e| Error::io("read directory", root, e))?];
    while let Some((fd, entries)) = stack.last_mut() {
        let Some(Ok(entry)) = entries.read() else {
            stack.pop();
            continue;
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(&*fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
        else {
            continue;
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        usage.bytes += stat.st_blocks as u64 * 512;
        usage.inodes += 1;
        if is_directory && stack.len() < MAX_DEPTH {
            let (fd, _) = stack.last().expect("it was just seen");
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            if let Ok(level) =
                berth_beneath::openat2(fd, entry.file_name(), flags, Mode::empty(), resolve)
                    .and_then(open)
            {
                stack.push(level);
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn the_count_is_that_of_du() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        fs::write(root.join("small"), "x").unwrap();
        std::os::unix::fs::symlink("/", root.join("a/link")).unwrap();
        let du = |option: &str| -> u64 {
            let output = Command::new("du")
                .args(["-s", "-x", option])
                .arg(root)
                .output()
                .unwrap();
            String::from_utf8(output.stdout)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        let usage = count(root).unwrap();
        assert_eq!(
            (usage.bytes, usage.inodes),
            (du("--block-size=1"), du("--inodes"))
        );
    }
}
