//! networking, discovery.

use super::*;

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
        ..NETWORKING
    },
    Kind {
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        storage: "ingress",
        subresources: ONLY_STATUS,
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
        ..NETWORKING
    },
    Kind {
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        storage: "networkpolicies",
        ..NETWORKING
    },
    Kind {
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        storage: "servicecidrs",
        subresources: ONLY_STATUS,
        ..NETWORKING
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        storage: "endpointslices",
        ..KIND
    },
];
