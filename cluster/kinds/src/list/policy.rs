//! policy, scheduling.

use super::*;

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        storage: "poddisruptionbudgets",
        subresources: ONLY_STATUS,
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
        ..KIND
    },
];
