//! What operators do.

use std::{cmp::Ordering, rc::Rc};

use crate::{Error, Val, eval::Steps, expr::Operator};

type Made<'a> = Result<Val<'a>, Error>;

fn overflow() -> Error {
    Error::run("return error for overflow")
}

fn by_zero(what: &str) -> Error {
    Error::run(format!("{what} by zero"))
}

pub(crate) fn binary<'a>(
    steps: &mut Steps,
    operator: Operator,
    left: &Val<'a>,
    right: &Val<'a>,
) -> Made<'a> {
    match operator {
        Operator::Equal => equal(steps, left, right).map(Val::Bool),
        Operator::NotEqual => equal(steps, left, right).map(|equal| Val::Bool(!equal)),
        Operator::Less => Ok(Val::Bool(
            order(steps, left, right)? == Some(Ordering::Less),
        )),
        Operator::LessEqual => Ok(Val::Bool(matches!(
            order(steps, left, right)?,
            Some(Ordering::Less | Ordering::Equal)
        ))),
        Operator::Greater => Ok(Val::Bool(
            order(steps, left, right)? == Some(Ordering::Greater),
        )),
        Operator::GreaterEqual => Ok(Val::Bool(matches!(
            order(steps, left, right)?,
            Some(Ordering::Greater | Ordering::Equal)
        ))),
        Operator::In => within(steps, left, right).map(Val::Bool),
        Operator::Add => add(steps, left, right),
        Operator::Subtract => match (left, right) {
            (Val::Int(a), Val::Int(b)) => a.checked_sub(*b).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(a), Val::Uint(b)) => a.checked_sub(*b).map(Val::Uint).ok_or_else(overflow),
            (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a - b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Ok(Val::Duration(a.duration_since(*b))),
            (Val::Timestamp(a), Val::Duration(b)) => a
                .checked_sub(*b)
                .map(Val::Timestamp)
                .map_err(|_| overflow()),
            (Val::Duration(a), Val::Duration(b)) => {
                a.checked_sub(*b).map(Val::Duration).ok_or_else(overflow)
            }
            _ => Err(Error::no_overload()),
        },
        Operator::Multiply => match (left, right) {
            (Val::Int(a), Val::Int(b)) => a.checked_mul(*b).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(a), Val::Uint(b)) => a.checked_mul(*b).map(Val::Uint).ok_or_else(overflow),
            (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a * b)),
            _ => Err(Error::no_overload()),
        },
        Operator::Divide => match (left, right) {
            (Val::Int(_), Val::Int(0)) | (Val::Uint(_), Val::Uint(0)) => Err(by_zero("division")),
            (Val::Int(a), Val::Int(b)) => a.checked_div(*b).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(a), Val::Uint(b)) => Ok(Val::Uint(a / b)),
            (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a / b)),
            _ => Err(Error::no_overload()),
        },
        Operator::Modulo => match (left, right) {
            (Val::Int(_), Val::Int(0)) | (Val::Uint(_), Val::Uint(0)) => Err(by_zero("modulus")),
            (Val::Int(a), Val::Int(b)) => a.checked_rem(*b).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(a), Val::Uint(b)) => Ok(Val::Uint(a % b)),
            _ => Err(Error::no_overload()),
        },
    }
}

