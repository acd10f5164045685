use std::collections::HashMap;

use serde_json::{Map, Value};

/// `group` is empty for core.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: Box<str>,
    pub version: Box<str>,
    pub kind: Box<str>,
}

/// Of one [`Schema`] alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId(pub(crate) u32);

#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Whatever it is (RawExtension, JSON).
    Any,
    Boolean,
    Integer(IntegerFormat),
    Number,
    String(StringFormat),
    Object(ObjectId),
    List(Box<Type>, ListKind),
    Map(Box<Type>, MapKind),
}

impl Type {
    /// What null in a list or a map is, and what protobuf says nothing of.
    pub(crate) fn zero(&self) -> Value {
        match self {
            Self::Any => Value::Null,
            Self::Boolean => false.into(),
            Self::Integer(_) | Self::Number | Self::String(StringFormat::IntOrString) => 0.into(),
            Self::String(StringFormat::Quantity) => "0".into(),
            Self::String(StringFormat::Time | StringFormat::MicroTime) => Value::Null,
            Self::String(_) => "".into(),
            Self::List(..) => Value::Array(Vec::new()),
            Self::Object(_) | Self::Map(..) => Value::Object(Map::new()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegerFormat {
    Int32,
    Int64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StringFormat {
    Plain,
    /// base64 in JSON, bytes in protobuf.
    Bytes,
    /// RFC 3339, to the second.
    Time,
    /// RFC 3339, to the microsecond.
    MicroTime,
    /// resource.Quantity: a string, or a number.
    Quantity,
    /// A number in JSON where it is one.
    IntOrString,
}

/// x-kubernetes-list-type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// x-kubernetes-list-map-keys.
    Map {
        keys: Vec<Box<str>>,
    },
}

/// x-kubernetes-map-type, of maps and of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    Granular,
    Atomic,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ObjectType {
    /// As in OpenAPI, like `io.k8s.api.core.v1.Pod`. Empty where it has none: an object within a custom resource.
    pub name: Box<str>,
    /// By their names.
    pub fields: Vec<Field>,
    pub kind: MapKind,
    /// x-kubernetes-preserve-unknown-fields: fields that are not named here are kept.
    pub preserve_unknown: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// In JSON.
    pub name: Box<str>,
    pub ty: Type,
    /// Its number in protobuf; 0: it has none.
    pub number: u32,
    /// The numbers of the messages around it in protobuf, outermost first, where JSON has the field inlined (VolumeSource in Volume).
    pub within: Box<[u32]>,
    pub required: bool,
    /// null is a value of it.
    pub nullable: bool,
    /// `0`, `false`, `""` or an empty list is a value of it (`replicas: 0`), and not the same as its absence.
    pub keeps_zero: bool,
    /// x-kubernetes-map-type of the field, which goes before that of its object's type.
    pub map_kind: Option<MapKind>,
    /// x-kubernetes-patch-merge-key: of lists that a strategic merge merges by this key.
    pub merge_key: Option<Box<str>>,
    /// x-kubernetes-patch-strategy has `merge`.
    pub patch_merge: bool,
    /// x-kubernetes-patch-strategy has `replace`: an object that a strategic merge replaces whole.
    pub patch_replace: bool,
    /// x-kubernetes-patch-strategy has `retainKeys`.
    pub retain_keys: bool,
    pub default: Option<Value>,
}

#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub(crate) objects: Vec<ObjectType>,
    pub(crate) kinds: HashMap<GroupVersionKind, ObjectId>,
}

impl Schema {
    pub fn kind(&self, kind: &GroupVersionKind) -> Option<ObjectId> {
        self.kinds.get(kind).copied()
    }

    pub fn object(&self, id: ObjectId) -> &ObjectType {
        &self.objects[id.0 as usize]
    }

    pub(crate) fn push(&mut self, object: ObjectType) -> ObjectId {
        let id = ObjectId(u32::try_from(self.objects.len()).expect("objects of a schema are few"));
        self.objects.push(object);
        id
    }
}

impl ObjectType {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self
            .fields
            .binary_search_by(|field| field.name.as_ref().cmp(name))
            .ok()?;
        self.fields.get(at)
    }
}

impl Field {
    /// A field with nothing special about it.
    pub fn plain(name: impl Into<Box<str>>, ty: Type) -> Self {
        Field {
            name: name.into(),
            ty,
            number: 0,
            within: Box::default(),
            required: false,
            nullable: false,
            keeps_zero: false,
            map_kind: None,
            merge_key: None,
            patch_merge: false,
            patch_replace: false,
            retain_keys: false,
            default: None,
        }
    }
}

impl GroupVersionKind {
    /// By the two fields that every object has: `apps/v1` and `Deployment`.
    pub fn new(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        GroupVersionKind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
    }

    /// `apps/v1`, or `v1` of core.
    pub fn api_version(&self) -> String {
        match self.group.as_ref() {
            "" => self.version.to_string(),
            group => format!("{group}/{}", self.version),
        }
    }
}
