//! Where in an object something is wrong, and what: upstream's field.Error.

use std::fmt;

use serde_json::Value;

use crate::kind::{Invalid, Reason};

/// After so many nobody reads on; a hostile object has no more of them than this.
const MOST: usize = 100;

/// Values beyond this are cut in messages, in characters.
const VALUE_SHOWN: usize = 512;

/// `spec.containers[0].ports[1].name`. It is written out only where something is wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    pub(crate) const fn root(name: &'a str) -> Self {
        Self {
            parent: None,
            part: Part::Field(name),
        }
    }

    pub(crate) const fn field(&'a self, name: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            part: Part::Field(name),
        }
    }

    pub(crate) const fn index(&'a self, at: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            part: Part::Index(at),
        }
    }

    pub(crate) const fn key(&'a self, key: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            part: Part::Key(key),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.part {
            // The root of what is checked for another object's sake (a template) may have no name.
            Part::Field("") => Ok(()),
            Part::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Part::Field(name) => f.write_str(name),
            Part::Index(at) => write!(f, "[{at}]"),
            Part::Key(key) => write!(f, "[{key}]"),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<Invalid>);

impl Errors {
    pub(crate) fn into_vec(self) -> Vec<Invalid> {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, path: &Path, reason: Reason, message: impl FnOnce() -> String) {
        if self.0.len() < MOST {
            self.0.push(Invalid {
                field: path.to_string(),
                reason,
                message: message(),
            });
        }
    }

    pub(crate) fn required(&mut self, path: &Path, detail: &str) {
        self.push(path, Reason::Required, || match detail {
            "" => "Required value".to_owned(),
            detail => format!("Required value: {detail}"),
        });
    }

    pub(crate) fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(path, Reason::Forbidden, || match detail {
            "" => "Forbidden".to_owned(),
            detail => format!("Forbidden: {detail}"),
        });
    }

    pub(crate) fn invalid(&mut self, path: &Path, value: &Value, detail: &str) {
        self.push(path, Reason::Invalid, || {
            format!("Invalid value: {}: {detail}", shown(value))
        });
    }

    pub(crate) fn invalid_text(&mut self, path: &Path, value: &str, detail: &str) {
        self.push(path, Reason::Invalid, || {
            format!("Invalid value: {}: {detail}", quoted(value))
        });
    }

    pub(crate) fn wrong_type(&mut self, path: &Path, value: &Value, expected: &str) {
        self.push(path, Reason::TypeInvalid, || {
            format!("Invalid value: {}: must be {expected}", shown(value))
        });
    }

    pub(crate) fn not_supported(&mut self, path: &Path, value: &str, supported: &[&str]) {
        self.push(path, Reason::NotSupported, || {
            format!(
                "Unsupported value: {}: {}",
                quoted(value),
                supported_values(supported)
            )
        });
    }

    /// Of what is no text.
    pub(crate) fn value_not_supported(&mut self, path: &Path, value: &Value, supported: &[&str]) {
        self.push(path, Reason::NotSupported, || {
            format!(
                "Unsupported value: {}: {}",
                shown(value),
                supported_values(supported)
            )
        });
    }

    pub(crate) fn duplicate(&mut self, path: &Path, value: &str) {
        self.push(path, Reason::Duplicate, || {
            format!("Duplicate value: {}", quoted(value))
        });
    }

    pub(crate) fn not_found(&mut self, path: &Path, value: &str) {
        self.push(path, Reason::NotFound, || {
            format!("Not found: {}", quoted(value))
        });
    }

    pub(crate) fn duplicate_value(&mut self, path: &Path, value: &Value) {
        self.push(path, Reason::Duplicate, || {
            format!("Duplicate value: {}", shown(value))
        });
    }

    pub(crate) fn too_long(&mut self, path: &Path, most: usize) {
        self.push(path, Reason::TooLong, || {
            format!("Too long: may not be more than {most} bytes")
        });
    }

    pub(crate) fn too_many(&mut self, path: &Path, actual: usize, most: usize) {
        self.push(path, Reason::TooMany, || {
            format!("Too many: {actual}: must have at most {most} items")
        });
    }

    /// What is one of a few words; nothing is required to be one.
    pub(crate) fn one_of(&mut self, path: &Path, value: &str, supported: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else if !supported.contains(&value) {
            self.not_supported(path, value, supported);
        }
    }

    /// As [`Self::one_of`], where it is there.
    pub(crate) fn maybe_one_of(&mut self, path: &Path, value: &str, supported: &[&str]) {
        if !value.is_empty() && !supported.contains(&value) {
            self.not_supported(path, value, supported);
        }
    }

    /// Each of the sentences is an error of its own.
    pub(crate) fn text_is(
        &mut self,
        path: &Path,
        value: &str,
        wrong: impl IntoIterator<Item = String>,
    ) {
        for detail in wrong {
            self.invalid_text(path, value, &detail);
        }
    }

    /// A whole number that isn't negative.
    pub(crate) fn not_negative(&mut self, path: &Path, value: Option<&Value>) {
        match value {
            Some(value) if value.as_i64().is_some_and(|number| number < 0) => {
                self.invalid(path, value, "must be greater than or equal to 0");
            }
            _ => {}
        }
    }

    /// 1 and more.
    pub(crate) fn positive(&mut self, path: &Path, value: Option<&Value>) {
        match value {
            Some(value) if value.as_i64().is_some_and(|number| number < 1) => {
                self.invalid(path, value, "must be greater than 0");
            }
            _ => {}
        }
    }

    pub(crate) fn immutable(&mut self, path: &Path, new: Option<&Value>, old: Option<&Value>) {
        let null = &Value::Null;
        let (new, old) = (new.unwrap_or(null), old.unwrap_or(null));
        if !same(new, old) {
            self.invalid(path, new, "field is immutable");
        }
    }
}

