//! authentication, authorization, rbac, certificates.

use super::*;
use crate::{columns, defaults, prepare, validate};

const AUTHENTICATION: Kind = Kind {
    group: "authentication.k8s.io",
    namespaced: false,
    verbs: CREATE,
    ..KIND
};
const AUTHORIZATION: Kind = Kind {
    group: "authorization.k8s.io",
    namespaced: false,
    verbs: CREATE,
    ..KIND
};
const RBAC: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    ..KIND
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        ..AUTHENTICATION
    },
    Kind {
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        ..AUTHENTICATION
    },
    Kind {
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        validate: validate::access_review,
        ..AUTHORIZATION
    },
    Kind {
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        validate: validate::access_review,
        ..AUTHORIZATION
    },
    Kind {
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        ..AUTHORIZATION
    },
    Kind {
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        validate: validate::access_review,
        ..AUTHORIZATION
    },
    Kind {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        namespaced: false,
        storage: "certificatesigningrequests",
        subresources: &[
            Subresource {
                name: "approval",
                verbs: GET_PATCH_UPDATE,
                kind: None,
            },
            STATUS,
        ],
        selectable: &["spec.signerName"],
        columns: columns::CERTIFICATE_SIGNING_REQUEST,
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_request,
        validate: validate::certificate_signing_request,
        ..KIND
    },
    Kind {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        storage: "clusterrolebindings",
        columns: columns::ROLE_BINDING,
        default: defaults::role_binding,
        validate: validate::cluster_role_binding,
        validate_update: validate::binding_update,
        ..RBAC
    },
    Kind {
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        namespaced: false,
        storage: "clusterroles",
        columns: columns::CREATED_AT,
        validate: validate::cluster_role,
        ..RBAC
    },
    Kind {
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        storage: "rolebindings",
        columns: columns::ROLE_BINDING,
        default: defaults::role_binding,
        validate: validate::role_binding,
        validate_update: validate::binding_update,
        ..RBAC
    },
    Kind {
        kind: "Role",
        plural: "roles",
        singular: "role",
        storage: "roles",
        columns: columns::CREATED_AT,
        validate: validate::role,
        ..RBAC
    },
];
