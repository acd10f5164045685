//! The schemas that a document's operations mention, and those that these do.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{GroupVersion, Resource};
use crate::{
    CustomSchema, Field, GroupVersionKind, IntegerFormat, ListKind, MapKind, ObjectId, ObjectType,
    Schema, StringFormat, Type,
};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

fn to(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// To a type of meta/v1.
pub(super) fn meta(name: &str) -> Value {
    to(&format!("{META}.{name}"))
}

/// To a kind; what is built in, but has no type of its own (a subresource's options), is any object.
pub(super) fn reference(group: &str, version: &str, kind: &str, custom: bool) -> Value {
    if custom {
        return to(&custom_name(group, version, kind));
    }
    match built_in(group, version, kind) {
        Some(id) => to(&Schema::built_in().object(id).name),
        None => json!({"type": "object"}),
    }
}

fn built_in(group: &str, version: &str, kind: &str) -> Option<ObjectId> {
    Schema::built_in().kind(&GroupVersionKind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
    })
}

/// `com.example.v1.Widget` of the group `example.com`.
fn custom_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<_> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}

pub(super) fn schemas(version: &GroupVersion<'_>) -> Map<String, Value> {
    let mut found = Found::default();
    let (group, api) = (version.group, version.version);
    for kind in ["DeleteOptions", "Status"] {
        found.kind("", "v1", kind);
    }
    found.leaf(&format!("{META}.Patch"), json!({"type": "object"}));
    for resource in version.resources {
        match resource.custom {
            Some(custom) => found.custom(group, api, resource, custom),
            None => {
                found.kind(group, api, resource.kind);
                found.kind(group, api, &format!("{}List", resource.kind));
            }
        }
        for subresource in resource.subresources {
            if let Some((group, version, kind)) = subresource.kind {
                found.kind(group, version, kind);
            }
        }
    }
    found.follow();
    found.schemas
}

#[derive(Default)]
struct Found {
    seen: HashSet<ObjectId>,
    todo: Vec<ObjectId>,
    schemas: Map<String, Value>,
}

impl Found {
    fn kind(&mut self, group: &str, version: &str, kind: &str) {
        if let Some(id) = built_in(group, version, kind) {
            self.object(id);
        }
    }

    fn object(&mut self, id: ObjectId) {
        if self.seen.insert(id) {
            self.todo.push(id);
        }
    }

    fn leaf(&mut self, name: &str, schema: Value) {
        self.schemas.insert(name.into(), schema);
    }

    fn follow(&mut self) {
        let schema = Schema::built_in();
        while let Some(id) = self.todo.pop() {
            let object = schema.object(id);
            let mut properties = Map::new();
            for field in &object.fields {
                properties.insert(field.name.to_string(), self.property(object, field));
            }
            let required: Vec<_> = object
                .fields
                .iter()
                .filter(|field| field.required)
                .map(|field| field.name.as_ref())
                .collect();
            let mut document = json!({"type": "object", "properties": properties});
            if !required.is_empty() {
                document["required"] = json!(required);
            }
            if object.kind == MapKind::Atomic {
                document["x-kubernetes-map-type"] = "atomic".into();
            }
            let kinds = kinds(id);
            if !kinds.is_empty() {
                document["x-kubernetes-group-version-kind"] = kinds.into();
            }
            self.schemas.insert(object.name.to_string(), document);
        }
    }

    fn property(&mut self, object: &ObjectType, field: &Field) -> Value {
        let mut document = Map::new();
        if let Some(default) = &field.default {
            document.insert("default".into(), default.clone());
        }
        let mut strategy = Vec::new();
        for (has, name) in [
            (field.patch_merge, "merge"),
            (field.patch_replace, "replace"),
            (field.retain_keys, "retainKeys"),
        ] {
            if has {
                strategy.push(name);
            }
        }
        if !strategy.is_empty() {
            let strategy = strategy.join(",").into();
            document.insert("x-kubernetes-patch-strategy".into(), strategy);
        }
        if let Some(key) = &field.merge_key {
            let key = key.as_ref().into();
            document.insert("x-kubernetes-patch-merge-key".into(), key);
        }
        if let Some(kind) = field.map_kind {
            document.insert("x-kubernetes-map-type".into(), map_kind(kind).into());
        }
        let any_sort = object.name.ends_with(".JSONSchemaProps") && field.ty == Type::Any;
        let ty = match any_sort {
            // kubectl explain takes an empty schema for none, and fails
            true => json!({"description": "Any JSON value."}),
            false => self.ty(&field.ty),
        };
        match ty {
            // Beside a $ref nothing else counts.
            Value::Object(ty) if ty.contains_key("$ref") && !document.is_empty() => {
                document.insert("allOf".into(), json!([ty]));
            }
            Value::Object(ty) => document.extend(ty),
            _ => {}
        }
        document.into()
    }

