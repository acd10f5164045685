//! The systemd driver: cgroups that are units, made and limited by systemd at our word.
//!
//! A container is a transient scope below a slice, a pod's cgroup a slice. systemd makes their directories and writes the limits that it
//! has properties for; then the files are written as the cgroupfs driver does, with what systemd does not know (hugepages, bursts,
//! devices) and to the last digit. Both have the same source, so that a `systemctl daemon-reload` finds nothing to put back. The scope is delegated
//! (`Delegate=yes`): what is below it is the container's.
//!
//! # Who speaks
//! A scope begins with a process in it. That is the worker that makes the container: one process, forked for that one call, in which
//! a blocking conversation holds up nobody. It is in the scope until init is born there, and ends right after. So nothing of the client stays
//! in a shim's memory, and no process has to be moved that runs already. The price is that the worker counts against the container's limits
//! while it lives.
//!
//! Nobody need speak to systemd for a scope to go: it ends with its last process, and is forgotten also where it has failed
//! (`CollectMode=inactive-or-failed`). [`gone`] gives systemd the time to notice: the kernel tells a change of `cgroup.events` at most every
//! 10 ms, and of a directory that was removed before not at all.

use std::{
    thread,
    time::{Duration, Instant},
};

use berth_systemd::{Property, Started, Units, name, property::Value};
use oci_spec::runtime::LinuxResources;

use super::{Cgroup, Error, limits};

/// How long systemd may take to remove the directory of a scope that has become empty.
const NOTICE_FOR: Duration = Duration::from_secs(1);
const NOTICE_POLL: Duration = Duration::from_millis(2);

/// What every scope of a container is told.
fn scope(cgroup: &Cgroup, slice: &str, pid: u32) -> Vec<Property> {
    let mut properties = vec![
        Property::text("Description", format!("Container {}", cgroup.name())),
        Property::text("Slice", slice),
        Property::flag("Delegate"),
        Property::text("CollectMode", "inactive-or-failed"),
        Property::new("PIDs", Value::Processes(vec![pid])),
    ];
    properties.extend(counted());
    properties
}

fn slice(cgroup: &Cgroup) -> Vec<Property> {
    let mut properties = vec![Property::text(
        "Description",
        format!("Pod {}", cgroup.name()),
    )];
    properties.extend(counted());
    properties
}

/// Each controller counts, and systemd's own defaults limit nothing: it would give every unit a number of tasks. Nor does it stop
/// the unit in an order of its own when the machine goes down.
fn counted() -> [Property; 6] {
    [
        Property::flag("CPUAccounting"),
        Property::flag("MemoryAccounting"),
        Property::flag("IOAccounting"),
        Property::flag("TasksAccounting"),
        Property::new("TasksMax", Value::Number(u64::MAX)),
        Property::new("DefaultDependencies", Value::Bool(false)),
    ]
}

/// Makes the scope, limited, with the calling process in it.
pub(super) fn start_scope(
    cgroup: &Cgroup,
    unit: &str,
    resources: Option<&LinuxResources>,
) -> Result<(), Error> {
    let parent = cgroup.path.rsplit('/').nth(1).unwrap_or_default();
    // The root slice has the name of no directory.
    let parent = if parent.is_empty() { "-.slice" } else { parent };
    let mut properties = scope(cgroup, parent, std::process::id());
    properties.extend(resources.into_iter().flat_map(limits::properties));
    let mut units = connect(cgroup)?;
    match units.start(unit, &properties).map_err(refused(cgroup))? {
        Started::Started => {}
        // By this very worker: a restore makes an init first to compare with (`restore.rs`).
        Started::Exists if cgroup.procs()?.contains(&(std::process::id() as i32)) => {}
        // Ids are never used twice: it was left by somebody who was killed in the middle.
        Started::Exists => {
            units.stop(unit).map_err(refused(cgroup))?;
            if units.start(unit, &properties).map_err(refused(cgroup))? == Started::Exists {
                return Err(Error::Systemd {
                    path: cgroup.path.clone(),
                    reason: format!("{unit} is there already and does not go"),
                });
            }
        }
    }
    // systemd would put a scope below another slice only where that is where the slice is.
    match cgroup.exists() {
        true => Ok(()),
        false => Err(Error::Systemd {
            path: cgroup.path.clone(),
            reason: format!("systemd has started {unit}, and this is not where"),
        }),
    }
}

