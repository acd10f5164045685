//! What is mounted in a container, and in which order.
//!
//! The list is ordered by depth, so that nothing hides what it should lie under. A mount of the caller's at one of our places takes
//! that place. Engines differ in how they treat propagation: each bind says its own (`rprivate`, `rslave`, `rshared`), and the
//! root's is the strongest that any of them needs, because libcontainer 0.7 applies only that one.

mod check;
mod image_volume;
mod peers;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use berth_proto::cri;
use oci_spec::runtime::{Mount, MountBuilder};

use crate::{
    Inputs,
    error::{Error, because},
    userns,
};

pub(crate) use check::{check, check_place, destination};
use check::{check_mount, propagation};
pub use image_volume::volume_image;
use peers::peers_of;

const CGROUP: &str = "/sys/fs/cgroup";

#[derive(Debug)]
pub(crate) struct Mounts {
    pub list: Vec<Mount>,
    /// `private`, `slave` or `shared`.
    pub rootfs_propagation: &'static str,
    /// To be made read-only once all is mounted: what a later mount has its place in can't be so from the beginning.
    pub readonly_paths: Vec<String>,
}

pub(crate) fn build(
    inputs: &Inputs<'_>,
    privileged: bool,
    readonly_rootfs: bool,
) -> Result<Mounts, Error> {
    let mut mounts = Vec::with_capacity(inputs.container.mounts.len());
    let mut rootfs_propagation = "private";
    for (number, mount) in inputs.container.mounts.iter().enumerate() {
        let (built, propagation) = match volume_image(mount) {
            None => bind(inputs.sandbox, mount, privileged)?,
            Some(_) => {
                let source = inputs.image_volumes.get(&number);
                image_volume::bind(
                    inputs.sandbox,
                    mount,
                    source.map(PathBuf::as_path),
                    privileged,
                )?
            }
        };
        rootfs_propagation = match (propagation, rootfs_propagation) {
            (cri::MountPropagation::PropagationBidirectional, _) | (_, "shared") => "shared",
            (cri::MountPropagation::PropagationHostToContainer, _) | (_, "slave") => "slave",
            _ => "private",
        };
        mounts.push(built);
    }
    let taken: Vec<PathBuf> = mounts
        .iter()
        .map(|mount| mount.destination().clone())
        .collect();
    let whole_sys = taken.iter().any(|path| path == Path::new("/sys"));
    let own_cgroup = taken.iter().any(|path| path == Path::new(CGROUP)) || whole_sys;

    let mut ours = kernel_filesystems(inputs.sandbox, privileged)?;
    let mut readonly_paths = Vec::new();
    if !own_cgroup {
        ours.extend(cgroup(inputs, privileged)?);
        // The tmpfs of v1 that the hierarchies are mounted in.
        if !inputs.host.cgroup_v2 && !privileged {
            readonly_paths.push(CGROUP.to_owned());
        }
    }
    ours.extend(files_of_the_pod(inputs, readonly_rootfs)?);
    ours.retain(|mount| !taken.contains(mount.destination()));
    ours.append(&mut mounts);
    ours.sort_by_key(|mount| mount.destination().components().count());
    Ok(Mounts {
        list: ours,
        rootfs_propagation,
        readonly_paths,
    })
}

fn kernel_filesystems(
    sandbox: &cri::PodSandboxConfig,
    privileged: bool,
) -> Result<Vec<Mount>, Error> {
    // gid 5 is tty on every distribution; without a fixed group grantpt(3) would have to change the owner. A map may be too short
    // for it.
    let tty = match userns::user_namespace(sandbox) {
        Some(userns) if !userns::maps(&userns.gids, 5) => "gid=0",
        _ => "gid=5",
    };
    let sys: &[&str] = if privileged {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    Ok(vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "tmpfs",
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount("sysfs", "sysfs", "/sys", sys)?,
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                tty,
            ],
        )?,
        mount(
            "mqueue",
            "mqueue",
            "/dev/mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
    ])
}