fn add<'a>(steps: &mut Steps, left: &Val<'a>, right: &Val<'a>) -> Made<'a> {
    match (left, right) {
        (Val::Int(a), Val::Int(b)) => a.checked_add(*b).map(Val::Int).ok_or_else(overflow),
        (Val::Uint(a), Val::Uint(b)) => a.checked_add(*b).map(Val::Uint).ok_or_else(overflow),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(a + b)),
        (Val::Text(a), Val::Text(b)) => {
            steps.of_text(a.len() + b.len())?;
            Ok(Val::text([&**a, &**b].concat()))
        }
        (Val::Bytes(a), Val::Bytes(b)) => {
            steps.of_text(a.len() + b.len())?;
            Ok(Val::Bytes([&**a, &**b].concat().into()))
        }
        (Val::Timestamp(at), Val::Duration(by)) | (Val::Duration(by), Val::Timestamp(at)) => at
            .checked_add(*by)
            .map(Val::Timestamp)
            .map_err(|_| overflow()),
        (Val::Duration(a), Val::Duration(b)) => {
            a.checked_add(*b).map(Val::Duration).ok_or_else(overflow)
        }
        _ => {
            let (Some(a), Some(b)) = (left.items(), right.items()) else {
                return Err(Error::no_overload());
            };
            steps.take(left.len().unwrap_or(0) + right.len().unwrap_or(0))?;
            Ok(Val::list(a.chain(b).collect()))
        }
    }
}

