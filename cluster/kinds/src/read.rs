//! Reading an object of any form: what isn't there, or is of another type, is empty.

use serde_json::{Map, Value};

/// [`Value::pointer`], which makes two copies of each name on the way for the sake of those with a `~`.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    if pointer.contains('~') {
        return value.pointer(pointer);
    }
    let mut at = value;
    for name in pointer.split('/').skip(1) {
        at = match at {
            Value::Object(fields) => fields.get(name)?,
            Value::Array(list) => list.get(name.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(at)
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub(crate) fn number(value: &Value, pointer: &str) -> i64 {
    at(value, pointer).and_then(Value::as_i64).unwrap_or(0)
}

pub(crate) fn flag(value: &Value, pointer: &str) -> bool {
    at(value, pointer).and_then(Value::as_bool) == Some(true)
}

pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub(crate) fn map<'a>(value: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    at(value, pointer).and_then(Value::as_object)
}

/// Not absent, and not null.
pub(crate) fn some<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    at(value, pointer).filter(|value| !value.is_null())
}

/// Whether the condition of this type is `True`.
pub(crate) fn condition(conditions: &[Value], kind: &str) -> bool {
    conditions
        .iter()
        .find(|condition| text(condition, "/type") == kind)
        .is_some_and(|condition| text(condition, "/status") == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pointer_leads_where_it_leads_with_serde_json() {
        let value = json!({"a": {"b": [1, {"c": 2}], "": 3}, "1": {"0": 4}, "x/y": 5});
        for pointer in [
            "",
            "/a",
            "/a/b",
            "/a/b/1/c",
            "/a/b/2",
            "/a/b/x",
            "/a/",
            "/1/0",
            "/a/b/1/c/d",
            "/none",
            "/x~1y",
        ] {
            assert_eq!(at(&value, pointer), value.pointer(pointer), "{pointer}");
        }
    }
}
