//! networking, discovery.

use super::*;
use crate::{columns, defaults};

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
        ..KIND
    },
];
