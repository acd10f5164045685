//! Writable layers of containers.

use std::{fs, io, path::PathBuf};

use berth_failpoint::site;
use berth_state::{
    Object,
    record::{self, Durability},
};
use rustix::fs::{Gid, Mode, Uid};

use crate::{
    FilesystemUsage, Image, Snapshot, Usage, catalog::SnapshotRecord, digest::Digest, error::Error,
    remove::remove_tree, store::Inner,
};

/// Longest key: container ids have 64 characters.
const MAX_KEY_BYTES: usize = 128;

fn checked(key: &str) -> Result<(), Error> {
    let refuse = |why: &str| {
        Err(Error::Key {
            key: key.chars().take(80).collect(),
            why: why.to_owned(),
        })
    };
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return refuse("it must have 1 to 128 characters");
    }
    if key.starts_with('.')
        || !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    {
        return refuse("it may have letters, digits, '_', '-' and '.', and no '.' first");
    }
    Ok(())
}

impl Inner {
    fn snapshot_dir(&self, key: &str) -> PathBuf {
        self.root().join("snapshots").join(key)
    }

    pub(crate) fn prepare(&self, key: &str, image: &Image) -> Result<Snapshot, Error> {
        checked(key)?;
        let id: Digest = image.id.parse().map_err(|why| Error::Reference {
            reference: image.id.clone(),
            why,
        })?;
        let dir = self.snapshot_dir(key);
        let (record, lowerdirs, is_new) = {
            let mut catalog = self.catalog();
            let (record, is_new) = match catalog.snapshots.get(key) {
                Some(record) if record.image == id => (record.clone(), false),
                Some(record) => {
                    return Err(Error::Key {
                        key: key.to_owned(),
                        why: format!(
                            "there is a snapshot of that name over image {}",
                            record.image
                        ),
                    });
                }
                None => {
                    let entry = catalog.images.get(&id).ok_or_else(|| Error::LayerGone {
                        id: image.id.clone(),
                        key: key.to_owned(),
                        layer: "(all)".to_owned(),
                    })?;
                    (
                        SnapshotRecord {
                            image: id.clone(),
                            layers: entry.record.all_layers().cloned().collect(),
                            volumes: vec![],
                        },
                        true,
                    )
                }
            };
            let mut lowerdirs = Vec::with_capacity(record.layers.len().max(1));
            for diff_id in record.layers.iter().rev() {
                let layer = catalog
                    .layers
                    .get(diff_id)
                    .ok_or_else(|| Error::LayerGone {
                        id: image.id.clone(),
                        key: key.to_owned(),
                        layer: diff_id.to_string(),
                    })?;
                let path = self.layer_dir(layer);
                // The same layer twice: overlayfs refuses that, and the upper one says all that it has to say.
                if !lowerdirs.contains(&path) {
                    lowerdirs.push(path);
                }
            }
            if lowerdirs.is_empty() {
                lowerdirs.push(self.root().join("empty"));
            }
            // From here on its layers stay.
            catalog.snapshots.insert(key.to_owned(), record.clone());
            (record, lowerdirs, is_new)
        };
        let snapshot = Snapshot {
            upperdir: dir.join("upper"),
            workdir: dir.join("work"),
            dir,
            lowerdirs,
        };
        let made = self.make_snapshot(key, &record, &snapshot);
        if made.is_err() && is_new {
            // What can't be undone now is in the ledger and goes with remove_snapshot.
            let _ = self.remove_snapshot(key);
        }
        made.map(|()| snapshot)
    }

