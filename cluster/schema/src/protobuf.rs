//! Kubernetes' protobuf bodies, read by the table into what the same object is in JSON.
//!
//! A body is `k8s\0` and a `runtime.Unknown`, whose `raw` is the object (kubectl's `create` commands send them). Go writes the fields that aren't
//! pointers even where they are zero: those are dropped where JSON would have left them out ([`Field::keeps_zero`]).
//!
//! Nothing here recurses deeper than [`MAX_DEPTH`], and nothing is allocated by a length that the body only claims.

#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use self::wire::{Message, WireType, WireValue};
use crate::{
    Field, GroupVersionKind, IntegerFormat, ObjectId, ObjectType, Schema, StringFormat, Type,
    body::{Body, MAX_DEPTH, MAX_VALUES},
    error::Error,
    quantity, time,
};

/// Before a `runtime.Unknown`.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// The one type whose fields are no plain JSON in protobuf: what may be one of two things in JSON is a message with a field for each.
const SCHEMA_PROPS: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

impl Schema {
    /// The object in a body of Content-Type `application/vnd.kubernetes.protobuf`, `apiVersion` and `kind` within. `default` is its kind where
    /// the body doesn't say.
    ///
    /// # Errors
    /// Not such a body, or of a kind that isn't known.
    pub fn decode_protobuf(
        &self,
        body: &[u8],
        default: Option<&GroupVersionKind>,
    ) -> Result<(GroupVersionKind, Value), Error> {
        let unknown = Unknown::read(body)?;
        let kind = match (unknown.api_version, unknown.kind, default) {
            ("", "", Some(kind)) => kind.clone(),
            (api_version, kind, _) => GroupVersionKind::new(api_version, kind),
        };
        let id = self.kind(&kind).ok_or_else(|| Error::UnknownKind {
            api_version: kind.api_version(),
            kind: kind.kind.to_string(),
        })?;
        let mut object = self.decode_protobuf_object(id, unknown.raw)?;
        object.insert("apiVersion".into(), kind.api_version().into());
        object.insert("kind".into(), kind.kind.as_ref().into());
        Ok((kind, Value::Object(object)))
    }

    /// # Errors
    /// `message` isn't the protobuf of such an object.
    pub fn decode_protobuf_object(
        &self,
        id: ObjectId,
        message: &[u8],
    ) -> Result<Map<String, Value>, Error> {
        let mut decoder = Decoder {
            schema: self,
            values: 0,
        };
        let mut object = Map::new();
        decoder.object(self.object(id), &[], message, &mut object, MAX_DEPTH)?;
        Ok(object)
    }
}

/// `runtime.Unknown`.
#[derive(Debug, Default)]
struct Unknown<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
}

impl<'a> Unknown<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Error> {
        let at = "runtime.Unknown";
        let message = body
            .strip_prefix(MAGIC)
            .ok_or_else(|| error(at, "the body does not begin with the prefix \"k8s\\x00\""))?;
        let mut unknown = Unknown::default();
        for field in Message::new(message) {
            match field.map_err(|what| error(at, what))? {
                (1, WireValue::Bytes(meta)) => {
                    for field in Message::new(meta) {
                        match field.map_err(|what| error("runtime.TypeMeta", what))? {
                            (1, WireValue::Bytes(text)) => unknown.api_version = utf8(text, at)?,
                            (2, WireValue::Bytes(text)) => unknown.kind = utf8(text, at)?,
                            _ => {}
                        }
                    }
                }
                (2, WireValue::Bytes(raw)) => unknown.raw = raw,
                (3, WireValue::Bytes(encoding)) if !encoding.is_empty() => {
                    return Err(error(at, "contentEncoding is not supported"));
                }
                (4, WireValue::Bytes(content))
                    if !content.is_empty() && content != b"application/vnd.kubernetes.protobuf" =>
                {
                    return Err(error(at, "contentType is another than protobuf's"));
                }
                _ => {}
            }
        }
        Ok(unknown)
    }
}

/// A field of a type, written only if there is something to say of it.
#[derive(Debug, Clone, Copy)]
struct At<'a>(&'a str, &'a str);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

fn error(at: impl fmt::Display, what: impl Into<String>) -> Error {
    Error::Protobuf {
        at: at.to_string(),
        what: what.into(),
    }
}

fn utf8(bytes: &[u8], at: impl fmt::Display) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| error(at, "a string that is not UTF-8"))
}

struct Decoder<'a> {
    schema: &'a Schema,
    values: usize,
}

