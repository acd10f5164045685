//! Device nodes in a container, and which devices its cgroup lets it open.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

use berth_proto::cri;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use crate::{
    error::{Error, because, quoted},
    mounts::raw_device,
};

/// Device nodes of one container: a large server's /dev has some hundred.
const DEVICES_LIMIT: usize = 4096;

/// Of the node's /dev, what every container has its own of.
const NOT_HOST_DEVICES: [&str; 5] = ["pts", "shm", "fd", "mqueue", "console"];

/// What every container may open, as type, major, minor: null, zero, full, random, urandom, tty, console, ptmx, and the pts of its
/// own devpts. The nodes are the engine's to make.
const DEFAULT: [(LinuxDeviceType, i64, Option<i64>); 9] = [
    (LinuxDeviceType::C, 1, Some(3)),
    (LinuxDeviceType::C, 1, Some(5)),
    (LinuxDeviceType::C, 1, Some(7)),
    (LinuxDeviceType::C, 1, Some(8)),
    (LinuxDeviceType::C, 1, Some(9)),
    (LinuxDeviceType::C, 5, Some(0)),
    (LinuxDeviceType::C, 5, Some(1)),
    (LinuxDeviceType::C, 5, Some(2)),
    (LinuxDeviceType::C, 136, None),
];

#[derive(Debug)]
pub(crate) struct Devices {
    pub nodes: Vec<LinuxDevice>,
    pub rules: Vec<LinuxDeviceCgroup>,
}

/// The part of the check that looks at no file.
pub(crate) fn check(container: &cri::ContainerConfig) -> Result<(), Error> {
    container.devices.iter().try_for_each(check_device)
}

fn check_device(device: &cri::Device) -> Result<(), Error> {
    let wrong = |field: &str, why: String| {
        Err(Error::invalid(
            format!("devices[{}].{field}", quoted(&device.host_path)),
            why,
        ))
    };
    let plain = |path: &str| {
        path.starts_with('/')
            && !path.contains('\0')
            && !Path::new(path)
                .components()
                .any(|part| part == Component::ParentDir)
    };
    if !plain(&device.host_path) {
        return wrong("host_path", "is not a plain absolute path".into());
    }
    let place: PathBuf = Path::new(container_path(device)).components().collect();
    if !plain(container_path(device)) || !place.starts_with("/dev") || place == Path::new("/dev") {
        return wrong(
            "container_path",
            format!("{} is no path below /dev", quoted(&device.container_path)),
        );
    }
    let letters = device.permissions.as_bytes();
    let each_once = b"rwm"
        .iter()
        .all(|letter| letters.iter().filter(|have| *have == letter).count() <= 1);
    if letters.is_empty() || !each_once || !letters.iter().all(|letter| b"rwm".contains(letter)) {
        return wrong(
            "permissions",
            format!("{} is not made of r, w and m", quoted(&device.permissions)),
        );
    }
    Ok(())
}

/// An empty container path is the host's.
fn container_path(device: &cri::Device) -> &str {
    if device.container_path.is_empty() {
        &device.host_path
    } else {
        &device.container_path
    }
}

pub(crate) fn build(container: &cri::ContainerConfig, privileged: bool) -> Result<Devices, Error> {
    let mut devices = Devices {
        nodes: Vec::new(),
        rules: Vec::new(),
    };
    if privileged {
        devices.rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .access("rwm")
                .build()?,
        );
    } else {
        devices.rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(false)
                .access("rwm")
                .build()?,
        );
        for typ in [LinuxDeviceType::C, LinuxDeviceType::B] {
            // a node may be made (given the capability), though not opened
            devices.rules.push(
                LinuxDeviceCgroupBuilder::default()
                    .allow(true)
                    .typ(typ)
                    .access("m")
                    .build()?,
            );
        }
        for (typ, major, minor) in DEFAULT {
            devices.rules.push(allow(typ, major, minor, "rwm")?);
        }
    }
    for device in &container.devices {
        check_device(device)?;
        add_asked(&mut devices, device, privileged)?;
    }
    if privileged {
        add_all(&mut devices, Path::new("/dev"))?;
    }
    Ok(devices)
}

