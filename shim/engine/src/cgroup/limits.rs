//! What an OCI resource becomes: a list of files and values, worked out first and written after.

mod block_io;

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use berth_systemd::{Property, property};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::{Cgroup, Error, devices, hierarchy::Hierarchies};

/// Devices that every container may use, whatever its spec says (the OCI runtime spec's default devices): null, zero, full,
/// random, urandom, tty, console, ptmx and its terminals; and making, but not opening, any node.
const DEFAULT_DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// What to do about a file that the machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absent {
    Fails,
    /// The limit can be done without; the note says so.
    Note(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
struct Write {
    controller: &'static str,
    file: String,
    value: String,
    absent: Absent,
}

impl Write {
    fn new(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Write {
        Write {
            controller,
            file: file.into(),
            value: value.to_string(),
            absent: Absent::Fails,
        }
    }

    fn or_note(mut self, note: &'static str) -> Write {
        self.absent = Absent::Note(note);
        self
    }
}

/// Files as they were before they were written.
#[derive(Debug, Default)]
struct Before(Vec<(PathBuf, String)>);

impl Before {
    /// What can't be read (a list of devices) can't be put back.
    fn keep(&mut self, cgroup: &Cgroup, machine: &Hierarchies, write: &Write) {
        let Some(hierarchy) = machine.controller(write.controller) else {
            return;
        };
        let path = hierarchy.directory(cgroup.path()).join(&write.file);
        if let Ok(said) = fs::read_to_string(&path) {
            let value = match block_io::is_of_device(write) {
                true => block_io::undo(write, &said),
                false => said,
            };
            self.0.push((path, value));
        }
    }

    /// Once more where files that bound each other were in each other's way.
    fn put_back(self) {
        for _ in 0..2 {
            for (path, value) in self.0.iter().rev() {
                let _ = fs::write(path, value);
            }
        }
    }
}

/// `tell`: whoever else writes these files hears of it once the kernel has taken them.
pub(super) fn change(
    cgroup: &Cgroup,
    machine: &Hierarchies,
    resources: &LinuxResources,
    tell: impl FnOnce() -> Result<(), Error>,
) -> Result<Vec<String>, Error> {
    let mut before = Before::default();
    let written = write_all(cgroup, machine, resources, |write| {
        before.keep(cgroup, machine, write)
    });
    let told = written.and_then(|notes| {
        tell()?;
        if cgroup.is_by_systemd() {
            // It has written them once more, to whole percents.
            let writes = plan_v2(resources);
            for write in &writes {
                execute(cgroup, machine, write, &writes)?;
            }
        }
        Ok(notes)
    });
    if told.is_err() {
        before.put_back();
    }
    told
}

/// The same limits as systemd is told of them.
pub(super) fn properties(resources: &LinuxResources) -> Vec<Property> {
    let writes = plan_v2(resources);
    let of_file = |write: &Write| property::of_file(&write.file, &write.value);
    writes.iter().flat_map(of_file).collect()
}

pub(super) fn apply(
    cgroup: &Cgroup,
    machine: &Hierarchies,
    resources: &LinuxResources,
) -> Result<Vec<String>, Error> {
    write_all(cgroup, machine, resources, |_| ())
}

fn write_all(
    cgroup: &Cgroup,
    machine: &Hierarchies,
    resources: &LinuxResources,
    mut about_to: impl FnMut(&Write),
) -> Result<Vec<String>, Error> {
    let unsupported = |what| {
        Err(Error::Unsupported {
            path: cgroup.path().to_owned(),
            what,
        })
    };
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|rdma| !rdma.is_empty())
    {
        return unsupported("RDMA");
    }
    if resources.network().is_some() {
        return unsupported("network class and priority");
    }
    let v2 = machine.v2().is_some();
    if !v2
        && resources
            .unified()
            .as_ref()
            .is_some_and(|files| !files.is_empty())
    {
        return unsupported("unified (cgroup v2)");
    }
    let writes = if v2 {
        plan_v2(resources)
    } else {
        plan_v1(resources)
    };
    if let (Some(v2), Some(rules)) = (machine.v2(), resources.devices()) {
        let directory = v2.directory(cgroup.path());
        File::open(&directory)
            .and_then(|opened| devices::attach(opened.as_fd(), rules))
            .map_err(Error::io("attach device rules to", &directory))?;
    }
    writes.iter().for_each(&mut about_to);
    let mut notes: Vec<String> = Vec::new();
    for write in &writes {
        if let Some(note) = execute(cgroup, machine, write, &writes)? {
            let note = note.to_owned();
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(notes)
}

fn execute(
    cgroup: &Cgroup,
    machine: &Hierarchies,
    write: &Write,
    all: &[Write],
) -> Result<Option<&'static str>, Error> {
    let absent = |source: io::Error| match write.absent {
        Absent::Note(note) => Ok(Some(note)),
        Absent::Fails => Err(failed(cgroup, write, source)),
    };
    let Some(hierarchy) = machine.controller(write.controller) else {
        let source = io::Error::new(
            io::ErrorKind::NotFound,
            format!("this machine has no {} controller", write.controller),
        );
        return absent(source);
    };
    let directory = hierarchy.directory(cgroup.path());
    match put(&directory, write) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => {
            absent(match hierarchy.is_v2() {
                true => not_handed_down(&directory, write).unwrap_or(error),
                false => error,
            })
        }
        // Two files that bound each other (memory and memory+swap, quota and period): when both rise, the second must go first.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            let same =
                |other: &&Write| other.controller == write.controller && other.file != write.file;
            let partner = all
                .iter()
                .filter(same)
                .find(|other| is_pair(&write.file, &other.file));
            match partner {
                Some(partner) if put(&directory, partner).is_ok() => {
                    put(&directory, write).map_err(|error| failed(cgroup, write, error))?;
                    Ok(None)
                }
                _ => Err(failed(cgroup, write, error)),
            }
        }
        Err(error) => Err(failed(cgroup, write, error)),
    }
}

