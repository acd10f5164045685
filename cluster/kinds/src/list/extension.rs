use super::*;
use crate::{columns, defaults, prepare, validate};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "apiregistration.k8s.io",
        kind: "APIService",
        plural: "apiservices",
        singular: "apiservice",
        categories: &["api-extensions"],
        namespaced: false,
        storage: "apiregistration.k8s.io/apiservices",
        subresources: ONLY_STATUS,
        columns: columns::API_SERVICE,
        default: defaults::api_service,
        prepare_create: prepare::create_api_service,
        prepare_update: prepare::update_api_service,
        validate: validate::api_service,
        ..KIND
    },
    Kind {
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
        prepare_create: prepare::create_definition,
        prepare_update: prepare::update,
        validate: validate::custom_resource_definition,
        validate_update: validate::custom_resource_definition_update,
        ..KIND
    },
];