fn add_asked(devices: &mut Devices, device: &cri::Device, privileged: bool) -> Result<(), Error> {
    let unusable = |why: String| Error::Device {
        path: device.host_path.clone().into(),
        why,
    };
    let host_path = fs::canonicalize(&device.host_path)
        .map_err(|err| unusable(because("find it on the host", err)))?;
    let metadata = fs::metadata(&host_path).map_err(|err| unusable(because("stat", err)))?;
    let place: PathBuf = Path::new(container_path(device)).components().collect();
    if !metadata.is_dir() {
        let node = node(&place, &metadata)?
            .ok_or_else(|| unusable("is neither a device nor a directory of devices".into()))?;
        return devices.add(node, (!privileged).then_some(device.permissions.as_str()));
    }
    let mut found = Vec::new();
    walk(&host_path, &[], &mut found)
        .map_err(|err| unusable(because("list the directory", err)))?;
    if found.is_empty() {
        return Err(unusable("is a directory without any device".into()));
    }
    for (path, metadata) in found {
        let below = path.strip_prefix(&host_path).unwrap_or(&path);
        if let Some(node) = node(&place.join(below), &metadata)? {
            devices.add(node, (!privileged).then_some(device.permissions.as_str()))?;
        }
    }
    Ok(())
}

/// The node's own devices, where nothing else has taken the place.
fn add_all(devices: &mut Devices, dev: &Path) -> Result<(), Error> {
    let mut found = Vec::new();
    walk(dev, &NOT_HOST_DEVICES, &mut found).map_err(|source| Error::Read {
        path: dev.to_path_buf(),
        source,
    })?;
    for (path, metadata) in found {
        // every container has its own ptmx, of its own devpts
        if path != dev.join("ptmx")
            && let Some(node) = node(&path, &metadata)?
        {
            devices.add(node, None)?;
        }
    }
    Ok(())
}

impl Devices {
    fn add(&mut self, node: LinuxDevice, access: Option<&str>) -> Result<(), Error> {
        if let Some(access) = access {
            self.rules
                .push(allow(node.typ(), node.major(), Some(node.minor()), access)?);
        }
        if self.nodes.iter().any(|have| have.path() == node.path()) {
            return Ok(());
        }
        if self.nodes.len() == DEVICES_LIMIT {
            return Err(Error::invalid(
                "devices",
                format!("more than {DEVICES_LIMIT} device nodes"),
            ));
        }
        self.nodes.push(node);
        Ok(())
    }
}

/// Device nodes below a directory, in order of their names. Links are not followed: they lead to a device that is there anyway.
fn walk(
    directory: &Path,
    except: &[&str],
    found: &mut Vec<(PathBuf, fs::Metadata)>,
) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if except.iter().any(|name| entry.file_name() == **name) || found.len() > DEVICES_LIMIT {
            continue;
        }
        // a device may vanish while we look
        let Ok(metadata) = entry.path().symlink_metadata() else {
            continue;
        };
        if metadata.is_dir() {
            walk(&entry.path(), &[], found)?;
        } else if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
            found.push((entry.path(), metadata));
        }
    }
    Ok(())
}

pub(crate) fn node(path: &Path, metadata: &fs::Metadata) -> Result<Option<LinuxDevice>, Error> {
    let typ = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(None),
    };
    let (major, minor) = raw_device(metadata);
    Ok(Some(
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(i64::from(major))
            .minor(i64::from(minor))
            .file_mode(metadata.mode() & 0o7777)
            .uid(metadata.uid())
            .gid(metadata.gid())
            .build()?,
    ))
}

