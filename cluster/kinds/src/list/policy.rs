//! policy, scheduling.

use super::*;
use crate::{columns, defaults, prepare, validate};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        storage: "poddisruptionbudgets",
        subresources: ONLY_STATUS,
        columns: columns::POD_DISRUPTION_BUDGET,
        prepare_create: prepare::create,
        prepare_update: prepare::update,
        validate: validate::pod_disruption_budget,
        ..KIND
    },
    Kind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        namespaced: false,
        storage: "priorityclasses",
        columns: columns::PRIORITY_CLASS,
        default: defaults::priority_class,
        prepare_create: prepare::create_generation,
        validate: validate::priority_class,
        validate_update: validate::priority_class_update,
        ..KIND
    },
];
