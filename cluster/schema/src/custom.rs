//! The schema of a custom resource: what `openAPIV3Schema` of a CustomResourceDefinition's version says, as a structural schema.
//!
//! ```text
//! openAPIV3Schema ── check ──▶ causes (when a CRD is written)
//!        └────────── parse ──▶ CustomSchema ── prune ────▶ fields that it doesn't have are dropped and told of
//!                                         ├─── default ──▶ what is absent is filled in
//!                                         ├─── validate ─▶ causes of a 422: the schema's, and those of its rules in CEL
//!                                         └─── schema ───▶ the form that patches and apply need
//! ```
//!
//! Deliberately absent: upstream's estimate of what a rule may cost at most (what it does cost is bounded when it runs); equality of sets and keyed lists
//! in CEL regardless of order; formats beyond [`format`]'s are not checked (as upstream doesn't check those that it doesn't know); ratcheting of what is no
//! rule.

mod check;
mod default;
mod format;
mod node;
mod prune;
mod rules;
mod validate;

use std::collections::HashMap;

use serde_json::Value;

pub use self::check::check;
use self::node::{Additional, Basic, Node};
use crate::{
    Field, GroupVersionKind, ListKind, MapKind, ObjectId, ObjectType, Schema, StringFormat, Type,
};

/// One of Status.details.causes: a field that is wrong, as upstream's field.Error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `spec.replicas`.
    pub field: String,
    /// metav1.CauseType: `FieldValueInvalid`, …
    pub reason: &'static str,
    /// `Invalid value: 0: spec.replicas in body should be greater than or equal to 1`.
    pub message: String,
}

impl Cause {
    pub(crate) fn required(field: String, detail: &str) -> Self {
        Cause::new(field, "FieldValueRequired", "Required value", detail)
    }

    pub(crate) fn forbidden(field: String, detail: &str) -> Self {
        Cause::new(field, "FieldValueForbidden", "Forbidden", detail)
    }

    pub(crate) fn invalid(field: String, value: &Value, detail: &str) -> Self {
        let what = format!("Invalid value: {value}");
        Cause::new(field, "FieldValueInvalid", &what, detail)
    }

    pub(crate) fn unsupported(field: String, value: &Value, supported: &[Value]) -> Self {
        let supported: Vec<_> = supported.iter().map(as_quoted).collect();
        let what = format!("Unsupported value: {value}");
        let detail = format!("supported values: {}", supported.join(", "));
        Cause::new(field, "FieldValueNotSupported", &what, &detail)
    }

    fn new(field: String, reason: &'static str, what: &str, detail: &str) -> Self {
        Cause {
            field,
            reason,
            message: match detail {
                "" => what.into(),
                _ => format!("{what}: {detail}"),
            },
        }
    }
}

/// Upstream quotes what isn't a string, too.
fn as_quoted(value: &Value) -> String {
    match value {
        Value::String(_) => value.to_string(),
        _ => format!("{:?}", value.to_string()),
    }
}

#[derive(Debug)]
pub struct CustomSchema {
    root: Node,
    schema: Schema,
    id: ObjectId,
    source: Value,
    /// It has rules in CEL.
    ruled: bool,
}

impl CustomSchema {
    /// `source` is `spec.versions[].schema.openAPIV3Schema`, which [`check`] found nothing wrong with. What it shouldn't have is passed over.
    pub fn parse(kind: GroupVersionKind, source: Value) -> Self {
        let mut root = Node::parse(&source);
        root.embedded = true;
        let mut build = Build {
            schema: Schema::default(),
            built_in: HashMap::new(),
        };
        let id = build.object(&root);
        build.schema.kinds.insert(kind, id);
        CustomSchema {
            ruled: root.is_ruled(),
            root,
            schema: build.schema,
            id,
            source,
        }
    }

    /// Of the fields' types, with [`CustomSchema::id`] for the resource itself.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// openAPIV3Schema as it was given.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Drops what the schema doesn't have, and gives it: `unknown field "spec.replicass"`, in order, 100 at most. `metadata` is made to conform
    /// to ObjectMeta.
    ///
    /// # Errors
    /// `metadata` isn't one.
    pub fn prune(&self, object: &mut Value) -> Result<Vec<String>, crate::Error> {
        prune::prune(&self.root, object)
    }

    /// Fills in defaults; nulls that may not be are dropped, or are their default.
    pub fn default(&self, object: &mut Value) {
        default::default(&self.root, object);
    }

