//! How a patch changes an object: strategic merge, JSON patch (RFC 6902), merge patch (RFC 7386), and server-side apply with the fields that each manager owns.
//!
//! ```text
//! patch          JSON, merge and strategic merge patches: the object as it would be
//! apply          server-side apply: the object as it would be, with its managedFields
//! track_update   every other write: who owns what after it
//! keep_times     last of all: an object that has not changed is not written again
//! scale          managedFields of an object and of its scale
//! ```
//!
//! Nothing here knows a kind: lists are merged as the kind's [`Schema`] says. Hostile input is an error: a patch is as deep as JSON may be
//! ([`Limits`]), and no list is searched for each element of another.

mod apply;
mod error;
mod fields;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod json;
mod last_applied;
mod manage;
mod managed;
mod print;
mod reconcile;
mod scale;
mod strategic;
mod typed;

use berth_schema::{ObjectId, Schema};
use serde_json::Value;

pub use apply::{Conflict, Conflicts, Converted, Force, OneVersion, Versions};
pub use error::PatchError;
pub use fields::{FieldSet, FieldsError, PathElement, show_path};
pub use manage::{MAX_MANAGER_BYTES, Write, apply, manager_name, track_update};
pub use managed::{ManagedFieldsError, Manager, Operation, keep_times, validate_managed_fields};
pub use scale::{ReplicasPaths, parent_entries, scale_entries};
pub use typed::TypeErrors;

/// Of a PATCH request, by its Content-Type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    /// Parameters (`; charset=utf-8`) are not looked at. `None`: 415.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// What a patched object may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) depth: usize,
}

impl Limits {
    /// No deeper than `serde_json` reads: what is stored can be read again.
    const OF_OBJECTS: Self = Self { depth: 120 };

    fn too_deep(self) -> PatchError {
        let depth = self.depth;
        PatchError::TooLarge(format!(
            "the patched object would be nested deeper than {depth}"
        ))
    }
}

/// `live` as `body` changes it; of all but [`PatchType::Apply`], which is [`apply`]'s.
///
/// A strategic merge patch needs the form of the object: a custom resource has none of that kind, and takes no such patches (415).
/// Whether the result is an object of its kind is not looked at; nulls in it stand for fields that are not there, as in any request.
pub fn patch(
    kind: PatchType,
    schema: Option<(&Schema, ObjectId)>,
    live: &Value,
    body: &[u8],
) -> Result<Value, PatchError> {
    let limits = Limits::OF_OBJECTS;
    match (kind, schema) {
        (PatchType::Json, _) => json::json_patch(live, body, limits),
        (PatchType::Merge, _) => json::merge_patch(live, body),
        (PatchType::Strategic, Some((schema, id))) => {
            let patch: Value = serde_json::from_slice(body).map_err(PatchError::Decode)?;
            let (Value::Object(live), Value::Object(patch)) = (live, patch) else {
                return Err(PatchError::Malformed("invalid JSON document".to_owned()));
            };
            strategic::strategic_merge(schema, id, live, patch).map(Value::Object)
        }
        (PatchType::Strategic, None) => Err(PatchError::Unsupported(
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml".to_owned(),
        )),
        (PatchType::Apply, _) => Err(PatchError::Unsupported(
            "a server-side apply is no patch of this kind".to_owned(),
        )),
    }
}
