//! Processes as /proc has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    machine::{mount_namespace, patient},
    systemd,
};

/// What /proc said of a process at one moment. Two looks at one process needn't be equal: its state, its parent and, at an `execve`,
/// its name change meanwhile. [`Process::is`] compares whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub comm: String,
    /// `R`, `S`, `D`, `Z` …
    pub state: char,
    /// Clock ticks since boot: with the pid, the identity of a process.
    pub started: u64,
}

impl Process {
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let rest: Vec<&str> = stat[close + 1..].split_whitespace().collect();
        Some(Self {
            pid,
            parent: rest.get(1)?.parse().ok()?,
            comm: stat[open + 1..close].to_owned(),
            state: rest.first()?.chars().next()?,
            started: rest.get(19)?.parse().ok()?,
        })
    }

    /// Whether both are of the same process.
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    pub fn exe(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    pub fn cmdline(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }

    /// The fields of /proc/PID/status.
    pub fn status(&self) -> Result<BTreeMap<String, String>> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .with_context(|| format!("status of pid {}", self.pid))?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect())
    }

    /// A field of /proc/PID/status that is a hexadecimal mask.
    pub fn mask(&self, field: &str) -> Result<u64> {
        let status = self.status()?;
        let value = status
            .get(field)
            .with_context(|| format!("pid {} has no {field}", self.pid))?;
        Ok(u64::from_str_radix(value, 16)?)
    }
}

/// Every process there is.
pub fn all() -> Vec<Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect()
}

/// The children of `roots`, theirs, and so on; `roots` not among them.
pub fn descendants(roots: &BTreeSet<i32>) -> Vec<Process> {
    let all = all();
    let mut known = roots.clone();
    let mut found = Vec::new();
    loop {
        let fresh: Vec<&Process> = all
            .iter()
            .filter(|process| known.contains(&process.parent) && !known.contains(&process.pid))
            .collect();
        if fresh.is_empty() {
            return found;
        }
        for process in fresh {
            known.insert(process.pid);
            found.push(process.clone());
        }
    }
}

/// Processes (but this one) that live in the calling thread's mount namespace.
pub fn of_this_machine() -> Vec<Process> {
    let own = std::process::id() as i32;
    let Some(namespace) = mount_namespace("thread-self") else {
        return Vec::new();
    };
    all()
        .into_iter()
        .filter(|process| {
            process.pid != own && mount_namespace(&process.pid.to_string()) == Some(namespace)
        })
        .collect()
}

/// Shims of this machine: what is called as the shim and was not started by another shim (a shim's pause and launchers are). Not
/// by the link to the executable, which has no path: it lies on a mount that is nowhere (SEC-ENG-02).
pub fn shims() -> Vec<Process> {
    let is_shim = |process: &Process| {
        let line = process.cmdline();
        line.split(' ')
            .next()
            .is_some_and(|name| name.ends_with("containerd-shim-berth-v2"))
    };
    let candidates: Vec<Process> = of_this_machine().into_iter().filter(is_shim).collect();
    let pids: BTreeSet<i32> = candidates.iter().map(|process| process.pid).collect();
    candidates
        .into_iter()
        .filter(|process| !pids.contains(&process.parent))
        .collect()
}

/// Processes in a cgroup (of any hierarchy) that has `name` among its path's parts, or a unit of systemd that is named by it.
pub fn in_cgroup(name: &str) -> Vec<Process> {
    all()
        .into_iter()
        .filter(|process| process.state != 'Z')
        .filter(|process| {
            let cgroups =
                fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
            cgroups.lines().any(|line| {
                line.splitn(3, ':')
                    .nth(2)
                    .is_some_and(|path| path.split('/').any(|part| systemd::names(part, name)))
            })
        })
        .collect()
}

/// The first process of a container: the one whose parent is not in the container's cgroup.
pub fn init_of(container_id: &str) -> Option<Process> {
    let processes = in_cgroup(container_id);
    let pids: BTreeSet<i32> = processes.iter().map(|process| process.pid).collect();
    processes
        .into_iter()
        .filter(|process| !pids.contains(&process.parent))
        .min_by_key(|process| process.started)
}

pub fn kill_9(pid: i32) {
    // Gone already is as good.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Waits until `done` holds, at most `limit` (as [`patient`] as the machine wants it); whether it came true.
pub fn eventually(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patient(limit);
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        // To look is most of the work, where the machine is slow.
        std::thread::sleep(patient(Duration::from_millis(20)));
    }
}

/// What a process holds in memory now, KiB.
pub fn resident_kib(pid: i32) -> Result<u64> {
    let process = Process::read(pid).with_context(|| format!("pid {pid} has ended"))?;
    let status = process.status()?;
    let line = status.get("VmRSS").context("no VmRSS")?;
    Ok(line.trim_end_matches(" kB").trim().parse()?)
}

/// Proportional set size of a process, KiB: what it shares counts for its part. 0: it has ended.
pub fn pss_kib(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}
