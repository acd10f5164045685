//! Whether a schema is one that a CustomResourceDefinition may have: structural, and without what upstream forbids.

use serde_json::{Map, Value};

use super::{
    Cause,
    node::{Basic, Node, Pattern},
    rules, validate,
};

/// Further ones are not told of.
const MAX_CAUSES: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What is wrong with an openAPIV3Schema that is at `path` in its CRD (`spec.versions[0].schema.openAPIV3Schema`).
pub fn check(path: &str, schema: &Value) -> Vec<Cause> {
    let mut check = Check { causes: Vec::new() };
    check.forbidden(path, schema);
    check.structural(path, schema, Level::Root);
    // of a schema that is none nothing can be said
    if check.causes.is_empty() {
        rules::check(path, schema, true, true, &mut check.causes);
    }
    check
        .causes
        .sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    check.causes.dedup();
    check.causes.truncate(MAX_CAUSES);
    check.causes
}

/// Fields that hold schemas, by how.
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

struct Check {
    causes: Vec<Cause>,
}

impl Check {
    fn push(&mut self, cause: Cause) {
        if self.causes.len() < 2 * MAX_CAUSES {
            self.causes.push(cause);
        }
    }

    /// What no schema may have, nested in a quantor or not.
    fn forbidden(&mut self, path: &str, schema: &Value) {
        let Some(schema) = schema.as_object() else {
            let cause = Cause::invalid(path.into(), schema, "must be an object");
            return self.push(cause);
        };
        for name in [
            "id",
            "patternProperties",
            "definitions",
            "dependencies",
            "additionalItems",
            "$ref",
        ] {
            let set = schema.get(name).is_some_and(|value| {
                !value.is_null() && value.as_object().is_none_or(|value| !value.is_empty())
            });
            if set {
                let says = format!("{name} is not supported");
                self.push(Cause::forbidden(format!("{path}.{name}"), &says));
            }
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            self.push(Cause::forbidden(
                format!("{path}.uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ));
        }
        if schema.get("items").is_some_and(Value::is_array) {
            let says = "items must be a schema object and not an array";
            self.push(Cause::forbidden(format!("{path}.items"), says));
        }
        match schema.get("type") {
            None => {}
            Some(Value::String(ty)) if ty == "null" => self.push(Cause::forbidden(
                format!("{path}.type"),
                "type cannot be set to null, use nullable as an alternative",
            )),
            Some(Value::String(ty)) if ty.is_empty() || Basic::named(ty).is_some() => {}
            Some(ty) => {
                let types = ["array", "boolean", "integer", "number", "object", "string"];
                let cause = Cause::unsupported(format!("{path}.type"), ty, &types.map(Value::from));
                self.push(cause);
            }
        }
        match schema.get("additionalProperties") {
            Some(Value::Bool(false)) => self.push(Cause::forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties cannot be set to false",
            )),
            Some(Value::Bool(true) | Value::Object(_)) if has(schema, "properties") => {
                self.push(Cause::forbidden(
                    format!("{path}.additionalProperties"),
                    "additionalProperties and properties are mutual exclusive",
                ));
            }
            _ => {}
        }
        if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            self.push(Cause::invalid(
                format!("{path}.x-kubernetes-preserve-unknown-fields"),
                &Value::Bool(false),
                "must be true or undefined",
            ));
        }
        if let Some(Value::String(pattern)) = schema.get("pattern")
            && let Err(error) = Pattern::new(pattern).compile()
        {
            let says = format!("must be a valid regular expression, but isn't: {error}");
            let cause = Cause::invalid(
                format!("{path}.pattern"),
                &Value::String(pattern.clone()),
                &says,
            );
            self.push(cause);
        }
        self.lists(path, schema);
        for (path, schema) in children(path, schema) {
            self.forbidden(&path, schema);
        }
    }

    /// x-kubernetes-list-type, -list-map-keys and -map-type.
    fn lists(&mut self, path: &str, schema: &Map<String, Value>) {
        let text = |name: &str| schema.get(name).and_then(Value::as_str);
        let ty = text("type").unwrap_or_default();
        let at = |name: &str| format!("{path}.{name}");
        let must_be = |is: &str, says: &str| match ty {
            "" => Cause::required(at("type"), says),
            ty if ty != is => Cause::invalid(at("type"), &ty.into(), says),
            _ => unreachable!("its type is right"),
        };
        if let Some(map) = text("x-kubernetes-map-type") {
            if ty != "object" {
                let says = "must be object if x-kubernetes-map-type is specified";
                self.push(must_be("object", says));
            }
            if !matches!(map, "atomic" | "granular") {
                let known = ["atomic", "granular"].map(Value::from);
                let cause = Cause::unsupported(at("x-kubernetes-map-type"), &map.into(), &known);
                self.push(cause);
            }
        }
        let list = text("x-kubernetes-list-type");
        if let Some(list) = list {
            if ty != "array" {
                let says = "must be array if x-kubernetes-list-type is specified";
                self.push(must_be("array", says));
            }
            if !matches!(list, "atomic" | "set" | "map") {
                let known = ["atomic", "set", "map"].map(Value::from);
                let cause = Cause::unsupported(at("x-kubernetes-list-type"), &list.into(), &known);
                self.push(cause);
            }
        }
        let empty = Vec::new();
        let keys = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .unwrap_or(&empty);
        if !keys.is_empty() && list != Some("map") {
            let says = "must be map if x-kubernetes-list-map-keys is non-empty";
            let cause = match list {
                None => Cause::required(at("x-kubernetes-list-type"), says),
                Some(list) => Cause::invalid(at("x-kubernetes-list-type"), &list.into(), says),
            };
            self.push(cause);
        }
        if list != Some("map") {
            return;
        }
        if keys.is_empty() {
            self.push(Cause::required(
                at("x-kubernetes-list-map-keys"),
                "must not be empty if x-kubernetes-list-type is map",
            ));
        }
        let Some(items) = schema.get("items").and_then(Value::as_object) else {
            let says = "must have a schema if x-kubernetes-list-type is map";
            return self.push(Cause::required(at("items"), says));
        };
        let item_type = items.get("type").and_then(Value::as_str).unwrap_or("");
        if item_type != "object" {
            self.push(Cause::invalid(
                at("items.type"),
                &item_type.into(),
                "must be object if parent array's x-kubernetes-list-type is map",
            ));
        }
        let required = items.get("required").and_then(Value::as_array);
        for (index, key) in keys.iter().enumerate() {
            let keys_at = at("x-kubernetes-list-map-keys");
            let all = Value::Array(keys.clone());
            if keys[..index].contains(key) {
                self.push(Cause::invalid(
                    keys_at,
                    &all,
                    "must not contain duplicate entries",
                ));
                continue;
            }
            let name = key.as_str().unwrap_or_default();
            let property = items.get("properties").and_then(|all| all.get(name));
            let Some(property) = property.and_then(Value::as_object) else {
                let says = "entries must all be names of item properties";
                self.push(Cause::invalid(keys_at, &all, says));
                continue;
            };
            let below = format!("{path}.items.properties[{name}]");
            if matches!(
                property.get("type").and_then(Value::as_str),
                Some("array" | "object")
            ) {
                self.push(Cause::invalid(
                    format!("{below}.type"),
                    &item_type.into(),
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                ));
            }
            let is_required = required.is_some_and(|required| required.contains(key));
            if !is_required && property.get("default").is_none_or(Value::is_null) {
                self.push(Cause::required(
                    format!("{below}.default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                ));
            }
            if property.get("nullable") == Some(&Value::Bool(true)) {
                self.push(Cause::forbidden(
                    format!("{below}.nullable"),
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                ));
            }
        }
    }

    /// Every field has a type and one place that says so.
    fn structural(&mut self, path: &str, schema: &Value, level: Level) {
        let Some(schema) = schema.as_object() else {
            return;
        };
        let at = |name: &str| format!("{path}.{name}");
        let yes = |name: &str| schema.get(name) == Some(&Value::Bool(true));
        let ty = schema.get("type").and_then(Value::as_str).unwrap_or("");
        let int_or_string = yes("x-kubernetes-int-or-string");
        let preserve = yes("x-kubernetes-preserve-unknown-fields");
        let embedded = yes("x-kubernetes-embedded-resource");
        if ty == "array" && schema.get("items").is_none_or(Value::is_null) {
            self.push(Cause::required(at("items"), "must be specified"));
        }
        if embedded && ty != "object" {
            let says = "must be object if x-kubernetes-embedded-resource is true";
            let cause = match ty {
                "" => Cause::required(at("type"), says),
                ty => Cause::invalid(at("type"), &ty.into(), says),
            };
            self.push(cause);
        } else if ty.is_empty() && !int_or_string && !preserve {
            let says = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.push(Cause::required(at("type"), says));
        }
        if level == Level::Root {
            if !ty.is_empty() && ty != "object" {
                let says = "must be object at the root";
                self.push(Cause::invalid(at("type"), &ty.into(), says));
            }
            if yes("nullable") {
                let says = "nullable cannot be true at the root";
                self.push(Cause::forbidden(at("nullable"), says));
            }
            if has(schema, "additionalProperties") || yes("additionalProperties") {
                let says = "must not be used at the root";
                self.push(Cause::forbidden(at("additionalProperties"), says));
            }
        }
        if int_or_string {
            for name in [
                "x-kubernetes-preserve-unknown-fields",
                "x-kubernetes-embedded-resource",
            ] {
                if yes(name) {
                    let says = "must be false if x-kubernetes-int-or-string is true";
                    self.push(Cause::invalid(at(name), &Value::Bool(true), says));
                }
            }
        }
        if embedded {
            if has(schema, "additionalProperties") || yes("additionalProperties") {
                let says = "must not be used if x-kubernetes-embedded-resource is set";
                self.push(Cause::forbidden(at("additionalProperties"), says));
            }
            if !preserve && !has(schema, "properties") {
                let says = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
                self.push(Cause::required(at("properties"), says));
            }
        }
        if level == Level::Root || embedded {
            self.implied(path, schema, level);
        }
        if let Some(default) = schema.get("default").filter(|value| !value.is_null()) {
            for cause in validate::validate(&Node::parse(&Value::Object(schema.clone())), default) {
                let below = match cause.field.as_str() {
                    "" => String::new(),
                    field => format!(".{field}"),
                };
                let field = format!("{path}.default{below}");
                self.push(Cause { field, ..cause });
            }
        }
        // The two forms in which int-or-string may say its types.
        let either = |schema: Option<&Value>| {
            let types: Vec<_> = schema
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|schema| (schema.as_object().map(Map::len), schema.get("type")))
                .collect();
            let (integer, string) = (Value::from("integer"), Value::from("string"));
            types == [(Some(1), Some(&integer)), (Some(1), Some(&string))]
        };
        for name in LISTS {
            let list = schema.get(name).and_then(Value::as_array);
            if name == "anyOf" && either(schema.get(name)) {
                continue;
            }
            for (index, nested) in list.into_iter().flatten().enumerate() {
                let first = name == "allOf" && index == 0;
                let skip = first && either(nested.get("anyOf"));
                self.nested(&format!("{path}.{name}[{index}]"), nested, skip);
            }
        }
        if let Some(not) = schema.get("not") {
            self.nested(&at("not"), not, false);
        }
        if let Some(items) = schema.get("items") {
            self.structural(&at("items"), items, Level::Item);
        }
        if let Some(additional) = schema.get("additionalProperties") {
            self.structural(&at("additionalProperties"), additional, Level::Field);
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            if level == Level::Root && name == "metadata" {
                continue;
            }
            self.structural(
                &format!("{path}.properties[{name}]"),
                property,
                Level::Field,
            );
        }
    }

    /// apiVersion, kind and metadata, which every resource has.
    fn implied(&mut self, path: &str, schema: &Map<String, Value>, level: Level) {
        let property = |name: &str| schema.get("properties").and_then(|all| all.get(name));
        for name in ["kind", "apiVersion"] {
            let ty = property(name).map(|property| property.get("type").unwrap_or(&Value::Null));
            if let Some(ty) = ty.filter(|ty| *ty != "string") {
                let field = format!("{path}.properties[{name}].type");
                self.push(Cause::invalid(field, ty, "must be string"));
            }
        }
        let Some(metadata) = property("metadata").and_then(Value::as_object) else {
            return;
        };
        let at = format!("{path}.properties[metadata]");
        if metadata.get("type").is_none_or(|ty| ty != "object") {
            let ty = metadata.get("type").unwrap_or(&Value::Null);
            self.push(Cause::invalid(format!("{at}.type"), ty, "must be object"));
        }
        let plain = metadata.iter().all(|(name, value)| match name.as_str() {
            "type" | "description" | "title" => true,
            "properties" => value.as_object().is_some_and(|properties| {
                properties
                    .keys()
                    .all(|name| name == "name" || name == "generateName")
            }),
            _ => false,
        });
        if level == Level::Root && !plain {
            self.push(Cause::forbidden(
                at,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }

    /// Within allOf, anyOf, oneOf or not: values are restricted there, nothing is defined.
    fn nested(&mut self, path: &str, schema: &Value, skip_any_of: bool) {
        let Some(schema) = schema.as_object() else {
            return;
        };
        let at = |name: &str| format!("{path}.{name}");
        for (name, says) in [
            ("type", "must be empty to be structural"),
            ("title", "must be empty to be structural"),
            ("description", "must be empty to be structural"),
            (
                "x-kubernetes-list-map-keys",
                "must be empty to be structural",
            ),
            ("x-kubernetes-validations", "must be empty to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("default", "must be undefined to be structural"),
            (
                "x-kubernetes-list-type",
                "must be undefined to be structural",
            ),
            (
                "x-kubernetes-map-type",
                "must be undefined to be structural",
            ),
            ("nullable", "must be false to be structural"),
            (
                "x-kubernetes-preserve-unknown-fields",
                "must be false to be structural",
            ),
            (
                "x-kubernetes-embedded-resource",
                "must be false to be structural",
            ),
            (
                "x-kubernetes-int-or-string",
                "must be false to be structural",
            ),
        ] {
            let set = match schema.get(name) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Array(list)) => !list.is_empty(),
                Some(_) => true,
            };
            if set {
                self.push(Cause::forbidden(at(name), says));
            }
        }
        if schema
            .get("properties")
            .is_some_and(|all| all.get("metadata").is_some())
        {
            let field = at("properties[metadata]");
            self.push(Cause::forbidden(
                field,
                "must not be specified in a nested context",
            ));
        }
        for (below, child) in children(path, schema) {
            let additional = below == at("additionalProperties");
            let skipped = skip_any_of && below.starts_with(&at("anyOf["));
            if !additional && !skipped {
                self.nested(&below, child, false);
            }
        }
    }
}

/// Something is in it.
fn has(schema: &Map<String, Value>, name: &str) -> bool {
    schema
        .get(name)
        .and_then(Value::as_object)
        .is_some_and(|value| !value.is_empty())
}

/// The schemas within a schema, with their paths.
fn children<'a>(path: &str, schema: &'a Map<String, Value>) -> Vec<(String, &'a Value)> {
    let mut children = Vec::new();
    for name in ["items", "additionalProperties", "not"] {
        if let Some(child @ Value::Object(_)) = schema.get(name) {
            children.push((format!("{path}.{name}"), child));
        }
    }
    for name in LISTS {
        let list = schema.get(name).and_then(Value::as_array);
        for (index, child) in list.into_iter().flatten().enumerate() {
            children.push((format!("{path}.{name}[{index}]"), child));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, child) in properties.into_iter().flatten() {
        children.push((format!("{path}.properties[{name}]"), child));
    }
    children
}
