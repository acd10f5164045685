//! The annotation of client-side apply, which `kubectl apply --server-side` takes over from and keeps up to date.

use serde_json::{Map, Value};

use crate::{
    apply::{Conflict, Conflicts, Typed},
    fields::FieldSet,
    typed::{Duplicates, compare, field_set, validate},
};

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Of all annotations of an object together; one that does not fit is left out.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("annotations")?.as_object()
}

fn last_applied(object: &Value) -> Option<&str> {
    let text = annotations(object)?.get(ANNOTATION)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

/// Of `conflicts`, those that are not for fields that client-side apply had set and that still are as it set them. `None`: it has set nothing, or nobody can tell what.
pub(crate) fn not_last_applied(
    conflicts: &Conflicts,
    live: &Typed<'_>,
    api_version: &str,
) -> Option<Vec<Conflict>> {
    let fields = still_as_applied(live, api_version)?;
    let others = conflicts.0.iter();
    Some(
        others
            .filter(|conflict| !fields.contains(&conflict.path))
            .cloned()
            .collect(),
    )
}

fn still_as_applied(live: &Typed<'_>, api_version: &str) -> Option<FieldSet> {
    let applied: Value = serde_json::from_str(last_applied(&live.object)?).ok()?;
    if applied.get("apiVersion").and_then(Value::as_str) != Some(api_version) {
        return None;
    }
    validate(&live.object, live.ty, Duplicates::Refused).ok()?;
    validate(&applied, live.ty, Duplicates::Refused).ok()?;
    let compared = compare(&applied, &live.object, live.ty).ok()?;
    let fields = field_set(&applied, live.ty).ok()?;
    Some(
        fields
            .difference(&compared.modified)
            .difference(&compared.added)
            .difference(&compared.removed),
    )
}

/// Writes `applied` into the annotation, where `object` has it.
pub(crate) fn refresh(object: &mut Value, applied: &Value) {
    if last_applied(object).is_none() {
        return;
    }
    let mut applied = applied.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(ANNOTATION);
    }
    let text = as_go_writes(&applied);
    let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") else {
        return;
    };
    annotations.insert(ANNOTATION.to_owned(), text.into());
    let bytes: usize = annotations
        .iter()
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > MAX_ANNOTATIONS_BYTES {
        annotations.remove(ANNOTATION);
    }
}

/// What HTML would read is escaped, and a line ends it: kubectl compares the text.
fn as_go_writes(value: &Value) -> String {
    let mut out = String::new();
    // These are within strings alone.
    for char in value.to_string().chars() {
        match char {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            char => out.push(char),
        }
    }
    out.push('\n');
    out
}
