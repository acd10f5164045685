use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use super::{ListAtom, MapAtom, Relation, Scalar, Shape, TypeRef, at::At};
use crate::{
    fields::{PathElement, show_path},
    print,
};

/// More of them help nobody.
const MAX_ERRORS: usize = 64;

/// Where a value is not what its type says: paths, and what is wrong there.
#[derive(Debug, Default)]
pub struct TypeErrors(Vec<(String, String)>);

impl TypeErrors {
    pub(crate) fn of(path: &[PathElement], message: impl Into<String>) -> Self {
        Self(vec![(show_path(path), message.into())])
    }

    fn push(&mut self, path: &[PathElement], message: impl Into<String>) {
        if self.0.len() < MAX_ERRORS {
            self.0.push((show_path(path), message.into()));
        }
    }
}

impl fmt::Display for TypeErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = self.0.len() != 1;
        if several {
            out.write_str("errors:")?;
        }
        for (path, message) in &self.0 {
            let before = if several { "\n  " } else { "" };
            let colon = if path.is_empty() { "" } else { ": " };
            write!(out, "{before}{path}{colon}{message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TypeErrors {}

/// Two elements of a list that have the same name: what is applied may not have them, what is already there may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    Allowed,
    Refused,
}

pub(crate) fn validate(
    value: &Value,
    ty: TypeRef<'_>,
    duplicates: Duplicates,
) -> Result<(), TypeErrors> {
    let mut walk = Walk {
        duplicates,
        errors: TypeErrors::default(),
    };
    walk.value(value, ty, &At::Root);
    if walk.errors.0.is_empty() {
        Ok(())
    } else {
        Err(walk.errors)
    }
}

struct Walk {
    duplicates: Duplicates,
    errors: TypeErrors,
}

impl Walk {
    fn error(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.errors.push(&at.path(), message);
    }

    fn value(&mut self, value: &Value, ty: TypeRef<'_>, at: &At<'_>) {
        match ty.resolve().of_value(Some(value)).shape() {
            None => self.error(at, "schema error: invalid atom: inlined"),
            Some(Shape::Scalar(scalar)) => {
                if let Some(wrong) = wrong_scalar(scalar, value) {
                    self.error(at, wrong);
                }
            }
            Some(Shape::List(list)) => match value {
                Value::Null => {}
                Value::Array(elements) => self.list(list, elements, at),
                value => self.error(
                    at,
                    format!("expected list, got &{{{}}}", print::plain(value)),
                ),
            },
            Some(Shape::Map(map)) => match value {
                Value::Null => {}
                Value::Object(fields) => self.map(map, fields, at),
                value => self.error(
                    at,
                    format!("expected map, got &{{{}}}", print::plain(value)),
                ),
            },
        }
    }

    fn list(&mut self, list: ListAtom<'_>, elements: &[Value], at: &At<'_>) {
        let mut seen = BTreeSet::new();
        for (number, element) in elements.iter().enumerate() {
            if self.duplicates == Duplicates::Allowed && list.can_name(element) {
                self.value(element, list.element, &At::Unnamed(at, list, element));
                continue;
            }
            let name = match list.relation {
                Relation::Atomic => PathElement::Index(i64::try_from(number).unwrap_or(i64::MAX)),
                _ => match list.name(element) {
                    Ok(name) => name,
                    // What lies below it can't even be named.
                    Err(message) => return self.error(at, format!("element {number}: {message}")),
                },
            };
            if list.is_associative() && self.duplicates == Duplicates::Refused {
                if seen.contains(&name) {
                    self.error(at, format!("duplicate entries for key {name}"));
                }
                seen.insert(name.clone());
            }
            self.value(element, list.element, &At::Element(at, &name));
        }
    }

    fn map(&mut self, map: MapAtom<'_>, fields: &serde_json::Map<String, Value>, at: &At<'_>) {
        for (name, value) in fields {
            let ty = map.child(name);
            let at = At::Field(at, name);
            if matches!(ty, TypeRef::Undeclared) {
                return self.error(&at, "field not declared in schema");
            }
            self.value(value, ty, &at);
        }
    }
}

impl ListAtom<'_> {
    pub(super) fn is_associative(&self) -> bool {
        !matches!(self.relation, Relation::Atomic)
    }
}

fn wrong_scalar(scalar: Scalar, value: &Value) -> Option<String> {
    match (scalar, value) {
        (_, Value::Null)
        | (Scalar::Numeric, Value::Number(_))
        | (Scalar::String, Value::String(_))
        | (Scalar::Boolean, Value::Bool(_))
        | (Scalar::Untyped, Value::Bool(_) | Value::Number(_) | Value::String(_)) => None,
        (Scalar::Numeric, value) => Some(format!(
            "expected numeric (int or float), got {}",
            print::type_name(value)
        )),
        (Scalar::String, value) => Some(format!(
            "expected string, got &value.valueUnstructured{{Value:{}}}",
            print::as_source(value)
        )),
        (Scalar::Boolean, value) => Some(format!(
            "expected boolean, got &{{{}}}",
            print::plain(value)
        )),
        (Scalar::Untyped, value) => Some(format!(
            "expected any scalar, got &{{{}}}",
            print::plain(value)
        )),
    }
}