/// The container's own cgroup, read-only unless privileged. On v2 that is a cgroup2 mount in a cgroup namespace. On v1, engines
/// mount `cgroup` writable whatever the options say (libcontainer 0.7), so each controller's directory is bound by name: every
/// engine makes it before it mounts.
fn cgroup(inputs: &Inputs<'_>, privileged: bool) -> Result<Vec<Mount>, Error> {
    let access = if privileged { "rw" } else { "ro" };
    if inputs.host.cgroup_v2 {
        return Ok(vec![mount(
            "cgroup",
            "cgroup",
            CGROUP,
            &["nosuid", "noexec", "nodev", "relatime", access],
        )?]);
    }
    let mut mounts = vec![mount(
        "tmpfs",
        "tmpfs",
        CGROUP,
        &["nosuid", "noexec", "nodev", "mode=755", "size=1m"],
    )?];
    let below_root = inputs
        .cgroup_path
        .strip_prefix("/")
        .unwrap_or(inputs.cgroup_path);
    for hierarchy in &inputs.host.cgroup_v1_mounts {
        let Some(name) = hierarchy.file_name() else {
            continue;
        };
        let source = hierarchy.join(below_root);
        let place = Path::new(CGROUP).join(name);
        mounts.push(mount(
            "bind",
            &source,
            &place,
            &["bind", "rprivate", "nosuid", "noexec", "nodev", access],
        )?);
    }
    Ok(mounts)
}

fn files_of_the_pod(inputs: &Inputs<'_>, readonly_rootfs: bool) -> Result<Vec<Mount>, Error> {
    let access = if readonly_rootfs { "ro" } else { "rw" };
    Ok(vec![
        mount(
            "bind",
            inputs.shm,
            "/dev/shm",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
        )?,
        mount(
            "bind",
            inputs.hosts,
            "/etc/hosts",
            &["rbind", "rprivate", access],
        )?,
        mount(
            "bind",
            inputs.resolv_conf,
            "/etc/resolv.conf",
            &["rbind", "rprivate", access],
        )?,
        mount(
            "bind",
            inputs.hostname,
            "/etc/hostname",
            &["rbind", "rprivate", access],
        )?,
    ])
}

