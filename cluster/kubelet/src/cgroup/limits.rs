//! Limits as the kernel's files have them, of cgroups v1 and v2: which ones, what is written, and whether what is there is that.

use std::collections::BTreeMap;

use berth_systemd::weight_of_shares;

/// The kernel's default for CPU bandwidth, and upstream's.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// From here on a number of v1 stands for "no limit": it has none of its own, and rounds the largest down to pages.
pub(super) const NO_LIMIT: u64 = 1 << 62;
/// Memory is counted in pages, rounded down: Linux has none larger.
const MAX_PAGE: u64 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    None,
    At(u64),
}

/// What is not named stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In v1's measure: 1024 is a processor.
    pub cpu_shares: Option<u64>,
    /// In [`CPU_PERIOD_US`].
    pub cpu_quota_us: Option<Bound>,
    pub memory_bytes: Option<Bound>,
    pub pids: Option<Bound>,
    /// By the page's size in bytes; left out where the machine has no controller for them.
    pub huge_pages: BTreeMap<u64, Bound>,
}

/// A file of a cgroup, and what is to be in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub controller: &'static str,
    pub name: String,
    pub value: String,
    pub is_needed: bool,
}

impl Limits {
    pub(super) fn files(&self, v2: bool) -> Vec<File> {
        let mut files = Vec::new();
        let mut put = |controller, name: &str, value: String| {
            files.push(File {
                controller,
                name: name.to_owned(),
                value,
                is_needed: controller != "hugetlb",
            });
        };
        let none = if v2 { "max" } else { "-1" };
        let bound = |bound: Bound| match bound {
            Bound::None => none.to_owned(),
            Bound::At(most) => most.to_string(),
        };
        if let Some(shares) = self.cpu_shares {
            match v2 {
                true => put("cpu", "cpu.weight", weight_of_shares(shares).to_string()),
                false => put("cpu", "cpu.shares", shares.to_string()),
            }
        }
        match (self.cpu_quota_us, v2) {
            (Some(quota), true) => put(
                "cpu",
                "cpu.max",
                format!("{} {CPU_PERIOD_US}", bound(quota)),
            ),
            (Some(quota), false) => {
                put("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string());
                put("cpu", "cpu.cfs_quota_us", bound(quota));
            }
            (None, _) => {}
        }
        if let Some(memory) = self.memory_bytes {
            let name = if v2 {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            put("memory", name, bound(memory));
        }
        // the same word in both
        if let Some(pids) = self.pids {
            let value = match pids {
                Bound::None => "max".to_owned(),
                Bound::At(most) => most.to_string(),
            };
            put("pids", "pids.max", value);
        }
        for (size, pages) in &self.huge_pages {
            let end = if v2 { "max" } else { "limit_in_bytes" };
            put(
                "hugetlb",
                &format!("hugetlb.{}.{end}", page(*size)),
                bound(*pages),
            );
        }
        files
    }
}

impl File {
    /// Whether `found` means what is to be there.
    pub fn is_met_by(&self, found: &str) -> bool {
        let found = found.trim();
        if found == self.value {
            return true;
        }
        let found = found.parse::<u64>().ok();
        match (self.value.as_str(), found) {
            ("-1", Some(found)) => found >= NO_LIMIT,
            (value, Some(found)) if self.name.starts_with("memory.") => value
                .parse::<u64>()
                .is_ok_and(|value| found <= value && value - found < MAX_PAGE),
            _ => false,
        }
    }
}

/// As the kernel spells it: `2MB`.
fn page(bytes: u64) -> String {
    for (unit, shift) in [("GB", 30), ("MB", 20)] {
        if bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{}KB", bytes >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(Bound::At(50_000)),
            memory_bytes: Some(Bound::None),
            pids: Some(Bound::At(64)),
            huge_pages: BTreeMap::from([(2 << 20, Bound::At(0)), (1 << 30, Bound::None)]),
        }
    }

    #[test]
    fn a_limit_is_in_the_file_of_its_version() {
        let lines = |v2| {
            let files = limits().files(v2);
            let all = files.iter().map(|it| format!("{}={}", it.name, it.value));
            all.collect::<Vec<_>>()
        };
        assert_eq!(
            lines(false),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=-1",
                "pids.max=64",
                "hugetlb.2MB.limit_in_bytes=0",
                "hugetlb.1GB.limit_in_bytes=-1",
            ]
        );
        assert_eq!(
            lines(true),
            [
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "memory.max=max",
                "pids.max=64",
                "hugetlb.2MB.max=0",
                "hugetlb.1GB.max=max",
            ]
        );
        assert!(Limits::default().files(true).is_empty());
    }

    #[test]
    fn what_is_there_is_told_from_what_somebody_else_wrote() {
        let of = |name: &str, value: &str| File {
            controller: "memory",
            name: name.into(),
            value: value.into(),
            is_needed: true,
        };
        for (name, value, found, is_met) in [
            ("memory.limit_in_bytes", "5000", "4096\n", true),
            ("memory.limit_in_bytes", "5000", "8192\n", false),
            ("memory.limit_in_bytes", "500000", "4096\n", false),
            ("memory.limit_in_bytes", "-1", "9223372036854771712\n", true),
            ("memory.limit_in_bytes", "-1", "4096\n", false),
            ("memory.max", "max", "max\n", true),
            ("memory.max", "max", "4096\n", false),
            ("cpu.cfs_quota_us", "-1", "-1\n", true),
            ("cpu.cfs_quota_us", "1000", "-1\n", false),
            ("cpu.max", "max 100000", "max 100000\n", true),
            ("cpu.max", "1000 100000", "max 100000\n", false),
            ("cpu.shares", "2", "1024\n", false),
            ("pids.max", "64", "64\n", true),
        ] {
            assert_eq!(
                of(name, value).is_met_by(found),
                is_met,
                "{name} {value} {found}"
            );
        }
    }
}
