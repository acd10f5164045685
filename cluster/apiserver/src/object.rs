//! The metadata of an object that is worked on as JSON. All are total: an object of any form is asked, none panics.

use berth_kinds::at;
use berth_store::Revision;
use serde_json::{Map, Value};

pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    at(object, pointer)?.as_i64()
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

pub fn is_deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Its metadata, which is made where there is none (or something else).
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    part(object, "metadata")
}

/// A part that is an object, made where it is none.
pub fn part<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    let fields = fields(object);
    let part = fields.entry(name).or_insert_with(empty);
    if !part.is_object() {
        *part = empty();
    }
    self::fields(part)
}

fn empty() -> Value {
    Value::Object(Map::new())
}

fn fields(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = empty();
    }
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("it was made an object above"),
    }
}

/// Empty: away with it.
pub fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    let value = value.into();
    let metadata = metadata(object);
    if value.is_null() || value.as_str() == Some("") {
        metadata.remove(name);
    } else {
        metadata.insert(name.into(), value);
    }
}

pub fn set_resource_version(object: &mut Value, revision: Revision) {
    set(object, "resourceVersion", revision.to_string());
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    at(object, "/metadata/finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    let metadata = metadata(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
}

pub fn owners(object: &Value) -> impl Iterator<Item = &Map<String, Value>> {
    at(object, "/metadata/ownerReferences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
}

/// Whether two of a kind are the same but for what the server counts.
pub fn same(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else {
        return one == other;
    };
    one.len() == other.len()
        && one.iter().all(|(key, value)| match other.get(key) {
            Some(other) if key == "metadata" => same_metadata(value, other),
            other => other == Some(value),
        })
}

fn same_metadata(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else {
        return one == other;
    };
    let counted = |(key, _): &(&String, &Value)| *key != "resourceVersion";
    one.iter().filter(counted).eq(other.iter().filter(counted))
}

/// A random uid (RFC 4122, version 4).
pub fn new_uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// What generateName is lengthened by: no vowels, no digits that look like letters (upstream's).
pub const GENERATED_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED: usize = 5;
/// Of a generated name, before what is generated.
const LONGEST_BASE: usize = 63 - GENERATED;

pub fn generate_name(base: &str) -> String {
    let mut name: String = base.chars().take(LONGEST_BASE).collect();
    for _ in 0..GENERATED {
        let at = rand::random_range(0..GENERATED_LETTERS.len());
        name.push(char::from(GENERATED_LETTERS[at]));
    }
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_of_any_form_are_asked_and_changed() {
        for mut object in [
            json!(null),
            json!(3),
            json!([]),
            json!({"metadata": 3}),
            json!({"metadata": {"ownerReferences": [3], "finalizers": {}, "name": []}}),
        ] {
            assert_eq!(name(&object), "");
            assert_eq!(owners(&object).count(), 0);
            assert!(finalizers(&object).is_empty());
            set_resource_version(&mut object, 7);
            assert_eq!(resource_version(&object), "7");
        }
    }

    #[test]
    fn a_resource_version_makes_no_difference() {
        let one = json!({"metadata": {"name": "a", "resourceVersion": "1"}, "spec": 1});
        let mut other = one.clone();
        set_resource_version(&mut other, 2);
        assert!(same(&one, &other));
        other["spec"] = 2.into();
        assert!(!same(&one, &other));
    }

    #[test]
    fn generated_names_keep_to_63_letters() {
        let name = generate_name(&"a".repeat(100));
        assert_eq!(name.len(), 63);
        assert_ne!(generate_name("x-"), generate_name("x-"));
        assert_eq!(new_uid().len(), 36);
    }
}
