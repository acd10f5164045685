use serde_json::{Map, Value, json};

use super::{container, storage::claim_spec};
use crate::{
    quantity::canonicalize_one,
    write::{absent, each, zero},
};

/// 0644, as JSON has it.
const MODE: i64 = 0o644;

/// What a volume can come from; one that comes from nowhere is empty at first.
const SOURCES: [&str; 30] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

pub(super) fn volume(volume: &mut Map<String, Value>) {
    if !SOURCES
        .iter()
        .any(|source| volume.get(*source).is_some_and(|value| !value.is_null()))
    {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(Value::Object(source)) = volume.get_mut(source) {
            absent(source, "defaultMode", MODE);
        }
    }
    if let Some(Value::Object(files)) = volume.get_mut("downwardAPI") {
        each(files, "items").for_each(container::selectors);
    }
    if let Some(Value::Object(projected)) = volume.get_mut("projected") {
        for source in each(projected, "sources") {
            if let Some(Value::Object(token)) = source.get_mut("serviceAccountToken") {
                absent(token, "expirationSeconds", 3600);
            }
            if let Some(Value::Object(files)) = source.get_mut("downwardAPI") {
                each(files, "items").for_each(container::selectors);
            }
        }
    }
    if let Some(Value::Object(path)) = volume.get_mut("hostPath") {
        absent(path, "type", "");
    }
    if let Some(Value::Object(empty)) = volume.get_mut("emptyDir") {
        canonicalize_one(empty.get_mut("sizeLimit"));
    }
    if let Some(Value::Object(image)) = volume.get_mut("image") {
        container::image_pull_policy(image, "reference", "pullPolicy");
    }
    if let Some(spec) = volume
        .get_mut("ephemeral")
        .and_then(|source| source.pointer_mut("/volumeClaimTemplate/spec"))
        .and_then(Value::as_object_mut)
    {
        claim_spec(spec);
    }
    devices(volume);
}

/// Of volumes that are devices or shares elsewhere; persistent volumes have the same sources.
pub(super) fn devices(source: &mut Map<String, Value>) {
    if let Some(Value::Object(iscsi)) = source.get_mut("iscsi") {
        zero(iscsi, "iscsiInterface", "default");
    }
    if let Some(Value::Object(rbd)) = source.get_mut("rbd") {
        zero(rbd, "pool", "rbd");
        zero(rbd, "user", "admin");
        zero(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(Value::Object(disk)) = source.get_mut("azureDisk") {
        absent(disk, "cachingMode", "ReadWrite");
        absent(disk, "fsType", "ext4");
        absent(disk, "readOnly", false);
        absent(disk, "kind", "Shared");
    }
    if let Some(Value::Object(volume)) = source.get_mut("scaleIO") {
        zero(volume, "storageMode", "ThinProvisioned");
        zero(volume, "fsType", "xfs");
    }
}
