//! Kinds that CustomResourceDefinitions make: what is served of them, and how their objects are shaped.

mod definition;
mod json_path;

use std::sync::Arc;

use berth_kinds::{Invalid, Reason};
use berth_schema::{CustomSchema, GroupVersionKind};
use serde_json::Value;

use self::json_path::JsonPath;
use crate::{
    cache::{Shard, parts_of},
    catalog::{MadeOf, Resource, Served, Subresource, api_version},
    clock, object,
    subresource::Paths,
};

pub use definition::{FINALIZER, establish};

/// Where the definitions are kept.
pub const STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions";

const VERBS: [&str; 8] = [
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];
const OF_SUBRESOURCES: [&str; 3] = ["get", "patch", "update"];

/// One version of a definition that is established.
#[derive(Debug)]
pub struct Custom {
    /// As the definition names it, for the catalog.
    names: Value,
    group: String,
    version: String,
    namespaced: bool,
    /// Objects are kept in this version.
    pub stored: bool,
    pub stored_api_version: String,
    pub has_status: bool,
    pub scale: Option<Paths>,
    pub columns: Vec<PrinterColumn>,
    /// Paths that field selectors may name.
    pub selectable: Vec<String>,
    pub schema: CustomSchema,
    preserves_unknown: bool,
}

#[derive(Debug)]
pub struct PrinterColumn {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub priority: i32,
    path: JsonPath,
}

impl Custom {
    fn of(definition: &Value, version: &Value) -> Self {
        let group = object::text(definition, "/spec/group");
        let name = object::text(version, "/name");
        let kind = object::text(definition, "/spec/names/kind");
        let versions = definition
            .pointer("/spec/versions")
            .and_then(Value::as_array);
        let stored_version = versions
            .into_iter()
            .flatten()
            .find(|version| version["storage"] == true)
            .map_or("", |version| object::text(version, "/name"));
        let source = version
            .pointer("/schema/openAPIV3Schema")
            .cloned()
            .unwrap_or_else(|| serde_json::json!({"type": "object"}));
        let gvk = GroupVersionKind {
            group: group.into(),
            version: name.into(),
            kind: kind.into(),
        };
        let column = |column: &Value| PrinterColumn {
            name: object::text(column, "/name").into(),
            kind: object::text(column, "/type").into(),
            format: object::text(column, "/format").into(),
            priority: object::number(column, "/priority")
                .and_then(|priority| i32::try_from(priority).ok())
                .unwrap_or(0),
            path: JsonPath::parse(object::text(column, "/jsonPath")),
        };
        let mut columns = vec![PrinterColumn {
            name: "Name".into(),
            kind: "string".into(),
            format: "name".into(),
            priority: 0,
            path: JsonPath::parse(".metadata.name"),
        }];
        match version
            .get("additionalPrinterColumns")
            .and_then(Value::as_array)
        {
            Some(more) => columns.extend(more.iter().map(column)),
            None => columns.push(PrinterColumn {
                name: "Age".into(),
                kind: "date".into(),
                format: String::new(),
                priority: 0,
                path: JsonPath::parse(".metadata.creationTimestamp"),
            }),
        }
        let pointer = |name: &str| {
            let path = object::text(version, &format!("/subresources/scale/{name}"));
            path.replace('.', "/")
        };
        Self {
            names: definition
                .pointer("/spec/names")
                .cloned()
                .unwrap_or_default(),
            group: group.into(),
            version: name.into(),
            namespaced: object::text(definition, "/spec/scope") == "Namespaced",
            stored: name == stored_version,
            stored_api_version: api_version(group, stored_version),
            has_status: version.pointer("/subresources/status").is_some(),
            scale: version.pointer("/subresources/scale").map(|_| Paths {
                spec: pointer("specReplicasPath"),
                status: pointer("statusReplicasPath"),
                selector: pointer("labelSelectorPath"),
            }),
            columns,
            selectable: version
                .get("selectableFields")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|field| {
                    object::text(field, "/jsonPath")
                        .trim_start_matches('.')
                        .to_owned()
                })
                .collect(),
            schema: CustomSchema::parse(gvk, source),
            preserves_unknown: definition.pointer("/spec/preserveUnknownFields")
                == Some(&Value::Bool(true)),
        }
    }

    pub fn resources(custom: &Arc<Self>) -> Vec<Resource> {
        let text = |name: &str| {
            custom
                .names
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let texts = |name: &str| {
            custom
                .names
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect()
        };
        let mut subresources = Vec::new();
        if custom.has_status {
            subresources.push(Subresource {
                name: "status",
                verbs: OF_SUBRESOURCES.to_vec(),
                kind: None,
            });
        }
        if custom.scale.is_some() {
            subresources.push(Subresource {
                name: "scale",
                verbs: OF_SUBRESOURCES.to_vec(),
                kind: Some(("autoscaling", "v1", "Scale")),
            });
        }
        let plural = text("plural");
        vec![Resource {
            group: custom.group.clone(),
            version: custom.version.clone(),
            kind: text("kind"),
            list_kind: text("listKind"),
            singular: text("singular"),
            short_names: texts("shortNames"),
            categories: texts("categories"),
            namespaced: custom.namespaced,
            verbs: VERBS.to_vec(),
            subresources,
            storage: format!("{}/{plural}", custom.group),
            plural,
            stored: custom.stored,
            parts: parts_of(None),
            made_of: MadeOf::Custom(custom.clone()),
        }]
    }

    pub fn default(&self, value: &mut Value) {
        self.schema.default(value);
    }

    /// Drops fields that the schema does not have; they are told.
    pub fn conform(&self, value: &mut Value) -> Result<Vec<String>, berth_schema::Error> {
        if self.preserves_unknown {
            return Ok(Vec::new());
        }
        self.schema.prune(value)
    }

    pub fn validate(&self, value: &Value, old: Option<&Value>) -> Vec<Invalid> {
        invalid(self.schema.validate(value, old))
    }

    pub fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        self.columns
            .iter()
            .map(|column| cell(column, object, now))
            .collect()
    }
}

