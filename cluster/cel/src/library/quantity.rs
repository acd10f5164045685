//! Kubernetes' quantities: `quantity('1Gi').isGreaterThan(quantity('500M'))`. They are exact to a billionth, and as large as 10^20.

use super::{Function, Made, global, method, semver, wrong};
use crate::{Error, Shape, Val};

const NANO: i128 = 1_000_000_000;
const MOST: i128 = 100_000_000_000_000_000_000 * NANO;

const QUANTITY: Shape = Shape::Other("kubernetes.Quantity");

pub(super) static FUNCTIONS: &[Function] = &[
    global("quantity", 1, QUANTITY, |_, all, _| {
        match &all[0] {
        Val::Text(text) => parse(text).map(Val::Quantity).ok_or_else(|| {
            Error::run(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            )
        }),
        _ => wrong(),
    }
    }),
    global("isQuantity", 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Text(text) => Ok(Val::Bool(parse(text).is_some())),
        _ => wrong(),
    }),
    method("sign", 1, 1, Shape::Int, |_, all, _| match &all[0] {
        Val::Quantity(nano) => Ok(Val::Int(nano.signum() as i64)),
        _ => wrong(),
    }),
    method("isInteger", 1, 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Quantity(nano) => Ok(Val::Bool(whole(*nano).is_some())),
        _ => wrong(),
    }),
    method("asInteger", 1, 1, Shape::Int, |_, all, _| match &all[0] {
        Val::Quantity(nano) => whole(*nano)
            .map(Val::Int)
            .ok_or_else(|| Error::run("cannot convert value to integer")),
        _ => wrong(),
    }),
    #[allow(clippy::cast_precision_loss)]
    method(
        "asApproximateFloat",
        1,
        1,
        Shape::Double,
        |_, all, _| match &all[0] {
            Val::Quantity(nano) => Ok(Val::Double(*nano as f64 / NANO as f64)),
            _ => wrong(),
        },
    ),
    method("add", 2, 2, QUANTITY, |_, all, _| changed(all, 1)),
    method("sub", 2, 2, QUANTITY, |_, all, _| changed(all, -1)),
    // semantic versions are compared by the same names
    method("compareTo", 2, 2, Shape::Int, |_, all, _| {
        Ok(Val::Int(compare(all)? as i64))
    }),
    method("isLessThan", 2, 2, Shape::Bool, |_, all, _| {
        Ok(Val::Bool(compare(all)?.is_lt()))
    }),
    method("isGreaterThan", 2, 2, Shape::Bool, |_, all, _| {
        Ok(Val::Bool(compare(all)?.is_gt()))
    }),
];

fn compare(all: &[Val<'_>]) -> Result<std::cmp::Ordering, Error> {
    match (&all[0], &all[1]) {
        (Val::Quantity(a), Val::Quantity(b)) => Ok(a.cmp(b)),
        (Val::Semver(a), Val::Semver(b)) => Ok(semver::compare(a, b)),
        _ => Err(Error::no_overload()),
    }
}

fn changed<'a>(all: &[Val<'a>], sign: i128) -> Made<'a> {
    let Val::Quantity(a) = &all[0] else {
        return wrong();
    };
    let by = match &all[1] {
        Val::Quantity(by) => *by,
        Val::Int(by) => i128::from(*by) * NANO,
        _ => return wrong(),
    };
    let sum = a + sign * by;
    match (-MOST..=MOST).contains(&sum) {
        true => Ok(Val::Quantity(sum)),
        false => Err(Error::run("return error for overflow")),
    }
}

fn whole(nano: i128) -> Option<i64> {
    (nano % NANO == 0)
        .then(|| i64::try_from(nano / NANO).ok())
        .flatten()
}

/// In billionths; `None` where it is no quantity, or too large a one.
fn parse(text: &str) -> Option<i128> {
    const BINARY: [(&str, u32); 6] = [
        ("Ki", 10),
        ("Mi", 20),
        ("Gi", 30),
        ("Ti", 40),
        ("Pi", 50),
        ("Ei", 60),
    ];
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty())
        || fraction.contains('.')
        || whole.len() > 20
        || fraction.len() > 18
    {
        return None;
    }
    let digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let (factor, power) = match BINARY.iter().find(|(name, _)| *name == suffix) {
        Some((_, power)) => (1_i128 << power, 0),
        None => match DECIMAL.iter().find(|(name, _)| *name == suffix) {
            Some((_, power)) => (1, *power),
            None => {
                let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
                (1, (-40..=40).contains(&exponent).then_some(exponent)?)
            }
        },
    };
    let value = digits.checked_mul(factor)?;
    let power = power - places + 9;
    let nano = if power >= 0 {
        value.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
    } else {
        // rounded away from zero, as upstream does
        let by = 10_i128.checked_pow(power.unsigned_abs())?;
        value.checked_add(by - 1)? / by
    };
    (nano <= MOST).then_some(sign * nano)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_upstream_reads_them() {
        for (text, nano) in [
            ("1", Some(NANO)),
            ("250m", Some(NANO / 4)),
            ("1.5Gi", Some(1_610_612_736 * NANO)),
            ("-1k", Some(-1000 * NANO)),
            ("1e3", Some(1000 * NANO)),
            (".5", Some(NANO / 2)),
            ("1E", Some(1_000_000_000_000_000_000 * NANO)),
            ("0.1n", Some(1)),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("1Q", None),
            ("Gi", None),
            ("1e400", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(parse(text), nano, "{text}");
        }
    }
}
