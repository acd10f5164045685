//! Images as volumes: their layers without a writable one above.

use std::path::PathBuf;

use berth_state::record::{self, Durability};

use crate::{Image, digest::Digest, error::Error, store::Inner};

impl Inner {
    /// The layers of the image, topmost first; they stay while the snapshot `key` does, be the image removed or not.
    pub(crate) fn hold(&self, key: &str, image: &Image) -> Result<Vec<PathBuf>, Error> {
        let id: Digest = image.id.parse().map_err(|why| Error::Reference {
            reference: image.id.clone(),
            why,
        })?;
        let gone = |layer: &str| Error::LayerGone {
            id: image.id.clone(),
            key: key.to_owned(),
            layer: layer.to_owned(),
        };
        let mut catalog = self.catalog();
        let entry = catalog.images.get(&id).ok_or_else(|| gone("(all)"))?;
        let layers: Vec<Digest> = entry.record.all_layers().cloned().collect();
        let mut lowerdirs = Vec::with_capacity(layers.len() + 1);
        for diff_id in layers.iter().rev() {
            let layer = catalog.layers.get(diff_id);
            let path = self.layer_dir(layer.ok_or_else(|| gone(&diff_id.to_string()))?);
            if !lowerdirs.contains(&path) {
                lowerdirs.push(path);
            }
        }
        let snapshot = catalog
            .snapshots
            .get_mut(key)
            .ok_or_else(|| Error::NoSnapshot {
                key: key.to_owned(),
            })?;
        let mut changed = snapshot.clone();
        for layer in layers {
            if !changed.volumes.contains(&layer) {
                changed.volumes.push(layer);
            }
        }
        if changed.volumes.len() != snapshot.volumes.len() {
            // Under the catalog's lock: nothing collects a layer between the look and the record.
            record::write(
                &self.snapshot_record_path(key),
                &changed,
                Durability::PageCache,
            )?;
            *snapshot = changed;
        }
        // Without an upper directory overlayfs wants two lower ones.
        if lowerdirs.len() < 2 {
            lowerdirs.push(self.root().join("empty"));
        }
        Ok(lowerdirs)
    }
}
