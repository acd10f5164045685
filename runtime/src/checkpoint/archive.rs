//! The archive: a tar with the names that checkpointctl (its `lib/metadata.go`), CRI-O and containerd know.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::{
        fd::BorrowedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use prost_types::Timestamp;
use serde::Serialize;

use super::Deadline;
use crate::pod::{Pod, record::ContainerRecord, record::now_ns};

const CONFIG_DUMP: &str = "config.dump";
const SPEC_DUMP: &str = "spec.dump";
const STATUS: &str = "status";
/// Directory of CRIU's images.
const IMAGES: &str = "checkpoint";
/// As a layer: with whiteouts for what was removed.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// Of CRIU's working directory.
const FROM_WORK: [&str; 2] = ["dump.log", "stats-dump"];
const BUFFER_BYTES: usize = 1 << 18;
const MODE: u32 = 0o600;

/// What the archive says of the container.
#[derive(Debug)]
pub struct Facts {
    config: ConfigDump,
    status: Status,
}

/// checkpointctl's `ContainerConfig`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigDump {
    id: String,
    name: String,
    rootfs_image: String,
    rootfs_image_ref: String,
    rootfs_image_name: String,
    runtime: String,
    created_time: String,
    checkpointed_time: String,
    restored_time: String,
    restored: bool,
}

/// containerd's `ContainerdStatus`: ns since the epoch.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    pid: u32,
    reason: String,
    message: String,
}

impl Facts {
    pub fn of(pod: &Pod, container: &ContainerRecord, started_at: i64) -> Self {
        let config = &container.config;
        let image = config.image.clone().unwrap_or_default();
        let name = match image.user_specified_image.as_str() {
            "" => image.image,
            name => name.to_owned(),
        };
        Self {
            config: ConfigDump {
                id: container.id.clone(),
                name: config.metadata.clone().unwrap_or_default().name,
                rootfs_image: name.clone(),
                rootfs_image_ref: container.image_id.clone(),
                rootfs_image_name: name,
                runtime: pod.handler.clone(),
                created_time: time(container.created_at),
                checkpointed_time: time(now_ns()),
                // Go's zero time.
                restored_time: "0001-01-01T00:00:00Z".into(),
                restored: false,
            },
            status: Status {
                created_at: container.created_at,
                started_at,
                finished_at: 0,
                exit_code: 0,
                // Pids are the shim's.
                pid: 0,
                reason: String::new(),
                message: String::new(),
            },
        }
    }
}

fn time(ns: i64) -> String {
    let time = Timestamp {
        seconds: ns.div_euclid(1_000_000_000),
        nanos: ns.rem_euclid(1_000_000_000) as i32,
    };
    time.to_string()
}

#[derive(Debug)]
pub struct Parts {
    pub facts: Facts,
    pub spec: PathBuf,
    pub images: PathBuf,
    pub work: PathBuf,
    pub diff: PathBuf,
}

/// Writes only until the request's time is up.
#[derive(Debug)]
pub struct InTime<W> {
    pub inner: W,
    pub deadline: Deadline,
}

impl<W: Write> Write for InTime<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.deadline.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub fn write(parts: &Parts, file: BorrowedFd<'_>, deadline: Deadline) -> io::Result<()> {
    let inner = File::from(file.try_clone_to_owned()?);
    let out = BufWriter::with_capacity(BUFFER_BYTES, InTime { inner, deadline });
    let mut tar = tar::Builder::new(out);
    for (name, json) in [
        (CONFIG_DUMP, serde_json::to_vec(&parts.facts.config)?),
        (STATUS, serde_json::to_vec(&parts.facts.status)?),
        (SPEC_DUMP, fs::read(&parts.spec)?),
    ] {
        let mut header = header(json.len() as u64);
        tar.append_data(&mut header, name, json.as_slice())?;
    }
    let mut directory = header(0);
    directory.set_entry_type(tar::EntryType::Directory);
    directory.set_mode(0o700);
    tar.append_data(&mut directory, IMAGES, io::empty())?;
    let mut images = Vec::new();
    for entry in fs::read_dir(&parts.images)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            images.push(entry.file_name());
        }
    }
    images.sort();
    for name in images {
        let to = Path::new(IMAGES).join(&name);
        append(&mut tar, &to, &parts.images.join(&name))?;
    }
    for name in FROM_WORK {
        let from = parts.work.join(name);
        if from.is_file() {
            append(&mut tar, Path::new(name), &from)?;
        }
    }
    append(&mut tar, Path::new(ROOTFS_DIFF), &parts.diff)?;
    tar.into_inner()?.into_inner().map_err(|e| e.into_error())?;
    Ok(())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(now_ns().div_euclid(1_000_000_000) as u64);
    header
}

fn append(tar: &mut tar::Builder<impl Write>, name: &Path, from: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(from)?;
    let size = file.metadata()?.size();
    // A file that shrank would shift all that follows.
    let whole = file.chain(io::repeat(0)).take(size);
    tar.append_data(&mut header(size), name, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_go_writes_them() {
        assert_eq!(time(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(1_500_000_000), "1970-01-01T00:00:01.500Z");
    }
}
