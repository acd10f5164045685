use serde_json::Value;

/// A built-in kind in one version. Hooks are for what data can't say; most kinds have none.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Empty for core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// In paths.
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// Below `/registry/`, as upstream keeps it: `pods`, `services/specs`, `minions` (core's have no group; `deployments`, `leases`…). Empty: it
    /// isn't kept (reviews, metrics).
    pub storage: &'static str,
    /// What it can do: `create`, `delete`, … Reviews can only be made.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// What a Table has of it.
    pub columns: &'static [Column],
    /// Paths that a field selector may name beside `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// Fills in what upstream's defaults fill in; only what is absent is set.
    pub default: fn(&mut Value),
    /// Before a create: status away, fields that only the server sets.
    pub prepare_create: fn(&mut Value),
    /// Before an update: (new, old). Status stays the old one's; `metadata.generation` counts when `spec` changed.
    pub prepare_update: fn(&mut Value, &Value),
    pub validate: fn(&Value) -> Vec<Invalid>,
    /// Of a new object, after `validate`: what one that is there already may have as it was once allowed.
    pub validate_create: fn(&Value) -> Vec<Invalid>,
    /// (new, old), after `validate`: what may not change.
    pub validate_update: fn(&Value, &Value) -> Vec<Invalid>,
    /// From this version to the one that is kept under `storage`; both versions share it. Does nothing where this is the one.
    pub to_stored: fn(&mut Value),
    /// Back again.
    pub from_stored: fn(&mut Value),
}

#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: &'static str,
    pub verbs: &'static [&'static str],
    /// Of what it takes and answers, where that is another kind: group, version, kind.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
}

/// meta.k8s.io/v1 TableColumnDefinition, and how its cell is computed.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub kind: &'static str,
    /// `name` for the first, else mostly empty.
    pub format: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
    pub cell: Cell,
}

/// `now` is seconds since the epoch, for ages.
#[derive(Debug, Clone, Copy)]
pub enum Cell {
    /// A JSON pointer into the object; `<none>` where there is nothing.
    Pointer(&'static str),
    /// Since this RFC 3339 time, as kubectl writes durations (`5m30s`, `3d`).
    Age(&'static str),
    Of(fn(object: &Value, now: i64) -> Value),
}

/// Status.details.causes\[\], upstream's field.Error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// `spec.containers[0].name`.
    pub field: String,
    pub reason: Reason,
    /// As upstream words it: `Required value: must specify a container name`.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    NotFound,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl Reason {
    /// metav1.CauseType.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}
