//! What a pod has on the node's disk: files of its containers' writable layers (which the runtime counts), its logs, its emptyDirs, and what else
//! lies in its directory (SEC-KUB-06).
//!
//! Directories of pods are walked, through no link and into no other file system. A container may make as many files as it likes: so many of a
//! pod are looked at and no more, and walking takes a bounded part of a processor. Files that are deleted and open still are not seen.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::fd::OwnedFd,
    path::{Component, Path},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat},
    io::Errno,
};

use crate::{
    Desired,
    machine::Fs,
    node::Inner,
    volume::{self, Place},
};

/// Of one pod. A walk of so many takes about a second of a processor.
const MOST_FILES: u64 = 300_000;
const MOST_DEPTH: usize = 128;
/// Bytes of a block, as stat(2) counts.
const BLOCK: u64 = 512;
/// Of all time, walking takes at most one part of so many.
const PART: u32 = 50;

const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// By the container's name.
    pub logs: BTreeMap<String, u64>,
    /// emptyDirs on the disk, by the volume's name.
    pub volumes: BTreeMap<String, u64>,
    /// All else in the pod's directory: /etc/hosts, termination messages, what is known of the pod.
    pub own: u64,
    pub files: u64,
    /// Why it may be more than was found.
    pub is_cut: bool,
}

impl Usage {
    /// All bytes but those of writable layers.
    pub fn bytes(&self) -> u64 {
        let parts = self.logs.values().chain(self.volumes.values());
        parts.fold(self.own, |sum, one| sum.saturating_add(*one))
    }
}

/// Of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    pub name: String,
    pub bytes: u64,
    pub inodes: u64,
    /// What it lies on.
    pub fs: Fs,
    /// It is memory, and none of the disk's.
    pub is_memory: bool,
    /// By which claim the pod has it; then it is none of the pod's own, and what its whole file system holds is told.
    pub claim: Option<String>,
}

impl Measured {
    /// It counts as the pod's own use of the node's disk.
    pub fn is_own(&self) -> bool {
        !self.is_memory && self.claim.is_none()
    }
}

/// What a pod's volumes hold, and its files on the disk altogether. Blocks.
pub(crate) fn measured(node: &Inner, pod: &Desired) -> (Vec<Measured>, Usage) {
    let mut walk = Walk::default();
    let volumes = pod.spec.volumes.iter().flatten().filter_map(|volume| {
        // what is the node's is not the pod's, and what is another machine's may not answer
        let is_own = volume.empty_dir.is_some() || volume::is_projected(volume);
        let Place::At(path) = volume::place(node, pod, volume) else {
            return None;
        };
        let parent = path.parent().filter(|_| is_own)?;
        let fs = Fs::of(&path)?;
        let is_memory = Fs::is_another(parent, &path);
        let before = walk.files;
        let bytes = match is_memory {
            true => walk.tree(&path, Path::new("."), None),
            false => walk.tree(parent, Path::new(&volume.name), None),
        };
        Some(Measured {
            name: volume.name.clone(),
            bytes,
            // the directory itself is one
            inodes: walk.files - before + 1,
            fs,
            is_memory,
            claim: None,
        })
    });
    let claims = volume::mounted_claims(node, pod).into_iter();
    let claims = claims.filter_map(|(name, claim, path)| {
        let fs = Fs::of(&path)?;
        Some(Measured {
            name,
            bytes: fs.bytes.saturating_sub(fs.free),
            inodes: fs.inodes.saturating_sub(fs.inodes_free),
            fs,
            is_memory: false,
            claim: Some(claim),
        })
    });
    let volumes = volumes.chain(claims).collect();
    (volumes, of_pod(node, pod))
}

/// How long to let others have the processor after a round of this length.
pub(crate) fn rest(round: Duration, least: Duration) -> Duration {
    round.saturating_mul(PART).max(least)
}

/// Of one pod. Blocks.
pub(crate) fn of_pod(node: &Inner, pod: &Desired) -> Usage {
    let mut usage = Usage::default();
    let mut walk = Walk::default();
    let dir = node.pod_dir(&pod.uid);
    let volumes = dir.join("volumes/kubernetes.io~empty-dir");
    for volume in pod.spec.volumes.iter().flatten() {
        let of_disk = volume
            .empty_dir
            .as_ref()
            .is_some_and(|it| it.medium.as_deref().unwrap_or_default().is_empty());
        if of_disk {
            let bytes = walk.tree(&volumes, Path::new(&volume.name), None);
            usage.volumes.insert(volume.name.clone(), bytes);
        }
    }
    usage.own = walk.tree(&dir, Path::new("."), Some("kubernetes.io~empty-dir"));
    let logs = node.log_dir(pod);
    for spec in &pod.containers {
        let bytes = walk.tree(&logs, Path::new(spec.name()), None);
        usage.logs.insert(spec.name().to_owned(), bytes);
    }
    (usage.files, usage.is_cut) = (walk.files, walk.is_cut);
    usage
}