    /// What is wrong with the object, which was `old` before; `metadata` is not looked at. Rules are asked where the object is of its schema in all else.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = validate::validate(&self.root, object);
        if !self.ruled {
            return causes;
        }
        if causes.iter().any(is_blocking) {
            causes.push(Cause::new(
                "<nil>".into(),
                "FieldValueInvalid",
                "Invalid value: null",
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ));
            return causes;
        }
        causes.extend(rules::validate(&self.root, object, old));
        causes
    }
}

/// A rule could not trust in what it finds.
fn is_blocking(cause: &Cause) -> bool {
    matches!(
        cause.reason,
        "FieldValueRequired" | "FieldValueTooLong" | "FieldValueTooMany" | "FieldValueTypeInvalid"
    )
}

/// Makes a [`Schema`] of nodes, and of the built-in types that they mention.
struct Build {
    schema: Schema,
    built_in: HashMap<ObjectId, ObjectId>,
}

impl Build {
    fn object(&mut self, node: &Node) -> ObjectId {
        let mut fields: Vec<Field> = Vec::new();
        for (name, property) in &node.properties {
            let implied = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            if node.embedded && implied {
                continue;
            }
            let mut field = Field::plain(name.as_str(), self.ty(property));
            field.required = node.checks.required.contains(name);
            field.nullable = property.nullable;
            field.keeps_zero = true;
            field.default.clone_from(&property.default);
            fields.push(field);
        }
        if node.embedded {
            let string = || Type::String(StringFormat::Plain);
            fields.push(Field::plain("apiVersion", string()));
            fields.push(Field::plain("kind", string()));
            let metadata = self.import(object_meta());
            fields.push(Field::plain("metadata", Type::Object(metadata)));
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        self.schema.push(ObjectType {
            name: Box::default(),
            fields,
            kind: node.map,
            preserve_unknown: node.preserve_unknown,
        })
    }

    fn ty(&mut self, node: &Node) -> Type {
        if node.int_or_string {
            return Type::String(StringFormat::IntOrString);
        }
        match node.ty {
            None => Type::Any,
            Some(Basic::Boolean) => Type::Boolean,
            Some(Basic::Integer) => Type::Integer(crate::IntegerFormat::Int64),
            Some(Basic::Number) => Type::Number,
            Some(Basic::String) => Type::String(StringFormat::Plain),
            Some(Basic::Array) => {
                let item = node
                    .items
                    .as_deref()
                    .map_or(Type::Any, |item| self.ty(item));
                Type::List(Box::new(item), node.list.clone())
            }
            Some(Basic::Object) => match &node.additional {
                Some(Additional::Any) => Type::Map(Box::new(Type::Any), node.map),
                Some(Additional::Node(value)) => Type::Map(Box::new(self.ty(value)), node.map),
                None => Type::Object(self.object(node)),
            },
        }
    }

    /// A built-in type and all that its fields are of.
    fn import(&mut self, id: ObjectId) -> ObjectId {
        if let Some(here) = self.built_in.get(&id) {
            return *here;
        }
        let mut object = Schema::built_in().object(id).clone();
        let fields = std::mem::take(&mut object.fields);
        let here = self.schema.push(object);
        self.built_in.insert(id, here);
        let fields = fields
            .into_iter()
            .map(|field| Field {
                ty: self.import_type(field.ty.clone()),
                ..field
            })
            .collect();
        self.schema.objects[here.0 as usize].fields = fields;
        here
    }

    fn import_type(&mut self, ty: Type) -> Type {
        match ty {
            Type::Object(id) => Type::Object(self.import(id)),
            Type::List(item, kind) => Type::List(Box::new(self.import_type(*item)), kind),
            Type::Map(value, kind) => Type::Map(Box::new(self.import_type(*value)), kind),
            ty => ty,
        }
    }
}

/// ObjectMeta's in the built-in schema.
fn object_meta() -> ObjectId {
    let schema = Schema::built_in();
    let pod = schema.kind(&GroupVersionKind::new("v1", "Pod"));
    let metadata = pod.and_then(|pod| schema.object(pod).field("metadata"));
    match metadata {
        Some(Field {
            ty: Type::Object(id),
            ..
        }) => *id,
        _ => unreachable!("a Pod has metadata"),
    }
}

impl Default for Node {
    fn default() -> Self {
        Node {
            ty: None,
            properties: Default::default(),
            additional: None,
            items: None,
            nullable: false,
            default: None,
            preserve_unknown: false,
            embedded: false,
            int_or_string: false,
            rules: None,
            list: ListKind::Atomic,
            map: MapKind::Granular,
            checks: Default::default(),
        }
    }
}

#[cfg(test)]
mod tests;
