//! What of Berth this kernel can carry.
//!
//! Each feature is asked of the kernel by doing it, where that can be, and not read off its version: distributions carry features back, and
//! a seccomp filter around the daemon takes some away. What is needed and missing makes the node not ready, by its name; without the others
//! pods run, and those that want them are told.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use berth_kernel::{
    mount::{Change, set_attributes, set_id_map},
    pidfd,
    userns::{self, IdMaps, Mapping},
};
use berth_spec::Host;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};
use serde::Serialize;

/// `MOUNT_ATTR_RDONLY` of linux/mount.h.
const READ_ONLY: u64 = 1;

/// What pods with user namespaces stand on: they share image layers with all others.
pub const ID_MAPPED_LAYERS: &str = "overlay of id-mapped layers";

/// Something of the kernel's that Berth builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Feature {
    pub name: &'static str,
    /// The first kernel of kernel.org that has it.
    pub since: &'static str,
    /// What there is not where it is missing.
    pub without: &'static str,
    /// Without it no pod runs.
    pub needed: bool,
    /// Why it is missing; none where it is there.
    pub missing: Option<String>,
}

/// The kernel, and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Floor {
    pub release: String,
    pub features: Vec<Feature>,
}

impl Floor {
    /// Asks the kernel. It takes a millisecond, and leaves nothing.
    pub fn probe(host: &Host) -> Self {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let feature = |name, since, without, tried: io::Result<()>| Feature {
            name,
            since,
            without,
            needed: false,
            missing: tried.err().map(|error| error.to_string()),
        };
        let needed = |name, since, tried: io::Result<()>| Feature {
            needed: true,
            ..feature(name, since, "no pod runs", tried)
        };
        let mut features = vec![
            needed("pidfds", "5.3", pidfds()),
            needed("paths resolved beneath a root (openat2)", "5.6", beneath()),
            needed(
                "mounts changed before they are seen (mount_setattr)",
                "5.12",
                changed_mount(),
            ),
            feature(
                ID_MAPPED_LAYERS,
                "5.19",
                "pods with user namespaces of their own don't start",
                since(&release, (5, 19)),
            ),
            feature(
                "id-mapped tmpfs",
                "6.3",
                "volumes on a tmpfs (memory-backed emptyDir, secrets) are refused to pods with user namespaces",
                id_mapped_tmpfs(),
            ),
        ];
        if host.cgroup_v2 {
            let file = |name: &str| match host.cgroup_v2_files.contains(name) {
                true => Ok(()),
                false => Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("cgroups have no file {name}"),
                )),
            };
            features.extend([
                feature(
                    "killing a cgroup at once (cgroup.kill)",
                    "5.14",
                    "a container's processes are frozen and killed one by one",
                    file("cgroup.kill"),
                ),
                feature(
                    "a cgroup's peak of memory (memory.peak)",
                    "5.19",
                    "the statistics' highest usage is 0",
                    file("memory.peak"),
                ),
                feature(
                    "pressure stall information (cpu.pressure; the kernel's parameter psi=1)",
                    "4.20",
                    "the statistics have no PSI",
                    file("cpu.pressure"),
                ),
                feature(
                    "swap of cgroups (memory.swap.max)",
                    "4.5",
                    "limits of swap are left out, which the container's status says",
                    file("memory.swap.max"),
                ),
            ]);
        }
        Self { release, features }
    }

    /// Said once, when the daemon starts.
    pub fn tell(&self) {
        let missing: Vec<&Feature> = self
            .features
            .iter()
            .filter(|feature| feature.missing.is_some())
            .collect();
        if missing.is_empty() {
            tracing::info!(release = %self.release, "the kernel has everything that Berth builds on");
        }
        for feature in missing {
            let Feature {
                name,
                since,
                without,
                needed,
                missing,
            } = feature;
            let why = missing.as_deref().unwrap_or_default();
            match needed {
                true => {
                    tracing::error!(release = %self.release, "the kernel lacks {name} (Linux {since}): {without} ({why})")
                }
                false => {
                    tracing::warn!(release = %self.release, "the kernel lacks {name} (Linux {since}): {without} ({why})")
                }
            }
        }
    }

    /// Why the feature of that name is missing.
    pub fn lacks(&self, name: &str) -> Option<&str> {
        let mut features = self.features.iter();
        features
            .find(|feature| feature.name == name)?
            .missing
            .as_deref()
    }

    /// Why no pod can run on this kernel.
    pub fn too_low(&self) -> Option<String> {
        let lacks: Vec<String> = self
            .features
            .iter()
            .filter(|feature| feature.needed)
            .filter_map(|feature| {
                let why = feature.missing.as_deref()?;
                Some(format!("{} (Linux {}): {why}", feature.name, feature.since))
            })
            .collect();
        (!lacks.is_empty())
            .then(|| format!("the kernel {} lacks {}", self.release, lacks.join("; ")))
    }
}

fn pidfds() -> io::Result<()> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    pidfd::open(own).map(drop)
}

fn beneath() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok(())
}

/// A tmpfs that is nowhere to be seen, and goes with its descriptor.
fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

fn changed_mount() -> io::Result<()> {
    let change = Change {
        set: READ_ONLY,
        ..Change::default()
    };
    set_attributes(tmpfs()?.as_fd(), false, change)
}

fn id_mapped_tmpfs() -> io::Result<()> {
    let some = vec![Mapping {
        inside: 0,
        outside: 65_536,
        count: 65_536,
    }];
    let maps = IdMaps {
        uids: some.clone(),
        gids: some,
    };
    let userns = userns::make(&maps, false)?.user;
    set_id_map(tmpfs()?.as_fd(), false, userns.as_fd())
}

/// For what can't be tried without mounts that others see.
fn since(release: &str, floor: (u32, u32)) -> io::Result<()> {
    match version(release) {
        Some(version) if version >= floor => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this is {release}"),
        )),
    }
}

/// `6.1.0-40-amd64`: 6, 1.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        for (release, expected) in [
            ("6.1.0-40-amd64", Some((6, 1))),
            ("5.19", Some((5, 19))),
            ("6.18-rc1", Some((6, 18))),
            ("10.0.0+", Some((10, 0))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release:?}");
        }
        assert!(since("6.1.0", (5, 19)).is_ok());
        assert!(since("5.4.0", (5, 19)).is_err());
        assert!(since("strange", (5, 19)).is_err());
    }

    #[test]
    fn only_what_is_needed_makes_a_kernel_too_low() {
        let feature = |needed, missing: Option<&str>| Feature {
            name: "wings",
            since: "9.9",
            without: "nothing flies",
            needed,
            missing: missing.map(str::to_owned),
        };
        let floor = |features| Floor {
            release: "6.1".into(),
            features,
        };
        assert_eq!(floor(vec![feature(true, None)]).too_low(), None);
        assert_eq!(floor(vec![feature(false, Some("ENOSYS"))]).too_low(), None);
        let low = floor(vec![
            feature(false, Some("no")),
            feature(true, Some("ENOSYS")),
        ])
        .too_low();
        assert_eq!(
            low.as_deref(),
            Some("the kernel 6.1 lacks wings (Linux 9.9): ENOSYS")
        );
    }

    #[test]
    fn this_kernel_has_what_is_needed() {
        let floor = Floor::probe(&Host::probe().unwrap());
        assert_eq!(floor.too_low(), None);
    }
}
