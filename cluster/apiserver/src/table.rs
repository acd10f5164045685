//! Objects as rows: meta.k8s.io's Table, and PartialObjectMetadata.

use serde_json::{Map, Value, json};

use crate::{
    catalog::{MadeOf, Resource},
    failure::Failure,
};

/// What a row has of its object beside the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Failure::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            ))),
        }
    }
}

/// `json!` copies what it is given.
pub fn object_of<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter();
    Value::Object(
        fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

pub fn partial(object: &Value, version: &str) -> Value {
    let metadata = object.get("metadata").cloned();
    object_of([
        ("kind", "PartialObjectMetadata".into()),
        ("apiVersion", format!("meta.k8s.io/{version}").into()),
        (
            "metadata",
            metadata.unwrap_or_else(|| Value::Object(Map::new())),
        ),
    ])
}

/// `meta` is the list's, `now` in seconds since the epoch.
pub fn of_objects(
    resource: &Resource,
    objects: &[Value],
    include: IncludeObject,
    version: &str,
    meta: Value,
    now: i64,
) -> Value {
    let (definitions, cells): (Vec<Value>, Vec<Vec<Value>>) = match &resource.made_of {
        MadeOf::BuiltIn(kind) => (
            kind.columns
                .iter()
                .map(|column| definition(column.name, column.kind, column.format, column.priority))
                .collect(),
            objects
                .iter()
                .map(|object| {
                    kind.columns
                        .iter()
                        .map(|column| column.cell(object, now))
                        .collect()
                })
                .collect(),
        ),
        MadeOf::Custom(custom) => (
            custom
                .columns
                .iter()
                .map(|column| {
                    definition(&column.name, &column.kind, &column.format, column.priority)
                })
                .collect(),
            objects
                .iter()
                .map(|object| custom.cells(object, now))
                .collect(),
        ),
    };
    let rows = cells
        .into_iter()
        .zip(objects)
        .map(|(cells, object)| row(cells, object, include, version))
        .collect();
    table(definitions, rows, version, meta)
}

/// A Scale's columns, upstream's.
pub fn of_scale(scale: &Value, version: &str, now: i64) -> Value {
    let definitions = vec![
        definition("Name", "string", "name", 0),
        definition("Desired", "integer", "", 0),
        definition("Available", "integer", "", 0),
        definition("Age", "string", "", 0),
    ];
    let since = crate::clock::parse(crate::object::text(scale, "/metadata/creationTimestamp"));
    let cells = vec![
        crate::object::name(scale).into(),
        scale
            .pointer("/spec/replicas")
            .cloned()
            .unwrap_or_else(|| 0.into()),
        scale
            .pointer("/status/replicas")
            .cloned()
            .unwrap_or_else(|| 0.into()),
        since
            .map_or_else(
                || "<unknown>".to_owned(),
                |since| berth_kinds::human_duration(now - since),
            )
            .into(),
    ];
    let rows = vec![row(cells, scale, IncludeObject::Metadata, version)];
    table(definitions, rows, version, json!({}))
}

/// No rows: a bookmark's, which says how far the watcher is.
pub fn bookmark(metadata: Value, version: &str) -> Value {
    table(Vec::new(), Vec::new(), version, metadata)
}

fn table(definitions: Vec<Value>, rows: Vec<Value>, version: &str, meta: Value) -> Value {
    object_of([
        ("kind", "Table".into()),
        ("apiVersion", format!("meta.k8s.io/{version}").into()),
        ("metadata", meta),
        ("columnDefinitions", definitions.into()),
        ("rows", rows.into()),
    ])
}

fn definition(name: &str, kind: &str, format: &str, priority: i32) -> Value {
    json!({
        "name": name,
        "type": kind,
        "format": format,
        "description": "",
        "priority": priority,
    })
}

fn row(cells: Vec<Value>, object: &Value, include: IncludeObject, version: &str) -> Value {
    let cells = ("cells", cells.into());
    match include {
        IncludeObject::None => object_of([cells]),
        IncludeObject::Metadata => object_of([cells, ("object", partial(object, version))]),
        IncludeObject::Object => object_of([cells, ("object", object.clone())]),
    }
}
