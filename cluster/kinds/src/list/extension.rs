use super::*;
use crate::{columns, defaults};

pub(super) const KINDS: &[Kind] = &[Kind {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    storage: "apiextensions.k8s.io/customresourcedefinitions",
    subresources: ONLY_STATUS,
    columns: columns::CREATED_AT,
    default: defaults::custom_resource_definition,
    ..KIND
}];
