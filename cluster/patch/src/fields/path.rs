use std::{cmp::Ordering, fmt};

use serde_json::{Map, Number, Value};

use crate::print;

/// One step from a value to a value within it.
#[derive(Debug, Clone)]
pub enum PathElement {
    /// Of an object or a map.
    Field(Box<str>),
    /// The element of a list whose keys have these values; sorted by name.
    Key(Box<[(Box<str>, Value)]>),
    /// The element of a set that is this value.
    Value(Value),
    /// Where a list has neither; nothing of Kubernetes' own writes it.
    Index(i64),
}

impl PathElement {
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    pub(crate) fn key(mut keys: Vec<(Box<str>, Value)>) -> Self {
        keys.sort_by(|left, right| left.0.cmp(&right.0));
        for (_, value) in &mut keys {
            make_canonical(value);
        }
        Self::Key(keys.into())
    }

    pub(crate) fn value(mut value: Value) -> Self {
        make_canonical(&mut value);
        Self::Value(value)
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

/// 80.0 is 80: Go's decoder makes no difference, and writes it as 80.
fn make_canonical(value: &mut Value) {
    /// From here on a float no longer has every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Value::Number(number) = value
        && number.is_f64()
        && let Some(float) = number.as_f64()
        && float.fract() == 0.0
        && float.abs() < EXACT
    {
        *number = Number::from(float as i64);
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(left), Self::Field(right)) => left.cmp(right),
            (Self::Key(left), Self::Key(right)) => {
                for ((left, left_value), (right, right_value)) in left.iter().zip(right) {
                    let order = left
                        .cmp(right)
                        .then_with(|| compare_values(left_value, right_value));
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                left.len().cmp(&right.len())
            }
            (Self::Value(left), Self::Value(right)) => compare_values(left, right),
            (Self::Index(left), Self::Index(right)) => left.cmp(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

/// As conflicts and errors show it: `.spec`, `[name="web"]`, `[="finalizer"]`, `[0]`.
impl fmt::Display for PathElement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(out, ".{name}"),
            Self::Key(keys) => {
                out.write_str("[")?;
                for (at, (name, value)) in keys.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    write!(out, "{comma}{name}={}", print::in_path(value))?;
                }
                out.write_str("]")
            }
            Self::Value(value) => write!(out, "[={}]", print::in_path(value)),
            Self::Index(index) => write!(out, "[{index}]"),
        }
    }
}

pub fn show_path(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// A total order: numbers (1 is 1.0), strings, booleans, lists, maps, null.
pub(crate) fn compare_values(left: &Value, right: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right),
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Array(left), Value::Array(right)) => {
            for (left, right) in left.iter().zip(right) {
                let order = compare_values(left, right);
                if order != Ordering::Equal {
                    return order;
                }
            }
            left.len().cmp(&right.len())
        }
        (Value::Object(left), Value::Object(right)) => compare_maps(left, right),
        _ => rank(left).cmp(&rank(right)),
    }
}

fn compare_numbers(left: &Number, right: &Number) -> Ordering {
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        return left.cmp(&right);
    }
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) if left == right => Ordering::Equal,
        (Some(left), Some(right)) => left.total_cmp(&right),
        (left, right) => left.is_some().cmp(&right.is_some()),
    }
}

fn compare_maps(left: &Map<String, Value>, right: &Map<String, Value>) -> Ordering {
    for ((left, left_value), (right, right_value)) in left.iter().zip(right) {
        let order = left
            .cmp(right)
            .then_with(|| compare_values(left_value, right_value));
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len())
}

pub(crate) fn equal_values(left: &Value, right: &Value) -> bool {
    compare_values(left, right) == Ordering::Equal
}
