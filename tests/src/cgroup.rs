//! cgroups of both versions, read by controller.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// The roots of every hierarchy that is mounted.
pub fn roots() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut roots: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right
                .starts_with("cgroup")
                .then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or(MOUNT)))
        })
        .collect();
    roots.dedup();
    roots
}

/// Whether cgroup v2 alone rules this machine.
pub fn unified() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// The directory of the cgroup that `pid` is in for `controller`.
pub fn directory(pid: i32, controller: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .with_context(|| format!("cgroups of pid {pid}"))?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let path = path.trim_start_matches('/');
        if unified() && controllers.is_empty() {
            return Ok(Path::new(MOUNT).join(path));
        }
        if controllers.split(',').any(|name| name == controller) {
            return Ok(Path::new(MOUNT).join(controller).join(path));
        }
    }
    anyhow::bail!("pid {pid} is in no cgroup of {controller}: {text}")
}

/// The directory of the v2 cgroup that `pid` is in, also beside v1.
pub fn v2_directory(pid: i32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .with_context(|| format!("pid {pid} is in no v2 cgroup: {text}"))?;
    let root = match unified() {
        true => PathBuf::from(MOUNT),
        false => Path::new(MOUNT).join("unified"),
    };
    Ok(root.join(path))
}

/// A value of the file `v1` or `v2`, whichever this machine has.
pub fn value(pid: i32, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let path = directory(pid, controller)?.join(if unified() { v2 } else { v1 });
    Ok(fs::read_to_string(&path)
        .with_context(|| format!("read {}", path.display()))?
        .trim()
        .to_owned())
}

/// A number out of a file of "key number" lines.
pub fn counter(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// Every cgroup below `parent` (such as `/berth-test-1`), in any hierarchy, deepest first; `parent` itself is the last of its hierarchy.
pub fn tree(parent: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), into);
            }
        }
        into.push(dir.to_owned());
    }
    let mut found = Vec::new();
    for root in roots() {
        let dir = root.join(parent.trim_start_matches('/'));
        if dir.is_dir() {
            walk(&dir, &mut found);
        }
    }
    found
}

/// Removes `parent` and all below it. Their processes must be gone.
pub fn remove(parent: &str) -> io::Result<()> {
    for dir in tree(parent) {
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
