//! Files that change all at once, as upstream lays them out:
//!
//! ```text
//! name ─▶ ..data/name        ..data ─▶ ..2026_11_22_23_00_00.123456789/
//! ```
//!
//! A reader that opens `name` twice may see two versions, but never half of one. Everything is done beneath one descriptor of the directory,
//! following no link (SEC-KUB-05).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, fchmod, fchown, mkdirat, openat,
        readlinkat, renameat, symlinkat, unlinkat,
    },
    io::Errno,
};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// By their paths in the volume.
pub(super) type Files = BTreeMap<String, Content>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Whether anything had to be changed. With a `group`, it may read all files.
pub(super) fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    for path in files.keys() {
        check(path)?;
    }
    let root = rustix::fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let old = match readlinkat(&root, DATA, Vec::new()) {
        Ok(name) => Some(name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with("..") && !name.contains('/')),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno.into()),
    };
    if let Some(old) = &old
        && is(&root, old, files)?
    {
        return Ok(false);
    }
    let new = format!(
        "..{}",
        jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%N")
    );
    mkdirat(&root, new.as_str(), Mode::from_raw_mode(0o755))?;
    let fill = || -> io::Result<()> {
        let inner = openat(
            &root,
            new.as_str(),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        fchmod(&inner, Mode::from_raw_mode(0o755))?;
        for (path, content) in files {
            put(&inner, path, content, group)?;
        }
        Ok(())
    };
    if let Err(error) = fill() {
        remove(&root, &new)?;
        return Err(error);
    }
    match unlinkat(&root, NEW_DATA, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    symlinkat(new.as_str(), &root, NEW_DATA)?;
    renameat(&root, NEW_DATA, &root, DATA)?;
    links(&root, files)?;
    // What a kubelet that died here once has left is taken along.
    for name in names(&root)? {
        if name.starts_with("..") && name != new && name != DATA {
            remove(&root, &name)?;
        }
    }
    Ok(true)
}

/// A relative path without surprises; names that begin with two dots are ours.
fn check(path: &str) -> io::Result<()> {
    let good = !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        && !path.contains('\0');
    match good {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{path:?} is no path within a volume"
        ))),
    }
}

/// Whether the directory has exactly these files.
fn is(root: &OwnedFd, dir: &str, files: &Files) -> io::Result<bool> {
    let Ok(inner) = openat(
        root,
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return Ok(false);
    };
    for (path, content) in files {
        let file = berth_beneath::openat2(
            &inner,
            path.as_str(),
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        );
        let Ok(file) = file else {
            return Ok(false);
        };
        let mut bytes = Vec::new();
        File::from(file)
            .take(content.bytes.len() as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes != content.bytes {
            return Ok(false);
        }
    }
    let wanted: BTreeSet<_> = files.keys().map(|path| top(path).to_owned()).collect();
    let there: BTreeSet<_> = names(&inner)?.into_iter().collect();
    // A file deeper down that is no longer wanted is not seen by that: it goes with the next change.
    Ok(wanted == there)
}

fn put(inner: &OwnedFd, path: &str, content: &Content, group: Option<u32>) -> io::Result<()> {
    let mut at = inner.try_clone()?;
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            match mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            at = openat(
                &at,
                part,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            fchmod(&at, Mode::from_raw_mode(0o755))?;
        } else {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&at, part, flags, Mode::from_raw_mode(0o600))?);
            file.write_all(&content.bytes)?;
            let mut mode = content.mode & 0o777;
            if let Some(group) = group {
                fchown(&file, None, Some(Gid::from_raw(group)))?;
                mode |= 0o040;
            }
            fchmod(&file, Mode::from_raw_mode(mode))?;
        }
    }
    Ok(())
}

/// What a pod sees: a link for each file or directory at the top, and none to what is no more.
fn links(root: &OwnedFd, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<_> = files.keys().map(|path| top(path).to_owned()).collect();
    for name in &wanted {
        match symlinkat(format!("{DATA}/{name}").as_str(), root, name.as_str()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    for name in names(root)? {
        if !name.starts_with("..") && !wanted.contains(&name) {
            match unlinkat(root, name.as_str(), AtFlags::empty()) {
                // not ours
                Ok(()) | Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

fn top(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn names(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// One name with all below it, following no link.
fn remove(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let inner = openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for child in names(&inner)? {
        let stat = rustix::fs::statat(&inner, child.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => remove(&inner, &child)?,
            _ => unlinkat(inner.as_fd(), child.as_str(), AtFlags::empty())?,
        }
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt, sync::atomic::AtomicBool, thread};

    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let content = |text: &str| Content {
            bytes: text.into(),
            mode: 0o644,
        };
        list.iter()
            .map(|(path, text)| (path.to_string(), content(text)))
            .collect()
    }

    fn seen(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("..2"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_change_with_their_objects_and_only_then() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path();
        assert!(write(dir, &files(&[("a", "1"), ("d/b", "2"), ("d/c", "3")]), None).unwrap());
        assert_eq!(seen(dir), ["..data", "a", "d"]);
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        assert!(!write(dir, &files(&[("a", "1"), ("d/b", "2"), ("d/c", "3")]), None).unwrap());
        assert!(write(dir, &files(&[("a", "1x"), ("e", "4")]), Some(1234)).unwrap());
        assert_eq!(seen(dir), ["..data", "a", "e"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1x");
        let metadata = fs::metadata(dir.join("e")).unwrap();
        assert_eq!((metadata.gid(), metadata.mode() & 0o777), (1234, 0o644));
        let versions = fs::read_dir(dir).unwrap().count() - seen(dir).len();
        assert_eq!(versions, 1, "old versions go");
        assert!(write(dir, &Files::new(), None).unwrap());
        assert_eq!(seen(dir), ["..data"]);
    }

    #[test]
    fn a_reader_never_sees_half_of_a_version() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path();
        let version = |n: usize| {
            let text = n.to_string().repeat(1000);
            files(&[("a", &text), ("b", &text)])
        };
        write(dir, &version(0), None).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // both of one version: by the directory that ..data is at this moment
                    let Ok(now) = fs::read_link(dir.join("..data")) else {
                        panic!("there is always a version");
                    };
                    let read = |name: &str| fs::read(dir.join(&now).join(name));
                    if let (Ok(a), Ok(b)) = (read("a"), read("b")) {
                        assert!(a == b && a.len() >= 1000, "{} {}", a.len(), b.len());
                    }
                    assert!(
                        fs::read(dir.join("a")).is_ok_and(|it| it.len() >= 1000)
                            || fs::symlink_metadata(dir.join("a")).is_ok()
                    );
                }
            });
            for n in 1..200 {
                write(dir, &version(n), None).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    // SEC-KUB-05
    #[test]
    fn paths_and_links_lead_nowhere_outside() {
        let top = tempfile::tempdir().unwrap();
        let (dir, outside) = (top.path().join("v"), top.path().join("outside"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("canary"), "here").unwrap();
        for path in ["../x", "/x", "a/../../x", "..data", "..x", "", "a//../b"] {
            assert!(write(&dir, &files(&[(path, "x")]), None).is_err(), "{path}");
        }
        // somebody puts links where our directories were
        std::os::unix::fs::symlink(&outside, dir.join("..data")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("..2020_link")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("stale")).unwrap();
        write(&dir, &files(&[("a", "1")]), None).unwrap();
        assert_eq!(seen(&dir), ["..data", "a"]);
        assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "here");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
