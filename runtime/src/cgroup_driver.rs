//! Which cgroup driver this daemon has, and where the pods and containers are by it.
//!
//! Whose a pod is can be told from its parent: a slice is systemd's, and nothing else may be called so. So the pods of a daemon that has got
//! another driver meanwhile stay what they are.

use std::path::{Path, PathBuf};

use berth_spec::CgroupDriver;
use berth_systemd::name;

use crate::config::{Cgroup, CgroupDriver as Asked};

/// What scopes are called before their container's id.
const PREFIX: &str = "berth";

/// What was chosen, once, at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub driver: CgroupDriver,
    /// The cgroup of those pods that name no parent, relative to the root of each hierarchy.
    pub parent: PathBuf,
}

/// What the systemd driver needs of a machine.
#[derive(Debug, Clone)]
pub struct Machine {
    pub booted: bool,
    pub unified: bool,
    /// How systemd is reached.
    pub bus: fn() -> Result<(), String>,
}

impl Machine {
    pub fn probe(unified: bool) -> Self {
        Self {
            booted: berth_systemd::is_booted(),
            unified,
            bus: || match berth_systemd::Units::connect() {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    fn lacks(&self) -> Option<String> {
        if !self.booted {
            return Some("systemd is not PID 1 (there is no /run/systemd/system)".into());
        }
        if !self.unified {
            return Some("/sys/fs/cgroup is not cgroup v2".into());
        }
        (self.bus)().err()
    }
}

impl Chosen {
    /// The error names the key and what the machine lacks.
    pub fn of(asked: &Cgroup, machine: &Machine) -> Result<Self, String> {
        let parent = asked.parent.to_str().unwrap_or_default();
        let slice = name::slice_of_caller(parent).ok();
        let by_systemd = match asked.driver {
            Asked::Cgroupfs => false,
            Asked::Systemd => match machine.lacks() {
                None => true,
                Some(lack) => {
                    return Err(format!(
                        "key `cgroup.driver`: \"systemd\" can't be had: {lack}; \"cgroupfs\" can"
                    ));
                }
            },
            Asked::Auto if !parent.is_empty() && slice.is_none() => false,
            Asked::Auto => match machine.lacks() {
                None => true,
                Some(lack) if slice.is_none() => {
                    if machine.booted {
                        tracing::warn!("cgroups are made by berthd itself, not by systemd: {lack}");
                    }
                    false
                }
                Some(lack) => {
                    return Err(format!(
                        "key `cgroup.parent`: {parent:?} is a slice of systemd's, and {lack}"
                    ));
                }
            },
        };
        let (driver, parent) = match (by_systemd, slice) {
            (true, Some(slice)) => (CgroupDriver::Systemd, slice.into()),
            (true, None) => (CgroupDriver::Systemd, "/berth.slice".into()),
            (false, _) if parent.is_empty() => (CgroupDriver::Cgroupfs, "/berth-pods".into()),
            (false, _) => (CgroupDriver::Cgroupfs, asked.parent.clone()),
        };
        Ok(Self { driver, parent })
    }

    /// A pod's cgroup, relative to the root of each hierarchy: what the caller named, else one of its own. `named` has been checked.
    pub fn of_pod(&self, named: &str, pod_id: &str) -> PathBuf {
        match named {
            "" => self.own(pod_id),
            named => match name::slice_of_caller(named) {
                Ok(slice) => slice.into(),
                Err(_) => Path::new("/").join(named.trim_start_matches('/')),
            },
        }
    }

    fn own(&self, pod_id: &str) -> PathBuf {
        match self.driver {
            CgroupDriver::Cgroupfs => self.parent.join(pod_id),
            CgroupDriver::Systemd => {
                name::slice_below(&self.parent.display().to_string(), pod_id).into()
            }
        }
    }
}

/// Whether the pod of this cgroup is systemd's.
pub fn is_slice(parent: &Path) -> bool {
    parent.extension().is_some_and(|kind| kind == "slice")
}

/// A container's cgroup in its pod's.
pub fn of_container(parent: &Path, container_id: &str) -> PathBuf {
    match is_slice(parent) {
        true => parent.join(format!("{PREFIX}-{container_id}.scope")),
        false => parent.join(container_id),
    }
}

/// The same as a spec has it (`linux.cgroupsPath`): with systemd `slice:prefix:name`, as runc and containerd have agreed on.
pub fn cgroups_path(parent: &Path, container_id: &str) -> PathBuf {
    match (is_slice(parent), parent.file_name()) {
        (true, Some(slice)) => {
            format!("{}:{PREFIX}:{container_id}", slice.to_string_lossy()).into()
        }
        _ => parent.join(container_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Machine = Machine {
        booted: true,
        unified: true,
        bus: || Ok(()),
    };

    fn choose(driver: Asked, parent: &str, machine: &Machine) -> Result<(bool, String), String> {
        let asked = Cgroup {
            parent: parent.into(),
            driver,
        };
        let chosen = Chosen::of(&asked, machine)?;
        let by_systemd = chosen.driver == CgroupDriver::Systemd;
        Ok((by_systemd, chosen.parent.display().to_string()))
    }

    #[test]
    fn auto_is_systemd_where_it_can_be_and_no_path_was_named() {
        let unfit = [
            Machine {
                booted: false,
                ..FIT
            },
            Machine {
                unified: false,
                ..FIT
            },
            Machine {
                bus: || Err("no D-Bus".into()),
                ..FIT
            },
        ];
        let by = |systemd, parent: &str| Ok((systemd, parent.to_owned()));
        for (driver, parent, expected) in [
            (Asked::Auto, "", by(true, "/berth.slice")),
            (Asked::Auto, "a-b.slice", by(true, "/a.slice/a-b.slice")),
            (Asked::Auto, "/pods", by(false, "/pods")),
            (Asked::Systemd, "", by(true, "/berth.slice")),
            (Asked::Cgroupfs, "", by(false, "/berth-pods")),
        ] {
            assert_eq!(
                choose(driver, parent, &FIT),
                expected,
                "{driver:?} {parent}"
            );
        }
        for (machine, says) in unfit.iter().zip(["PID 1", "cgroup v2", "no D-Bus"]) {
            assert_eq!(
                choose(Asked::Auto, "", machine),
                by(false, "/berth-pods"),
                "{says}"
            );
            assert_eq!(
                choose(Asked::Cgroupfs, "/pods", machine),
                by(false, "/pods")
            );
            for (driver, parent) in [(Asked::Systemd, ""), (Asked::Auto, "a.slice")] {
                let refused = choose(driver, parent, machine).unwrap_err();
                assert!(refused.contains(says), "{refused}");
            }
        }
    }

    #[test]
    fn pods_and_containers_are_where_their_driver_has_them() {
        let by_systemd = Chosen {
            driver: CgroupDriver::Systemd,
            parent: "/berth.slice".into(),
        };
        let by_berthd = Chosen {
            driver: CgroupDriver::Cgroupfs,
            parent: "/berth-pods".into(),
        };
        for (chosen, named, pod, container, in_spec) in [
            (
                &by_systemd,
                "",
                "/berth.slice/berth-p1.slice",
                "/berth.slice/berth-p1.slice/berth-c1.scope",
                "berth-p1.slice:berth:c1",
            ),
            (
                &by_systemd,
                "kubepods-pod1.slice",
                "/kubepods.slice/kubepods-pod1.slice",
                "/kubepods.slice/kubepods-pod1.slice/berth-c1.scope",
                "kubepods-pod1.slice:berth:c1",
            ),
            (
                &by_berthd,
                "",
                "/berth-pods/p1",
                "/berth-pods/p1/c1",
                "/berth-pods/p1/c1",
            ),
            (
                &by_berthd,
                "/kubepods/pod1/",
                "/kubepods/pod1/",
                "/kubepods/pod1/c1",
                "/kubepods/pod1/c1",
            ),
        ] {
            let parent = chosen.of_pod(named, "p1");
            assert_eq!(parent, Path::new(pod));
            assert_eq!(of_container(&parent, "c1"), Path::new(container));
            assert_eq!(cgroups_path(&parent, "c1"), Path::new(in_spec));
        }
    }
}
