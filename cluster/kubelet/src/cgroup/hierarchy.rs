//! The cgroup hierarchies of this machine: v1, v2, or both beside each other, where v1 has the controllers. A cgroup is a path from the root of
//! all of them, and is made in every one, as the runtime makes its own: what lies in one alone would be taken for somebody else's.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::limits::File;
use crate::Error;

/// How deep below a pod's cgroup others may have made more; deeper ones are not looked for.
const MAX_DEPTH: usize = 64;
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
    /// Of v1, by a name and without a controller.
    Named(String),
    V2,
    V2BesideV1,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    pub fn of_this_machine() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let found = Self::parse(&text);
        if found.0.is_empty() {
            return Err(Error::Cgroup {
                what: "find",
                path: "/".into(),
                why: "no cgroup hierarchy is mounted on this machine".into(),
            });
        }
        Ok(found)
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            // 36 35 98:0 /root /mount/point options … - type source super-options
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
            // a part of a hierarchy is not the hierarchy
            let (Some("/"), Some(mount)) = (left.next(), left.next()) else {
                continue;
            };
            let kind = match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => Kind::V2,
                (Some("cgroup"), Some(options)) => of_v1(options),
                _ => continue,
            };
            if !found.iter().any(|known| known.kind == kind) {
                let mount = PathBuf::from(mount.replace("\\040", " "));
                found.push(Hierarchy { mount, kind });
            }
        }
        if found.iter().any(|it| matches!(it.kind, Kind::V1(_))) {
            for it in found.iter_mut().filter(|it| it.kind == Kind::V2) {
                it.kind = Kind::V2BesideV1;
            }
        }
        Self(found)
    }

    pub fn is_v2(&self) -> bool {
        self.0.iter().any(|it| it.kind == Kind::V2)
    }

    /// Whether it is in every hierarchy.
    pub fn has(&self, path: &str) -> bool {
        self.0.iter().all(|it| it.directory(path).is_dir())
    }

    /// Makes it, and what is missing above it, in every hierarchy.
    pub fn ensure(&self, path: &str) -> Result<(), Error> {
        self.0.iter().try_for_each(|it| it.ensure(path))
    }

    /// Writes those of `files` that are otherwise; whether there were any.
    pub fn write(&self, path: &str, files: &[File]) -> Result<bool, Error> {
        let mut has_written = false;
        for file in self.unmet(path, files)? {
            let Some(hierarchy) = self.controller(file.controller) else {
                continue;
            };
            let at = hierarchy.directory(path).join(&file.name);
            fs::write(&at, &file.value).map_err(|error| Error::Cgroup {
                what: "limit",
                path: at.display().to_string(),
                why: format!("{} is not taken: {error}", file.value),
            })?;
            has_written = true;
        }
        Ok(has_written)
    }

    /// Those that have another value, or could not be read where they are needed.
    pub fn unmet<'a>(&self, path: &str, files: &'a [File]) -> Result<Vec<&'a File>, Error> {
        let mut unmet = Vec::new();
        for file in files {
            let lacks = |why: String| Error::Cgroup {
                what: "limit",
                path: path.to_owned(),
                why,
            };
            let Some(hierarchy) = self.controller(file.controller) else {
                if file.is_needed {
                    return Err(lacks(format!(
                        "this machine has no {} controller",
                        file.controller
                    )));
                }
                continue;
            };
            match fs::read_to_string(hierarchy.directory(path).join(&file.name)) {
                Ok(found) if file.is_met_by(&found) => {}
                Ok(_) => unmet.push(file),
                Err(error) if error.kind() == ErrorKind::NotFound && !file.is_needed => {}
                Err(error) => {
                    return Err(lacks(format!(
                        "{} can't be read: {error}; is the {} controller handed down to it?",
                        file.name, file.controller
                    )));
                }
            }
        }
        Ok(unmet)
    }

    /// A file of it, where there is one.
    pub fn read(&self, controller: &str, path: &str, file: &str) -> Option<String> {
        let directory = self.controller(controller)?.directory(path);
        fs::read_to_string(directory.join(file)).ok()
    }

    /// The names of the cgroups right below, in any hierarchy.
    pub fn children(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .0
            .iter()
            .flat_map(|it| below(&it.directory(path)))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Removes it with all below it, where no process is in any of them; whether it is gone.
    pub fn remove(&self, path: &str) -> Result<bool, Error> {
        let trees: Vec<Vec<PathBuf>> = self.0.iter().map(|it| tree(&it.directory(path))).collect();
        if trees.iter().flatten().any(|dir| has_processes(dir)) {
            return Ok(false);
        }
        for dir in trees.iter().flatten() {
            match fs::remove_dir(dir) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // one has just come
                Err(error) if error.kind() == ErrorKind::ResourceBusy => return Ok(false),
                Err(error) => {
                    return Err(Error::Cgroup {
                        what: "remove",
                        path: dir.display().to_string(),
                        why: error.to_string(),
                    });
                }
            }
        }
        Ok(true)
    }

    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.0.iter().find(|it| match &it.kind {
            Kind::V1(controllers) => controllers.iter().any(|one| one == name),
            Kind::V2 => true,
            Kind::Named(_) | Kind::V2BesideV1 => false,
        })
    }
}

