use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    DIRECTIVE, ListForm, as_element, malformed, merge_map, no_merge_key, order, unknown_directive,
};
use crate::{error::PatchError, print};

/// Of all elements of a list, which must be of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementKind {
    Map,
    Scalar,
}

pub(super) fn element_kind(lists: &[&[Value]]) -> Result<ElementKind, PatchError> {
    let mut first: Option<&Value> = None;
    for value in lists.iter().copied().flatten() {
        if value.is_array() {
            return Err(PatchError::NotApplicable(
                "lists of lists are not supported".to_owned(),
            ));
        }
        let same = first.is_none_or(|first| print::type_name(first) == print::type_name(value));
        if !same || value.is_null() {
            let lists: Vec<_> = lists.iter().map(|list| print::plain_list(list)).collect();
            return Err(malformed(format!(
                "list element types are not identical: [{}]",
                lists.join(" ")
            )));
        }
        first = Some(value);
    }
    match first {
        None => Err(malformed("no elements in any of the given slices")),
        Some(Value::Object(_)) => Ok(ElementKind::Map),
        Some(_) => Ok(ElementKind::Scalar),
    }
}

/// What makes two scalars the same one; 1 and 1.0 are two.
pub(super) fn text_of(value: &Value) -> String {
    value.to_string()
}

/// [`text_of`] of an element's merge key.
pub(super) fn key_of(element: &Value, merge_key: &str) -> Result<String, PatchError> {
    let element = as_element(element)?;
    match element.get(merge_key) {
        None => Err(no_merge_key(element, merge_key)),
        Some(key @ (Value::Object(_) | Value::Array(_))) => Err(malformed(format!(
            "map: {} has merge key {merge_key} that is no scalar: {}",
            print::plain_map(element),
            print::type_name(key)
        ))),
        Some(key) => Ok(text_of(key)),
    }
}

pub(super) fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    list: ListForm<'_>,
) -> Result<Vec<Value>, PatchError> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    match (element_kind(&[&original, &patch])?, list.merge_key) {
        (ElementKind::Scalar, _) => {
            let order = order::Order::of_scalars(&original);
            let wanted = order::Order::of_scalars(&patch);
            let merged = without_repeats(original, patch);
            let (theirs, ours) = merged
                .into_iter()
                .map(|value| (text_of(&value), value))
                .partition(|(key, _)| wanted.has(key));
            Ok(order::normalized(theirs, ours, &wanted, &order))
        }
        (ElementKind::Map, None) => {
            Err(malformed("cannot merge lists without merge key for struct"))
        }
        (ElementKind::Map, Some(merge_key)) => {
            let (original, patch) = with_directives(original, patch, merge_key)?;
            let order = order::Order::of_maps(&original, merge_key)?;
            let wanted = order::Order::of_maps(&patch, merge_key)?;
            let merged = merge_by_key(original, patch, merge_key, list)?;
            let (theirs, ours) = merged.into_iter().partition(|(key, _)| wanted.has(key));
            Ok(order::normalized(theirs, ours, &wanted, &order))
        }
    }
}

/// Both, each once; as upstream does it, the last moves to where a repeated one was.
fn without_repeats(original: Vec<Value>, patch: Vec<Value>) -> Vec<Value> {
    let mut values = original;
    values.extend(patch);
    let mut seen = HashSet::new();
    let mut at = 0;
    while at < values.len() {
        if seen.insert(text_of(&values[at])) {
            at += 1;
        } else {
            values.swap_remove(at);
        }
    }
    values
}

/// Does what the elements say that have a `$patch`: what they delete is gone from `original`, and they from the patch.
fn with_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut left = Vec::with_capacity(patch.len());
    let mut deleted = HashSet::new();
    let mut replace = false;
    for value in patch {
        let element = as_element(&value)?;
        let Some(directive) = element.get(DIRECTIVE) else {
            left.push(value);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                deleted.insert(key_of(&value, merge_key)?);
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(malformed(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            _ => return Err(unknown_directive(directive, element)),
        }
    }
    if replace {
        return Ok((left, Vec::new()));
    }
    if !deleted.is_empty() {
        original.retain(|value| {
            value
                .get(merge_key)
                .is_none_or(|key| !deleted.contains(&text_of(key)))
        });
    }
    Ok((original, left))
}

/// With their keys.
fn merge_by_key(
    original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
    list: ListForm<'_>,
) -> Result<Vec<(String, Value)>, PatchError> {
    let mut merged = Vec::with_capacity(original.len() + patch.len());
    let mut places: HashMap<String, usize> = HashMap::with_capacity(original.len());
    for value in original {
        let key = key_of(&value, merge_key)?;
        // The first of a name is the one that is merged.
        places.entry(key.clone()).or_insert(merged.len());
        merged.push((key, value));
    }
    for value in patch {
        let key = key_of(&value, merge_key)?;
        match places.get(&key) {
            Some(&place) => {
                let (Value::Object(old), Value::Object(patch)) =
                    (std::mem::take(&mut merged[place].1), value)
                else {
                    continue;
                };
                let element: Map<_, _> = merge_map(old, patch, list.elements)?;
                merged[place].1 = Value::Object(element);
            }
            None => {
                places.insert(key.clone(), merged.len());
                merged.push((key, value));
            }
        }
    }
    // A `$patch: replace` or `delete` within an element may have taken its key.
    for (key, value) in &mut merged {
        *key = key_of(value, merge_key)?;
    }
    Ok(merged)
}
