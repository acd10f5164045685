//! The root file system of a container whose caller says with Create what is to be mounted (containerd's snapshotters do; berthd mounts
//! itself and asks for nothing).

mod id_map;

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

use berth_kernel::userns::IdMaps;
use berth_proto::shim::api::Mount;
use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

use crate::error::Error;

/// A snapshotter says one mount; some say a few that lie on each other.
const MAX_MOUNTS: usize = 16;
/// Mounts that lie on each other at one place: those above, and what a person may have put there.
const MAX_STACKED: usize = 2 * MAX_MOUNTS;

/// Where a container's root is: in its bundle, as the runtime specification's bundles of containerd have it.
fn target(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Mounts all of them, or none.
pub fn mount(bundle: &Path, mounts: &[Mount]) -> Result<(), Error> {
    if mounts.len() > MAX_MOUNTS {
        return Err(Error::invalid(
            "rootfs",
            format!("{} mounts, at most {MAX_MOUNTS} are taken", mounts.len()),
        ));
    }
    let requests: Vec<Request> = mounts.iter().map(Request::read).collect::<Result<_, _>>()?;
    let target = target(bundle);
    std::fs::create_dir_all(&target).map_err(Error::io(format!(
        "make the directory {}",
        target.display()
    )))?;
    for request in &requests {
        if let Err(error) = request.mount(&target) {
            let _ = unmount(bundle);
            return Err(Error::io(format!(
                "mount {} of type {} at {}",
                request.source,
                request.kind,
                target.display()
            ))(error));
        }
    }
    Ok(())
}

/// Takes away what lies on a container's root, which ends by now. Idempotent.
pub fn unmount(bundle: &Path) -> Result<(), Error> {
    let target = target(bundle);
    for _ in 0..MAX_STACKED {
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(errno) => {
                return Err(Error::io(format!("unmount {}", target.display()))(
                    io::Error::from(errno),
                ));
            }
        }
    }
    Ok(())
}

/// A mount as mount(8) writes it, read.
#[derive(Debug, Clone, PartialEq)]
struct Request<'a> {
    kind: &'a str,
    source: &'a str,
    bind: bool,
    recursive: bool,
    flags: MsFlags,
    /// `key`, or `key=value`, in their order.
    data: Vec<(&'a str, Option<Cow<'a, str>>)>,
    /// Through which its owners are shown.
    id_map: Option<IdMaps>,
}

impl<'a> Request<'a> {
    fn read(mount: &'a Mount) -> Result<Self, Error> {
        let refuse = |what: String| {
            Err(Error::invalid(
                format!("rootfs mount of {}", mount.source),
                what,
            ))
        };
        if !mount.target.is_empty() {
            return refuse(format!(
                "a target of its own ({:?}) is not supported",
                mount.target
            ));
        }
        let mut request = Request {
            kind: &mount.type_,
            source: &mount.source,
            bind: mount.type_ == "bind",
            recursive: false,
            flags: MsFlags::empty(),
            data: Vec::new(),
            id_map: None,
        };
        let (mut uids, mut gids) = (None, None);
        for option in &mount.options {
            let (flag, set) = match option.as_str() {
                "bind" => {
                    request.bind = true;
                    continue;
                }
                "rbind" => {
                    (request.bind, request.recursive) = (true, true);
                    continue;
                }
                "defaults" => continue,
                "ro" => (MsFlags::MS_RDONLY, true),
                "rw" => (MsFlags::MS_RDONLY, false),
                "nosuid" => (MsFlags::MS_NOSUID, true),
                "suid" => (MsFlags::MS_NOSUID, false),
                "nodev" => (MsFlags::MS_NODEV, true),
                "dev" => (MsFlags::MS_NODEV, false),
                "noexec" => (MsFlags::MS_NOEXEC, true),
                "exec" => (MsFlags::MS_NOEXEC, false),
                "noatime" => (MsFlags::MS_NOATIME, true),
                "relatime" => (MsFlags::MS_RELATIME, true),
                "nodiratime" => (MsFlags::MS_NODIRATIME, true),
                "loop" => {
                    return refuse("option loop is not supported: mount the image first".into());
                }
                // Not the kernel's: containerd's own words about how a snapshot is to be mounted.
                word if word.starts_with("X-containerd.") => {
                    return refuse(format!("option {word} is not supported"));
                }
                word => {
                    if let Some((key @ ("uidmap" | "gidmap"), text)) = word.split_once('=') {
                        let map = if key == "uidmap" {
                            &mut uids
                        } else {
                            &mut gids
                        };
                        match id_map::ranges(text) {
                            Ok(ranges) => *map = Some(ranges),
                            Err(why) => return refuse(format!("option {key}: {why}")),
                        }
                        continue;
                    }
                    request.data.push(match word.split_once('=') {
                        Some((key, value)) => (key, Some(value.into())),
                        None => (word, None),
                    });
                    continue;
                }
            };
            request.flags.set(flag, set);
        }
        request.id_map = match id_map::both(uids, gids) {
            Ok(maps) => maps,
            Err(why) => return refuse(why),
        };
        if request.kind.is_empty() && !request.bind {
            return refuse("it has no type".into());
        }
        if request.bind && !request.data.is_empty() {
            return refuse(format!(
                "option {} means nothing for a bind mount",
                request.data[0].0
            ));
        }
        Ok(request)
    }