fn invalid(causes: Vec<berth_schema::Cause>) -> Vec<Invalid> {
    const REASONS: [Reason; 8] = [
        Reason::Required,
        Reason::Invalid,
        Reason::NotSupported,
        Reason::Duplicate,
        Reason::Forbidden,
        Reason::TooLong,
        Reason::TooMany,
        Reason::TypeInvalid,
    ];
    causes
        .into_iter()
        .map(|cause| Invalid {
            field: cause.field,
            reason: REASONS
                .into_iter()
                .find(|reason| reason.as_str() == cause.reason)
                .unwrap_or(Reason::Invalid),
            message: cause.message,
        })
        .collect()
}

fn cell(column: &PrinterColumn, object: &Value, now: i64) -> Value {
    let found = column.path.find(object);
    let Some(value) = found.first().filter(|value| !value.is_null()) else {
        // what is not there is an empty cell, as upstream has it
        return Value::Null;
    };
    match (column.kind.as_str(), value) {
        ("date", Value::String(time)) => match clock::parse(time) {
            Some(then) => berth_kinds::human_duration(now - then).into(),
            None => "<invalid>".into(),
        },
        ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*value).clone(),
        ("string", _) if found.len() > 1 => found
            .iter()
            .map(|value| text(value))
            .collect::<Vec<_>>()
            .join(",")
            .into(),
        ("string", value) => text(value).into(),
        _ => Value::Null,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn is_established(definition: &Value) -> bool {
    definition
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

/// Serves what the definitions say now.
pub fn serve(served: &Served, definitions: &Shard) {
    let (entries, _) = definitions.list("", "");
    let mut customs = Vec::new();
    for entry in entries {
        let definition = entry.value();
        if !is_established(&definition) {
            continue;
        }
        let versions = definition
            .pointer("/spec/versions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for version in versions.filter(|version| version["served"] == true) {
            customs.push(Arc::new(Custom::of(&definition, version)));
        }
    }
    served.set(&customs);
}
