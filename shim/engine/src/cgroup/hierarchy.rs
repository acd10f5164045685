//! Which cgroup hierarchies this machine has.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use super::Error;

/// What the kernel calls its v1 controllers; other words among a mount's options are flags (`rw`, `xattr`, `clone_children`).
const V1_CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "perf_event",
    "net_cls",
    "net_prio",
    "rdma",
    "misc",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    V1(Vec<String>),
    /// v1 with a name and no controller (`name=systemd`).
    Named,
    V2,
    /// v2 beside v1: its controllers, if any, are not used.
    V2BesideV1,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    mount: PathBuf,
    kind: Kind,
}

/// All of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// Reads `/proc/self/mountinfo` the first time; hierarchies do not move while a machine runs.
    pub(super) fn of_this_machine() -> Result<&'static Hierarchies, Error> {
        static FOUND: OnceLock<Hierarchies> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let found = Hierarchies::parse(&mountinfo);
        if found.0.is_empty() {
            return Err(Error::NoHierarchy);
        }
        Ok(FOUND.get_or_init(|| found))
    }

    fn parse(mountinfo: &str) -> Hierarchies {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            // 36 35 98:0 /root /mount/point options … - type source super-options
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (&[_, _, _, root, mount, ..], &[fs_type, _, super_options]) =
                (&left[..], &right[..])
            else {
                continue;
            };
            // A part of a hierarchy mounted somewhere is not the hierarchy.
            if root != "/" {
                continue;
            }
            let kind = match fs_type {
                "cgroup2" => Kind::V2,
                "cgroup" => {
                    let controllers: Vec<String> = super_options
                        .split(',')
                        .filter(|option| V1_CONTROLLERS.contains(option))
                        .map(str::to_owned)
                        .collect();
                    if controllers.is_empty() {
                        Kind::Named
                    } else {
                        Kind::V1(controllers)
                    }
                }
                _ => continue,
            };
            let again = |known: &Hierarchy| match (&known.kind, &kind) {
                (Kind::Named, Kind::Named) => false,
                (known, kind) => known == kind,
            };
            if !found.iter().any(again) {
                found.push(Hierarchy {
                    mount: unescape(mount),
                    kind,
                });
            }
        }
        if found.iter().any(|h| matches!(h.kind, Kind::V1(_))) {
            for hierarchy in found.iter_mut().filter(|h| h.kind == Kind::V2) {
                hierarchy.kind = Kind::V2BesideV1;
            }
        }
        Hierarchies(found)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.0.iter()
    }

    /// The one whose `cgroup.procs` and freezer are used.
    pub(super) fn primary(&self) -> &Hierarchy {
        self.controller("freezer")
            .or_else(|| self.0.iter().find(|h| matches!(h.kind, Kind::V1(_))))
            .unwrap_or(&self.0[0])
    }

    /// The hierarchy that has a controller; in v2 the one there is, whether it has it or not.
    pub(super) fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.0.iter().find(|h| match &h.kind {
            Kind::V1(controllers) => controllers.iter().any(|c| c == name),
            Kind::V2 => true,
            Kind::Named | Kind::V2BesideV1 => false,
        })
    }

    pub(super) fn v2(&self) -> Option<&Hierarchy> {
        self.0.iter().find(|h| h.kind == Kind::V2)
    }
}