impl Decoder<'_> {
    fn count(&mut self, at: impl fmt::Display) -> Result<(), Error> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(error(
                at,
                format!("more than {MAX_VALUES} values in one body"),
            ));
        }
        Ok(())
    }

    /// Into `out`, which has fields already where a message is there in parts. `within`: the numbers of the messages from the object's own
    /// down to this one, whose fields are the object's in JSON.
    fn object(
        &mut self,
        object: &ObjectType,
        within: &[u32],
        message: &[u8],
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let at = object.name.as_ref();
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| error(at, format!("exceeded max depth {MAX_DEPTH}")))?;
        for entry in Message::new(message) {
            let (number, value) = entry.map_err(|what| error(at, what))?;
            let field = object
                .fields
                .iter()
                .find(|field| field.number == number && *field.within == *within);
            if let Some(field) = field {
                self.field(object, field, value, out, depth)?;
                continue;
            }
            let inlined = object.fields.iter().any(|field| {
                field.within.len() > within.len()
                    && field.within.starts_with(within)
                    && field.within[within.len()] == number
            });
            if inlined {
                let within: Vec<u32> = within.iter().copied().chain([number]).collect();
                let bytes = bytes(value, at)?;
                self.object(object, &within, bytes, out, depth)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        object: &ObjectType,
        field: &Field,
        value: WireValue<'_>,
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let at = At(&object.name, &field.name);
        let name = field.name.as_ref();
        match &field.ty {
            Type::List(item, _) => {
                let list = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else {
                    return Err(error(at, "its values are not of one type"));
                };
                match (item.as_ref(), value) {
                    (Type::Boolean | Type::Integer(_) | Type::Number, WireValue::Bytes(packed)) => {
                        let mut packed = Message::new(packed);
                        while !packed.is_empty() {
                            let value = packed
                                .value(packed_type(item))
                                .map_err(|what| error(at, what))?;
                            list.push(self.value(item, value, at, depth)?);
                        }
                    }
                    (_, value) => list.push(self.value(item, value, at, depth)?),
                }
            }
            Type::Map(item, _) => {
                let map = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = map else {
                    return Err(error(at, "its values are not of one type"));
                };
                let entry = Message::new(bytes(value, at)?);
                let (mut key, mut of_key) = ("", None);
                for part in entry {
                    match part.map_err(|what| error(at, what))? {
                        (1, WireValue::Bytes(text)) => key = utf8(text, at)?,
                        (2, value) => of_key = Some(value),
                        _ => {}
                    }
                }
                let value = match of_key {
                    Some(value) if is_union(object, field) => {
                        self.union(object, field, bytes(value, at)?, depth)?
                    }
                    Some(value) => self.value(item, value, at, depth)?,
                    None => item.zero(),
                };
                map.insert(key.into(), value);
            }
            Type::Object(id) => {
                let mut inner = match out.remove(name) {
                    Some(Value::Object(inner)) => inner,
                    _ => Map::new(),
                };
                self.count(name)?;
                let bytes = bytes(value, at)?;
                self.object(self.schema.object(*id), &[], bytes, &mut inner, depth)?;
                if field.keeps_zero || !inner.is_empty() {
                    out.insert(name.into(), Value::Object(inner));
                }
            }
            Type::Any if is_union(object, field) => {
                let value = self.union(object, field, bytes(value, at)?, depth)?;
                out.insert(name.into(), value);
            }
            ty => {
                let value = self.value(ty, value, at, depth)?;
                if value.is_null() || (!field.keeps_zero && is_zero(&value)) {
                    out.remove(name);
                } else {
                    out.insert(name.into(), value);
                }
            }
        }
        Ok(())
    }

    /// One that is no field's: of a list, of a map, or a scalar. Null: a time that isn't one, JSON that isn't there.
    fn value(
        &mut self,
        ty: &Type,
        value: WireValue<'_>,
        at: At<'_>,
        depth: usize,
    ) -> Result<Value, Error> {
        self.count(at)?;
        match ty {
            Type::Boolean => Ok((varint(value, at)? != 0).into()),
            // Negative ones are ten bytes of two's complement; int32 are the lower four of them.
            Type::Integer(IntegerFormat::Int32) => {
                Ok(i64::from(varint(value, at)? as u32 as i32).into())
            }
            Type::Integer(IntegerFormat::Int64) => Ok((varint(value, at)? as i64).into()),
            Type::Number => {
                let WireValue::Fixed64(bits) = value else {
                    return Err(error(at, "not a double"));
                };
                serde_json::Number::from_f64(f64::from_bits(bits))
                    .map(Value::Number)
                    .ok_or_else(|| error(at, "not a number"))
            }
            Type::Object(id) => {
                let mut object = Map::new();
                let bytes = bytes(value, at)?;
                self.object(self.schema.object(*id), &[], bytes, &mut object, depth)?;
                Ok(Value::Object(object))
            }
            Type::Any => {
                let mut raw: &[u8] = b"";
                for field in Message::new(bytes(value, at)?) {
                    if let (1, WireValue::Bytes(bytes)) = field.map_err(|what| error(at, what))? {
                        raw = bytes;
                    }
                }
                if raw.is_empty() {
                    return Ok(Value::Null);
                }
                Ok(Body::json_of_depth(raw, depth)?.value)
            }
            // A list that is no field's is a message with the list as its only field: map<string, ExtraValue>.
            Type::List(item, _) => {
                let mut list = Vec::new();
                for field in Message::new(bytes(value, at)?) {
                    if let (1, value) = field.map_err(|what| error(at, what))? {
                        let depth = depth
                            .checked_sub(1)
                            .ok_or_else(|| error(at, "exceeded max depth"))?;
                        list.push(self.value(item, value, at, depth)?);
                    }
                }
                Ok(Value::Array(list))
            }
            Type::Map(..) => Err(error(at, "a map that is no field's")),
            Type::String(format) => string(*format, bytes(value, at)?, at),
        }
    }

    /// JSONSchemaPropsOrArray, …OrBool, …OrStringArray.
    fn union(
        &mut self,
        object: &ObjectType,
        field: &Field,
        message: &[u8],
        depth: usize,
    ) -> Result<Value, Error> {
        let at = At(&object.name, &field.name);
        let (mut allows, mut list, mut props) = (false, Vec::new(), None);
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| error(at, format!("exceeded max depth {MAX_DEPTH}")))?;
        for part in Message::new(message) {
            let (number, value) = part.map_err(|what| error(at, what))?;
            self.count(at)?;
            let or_bool = matches!(
                field.name.as_ref(),
                "additionalItems" | "additionalProperties"
            );
            match (number, or_bool) {
                (1, true) => allows = varint(value, at)? != 0,
                (2, false) if field.name.as_ref() == "dependencies" => {
                    list.push(utf8(bytes(value, at)?, at)?.into());
                }
                (1 | 2, _) => {
                    let mut inner = Map::new();
                    self.object(object, &[], bytes(value, at)?, &mut inner, depth)?;
                    if number == 2 && !or_bool {
                        list.push(Value::Object(inner));
                    } else {
                        props = Some(Value::Object(inner));
                    }
                }
                _ => {}
            }
        }
        Ok(match props {
            Some(props) => props,
            None if matches!(field.name.as_ref(), "items" | "dependencies") => Value::Array(list),
            None => Value::Bool(allows),
        })
    }
}