    fn mount(&self, target: &Path) -> io::Result<()> {
        match &self.id_map {
            None => self.mount_plain(target),
            Some(maps) if self.kind == "overlay" => {
                let layers = self.layers();
                id_map::overlay(maps, &layers, target, |layers| {
                    self.with_layers(layers).mount_plain(target)
                })
            }
            Some(maps) => {
                self.mount_plain(target)?;
                id_map::cover(maps, target)
            }
        }
    }

    fn layers(&self) -> Vec<String> {
        let lowerdir = self.data.iter().find(|(key, _)| *key == "lowerdir");
        lowerdir
            .and_then(|(_, value)| value.as_deref())
            .map(layers_of)
            .unwrap_or_default()
    }

    fn with_layers(&self, layers: &[String]) -> Request<'a> {
        let escaped = |layer: &String| layer.replace('\\', "\\\\").replace(':', "\\:");
        let text = layers.iter().map(escaped).collect::<Vec<_>>().join(":");
        let mut request = self.clone();
        for (key, value) in &mut request.data {
            if *key == "lowerdir" {
                *value = Some(text.clone().into());
            }
        }
        request
    }

    fn mount_plain(&self, target: &Path) -> io::Result<()> {
        if self.bind {
            return self.bind(target);
        }
        match self.by_fsconfig(target) {
            // Neither file system nor kernel (6.5 for overlayfs' "lowerdir+") need to know the newer calls.
            Err(Errno::INVAL | Errno::NOSYS) => self.by_mount(target),
            other => Ok(other?),
        }
    }

    fn bind(&self, target: &Path) -> io::Result<()> {
        let none = None::<&str>;
        let mut flags = MsFlags::MS_BIND;
        flags.set(MsFlags::MS_REC, self.recursive);
        mount2(Some(self.source), target, none, flags, none)?;
        if !self.flags.is_empty() {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | self.flags;
            mount2(none, target, none, flags, none)?;
        }
        Ok(())
    }

    /// One string a layer: the options of an image with many of them do not fit into the page that mount(2) takes.
    fn by_fsconfig(&self, target: &Path) -> rustix::io::Result<()> {
        let fs = fsopen(self.kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", self.source)?;
        for (key, value) in &self.data {
            match value {
                Some(layers) if self.kind == "overlay" && *key == "lowerdir" => {
                    for layer in layers_of(layers) {
                        fsconfig_set_string(&fs, "lowerdir+", layer)?;
                    }
                }
                Some(value) => fsconfig_set_string(&fs, *key, value.as_ref())?,
                None => fsconfig_set_flag(&fs, *key)?,
            }
        }
        fsconfig_create(&fs)?;
        let attributes = [
            (MsFlags::MS_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MsFlags::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MsFlags::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MsFlags::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (MsFlags::MS_NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
            (
                MsFlags::MS_NODIRATIME,
                MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            ),
        ]
        .into_iter()
        .filter(|(flag, _)| self.flags.contains(*flag))
        .fold(MountAttrFlags::empty(), |all, (_, attribute)| {
            all | attribute
        });
        let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mounted, "", CWD, target, flags)
    }

    fn by_mount(&self, target: &Path) -> io::Result<()> {
        let words: Vec<String> = self
            .data
            .iter()
            .map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => (*key).to_owned(),
            })
            .collect();
        let data = words.join(",");
        Ok(mount2(
            Some(self.source),
            target,
            Some(self.kind),
            self.flags,
            Some(data.as_str()),
        )?)
    }
}