/// Whatever they are: what is of different types is not equal, but numbers are compared as such.
pub(crate) fn equal(steps: &mut Steps, left: &Val<'_>, right: &Val<'_>) -> Result<bool, Error> {
    steps.take(1)?;
    Ok(match (left, right) {
        (Val::Null, Val::Null) => true,
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (Val::Text(a), Val::Text(b)) => {
            steps.of_text(a.len().min(b.len()))?;
            **a == **b
        }
        (Val::Bytes(a), Val::Bytes(b)) => {
            steps.of_text(a.len().min(b.len()))?;
            a == b
        }
        (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
        (Val::Duration(a), Val::Duration(b)) => a == b,
        (Val::Type(a), Val::Type(b)) => a == b,
        (Val::Quantity(a), Val::Quantity(b)) => a == b,
        (Val::Url(a), Val::Url(b)) => a.1 == b.1,
        (Val::Ip(a), Val::Ip(b)) => a == b,
        (Val::Cidr(a, x), Val::Cidr(b, y)) => (a, x) == (b, y),
        (Val::Format(a), Val::Format(b)) => a.name == b.name,
        (Val::Semver(a), Val::Semver(b)) => a == b,
        (Val::Optional(a), Val::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => equal(steps, a, b)?,
            (a, b) => a.is_none() && b.is_none(),
        },
        _ if number(left).is_some() && number(right).is_some() => {
            compare_numbers(left, right) == Some(Ordering::Equal)
        }
        _ if left.is_list() && right.is_list() => {
            if left.len() != right.len() {
                return Ok(false);
            }
            let (Some(a), Some(b)) = (left.items(), right.items()) else {
                return Ok(false);
            };
            for (a, b) in a.zip(b) {
                if !equal(steps, &a, &b)? {
                    return Ok(false);
                }
            }
            true
        }
        _ if left.len().is_some() && right.len().is_some() => {
            if left.is_list() || right.is_list() || left.len() != right.len() {
                return Ok(false);
            }
            steps.take(left.len().unwrap_or(0))?;
            for (key, value) in left.entries().unwrap_or_default() {
                match entry(steps, right, &key)? {
                    Some(other) if equal(steps, &value, &other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        _ => false,
    })
}

fn number(value: &Val<'_>) -> Option<()> {
    matches!(value, Val::Int(_) | Val::Uint(_) | Val::Double(_)).then_some(())
}

/// Of any two numbers, exactly; none where one is NaN.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn compare_numbers(left: &Val<'_>, right: &Val<'_>) -> Option<Ordering> {
    let whole = |value: &Val<'_>| match value {
        Val::Int(int) => Some(i128::from(*int)),
        Val::Uint(uint) => Some(i128::from(*uint)),
        _ => None,
    };
    match (left, right) {
        (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
        (Val::Double(a), b) => {
            let b = whole(b)?;
            if a.is_nan() {
                return None;
            }
            // beyond all integers casts saturate
            match (a.trunc() as i128).cmp(&b) {
                Ordering::Equal => a.fract().partial_cmp(&0.0),
                order => Some(order),
            }
        }
        (_, Val::Double(_)) => compare_numbers(right, left).map(Ordering::reverse),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

/// `None`: neither is the greater (NaN).
pub(crate) fn order(
    steps: &mut Steps,
    left: &Val<'_>,
    right: &Val<'_>,
) -> Result<Option<Ordering>, Error> {
    Ok(Some(match (left, right) {
        (Val::Text(a), Val::Text(b)) => {
            steps.of_text(a.len().min(b.len()))?;
            a.cmp(b)
        }
        (Val::Bytes(a), Val::Bytes(b)) => {
            steps.of_text(a.len().min(b.len()))?;
            a.cmp(b)
        }
        (Val::Bool(a), Val::Bool(b)) => a.cmp(b),
        (Val::Timestamp(a), Val::Timestamp(b)) => a.cmp(b),
        (Val::Duration(a), Val::Duration(b)) => a.cmp(b),
        (Val::Quantity(a), Val::Quantity(b)) => a.cmp(b),
        _ if number(left).is_some() && number(right).is_some() => {
            return Ok(compare_numbers(left, right));
        }
        _ => return Err(Error::no_overload()),
    }))
}

fn within(steps: &mut Steps, what: &Val<'_>, all: &Val<'_>) -> Result<bool, Error> {
    if let Some(items) = all.items() {
        for item in items {
            if equal(steps, what, &item)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if all.len().is_some() {
        return Ok(entry(steps, all, what)?.is_some());
    }
    Err(Error::no_overload())
}

/// Of a map, by its key.
pub(crate) fn entry<'a>(
    steps: &mut Steps,
    map: &Val<'a>,
    key: &Val<'_>,
) -> Result<Option<Val<'a>>, Error> {
    match (map, key) {
        (Val::Object(fields, _), Val::Text(key)) => {
            // as it is called in JSON, not as an identifier is escaped
            match fields.contains_key(&**key) {
                true => map.field(key),
                false => Ok(None),
            }
        }
        (Val::Object(..), _) => Ok(None),
        (Val::Map(entries), key) => {
            for (known, value) in entries.iter() {
                if equal(steps, known, key)? {
                    return Ok(Some(value.clone()));
                }
            }
            Ok(None)
        }
        (Val::Named(_), Val::Text(key)) => map.field(key),
        _ => Err(Error::no_overload()),
    }
}

pub(crate) fn index<'a>(
    steps: &mut Steps,
    of: &Val<'a>,
    index: &Val<'_>,
) -> Result<Option<Val<'a>>, Error> {
    if of.is_list() {
        let at = match index {
            Val::Int(at) => usize::try_from(*at).ok(),
            Val::Uint(at) => usize::try_from(*at).ok(),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Val::Double(at) if at.fract() == 0.0 && *at >= 0.0 => Some(*at as usize),
            Val::Double(_) => None,
            _ => return Err(Error::no_overload()),
        };
        return Ok(at.and_then(|at| of.item(at)));
    }
    entry(steps, of, index)
}

pub(crate) fn negate<'a>(value: &Val<'a>) -> Made<'a> {
    match value {
        Val::Int(int) => int.checked_neg().map(Val::Int).ok_or_else(overflow),
        Val::Double(double) => Ok(Val::Double(-double)),
        _ => Err(Error::no_overload()),
    }
}

/// A map of these; no key may come twice.
pub(crate) fn map<'a>(steps: &mut Steps, entries: Vec<(Val<'a>, Val<'a>)>) -> Made<'a> {
    for (at, (key, _)) in entries.iter().enumerate() {
        if !matches!(
            key,
            Val::Text(_) | Val::Int(_) | Val::Uint(_) | Val::Bool(_)
        ) {
            return Err(Error::run(format!(
                "unsupported key type: {}",
                key.type_name()
            )));
        }
        for (other, _) in &entries[..at] {
            if equal(steps, key, other)? {
                return Err(Error::run("duplicate key in map"));
            }
        }
    }
    Ok(Val::Map(Rc::new(entries)))
}