/// v2: a cgroup lacks the files of a controller that those above it keep to themselves, as inside another container or where someone else has
/// made the cgroup above. None: it has the controller, and the kernel no such file.
fn not_handed_down(directory: &Path, write: &Write) -> Option<io::Error> {
    // A file of `unified` is named by its controller; those of the core belong to none.
    let controller = write.file.split('.').next().filter(|c| *c != "cgroup")?;
    let has = fs::read_to_string(directory.join("cgroup.controllers")).ok()?;
    if has.split_whitespace().any(|one| one == controller) {
        return None;
    }
    Some(io::Error::new(
        io::ErrorKind::NotFound,
        format!(
            "no {controller} controller is handed down to this cgroup, which has these: {}",
            has.trim()
        ),
    ))
}

fn is_pair(file: &str, other: &str) -> bool {
    matches!(
        (file, other),
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            | ("cpu.cfs_period_us", "cpu.cfs_quota_us")
    )
}

fn put(directory: &Path, write: &Write) -> io::Result<()> {
    // Not created: a file that the kernel does not have must be noticed.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(directory.join(&write.file))?;
    io::Write::write_all(&mut file, write.value.as_bytes())
}

fn failed(cgroup: &Cgroup, write: &Write, source: io::Error) -> Error {
    Error::Limit {
        path: cgroup.path().to_owned(),
        file: write.file.clone(),
        value: write.value.clone(),
        source,
    }
}

const NO_HUGETLB: &str = "this machine has no hugetlb controller: hugepage limits are ignored";
const NO_SWAP: &str = "this kernel counts no swap for cgroups: the memory+swap limit is ignored";

fn plan_v1(resources: &LinuxResources) -> Vec<Write> {
    let mut plan = Vec::new();
    if let Some(cpu) = resources.cpu() {
        // 0 is "not set" for all of these but the quota, where -1 is.
        let cpu_files = [
            ("cpu.shares", cpu.shares().map(i128::from)),
            ("cpu.cfs_period_us", cpu.period().map(i128::from)),
            ("cpu.cfs_quota_us", cpu.quota().map(i128::from)),
            ("cpu.cfs_burst_us", cpu.burst().map(i128::from)),
        ];
        for (file, value) in cpu_files {
            if let Some(value) = value.filter(|value| *value != 0) {
                plan.push(Write::new("cpu", file, value));
            }
        }
        if let Some(idle) = cpu.idle() {
            plan.push(Write::new("cpu", "cpu.idle", idle));
        }
        for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                plan.push(Write::new("cpuset", file, value));
            }
        }
    }
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
            plan.push(Write::new("memory", "memory.limit_in_bytes", limit));
        }
        if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
            plan.push(Write::new("memory", "memory.memsw.limit_in_bytes", swap).or_note(NO_SWAP));
        }
        if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
            plan.push(Write::new(
                "memory",
                "memory.soft_limit_in_bytes",
                reservation,
            ));
        }
        if let Some(swappiness) = memory.swappiness() {
            plan.push(Write::new("memory", "memory.swappiness", swappiness));
        }
        if memory.disable_oom_killer() == Some(true) {
            plan.push(Write::new("memory", "memory.oom_control", 1));
        }
    }
    if let Some(pids) = resources.pids() {
        plan.push(Write::new("pids", "pids.max", pids_max(pids.limit())));
    }
    if let Some(asked) = resources.block_io() {
        plan.extend(block_io::plan_v1(asked));
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size());
        plan.push(Write::new("hugetlb", file, limit.limit()).or_note(NO_HUGETLB));
    }
    if let Some(rules) = resources.devices() {
        // The kernel's list starts as "all"; the first rule of a spec usually denies all.
        for rule in rules {
            let file = if rule.allow() {
                "devices.allow"
            } else {
                "devices.deny"
            };
            plan.push(Write::new("devices", file, device_rule(rule)));
        }
        for rule in DEFAULT_DEVICES {
            plan.push(Write::new("devices", "devices.allow", rule));
        }
    }
    plan
}

