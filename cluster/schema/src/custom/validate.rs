//! An object against its schema, with the causes that upstream's 422 has.

use serde_json::Value;

use super::{
    Cause, format,
    node::{Additional, Basic, Checks, Node},
};
use crate::{ListKind, Path};

/// Further ones are not told of: an answer has an end.
const MAX_CAUSES: usize = 100;

pub(super) fn validate(root: &Node, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    node(root, object, &Path::Root, &mut causes);
    causes.truncate(MAX_CAUSES);
    causes
}

fn node(schema: &Node, value: &Value, path: &Path<'_>, causes: &mut Vec<Cause>) {
    if causes.len() >= MAX_CAUSES || (value.is_null() && schema.nullable) {
        return;
    }
    let ty = match schema.int_or_string {
        true if is_of(Basic::Integer, value) || value.is_string() => None,
        true => Some("integer,string"),
        false => match schema.ty {
            Some(ty) if !is_of(ty, value) => Some(ty.name()),
            _ => None,
        },
    };
    if let Some(ty) = ty {
        let sort = sort(value);
        causes.push(Cause::new(
            path.to_string(),
            "FieldValueTypeInvalid",
            &format!("Invalid value: {sort:?}"),
            &format!("{path} in body must be of type {ty}: {sort:?}"),
        ));
        return;
    }
    let checks = &schema.checks;
    if let Some(allowed) = &checks.allowed
        && !allowed.contains(value)
    {
        causes.push(Cause::unsupported(path.to_string(), value, allowed));
    }
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => numbers(schema, number, path, causes),
        Value::String(text) => string(checks, text, path, causes),
        Value::Array(list) => array(schema, list, path, causes),
        Value::Object(object) => self::object(schema, object, path, causes),
    }
    quantors(checks, value, path, causes);
}

fn is_of(ty: Basic, value: &Value) -> bool {
    match ty {
        Basic::Object => value.is_object(),
        Basic::Array => value.is_array(),
        Basic::String => value.is_string(),
        Basic::Boolean => value.is_boolean(),
        Basic::Number => value.is_number(),
        // 3.0 is one.
        Basic::Integer => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
    }
}

fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_of(Basic::Integer, value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn invalid(path: &Path<'_>, value: &Value, says: &str, causes: &mut Vec<Cause>) {
    let detail = format!("{path} in body {says}");
    causes.push(Cause::invalid(path.to_string(), value, &detail));
}

fn numbers(schema: &Node, number: &serde_json::Number, path: &Path<'_>, causes: &mut Vec<Cause>) {
    let checks = &schema.checks;
    let value = Value::Number(number.clone());
    let Some(n) = number.as_f64() else { return };
    if let Some(least) = checks.minimum {
        if checks.exclusive_minimum && n <= least {
            invalid(
                path,
                &value,
                &format!("should be greater than {least}"),
                causes,
            );
        } else if n < least {
            let says = format!("should be greater than or equal to {least}");
            invalid(path, &value, &says, causes);
        }
    }
    if let Some(most) = checks.maximum {
        if checks.exclusive_maximum && n >= most {
            invalid(path, &value, &format!("should be less than {most}"), causes);
        } else if n > most {
            let says = format!("should be less than or equal to {most}");
            invalid(path, &value, &says, causes);
        }
    }
    if let Some(of) = checks.multiple_of
        && of > 0.0
        && (n / of).fract() != 0.0
    {
        invalid(
            path,
            &value,
            &format!("should be a multiple of {of}"),
            causes,
        );
    }
    let integer = schema.ty == Some(Basic::Integer);
    let fits = match checks.format.as_deref() {
        Some("int32") if integer => n >= f64::from(i32::MIN) && n <= f64::from(i32::MAX),
        Some("int64") if integer => number.as_i64().is_some() || !number.is_u64(),
        _ => true,
    };
    if !fits {
        let format = checks.format.as_deref().unwrap_or_default();
        let says = format!("must be of type integer with format {format}");
        invalid(path, &value, &says, causes);
    }
}

fn string(checks: &Checks, text: &str, path: &Path<'_>, causes: &mut Vec<Cause>) {
    let value = || Value::String(text.into());
    let length = text.chars().count() as u64;
    if let Some(least) = checks.min_length
        && length < least
    {
        let says = format!("should be at least {least} chars long");
        invalid(path, &value(), &says, causes);
    }
    if let Some(most) = checks.max_length
        && length > most
    {
        causes.push(Cause::new(
            path.to_string(),
            "FieldValueTooLong",
            "Too long",
            &format!("may not be more than {most} bytes"),
        ));
    }
    if let Some(pattern) = &checks.pattern
        && !pattern.is_match(text)
    {
        invalid(
            path,
            &value(),
            &format!("should match '{}'", pattern.text),
            causes,
        );
    }
    if let Some(format) = &checks.format
        && !format::is_of(format, text)
    {
        let says = format!("must be of type {format}: {text:?}");
        causes.push(Cause::new(
            path.to_string(),
            "FieldValueTypeInvalid",
            &format!("Invalid value: {}", value()),
            &format!("{path} in body {says}"),
        ));
    }
}

fn array(schema: &Node, list: &[Value], path: &Path<'_>, causes: &mut Vec<Cause>) {
    let checks = &schema.checks;
    let length = list.len() as u64;
    if let Some(least) = checks.min_items
        && length < least
    {
        let says = format!("should have at least {least} items");
        invalid(path, &length.into(), &says, causes);
    }
    if let Some(most) = checks.max_items
        && length > most
    {
        too_many(path, length, most, causes);
        return;
    }
    if let Some(items) = &schema.items {
        for (index, value) in list.iter().enumerate() {
            node(items, value, &path.index(index), causes);
        }
    }
    match &schema.list {
        ListKind::Atomic => {}
        ListKind::Set => duplicates(list, path, causes, |value| Some(value.clone())),
        ListKind::Map { keys } => duplicates(list, path, causes, |value| {
            let keys = keys.iter().map(|key| {
                let default = || {
                    let item = schema.items.as_deref()?;
                    item.properties.get(key.as_ref())?.default.as_ref()
                };
                let value = value.get(key.as_ref()).or_else(default);
                (key.to_string(), value.cloned().unwrap_or(Value::Null))
            });
            value.is_object().then(|| Value::Object(keys.collect()))
        }),
    }
}

/// Each that was there before, by what tells it from others.
fn duplicates(
    list: &[Value],
    path: &Path<'_>,
    causes: &mut Vec<Cause>,
    key: impl Fn(&Value) -> Option<Value>,
) {
    let mut seen = std::collections::HashSet::new();
    for (index, value) in list.iter().enumerate() {
        if let Some(key) = key(value)
            && !seen.insert(key.to_string())
            && causes.len() < MAX_CAUSES
        {
            causes.push(Cause::new(
                path.index(index).to_string(),
                "FieldValueDuplicate",
                &format!("Duplicate value: {key}"),
                "",
            ));
        }
    }
}

fn too_many(path: &Path<'_>, length: u64, most: u64, causes: &mut Vec<Cause>) {
    causes.push(Cause::new(
        path.to_string(),
        "FieldValueTooMany",
        &format!("Too many: {length}"),
        &format!("must have at most {most} items"),
    ));
}

fn object(
    schema: &Node,
    object: &serde_json::Map<String, Value>,
    path: &Path<'_>,
    causes: &mut Vec<Cause>,
) {
    let checks = &schema.checks;
    let length = object.len() as u64;
    if let Some(least) = checks.min_properties
        && length < least
    {
        let says = format!("should have at least {least} properties");
        invalid(path, &length.into(), &says, causes);
    }
    if let Some(most) = checks.max_properties
        && length > most
    {
        too_many(path, length, most, causes);
    }
    for name in &checks.required {
        if !object.contains_key(name) {
            causes.push(Cause::required(path.key(name).to_string(), ""));
        }
    }
    if schema.embedded && !matches!(path, Path::Root) {
        for name in ["apiVersion", "kind"] {
            if object
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("")
                .is_empty()
            {
                let field = path.key(name).to_string();
                causes.push(Cause::required(field, "must not be empty"));
            }
        }
    }
    for (name, value) in object {
        if schema.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let below = match (schema.properties.get(name), &schema.additional) {
            (Some(property), _) => property,
            (None, Some(Additional::Node(node))) => node,
            _ => continue,
        };
        node(below, value, &path.key(name), causes);
    }
}

fn quantors(checks: &Checks, value: &Value, path: &Path<'_>, causes: &mut Vec<Cause>) {
    let fits = |schema: &Node| {
        let mut found = Vec::new();
        node(schema, value, path, &mut found);
        found
    };
    let mut says = |what: &str| {
        let detail = format!("{path} in body {what}");
        let shown = match value {
            Value::Object(_) | Value::Array(_) => Value::String(String::new()),
            value => value.clone(),
        };
        causes.push(Cause::invalid(path.to_string(), &shown, &detail));
    };
    let mut further = Vec::new();
    for schema in &checks.all_of {
        let found = fits(schema);
        if !found.is_empty() {
            says("must validate all the schemas (allOf)");
            further.extend(found);
        }
    }
    if !checks.any_of.is_empty() && !checks.any_of.iter().any(|schema| fits(schema).is_empty()) {
        says("must validate at least one schema (anyOf)");
        if let Some(first) = checks.any_of.first() {
            further.extend(fits(first));
        }
    }
    if !checks.one_of.is_empty() {
        let valid = checks
            .one_of
            .iter()
            .filter(|schema| fits(schema).is_empty());
        match valid.count() {
            1 => {}
            0 => says("must validate one and only one schema (oneOf). Found none valid"),
            n => says(&format!(
                "must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    if let Some(not) = &checks.not
        && fits(not).is_empty()
    {
        says("must not validate the schema (not)");
    }
    causes.extend(further);
}
