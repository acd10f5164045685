//! Facts of this machine that a spec depends on, read once when the daemon starts.

use std::{
    collections::HashSet,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Capability;
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// The v1 controllers in which every engine makes a container's cgroup. A named hierarchy (systemd's) is not among them: nothing
/// makes a directory of ours there.
const V1_CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

#[derive(Debug, Clone)]
pub struct Host {
    /// The daemon's bounding set: capabilities beyond it are dropped (privileged and ALL).
    pub capabilities: HashSet<Capability>,
    pub cgroup_v2: bool,
    /// cgroup v1: where the hierarchies are mounted, `/sys/fs/cgroup/memory` and its like; empty on v2.
    pub cgroup_v1_mounts: Vec<PathBuf>,
    /// v2: the files that a cgroup with every controller has (`memory.max`, `cgroup.kill`); empty on v1.
    pub cgroup_v2_files: HashSet<String>,
    /// Why no container can have a cgroup: where they are made is mounted read-only, or nowhere.
    pub cgroups_unusable: Option<String>,
    pub hugetlb: bool,
    pub swap_accounting: bool,
    pub apparmor: bool,
    pub selinux: bool,
    /// The daemon's own value: nothing can go below it without CAP_SYS_RESOURCE.
    pub oom_score_adj: i32,
    pub can_lower_oom_score: bool,
}

impl Host {
    /// Reads /proc and /sys. Errors: the daemon's own capabilities or `oom_score_adj` can't be read.
    pub fn probe() -> io::Result<Self> {
        let bounding = caps::read(None, caps::CapSet::Bounding).map_err(io::Error::other)?;
        let effective = caps::read(None, caps::CapSet::Effective).map_err(io::Error::other)?;
        let cgroup_v2 = statfs(CGROUP_ROOT).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC);
        let cgroup_v1_mounts = if cgroup_v2 {
            Vec::new()
        } else {
            v1_mounts(&fs::read_to_string("/proc/self/mountinfo")?)
        };
        let mounts = match cgroup_v2 {
            true => vec![PathBuf::from(CGROUP_ROOT)],
            false => cgroup_v1_mounts.clone(),
        };
        let cgroups_unusable = unusable(&mounts);
        let cgroup_v2_files = match cgroup_v2 {
            true => v2_files(),
            false => HashSet::new(),
        };
        let hugetlb = if cgroup_v2 {
            fs::read_to_string(Path::new(CGROUP_ROOT).join("cgroup.controllers")).is_ok_and(
                |controllers| controllers.split_whitespace().any(|name| name == "hugetlb"),
            )
        } else {
            cgroup_v1_mounts
                .iter()
                .any(|mount| mount.ends_with("hugetlb"))
        };
        Ok(Self {
            capabilities: bounding
                .iter()
                .filter_map(|cap| cap.to_string().parse_capability())
                .collect(),
            cgroup_v2,
            hugetlb,
            swap_accounting: if cgroup_v2 {
                cgroup_v2_files.contains("memory.swap.max")
            } else {
                v1_swap_accounting(&cgroup_v1_mounts)
            },
            cgroup_v1_mounts,
            cgroup_v2_files,
            cgroups_unusable,
            apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|enabled| enabled.starts_with('Y')),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            oom_score_adj: read_oom_score_adj()?,
            can_lower_oom_score: effective.contains(&caps::Capability::CAP_SYS_RESOURCE),
        })
    }
}

/// `CAP_NET_ADMIN` or `NET_ADMIN`, in any case, as the kernel's headers name it.
pub(crate) trait ParseCapability {
    fn parse_capability(&self) -> Option<Capability>;
}

impl ParseCapability for str {
    fn parse_capability(&self) -> Option<Capability> {
        let upper = self.to_ascii_uppercase();
        upper.strip_prefix("CAP_").unwrap_or(&upper).parse().ok()
    }
}

fn read_oom_score_adj() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(|err| {
        io::Error::new(
            ErrorKind::InvalidData,
            format!("/proc/self/oom_score_adj: {err}"),
        )
    })
}