fn is_union(object: &ObjectType, field: &Field) -> bool {
    object.name.as_ref() == SCHEMA_PROPS
        && matches!(
            field.name.as_ref(),
            "items" | "additionalItems" | "additionalProperties" | "dependencies"
        )
}

fn packed_type(item: &Type) -> WireType {
    match item {
        Type::Number => WireType::Fixed64,
        _ => WireType::Varint,
    }
}

fn bytes(value: WireValue<'_>, at: impl fmt::Display) -> Result<&[u8], Error> {
    match value {
        WireValue::Bytes(bytes) => Ok(bytes),
        _ => Err(error(at, "its wire type is another than its type's")),
    }
}

fn varint(value: WireValue<'_>, at: impl fmt::Display) -> Result<u64, Error> {
    match value {
        WireValue::Varint(value) => Ok(value),
        _ => Err(error(at, "its wire type is another than its type's")),
    }
}

fn string(format: StringFormat, bytes: &[u8], at: At<'_>) -> Result<Value, Error> {
    let fields = Message::new(bytes);
    Ok(match format {
        StringFormat::Plain => utf8(bytes, at)?.into(),
        StringFormat::Bytes => STANDARD.encode(bytes).into(),
        StringFormat::Quantity => {
            let mut text = "0";
            for field in fields {
                if let (1, WireValue::Bytes(bytes)) = field.map_err(|what| error(at, what))? {
                    text = utf8(bytes, at)?;
                }
            }
            if !quantity::is_quantity(text) {
                return Err(error(at, quantity::MESSAGE));
            }
            text.into()
        }
        StringFormat::IntOrString => {
            let (mut is_string, mut number, mut text) = (false, 0, "");
            for field in fields {
                match field.map_err(|what| error(at, what))? {
                    (1, WireValue::Varint(value)) => is_string = value != 0,
                    (2, WireValue::Varint(value)) => number = value as u32 as i32,
                    (3, WireValue::Bytes(bytes)) => text = utf8(bytes, at)?,
                    _ => {}
                }
            }
            match is_string {
                true => text.into(),
                false => number.into(),
            }
        }
        StringFormat::Time | StringFormat::MicroTime => {
            // An empty message is the zero time, which JSON has as null.
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            let (mut seconds, mut nanos) = (0, 0);
            for field in fields {
                match field.map_err(|what| error(at, what))? {
                    (1, WireValue::Varint(value)) => seconds = value as i64,
                    (2, WireValue::Varint(value)) => nanos = value as u32 as i32,
                    _ => {}
                }
            }
            let micros = (format == StringFormat::MicroTime).then_some(nanos / 1000);
            time::rfc3339(seconds, micros)
                .ok_or_else(|| error(at, format!("{seconds} s and {nanos} ns is no time")))?
                .into()
        }
    })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}