/// Whether two values mean the same: null, and what is empty, are as if absent.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let null = &Value::Null;
            x.iter()
                .all(|(key, value)| same(value, y.get(key).unwrap_or(null)))
                && y.iter()
                    .all(|(key, value)| x.contains_key(key) || same(null, value))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        (Value::Null, other) | (other, Value::Null) => empty(other),
        _ => a == b,
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(empty),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        value => cut(value.to_string()),
    }
}

fn supported_values(supported: &[&str]) -> String {
    let supported: Vec<_> = supported.iter().map(|one| format!("\"{one}\"")).collect();
    format!("supported values: {}", supported.join(", "))
}

fn quoted(text: &str) -> String {
    cut(format!("{text:?}"))
}

fn cut(text: String) -> String {
    match text.char_indices().nth(VALUE_SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Errors, Path, same};

    #[test]
    fn errors_read_as_upstreams() {
        let spec = Path::root("spec");
        let list = spec.field("containers");
        let first = list.index(0);
        let mut errors = Errors::default();
        errors.required(&first.field("image"), "");
        errors.required(&first.field("name"), "give it one");
        errors.invalid(
            &spec.field("replicas"),
            &json!(-1),
            "must be greater than or equal to 0",
        );
        errors.invalid_text(
            &Path::root("metadata").field("annotations").key("a b"),
            "x\"y",
            "no",
        );
        errors.not_supported(&spec.field("type"), "X", &["A", "B"]);
        errors.duplicate(&first.field("name"), "a");
        errors.forbidden(&spec, "no");
        errors.too_long(&spec, 63);
        errors.too_many(&spec, 5, 4);
        let all: Vec<_> = errors
            .into_vec()
            .into_iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect();
        assert_eq!(
            all,
            [
                "spec.containers[0].image: Required value",
                "spec.containers[0].name: Required value: give it one",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "metadata.annotations[a b]: Invalid value: \"x\\\"y\": no",
                "spec.type: Unsupported value: \"X\": supported values: \"A\", \"B\"",
                "spec.containers[0].name: Duplicate value: \"a\"",
                "spec: Forbidden: no",
                "spec: Too long: may not be more than 63 bytes",
                "spec: Too many: 5: must have at most 4 items",
            ]
        );
    }

    #[test]
    fn an_object_has_a_bounded_number_of_errors() {
        let mut errors = Errors::default();
        for _ in 0..10_000 {
            errors.invalid_text(&Path::root("a"), &"x".repeat(10_000), "no");
        }
        let errors = errors.into_vec();
        assert_eq!(errors.len(), super::MOST);
        assert!(errors[0].message.len() < 600);
    }

    #[test]
    fn what_is_absent_is_as_what_is_empty() {
        for (a, b, equal) in [
            (json!(null), json!({}), true),
            (json!({"a": null}), json!({}), true),
            (json!({"a": {"b": null}}), json!({"a": {}}), true),
            (json!({"a": 1}), json!({"a": 1, "b": []}), true),
            (json!({"a": 1}), json!({"a": 2}), false),
            (json!({"a": 1}), json!({}), false),
            (json!({}), json!({"a": false}), false),
            (json!([1]), json!([1, 2]), false),
        ] {
            assert_eq!(same(&a, &b), equal, "{a} {b}");
            assert_eq!(same(&b, &a), equal, "{b} {a}");
        }
    }
}
