//! `metadata.managedFields`: who owns which fields, in which version, since when.

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use crate::{
    fields::{FieldSet, FieldsError},
    print,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What makes an entry of `managedFields` another one than the next. Who applies has one entry whatever version he applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    pub name: Box<str>,
    pub operation: Operation,
    /// Empty where the operation is Apply.
    pub api_version: Box<str>,
    /// Empty: of the object itself.
    pub subresource: Box<str>,
}

impl Manager {
    pub(crate) fn new(
        name: &str,
        operation: Operation,
        api_version: &str,
        subresource: &str,
    ) -> Self {
        let api_version = match operation {
            Operation::Apply => "",
            Operation::Update => api_version,
        };
        Self {
            name: if name.is_empty() { "unknown" } else { name }.into(),
            operation,
            api_version: api_version.into(),
            subresource: subresource.into(),
        }
    }
}

/// In the order of upstream's messages: a subresource comes before the object itself.
impl Ord for Manager {
    fn cmp(&self, other: &Self) -> Ordering {
        let of_object = |manager: &Self| manager.subresource.is_empty();
        (self.name.cmp(&other.name))
            .then_with(|| self.operation.cmp(&other.operation))
            .then_with(|| self.api_version.cmp(&other.api_version))
            .then_with(|| of_object(self).cmp(&of_object(other)))
            .then_with(|| self.subresource.cmp(&other.subresource))
    }
}

impl PartialOrd for Manager {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As conflicts show it.
impl fmt::Display for Manager {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&print::quoted(&self.name))?;
        if !self.subresource.is_empty() {
            write!(
                out,
                " with subresource {}",
                print::quoted(&self.subresource)
            )?;
        }
        if self.operation == Operation::Update {
            write!(out, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager owns.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) fields: FieldSet,
    /// That its paths are of.
    pub(crate) api_version: Box<str>,
    /// RFC 3339.
    pub(crate) time: Option<Box<str>>,
}

pub(crate) type Managers = BTreeMap<Manager, Owned>;

/// What is no `managedFields`.
#[derive(Debug, thiserror::Error)]
pub enum ManagedFieldsError {
    #[error("metadata must be an object")]
    NoMetadata,
    #[error("metadata.managedFields must be a list")]
    NotAList,
    #[error("managed fields entry {0} must be an object")]
    NotAnObject(usize),
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    #[error("apiVersion must not be empty")]
    ApiVersion,
    #[error("missing fieldsType in managed fields entry {0}")]
    NoFieldsType(usize),
    #[error("invalid fieldsType {1} in managed fields entry {0}")]
    FieldsType(usize, String),
    #[error("error decoding set: {0}")]
    Fields(#[from] FieldsError),
}

/// The entries of an object's `metadata.managedFields`; `None` where it is absent or null.
pub(crate) fn entries(object: &Value) -> Option<&Value> {
    let entries = object.get("metadata")?.get("managedFields")?;
    (!entries.is_null()).then_some(entries)
}

/// Takes the entries out of an object.
pub(crate) fn take_entries(object: &mut Value) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    metadata.remove("managedFields")
}

pub(crate) fn decode(entries: Option<&Value>) -> Result<Managers, ManagedFieldsError> {
    let mut managers = Managers::new();
    let Some(entries) = entries else {
        return Ok(managers);
    };
    let entries = entries.as_array().ok_or(ManagedFieldsError::NotAList)?;
    for (at, entry) in entries.iter().enumerate() {
        let entry = entry
            .as_object()
            .ok_or(ManagedFieldsError::NotAnObject(at))?;
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err(ManagedFieldsError::Operation),
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() {
            return Err(ManagedFieldsError::ApiVersion);
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err(ManagedFieldsError::NoFieldsType(at)),
            other => return Err(ManagedFieldsError::FieldsType(at, print::quoted(other))),
        }
        let manager = Manager {
            name: text("manager").into(),
            operation,
            api_version: match operation {
                Operation::Apply => "".into(),
                Operation::Update => api_version.into(),
            },
            subresource: text("subresource").into(),
        };
        let owned = Owned {
            fields: FieldSet::from_v1(entry.get("fieldsV1").unwrap_or(&Value::Null))?,
            api_version: api_version.into(),
            time: entry.get("time").and_then(Value::as_str).map(Into::into),
        };
        managers.insert(manager, owned);
    }
    Ok(managers)
}

/// In upstream's order: Apply before Update, then by time, then by name. `None`: nobody owns anything.
pub(crate) fn encode(managers: &Managers) -> Option<Value> {
    let mut entries: Vec<(&Manager, &Owned)> = managers.iter().collect();
    // The server writes times in UTC and to the second: they sort as text.
    entries.sort_by(|(left, left_owned), (right, right_owned)| {
        (left.operation.cmp(&right.operation))
            .then_with(|| left_owned.time.cmp(&right_owned.time))
            .then_with(|| left.name.cmp(&right.name))
            .then_with(|| left_owned.api_version.cmp(&right_owned.api_version))
            .then_with(|| left.subresource.cmp(&right.subresource))
    });
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|(manager, owned)| encode_entry(manager, owned))
        .collect();
    (!entries.is_empty()).then_some(Value::Array(entries))
}

