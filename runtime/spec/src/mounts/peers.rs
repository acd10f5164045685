//! The mount that a path lies on, and who hears of what is mounted there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peers {
    pub mount_point: PathBuf,
    pub shared: bool,
    pub slave: bool,
}

/// The mount on which a path lies (its id by statx, Linux 5.8), and whether it is in a peer group.
pub(super) fn peers_of(path: &Path) -> std::io::Result<Peers> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    find_mount(&mountinfo, stat.stx_mnt_id).ok_or_else(|| {
        std::io::Error::other(format!(
            "mount {} is not in /proc/self/mountinfo",
            stat.stx_mnt_id
        ))
    })
}

pub(super) fn find_mount(mountinfo: &str, id: u64) -> Option<Peers> {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id))?;
    let fields: Vec<_> = line.split(' ').collect();
    let optional: Vec<_> = fields
        .iter()
        .skip(6)
        .take_while(|field| **field != "-")
        .collect();
    Some(Peers {
        mount_point: fields.get(4)?.into(),
        shared: optional.iter().any(|field| field.starts_with("shared:")),
        slave: optional.iter().any(|field| field.starts_with("master:")),
    })
}
