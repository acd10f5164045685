//! Values by their types, as structured-merge-diff sees them: what is merged field by field, and what is one field however large it is.

mod at;
mod compare;
mod merge;
mod owned;
mod remove;
mod validate;

use berth_schema::{ListKind, MapKind, ObjectId, ObjectType, Schema, StringFormat, Type};
use serde_json::{Map, Value};

pub(crate) use compare::{Comparison, compare};
pub(crate) use merge::merge;
pub(crate) use owned::{field_set, with_named_fields};
pub(crate) use remove::remove;
pub use validate::TypeErrors;
pub(crate) use validate::{Duplicates, validate};

use crate::fields::PathElement;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TypeRef<'a> {
    /// There is no such field.
    Undeclared,
    Object(&'a Schema, ObjectId),
    /// With the map kind that a field gives it, which goes before its own.
    Of(&'a Schema, &'a Type, Option<MapKind>),
    /// Anything: maps are merged, lists are not.
    Deduced,
    /// Anything, and it is one field.
    Atomic,
}

/// What a [`TypeRef`] allows: mostly one of the three.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Atom<'a> {
    pub(crate) map: Option<MapAtom<'a>>,
    pub(crate) scalar: Option<Scalar>,
    pub(crate) list: Option<ListAtom<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Scalar {
    Numeric,
    String,
    Boolean,
    Untyped,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct MapAtom<'a> {
    pub(crate) atomic: bool,
    object: Option<(&'a Schema, &'a ObjectType)>,
    element: TypeRef<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ListAtom<'a> {
    pub(crate) relation: Relation<'a>,
    pub(crate) element: TypeRef<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Relation<'a> {
    Atomic,
    Set,
    Map(&'a [Box<str>]),
}

/// What is done with a value of an [`Atom`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape<'a> {
    Map(MapAtom<'a>),
    Scalar(Scalar),
    List(ListAtom<'a>),
}

impl<'a> MapAtom<'a> {
    /// A field that the type names; the key of a map is none.
    pub(crate) fn named(&self, name: &str) -> Option<TypeRef<'a>> {
        let (schema, object) = self.object?;
        let field = object.field(name)?;
        Some(TypeRef::Of(schema, &field.ty, field.map_kind))
    }

    pub(crate) fn child(&self, name: &str) -> TypeRef<'a> {
        self.named(name).unwrap_or(self.element)
    }

    /// Nothing is named: whatever comes is deduced.
    pub(crate) fn is_deduced(&self) -> bool {
        let named = self
            .object
            .is_some_and(|(_, object)| !object.fields.is_empty());
        !named && matches!(self.element, TypeRef::Deduced)
    }
}

impl<'a> TypeRef<'a> {
    pub(crate) fn root(schema: Option<(&'a Schema, ObjectId)>) -> Self {
        match schema {
            Some((schema, id)) => Self::Object(schema, id),
            None => Self::Deduced,
        }
    }

    pub(crate) fn resolve(self) -> Atom<'a> {
        match self {
            Self::Undeclared => Atom::default(),
            Self::Deduced => Atom::any(false),
            Self::Atomic => Atom::any(true),
            Self::Object(schema, id) => {
                let object = schema.object(id);
                // It can't be looked into: the server keeps it as bytes.
                if &*object.name == "io.k8s.apimachinery.pkg.runtime.RawExtension" {
                    return Atom::any(true);
                }
                let open = object.preserve_unknown || object.fields.is_empty();
                Atom::map(MapAtom {
                    atomic: object.kind == MapKind::Atomic,
                    object: Some((schema, object)),
                    element: if open {
                        Self::Deduced
                    } else {
                        Self::Undeclared
                    },
                })
            }
            Self::Of(schema, ty, Some(kind)) => {
                let mut atom = Self::Of(schema, ty, None).resolve();
                if let Some(map) = &mut atom.map {
                    map.atomic = kind == MapKind::Atomic;
                }
                atom
            }
            Self::Of(schema, ty, None) => match ty {
                Type::Any => Atom::any(false),
                Type::Boolean => Atom::scalar(Scalar::Boolean),
                Type::Integer(_) | Type::Number => Atom::scalar(Scalar::Numeric),
                Type::String(StringFormat::Plain | StringFormat::Bytes) => {
                    Atom::scalar(Scalar::String)
                }
                Type::String(_) => Atom::scalar(Scalar::Untyped),
                Type::Object(id) => Self::Object(schema, *id).resolve(),
                Type::Map(element, kind) => Atom::map(MapAtom {
                    atomic: *kind == MapKind::Atomic,
                    object: None,
                    element: Self::Of(schema, element, None),
                }),
                Type::List(element, kind) => Atom {
                    list: Some(ListAtom {
                        relation: match kind {
                            ListKind::Atomic => Relation::Atomic,
                            ListKind::Set => Relation::Set,
                            ListKind::Map { keys } => Relation::Map(keys),
                        },
                        element: Self::Of(schema, element, None),
                    }),
                    ..Atom::default()
                },
            },
        }
    }
}

