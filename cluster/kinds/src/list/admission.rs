//! admissionregistration. Its policies (CEL) are not served: what is not enforced is not taken.

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
];
