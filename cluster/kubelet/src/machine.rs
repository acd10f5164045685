//! What this machine has, and what is left of it.

use std::{fs, path::Path};

/// Bytes, where not told otherwise; 0: not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub memory: u64,
    pub memory_available: u64,
    pub swap: u64,
    pub swap_free: u64,
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
    /// With what is kept for root.
    pub free: u64,
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
            free: stat.f_bfree * stat.f_frsize,
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
            swap_free: kib("SwapFree:"),
            fs: Fs::of(dir).unwrap_or_default(),
            pids: most.into_iter().filter(|most| *most > 0).min().unwrap_or(0),
            pids_used: tasks.and_then(|all| all.parse().ok()).unwrap_or(0),
            huge_pages: huge_pages(),
        }
    }
}

/// What has come and gone by one of the machine's interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// The machine's interfaces, but for those that lead to itself or into pods, by upstream's names and our runtime's; the one of the default route first.
pub(crate) fn traffic() -> Vec<Traffic> {
    let mut all = interfaces(&text("/proc/net/dev"));
    let default = default_interface(&text("/proc/net/route"));
    all.sort_by_key(|it| default.as_ref() != Some(&it.name));
    all
}

/// proc(5): two lines of headings, then "name: bytes packets errs drop fifo frame compressed multicast", and the same of what was sent.
fn interfaces(dev: &str) -> Vec<Traffic> {
    const INNER: [&str; 5] = ["lo", "veth", "docker", "nerdctl", "berth"];
    let lines = dev.lines().skip(2);
    let all = lines.filter_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts
            .split_whitespace()
            .map_while(|count| count.parse().ok())
            .collect();
        let &[
            rx_bytes,
            _,
            rx_errors,
            _,
            _,
            _,
            _,
            _,
            tx_bytes,
            _,
            tx_errors,
            ..,
        ] = &counts[..]
        else {
            return None;
        };
        Some(Traffic {
            name: name.trim().to_owned(),
            rx_bytes,
            rx_errors,
            tx_bytes,
            tx_errors,
        })
    });
    all.filter(|it| !INNER.iter().any(|inner| it.name.starts_with(inner)))
        .collect()
}

/// The one whose destination is everywhere, of the least metric: "Iface Destination Gateway Flags RefCnt Use Metric Mask …".
fn default_interface(route: &str) -> Option<String> {
    let lines = route.lines().skip(1);
    let all = lines.filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_default = *words.get(1)? == "00000000" && *words.get(7)? == "00000000";
        let metric: u32 = words.get(6)?.parse().ok()?;
        is_default.then(|| (metric, words[0].to_owned()))
    });
    all.min().map(|(_, name)| name)
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
        assert!(machine.swap >= machine.swap_free);
        let identity = Identity::of_this_machine();
        assert!(!identity.boot_id.is_empty() && !identity.kernel.is_empty());
    }

    #[test]
    fn interfaces_are_counted_but_for_those_of_pods_and_the_default_one_is_known() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
            \u{20}   lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
            \u{20} eth1: 7 1 2 0 0 0 0 0 9 1 3 0 0 0 0 0\n\
            veth12ab: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            \u{20} half: 1 1\n\
            eth0:5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n";
        let found = interfaces(dev);
        let names: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["eth1", "eth0"]);
        let eth1 = &found[0];
        let counts = [eth1.rx_bytes, eth1.rx_errors, eth1.tx_bytes, eth1.tx_errors];
        assert_eq!(counts, [7, 2, 9, 3]);
        let head =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let one = |name: &str, to: &str, metric: u32, mask: &str| {
            format!("{name}\t{to}\t0100000A\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let routes = [
            head.to_owned(),
            one("eth1", "0000000A", 0, "00FFFFFF"),
            one("eth1", "00000000", 200, "00000000"),
            one("eth0", "00000000", 100, "00000000"),
        ]
        .concat();
        assert_eq!(default_interface(&routes).as_deref(), Some("eth0"));
        assert_eq!(default_interface(head), None);
    }
}