fn v1_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mount_point = Path::new(front.split(' ').nth(4)?);
            // "cpu,cpuacct" is one hierarchy with two controllers
            let ours = mount_point
                .file_name()?
                .to_str()?
                .split(',')
                .all(|name| V1_CONTROLLERS.contains(&name));
            (back.starts_with("cgroup ") && mount_point.starts_with(CGROUP_ROOT) && ours)
                .then(|| mount_point.to_path_buf())
        })
        .collect();
    mounts.sort();
    mounts.dedup();
    mounts
}

/// The file is there when the kernel counts swap: `CONFIG_MEMCG_SWAP`, not turned off by `swapaccount=0`.
fn v1_swap_accounting(mounts: &[PathBuf]) -> bool {
    mounts
        .iter()
        .filter(|mount| mount.ends_with("memory"))
        .any(|mount| mount.join("memory.memsw.limit_in_bytes").exists())
}

/// The files of a cgroup that is not the root, which lacks most of them: of one that has the memory controller, or of one that is made for
/// this. (Before the first pod of a machine without systemd, no cgroup has any controller.)
fn v2_files() -> HashSet<String> {
    let root = Path::new(CGROUP_ROOT);
    let names = |dir: &Path| -> HashSet<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    // In a cgroup namespace of its own the daemon sees a cgroup like others as its root.
    let known = fs::read_dir(root).into_iter().flatten().flatten();
    let known = known
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path());
    for dir in std::iter::once(root.to_owned()).chain(known) {
        if dir.join("memory.max").exists() {
            return names(&dir);
        }
    }
    // What is not to be had shows in the files; the first container would ask for as much.
    for controller in ["memory", "hugetlb", "cpu"] {
        let _ = fs::write(
            root.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    let probe = root.join(format!("berth-probe-{}", std::process::id()));
    if fs::create_dir(&probe).is_err() {
        return HashSet::new();
    }
    let files = names(&probe);
    let _ = fs::remove_dir(&probe);
    files
}

/// Asked of the mounts, since nothing is made for the answer.
fn unusable(mounts: &[PathBuf]) -> Option<String> {
    if mounts.is_empty() {
        return Some(format!(
            "no cgroup hierarchy with controllers is mounted at {CGROUP_ROOT}: mount cgroup2 there"
        ));
    }
    let read_only = |mount: &&PathBuf| {
        statvfs(*mount).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
    };
    mounts.iter().find(read_only).map(|mount| {
        format!(
            "{} is mounted read-only: containers can have no cgroups, and so no limits (mount -o remount,rw {0})",
            mount.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_of_this_machine_agrees_with_proc() {
        let host = Host::probe().unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .unwrap();
        let bits = u64::from_str_radix(bounding.trim(), 16)
            .unwrap()
            .count_ones() as usize;
        assert_eq!(host.capabilities.len(), bits);
        assert_eq!(host.cgroup_v2, host.cgroup_v1_mounts.is_empty());
        for mount in &host.cgroup_v1_mounts {
            assert!(mount.join("cgroup.procs").exists(), "{}", mount.display());
        }
        assert_eq!(host.cgroups_unusable, None);
        assert_eq!(host.cgroup_v2, !host.cgroup_v2_files.is_empty());
    }

    #[test]
    fn cgroups_that_are_nowhere_or_read_only_are_told() {
        assert!(unusable(&[]).unwrap().contains("no cgroup hierarchy"));
        // Of sysfs' kind, and writable wherever these tests run.
        assert_eq!(unusable(&["/dev/shm".into()]), None);
    }

    #[test]
    fn only_hierarchies_in_which_containers_get_a_cgroup_are_listed() {
        let mountinfo = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 30 0:27 / /mnt/memory rw - cgroup cgroup rw,memory
";
        assert_eq!(
            v1_mounts(mountinfo),
            [
                PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"),
                PathBuf::from("/sys/fs/cgroup/memory")
            ]
        );
    }

    #[test]
    fn a_capability_is_known_by_both_of_its_names() {
        for name in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "Cap_Net_Admin"] {
            assert_eq!(
                name.parse_capability(),
                Some(Capability::NetAdmin),
                "{name}"
            );
        }
        for name in [
            "",
            "CAP_",
            "ALL",
            "CAP_CAP_NET_ADMIN",
            "NETADMIN",
            "NET_ADMIN ",
        ] {
            assert_eq!(name.parse_capability(), None, "{name}");
        }
    }
}
