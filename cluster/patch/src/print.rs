//! Values as Go's `fmt` prints them: upstream's messages have them, and clients show them.

use std::fmt::Write;

use serde_json::{Map, Value};

/// `%q`.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            char if char.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(char));
            }
            char if char.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out.push('"');
    out
}

/// In a path of fields: strings are quoted.
pub(crate) fn in_path(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(list) => {
            let list: Vec<_> = list.iter().map(in_path).collect();
            format!("[{}]", list.join(","))
        }
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| format!("{key}={}", in_path(value)))
            .collect(),
        value => value.to_string(),
    }
}

/// `%v`: `map[a:1 b:[x y]]`.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => plain_list(list),
        Value::Object(map) => plain_map(map),
        value => value.to_string(),
    }
}

pub(crate) fn plain_map(map: &Map<String, Value>) -> String {
    let fields: Vec<_> = map
        .iter()
        .map(|(key, value)| format!("{key}:{}", plain(value)))
        .collect();
    format!("map[{}]", fields.join(" "))
}

pub(crate) fn plain_list(list: &[Value]) -> String {
    let list: Vec<_> = list.iter().map(plain).collect();
    format!("[{}]", list.join(" "))
}

/// `%#v`.
pub(crate) fn as_source(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(text) => quoted(text),
        Value::Array(list) => {
            let list: Vec<_> = list.iter().map(as_source).collect();
            format!("[]interface {{}}{{{}}}", list.join(", "))
        }
        Value::Object(map) => {
            let fields: Vec<_> = map
                .iter()
                .map(|(key, value)| format!("{}:{}", quoted(key), as_source(value)))
                .collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        value => value.to_string(),
    }
}

/// `%T`.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