    fn make_snapshot(
        &self,
        key: &str,
        record: &SnapshotRecord,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let at = |what: &str| {
            let what = format!("snapshot {key}: {what}");
            let dir = snapshot.dir.clone();
            move |e: io::Error| Error::io(what, dir, e)
        };
        self.ledger
            .intend(key, &Object::Snapshot(snapshot.dir.clone()))
            .map_err(at("write down"))?;
        site!("image.snapshot.intended").map_err(at("make"))?;
        record::write(
            &self.snapshot_record_path(key),
            record,
            Durability::PageCache,
        )?;
        site!("image.snapshot.recorded").map_err(at("make"))?;
        for dir in [&snapshot.dir, &snapshot.upperdir, &snapshot.workdir] {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(at("make directory")(error));
                }
                _ => {}
            }
        }
        site!("image.snapshot.made").map_err(at("make"))?;
        let (mode, uid, gid) = self.root_attributes(&snapshot.lowerdirs[0])?;
        rustix::fs::chown(
            &snapshot.upperdir,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
        )
        .map_err(|e| at("chown")(e.into()))?;
        rustix::fs::chmod(&snapshot.upperdir, Mode::from_raw_mode(mode))
            .map_err(|e| at("chmod")(e.into()))?;
        rustix::fs::chmod(&snapshot.dir, Mode::from_raw_mode(0o700))
            .map_err(|e| at("chmod")(e.into()))
    }

    pub(crate) fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        checked(key)?;
        let dir = self.snapshot_dir(key);
        remove_tree(&dir)?;
        let at = |what: &str| {
            let what = format!("snapshot {key}: {what}");
            let dir = dir.clone();
            move |e: io::Error| Error::io(what, dir, e)
        };
        site!("image.snapshot.removed").map_err(at("remove"))?;
        record::remove(&self.snapshot_record_path(key))?;
        site!("image.snapshot.unrecorded").map_err(at("remove"))?;
        let was_known = self.catalog().snapshots.remove(key).is_some();
        self.ledger
            .strike(key, &Object::Snapshot(dir.clone()))
            .map_err(at("strike off"))?;
        self.usage.forget(&dir);
        if was_known {
            self.collect();
        }
        Ok(())
    }

    pub(crate) fn top_layer(&self, image: &Image) -> Option<PathBuf> {
        let id: Digest = image.id.parse().ok()?;
        let catalog = self.catalog();
        let top = catalog.images.get(&id)?.record.layers.last()?;
        Some(self.layer_dir(catalog.layers.get(top)?))
    }

    pub(crate) fn snapshot_upperdir(&self, key: &str) -> Result<PathBuf, Error> {
        checked(key)?;
        if !self.catalog().snapshots.contains_key(key) {
            return Err(Error::NoSnapshot {
                key: key.to_owned(),
            });
        }
        Ok(self.snapshot_dir(key).join("upper"))
    }

    pub(crate) fn snapshot_usage(&self, key: &str) -> Result<Usage, Error> {
        checked(key)?;
        if !self.catalog().snapshots.contains_key(key) {
            return Err(Error::NoSnapshot {
                key: key.to_owned(),
            });
        }
        self.usage.of(&self.snapshot_dir(key))
    }

    pub(crate) fn fs_info(&self) -> Result<(FilesystemUsage, FilesystemUsage), Error> {
        let (mut images, keys) = {
            let catalog = self.catalog();
            let images = catalog
                .layers
                .values()
                .fold(Usage::default(), |sum, layer| Usage {
                    bytes: sum.bytes + layer.bytes,
                    inodes: sum.inodes + layer.inodes,
                });
            (
                images,
                catalog.snapshots.keys().cloned().collect::<Vec<_>>(),
            )
        };
        let records = self.usage.of(&self.root().join("records"))?;
        images = Usage {
            bytes: images.bytes + records.bytes,
            inodes: images.inodes + records.inodes,
        };
        let mut containers = Usage::default();
        for key in keys {
            // One that is just being removed counts no more.
            let usage = self.usage.of(&self.snapshot_dir(&key)).unwrap_or_default();
            containers = Usage {
                bytes: containers.bytes + usage.bytes,
                inodes: containers.inodes + usage.inodes,
            };
        }
        Ok((
            (self.root().to_owned(), images),
            (self.root().join("snapshots"), containers),
        ))
    }
}
