//! networking, discovery.

use super::*;
use crate::{columns, defaults, prepare, validate};

const NETWORKING: Kind = Kind {
    group: "networking.k8s.io",
    ..KIND
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        storage: "ingressclasses",
        columns: columns::INGRESS_CLASS,
        default: defaults::ingress_class,
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_generation,
        validate: validate::ingress_class,
        validate_update: validate::ingress_class_update,
        ..NETWORKING
    },
    Kind {
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        storage: "ingress",
        subresources: ONLY_STATUS,
        columns: columns::INGRESS,
        prepare_create: prepare::create,
        prepare_update: prepare::update,
        validate: validate::ingress,
        validate_create: validate::ingress_create,
        ..NETWORKING
    },
    Kind {
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        namespaced: false,
        storage: "ipaddresses",
        selectable: &[
            "spec.parentRef.name",
            "spec.parentRef.namespace",
            "spec.parentRef.resource",
        ],
        columns: columns::IP_ADDRESS,
        validate: validate::ip_address,
        validate_update: validate::ip_address_update,
        ..NETWORKING
    },
    Kind {
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        storage: "networkpolicies",
        columns: columns::NETWORK_POLICY,
        default: defaults::network_policy,
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_generation,
        validate: validate::network_policy,
        ..NETWORKING
    },
    Kind {
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        storage: "servicecidrs",
        subresources: ONLY_STATUS,
        columns: columns::SERVICE_CIDR,
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_status,
        validate: validate::service_cidr,
        ..NETWORKING
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        storage: "endpointslices",
        columns: columns::ENDPOINT_SLICE,
        default: defaults::endpoint_slice,
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_whole,
        validate: validate::endpoint_slice,
        validate_update: validate::endpoint_slice_update,
        ..KIND
    },
];
