use super::*;
use crate::{columns, defaults, prepare, validate};

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
        columns: columns::CSI_DRIVER,
        default: defaults::csi_driver,
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_generation,
        validate: validate::csi_driver,
        ..STORAGE
    },
    Kind {
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        storage: "csinodes",
        columns: columns::CSI_NODE,
        validate: validate::csi_node,
        ..STORAGE
    },
    Kind {
        kind: "CSIStorageCapacity",
        plural: "csistoragecapacities",
        singular: "csistoragecapacity",
        namespaced: true,
        storage: "csistoragecapacities",
        columns: columns::CSI_STORAGE_CAPACITY,
        default: defaults::csi_storage_capacity,
        validate: validate::csi_storage_capacity,
        ..STORAGE
    },
    Kind {
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        storage: "storageclasses",
        columns: columns::STORAGE_CLASS,
        default: defaults::storage_class,
        validate: validate::storage_class,
        validate_update: validate::storage_class_update,
        ..STORAGE
    },
    Kind {
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        storage: "volumeattachments",
        subresources: ONLY_STATUS,
        columns: columns::VOLUME_ATTACHMENT,
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_status,
        validate: validate::volume_attachment,
        validate_update: validate::spec_stays,
        ..STORAGE
    },
    Kind {
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        storage: "volumeattributesclasses",
        columns: columns::VOLUME_ATTRIBUTES_CLASS,
        validate: validate::volume_attributes_class,
        validate_update: validate::volume_attributes_class_update,
        ..STORAGE
    },
];
