//! Directories that a layer has files in but doesn't describe.
//!
//! Some tools write `tmp/file` into a layer without an entry for `tmp`. Unpacked by itself the layer gets a `tmp` of mode 0755, and
//! overlayfs shows the attributes of the topmost directory: `/tmp` would lose its sticky bit. Layers are kept once for all images, so
//! the right attributes depend on what lies below and can't be in the layer. They go into one small layer of directories on top.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid},
    io::Errno,
};

use crate::{
    catalog::ImageRecord,
    digest::Digest,
    error::Error,
    store::{Inner, Pins},
    untar::Unpacked,
};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

struct Layer {
    path: PathBuf,
    root: OwnedFd,
    implicit: HashSet<String>,
}

impl Layer {
    fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        berth_beneath::openat2(&self.root, path, DIRECTORY, Mode::empty(), BENEATH)
    }
}

/// Makes the layer of directories that `image` needs, if it needs one. It stays while the guard does.
pub(crate) fn ensure<'a>(
    inner: &'a Inner,
    image: &ImageRecord,
) -> Result<Option<(Digest, Pins<'a>)>, Error> {
    let mut layers = Vec::new();
    for diff_id in &image.layers {
        let Some(layer) = inner.catalog().layers.get(diff_id).cloned() else {
            return Err(Error::LayerGone {
                id: image.id.to_string(),
                key: "(none)".to_owned(),
                layer: diff_id.to_string(),
            });
        };
        let path = inner.layer_dir(&layer);
        let root = rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty())
            .map_err(|e| Error::io("open layer", &path, e))?;
        layers.push(Layer {
            path,
            root,
            implicit: layer.implicit.into_iter().collect(),
        });
    }
    let mut wanted: BTreeMap<String, OwnedFd> = BTreeMap::new();
    for (at, layer) in layers.iter().enumerate().skip(1) {
        for path in &layer.implicit {
            let is_topmost = layers[at + 1..]
                .iter()
                .all(|above| above.open(path).is_err());
            if is_topmost && let Some(described) = described_below(&layers[..=at], path) {
                wanted.insert(path.clone(), described);
            }
        }
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    let ancestors: Vec<String> = wanted
        .keys()
        .flat_map(|path| {
            path.match_indices('/')
                .map(|(at, _)| path[..at].to_owned())
                .collect::<Vec<_>>()
        })
        .chain([String::new()])
        .collect();
    for path in ancestors {
        if !wanted.contains_key(&path)
            && let Some(fd) = layers.iter().rev().find_map(|layer| layer.open(&path).ok())
        {
            wanted.insert(path, fd);
        }
    }
    let fixup = Digest::of(format!("directories above the layers of {}", image.id).as_bytes());
    let pins = inner.pinned(vec![fixup.clone()]);
    let ingest = inner.ingest()?;
    let bytes = fill(&ingest.path, &wanted)?;
    inner.publish(
        &ingest,
        &fixup,
        Unpacked {
            bytes,
            inodes: wanted.len() as u64,
            implicit: Vec::new(),
        },
    )?;
    drop(ingest);
    Ok(Some((fixup, pins)))
}

/// The directory below the last of `layers` that says what `path` is like.
fn described_below(layers: &[Layer], path: &str) -> Option<OwnedFd> {
    for layer in layers.iter().rev() {
        match layer.open(path) {
            Ok(fd) if layer.implicit.contains(path) => {
                let mut value = [0; 1];
                // What lies below an opaque directory is hidden.
                if rustix::fs::fgetxattr(&fd, "trusted.overlay.opaque", &mut value)
                    .is_ok_and(|_| value == *b"y")
                {
                    return None;
                }
            }
            Ok(fd) => return Some(fd),
            Err(Errno::NOENT) => {}
            // A whiteout, a file or a link is in the way and hides what lies below.
            Err(_) => return None,
        }
    }
    None
}

fn fill(target: &Path, wanted: &BTreeMap<String, OwnedFd>) -> Result<u64, Error> {
    let at = |e: Errno| Error::io("make directories above the layers in", target, e);
    let root = rustix::fs::openat(CWD, target, DIRECTORY, Mode::empty()).map_err(at)?;
    let mut made = Vec::new();
    let mut bytes = 0;
    // In this order parents come before their children.
    for (path, like) in wanted {
        let fd = if path.is_empty() {
            root.try_clone()
                .map_err(|e| Error::io("duplicate a descriptor of", target, e))?
        } else {
            let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
            let parent = berth_beneath::openat2(&root, parent, DIRECTORY, Mode::empty(), BENEATH)
                .map_err(at)?;
            rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(at)?;
            rustix::fs::openat(&parent, name, DIRECTORY, Mode::empty()).map_err(at)?
        };
        made.push((fd, rustix::fs::fstat(like).map_err(at)?));
    }
    for (fd, like) in &made {
        let time = Timespec {
            tv_sec: like.st_mtime,
            tv_nsec: like.st_mtime_nsec as _,
        };
        rustix::fs::fchown(
            fd,
            Some(Uid::from_raw(like.st_uid)),
            Some(Gid::from_raw(like.st_gid)),
        )
        .and_then(|()| rustix::fs::fchmod(fd, Mode::from_raw_mode(like.st_mode & 0o7777)))
        .and_then(|()| {
            rustix::fs::futimens(
                fd,
                &Timestamps {
                    last_access: time,
                    last_modification: time,
                },
            )
        })
        .map_err(at)?;
        bytes += like.st_blocks as u64 * 512;
    }
    Ok(bytes)
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
