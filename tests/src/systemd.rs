//! systemd as the maker of cgroups: how a test's units are called, and what they are like.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::process;

/// Names the cgroup driver of every node: `systemd`.
const DRIVER_VARIABLE: &str = "BERTH_TEST_CGROUP_DRIVER";
/// How long systemd may take to see that a unit has become empty.
const NOTICE_LIMIT: Duration = Duration::from_secs(5);

/// Whether systemd rules this machine, with cgroup v2.
pub fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir() && crate::cgroup::unified()
}

/// For a test that needs it: tells whoever reads along why it does nothing.
pub fn is_missing() -> bool {
    if !is_booted() {
        eprintln!(
            "skipped: systemd is not PID 1 here, or cgroup v2 is missing (hack/vm --init systemd has both)"
        );
    }
    !is_booted()
}

/// Whether the whole suite is to run by systemd.
pub fn is_wanted() -> bool {
    std::env::var(DRIVER_VARIABLE).is_ok_and(|driver| driver == "systemd")
}

/// The slice of a test, as a path. A `-` would put it in another.
pub fn slice_of(tag: &str) -> String {
    format!("/berthtest_{}.slice", tag.replace('-', "_"))
}

/// Where the slice is that a test calls `name` (`a/b`), below its own.
pub fn slice_below(parent: &str, name: &str) -> String {
    name.split('/').fold(parent.to_owned(), |path, part| {
        let above = path.rsplit('/').next().unwrap_or_default();
        let above = above.trim_end_matches(".slice").to_owned();
        format!("{path}/{above}-{}.slice", part.replace('-', "_"))
    })
}

/// Whether a part of a cgroup's path is what is called `name`: by itself, or as a unit of systemd's (`berth-NAME.scope`).
pub fn names(part: &str, name: &str) -> bool {
    let unit = part
        .strip_suffix(".scope")
        .or_else(|| part.strip_suffix(".slice"));
    part == name || unit.is_some_and(|unit| unit == name || unit.ends_with(&format!("-{name}")))
}

pub fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "systemctl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A property of a unit, as `systemctl show` prints it.
pub fn property(unit: &str, name: &str) -> Result<String> {
    let text = systemctl(&["show", "--property", name, "--value", unit])?;
    Ok(text.trim().to_owned())
}

/// The units that systemd has loaded whose name fits the pattern.
pub fn units(pattern: &str) -> Result<Vec<String>> {
    let text = systemctl(&[
        "list-units",
        "--all",
        "--plain",
        "--no-legend",
        "--full",
        pattern,
    ])?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// No unit of such a name is left, or soon none.
pub fn gone(pattern: &str) -> Result<()> {
    let mut left = Vec::new();
    let gone = process::eventually(NOTICE_LIMIT, || match units(pattern) {
        Ok(units) => {
            left = units;
            left.is_empty()
        }
        Err(_) => false,
    });
    ensure!(gone, "units are left: {left:?}");
    Ok(())
}

/// Stops a test's slice with all that is in it, where systemd has it.
pub fn forget(path: &str) {
    let unit = path.rsplit('/').next().unwrap_or_default();
    if unit.ends_with(".slice") && is_booted() {
        let _ = Command::new("systemctl")
            .args(["--quiet", "stop", unit])
            .status()
            .context("systemctl");
    }
}