/// Makes the slice, limited. One that is there already stays as it is.
pub(super) fn start_slice(
    cgroup: &Cgroup,
    unit: &str,
    resources: &LinuxResources,
) -> Result<Started, Error> {
    let mut properties = slice(cgroup);
    properties.extend(limits::properties(resources));
    connect(cgroup)?
        .start(unit, &properties)
        .map_err(refused(cgroup))
}

/// Tells systemd of limits that were changed.
pub(super) fn change(cgroup: &Cgroup, unit: &str, resources: &LinuxResources) -> Result<(), Error> {
    let properties = limits::properties(resources);
    if properties.is_empty() {
        return Ok(());
    }
    connect(cgroup)?
        .set(unit, &properties)
        .map_err(refused(cgroup))
}

/// Waits until systemd has removed a scope that is empty. One that it does not notice is stopped; what it says then is not asked for: whoever
/// removes a cgroup removes its directory next.
pub(super) fn gone(cgroup: &Cgroup, unit: &str) {
    let began = Instant::now();
    while cgroup.exists() {
        if began.elapsed() > NOTICE_FOR {
            let _ = Units::connect().and_then(|mut units| units.stop(unit));
            return;
        }
        thread::sleep(NOTICE_POLL);
    }
}

fn connect(cgroup: &Cgroup) -> Result<Units, Error> {
    if !cgroup.is_unified() {
        return Err(Error::Systemd {
            path: cgroup.path.clone(),
            reason: "cgroups by systemd need cgroup v2, which this machine has not".into(),
        });
    }
    if !berth_systemd::is_booted() {
        return Err(Error::Systemd {
            path: cgroup.path.clone(),
            reason: "cgroups by systemd need systemd as PID 1 (there is no /run/systemd/system)"
                .into(),
        });
    }
    Units::connect().map_err(refused(cgroup))
}

fn refused(cgroup: &Cgroup) -> impl Fn(berth_systemd::Error) -> Error {
    move |error| Error::Systemd {
        path: cgroup.path.clone(),
        reason: error.to_string(),
    }
}

/// `slice:prefix:name` as the spec has it for a systemd driver (runc's convention): the cgroup and its unit. An empty slice is the
/// system's own.
pub(super) fn path_of(cgroups_path: &str) -> Option<String> {
    let mut parts = cgroups_path.split(':');
    let (Some(slice), Some(prefix), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if cgroups_path.contains('/') || name.is_empty() {
        return None;
    }
    let directory = match slice {
        "" => "/system.slice".to_owned(),
        "-.slice" => String::new(),
        slice => name::slice_path(slice)?,
    };
    Some(match prefix {
        _ if name.ends_with(".slice") => format!("{directory}/{name}"),
        "" => format!("{directory}/{name}.scope"),
        prefix => format!("{directory}/{prefix}-{name}.scope"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_systemd_is_where_systemd_would_have_it() {
        for (path, expected) in [
            (
                "test.slice:cri-containerd:c1",
                Some("/test.slice/cri-containerd-c1.scope"),
            ),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:c1",
                Some(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c1.scope",
                ),
            ),
            (":ctr:c1", Some("/system.slice/ctr-c1.scope")),
            ("-.slice:berth:c1", Some("/berth-c1.scope")),
            ("a.slice::c1", Some("/a.slice/c1.scope")),
            ("a.slice:b:c.slice", Some("/a.slice/c.slice")),
            ("/a.slice/b.scope", None),
            ("a.slice:b", None),
            ("a:b:c", None),
            ("a.slice:b:", None),
        ] {
            assert_eq!(path_of(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_machine_without_systemd_says_so_and_makes_nothing() {
        let cgroup = Cgroup::by_systemd("berth-test-none.slice:berth:c1").unwrap();
        if berth_systemd::is_booted() && cgroup.is_unified() {
            return;
        }
        let refused = cgroup.make(None).unwrap_err().to_string();
        assert!(refused.contains("cgroups by systemd need"), "{refused}");
        assert!(!cgroup.exists());
    }
}
