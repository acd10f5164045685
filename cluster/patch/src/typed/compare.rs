use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Atom, ListAtom, MapAtom, Relation, Shape, TypeErrors, TypeRef, as_list, as_map, at::At,
};
use crate::fields::{FieldSet, PathElement, equal_values};

/// How one object became another.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) removed: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) added: FieldSet,
}

impl Comparison {
    /// Without what the endpoint resets, and all below it.
    pub(crate) fn without(mut self, reset: &FieldSet) -> Self {
        for fields in [&mut self.removed, &mut self.modified, &mut self.added] {
            fields.cut(reset);
        }
        self
    }

    fn add(&mut self, other: Self) {
        self.removed.add(other.removed);
        self.modified.add(other.modified);
        self.added.add(other.added);
    }

    /// What was found at `name`, which is asked for where anything was.
    fn put(&mut self, name: impl FnOnce() -> PathElement, found: Found) {
        let Found { here, below } = found;
        let mut sets = [
            (&mut self.removed, here.removed, below.removed),
            (&mut self.modified, here.modified, below.modified),
            (&mut self.added, here.added, below.added),
        ]
        .into_iter()
        .filter(|(_, member, below)| *member || !below.is_empty())
        .peekable();
        if sets.peek().is_none() {
            return;
        }
        let mut name = Some(name());
        while let Some((set, member, below)) = sets.next() {
            // Mostly it is of one of them alone.
            let own = match sets.peek() {
                Some(_) => name.clone(),
                None => name.take(),
            };
            if let Some(own) = own {
                set.put(own, member, below);
            }
        }
    }
}

/// What of the three a value is itself.
#[derive(Debug, Clone, Copy, Default)]
struct Here {
    removed: bool,
    modified: bool,
    added: bool,
}

/// A value's part in the comparison, and that of what lies below it.
#[derive(Debug, Default)]
struct Found {
    here: Here,
    below: Comparison,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.here.removed |= other.here.removed;
        self.here.modified |= other.here.modified;
        self.here.added |= other.here.added;
        self.below.add(other.below);
    }
}

/// Nobody owns the object as a whole: what it is itself is nothing.
pub(crate) fn compare(old: &Value, new: &Value, ty: TypeRef<'_>) -> Result<Comparison, TypeErrors> {
    Ok(values(Some(old), Some(new), ty, &At::Root)?.below)
}

/// Whether the two were compared as one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Whole,
    FieldByField,
}

fn values(
    old: Option<&Value>,
    new: Option<&Value>,
    ty: TypeRef<'_>,
    at: &At<'_>,
) -> Result<Found, TypeErrors> {
    let atom = ty.resolve();
    let (old_atom, new_atom) = (atom.of_value(old), atom.of_value(new));
    let (mut found, compared) = if new.is_none() {
        self::atom(old_atom, old, new, at)?
    } else {
        let (mut found, compared) = self::atom(new_atom, old, new, at)?;
        // A value that became one of another shape is both: what it was is gone, what it is has come.
        if old.is_some() && !old_atom.is_as(&new_atom) {
            found.add(self::atom(old_atom, old, new, at)?.0);
        }
        (found, compared)
    };
    if compared == Compared::FieldByField {
        match (old, new) {
            (None, _) => found.here.added = true,
            (_, None) => found.here.removed = true,
            _ => {}
        }
    }
    Ok(found)
}

fn atom(
    atom: Atom<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    at: &At<'_>,
) -> Result<(Found, Compared), TypeErrors> {
    match atom.shape() {
        None => Err(TypeErrors::of(
            &at.path(),
            "schema error: invalid atom: inlined",
        )),
        Some(Shape::Scalar(_)) => Ok(whole(old, new)),
        Some(Shape::Map(map)) => maps(map, old, new, at),
        Some(Shape::List(list)) => lists(list, old, new, at),
    }
}

fn whole(old: Option<&Value>, new: Option<&Value>) -> (Found, Compared) {
    let mut here = Here::default();
    match (old, new) {
        (None, _) => here.added = true,
        (_, None) => here.removed = true,
        (Some(old), Some(new)) => here.modified = !equal_values(old, new),
    }
    let below = Comparison::default();
    (Found { here, below }, Compared::Whole)
}

fn maps(
    map: MapAtom<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    at: &At<'_>,
) -> Result<(Found, Compared), TypeErrors> {
    let (old_map, new_map) = (as_map(old), as_map(new));
    let empty = |map: Option<&serde_json::Map<_, _>>| map.is_none_or(serde_json::Map::is_empty);
    // Empty is not null, and neither is absent.
    if map.atomic || (empty(old_map) && empty(new_map)) {
        return Ok(whole(old, new));
    }
    let mut found = Found::default();
    let mut field = |name: &String, old: Option<&Value>, new: Option<&Value>| {
        let of_field = values(old, new, map.child(name), &At::Field(at, name))?;
        found.below.put(|| PathElement::field(name), of_field);
        Ok(())
    };
    for (name, old) in old_map.into_iter().flatten() {
        field(name, Some(old), new_map.and_then(|map| map.get(name)))?;
    }
    for (name, new) in new_map.into_iter().flatten() {
        if old_map.is_none_or(|map| !map.contains_key(name)) {
            field(name, None, Some(new))?;
        }
    }
    Ok((found, Compared::FieldByField))
}

fn lists(
    list: ListAtom<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    at: &At<'_>,
) -> Result<(Found, Compared), TypeErrors> {
    let (old_list, new_list) = (as_list(old), as_list(new));
    let empty = |list: Option<&Vec<_>>| list.is_none_or(Vec::is_empty);
    if matches!(list.relation, Relation::Atomic) || (empty(old_list) && empty(new_list)) {
        return Ok(whole(old, new));
    }
    if old_list == new_list {
        return Ok((Found::default(), Compared::FieldByField));
    }
    let mut elements: BTreeMap<PathElement, [Vec<&Value>; 2]> = BTreeMap::new();
    for (side, values) in [old_list, new_list].into_iter().enumerate() {
        for (number, value) in values.into_iter().flatten().enumerate() {
            let name = list.name(value).map_err(|message| {
                TypeErrors::of(&at.path(), format!("element {number}: {message}"))
            })?;
            elements.entry(name).or_default()[side].push(value);
        }
    }
    let mut found = Found::default();
    for (name, [old, new]) in elements {
        let of_element = self::elements(&old, &new, list.element, &At::Element(at, &name))?;
        found.below.put(|| name, of_element);
    }
    Ok((found, Compared::FieldByField))
}

/// Elements of one name. Where it is one or none on either side they are compared; several are one field together.
fn elements(
    old: &[&Value],
    new: &[&Value],
    ty: TypeRef<'_>,
    at: &At<'_>,
) -> Result<Found, TypeErrors> {
    match (old, new) {
        ([] | [_], [] | [_]) => values(old.first().copied(), new.first().copied(), ty, at),
        ([_, _, ..], [_, _, ..]) => {
            let same = old.len() == new.len()
                && old.iter().zip(new).all(|(old, new)| equal_values(old, new));
            let here = Here {
                modified: !same,
                ..Here::default()
            };
            let below = Comparison::default();
            Ok(Found { here, below })
        }
        ([_, _, ..], _) => {
            let mut found = match new.first() {
                Some(new) => values(None, Some(new), ty, at)?,
                None => Found::default(),
            };
            found.here.removed = true;
            Ok(found)
        }
        (_, _) => {
            let mut found = match old.first() {
                Some(old) => values(Some(old), None, ty, at)?,
                None => Found::default(),
            };
            found.here.added = true;
            Ok(found)
        }
    }
}
