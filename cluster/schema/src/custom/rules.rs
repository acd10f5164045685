//! Rules in CEL (`x-kubernetes-validations`): compiled when they are first asked, held against an object beside what it was before.
//!
//! A rule that names `oldSelf` is about a change: it is asked where there was something before, or, with `optionalOldSelf`, always. What was before is found
//! by the names of fields, and in lists by the keys of their items; in a list without keys nothing is the same as before.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use berth_cel::{Budget, Error, Fields, Program, Shape, Val, Wants};
use serde_json::{Map, Value};

use super::{
    Cause,
    node::{Additional, Basic, Node},
};
use crate::{ListKind, Path};

/// Further ones are not told of.
const MAX_CAUSES: usize = 100;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// Of one schema.
#[derive(Debug, Default)]
pub(super) struct Rules {
    source: Vec<Source>,
    compiled: OnceLock<Compiled>,
}

#[derive(Debug)]
struct Source {
    rule: String,
    message: String,
    message_expression: String,
    reason: String,
    field_path: String,
    optional_old: bool,
}

#[derive(Debug)]
struct Compiled {
    shape: Shape,
    /// As many as there are sources; none for one that isn't right, which was refused when its CRD was written.
    rules: Vec<Option<Rule>>,
}

#[derive(Debug)]
struct Rule {
    program: Program,
    message: Option<Program>,
    /// It is about a change.
    of_change: bool,
}

impl Source {
    fn parse(rule: &Value) -> Self {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old: rule["optionalOldSelf"] == true,
        }
    }

    fn variables(&self, shape: &Shape) -> [(&'static str, Shape); 2] {
        let old = match self.optional_old {
            true => Shape::Optional,
            false => shape.clone(),
        };
        [("self", shape.clone()), ("oldSelf", old)]
    }

    fn compile(&self, shape: &Shape) -> Result<Rule, Error> {
        let variables = self.variables(shape);
        let program = Program::compile(&self.rule, &variables, Wants::Bool)?;
        let message = self.message(shape).and_then(|compiled| compiled.ok());
        Ok(Rule {
            of_change: program.mentions("oldSelf"),
            program,
            message,
        })
    }

    fn message(&self, shape: &Shape) -> Option<Result<Program, Error>> {
        let source = &self.message_expression;
        (!source.is_empty()).then(|| Program::compile(source, &self.variables(shape), Wants::Text))
    }

    /// What is said where there is no better message.
    fn says(&self) -> String {
        match self.message.as_str() {
            "" => format!("failed rule: {}", self.rule.trim()),
            message => message.to_owned(),
        }
    }

    fn cause(&self, field: String, sort: &str, detail: &str) -> Cause {
        let shown = format!("{sort:?}");
        match self.reason.as_str() {
            "FieldValueRequired" => Cause::required(field, detail),
            "FieldValueForbidden" => Cause::forbidden(field, detail),
            "FieldValueDuplicate" => Cause::new(
                field,
                "FieldValueDuplicate",
                &format!("Duplicate value: {shown}"),
                detail,
            ),
            _ => Cause::new(
                field,
                "FieldValueInvalid",
                &format!("Invalid value: {shown}"),
                detail,
            ),
        }
    }

    /// Where it says that the mistake is.
    fn place(&self, path: &Path<'_>) -> String {
        let place = format!("{path}{}", self.field_path);
        place.trim_start_matches('.').to_owned()
    }
}

impl Rules {
    pub(super) fn parse(schema: &Value) -> Option<Box<Self>> {
        let rules = schema.get("x-kubernetes-validations")?.as_array()?;
        let source: Vec<_> = rules.iter().map(Source::parse).collect();
        (!source.is_empty()).then(|| {
            Box::new(Self {
                source,
                compiled: OnceLock::new(),
            })
        })
    }

    fn compiled(&self, schema: &Node) -> &Compiled {
        self.compiled.get_or_init(|| {
            let shape = schema.shape();
            let rules = self
                .source
                .iter()
                .map(|source| source.compile(&shape).ok())
                .collect();
            Compiled { shape, rules }
        })
    }
}

impl Node {
    /// What an expression may know of its values.
    fn shape(&self) -> Shape {
        if self.int_or_string {
            return Shape::Any;
        }
        match self.ty {
            None => Shape::Any,
            Some(Basic::Boolean) => Shape::Bool,
            Some(Basic::Integer) => Shape::Int,
            Some(Basic::Number) => Shape::Double,
            Some(Basic::String) => match self.checks.format.as_deref() {
                Some("date" | "date-time") => Shape::Timestamp,
                Some("duration") => Shape::Duration,
                Some("byte") => Shape::Bytes,
                _ => Shape::Text,
            },
            Some(Basic::Array) => {
                let item = self.items.as_deref().map(Node::shape).unwrap_or_default();
                Shape::List(Arc::new(item))
            }
            Some(Basic::Object) => match &self.additional {
                Some(Additional::Any) => Shape::Map(Arc::new(Shape::Any)),
                Some(Additional::Node(value)) => Shape::Map(Arc::new(value.shape())),
                None if self.properties.is_empty() && self.preserve_unknown && !self.embedded => {
                    Shape::Any
                }
                None => Shape::Object(Arc::new(Fields(self.fields()))),
            },
        }
    }