fn bind(
    sandbox: &cri::PodSandboxConfig,
    mount: &cri::Mount,
    privileged: bool,
) -> Result<(Mount, cri::MountPropagation), Error> {
    check_mount(sandbox, mount)?;
    let destination = destination(mount)?;
    let unusable = |why: String| Error::MountSource {
        host_path: mount.host_path.clone().into(),
        container_path: mount.container_path.clone().into(),
        why,
    };
    let source = fs::canonicalize(&mount.host_path)
        .map_err(|err| unusable(because("its host path can't be used", err)))?;
    check_place(mount, &destination, &source, privileged)?;
    let propagation = propagation(mount)?;
    let option = match propagation {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    if propagation != cri::MountPropagation::PropagationPrivate {
        let peers = peers_of(&source)
            .map_err(|err| unusable(because("which mount it lies on can't be read", err)))?;
        let enough = peers.shared
            || (peers.slave && propagation == cri::MountPropagation::PropagationHostToContainer);
        if !enough {
            let mount_point = peers.mount_point.display();
            return Err(unusable(format!(
                "{} needs its host path on a shared mount, and {mount_point} is private (`mount --make-rshared {mount_point}` changes that)",
                propagation.as_str_name(),
            )));
        }
    }
    let mut options = vec!["rbind", option, if mount.readonly { "ro" } else { "rw" }];
    if mount.recursive_read_only {
        options.push("rro");
    }
    let id_mapped = !mount.uid_mappings.is_empty();
    if id_mapped {
        options.push("ridmap");
    }
    let mut built = self::mount("bind", source, destination, &options)?;
    if id_mapped {
        built
            .set_uid_mappings(Some(userns::to_oci(&mount.uid_mappings)?))
            .set_gid_mappings(Some(userns::to_oci(&mount.gid_mappings)?));
    }
    Ok((built, propagation))
}

fn mount(
    typ: &str,
    source: impl AsRef<Path>,
    destination: impl AsRef<Path>,
    options: &[&str],
) -> Result<Mount, Error> {
    Ok(MountBuilder::default()
        .typ(typ)
        .source(source.as_ref())
        .destination(destination.as_ref())
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()?)
}

/// Device numbers of a host path, for those who ask whether it is one.
pub(crate) fn raw_device(metadata: &fs::Metadata) -> (u32, u32) {
    (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{
        error::Kind,
        tests::{Fixture, fixture},
    };

    fn volume(host_path: impl AsRef<Path>, container_path: &str) -> cri::Mount {
        cri::Mount {
            host_path: host_path.as_ref().to_str().unwrap().into(),
            container_path: container_path.into(),
            ..Default::default()
        }
    }

    fn built(
        fixture: &Fixture,
        mounts: Vec<cri::Mount>,
        privileged: bool,
    ) -> Result<Mounts, Error> {
        let container = cri::ContainerConfig {
            mounts,
            ..fixture.container.clone()
        };
        check(&fixture.sandbox, &container)?;
        build(
            &Inputs {
                container: &container,
                ..fixture.inputs()
            },
            privileged,
            false,
        )
    }

    fn options<'a>(mounts: &'a Mounts, destination: &str) -> &'a [String] {
        let found = mounts
            .list
            .iter()
            .find(|mount| mount.destination() == Path::new(destination));
        found
            .unwrap_or_else(|| panic!("no mount at {destination}"))
            .options()
            .as_deref()
            .unwrap()
    }

    #[test]
    fn the_list_is_ordered_by_depth_and_the_callers_mounts_take_our_places() {
        let fixture = fixture();
        let own = tempfile::tempdir().unwrap();
        let mounts = built(
            &fixture,
            vec![
                volume(own.path(), "/a/b/c/"),
                volume(own.path(), "//a/./b"),
                volume(own.path(), "/etc/hosts"),
                volume(own.path(), "/a"),
            ],
            false,
        )
        .unwrap();
        let depths: Vec<_> = mounts
            .list
            .iter()
            .map(|mount| mount.destination().components().count())
            .collect();
        assert!(depths.is_sorted(), "{depths:?}");
        let places: Vec<_> = mounts
            .list
            .iter()
            .map(|mount| mount.destination().to_str().unwrap())
            .collect();
        for place in [
            "/proc",
            "/dev",
            "/sys",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            CGROUP,
            "/etc/resolv.conf",
            "/etc/hostname",
            "/a",
            "/a/b",
            "/a/b/c",
        ] {
            assert_eq!(
                places.iter().filter(|have| **have == place).count(),
                1,
                "{place}: {places:?}"
            );
        }
        let hosts = mounts
            .list
            .iter()
            .find(|mount| mount.destination() == Path::new("/etc/hosts"))
            .unwrap();
        assert_eq!(hosts.source().as_deref(), Some(own.path()));
    }

    // SEC-ENG-11
    #[test]
    fn cgroups_and_sys_are_read_only_unless_privileged() {
        for cgroup_v2 in [false, true] {
            let mut fixture = fixture();
            fixture.host.cgroup_v2 = cgroup_v2;
            for (privileged, access) in [(false, "ro"), (true, "rw")] {
                let mounts = built(&fixture, Vec::new(), privileged).unwrap();
                assert_eq!(
                    options(&mounts, "/sys").contains(&"ro".to_owned()),
                    !privileged
                );
                let places: &[&str] = if cgroup_v2 {
                    &[CGROUP]
                } else {
                    &["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct"]
                };
                let tmpfs_too = !cgroup_v2 && !privileged;
                assert_eq!(mounts.readonly_paths == [CGROUP], tmpfs_too);
                for place in places {
                    assert!(
                        options(&mounts, place).contains(&access.to_owned()),
                        "{place} {privileged}"
                    );
                }
            }
        }
        let fixture = fixture();
        let mounts = built(&fixture, Vec::new(), false).unwrap();
        let memory = mounts
            .list
            .iter()
            .find(|mount| mount.destination() == Path::new("/sys/fs/cgroup/memory"))
            .unwrap();
        assert_eq!(
            memory.source().as_deref(),
            Some(
                Path::new("/sys/fs/cgroup/memory")
                    .join("kubepods/pod1/c1")
                    .as_path()
            )
        );
    }

    #[test]
    fn a_link_is_resolved_on_the_host() {
        let own = tempfile::tempdir().unwrap();
        fs::create_dir(own.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", own.path().join("link")).unwrap();
        let mounts = built(
            &fixture(),
            vec![volume(own.path().join("link"), "/v")],
            false,
        )
        .unwrap();
        let found = mounts
            .list
            .iter()
            .find(|mount| mount.destination() == Path::new("/v"))
            .unwrap();
        assert_eq!(
            found.source().as_deref(),
            Some(own.path().join("real").as_path())
        );
    }

    // SEC-CRI-10
    #[test]
    fn a_source_that_is_missing_or_dangling_is_named() {
        let own = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", own.path().join("dangling")).unwrap();
        for name in ["missing", "dangling"] {
            let err =
                built(&fixture(), vec![volume(own.path().join(name), "/v")], false).unwrap_err();
            assert_eq!(err.kind(), Kind::Precondition);
            assert!(
                err.to_string().contains(name) && err.to_string().contains("No such file"),
                "{err}"
            );
            assert!(!own.path().join("missing").exists());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mapping = cri::IdMapping::default();
        type Change = fn(&mut cri::Mount);
        let table: [(Change, Kind); 12] = [
            (|m| m.container_path = "relative".into(), Kind::Invalid),
            (|m| m.container_path = "/a/../b".into(), Kind::Invalid),
            (|m| m.container_path = String::new(), Kind::Invalid),
            (|m| m.container_path = "//".into(), Kind::Invalid),
            (|m| m.container_path = "/a\0".into(), Kind::Invalid),
            (|m| m.host_path = "relative".into(), Kind::Invalid),
            (|m| m.host_path = String::new(), Kind::Invalid),
            (|m| m.propagation = 7, Kind::Invalid),
            (|m| m.recursive_read_only = true, Kind::Invalid),
            (
                |m| (m.recursive_read_only, m.readonly, m.propagation) = (true, true, 1),
                Kind::Invalid,
            ),
            (|m| m.image_sub_path = "x".into(), Kind::Invalid),
            (|m| m.container_path = "/dev".into(), Kind::Unimplemented),
        ];
        for (row, (change, kind)) in table.into_iter().enumerate() {
            let mut mount = volume("/tmp", "/v");
            change(&mut mount);
            assert_eq!(
                built(&fixture(), vec![mount], true).unwrap_err().kind(),
                kind,
                "row {row}"
            );
        }
        let mut mapped = volume("/tmp", "/v");
        mapped.uid_mappings = vec![mapping];
        assert_eq!(
            built(&fixture(), vec![mapped], false).unwrap_err().kind(),
            Kind::Invalid
        );
        let twice = vec![volume("/tmp", "/v"), volume("/usr", "/v/")];
        assert_eq!(
            built(&fixture(), twice, false).unwrap_err().kind(),
            Kind::Invalid
        );
    }

    // SEC-ENG-05
    #[test]
    fn nothing_lies_over_what_the_engine_writes_to() {
        let own = tempfile::tempdir().unwrap();
        for privileged in [false, true] {
            for place in [
                "/proc",
                "/proc/self",
                "/proc/self/attr",
                "/proc/sys/kernel",
                "/proc/1",
                "/sys",
            ] {
                let err =
                    built(&fixture(), vec![volume(own.path(), place)], privileged).unwrap_err();
                assert_eq!(err.kind(), Kind::Invalid, "{place}");
            }
        }
        assert!(built(&fixture(), vec![volume("/proc", "/proc")], false).is_err());
        assert!(
            built(
                &fixture(),
                vec![volume("/proc", "/proc"), volume("/sys", "/sys")],
                true
            )
            .is_ok()
        );
        assert!(
            built(
                &fixture(),
                vec![volume("/proc/meminfo", "/proc/meminfo")],
                false
            )
            .is_ok()
        );
        assert!(
            built(
                &fixture(),
                vec![
                    volume(own.path(), "/process"),
                    volume(own.path(), "/dev/log")
                ],
                false
            )
            .is_ok()
        );
    }

    #[test]
    fn read_only_is_said_in_the_options() {
        let own = tempfile::tempdir().unwrap();
        let mut mount = volume(own.path(), "/v");
        assert_eq!(
            options(
                &built(&fixture(), vec![mount.clone()], false).unwrap(),
                "/v"
            ),
            ["rbind", "rprivate", "rw"]
        );
        mount.readonly = true;
        assert_eq!(
            options(
                &built(&fixture(), vec![mount.clone()], false).unwrap(),
                "/v"
            ),
            ["rbind", "rprivate", "ro"]
        );
        mount.recursive_read_only = true;
        assert_eq!(
            options(&built(&fixture(), vec![mount], false).unwrap(), "/v"),
            ["rbind", "rprivate", "ro", "rro"]
        );
    }

    /// A bind mount of its own, in the propagation that is asked for; gone with the value.
    struct HostMount(tempfile::TempDir);

    impl HostMount {
        fn new(propagation: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let run = |args: &[&str]| {
                assert!(
                    Command::new("mount").args(args).status().unwrap().success(),
                    "mount {args:?}"
                )
            };
            let path = directory.path().to_str().unwrap();
            run(&["--bind", path, path]);
            run(&["--make-private", path]);
            run(&[propagation, path]);
            Self(directory)
        }
    }

    impl Drop for HostMount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[test]
    fn propagation_needs_a_shared_mount_on_the_host() {
        let (private, shared) = (
            HostMount::new("--make-private"),
            HostMount::new("--make-shared"),
        );
        let ask = |host: &HostMount, propagation: cri::MountPropagation| {
            let mut mount = volume(host.0.path(), "/v");
            mount.propagation = propagation as i32;
            built(&fixture(), vec![mount], true)
        };
        use cri::MountPropagation::{
            PropagationBidirectional, PropagationHostToContainer, PropagationPrivate,
        };
        assert_eq!(
            ask(&private, PropagationPrivate)
                .unwrap()
                .rootfs_propagation,
            "private"
        );
        for propagation in [PropagationBidirectional, PropagationHostToContainer] {
            let err = ask(&private, propagation).unwrap_err();
            assert_eq!(err.kind(), Kind::Precondition);
            let remedy = format!("--make-rshared {}`", private.0.path().display());
            assert!(err.to_string().contains(&remedy), "{err}");
        }
        for (propagation, option, root) in [
            (PropagationPrivate, "rprivate", "private"),
            (PropagationHostToContainer, "rslave", "slave"),
            (PropagationBidirectional, "rshared", "shared"),
        ] {
            let mounts = ask(&shared, propagation).unwrap();
            assert_eq!(mounts.rootfs_propagation, root);
            assert_eq!(options(&mounts, "/v")[1], option);
        }
    }

    #[test]
    fn peer_groups_are_read_from_mountinfo() {
        let mountinfo = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /a rw master:1 - tmpfs t rw
23 21 0:5 / /b rw shared:2 master:1 propagate_from:1 - tmpfs t rw
24 21 0:5 / /c rw - tmpfs shared:9 rw
";
        let peers = |id| peers::find_mount(mountinfo, id).map(|peers| (peers.shared, peers.slave));
        assert_eq!(peers(21), Some((true, false)));
        assert_eq!(peers(22), Some((false, true)));
        assert_eq!(peers(23), Some((true, true)));
        assert_eq!(peers(24), Some((false, false)));
        assert_eq!(peers(2), None);
    }
}