fn plan_v2(resources: &LinuxResources) -> Vec<Write> {
    let mut plan = Vec::new();
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            plan.push(Write::new(
                "cpu",
                "cpu.weight",
                berth_systemd::weight_of_shares(shares),
            ));
        }
        let (quota, period) = (
            cpu.quota().filter(|quota| *quota != 0),
            cpu.period().filter(|period| *period != 0),
        );
        if quota.is_some() || period.is_some() {
            let quota = match quota {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            plan.push(Write::new(
                "cpu",
                "cpu.max",
                format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD_US)),
            ));
        }
        if let Some(burst) = cpu.burst() {
            plan.push(Write::new("cpu", "cpu.max.burst", burst));
        }
        if let Some(idle) = cpu.idle() {
            plan.push(Write::new("cpu", "cpu.idle", idle));
        }
        for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                plan.push(Write::new("cpuset", file, value));
            }
        }
    }
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(limit) = limit {
            plan.push(Write::new("memory", "memory.max", bytes_or_max(limit)));
        }
        if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
            // OCI's swap is memory+swap; v2 counts swap alone.
            let alone = if swap < 0 {
                swap
            } else {
                (swap - limit.unwrap_or(0).max(0)).max(0)
            };
            plan.push(
                Write::new("memory", "memory.swap.max", bytes_or_max(alone)).or_note(NO_SWAP),
            );
        }
        if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
            plan.push(Write::new(
                "memory",
                "memory.low",
                bytes_or_max(reservation),
            ));
        }
    }
    if let Some(pids) = resources.pids() {
        plan.push(Write::new("pids", "pids.max", pids_max(pids.limit())));
    }
    if let Some(asked) = resources.block_io() {
        plan.extend(block_io::plan_v2(asked));
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", limit.page_size());
        plan.push(Write::new("hugetlb", file, limit.limit()).or_note(NO_HUGETLB));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        // A name with a slash would leave the cgroup: it then names no file that the kernel has.
        plan.push(Write::new("unified", file.replace('/', "\u{fffd}"), value));
    }
    plan
}

/// The kernel's default for cpu.max.
const DEFAULT_PERIOD_US: u64 = 100_000;

fn bytes_or_max(bytes: i64) -> String {
    if bytes < 0 {
        "max".to_owned()
    } else {
        bytes.to_string()
    }
}