    fn fields(&self) -> BTreeMap<Box<str>, Shape> {
        let mut fields: BTreeMap<Box<str>, Shape> = self
            .properties
            .iter()
            .map(|(name, node)| (name.as_str().into(), node.shape()))
            .collect();
        if self.embedded {
            // Of metadata no rule may know more.
            let metadata = ["name", "generateName"].map(|name| (name.into(), Shape::Text));
            let metadata = Shape::Object(Arc::new(Fields(metadata.into())));
            fields.insert("apiVersion".into(), Shape::Text);
            fields.insert("kind".into(), Shape::Text);
            fields.insert("metadata".into(), metadata);
        }
        fields
    }

    /// Whether there are rules at all, here or below.
    pub(super) fn is_ruled(&self) -> bool {
        self.rules.is_some()
            || self.properties.values().any(Node::is_ruled)
            || self.items.as_deref().is_some_and(Node::is_ruled)
            || matches!(&self.additional, Some(Additional::Node(node)) if node.is_ruled())
    }
}

/// Holds the rules against `object`, which is of its schema in all else, and what it was before.
pub(super) fn validate(root: &Node, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut walk = Walk {
        causes: Vec::new(),
        budget: Budget::of_object(),
        spent: false,
    };
    walk.node(root, object, old, &Path::Root);
    walk.causes
}

struct Walk {
    causes: Vec<Cause>,
    budget: Budget,
    spent: bool,
}

impl Walk {
    fn ends(&self) -> bool {
        self.spent || self.causes.len() >= MAX_CAUSES
    }

    fn node(&mut self, schema: &Node, value: &Value, old: Option<&Value>, path: &Path<'_>) {
        if self.ends() || value.is_null() {
            return;
        }
        if let Some(rules) = &schema.rules {
            self.rules(schema, rules, value, old, path);
        }
        match value {
            Value::Array(items) => {
                let Some(below) = schema.items.as_deref() else {
                    return;
                };
                let old = old.and_then(Value::as_array);
                for (index, item) in items.iter().enumerate() {
                    let before = match &schema.list {
                        ListKind::Map { keys } => old.and_then(|old| {
                            old.iter().find(|other| {
                                keys.iter().all(|key| other.get(&**key) == item.get(&**key))
                            })
                        }),
                        _ => None,
                    };
                    self.node(below, item, before, &path.index(index));
                }
            }
            Value::Object(fields) => self.fields(schema, fields, old, path),
            _ => {}
        }
    }

    fn fields(
        &mut self,
        schema: &Node,
        fields: &Map<String, Value>,
        old: Option<&Value>,
        path: &Path<'_>,
    ) {
        for (name, value) in fields {
            let below = match (schema.properties.get(name), &schema.additional) {
                (Some(property), _) => property,
                (None, Some(Additional::Node(node))) => node,
                _ => continue,
            };
            let before = old.and_then(|old| old.get(name));
            self.node(below, value, before, &path.key(name));
        }
    }

    fn rules(
        &mut self,
        schema: &Node,
        rules: &Rules,
        value: &Value,
        old: Option<&Value>,
        path: &Path<'_>,
    ) {
        let compiled = rules.compiled(schema);
        let old = old.filter(|old| !old.is_null());
        let sort = schema.ty.map_or("", Basic::name);
        for (source, rule) in rules.source.iter().zip(&compiled.rules) {
            let Some(rule) = rule else { continue };
            let skipped = match rule.of_change {
                true => old.is_none() && !source.optional_old,
                // what is as it was may stay, whatever has become of the rules
                false => old == Some(value),
            };
            if skipped || self.ends() {
                continue;
            }
            let before = match (old, source.optional_old) {
                (Some(old), true) => Val::some(Val::of(old, &compiled.shape)),
                (None, true) => Val::none(),
                (Some(old), false) => Val::of(old, &compiled.shape),
                (None, false) => Val::Null,
            };
            let variables = [
                ("self", Val::of(value, &compiled.shape)),
                ("oldSelf", before),
            ];
            let detail = match rule.program.run(&variables, &mut self.budget) {
                Ok(Val::Bool(true)) => continue,
                Ok(Val::Bool(false)) => self.message(source, rule, &variables),
                Ok(_) => format!("no such overload evaluating rule: {}", source.says()),
                Err(Error::TooCostly) => {
                    self.spent = true;
                    let field = path.to_string();
                    let cause = Source {
                        reason: String::new(),
                        ..Source::parse(&Value::Null)
                    };
                    self.causes.push(cause.cause(field, sort, OUT_OF_BUDGET));
                    return;
                }
                Err(error) => {
                    let detail = format!("{error} evaluating rule: {}", source.says());
                    let plain = Source::parse(&Value::Null);
                    self.causes
                        .push(plain.cause(path.to_string(), sort, &detail));
                    continue;
                }
            };
            self.causes
                .push(source.cause(source.place(path), sort, &detail));
        }
    }