pub(crate) fn allow(
    typ: LinuxDeviceType,
    major: i64,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, Error> {
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(typ)
        .major(major)
        .access(access);
    Ok(match minor {
        Some(minor) => rule.minor(minor).build()?,
        None => rule.build()?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

    use super::*;
    use crate::error::Kind;

    fn container(host_path: &str, container_path: &str, permissions: &str) -> cri::ContainerConfig {
        let device = cri::Device {
            host_path: host_path.into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
        };
        cri::ContainerConfig {
            devices: vec![device],
            ..Default::default()
        }
    }

    fn rules(devices: &Devices) -> Vec<String> {
        devices
            .rules
            .iter()
            .map(|rule| format!("{} {rule}", if rule.allow() { '+' } else { '-' }))
            .collect()
    }

    // SEC-ENG-12
    #[test]
    fn all_is_denied_but_the_list() {
        let devices = build(&cri::ContainerConfig::default(), false).unwrap();
        assert!(devices.nodes.is_empty());
        let rules = rules(&devices);
        assert_eq!(rules[0], "- a *:* rwm");
        assert!(
            rules.contains(&"+ c 1:3 rwm".into()) && rules.contains(&"+ c 136:* rwm".into()),
            "{rules:?}"
        );
        let open_all = rules
            .iter()
            .filter(|rule| rule.starts_with('+') && rule.contains("*:*") && !rule.ends_with(" m"))
            .count();
        assert_eq!(open_all, 0, "{rules:?}");
    }

    #[test]
    fn a_device_comes_with_its_rule() {
        let devices = build(&container("/dev/null", "/dev/void", "rw"), false).unwrap();
        assert_eq!(rules(&devices).last().unwrap(), "+ c 1:3 rw");
        assert_eq!(
            (
                devices.nodes[0].path().as_path(),
                devices.nodes[0].major(),
                devices.nodes[0].minor()
            ),
            (Path::new("/dev/void"), 1, 3)
        );
        assert_eq!(
            build(&container("/dev/zero", "", "r"), false)
                .unwrap()
                .nodes[0]
                .path(),
            Path::new("/dev/zero")
        );
    }

    #[test]
    fn a_directory_gives_each_device_in_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        for (name, minor) in [("one", 3), ("sub/two", 5)] {
            mknodat(
                CWD,
                directory.path().join(name),
                FileType::CharacterDevice,
                Mode::RUSR,
                makedev(1, minor),
            )
            .unwrap();
        }
        fs::write(directory.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("one", directory.path().join("link")).unwrap();
        let devices = build(
            &container(directory.path().to_str().unwrap(), "/dev/many", "rwm"),
            false,
        )
        .unwrap();
        let paths: Vec<_> = devices
            .nodes
            .iter()
            .map(|node| node.path().to_str().unwrap())
            .collect();
        assert_eq!(paths, ["/dev/many/one", "/dev/many/sub/two"]);
        assert!(rules(&devices).ends_with(&["+ c 1:3 rwm".into(), "+ c 1:5 rwm".into()]));
    }

    #[test]
    fn a_privileged_container_has_every_device_once() {
        let devices = build(&container("/dev/null", "/dev/zero", "r"), true).unwrap();
        assert_eq!(rules(&devices), ["+ a *:* rwm"]);
        let paths: HashSet<_> = devices.nodes.iter().map(LinuxDevice::path).collect();
        assert_eq!(paths.len(), devices.nodes.len());
        assert!(paths.contains(&PathBuf::from("/dev/null")));
        assert!(paths.iter().all(|path| !path.starts_with("/dev/pts")
            && !path.starts_with("/dev/shm")
            && !path.ends_with("ptmx")));
        let zero = devices
            .nodes
            .iter()
            .find(|node| node.path() == Path::new("/dev/zero"))
            .unwrap();
        assert_eq!(
            (zero.major(), zero.minor()),
            (1, 3),
            "what was asked for wins"
        );
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        let file = empty.path().parent().unwrap().join(format!(
            "{}-file",
            empty.path().file_name().unwrap().to_str().unwrap()
        ));
        fs::write(&file, "").unwrap();
        for host_path in [
            "/dev/no-such-device",
            empty.path().to_str().unwrap(),
            file.to_str().unwrap(),
        ] {
            let err = build(&container(host_path, "/dev/x", "r"), false).unwrap_err();
            assert_eq!(err.kind(), Kind::Precondition, "{host_path}");
            assert!(err.to_string().contains(host_path), "{err}");
        }
        fs::remove_file(&file).unwrap();
        for (host_path, container_path, permissions) in [
            ("/dev/null", "/dev/x", ""),
            ("/dev/null", "/dev/x", "rx"),
            ("/dev/null", "/dev/x", "rr"),
            ("/dev/null", "/tmp/x", "r"),
            ("/dev/null", "/dev", "r"),
            ("/dev/null", "/dev/../etc/x", "r"),
            ("dev/null", "/dev/x", "r"),
            ("", "", "r"),
        ] {
            let container = container(host_path, container_path, permissions);
            assert_eq!(
                check(&container).unwrap_err().kind(),
                Kind::Invalid,
                "{container:?}"
            );
        }
    }
}
