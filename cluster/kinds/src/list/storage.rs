use super::*;

const STORAGE: Kind = Kind {
    group: "storage.k8s.io",
    namespaced: false,
    ..KIND
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "CSIDriver",
        plural: "csidrivers",
        singular: "csidriver",
        storage: "csidrivers",
        ..STORAGE
    },
    Kind {
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        storage: "csinodes",
        ..STORAGE
    },
    Kind {
        kind: "CSIStorageCapacity",
        plural: "csistoragecapacities",
        singular: "csistoragecapacity",
        namespaced: true,
        storage: "csistoragecapacities",
        ..STORAGE
    },
    Kind {
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        storage: "storageclasses",
        ..STORAGE
    },
    Kind {
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        storage: "volumeattachments",
        subresources: ONLY_STATUS,
        ..STORAGE
    },
    Kind {
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        storage: "volumeattributesclasses",
        ..STORAGE
    },
];