#[derive(Debug, Default)]
struct Walk {
    files: u64,
    is_cut: bool,
    /// Files that have more names than one count once.
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    /// Bytes of `name` beneath `root` and of all below it, but for directories that are called `without`. What is not there has none.
    fn tree(&mut self, root: &Path, name: &Path, without: Option<&str>) -> u64 {
        let opened = open_root(root).and_then(|root| beneath(&root, name));
        let Ok(dir) = opened else {
            return 0;
        };
        let Ok(stat) = rustix::fs::fstat(&dir) else {
            return 0;
        };
        let own = blocks(stat.st_blocks);
        own.saturating_add(self.directory(dir, stat.st_dev, 0, without))
    }

    fn directory(&mut self, dir: OwnedFd, device: u64, depth: usize, without: Option<&str>) -> u64 {
        if depth >= MOST_DEPTH {
            self.is_cut = true;
            return 0;
        }
        let mut bytes = 0_u64;
        let Ok(entries) = Dir::read_from(&dir) else {
            return 0;
        };
        for entry in entries {
            if self.files >= MOST_FILES {
                self.is_cut = true;
                break;
            }
            // it is being written to
            let Ok(entry) = entry else {
                break;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            // another file system is another matter
            if stat.st_dev != device {
                continue;
            }
            let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
            if is_dir && without.is_some_and(|without| name.to_bytes() == without.as_bytes()) {
                continue;
            }
            self.files += 1;
            if !is_dir && stat.st_nlink > 1 && !self.seen.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            bytes = bytes.saturating_add(blocks(stat.st_blocks));
            if is_dir {
                // nor are a claim's volume, or a part of one, which may be of the same file system
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(below) = berth_beneath::openat2(&dir, name, flags, Mode::empty(), WITHIN)
                {
                    let below = self.directory(below, device, depth + 1, without);
                    bytes = bytes.saturating_add(below);
                }
            }
        }
        bytes
    }
}

fn blocks(count: impl TryInto<u64>) -> u64 {
    count.try_into().unwrap_or(0).saturating_mul(BLOCK)
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn beneath(root: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    if name
        .components()
        .any(|part| matches!(part, Component::ParentDir))
    {
        return Err(Errno::INVAL.into());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat2(root, name, flags, Mode::empty(), WITHIN)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;
    use crate::{node::tests::node, pod::tests::pod, volume::tests::in_own_mounts};

    #[test]
    fn all_that_a_pod_has_on_the_disk_counts_and_nothing_that_it_leads_to_sec_kub_06() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(&dir.path().display().to_string());
        let pod = pod(
            "  volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}]\n  containers: [{name: a, image: x}]",
        );
        assert_eq!(of_pod(&node, &pod).bytes(), 0);
        let own = node.pod_dir(&pod.uid);
        let volume = own.join("volumes/kubernetes.io~empty-dir/v");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(own.join("etc-hosts"), vec![1; 100_000]).unwrap();
        fs::write(volume.join("a/b/file"), vec![1; 200_000]).unwrap();
        // a second name of the same
        fs::hard_link(volume.join("a/b/file"), volume.join("again")).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("large"), vec![1; 5_000_000]).unwrap();
        symlink(&elsewhere, volume.join("link")).unwrap();
        symlink(elsewhere.join("large"), volume.join("file-link")).unwrap();
        let usage = of_pod(&node, &pod);
        let near = |bytes: u64, expected: u64| (expected..expected + 65536).contains(&bytes);
        assert!(near(usage.volumes["v"], 200_000), "{usage:?}");
        assert!(near(usage.own, 100_000), "{usage:?}");
        assert!(!usage.volumes.contains_key("m") && !usage.is_cut);
        assert!(near(usage.bytes(), 300_000), "{usage:?}");
    }

    #[test]
    fn what_is_mounted_into_a_pods_directory_is_not_the_pods_use_of_the_disk() {
        in_own_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let node = node(&dir.path().join("kubelet").display().to_string());
            let pod = pod("  containers: [{name: a, image: x}]");
            let at = node
                .pod_dir(&pod.uid)
                .join("volumes/kubernetes.io~local-volume/pv");
            let volume = dir.path().join("volume");
            for dir in [&at, &volume] {
                fs::create_dir_all(dir).unwrap();
            }
            fs::write(volume.join("large"), vec![1; 5_000_000]).unwrap();
            mount_bind(&volume, &at).unwrap();
            let usage = of_pod(&node, &pod);
            assert!(usage.bytes() < 1_000_000, "{usage:?}");
            unmount(&at, UnmountFlags::empty()).unwrap();
        });
    }

    #[test]
    fn a_walk_has_an_end_however_deep_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..MOST_DEPTH + 2 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let mut walk = Walk::default();
        walk.tree(dir.path(), Path::new("."), None);
        assert!(walk.is_cut);
        let second = Duration::from_secs(1);
        assert_eq!(rest(second, second * 10), second * 50);
        assert_eq!(rest(second / 100, second * 10), second * 10);
    }

    #[test]
    fn a_volume_that_is_a_link_is_not_walked() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(dir.path(), root.path().join("v")).unwrap();
        let mut walk = Walk::default();
        assert_eq!(walk.tree(root.path(), Path::new("v"), None), 0);
        assert_eq!(walk.tree(root.path(), Path::new("../x"), None), 0);
    }
}