fn of_v1(options: &str) -> Kind {
    let words = || options.split(',');
    let controllers: Vec<String> = words()
        .filter(|word| V1_CONTROLLERS.contains(word))
        .map(str::to_owned)
        .collect();
    match controllers.is_empty() {
        true => Kind::Named(
            words()
                .find(|it| it.starts_with("name="))
                .unwrap_or_default()
                .into(),
        ),
        false => Kind::V1(controllers),
    }
}

impl Hierarchy {
    fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    fn ensure(&self, path: &str) -> Result<(), Error> {
        let is_cpuset = matches!(&self.kind, Kind::V1(all) if all.iter().any(|it| it == "cpuset"));
        let mut at = self.mount.clone();
        for part in path.trim_start_matches('/').split('/') {
            if self.kind == Kind::V2 {
                hand_down(&at)?;
            }
            let above = at.clone();
            at.push(part);
            match fs::create_dir(&at) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("make", &at)(error));
                }
                _ => {}
            }
            if is_cpuset {
                // an empty one takes no process
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    inherit(&above.join(file), &at.join(file))?;
                }
            }
        }
        Ok(())
    }
}

/// v2: every controller that a cgroup has is its children's, too. Those that limits of pods need must be.
fn hand_down(directory: &Path) -> Result<(), Error> {
    let read = |file: &str| {
        let path = directory.join(file);
        fs::read_to_string(&path).map_err(failed("read", &path))
    };
    let (has, given) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let given: Vec<&str> = given.split_whitespace().collect();
    for controller in has.split_whitespace().filter(|it| !given.contains(it)) {
        let control = directory.join("cgroup.subtree_control");
        if let Err(error) = fs::write(&control, format!("+{controller}"))
            && matches!(controller, "cpu" | "memory" | "pids" | "cpuset")
        {
            return Err(Error::Cgroup {
                what: "hand controllers down from",
                path: directory.display().to_string(),
                why: format!("{controller}: {error}; a cgroup that has processes can't"),
            });
        }
    }
    Ok(())
}

fn inherit(from: &Path, to: &Path) -> Result<(), Error> {
    let read = |path: &Path| fs::read_to_string(path).map_err(failed("read", path));
    if !read(to)?.trim().is_empty() {
        return Ok(());
    }
    fs::write(to, read(from)?.trim()).map_err(failed("write", to))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::Cgroup {
        what,
        path,
        why: error.to_string(),
    }
}

fn below(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// The directory and all below it, the deepest first.
fn tree(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: usize, into: &mut Vec<PathBuf>) {
        if depth < MAX_DEPTH {
            for name in below(dir) {
                walk(&dir.join(name), depth + 1, into);
            }
        }
        into.push(dir.to_owned());
    }
    let mut all = Vec::new();
    if dir.is_dir() {
        walk(dir, 0, &mut all);
    }
    all
}

/// What can't be read is taken to have some.
fn has_processes(dir: &Path) -> bool {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => !text.is_empty(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mount: &str, fs_type: &str, options: &str) -> String {
        format!("32 31 0:29 / {mount} rw shared:4 - {fs_type} {fs_type} rw,{options}\n")
    }

    #[test]
    fn a_machine_with_both_versions_has_its_controllers_in_v1() {
        let text = [
            line("/c/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
            line("/c/memory", "cgroup", "memory"),
            line("/c/systemd", "cgroup", "xattr,name=systemd"),
            line("/c/unified", "cgroup2", "nsdelegate"),
            line("/other/memory", "cgroup", "memory"),
            "1 2 0:3 /docker/x /mnt rw - cgroup cgroup rw,pids\n".into(),
        ];
        let found = Hierarchies::parse(&text.concat());
        assert_eq!(found.0.len(), 4);
        assert!(!found.is_v2());
        let memory = found.controller("memory").unwrap();
        assert_eq!(memory.directory("/a/b"), Path::new("/c/memory/a/b"));
        assert!(found.controller("pids").is_none());
        let alone = Hierarchies::parse(&line("/c", "cgroup2", "nsdelegate"));
        assert!(alone.is_v2());
        let directory = alone.controller("pids").unwrap().directory("/a");
        assert_eq!(directory, Path::new("/c/a"));
    }

    #[test]
    fn a_limit_without_its_controller_is_refused_by_name_and_huge_pages_are_left_out() {
        let found = Hierarchies::parse(&line("/nowhere/cpu", "cgroup", "cpu"));
        let file = |controller, is_needed| File {
            controller,
            name: "x".into(),
            value: "1".into(),
            is_needed,
        };
        let refused = found.unmet("/a", &[file("memory", true)]).unwrap_err();
        assert!(
            refused.to_string().contains("no memory controller"),
            "{refused}"
        );
        assert!(
            found
                .unmet("/a", &[file("hugetlb", false)])
                .unwrap()
                .is_empty()
        );
        let refused = found.unmet("/a", &[file("cpu", true)]).unwrap_err();
        assert!(refused.to_string().contains("handed down"), "{refused}");
    }
}
