//! coordination, node, events, metrics, and devices (resource.k8s.io).

use super::*;
use crate::{columns, defaults, prepare, validate};

const METRICS: Kind = Kind {
    group: "metrics.k8s.io",
    version: "v1beta1",
    verbs: GET_LIST,
    ..KIND
};
const RESOURCE: Kind = Kind {
    group: "resource.k8s.io",
    ..KIND
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        storage: "leases",
        columns: columns::LEASE,
        validate: validate::lease,
        ..KIND
    },
    Kind {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        namespaced: false,
        storage: "runtimeclasses",
        columns: columns::RUNTIME_CLASS,
        default: defaults::runtime_class,
        validate: validate::runtime_class,
        validate_update: validate::runtime_class_update,
        ..KIND
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        storage: "events",
        selectable: &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        columns: columns::EVENT,
        validate: validate::new_event,
        to_stored: prepare::event_to_core,
        from_stored: prepare::event_from_core,
        ..KIND
    },
    Kind {
        kind: "NodeMetrics",
        plural: "nodes",
        singular: "node",
        namespaced: false,
        columns: columns::NODE_METRICS,
        ..METRICS
    },
    Kind {
        kind: "PodMetrics",
        plural: "pods",
        singular: "pod",
        columns: columns::POD_METRICS,
        ..METRICS
    },
    Kind {
        kind: "DeviceClass",
        plural: "deviceclasses",
        singular: "deviceclass",
        namespaced: false,
        storage: "deviceclasses",
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_generation,
        validate: validate::cluster_subdomain,
        ..RESOURCE
    },
    Kind {
        kind: "ResourceClaim",
        plural: "resourceclaims",
        singular: "resourceclaim",
        storage: "resourceclaims",
        subresources: ONLY_STATUS,
        columns: columns::RESOURCE_CLAIM,
        default: defaults::resource_claim,
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_status,
        validate: validate::subdomain,
        ..RESOURCE
    },
    Kind {
        kind: "ResourceClaimTemplate",
        plural: "resourceclaimtemplates",
        singular: "resourceclaimtemplate",
        storage: "resourceclaimtemplates",
        default: defaults::resource_claim_template,
        validate: validate::subdomain,
        validate_update: validate::spec_stays,
        ..RESOURCE
    },
    Kind {
        kind: "ResourceSlice",
        plural: "resourceslices",
        singular: "resourceslice",
        namespaced: false,
        storage: "resourceslices",
        selectable: &["spec.nodeName", "spec.driver"],
        columns: columns::RESOURCE_SLICE,
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_generation,
        validate: validate::cluster_subdomain,
        ..RESOURCE
    },
];
