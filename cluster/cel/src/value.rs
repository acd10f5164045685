//! Values: JSON is walked where it lies, and only what an expression makes is made.

use std::{collections::BTreeMap, fmt, net::IpAddr, ops::Deref, rc::Rc};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use crate::{
    Error, Shape,
    library::{Format, Semver, parse_duration},
    shape::unescape,
};

static ANY: Shape = Shape::Any;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    Bytes(Rc<[u8]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    /// Of JSON, with the shape of its items.
    Array(&'a [Value], &'a Shape),
    /// Of JSON, with its own shape.
    Object(&'a Map<String, Value>, &'a Shape),
    List(Rc<Vec<Val<'a>>>),
    Map(Rc<Vec<(Val<'a>, Val<'a>)>>),
    Optional(Option<Rc<Val<'a>>>),
    Type(&'static str),
    /// What has been worked out under names, or why it could not be: told to whoever asks for it.
    Named(Rc<BTreeMap<String, Result<Val<'a>, Error>>>),
    /// Billionths.
    Quantity(i128),
    Url(Rc<(String, url::Url)>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Format(&'static Format),
    Semver(Rc<Semver>),
}

#[derive(Clone)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Made(Rc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<'a> Val<'a> {
    /// JSON of which nothing is known.
    pub fn json(value: &'a Value) -> Self {
        Self::of(value, &ANY)
    }

    /// JSON of a known shape. Text that is no timestamp where one should be stays text: whoever validates the schema says so.
    pub fn of(value: &'a Value, shape: &'a Shape) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(bool) => Self::Bool(*bool),
            Value::Number(number) => match (shape, number.as_i64(), number.as_u64()) {
                (Shape::Double, ..) => Self::Double(number.as_f64().unwrap_or_default()),
                (_, Some(int), _) => Self::Int(int),
                (_, _, Some(uint)) => Self::Uint(uint),
                _ => match number.as_f64().unwrap_or_default() {
                    // 3.0 is an integer where one is asked for
                    #[allow(clippy::cast_possible_truncation)]
                    double if *shape == Shape::Int && double.abs() < 9e15 => {
                        Self::Int(double as i64)
                    }
                    double => Self::Double(double),
                },
            },
            Value::String(text) => Self::of_text(text, shape),
            Value::Array(items) => match shape {
                Shape::List(item) => Self::Array(items, item),
                _ => Self::Array(items, &ANY),
            },
            Value::Object(fields) => Self::Object(fields, shape),
        }
    }

    fn of_text(text: &'a str, shape: &Shape) -> Self {
        let known = match shape {
            Shape::Timestamp => parse_time(text).map(Self::Timestamp),
            Shape::Duration => parse_duration(text).map(Self::Duration),
            Shape::Bytes => BASE64_STANDARD
                .decode(text)
                .ok()
                .map(|bytes| Self::Bytes(bytes.into())),
            _ => None,
        };
        known.unwrap_or(Self::Text(Text::Borrowed(text)))
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Text::Made(text.into().into()))
    }

    pub(crate) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }

    pub fn some(value: Self) -> Self {
        Self::Optional(Some(Rc::new(value)))
    }

    /// `oldSelf` where there may be none.
    pub fn none() -> Self {
        Self::Optional(None)
    }

    /// What is found under names; an error is told only to whoever asks for its name.
    pub fn named(all: impl IntoIterator<Item = (String, Result<Val<'a>, Error>)>) -> Self {
        Self::Named(Rc::new(all.into_iter().collect()))
    }

    /// As `type()` names it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Array(..) | Self::List(_) => "list",
            Self::Object(..) | Self::Map(_) | Self::Named(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Semver(_) => "kubernetes.Semver",
        }
    }

    /// Items of a list, entries of a map; `None`: it has none.
    pub(crate) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Array(items, _) => items.len(),
            Self::List(items) => items.len(),
            Self::Object(fields, _) => fields.len(),
            Self::Map(entries) => entries.len(),
            Self::Named(all) => all.len(),
            _ => return None,
        })
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self, Self::Array(..) | Self::List(_))
    }

    /// An item of a list.
    pub(crate) fn item(&self, at: usize) -> Option<Self> {
        match self {
            Self::Array(items, shape) => items.get(at).map(|item| Self::of(item, shape)),
            Self::List(items) => items.get(at).cloned(),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> Option<impl Iterator<Item = Self> + use<'a, '_>> {
        let count = self.is_list().then(|| self.len())??;
        Some((0..count).filter_map(|at| self.item(at)))
    }

    /// Keys and values of a map, indices and items of a list.
    pub(crate) fn entries(&self) -> Option<Vec<(Self, Self)>> {
        Some(match self {
            Self::Object(fields, shape) => fields
                .iter()
                .map(|(key, value)| {
                    let key_text = Self::Text(Text::Borrowed(key));
                    (key_text, Self::of(value, below(shape, key)))
                })
                .collect(),
            Self::Map(entries) => entries.to_vec(),
            Self::Named(all) => all
                .iter()
                .filter_map(|(name, value)| Some((Self::text(name.as_str()), value.clone().ok()?)))
                .collect(),
            list => list
                .items()?
                .enumerate()
                .map(|(at, item)| (Self::Int(i64::try_from(at).unwrap_or(i64::MAX)), item))
                .collect(),
        })
    }

    /// A field by its name; `None`: there is none. An optional's is that of what it holds.
    ///
    /// # Errors
    /// It has no fields, or this one's value could not be worked out.
    pub(crate) fn field(&self, name: &str) -> Result<Option<Self>, Error> {
        match self {
            Self::Object(fields, shape) => {
                if let Some(value) = fields.get(name) {
                    return Ok(Some(Self::of(value, below(shape, name))));
                }
                let Some(name) = unescape(name) else {
                    return Ok(None);
                };
                Ok(fields
                    .get(&name)
                    .map(|value| Self::of(value, below(shape, &name))))
            }
            Self::Map(entries) => Ok(entries
                .iter()
                .find(|(key, _)| matches!(key, Self::Text(key) if **key == *name))
                .map(|(_, value)| value.clone())),
            Self::Named(all) => all.get(name).cloned().transpose(),
            _ => Err(Error::no_overload()),
        }
    }
}

/// RFC 3339, or a date alone, which begins in UTC.
fn parse_time(text: &str) -> Option<Timestamp> {
    let date = || {
        let date: jiff::civil::Date = text.parse().ok()?;
        let midnight = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(midnight.timestamp())
    };
    text.parse().ok().or_else(date)
}

/// The shape of what is under `name` in an object of `shape`.
fn below<'a>(shape: &'a Shape, name: &str) -> &'a Shape {
    match shape {
        Shape::Map(value) => value,
        Shape::Object(fields) => fields.0.get(name).unwrap_or(&ANY),
        _ => &ANY,
    }
}
