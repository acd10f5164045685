use serde_json::{Map, Value};

use super::{ListAtom, MapAtom, Relation, Shape, TypeRef};
use crate::fields::{FieldSet, PathElement};

/// `value` without the fields and elements of `gone`. What has nothing left is null.
pub(crate) fn remove(value: &Value, gone: &FieldSet, ty: TypeRef<'_>) -> Value {
    match (ty.resolve().of_value(Some(value)).shape(), value) {
        (Some(Shape::Map(map)), Value::Object(fields)) => from_map(map, fields, gone),
        (Some(Shape::List(list)), Value::Array(elements)) => from_list(list, elements, gone),
        (Some(Shape::Scalar(_)), scalar) => scalar.clone(),
        _ => Value::Null,
    }
}

fn from_map(map: MapAtom<'_>, fields: &Map<String, Value>, gone: &FieldSet) -> Value {
    if map.atomic {
        return Value::Null;
    }
    let mut left = Map::new();
    for (name, value) in fields {
        let element = PathElement::field(name);
        if gone.has(&element) {
            continue;
        }
        let value = match gone.below(&element) {
            Some(below) => remove(value, below, map.child(name)),
            None => value.clone(),
        };
        left.insert(name.clone(), value);
    }
    if left.is_empty() {
        Value::Null
    } else {
        Value::Object(left)
    }
}

fn from_list(list: ListAtom<'_>, elements: &[Value], gone: &FieldSet) -> Value {
    if matches!(list.relation, Relation::Atomic) {
        return Value::Null;
    }
    let mut left = Vec::with_capacity(elements.len());
    for value in elements {
        let Ok(element) = list.name(value) else {
            // It has been validated.
            left.push(value.clone());
            continue;
        };
        if gone.has(&element) {
            continue;
        }
        left.push(match gone.below(&element) {
            Some(below) => remove(value, below, list.element),
            None => value.clone(),
        });
    }
    if left.is_empty() {
        Value::Null
    } else {
        Value::Array(left)
    }
}