impl<'a> Atom<'a> {
    fn any(atomic: bool) -> Self {
        Self {
            map: Some(MapAtom {
                atomic,
                object: None,
                element: if atomic {
                    TypeRef::Atomic
                } else {
                    TypeRef::Deduced
                },
            }),
            scalar: Some(Scalar::Untyped),
            list: Some(ListAtom {
                relation: Relation::Atomic,
                element: TypeRef::Atomic,
            }),
        }
    }

    fn map(map: MapAtom<'a>) -> Self {
        Self {
            map: Some(map),
            ..Self::default()
        }
    }

    fn scalar(scalar: Scalar) -> Self {
        Self {
            scalar: Some(scalar),
            ..Self::default()
        }
    }

    /// Only what `value` is, where that is allowed: null and what is not allowed leave it open.
    pub(crate) fn of_value(self, value: Option<&Value>) -> Self {
        match value {
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) if self.scalar.is_some() => {
                Self {
                    scalar: self.scalar,
                    ..Self::default()
                }
            }
            Some(Value::Array(_)) if self.list.is_some() => Self {
                list: self.list,
                ..Self::default()
            },
            Some(Value::Object(_)) if self.map.is_some() => Self {
                map: self.map,
                ..Self::default()
            },
            _ => self,
        }
    }

    /// `None`: nothing is allowed.
    pub(crate) fn shape(self) -> Option<Shape<'a>> {
        match self {
            Self { map: Some(map), .. } => Some(Shape::Map(map)),
            Self {
                scalar: Some(scalar),
                ..
            } => Some(Shape::Scalar(scalar)),
            Self {
                list: Some(list), ..
            } => Some(Shape::List(list)),
            _ => None,
        }
    }

    /// Of two that were made of one [`Atom`].
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.map.is_some() == other.map.is_some()
            && self.scalar.is_some() == other.scalar.is_some()
            && self.list.is_some() == other.list.is_some()
    }
}

impl ListAtom<'_> {
    /// What names `element` in this list. Atomic lists name theirs by nothing: they are one field.
    pub(crate) fn name(&self, element: &Value) -> Result<PathElement, String> {
        match self.relation {
            Relation::Atomic => Err("invalid indexing of non-associative list".to_owned()),
            Relation::Set => match element {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".to_owned())
                }
                Value::Array(_) => {
                    Err("not supported: associative list with lists as elements".to_owned())
                }
                Value::Null => Err(
                    "associative list without keys has an element that's an explicit null"
                        .to_owned(),
                ),
                scalar => Ok(PathElement::value(scalar.clone())),
            },
            Relation::Map(keys) => self.name_by_keys(keys, element),
        }
    }

    /// Whether [`Self::name`] names it, without doing so.
    fn can_name(&self, element: &Value) -> bool {
        match (self.relation, element) {
            (Relation::Set, Value::Bool(_) | Value::Number(_) | Value::String(_)) => true,
            (Relation::Map(keys), Value::Object(element)) => keys
                .iter()
                .any(|key| element.contains_key(&**key) || self.default_of(key).is_some()),
            _ => false,
        }
    }

    /// Keys that the element does not have and that have no default are left out: that is another element than one that has them.
    fn name_by_keys(&self, keys: &[Box<str>], element: &Value) -> Result<PathElement, String> {
        let element = match element {
            Value::Null => {
                return Err("associative list with keys may not have a null element".to_owned());
            }
            Value::Object(element) => element,
            _ => {
                return Err("associative list with keys may not have non-map elements".to_owned());
            }
        };
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let value = element.get(&**key).or_else(|| self.default_of(key));
            if let Some(value) = value {
                found.push((key.clone(), value.clone()));
            }
        }
        if found.is_empty() && !keys.is_empty() {
            let keys: Vec<_> = keys.iter().map(|key| crate::print::quoted(key)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                keys.join(" ")
            ));
        }
        Ok(PathElement::key(found))
    }

    fn default_of(&self, key: &str) -> Option<&Value> {
        let (_, object) = self.element.resolve().map?.object?;
        object.field(key)?.default.as_ref()
    }
}

/// `None` where it is absent, null or no map: all of them have no fields.
pub(crate) fn as_map(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

pub(crate) fn as_list(value: Option<&Value>) -> Option<&Vec<Value>> {
    value.and_then(Value::as_array)
}