impl Hierarchy {
    /// `cpu,cpuacct`, `systemd`
    pub(super) fn name(&self) -> String {
        let name = self.mount.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    pub(super) fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    pub(super) fn is_v2(&self) -> bool {
        self.kind == Kind::V2
    }

    /// v2, also beside v1.
    pub(super) fn is_any_v2(&self) -> bool {
        matches!(self.kind, Kind::V2 | Kind::V2BesideV1)
    }

    pub(super) fn limits_nothing(&self) -> bool {
        matches!(self.kind, Kind::Named | Kind::V2BesideV1)
    }

    fn has(&self, controller: &str) -> bool {
        matches!(&self.kind, Kind::V1(controllers) if controllers.iter().any(|c| c == controller))
    }

    /// Makes the directory and what is missing above it.
    pub(super) fn create(&self, path: &str) -> Result<(), Error> {
        let cpuset = self.has("cpuset");
        let directory = self.directory(path);
        if !self.is_v2() && !cpuset && directory.is_dir() {
            return Ok(());
        }
        let mut at = self.mount.clone();
        for component in path.trim_start_matches('/').split('/') {
            if self.is_v2() {
                delegate(&at)?;
            }
            let parent = at.clone();
            at.push(component);
            match fs::create_dir(&at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("make", &at)(error)),
            }
            if cpuset {
                // A v1 cpuset starts empty, and an empty one takes no process (ENOSPC). One that was there already may have been
                // made a moment ago by a neighbour that has not come to this yet.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    inherit(&parent.join(file), &at.join(file))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn add(&self, path: &str, pid: i32) -> Result<(), Error> {
        let procs = self.directory(path).join("cgroup.procs");
        fs::write(&procs, pid.to_string()).map_err(Error::io("move a process into", &procs))
    }

    /// Freezes what is in the cgroup and below it; tells whether all of it stands still. On `false` the rest goes on freezing: thaw it.
    pub(super) fn freeze(&self, path: &str, until: Instant) -> bool {
        let Some(freezer) = self.freezer(path) else {
            return false;
        };
        // A process that forks while v1's freezer walks is missed: the write is repeated until all are in.
        while fs::write(&freezer.control, freezer.freeze).is_ok() {
            if fs::read_to_string(&freezer.state)
                .is_ok_and(|text| text.lines().any(|line| line == freezer.frozen))
            {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        false
    }

    /// Idempotent; a cgroup that is not there has nothing frozen.
    pub(super) fn thaw(&self, path: &str) -> Result<(), Error> {
        let Some(freezer) = self.freezer(path) else {
            return Ok(());
        };
        match fs::write(&freezer.control, freezer.thaw) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("thaw", &freezer.control)(error))
            }
            _ => Ok(()),
        }
    }

    fn freezer(&self, path: &str) -> Option<Freezer> {
        let directory = self.directory(path);
        if self.is_v2() {
            return Some(Freezer {
                control: directory.join("cgroup.freeze"),
                state: directory.join("cgroup.events"),
                freeze: "1",
                thaw: "0",
                frozen: "frozen 1",
            });
        }
        self.has("freezer").then(|| Freezer {
            control: directory.join("freezer.state"),
            state: directory.join("freezer.state"),
            freeze: "FROZEN",
            thaw: "THAWED",
            frozen: "FROZEN",
        })
    }
}

/// The files of a cgroup's freezer and their words: freezer-subsystem.rst for v1, cgroup-v2.rst for v2 (Linux 5.2).
struct Freezer {
    control: PathBuf,
    state: PathBuf,
    freeze: &'static str,
    thaw: &'static str,
    /// The line of `state` that says that all is frozen.
    frozen: &'static str,
}

/// v2: hands every controller that a directory has down to its children.
fn delegate(directory: &Path) -> Result<(), Error> {
    let read = |file: &str| {
        let path = directory.join(file);
        fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let (has, given) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let missing: Vec<String> = has
        .split_whitespace()
        .filter(|c| !given.split_whitespace().any(|g| g == *c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let control = directory.join("cgroup.subtree_control");
    if fs::write(&control, missing.join(" ")).is_ok() {
        return Ok(());
    }
    // One that can't be had (cpu with real-time tasks around) must not cost the others.
    let mut failed = None;
    for controller in &missing {
        if let Err(error) = fs::write(&control, controller) {
            let needed = matches!(
                controller.as_str(),
                "+cpu" | "+memory" | "+pids" | "+cpuset"
            );
            if needed && failed.is_none() {
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), |error| {
        Err(Error::io("enable controllers in", &control)(error))
    })
}

/// Copies a value to where there is none.
fn inherit(from: &Path, to: &Path) -> Result<(), Error> {
    let read = |path: &Path| fs::read_to_string(path).map_err(Error::io("read", path));
    if !read(to)?.trim().is_empty() {
        return Ok(());
    }
    fs::write(to, read(from)?.trim()).map_err(Error::io("write", to))
}

/// mountinfo writes space, tab, newline and backslash as octal.
pub(crate) fn unescape(mount: &str) -> PathBuf {
    let mut path = String::with_capacity(mount.len());
    let mut rest = mount;
    while let Some(at) = rest.find('\\') {
        path.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match code {
            Some(code) => {
                path.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                path.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    path.push_str(rest);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mount: &str, fs_type: &str, options: &str) -> String {
        format!("32 31 0:29 / {mount} rw,relatime shared:4 - {fs_type} {fs_type} {options}\n")
    }

    #[test]
    fn a_machine_with_both_versions_counts_as_v1() {
        let mountinfo = [
            line("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
            line("/sys/fs/cgroup/freezer", "cgroup", "rw,freezer"),
            line("/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd"),
            line("/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate"),
            line("/elsewhere/freezer", "cgroup", "rw,freezer"),
        ]
        .concat();
        let found = Hierarchies::parse(&mountinfo);
        assert_eq!(found.0.len(), 4);
        assert!(found.v2().is_none());
        assert_eq!(
            found.primary().directory("/a/b"),
            Path::new("/sys/fs/cgroup/freezer/a/b")
        );
        assert_eq!(
            found.controller("cpuacct").unwrap().mount,
            Path::new("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert!(found.controller("hugetlb").is_none());
        assert_eq!(found.all().filter(|h| h.limits_nothing()).count(), 2);
    }

    #[test]
    fn a_machine_with_only_v2_is_v2_and_part_of_a_hierarchy_is_not_one() {
        let part = "1 2 0:3 /docker/x /mnt rw - cgroup cgroup rw,cpu\n";
        let found = Hierarchies::parse(&[part, &line("/sys/fs/cgroup", "cgroup2", "rw")].concat());
        assert_eq!(found.0.len(), 1);
        assert!(found.primary().is_v2());
        assert_eq!(
            found.controller("memory").unwrap().directory("/p"),
            Path::new("/sys/fs/cgroup/p")
        );
    }

    #[test]
    fn a_mount_point_with_a_space_is_read_as_it_is() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
    }
}
