use std::collections::BTreeMap;

use serde_json::Value;

use super::{ListAtom, MapAtom, Relation, Shape, TypeErrors, TypeRef};
use crate::fields::{FieldSet, PathElement};

/// The fields that `value` has: what one owns who applies it.
pub(crate) fn field_set(value: &Value, ty: TypeRef<'_>) -> Result<FieldSet, TypeErrors> {
    let mut walk = Walk {
        path: Vec::new(),
        set: FieldSet::default(),
    };
    walk.value(value, ty)?;
    Ok(walk.set)
}

struct Walk {
    path: Vec<PathElement>,
    set: FieldSet,
}

impl Walk {
    fn value(&mut self, value: &Value, ty: TypeRef<'_>) -> Result<(), TypeErrors> {
        match ty.resolve().of_value(Some(value)).shape() {
            None => Err(TypeErrors::of(
                &self.path,
                "schema error: invalid atom: inlined",
            )),
            Some(Shape::Scalar(_)) => {
                self.set.insert(&self.path);
                Ok(())
            }
            Some(Shape::Map(map)) => self.map(map, value),
            Some(Shape::List(list)) => self.list(list, value),
        }
    }

    fn map(&mut self, map: MapAtom<'_>, value: &Value) -> Result<(), TypeErrors> {
        if map.atomic {
            self.set.insert(&self.path);
            return Ok(());
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            self.path.push(PathElement::field(name));
            self.value(value, map.child(name))?;
            let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
            // The key of a map is owned beside what lies below it, the field of a struct is not.
            if empty || map.named(name).is_none() {
                self.set.insert(&self.path);
            }
            self.path.pop();
        }
        Ok(())
    }

    fn list(&mut self, list: ListAtom<'_>, value: &Value) -> Result<(), TypeErrors> {
        if matches!(list.relation, Relation::Atomic) {
            self.set.insert(&self.path);
            return Ok(());
        }
        let mut elements: BTreeMap<PathElement, Vec<&Value>> = BTreeMap::new();
        for (at, value) in value.as_array().into_iter().flatten().enumerate() {
            let name = list.name(value).map_err(|message| {
                TypeErrors::of(&self.path, format!("element {at}: {message}"))
            })?;
            elements.entry(name).or_default().push(value);
        }
        for (name, values) in elements {
            self.path.push(name);
            // Several of one name are one field together.
            if let [value] = values[..] {
                self.value(value, list.element)?;
            }
            self.set.insert(&self.path);
            self.path.pop();
        }
        Ok(())
    }
}

/// `set` with the fields of structs that have fields of theirs in it: they go when all of those go, which the keys of maps don't.
pub(crate) fn with_named_fields(set: &FieldSet, ty: TypeRef<'_>) -> FieldSet {
    let atom = ty.resolve();
    set.map(&mut |element, member, below| {
        let (named, child) = match element {
            PathElement::Field(name) => match atom.map {
                Some(map) => (map.named(name).is_some(), map.child(name)),
                None => (false, TypeRef::Undeclared),
            },
            PathElement::Key(_) => {
                let element = atom.list.map(|list| list.element);
                (false, element.unwrap_or(TypeRef::Undeclared))
            }
            PathElement::Value(_) | PathElement::Index(_) => (false, TypeRef::Undeclared),
        };
        let member = member || (named && !below.is_empty());
        (member, with_named_fields(below, child))
    })
}
