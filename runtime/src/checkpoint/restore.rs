//! A container whose image is the archive of a checkpoint: CreateContainer with an absolute path for an image.
//!
//! The archive says which processes, which memory, which changed files; everything else is the request's (SEC-IMG-14). Of what the
//! archive says of itself one word is read: the id of the image that its files are changes of, which must be here.

use std::{
    fs::{self, File},
    io::{BufReader, Seek},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_image::{Image, Snapshot, checkpoint::Places};
use berth_proto::shim::v1::pod::CreateOptions;
use serde::Deserialize;

use super::{Scratch, criu};
use crate::{error::Error, node::Node};

/// CRIU's time for a restore. The kubelet gives up on a create after two minutes.
const TIMEOUT_MS: u64 = 50_000;
const ID_PREFIX: &str = "sha256:";

/// An archive that a container is to be made from.
#[derive(Debug, Clone)]
pub struct Archive {
    path: PathBuf,
    file: Arc<File>,
}

/// What of `config.dump` is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    rootfs_image_ref: String,
    #[serde(default)]
    rootfs_image_name: String,
}

/// Whether an image's name is a path: references never begin so.
pub fn is_path(image: &str) -> bool {
    image.starts_with('/')
}

/// Opens an archive and finds the image that it builds on.
pub fn open(node: &Node, path: &str) -> Result<(Archive, Arc<Image>), Error> {
    let shown: String = path.chars().take(256).collect();
    let wrong =
        |why: String| Error::InvalidArgument(format!("checkpoint archive {shown:?}: {why}"));
    if path.contains('\0') {
        return Err(wrong("its path has a NUL in it".into()));
    }
    let path = Path::new(path);
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path)
        .map_err(|e| wrong(e.to_string()))?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(wrong("it is no regular file".into()));
    }
    // Before anything is read: without it nothing can come of it.
    criu(node)?;
    let text = berth_image::checkpoint::config(BufReader::new(&file))?;
    let config: Config =
        serde_json::from_slice(&text).map_err(|e| wrong(format!("config.dump: {e}")))?;
    let id = &config.rootfs_image_ref;
    // By its digest and nothing else: a name could be any image's.
    let digest = id.strip_prefix(ID_PREFIX).unwrap_or_default();
    if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong(
            "it does not name the image that it builds on by its id".into(),
        ));
    }
    let image = node.images.resolve(id)?.ok_or_else(|| {
        let name: String = config.rootfs_image_name.chars().take(256).collect();
        Error::FailedPrecondition(format!(
            "checkpoint archive {shown:?} builds on image {id}, which is not here: pull it first (it was called {name:?})"
        ))
    })?;
    let archive = Archive {
        path: path.to_owned(),
        file: Arc::new(file),
    };
    Ok((archive, image))
}

/// An archive unpacked for one container; gone when this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    scratch: Scratch,
    criu: PathBuf,
}

impl Unpacked {
    /// Puts the changed files into the container's new snapshot, and CRIU's images where the shim finds them.
    pub fn make(
        node: &Node,
        id: &str,
        archive: &Archive,
        snapshot: &Snapshot,
    ) -> Result<Self, Error> {
        let criu = criu(node)?;
        let scratch = Scratch::make(node, id)?;
        let places = Places {
            images: scratch.images(),
            diff: scratch.diff(),
        };
        let mut file = &*archive.file;
        file.rewind().map_err(Error::io("read", &archive.path))?;
        berth_image::checkpoint::unpack(BufReader::new(file), &places)?;
        if places.diff.exists() {
            let diff = File::open(&places.diff).map_err(Error::io("read", &places.diff))?;
            node.images.fill_snapshot(snapshot, BufReader::new(diff))?;
            let _ = fs::remove_file(&places.diff);
        }
        Ok(Self { scratch, criu })
    }

    pub fn images(&self) -> PathBuf {
        self.scratch.images()
    }

    pub fn tell(&self, options: &mut CreateOptions) {
        options.criu = self.criu.display().to_string();
        options.restore_work_path = self.scratch.work().display().to_string();
        options.restore_timeout_ms = TIMEOUT_MS;
    }
}