fn pids_max(limit: i64) -> String {
    if limit <= 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

fn device_rule(rule: &LinuxDeviceCgroup) -> String {
    let number = |number: Option<i64>| {
        number
            .filter(|n| *n >= 0)
            .map_or("*".to_owned(), |n| n.to_string())
    };
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::B => "b",
        LinuxDeviceType::C | LinuxDeviceType::U => "c",
        // The kernel takes "a" alone, for everything.
        LinuxDeviceType::A | LinuxDeviceType::P => return "a".to_owned(),
    };
    let access = rule
        .access()
        .as_deref()
        .filter(|access| !access.is_empty())
        .unwrap_or("rwm");
    format!(
        "{kind} {}:{} {access}",
        number(rule.major()),
        number(rule.minor())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn lines(plan: &[Write]) -> Vec<String> {
        plan.iter()
            .map(|write| format!("{}={}", write.file, write.value))
            .collect()
    }

    const SPEC: &str = r#"{
        "cpu": {"shares": 512, "quota": 20000, "period": 100000, "cpus": "0", "mems": ""},
        "memory": {"limit": 33554432, "swap": 33554432},
        "pids": {"limit": 64},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}],
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"}]
    }"#;

    #[test]
    fn limits_become_the_files_of_their_version() {
        let v1 = lines(&plan_v1(&resources(SPEC)));
        assert_eq!(
            v1[..11],
            [
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=20000",
                "cpuset.cpus=0",
                "memory.limit_in_bytes=33554432",
                "memory.memsw.limit_in_bytes=33554432",
                "pids.max=64",
                "hugetlb.2MB.limit_in_bytes=0",
                "hugetlb.1GB.limit_in_bytes=0",
                "devices.deny=a",
                "devices.allow=c 10:200 rw",
            ]
        );
        let v2 = lines(&plan_v2(&resources(SPEC)));
        assert_eq!(
            v2,
            [
                "cpu.weight=59",
                "cpu.max=20000 100000",
                "cpuset.cpus=0",
                "memory.max=33554432",
                "memory.swap.max=0",
                "pids.max=64",
                "hugetlb.2MB.max=0",
                "hugetlb.1GB.max=0",
            ]
        );
    }

    #[test]
    fn systemd_is_told_of_the_same_limits() {
        use berth_systemd::property::Value;
        let told = properties(&resources(SPEC));
        let number = |name| {
            told.iter().find_map(|property| match property.value {
                Value::Number(value) if property.name == name => Some(value),
                _ => None,
            })
        };
        for (name, value) in [
            ("CPUWeight", 59),
            ("CPUQuotaPerSecUSec", 200_000),
            ("CPUQuotaPeriodUSec", 100_000),
            ("MemoryMax", 32 << 20),
            ("MemorySwapMax", 0),
            ("TasksMax", 64),
        ] {
            assert_eq!(number(name), Some(value), "{name}");
        }
        // And of the processors.
        assert_eq!(told.len(), 7, "{told:?}");
    }

    #[test]
    fn absent_limits_write_nothing_and_unlimited_ones_say_so() {
        assert_eq!(lines(&plan_v1(&resources("{}"))), [""; 0]);
        let open = resources(
            r#"{"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}"#,
        );
        assert_eq!(
            lines(&plan_v1(&open)),
            [
                "cpu.cfs_quota_us=-1",
                "memory.limit_in_bytes=-1",
                "memory.memsw.limit_in_bytes=-1",
                "pids.max=max"
            ]
        );
        assert_eq!(
            lines(&plan_v2(&open)),
            [
                "cpu.max=max 100000",
                "memory.max=max",
                "memory.swap.max=max",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn a_limit_is_in_the_kernel_after_it_was_applied_and_can_be_raised_and_lowered() {
        let cgroup = Cgroup::at(&format!("/berth-test-limits-{}", std::process::id())).unwrap();
        cgroup.create().unwrap();
        let machine = Hierarchies::of_this_machine().unwrap();
        let limit = |bytes: i64| {
            let json = format!(
                r#"{{"memory": {{"limit": {bytes}, "swap": {bytes}}}, "hugepageLimits": [{{"pageSize": "2MB", "limit": 0}}]}}"#
            );
            cgroup.apply(&resources(&json)).unwrap()
        };
        for bytes in [32 << 20, 64 << 20, 16 << 20] {
            let notes = limit(bytes);
            assert_eq!(cgroup.stats().unwrap().memory_limit, bytes as u64);
            assert_eq!(
                notes.iter().any(|n| n == NO_HUGETLB),
                machine.controller("hugetlb").is_none()
            );
        }
        let refused = cgroup
            .apply(&resources(r#"{"cpu": {"cpus": "999"}}"#))
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("cpuset.cpus") && refused.contains("999"),
            "{refused}"
        );
        cgroup.remove().unwrap();
    }

    #[test]
    fn a_rate_of_a_block_device_is_in_the_kernel_and_put_back_where_a_change_fails() {
        let device = fs::read_dir("/sys/block")
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("dev")).ok())
            .next()
            .expect("a block device");
        let device = device.trim();
        let (major, minor) = device.split_once(':').unwrap();
        let cgroup = Cgroup::at(&format!("/berth-test-block-{}", std::process::id())).unwrap();
        cgroup.create().unwrap();
        let machine = Hierarchies::of_this_machine().unwrap();
        let (controller, file) = match machine.v2() {
            Some(_) => ("io", "io.max"),
            None => ("blkio", "blkio.throttle.write_bps_device"),
        };
        let Some(hierarchy) = machine.controller(controller) else {
            cgroup.remove().unwrap();
            return;
        };
        let path = hierarchy.directory(cgroup.path()).join(file);
        let kept = || fs::read_to_string(&path).unwrap();
        let ask = |rate: u64, more: &str| {
            let asked = resources(&format!(
                r#"{{"blockIO": {{"throttleWriteBpsDevice": [{{"major": {major}, "minor": {minor}, "rate": {rate}}}]{more}}}}}"#
            ));
            change(&cgroup, machine, &asked, || Ok(()))
        };
        ask(1 << 20, "").unwrap();
        assert!(kept().contains("1048576"), "{}", kept());
        // Written after it.
        let nowhere = r#", "throttleWriteIOPSDevice": [{"major": 4095, "minor": 1, "rate": 1}]"#;
        let refused = ask(1 << 21, nowhere).unwrap_err().to_string();
        assert!(refused.contains("4095:1"), "{refused}");
        assert!(kept().contains("1048576"), "{}", kept());
        ask(0, "").unwrap();
        assert!(!kept().contains(device), "{}", kept());
        cgroup.remove().unwrap();
    }
}
