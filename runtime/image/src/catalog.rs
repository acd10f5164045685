//! What is in the store: images, their names, layers, snapshots; in memory, with a record on disk for each.
//!
//! # Synchronization
//! `Catalog` sits behind one mutex that is held for look-ups and for small file operations (a rename, a record in the page cache), never
//! for a walk, a removal of a tree or an fsync. Whoever changes image records holds `Inner::commit` around reading and writing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Image,
    digest::Digest,
    error::Error,
    manifest,
    reference::{Version, Wanted},
};

/// An image on disk: `records/images/<hex of the id>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    /// The configuration as it was pulled: its digest is the id.
    pub(crate) config: String,
    /// Diff IDs, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// A layer of directories only, above the others; see `implicit.rs`.
    pub(crate) fixup: Option<Digest>,
    /// Canonical tags and when each was set (ns since 1970): if two images claim one after a crash, the later one has it.
    pub(crate) tags: BTreeMap<String, u64>,
    /// Canonical names with a digest.
    pub(crate) digests: BTreeSet<String>,
    /// Digests of manifests that lead here: a re-pull ends at the first request.
    pub(crate) manifests: BTreeSet<Digest>,
    /// The boot in which it was written if its layers may not be on the disk yet. After a power cut it is no image (REL-12).
    pub(crate) unsynced_boot: Option<String>,
}

/// A layer on disk: `records/layers/<hex of the diff ID>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    /// Its directory below `l/`: short, because overlayfs' options are one page.
    pub(crate) dir: String,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories that the layer uses without describing them.
    pub(crate) implicit: Vec<String>,
}

/// A snapshot on disk: `records/snapshots/<key>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) image: Digest,
    /// Diff IDs, lowest first; they stay while the snapshot does.
    pub(crate) layers: Vec<Digest>,
    /// Diff IDs of images that are mounted beside it; they stay, too.
    #[serde(default)]
    pub(crate) volumes: Vec<Digest>,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: ImageRecord,
    pub(crate) image: Arc<Image>,
}

#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) images: BTreeMap<Digest, Entry>,
    tags: HashMap<String, Digest>,
    digests: HashMap<String, Digest>,
    manifests: HashMap<Digest, Digest>,
    pub(crate) layers: HashMap<Digest, LayerRecord>,
    pub(crate) snapshots: HashMap<String, SnapshotRecord>,
    /// Layers that a pull under way needs, and how many do.
    pub(crate) pins: HashMap<Digest, usize>,
}

impl ImageRecord {
    pub(crate) fn all_layers(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().chain(&self.fixup)
    }
}

impl Catalog {
    /// Makes `record` what is known of its image.
    pub(crate) fn put(&mut self, record: ImageRecord) -> Result<Arc<Image>, Error> {
        let (config, _) = manifest::parse_config(
            &format!("image {}", record.id),
            record.config.as_bytes(),
            None,
        )?;
        self.forget(&record.id);
        let layers: u64 = record
            .all_layers()
            .filter_map(|l| self.layers.get(l))
            .map(|l| l.bytes)
            .sum();
        let image = Arc::new(Image {
            id: record.id.to_string(),
            repo_tags: record.tags.keys().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size_bytes: layers + record.config.len() as u64,
            config,
            pinned: false,
        });
        for tag in record.tags.keys() {
            self.tags.insert(tag.clone(), record.id.clone());
        }
        for name in &record.digests {
            self.digests.insert(name.clone(), record.id.clone());
        }
        for digest in &record.manifests {
            self.manifests.insert(digest.clone(), record.id.clone());
        }
        self.images.insert(
            record.id.clone(),
            Entry {
                record,
                image: image.clone(),
            },
        );
        Ok(image)
    }

    pub(crate) fn forget(&mut self, id: &Digest) -> Option<Entry> {
        let entry = self.images.remove(id)?;
        for tag in entry.record.tags.keys() {
            if self.tags.get(tag) == Some(id) {
                self.tags.remove(tag);
            }
        }
        for name in &entry.record.digests {
            if self.digests.get(name) == Some(id) {
                self.digests.remove(name);
            }
        }
        for digest in &entry.record.manifests {
            if self.manifests.get(digest) == Some(id) {
                self.manifests.remove(digest);
            }
        }
        Some(entry)
    }

    pub(crate) fn tag_owner(&self, tag: &str) -> Option<&Digest> {
        self.tags.get(tag)
    }

    pub(crate) fn by_manifest(&self, digest: &Digest) -> Option<&Entry> {
        self.images.get(self.manifests.get(digest)?)
    }

    pub(crate) fn resolve(&self, reference: &str) -> Result<Option<&Entry>, Error> {
        let wanted = Wanted::parse(reference)?;
        if let Some(id) = &wanted.id {
            return Ok(self.images.get(id));
        }
        if let Some(name) = &wanted.name {
            let names = match name.version {
                Version::Tag(_) => &self.tags,
                Version::Digest(_) => &self.digests,
            };
            if let Some(id) = names.get(&name.to_string()) {
                return Ok(self.images.get(id));
            }
        }
        let Some(prefix) = wanted.id_prefix else {
            return Ok(None);
        };
        let mut found = self
            .images
            .values()
            .filter(|entry| entry.record.id.hex().starts_with(&prefix));
        let first = found.next();
        match found.count() {
            0 => Ok(first),
            more => Err(Error::AmbiguousId {
                prefix,
                count: more + 1,
            }),
        }
    }

    /// Layers that no image, snapshot or pull needs; they are no longer known afterwards.
    pub(crate) fn take_unowned(&mut self) -> Vec<LayerRecord> {
        let owned: BTreeSet<&Digest> = self
            .images
            .values()
            .flat_map(|e| e.record.all_layers())
            .chain(
                self.snapshots
                    .values()
                    .flat_map(|s| s.layers.iter().chain(&s.volumes)),
            )
            .chain(self.pins.keys())
            .collect();
        let unowned: Vec<Digest> = self
            .layers
            .keys()
            .filter(|diff_id| !owned.contains(diff_id))
            .cloned()
            .collect();
        unowned
            .iter()
            .filter_map(|diff_id| self.layers.remove(diff_id))
            .collect()
    }
}