    /// What the rule's own expression says, where it says something.
    fn message<'a>(
        &mut self,
        source: &Source,
        rule: &'a Rule,
        variables: &[(&str, Val<'a>)],
    ) -> String {
        let made = rule
            .message
            .as_ref()
            .map(|message| message.run(variables, &mut self.budget));
        match made {
            Some(Ok(Val::Text(text))) if !text.trim().is_empty() && !text.contains('\n') => {
                text.trim().to_owned()
            }
            _ => source.says(),
        }
    }
}

/// What is wrong with the rules of a schema that is at `path` in its CRD. `change` is whether what is there can be told from what was before.
pub(super) fn check(path: &str, schema: &Value, root: bool, change: bool, causes: &mut Vec<Cause>) {
    let rules = schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array);
    if let Some(rules) = rules.filter(|rules| !rules.is_empty()) {
        let mut node = Node::parse(schema);
        node.embedded |= root;
        let shape = node.shape();
        for (index, rule) in rules.iter().enumerate() {
            let path = format!("{path}.x-kubernetes-validations[{index}]");
            one(&path, &Source::parse(rule), &shape, &node, change, causes);
        }
    }
    let keyed = schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map");
    if let Some(items @ Value::Object(_)) = schema.get("items") {
        check(
            &format!("{path}.items"),
            items,
            false,
            change && keyed,
            causes,
        );
    }
    if let Some(values @ Value::Object(_)) = schema.get("additionalProperties") {
        let path = format!("{path}.additionalProperties");
        check(&path, values, false, change, causes);
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let path = format!("{path}.properties[{name}]");
        check(&path, property, false, change, causes);
    }
}

fn one(
    path: &str,
    source: &Source,
    shape: &Shape,
    node: &Node,
    change: bool,
    causes: &mut Vec<Cause>,
) {
    const REASONS: [&str; 4] = [
        "FieldValueRequired",
        "FieldValueInvalid",
        "FieldValueForbidden",
        "FieldValueDuplicate",
    ];
    let at = |name: &str| format!("{path}.{name}");
    let text = |text: &str| Value::String(text.into());
    if source.rule.trim().is_empty() {
        causes.push(Cause::required(at("rule"), "rule is not specified"));
        return;
    }
    match source.compile(shape) {
        Err(error) => causes.push(Cause::invalid(
            at("rule"),
            &text(&source.rule),
            &error.to_string(),
        )),
        Ok(rule) if rule.of_change && !change => causes.push(Cause::invalid(
            at("rule"),
            &text(&source.rule),
            "oldSelf cannot be used on the uncorrelatable portion of the schema",
        )),
        Ok(rule) if !rule.of_change && source.optional_old => causes.push(Cause::invalid(
            at("optionalOldSelf"),
            &Value::Bool(true),
            "may not be set if oldSelf is not used in rule",
        )),
        Ok(_) => {}
    }
    if let Some(Err(error)) = source.message(shape) {
        causes.push(Cause::invalid(
            at("messageExpression"),
            &text(&source.message_expression),
            &error.to_string(),
        ));
    }
    if source.message.contains('\n') {
        let says = "message must not contain line breaks";
        causes.push(Cause::invalid(at("message"), &text(&source.message), says));
    } else if source.rule.trim().contains('\n') && source.message.trim().is_empty() {
        let says = "message must be specified if rule contains line breaks";
        causes.push(Cause::required(at("message"), says));
    }
    if !source.reason.is_empty() && !REASONS.contains(&source.reason.as_str()) {
        causes.push(Cause::unsupported(
            at("reason"),
            &text(&source.reason),
            &REASONS.map(Value::from),
        ));
    }
    if !source.field_path.is_empty() && !leads_to_a_field(node, &source.field_path) {
        causes.push(Cause::invalid(
            at("fieldPath"),
            &text(&source.field_path),
            "fieldPath must be a valid path",
        ));
    }
}

/// `.spec.replicas`, `.labels['a']`: names of fields and keys of maps, and no items of lists.
fn leads_to_a_field(node: &Node, path: &str) -> bool {
    let Some(first) = path.chars().next() else {
        return true;
    };
    let (name, rest) = match first {
        '.' => {
            let end = path[1..].find(['.', '[']).map_or(path.len(), |end| end + 1);
            (&path[1..end], &path[end..])
        }
        '[' => match path[1..].split_once(']') {
            Some((name, rest)) => {
                let quoted = name
                    .strip_prefix('\'')
                    .and_then(|name| name.strip_suffix('\''));
                match quoted {
                    Some(name) => (name, rest),
                    None => return false,
                }
            }
            None => return false,
        },
        _ => return false,
    };
    match (node.properties.get(name), &node.additional) {
        (Some(below), _) => leads_to_a_field(below, rest),
        (None, Some(Additional::Node(below))) => leads_to_a_field(below, rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
