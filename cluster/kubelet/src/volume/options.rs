//! `mountOptions` of a PersistentVolume: those of a mount, and those of a file system.

use std::{io, path::Path};

use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    mount::{MountFlags, mount_remount},
};

/// Those about when a file was read last: where one is given the kernel forgets the others.
const OF_TIMES: MountFlags = MountFlags::NOATIME
    .union(MountFlags::NODIRATIME)
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub flags: MountFlags,
    /// For the file system, by commas.
    pub data: String,
}

impl Options {
    /// Options may be lists themselves. One that gives back what the volume's own mount takes away (`rw`, `exec`, …) changes nothing.
    pub fn of(options: &[String]) -> Self {
        let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
        for option in options.iter().flat_map(|it| it.split(',')) {
            flags |= match option.trim() {
                "" | "defaults" | "bind" | "rw" | "suid" | "dev" | "exec" | "atime"
                | "diratime" => MountFlags::empty(),
                "ro" => MountFlags::RDONLY,
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                "strictatime" => MountFlags::STRICTATIME,
                other => {
                    data.push(other.to_owned());
                    MountFlags::empty()
                }
            };
        }
        Self {
            flags,
            data: data.join(","),
        }
    }

    pub fn read_only(mut self, is: bool) -> Self {
        if is {
            self.flags |= MountFlags::RDONLY;
        }
        self
    }
}

/// Has the mount at `path`, and no other of the same file system, be so, besides what it is.
pub(super) fn ensure(path: &Path, wanted: MountFlags) -> io::Result<()> {
    let has = flags(statvfs(path)?.f_flag);
    // what statvfs does not tell
    let told = MountFlags::STRICTATIME.complement();
    if has.contains(wanted & told) {
        return Ok(());
    }
    let times = match wanted.intersects(OF_TIMES) {
        true => wanted & OF_TIMES,
        // none: they stay as they are
        false => MountFlags::empty(),
    };
    let all = MountFlags::BIND | (has - OF_TIMES) | (wanted - OF_TIMES) | times;
    Ok(mount_remount(path, all, c"")?)
}

fn flags(of: StatVfsMountFlags) -> MountFlags {
    let pairs = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let has = pairs.into_iter().filter(|(one, _)| of.contains(*one));
    has.fold(MountFlags::empty(), |all, (_, one)| all | one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_of_the_mount_or_the_file_systems_own() {
        let of = |options: &[&str]| {
            let options: Vec<_> = options.iter().map(ToString::to_string).collect();
            Options::of(&options)
        };
        let none = Options {
            flags: MountFlags::empty(),
            data: String::new(),
        };
        assert_eq!(of(&[]), none);
        assert_eq!(of(&["defaults", "rw", "exec"]), none);
        let all = of(&["noexec,nosuid", "discard", "noatime", "commit=5"]);
        assert_eq!(
            all.flags,
            MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NOATIME
        );
        assert_eq!(all.data, "discard,commit=5");
        let read_only = all.clone().read_only(true).flags;
        assert_eq!(read_only, all.flags | MountFlags::RDONLY);
        assert_eq!(all.clone().read_only(false), all);
    }
}
