use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::{ListAtom, MapAtom, Relation, Shape, TypeErrors, TypeRef, as_list, as_map};
use crate::fields::PathElement;

/// `live` with what `applied` has. Nothing is removed by it; both have been validated.
pub(crate) fn merge(live: &Value, applied: &Value, ty: TypeRef<'_>) -> Result<Value, TypeErrors> {
    let merged = values(Some(live), Some(applied), ty, &mut Vec::new())?;
    Ok(merged.unwrap_or(Value::Null))
}

fn values(
    live: Option<&Value>,
    applied: Option<&Value>,
    ty: TypeRef<'_>,
    path: &mut Vec<PathElement>,
) -> Result<Option<Value>, TypeErrors> {
    // The shape that is applied is the one that it gets; where nothing is, it keeps its own.
    let atom = ty.resolve().of_value(applied.or(live));
    match atom.shape() {
        None => Err(TypeErrors::of(path, "schema error: invalid atom: inlined")),
        Some(Shape::Scalar(_)) => Ok(applied.or(live).cloned()),
        Some(Shape::Map(map)) => maps(map, live, applied, path),
        Some(Shape::List(list)) => lists(list, live, applied, path),
    }
}

fn maps(
    map: MapAtom<'_>,
    live: Option<&Value>,
    applied: Option<&Value>,
    path: &mut Vec<PathElement>,
) -> Result<Option<Value>, TypeErrors> {
    let (live_map, applied_map) = (as_map(live), as_map(applied));
    let empty = |map: Option<&Map<_, _>>| map.is_none_or(Map::is_empty);
    if map.atomic || (empty(live_map) && empty(applied_map)) {
        return Ok(applied.or(live).cloned());
    }
    let names: BTreeSet<&String> = live_map
        .into_iter()
        .chain(applied_map)
        .flat_map(Map::keys)
        .collect();
    let mut merged = Map::new();
    for name in names {
        path.push(PathElement::field(name));
        let live = live_map.and_then(|map| map.get(name));
        let applied = applied_map.and_then(|map| map.get(name));
        if let Some(value) = values(live, applied, map.child(name), path)? {
            merged.insert(name.clone(), value);
        }
        path.pop();
    }
    Ok((!merged.is_empty()).then_some(Value::Object(merged)))
}

fn lists(
    list: ListAtom<'_>,
    live: Option<&Value>,
    applied: Option<&Value>,
    path: &mut Vec<PathElement>,
) -> Result<Option<Value>, TypeErrors> {
    let (live_list, applied_list) = (as_list(live), as_list(applied));
    let empty = |list: Option<&Vec<_>>| list.is_none_or(Vec::is_empty);
    if matches!(list.relation, Relation::Atomic) || (empty(live_list) && empty(applied_list)) {
        return Ok(applied.or(live).cloned());
    }
    let live = Indexed::new(list, live_list, path)?;
    let applied = Indexed::new(list, applied_list, path)?;
    let mut merged = Vec::with_capacity(live.names.len().max(applied.names.len()));
    let mut push = |name: &PathElement, live: Option<&Value>, applied: Option<&Value>| {
        path.push(name.clone());
        merged.extend(values(live, applied, list.element, path)?);
        path.pop();
        Ok(())
    };

    // The elements that both have come in the order of what is applied; those that only one has stay near their neighbours.
    let mut shared: VecDeque<&PathElement> = applied
        .names
        .iter()
        .filter(|name| live.elements.contains_key(name))
        .collect();
    let mut next = shared.pop_front();
    let mut taken: BTreeSet<&PathElement> = BTreeSet::new();
    let (mut left, mut right) = (0, 0);
    loop {
        match (live.names.get(left), applied.names.get(right)) {
            (None, None) => break,
            (Some(mine), Some(theirs)) if mine == theirs => {
                taken.insert(theirs);
                push(theirs, live.get(theirs), applied.get(theirs))?;
                (left, right) = (left + 1, right + 1);
                next = shared.pop_front();
                continue;
            }
            (Some(mine), Some(_))
                if applied.elements.contains_key(mine) && next.is_some_and(|next| next != mine) =>
            {
                // Its turn comes with what is applied.
                left += 1;
                continue;
            }
            _ => {}
        }
        if let Some(mine) = live.names.get(left) {
            if !applied.elements.contains_key(mine) {
                // By its place: there may be another of its name.
                push(mine, live_list.and_then(|list| list.get(left)), None)?;
                left += 1;
                continue;
            }
            if taken.contains(mine) {
                left += 1;
            }
        }
        if let Some(theirs) = applied.names.get(right) {
            taken.insert(theirs);
            push(theirs, live.get(theirs), applied.get(theirs))?;
            right += 1;
            if next == Some(theirs) {
                next = shared.pop_front();
            }
        }
    }
    Ok((!merged.is_empty()).then_some(Value::Array(merged)))
}

/// A list by the names of its elements.
struct Indexed<'v> {
    names: Vec<PathElement>,
    /// null where several have the name: they are not merged with anything.
    elements: BTreeMap<PathElement, &'v Value>,
}

impl<'v> Indexed<'v> {
    fn new(
        list: ListAtom<'_>,
        values: Option<&'v Vec<Value>>,
        path: &[PathElement],
    ) -> Result<Self, TypeErrors> {
        let mut indexed = Self {
            names: Vec::new(),
            elements: BTreeMap::new(),
        };
        for (at, value) in values.into_iter().flatten().enumerate() {
            let name = list
                .name(value)
                .map_err(|message| TypeErrors::of(path, format!("element {at}: {message}")))?;
            indexed
                .elements
                .entry(name.clone())
                .and_modify(|several| *several = &Value::Null)
                .or_insert(value);
            indexed.names.push(name);
        }
        Ok(indexed)
    }

    fn get(&self, name: &PathElement) -> Option<&'v Value> {
        self.elements.get(name).copied()
    }
}
