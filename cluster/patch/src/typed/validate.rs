use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use super::{ListAtom, MapAtom, Relation, Scalar, Shape, TypeRef};
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
        path: Vec::new(),
        errors: TypeErrors::default(),
    };
    walk.value(value, ty);
    if walk.errors.0.is_empty() {
        Ok(())
    } else {
        Err(walk.errors)
    }
}

struct Walk {
    duplicates: Duplicates,
    path: Vec<PathElement>,
    errors: TypeErrors,
}

impl Walk {
    fn error(&mut self, message: impl Into<String>) {
        self.errors.push(&self.path, message);
    }

    fn value(&mut self, value: &Value, ty: TypeRef<'_>) {
        match ty.resolve().of_value(Some(value)).shape() {
            None => self.error("schema error: invalid atom: inlined"),
            Some(Shape::Scalar(scalar)) => {
                if let Some(wrong) = wrong_scalar(scalar, value) {
                    self.error(wrong);
                }
            }
            Some(Shape::List(list)) => match value {
                Value::Null => {}
                Value::Array(elements) => self.list(list, elements),
                value => self.error(format!("expected list, got &{{{}}}", print::plain(value))),
            },
            Some(Shape::Map(map)) => match value {
                Value::Null => {}
                Value::Object(fields) => self.map(map, fields),
                value => self.error(format!("expected map, got &{{{}}}", print::plain(value))),
            },
        }
    }

    fn list(&mut self, list: ListAtom<'_>, elements: &[Value]) {
        let mut seen = BTreeSet::new();
        for (at, element) in elements.iter().enumerate() {
            let name = match list.relation {
                Relation::Atomic => PathElement::Index(i64::try_from(at).unwrap_or(i64::MAX)),
                _ => match list.name(element) {
                    Ok(name) => name,
                    // What lies below it can't even be named.
                    Err(message) => return self.error(format!("element {at}: {message}")),
                },
            };
            if list.is_associative() {
                if self.duplicates == Duplicates::Refused && seen.contains(&name) {
                    self.error(format!("duplicate entries for key {name}"));
                }
                seen.insert(name.clone());
            }
            self.path.push(name);
            self.value(element, list.element);
            self.path.pop();
        }
    }

    fn map(&mut self, map: MapAtom<'_>, fields: &serde_json::Map<String, Value>) {
        for (name, value) in fields {
            let ty = map.child(name);
            self.path.push(PathElement::field(name));
            if matches!(ty, TypeRef::Undeclared) {
                self.error("field not declared in schema");
                self.path.pop();
                return;
            }
            self.value(value, ty);
            self.path.pop();
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
