//! Images: registry, content, unpack, snapshots, garbage collection.
//!
//! A pull streams: the bytes of a layer are hashed, decompressed, hashed again and unpacked as they come, several layers at a time; nothing
//! of it is visible before both digests are right. Invariant: no compressed blob is ever kept.

mod archive;
mod auth;
mod catalog;
pub mod checkpoint;
mod client;
mod digest;
mod error;
mod hosts;
mod implicit;
mod layer;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod remove;
mod snapshot;
mod space;
mod store;
mod tarstream;
mod untar;
#[cfg(test)]
mod untar_test;
mod usage;
mod volume;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_state::Ledger;

pub use client::Timeouts;
pub use error::{Error, ErrorKind};

#[derive(Debug, Clone)]
pub struct Config {
    /// Images, layers and snapshots live here (`<root>/image` of berthd).
    pub root: PathBuf,
    /// containerd's `hosts.toml` files: `<hosts_dir>/<registry host>/hosts.toml`.
    pub hosts_dir: PathBuf,
    /// Layers that are fetched and unpacked at a time, on the whole node; 1 to 64.
    pub max_parallel_layers: usize,
}

/// Credentials of one pull (CRI `AuthConfig`). Never shown by Debug.
#[derive(Clone, Default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// base64 of "user:password"
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(…)")
    }
}

/// An image whose layers are all here and verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: `sha256:…`.
    pub id: String,
    /// Canonical names with a tag: `docker.io/library/nginx:latest`.
    pub repo_tags: Vec<String>,
    /// Canonical names with a digest: `docker.io/library/nginx@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes of the image on disk (unpacked layers and configuration).
    pub size_bytes: u64,
    pub config: oci_spec::image::ImageConfiguration,
    pub pinned: bool,
}

/// A container's writable root filesystem, not mounted: these are overlayfs' own words.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub dir: PathBuf,
    pub upperdir: PathBuf,
    pub workdir: PathBuf,
    /// Topmost first, as overlayfs wants them.
    pub lowerdirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// A directory and what is used below it.
pub type FilesystemUsage = (PathBuf, Usage);

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerProgress {
    /// Digest of the compressed layer.
    pub digest: String,
    /// "waiting", "joined" (another pull fetches it), "downloading", "unpacking", "done" or "present" (it was here).
    pub stage: &'static str,
    pub done_bytes: u64,
    /// Compressed size.
    pub total_bytes: u64,
    /// Why nothing moves; empty while something does.
    pub stall: String,
}

/// Bytes of layers that came from registries since this process began, those of pulls that failed included.
pub fn downloaded_bytes() -> u64 {
    progress::downloaded_bytes()
}

/// The node's images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<store::Inner>,
}

/// Runs `work` on a thread of its own kind: nobody else waits for the disk.
async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Error::Worker {
                what: what.to_owned(),
                why: error.to_string(),
            })
        })
}

impl Store {
    /// Opens the store; removes what unfinished pulls left behind; a damaged image record costs that image only.
    pub async fn open(config: Config, ledger: Ledger) -> Result<Self, Error> {
        Self::open_with_timeouts(config, ledger, Timeouts::default()).await
    }

    /// As [`Self::open`], with other network timeouts than the default.
    pub async fn open_with_timeouts(
        config: Config,
        ledger: Ledger,
        timeouts: Timeouts,
    ) -> Result<Self, Error> {
        let inner = blocking("open the image store", move || {
            store::Inner::open(config, ledger, timeouts)
        })
        .await?;
        let inner = Arc::new(inner);
        inner.settle_later();
        Ok(Self { inner })
    }

    /// Pulls an image for this machine's platform. Joins a pull of the same image under way; goes on when this future is dropped
    /// only if another caller waits. `progress` is told of each change (at most ~10 a second).
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        progress: Option<tokio::sync::watch::Sender<Vec<LayerProgress>>>,
    ) -> Result<Arc<Image>, Error> {
        pull::pull(&self.inner, reference, auth, progress).await
    }

    /// Imports an OCI or docker archive (tar; plain, gzip, zstd) and returns its images. `name` names the image of an archive that has one.
    pub async fn import(
        &self,
        archive: &Path,
        name: Option<&str>,
    ) -> Result<Vec<Arc<Image>>, Error> {
        archive::import(&self.inner, archive, name).await
    }

    /// By ID, unambiguous beginning of an ID (8 digits or more), tag or digest reference; names resolve as users write them (`nginx`).
    pub fn resolve(&self, reference: &str) -> Result<Option<Arc<Image>>, Error> {
        Ok(self
            .inner
            .catalog()
            .resolve(reference)?
            .map(|entry| entry.image.clone()))
    }

    /// All images, by ID.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner
            .catalog()
            .images
            .values()
            .map(|entry| entry.image.clone())
            .collect()
    }

    /// Removes the image that the reference resolves to, with all its names: the kubelet and critest expect that of one name too. No such image is no error.
    /// Layers that a snapshot still uses stay until it goes.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let (inner, reference) = (self.inner.clone(), reference.to_owned());
        blocking("remove an image", move || inner.remove(&reference)).await
    }

    /// Makes the writable snapshot `key` (a container id) over the image's layers. Ledgered under `key`. Idempotent.
    pub fn prepare(&self, key: &str, image: &Image) -> Result<Snapshot, Error> {
        self.inner.prepare(key, image)
    }

    /// The image's layers for a mount without a writable one, topmost first and two at least (overlayfs wants that). They stay as
    /// long as the snapshot `key`, which is there already, be the image removed meanwhile or not. Idempotent.
    pub fn hold(&self, key: &str, image: &Image) -> Result<Vec<PathBuf>, Error> {
        self.inner.hold(key, image)
    }

    /// Removes the snapshot. Idempotent; never follows a link or crosses a mount.
    pub fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        self.inner.remove_snapshot(key)
    }

    /// Unpacks a layer into a snapshot in which nothing was written yet.
    pub fn fill_snapshot(
        &self,
        snapshot: &Snapshot,
        layer: impl std::io::BufRead,
    ) -> Result<(), Error> {
        untar::untar(layer, &snapshot.upperdir, "rootfs-diff.tar").map(drop)
    }

    /// Whether the image is no root of a container but holds a checkpoint, as `buildah` makes them of an archive for CRI-O.
    pub fn holds_checkpoint(&self, image: &Image) -> bool {
        self.inner.top_layer(image).is_some_and(|layer| {
            let is = |name: &str| layer.join(name).symlink_metadata();
            is("config.dump").is_ok_and(|meta| meta.is_file())
                && is("spec.dump").is_ok_and(|meta| meta.is_file())
                && is("checkpoint").is_ok_and(|meta| meta.is_dir())
        })
    }

    /// Where what is written in the snapshot lies: an overlay's upper directory.
    pub fn snapshot_upperdir(&self, key: &str) -> Result<PathBuf, Error> {
        self.inner.snapshot_upperdir(key)
    }

    /// Keys of all snapshots, so that their owners can be held against them after a crash.
    pub fn snapshots(&self) -> Vec<String> {
        self.inner.catalog().snapshots.keys().cloned().collect()
    }

    /// Bytes and inodes of a snapshot's upperdir; counted at most once a second.
    pub fn snapshot_usage(&self, key: &str) -> Result<Usage, Error> {
        self.inner.snapshot_usage(key)
    }

    /// Path and use of the image filesystem (layers) and of the container filesystem (snapshots).
    pub fn fs_info(&self) -> Result<(FilesystemUsage, FilesystemUsage), Error> {
        self.inner.fs_info()
    }
}
