//! What is known of a value before it is there.

use std::{collections::BTreeMap, fmt, sync::Arc};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Shape {
    /// Nothing is known.
    #[default]
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    Type,
    Optional,
    List(Arc<Shape>),
    Map(Arc<Shape>),
    /// These fields and no others.
    Object(Arc<Fields>),
    /// A type of a library, by its name: `kubernetes.Quantity`.
    Other(&'static str),
}

/// By their names in JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fields(pub BTreeMap<Box<str>, Shape>);

impl Fields {
    /// A field by its name in an expression.
    pub(crate) fn get(&self, name: &str) -> Option<(&str, &Shape)> {
        self.0
            .get_key_value(name)
            .or_else(|| self.0.get_key_value(unescape(name)?.as_str()))
            .map(|(name, shape)| (name.as_ref(), shape))
    }
}

impl Shape {
    pub(crate) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether a value of the one could be one of the other.
    pub(crate) fn may_be(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            // whatever is nullable has that shape, too
            (Self::Null, _) | (_, Self::Null) => true,
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) => a.may_be(b),
            (Self::Object(_), Self::Map(_) | Self::Object(_)) | (Self::Map(_), Self::Object(_)) => {
                true
            }
            (a, b) => a == b || (a.is_number() && b.is_number()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Self::Duration => f.write_str("google.protobuf.Duration"),
            Self::Type => f.write_str("type"),
            Self::Optional => f.write_str("optional_type(dyn)"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(value) => write!(f, "map(string, {value})"),
            Self::Object(_) => f.write_str("object"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Field names that are no identifiers are escaped in expressions: `__dot__`, `__namespace__`.
pub(crate) fn unescape(name: &str) -> Option<String> {
    const WORDS: [(&str, &str); 4] = [
        ("__underscores__", "__"),
        ("__dot__", "."),
        ("__dash__", "-"),
        ("__slash__", "/"),
    ];
    const KEYWORDS: [&str; 4] = ["true", "false", "null", "in"];
    if !name.contains("__") {
        return None;
    }
    let keyword = name
        .strip_prefix("__")
        .and_then(|name| name.strip_suffix("__"))
        .filter(|word| crate::token::is_reserved(word) || KEYWORDS.contains(word));
    if let Some(word) = keyword {
        return Some(word.into());
    }
    let mut out = String::new();
    let mut rest = name;
    while !rest.is_empty() {
        match WORDS.iter().find(|(word, _)| rest.starts_with(word)) {
            Some((word, sign)) => {
                out.push_str(sign);
                rest = &rest[word.len()..];
            }
            None => {
                let end = rest.chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_escaped_are_read_as_upstream_writes_them() {
        for (escaped, name) in [
            ("__namespace__", Some("namespace")),
            ("a__dot__b", Some("a.b")),
            ("x__dash__y__slash__z", Some("x-y/z")),
            ("a__underscores__b", Some("a__b")),
            ("plain", None),
        ] {
            assert_eq!(unescape(escaped).as_deref(), name, "{escaped}");
        }
    }
}
