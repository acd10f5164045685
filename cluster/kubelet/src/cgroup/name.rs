//! What cgroups of pods are called: a path by ourselves, slices by systemd, whose names say where they lie and can have no other `-`.

use std::str::FromStr;

use berth_systemd::name;

use crate::qos::Class;

/// The cgroup of all pods, below the kubelet's own root.
const ALL: &str = "kubepods";
/// cgroup paths of the kernel end at PATH_MAX; unit names far before.
const MAX_BYTES: usize = 1024;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    #[default]
    Cgroupfs,
    Systemd,
}

impl FromStr for CgroupDriver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cgroupfs" => Ok(Self::Cgroupfs),
            "systemd" => Ok(Self::Systemd),
            other => Err(format!("{other:?} is neither cgroupfs nor systemd")),
        }
    }
}

/// Where all pods are, from the root of each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub driver: CgroupDriver,
    all: String,
}

impl Names {
    /// Below `root`: `/` is the root of the hierarchies.
    ///
    /// # Errors
    /// Why there can be no such cgroup.
    pub fn below(driver: CgroupDriver, root: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("the cgroup root {root:?} {why}"));
        if !root.starts_with('/') || root.len() > MAX_BYTES {
            return wrong("is not an absolute path");
        }
        let root = root.trim_end_matches('/');
        let parts: Vec<&str> = root.split('/').skip(1).collect();
        let is_plain = |part: &&str| {
            !matches!(*part, "" | "." | "..")
                && !part.starts_with("cgroup.")
                && !part.bytes().any(|byte| byte.is_ascii_control())
        };
        if !parts.iter().all(is_plain) {
            return wrong("is not a plain path below the root");
        }
        let is_slice = root.ends_with(".slice");
        let all = match (driver, is_slice) {
            (CgroupDriver::Cgroupfs, true) => {
                return wrong("is a slice of systemd's, and the cgroup driver is cgroupfs");
            }
            (CgroupDriver::Cgroupfs, false) => format!("{root}/{ALL}"),
            (CgroupDriver::Systemd, true) => match name::slice_of_caller(root) {
                Ok(path) => name::slice_below(&path, ALL),
                Err(why) => return wrong(why),
            },
            (CgroupDriver::Systemd, false) => {
                let parts: Vec<String> = parts.iter().map(|part| escaped(part)).collect();
                let slice = [&parts[..], &[ALL.to_owned()]].concat().join("-");
                match name::slice_path(&format!("{slice}.slice")) {
                    Some(path) => path,
                    None => return wrong("can be no slice of systemd's"),
                }
            }
        };
        Ok(Self { driver, all })
    }

    /// Of all pods.
    pub fn all(&self) -> &str {
        &self.all
    }

    /// In which the pods of a class are.
    pub fn class(&self, class: Class) -> String {
        match class {
            Class::Guaranteed => self.all.clone(),
            Class::Burstable => self.child(&self.all, "burstable"),
            Class::BestEffort => self.child(&self.all, "besteffort"),
        }
    }

    pub fn pod(&self, class: Class, uid: &str) -> String {
        self.child(&self.class(class), &format!("pod{uid}"))
    }

    fn child(&self, above: &str, part: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{above}/{part}"),
            CgroupDriver::Systemd => name::slice_below(above, &escaped(part)),
        }
    }

    /// Whether a directory of this name, in that of a class, is a pod's.
    pub fn is_pod(&self, name: &str) -> bool {
        match self.driver {
            CgroupDriver::Cgroupfs => name.starts_with("pod"),
            CgroupDriver::Systemd => name
                .strip_suffix(".slice")
                .and_then(|name| name.rsplit('-').next())
                .is_some_and(|last| last.starts_with("pod")),
        }
    }
}

fn escaped(part: &str) -> String {
    part.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0d7a-11ee";

    #[test]
    fn a_pod_lies_in_its_class_and_both_drivers_have_names_for_that() {
        let slices =
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0d7a_11ee.slice";
        for (driver, root, class, path) in [
            (
                CgroupDriver::Cgroupfs,
                "/",
                Class::Burstable,
                "/kubepods/burstable/pod0d7a-11ee",
            ),
            (
                CgroupDriver::Cgroupfs,
                "/a-b/c/",
                Class::BestEffort,
                "/a-b/c/kubepods/besteffort/pod0d7a-11ee",
            ),
            (
                CgroupDriver::Cgroupfs,
                "/",
                Class::Guaranteed,
                "/kubepods/pod0d7a-11ee",
            ),
            (CgroupDriver::Systemd, "/", Class::Burstable, slices),
            (
                CgroupDriver::Systemd,
                "/",
                Class::Guaranteed,
                "/kubepods.slice/kubepods-pod0d7a_11ee.slice",
            ),
            (
                CgroupDriver::Systemd,
                "/a-b/c",
                Class::Guaranteed,
                "/a_b.slice/a_b-c.slice/a_b-c-kubepods.slice/a_b-c-kubepods-pod0d7a_11ee.slice",
            ),
            (
                CgroupDriver::Systemd,
                "/a.slice/a-b.slice",
                Class::Guaranteed,
                "/a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-pod0d7a_11ee.slice",
            ),
        ] {
            let names = Names::below(driver, root).unwrap();
            let pod = names.pod(class, UID);
            assert_eq!(pod, path, "{driver:?} {root}");
            let (above, last) = pod.rsplit_once('/').unwrap();
            assert_eq!(above, names.class(class));
            assert!(names.is_pod(last), "{last}");
            let class = names.class(Class::BestEffort);
            assert!(!names.is_pod(class.rsplit('/').next().unwrap()), "{class}");
        }
    }

    #[test]
    fn a_root_that_can_be_no_cgroup_is_refused_sec_eng_11() {
        use CgroupDriver::{Cgroupfs, Systemd};
        for (driver, root, says) in [
            (Cgroupfs, "kubepods", "absolute"),
            (Cgroupfs, "", "absolute"),
            (Cgroupfs, "/a/../b", "plain"),
            (Cgroupfs, "/a//b", "plain"),
            (Cgroupfs, "/cgroup.x", "plain"),
            (Cgroupfs, "/a\nb", "plain"),
            (Cgroupfs, "/a.slice", "cgroupfs"),
            (Systemd, "/a b", "slice"),
            (Systemd, "/x.slice/a-b.slice", "not where systemd has"),
        ] {
            let refused = Names::below(driver, root).unwrap_err();
            assert!(refused.contains(says), "{root:?}: {refused}");
        }
    }
}