/// The directories of overlayfs' `lowerdir`: colons part them, a backslash makes the next byte a plain one.
fn layers_of(text: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let last = layers.last_mut().expect("there is one from the start");
        match character {
            ':' => layers.push(String::new()),
            '\\' => last.extend(characters.next()),
            other => last.push(other),
        }
    }
    layers.retain(|layer| !layer.is_empty());
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|option| (*option).into()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn options_are_those_of_mount_and_what_is_no_flag_is_for_the_file_system() {
        let mount = asked(
            "overlay",
            "overlay",
            &["ro", "nodev", "index=off", "lowerdir=/a:/b", "userxattr"],
        );
        let request = Request::read(&mount).unwrap();
        assert_eq!(request.flags, MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
        let data = [
            ("index", Some("off".into())),
            ("lowerdir", Some("/a:/b".into())),
            ("userxattr", None),
        ];
        assert_eq!(request.data, data);
        let mount = asked("bind", "/a", &["rbind", "rw"]);
        let request = Request::read(&mount).unwrap();
        assert!(request.bind && request.recursive && request.flags.is_empty());
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_name() {
        for (mount, word) in [
            (asked("ext4", "/dev/x", &["loop"]), "loop"),
            (asked("overlay", "o", &["uidmap=0:1:2"]), "gidmap"),
            (
                asked("overlay", "o", &["uidmap=0:1", "gidmap=0:1:1"]),
                "uidmap",
            ),
            (
                asked("overlay", "o", &["X-containerd.mkfs=1"]),
                "X-containerd.mkfs",
            ),
            (asked("bind", "/a", &["rbind", "size=1"]), "size"),
            (asked("", "/a", &[]), "type"),
            (
                Mount {
                    target: "/x".into(),
                    ..asked("bind", "/a", &["bind"])
                },
                "target",
            ),
        ] {
            let error = Request::read(&mount).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn layers_are_parted_by_colons_that_are_not_escaped() {
        for (text, layers) in [
            ("/a:/b", vec!["/a", "/b"]),
            ("/with\\:colon:/b\\\\", vec!["/with:colon", "/b\\"]),
            ("/a", vec!["/a"]),
        ] {
            assert_eq!(layers_of(text), layers, "{text}");
        }
    }

    #[test]
    fn owners_are_shown_through_the_maps_by_an_overlay_and_by_a_bind_mount() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for (name, uid) in [("store/1", 0), ("store/2:x", 7)] {
            let layer = dir.path().join(name);
            std::fs::create_dir_all(&layer).unwrap();
            std::fs::write(layer.join(format!("of{uid}")), "").unwrap();
            std::os::unix::fs::chown(layer.join(format!("of{uid}")), Some(uid), Some(uid + 1))
                .unwrap();
        }
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let lower = format!("lowerdir={}:{}", at("store/1"), at("store/2\\:x"));
        let (upper, work) = (
            format!("upperdir={}", at("upper")),
            format!("workdir={}", at("work")),
        );
        let maps = ["uidmap=0:300000:1,1:400000:100", "gidmap=0:500000:100"];
        let owner = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            let meta = std::fs::symlink_metadata(dir.path().join("rootfs").join(name)).unwrap();
            (meta.uid(), meta.gid())
        };

        let overlay = asked(
            "overlay",
            "overlay",
            &[&[lower.as_str(), &upper, &work][..], &maps].concat(),
        );
        mount(dir.path(), std::slice::from_ref(&overlay)).unwrap();
        let found = (owner("of0"), owner("of7"));
        std::fs::write(dir.path().join("rootfs/new"), "").unwrap();
        let new = owner("new");
        unmount(dir.path()).unwrap();
        assert_eq!(found, ((300_000, 500_001), (400_006, 500_008)));
        assert_eq!(new, (0, 0), "the upper directory has the node's own ids");

        let bind = asked(
            "bind",
            &at("store/1"),
            &[&["rbind", "ro"][..], &maps].concat(),
        );
        mount(dir.path(), std::slice::from_ref(&bind)).unwrap();
        let found = owner("of0");
        let written = std::fs::write(dir.path().join("rootfs/new"), "");
        unmount(dir.path()).unwrap();
        assert_eq!(found, (300_000, 500_001));
        assert_eq!(
            written.unwrap_err().kind(),
            io::ErrorKind::ReadOnlyFilesystem
        );
        assert!(
            std::fs::read_dir(dir.path().join("rootfs"))
                .unwrap()
                .next()
                .is_none()
        );

        let unfit = asked(
            "overlay",
            "overlay",
            &[&["lowerdir=/proc:/sys"][..], &maps].concat(),
        );
        let error = mount(dir.path(), &[unfit]).unwrap_err().to_string();
        assert!(error.contains("id-mapped"), "{error}");
        assert!(
            std::fs::read_dir(dir.path().join("rootfs"))
                .unwrap()
                .next()
                .is_none()
        );
    }

    #[test]
    fn an_overlay_of_sixty_layers_is_mounted_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let long = "l".repeat(100);
        let layers: Vec<String> = (0..60)
            .map(|n| {
                let layer = dir.path().join(format!("{long}{n}"));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join(format!("{n}")), "").unwrap();
                layer.display().to_string()
            })
            .collect();
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        let options = [
            format!("lowerdir={}", layers.join(":")),
            format!("upperdir={}", at("upper")),
            format!("workdir={}", at("work")),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let overlay = asked("overlay", "overlay", &options);
        mount(dir.path(), std::slice::from_ref(&overlay)).unwrap();
        let seen = std::fs::read_dir(dir.path().join("rootfs"))
            .unwrap()
            .count();
        unmount(dir.path()).unwrap();
        unmount(dir.path()).unwrap();
        assert_eq!(seen, 60);

        let broken = asked("bind", "/nowhere/at/all", &["rbind"]);
        let error = mount(dir.path(), &[overlay, broken]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        let left = std::fs::read_dir(dir.path().join("rootfs"))
            .unwrap()
            .count();
        assert_eq!(left, 0, "the overlay is gone, too");
    }
}
