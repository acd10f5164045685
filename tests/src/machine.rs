//! A machine of the test's own: a mount and a network namespace, so that mounts, links, routes and ports can be compared exactly
//! and nothing that a crashed test made stays on the host. Pids, cgroups and the disk are still the host's: those a [`crate::Node`]
//! cleans up by name.

use std::{os::unix::fs::MetadataExt, process::Command, sync::OnceLock, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// `limit` for this machine: tests say how long something takes on a common one. `BERTH_TEST_PATIENCE` (1) says how many times slower
/// this one may be: an emulated one is.
pub fn patient(limit: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| {
        let times = std::env::var("BERTH_TEST_PATIENCE");
        times.ok().and_then(|times| times.parse().ok()).unwrap_or(1)
    });
    limit * (*times).max(1)
}

/// Moves this thread, and what it starts from now on, into new mount and network namespaces with lo up.
pub fn isolate() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "these tests need root");
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("unshare mount and network namespaces")?;
    // First cut from the host, then shared among ourselves: bidirectional propagation is among the things to be tested.
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            flags | MsFlags::MS_REC,
            None::<&str>,
        )
        .context("change the propagation of /")?;
    }
    forget_others()?;
    ensure!(
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .context("run ip (package iproute2)")?
            .success(),
        "lo does not come up"
    );
    // A namespace begins with what the machine's own has (net.core.devconf_inherit_init_net).
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{key}"), "0").with_context(|| key.to_owned())?;
    }
    Ok(())
}

/// Other daemons' mounts came along as copies: they would keep alive what those take away, and vanish in the middle of a test.
fn forget_others() -> Result<()> {
    let mountinfo = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let targets = mountinfo
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4));
    for target in
        targets.filter(|target| target.starts_with("/tmp/") || target.starts_with("/run/"))
    {
        // Gone already is as good.
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
    Ok(())
}

/// The mount namespace of `pid` (a number, "self" or "thread-self"), as a number that can be compared.
pub fn mount_namespace(pid: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/mnt"))
        .ok()
        .map(|namespace| namespace.ino())
}
