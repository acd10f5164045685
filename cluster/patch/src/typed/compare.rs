use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Atom, ListAtom, MapAtom, Relation, Shape, TypeErrors, TypeRef, as_list, as_map};
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
    pub(crate) fn without(self, reset: &FieldSet) -> Self {
        if reset.is_empty() {
            return self;
        }
        Self {
            removed: self.removed.without(reset),
            modified: self.modified.without(reset),
            added: self.added.without(reset),
        }
    }
}

pub(crate) fn compare(old: &Value, new: &Value, ty: TypeRef<'_>) -> Result<Comparison, TypeErrors> {
    let mut walk = Walk {
        path: Vec::new(),
        found: Comparison::default(),
    };
    walk.values(Some(old), Some(new), ty)?;
    Ok(walk.found)
}

struct Walk {
    path: Vec<PathElement>,
    found: Comparison,
}

/// Whether the two were compared as one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Whole,
    FieldByField,
}

impl Walk {
    fn values(
        &mut self,
        old: Option<&Value>,
        new: Option<&Value>,
        ty: TypeRef<'_>,
    ) -> Result<(), TypeErrors> {
        let atom = ty.resolve();
        let (old_atom, new_atom) = (atom.of_value(old), atom.of_value(new));
        let compared = if new.is_none() {
            self.atom(old_atom, old, new)?
        } else {
            // A value that became one of another shape is both: what it was is gone, what it is has come.
            if old.is_some() && !old_atom.is_as(&new_atom) {
                self.atom(old_atom, old, new)?;
            }
            self.atom(new_atom, old, new)?
        };
        if compared == Compared::FieldByField {
            match (old, new) {
                (None, _) => self.found.added.insert(&self.path),
                (_, None) => self.found.removed.insert(&self.path),
                _ => {}
            }
        }
        Ok(())
    }

    fn atom(
        &mut self,
        atom: Atom<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<Compared, TypeErrors> {
        match atom.shape() {
            None => Err(TypeErrors::of(
                &self.path,
                "schema error: invalid atom: inlined",
            )),
            Some(Shape::Scalar(_)) => Ok(self.whole(old, new)),
            Some(Shape::Map(map)) => self.maps(map, old, new),
            Some(Shape::List(list)) => self.lists(list, old, new),
        }
    }

    fn whole(&mut self, old: Option<&Value>, new: Option<&Value>) -> Compared {
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            (Some(old), Some(new)) if !equal_values(old, new) => {
                self.found.modified.insert(&self.path);
            }
            _ => {}
        }
        Compared::Whole
    }

    fn maps(
        &mut self,
        map: MapAtom<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<Compared, TypeErrors> {
        let (old_map, new_map) = (as_map(old), as_map(new));
        let empty = |map: Option<&serde_json::Map<_, _>>| map.is_none_or(serde_json::Map::is_empty);
        // Empty is not null, and neither is absent.
        if map.atomic || (empty(old_map) && empty(new_map)) {
            return Ok(self.whole(old, new));
        }
        let names: BTreeSet<&String> = old_map
            .into_iter()
            .chain(new_map)
            .flat_map(serde_json::Map::keys)
            .collect();
        for name in names {
            self.path.push(PathElement::field(name));
            let old = old_map.and_then(|map| map.get(name));
            let new = new_map.and_then(|map| map.get(name));
            self.values(old, new, map.child(name))?;
            self.path.pop();
        }
        Ok(Compared::FieldByField)
    }

    fn lists(
        &mut self,
        list: ListAtom<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<Compared, TypeErrors> {
        let (old_list, new_list) = (as_list(old), as_list(new));
        let empty = |list: Option<&Vec<_>>| list.is_none_or(Vec::is_empty);
        if matches!(list.relation, Relation::Atomic) || (empty(old_list) && empty(new_list)) {
            return Ok(self.whole(old, new));
        }
        let mut elements: BTreeMap<PathElement, [Vec<&Value>; 2]> = BTreeMap::new();
        for (side, values) in [old_list, new_list].into_iter().enumerate() {
            for (at, value) in values.into_iter().flatten().enumerate() {
                let name = list.name(value).map_err(|message| {
                    TypeErrors::of(&self.path, format!("element {at}: {message}"))
                })?;
                elements.entry(name).or_default()[side].push(value);
            }
        }
        for (name, [old, new]) in elements {
            self.path.push(name);
            self.elements(&old, &new, list.element)?;
            self.path.pop();
        }
        Ok(Compared::FieldByField)
    }

    /// Elements of one name. Where it is one or none on either side they are compared; several are one field together.
    fn elements(
        &mut self,
        old: &[&Value],
        new: &[&Value],
        ty: TypeRef<'_>,
    ) -> Result<(), TypeErrors> {
        match (old, new) {
            ([] | [_], [] | [_]) => self.values(old.first().copied(), new.first().copied(), ty),
            ([_, _, ..], [_, _, ..]) => {
                let same = old.len() == new.len()
                    && old.iter().zip(new).all(|(old, new)| equal_values(old, new));
                if !same {
                    self.found.modified.insert(&self.path);
                }
                Ok(())
            }
            ([_, _, ..], _) => {
                if let Some(new) = new.first() {
                    self.values(None, Some(new), ty)?;
                }
                self.found.removed.insert(&self.path);
                Ok(())
            }
            (_, _) => {
                if let Some(old) = old.first() {
                    self.values(Some(old), None, ty)?;
                }
                self.found.added.insert(&self.path);
                Ok(())
            }
        }
    }
}
