//! Who makes cgroups, and what a pod's parent has to be for them.

use crate::{
    check::PATH_LIMIT,
    error::{Error, quoted},
};

/// Components of a cgroup parent: a kubelet needs four, the kernel's default bound on depth is none.
const CGROUP_DEPTH: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Berth itself, in the file system.
    Cgroupfs,
    /// systemd: a pod's cgroup is a slice, a container's a scope.
    Systemd,
}

impl CgroupDriver {
    /// With cgroupfs a parent is a path from the root of each hierarchy, `/kubepods/besteffort/pod1`. `..` in it would put the pod
    /// anywhere; a name in `.slice` is the systemd driver's, or a slice of the node's own. With systemd it is a slice, by its name or its path.
    /// Empty: the configuration's.
    pub fn check_parent(self, parent: &str) -> Result<(), Error> {
        if parent.is_empty() {
            return Ok(());
        }
        match self {
            CgroupDriver::Cgroupfs => plain_path(parent),
            CgroupDriver::Systemd => slice(parent),
        }
    }
}

fn wrong(parent: &str, why: &str) -> Result<(), Error> {
    Err(Error::invalid(
        "cgroup_parent",
        format!("{} {why}", quoted(parent)),
    ))
}

fn slice(parent: &str) -> Result<(), Error> {
    match berth_systemd::name::slice_of_caller(parent) {
        Ok(_) => Ok(()),
        Err(why) => wrong(
            parent,
            &format!(
                "{why}, and the cgroup driver is systemd (a kubelet's --cgroup-driver must agree)"
            ),
        ),
    }
}

fn plain_path(parent: &str) -> Result<(), Error> {
    if !parent.starts_with('/')
        || parent.len() >= PATH_LIMIT
        || parent.chars().any(char::is_control)
    {
        return wrong(parent, "is not an absolute path");
    }
    let parts: Vec<_> = parent.trim_matches('/').split('/').collect();
    if parts
        .iter()
        .any(|part| part.is_empty() || *part == "." || *part == "..")
    {
        return wrong(parent, "is not a plain path below the root");
    }
    if parts.iter().any(|part| {
        part.ends_with(".slice") || part.ends_with(".scope") || part.ends_with(".service")
    }) {
        return wrong(
            parent,
            "is a unit of systemd, and the cgroup driver is cgroupfs (a kubelet's --cgroup-driver must agree)",
        );
    }
    if parts.len() > CGROUP_DEPTH {
        return wrong(parent, "is more than 32 levels deep");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_of_the_other_drivers_form_is_refused_with_both_names_sec_eng_11() {
        use CgroupDriver::{Cgroupfs, Systemd};
        let slice = "/kubepods.slice/kubepods-pod1.slice";
        for (driver, parent) in [
            (Cgroupfs, ""),
            (Cgroupfs, "/kubepods/pod1"),
            (Systemd, ""),
            (Systemd, slice),
            (Systemd, "kubepods-pod1.slice"),
        ] {
            driver.check_parent(parent).unwrap();
        }
        for (driver, parent, says) in [
            (Cgroupfs, slice, "driver is cgroupfs"),
            (Cgroupfs, "kubepods-pod1.slice", "not an absolute path"),
            (Systemd, "/kubepods/pod1", "driver is systemd"),
            (Systemd, "/system.slice/x.service", "driver is systemd"),
            (Systemd, "/a.slice/../b.slice", "where systemd has"),
            (Systemd, "a\0.slice", "slice's name"),
        ] {
            let refused = driver.check_parent(parent).unwrap_err();
            assert_eq!(refused.kind(), crate::Kind::Invalid, "{parent}");
            assert!(refused.to_string().contains(says), "{parent}: {refused}");
        }
    }
}
