//! admissionregistration: webhooks, and policies, of which there are none.

use super::*;
use crate::{columns, defaults, prepare, validate};

const WEBHOOKS: Kind = Kind {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    namespaced: false,
    columns: columns::WEBHOOKS,
    prepare_create: prepare::create_generation,
    prepare_update: prepare::update_whole,
    validate: validate::webhook_configuration,
    ..KIND
};

/// They are CEL. What is not enforced is not taken: they can be listed and watched, as kube-controller-manager does, and not made.
const POLICY: Kind = Kind {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    namespaced: false,
    verbs: &["get", "list", "watch"],
    ..KIND
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "MutatingWebhookConfiguration",
        plural: "mutatingwebhookconfigurations",
        singular: "mutatingwebhookconfiguration",
        storage: "mutatingwebhookconfigurations",
        default: defaults::mutating_webhooks,
        ..WEBHOOKS
    },
    Kind {
        kind: "ValidatingWebhookConfiguration",
        plural: "validatingwebhookconfigurations",
        singular: "validatingwebhookconfiguration",
        storage: "validatingwebhookconfigurations",
        default: defaults::validating_webhooks,
        ..WEBHOOKS
    },
    Kind {
        kind: "ValidatingAdmissionPolicy",
        plural: "validatingadmissionpolicies",
        singular: "validatingadmissionpolicy",
        storage: "validatingadmissionpolicies",
        ..POLICY
    },
    Kind {
        kind: "ValidatingAdmissionPolicyBinding",
        plural: "validatingadmissionpolicybindings",
        singular: "validatingadmissionpolicybinding",
        storage: "validatingadmissionpolicybindings",
        ..POLICY
    },
];
