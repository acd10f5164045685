//! Every kind, a file a neighbourhood: what it is called, where it is kept, what can be done with it.

mod access;
mod admission;
mod core;
mod extension;
mod network;
mod node;
mod policy;
mod storage;
mod workload;

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value;

use crate::{
    Invalid,
    columns::{AGE, NAME},
    kind::{Kind, Subresource},
    validate,
};

/// Of kinds that are kept.
pub(crate) const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
pub(crate) const CREATE: &[&str] = &["create"];
pub(crate) const GET: &[&str] = &["get"];
pub(crate) const GET_LIST: &[&str] = &["get", "list"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

pub(crate) const IN_ALL: &[&str] = &["all"];

pub(crate) const STATUS: Subresource = Subresource {
    name: "status",
    verbs: GET_PATCH_UPDATE,
    kind: None,
};
pub(crate) const SCALE: Subresource = Subresource {
    name: "scale",
    verbs: GET_PATCH_UPDATE,
    kind: Some(("autoscaling", "v1", "Scale")),
};
pub(crate) const ONLY_STATUS: &[Subresource] = &[STATUS];
pub(crate) const SCALE_AND_STATUS: &[Subresource] = &[SCALE, STATUS];

/// What most kinds are: the others say in what they differ.
pub(crate) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: "",
    verbs: ALL,
    subresources: &[],
    columns: &[NAME, AGE],
    selectable: &[],
    default: nothing,
    prepare_create: nothing,
    prepare_update: keep,
    validate: valid,
    validate_create: valid,
    validate_update: validate::metadata_update,
    to_stored: nothing,
    from_stored: nothing,
};

pub(crate) fn nothing(_: &mut Value) {}
pub(crate) fn keep(_: &mut Value, _: &Value) {}
pub(crate) fn valid(_: &Value) -> Vec<Invalid> {
    Vec::new()
}
static KINDS: LazyLock<Box<[Kind]>> = LazyLock::new(|| {
    [
        core::KINDS,
        workload::KINDS,
        access::KINDS,
        admission::KINDS,
        network::KINDS,
        node::KINDS,
        policy::KINDS,
        storage::KINDS,
        extension::KINDS,
    ]
    .concat()
    .into()
});

type Names = HashMap<(&'static str, &'static str, &'static str), &'static Kind>;

static BY_KIND: LazyLock<Names> = LazyLock::new(|| {
    all()
        .iter()
        .map(|kind| ((kind.group, kind.version, kind.kind), kind))
        .collect()
});

static BY_PLURAL: LazyLock<Names> = LazyLock::new(|| {
    all()
        .iter()
        .map(|kind| ((kind.group, kind.version, kind.plural), kind))
        .collect()
});

/// All built-in kinds, those of a group and version together.
pub fn all() -> &'static [Kind] {
    &KINDS
}

/// By the kind's name, as objects say it.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    BY_KIND.get(&(group, version, kind)).copied()
}

/// By its plural, as paths say it.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    BY_PLURAL.get(&(group, version, plural)).copied()
}
