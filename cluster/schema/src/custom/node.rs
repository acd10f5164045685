//! A schema within a schema, read leniently: what is wrong with it was said when its CRD was written.

use std::{collections::BTreeMap, sync::OnceLock};

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::rules::Rules;
use crate::{ListKind, MapKind};

/// A compiled pattern may take that much memory; those that people write take some KiB.
const MAX_PATTERN_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) ty: Option<Basic>,
    pub(super) properties: BTreeMap<String, Node>,
    pub(super) additional: Option<Additional>,
    pub(super) items: Option<Box<Node>>,
    pub(super) nullable: bool,
    pub(super) default: Option<Value>,
    pub(super) preserve_unknown: bool,
    pub(super) embedded: bool,
    pub(super) int_or_string: bool,
    /// x-kubernetes-validations.
    pub(super) rules: Option<Box<Rules>>,
    pub(super) list: ListKind,
    pub(super) map: MapKind,
    pub(super) checks: Checks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basic {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// additionalProperties.
#[derive(Debug)]
pub(super) enum Additional {
    /// `true`
    Any,
    Node(Box<Node>),
}

/// What is asked of a value beside its type.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) required: Vec<String>,
    pub(super) allowed: Option<Vec<Value>>,
    pub(super) format: Option<Box<str>>,
    pub(super) pattern: Option<Box<Pattern>>,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    pub(super) exclusive_minimum: bool,
    pub(super) exclusive_maximum: bool,
    pub(super) multiple_of: Option<f64>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    pub(super) min_properties: Option<u64>,
    pub(super) max_properties: Option<u64>,
    pub(super) all_of: Vec<Node>,
    pub(super) any_of: Vec<Node>,
    pub(super) one_of: Vec<Node>,
    pub(super) not: Option<Box<Node>>,
}

/// Compiled when it is first asked: a CRD has hundreds, of which a resource meets a few.
#[derive(Debug)]
pub(super) struct Pattern {
    pub(super) text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Pattern {
            text: text.into(),
            compiled: OnceLock::new(),
        }
    }

    pub(super) fn compile(&self) -> Result<Regex, regex::Error> {
        RegexBuilder::new(&self.text)
            .size_limit(MAX_PATTERN_BYTES)
            .dfa_size_limit(MAX_PATTERN_BYTES)
            .build()
    }

    /// A pattern that isn't one matches nothing.
    pub(super) fn is_match(&self, text: &str) -> bool {
        self.compiled
            .get_or_init(|| self.compile().ok())
            .as_ref()
            .is_some_and(|regex| regex.is_match(text))
    }
}

impl Basic {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Basic::Object,
            "array" => Basic::Array,
            "string" => Basic::String,
            "integer" => Basic::Integer,
            "number" => Basic::Number,
            "boolean" => Basic::Boolean,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Basic::Object => "object",
            Basic::Array => "array",
            Basic::String => "string",
            Basic::Integer => "integer",
            Basic::Number => "number",
            Basic::Boolean => "boolean",
        }
    }
}

impl Node {
    /// As deep as `source` is, which is no deeper than a body may be.
    pub(super) fn parse(source: &Value) -> Self {
        let at = |name: &str| source.get(name);
        let text = |name| at(name).and_then(Value::as_str);
        let yes = |name| at(name).and_then(Value::as_bool).unwrap_or(false);
        let number = |name| at(name).and_then(Value::as_f64);
        let count = |name| at(name).and_then(Value::as_u64);
        let strings = |name| -> Vec<&str> {
            let list = at(name).and_then(Value::as_array);
            list.into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect()
        };
        let nodes = |name| -> Vec<Node> {
            let list = at(name).and_then(Value::as_array);
            list.into_iter().flatten().map(Node::parse).collect()
        };
        let properties = at("properties").and_then(Value::as_object);
        Node {
            ty: text("type").and_then(Basic::named),
            properties: properties
                .into_iter()
                .flatten()
                .map(|(name, node)| (name.clone(), Node::parse(node)))
                .collect(),
            additional: match at("additionalProperties") {
                Some(Value::Bool(true)) => Some(Additional::Any),
                Some(node @ Value::Object(_)) => {
                    Some(Additional::Node(Box::new(Node::parse(node))))
                }
                _ => None,
            },
            items: at("items")
                .filter(|items| items.is_object())
                .map(|items| Box::new(Node::parse(items))),
            nullable: yes("nullable"),
            default: at("default").filter(|value| !value.is_null()).cloned(),
            preserve_unknown: yes("x-kubernetes-preserve-unknown-fields"),
            embedded: yes("x-kubernetes-embedded-resource"),
            int_or_string: yes("x-kubernetes-int-or-string"),
            rules: Rules::parse(source),
            list: match text("x-kubernetes-list-type") {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map {
                    keys: strings("x-kubernetes-list-map-keys")
                        .into_iter()
                        .map(Box::from)
                        .collect(),
                },
                _ => ListKind::Atomic,
            },
            map: match text("x-kubernetes-map-type") {
                Some("atomic") => MapKind::Atomic,
                _ => MapKind::Granular,
            },
            checks: Checks {
                required: strings("required").into_iter().map(String::from).collect(),
                allowed: at("enum").and_then(Value::as_array).cloned(),
                format: text("format").map(Box::from),
                pattern: text("pattern")
                    .filter(|pattern| !pattern.is_empty())
                    .map(|pattern| Box::new(Pattern::new(pattern))),
                minimum: number("minimum"),
                maximum: number("maximum"),
                exclusive_minimum: yes("exclusiveMinimum"),
                exclusive_maximum: yes("exclusiveMaximum"),
                multiple_of: number("multipleOf"),
                min_length: count("minLength"),
                max_length: count("maxLength"),
                min_items: count("minItems"),
                max_items: count("maxItems"),
                min_properties: count("minProperties"),
                max_properties: count("maxProperties"),
                all_of: nodes("allOf"),
                any_of: nodes("anyOf"),
                one_of: nodes("oneOf"),
                not: at("not")
                    .filter(|not| not.is_object())
                    .map(|not| Box::new(Node::parse(not))),
            },
        }
    }
}
