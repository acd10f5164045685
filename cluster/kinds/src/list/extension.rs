use super::*;

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
    ..KIND
}];
