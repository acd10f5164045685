//! Who owns which field: metadata.managedFields of all writes.

use std::sync::LazyLock;

use berth_patch::{FieldSet, OneVersion, Write, track_update};
use berth_schema::{GroupVersionKind, ObjectId, Schema};
use serde_json::Value;

use crate::{api::Actor, body::kind_of, catalog::Resource, clock, write::Part};

static NOTHING: LazyLock<FieldSet> = LazyLock::new(FieldSet::default);
static STATUS: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of_fields(&[&["status"]]));
static SPEC: LazyLock<FieldSet> =
    LazyLock::new(|| FieldSet::of_fields(&[&["spec"], &["metadata", "labels"]]));

/// What a write to `part` never changes, whatever is sent.
pub fn reset(resource: &Resource, part: Part) -> &'static FieldSet {
    match part {
        Part::Status => &SPEC,
        Part::Main if resource.subresource("status").is_some() => &STATUS,
        _ => &NOTHING,
    }
}

pub fn schema<'a>(
    resource: &'a Resource,
    kind: &GroupVersionKind,
) -> Option<(&'a Schema, ObjectId)> {
    if let Some(custom) = resource.custom() {
        return Some((custom.schema.schema(), custom.schema.id()));
    }
    let schema = Schema::built_in();
    schema.kind(kind).map(|id| (schema, id))
}

/// Writes down that `actor` has made of `old` (which stays as it is) what `new` is.
pub fn track(
    resource: &Resource,
    actor: &Actor,
    part: Part,
    old: Option<&mut Value>,
    new: &mut Value,
) {
    // An apply has done so itself.
    if actor.applies {
        return;
    }
    let kind = kind_of(resource);
    let now = clock::time(clock::now());
    let write = Write {
        schema: schema(resource, &kind),
        kind: &kind,
        versions: &OneVersion,
        subresource: part.subresource(),
        reset: reset(resource, part),
        manager: &actor.manager,
        now: &now,
    };
    track_update(&write, old, new);
}