    fn ty(&mut self, ty: &Type) -> Value {
        let mut named = |name: &str, schema: Value| {
            self.schemas.entry(name).or_insert(schema);
            to(name)
        };
        match ty {
            Type::Any => json!({"type": "object"}),
            Type::Boolean => json!({"type": "boolean"}),
            Type::Integer(IntegerFormat::Int32) => json!({"type": "integer", "format": "int32"}),
            Type::Integer(IntegerFormat::Int64) => json!({"type": "integer", "format": "int64"}),
            Type::Number => json!({"type": "number", "format": "double"}),
            Type::String(StringFormat::Plain) => json!({"type": "string"}),
            Type::String(StringFormat::Bytes) => json!({"type": "string", "format": "byte"}),
            Type::String(StringFormat::Time) => named(
                &format!("{META}.Time"),
                json!({"type": "string", "format": "date-time"}),
            ),
            Type::String(StringFormat::MicroTime) => named(
                &format!("{META}.MicroTime"),
                json!({"type": "string", "format": "date-time"}),
            ),
            Type::String(StringFormat::Quantity) => named(
                QUANTITY,
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            ),
            Type::String(StringFormat::IntOrString) => named(
                INT_OR_STRING,
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            Type::Object(id) => {
                self.object(*id);
                to(&Schema::built_in().object(*id).name)
            }
            Type::List(item, kind) => {
                let item = self.ty(item);
                let mut list = json!({"type": "array", "items": item});
                match kind {
                    ListKind::Atomic => list["x-kubernetes-list-type"] = "atomic".into(),
                    ListKind::Set => list["x-kubernetes-list-type"] = "set".into(),
                    ListKind::Map { keys } => {
                        list["x-kubernetes-list-type"] = "map".into();
                        let keys: Vec<_> = keys.iter().map(AsRef::as_ref).collect();
                        list["x-kubernetes-list-map-keys"] = json!(keys);
                    }
                }
                list
            }
            Type::Map(value, kind) => {
                let value = self.ty(value);
                let mut map = json!({"type": "object", "additionalProperties": value});
                if *kind == MapKind::Atomic {
                    map["x-kubernetes-map-type"] = "atomic".into();
                }
                map
            }
        }
    }

    /// As it was given, with what every object has.
    fn custom(
        &mut self,
        group: &str,
        version: &str,
        resource: &Resource<'_>,
        custom: &CustomSchema,
    ) {
        let kind = |kind: &str| json!([{"group": group, "version": version, "kind": kind}]);
        let name = custom_name(group, version, resource.kind);
        let mut document = match custom.source() {
            Value::Object(source) => source.clone(),
            _ => Map::new(),
        };
        document.insert("type".into(), "object".into());
        let properties = document.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(properties) = properties {
            properties.insert("apiVersion".into(), json!({"type": "string"}));
            properties.insert("kind".into(), json!({"type": "string"}));
            properties.insert("metadata".into(), json!({"allOf": [meta("ObjectMeta")]}));
        }
        let gvk = "x-kubernetes-group-version-kind";
        document.insert(gvk.into(), kind(resource.kind));
        self.schemas.insert(name.clone(), document.into());
        let list = format!("{}List", resource.kind);
        let document = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"allOf": [meta("ListMeta")]},
                "items": {"type": "array", "items": to(&name)},
            },
            gvk: kind(&list),
        });
        let name = custom_name(group, version, &list);
        self.schemas.insert(name, document);
        // ObjectMeta and ListMeta, by a list that has both.
        self.kind("meta.k8s.io", "v1", "PartialObjectMetadataList");
    }
}

fn map_kind(kind: MapKind) -> &'static str {
    match kind {
        MapKind::Atomic => "atomic",
        MapKind::Granular => "granular",
    }
}

/// The groups and versions that have it as a kind, in order.
fn kinds(id: ObjectId) -> Vec<Value> {
    let schema = Schema::built_in();
    let mut kinds: Vec<_> = schema
        .kinds
        .iter()
        .filter(|(_, object)| **object == id)
        .map(|(kind, _)| kind)
        .collect();
    kinds.sort();
    kinds
        .into_iter()
        .map(|kind| {
            json!({
                "group": kind.group.as_ref(),
                "version": kind.version.as_ref(),
                "kind": kind.kind.as_ref(),
            })
        })
        .collect()
}
