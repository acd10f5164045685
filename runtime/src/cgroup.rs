//! Cgroup directories of pods: which of them are ours, and their removal. Limits and processes are the shim's business.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Roots of the mounted hierarchies: one on cgroup v2, one a controller on v1.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    roots: Vec<PathBuf>,
}

impl Hierarchies {
    /// Reads the mounts of this machine.
    pub fn probe() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut roots: Vec<PathBuf> = mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (at, kind) = (words.nth(1)?, words.next()?);
                let ours = matches!(kind, "cgroup" | "cgroup2") && at.starts_with("/sys/fs/cgroup");
                ours.then(|| PathBuf::from(at))
            })
            .collect();
        roots.sort();
        roots.dedup();
        Ok(Self { roots })
    }

    /// `cgroup` in each hierarchy. It is relative to the roots though written with a leading slash.
    fn dirs(&self, cgroup: &Path) -> impl Iterator<Item = PathBuf> {
        let below = cgroup.strip_prefix("/").unwrap_or(cgroup).to_owned();
        self.roots.iter().map(move |root| root.join(&below))
    }

    pub fn exists(&self, cgroup: &Path) -> bool {
        self.dirs(cgroup).any(|dir| dir.exists())
    }

    /// `cgroup` and those above it that no hierarchy has yet, outermost first: whoever makes `cgroup` makes these.
    pub fn missing(&self, cgroup: &Path) -> Vec<PathBuf> {
        let mut missing: Vec<PathBuf> = cgroup
            .ancestors()
            .filter(|above| above.file_name().is_some())
            .take_while(|above| !self.exists(above))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        missing
    }

    /// Removes `cgroup`, which is empty of processes, with those that its processes made below it. Gone already is no error.
    pub fn remove(&self, cgroup: &Path) -> io::Result<()> {
        // The root of a hierarchy is nobody's to remove.
        if cgroup.file_name().is_none() {
            return Ok(());
        }
        self.dirs(cgroup).try_for_each(|dir| remove_tree(&dir))?;
        stop_slice(cgroup)
    }

    /// Removes `cgroup` where nothing is in it; a cgroup that another pod uses by now stays. Says whether it is gone.
    pub fn remove_if_empty(&self, cgroup: &Path) -> io::Result<bool> {
        let mut gone = true;
        for dir in self.dirs(cgroup) {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(nix::libc::EBUSY | nix::libc::ENOTEMPTY)
                    ) =>
                {
                    gone = false
                }
                Err(e) => return Err(e),
            }
        }
        if gone {
            stop_slice(cgroup)?;
        }
        Ok(gone)
    }
}

/// systemd has a slice for active until it is told otherwise, also without its directory. Whoever removes the directory first knows that
/// nobody is in it: what systemd stops it stops with all that is in it. A scope ends by itself.
fn stop_slice(cgroup: &Path) -> io::Result<()> {
    let unit = cgroup.file_name().and_then(|name| name.to_str());
    let Some(unit) = unit.filter(|unit| unit.ends_with(".slice")) else {
        return Ok(());
    };
    if !berth_systemd::is_booted() {
        return Ok(());
    }
    // It waits for an answer, some ms and at most for the client's patience.
    tokio::task::block_in_place(|| {
        berth_systemd::Units::connect()
            .and_then(|mut units| units.stop(unit))
            .map_err(io::Error::other)
    })
}

/// Deepest first: rmdir of a cgroup with children is EBUSY, and its files go with it.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let gone = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(e),
    };
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Err(e) => return gone(e),
    }
    fs::remove_dir(dir).or_else(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (tempfile::TempDir, Hierarchies) {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["cpu", "memory"].map(|name| dir.path().join(name));
        for root in &roots {
            fs::create_dir(root).unwrap();
        }
        let roots = roots.to_vec();
        (dir, Hierarchies { roots })
    }

    #[test]
    fn only_what_no_hierarchy_has_is_missing() {
        let (dir, both) = two();
        fs::create_dir_all(dir.path().join("memory/kubepods")).unwrap();
        let missing = both.missing(Path::new("/kubepods/burstable/pod1"));
        assert_eq!(
            missing,
            ["/kubepods/burstable", "/kubepods/burstable/pod1"].map(PathBuf::from)
        );
        assert!(both.missing(Path::new("/")).is_empty());
    }

    #[test]
    fn removal_takes_children_along_and_is_idempotent() {
        let (dir, both) = two();
        fs::create_dir_all(dir.path().join("cpu/pod/ctr/made/by/tenant")).unwrap();
        for _ in 0..2 {
            both.remove(Path::new("/pod")).unwrap();
            assert!(!both.exists(Path::new("/pod")));
        }
        both.remove(Path::new("/")).unwrap();
        assert!(dir.path().join("cpu").exists());
    }

    #[test]
    fn a_parent_in_use_by_another_pod_stays() {
        let (dir, both) = two();
        fs::create_dir_all(dir.path().join("cpu/parent/other")).unwrap();
        assert!(!both.remove_if_empty(Path::new("/parent")).unwrap());
        fs::remove_dir(dir.path().join("cpu/parent/other")).unwrap();
        assert!(both.remove_if_empty(Path::new("/parent")).unwrap());
    }
}
