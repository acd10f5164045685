//! What this machine has, and what is left of it.

use std::{fs, path::Path};

/// Bytes, where not told otherwise; 0: not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub memory: u64,
    pub memory_available: u64,
    pub swap: u64,
    pub fs: Fs,
    pub pids: u64,
    pub pids_used: u64,
    /// Reserved for each size, in bytes: size and all of it.
    pub huge_pages: Vec<(u64, u64)>,
}

/// A file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fs {
    pub bytes: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Fs {
    /// Of the file system that `path` is on.
    pub fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            bytes: stat.f_blocks * stat.f_frsize,
            available: stat.f_bavail * stat.f_frsize,
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }

    /// Whether two directories lie on different ones.
    pub fn is_another(one: &Path, other: &Path) -> bool {
        let device = |path| rustix::fs::stat(path).ok().map(|it| it.st_dev);
        matches!((device(one), device(other)), (Some(one), Some(other)) if one != other)
    }
}

impl Machine {
    /// As it is now; `dir` is on the file system that pods write to.
    pub fn now(dir: &Path) -> Self {
        let info = text("/proc/meminfo");
        let kib = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            let value =
                line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
            value.unwrap_or(0) * 1024
        };
        // "0.00 0.01 0.05 2/345 6789": the fourth is running/all
        let tasks = text("/proc/loadavg");
        let tasks = tasks.split(' ').nth(3).and_then(|it| it.split('/').nth(1));
        let number = |path: &str| text(path).trim().parse::<u64>().unwrap_or(0);
        let most = [
            number("/proc/sys/kernel/pid_max"),
            number("/proc/sys/kernel/threads-max"),
        ];
        Self {
            memory: kib("MemTotal:"),
            memory_available: kib("MemAvailable:"),
            swap: kib("SwapTotal:"),
            fs: Fs::of(dir).unwrap_or_default(),
            pids: most.into_iter().filter(|most| *most > 0).min().unwrap_or(0),
            pids_used: tasks.and_then(|all| all.parse().ok()).unwrap_or(0),
            huge_pages: huge_pages(),
        }
    }
}

fn huge_pages() -> Vec<(u64, u64)> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
            Some((kib * 1024, count.trim().parse::<u64>().ok()? * kib * 1024))
        })
        .collect();
    all.sort_unstable();
    all
}

/// As people write it: `2Mi`, `1Gi`, `0`.
pub(crate) fn binary(bytes: u64) -> String {
    for (unit, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Who the machine is, in files that most systems have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
}

impl Identity {
    pub fn of_this_machine() -> Self {
        let word = |path: &str| text(path).trim().to_owned();
        let machine_id = word("/etc/machine-id");
        let uuid = word("/sys/class/dmi/id/product_uuid");
        let release = text("/etc/os-release");
        let pretty = release
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map_or("Linux", |name| name.trim_matches(['"', '\'']));
        Self {
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: word("/proc/sys/kernel/random/boot_id"),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            os_image: pretty.to_owned(),
        }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// In the names of Go.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_has_is_read() {
        let machine = Machine::now(Path::new("/"));
        assert!(machine.memory > machine.memory_available && machine.memory_available > 0);
        assert!(machine.fs.bytes > machine.fs.available && machine.pids > machine.pids_used);
        assert!(machine.pids_used > 0);
        let identity = Identity::of_this_machine();
        assert!(!identity.boot_id.is_empty() && !identity.kernel.is_empty());
    }
}
