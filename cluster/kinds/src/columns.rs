//! What a Table shows of a kind.

mod access;
mod admission;
mod duration;
mod network;
mod node;
mod pod;
mod storage;
mod workload;

use serde_json::Value;

use crate::kind::{Cell, Column};

pub use duration::human_duration;
pub use workload::SCALE;
pub(crate) use {
    access::*,
    admission::*,
    network::*,
    node::*,
    pod::{EVENT, POD, POD_TEMPLATE},
    storage::*,
    workload::*,
};

pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    cell: Cell::Pointer("/metadata/name"),
};

pub(crate) const AGE: Column = column("Age", "string", Cell::Age("/metadata/creationTimestamp"));

pub(crate) const fn column(name: &'static str, kind: &'static str, cell: Cell) -> Column {
    Column {
        name,
        kind,
        format: "",
        priority: 0,
        cell,
    }
}

/// Shown with `-o wide`.
pub(crate) const fn wide(name: &'static str, kind: &'static str, cell: Cell) -> Column {
    Column {
        name,
        kind,
        format: "",
        priority: 1,
        cell,
    }
}

/// Kinds without columns of their own show when they were made, not since when.
pub(crate) const CREATED_AT: &[Column] = &[
    NAME,
    column(
        "Created At",
        "date",
        Cell::Pointer("/metadata/creationTimestamp"),
    ),
];

impl Column {
    /// What the row of `object` has here; `now` is seconds since the epoch.
    pub fn cell(&self, object: &Value, now: i64) -> Value {
        match self.cell {
            Cell::Pointer(pointer) => match object.pointer(pointer) {
                None | Some(Value::Null) => "<none>".into(),
                Some(value @ (Value::String(_) | Value::Number(_))) => value.clone(),
                Some(value) => value.to_string().into(),
            },
            Cell::Age(pointer) => since(object.pointer(pointer), now).into(),
            Cell::Of(of) => of(object, now),
        }
    }
}

/// `5m30s` since that RFC 3339 time.
pub(crate) fn since(time: Option<&Value>, now: i64) -> String {
    match time.and_then(Value::as_str).and_then(crate::time::seconds) {
        Some(then) => human_duration(now.saturating_sub(then)),
        None => "<unknown>".to_owned(),
    }
}