fn encode_entry(manager: &Manager, owned: &Owned) -> Value {
    let mut entry = Map::new();
    let mut put = |name: &str, text: &str| {
        if !text.is_empty() {
            entry.insert(name.to_owned(), text.into());
        }
    };
    put("manager", &manager.name);
    put("operation", manager.operation.as_str());
    put("apiVersion", &owned.api_version);
    put("time", owned.time.as_deref().unwrap_or_default());
    put("fieldsType", "FieldsV1");
    put("subresource", &manager.subresource);
    entry.insert("fieldsV1".to_owned(), owned.fields.to_v1());
    Value::Object(entry)
}

/// Who owns what could not be kept in any other.
pub(crate) fn check_metadata(object: &Value) -> Result<(), ManagedFieldsError> {
    match object.get("metadata") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => Err(ManagedFieldsError::NoMetadata),
    }
}

/// `None` takes them away.
pub(crate) fn set_entries(object: &mut Value, entries: Option<Value>) {
    let Value::Object(fields) = object else {
        return;
    };
    if entries.is_none() && !fields.contains_key("metadata") {
        return;
    }
    let metadata = fields
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    let Value::Object(metadata) = metadata else {
        return;
    };
    match entries {
        Some(entries) => metadata.insert("managedFields".to_owned(), entries),
        None => metadata.remove("managedFields"),
    };
}

/// A client asks for a fresh start with an empty list, or one of an empty entry.
pub(crate) fn asks_for_reset(entries: Option<&Value>) -> bool {
    match entries.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([Value::Object(entry)]) => entry.is_empty(),
        _ => false,
    }
}

/// The `metadata.managedFields` of `object`, if a mutation (by a webhook, say) left them in a form that they can't have: the caller puts the old ones back.
pub fn validate_managed_fields(object: &Value) -> Result<(), ManagedFieldsError> {
    decode(entries(object)).map(drop)
}

/// Gives the entries of `new` the times of those of `live` where nothing but times has changed: an object that is written again as it is stays at its resourceVersion.
/// To be called after defaults and admission, last before the two are compared.
pub fn keep_times(live: &Value, new: &mut Value) {
    let (Some(Value::Array(old_entries)), Some(Value::Array(new_entries))) =
        (entries(live), entries(new))
    else {
        return;
    };
    let same_entries = old_entries.len() == new_entries.len()
        && old_entries
            .iter()
            .zip(new_entries)
            .all(|(old, new)| equal_but(old, new, &["time"]));
    if same_entries && equal_but(live, new, &["metadata", "managedFields"]) {
        let entries = Some(Value::Array(old_entries.clone()));
        set_entries(new, entries);
    }
}

/// Equal but for what is at `path`, which both have or one lacks.
fn equal_but(left: &Value, right: &Value, path: &[&str]) -> bool {
    let ([first, rest @ ..], Value::Object(left), Value::Object(right)) = (path, left, right)
    else {
        return path.is_empty() || left == right;
    };
    let others = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(*first));
    let same_at_first = match (left.get(*first), right.get(*first)) {
        (Some(left), Some(right)) => equal_but(left, right, rest),
        (None, None) => true,
        _ => rest.is_empty(),
    };
    same_at_first
        && others(left) == others(right)
        && left
            .iter()
            .filter(|(name, _)| name != first)
            .all(|(name, value)| right.get(name) == Some(value))
}
