//! admissionregistration: webhooks, and policies that validate.

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

const POLICY: Kind = Kind {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    namespaced: false,
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
        subresources: ONLY_STATUS,
        columns: columns::VALIDATING_ADMISSION_POLICY,
        default: defaults::validating_admission_policy,
        prepare_create: prepare::create,
        prepare_update: prepare::update,
        validate: validate::validating_admission_policy,
        ..POLICY
    },
    Kind {
        kind: "ValidatingAdmissionPolicyBinding",
        plural: "validatingadmissionpolicybindings",
        singular: "validatingadmissionpolicybinding",
        storage: "validatingadmissionpolicybindings",
        columns: columns::VALIDATING_ADMISSION_POLICY_BINDING,
        default: defaults::validating_admission_policy_binding,
        prepare_create: prepare::create_generation,
        prepare_update: prepare::update_whole,
        validate: validate::validating_admission_policy_binding,
        ..POLICY
    },
];
