//! resource.Quantity: `250m`, `1.5`, `64Mi`, `1e3`.

use serde_json::Value;

/// Billionths: upstream rounds up to these.
const NANO: i128 = 1_000_000_000;

/// Larger amounts are as large as this (upstream: 2^63-1).
const MOST: i128 = i64::MAX as i128 * NANO;

const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];
const DECIMAL: [(&str, u32); 10] = [
    ("n", 0),
    ("u", 3),
    ("m", 6),
    ("", 9),
    ("k", 12),
    ("M", 15),
    ("G", 18),
    ("T", 21),
    ("P", 24),
    ("E", 27),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    /// Billionths, saturated.
    pub nano: i128,
    format: Format,
}

impl Quantity {
    /// A string or a number, as JSON may have it.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    /// `None` where it is no quantity.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text
            .find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c)))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let negative = number.starts_with('-');
        let number = number.strip_prefix(['-', '+']).unwrap_or(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = || whole.bytes().chain(fraction.bytes());
        if digits().next().is_none() || !digits().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // Digits beyond what an amount can be made of: more before the point are more than the most, more behind it are rounded.
        let whole = whole.trim_start_matches('0');
        let (power, binary, format) = Self::suffix(suffix)?;
        let mut nano: i128 = 0;
        let mut rounded = false;
        let scale = |value: i128, up: bool| -> Option<i128> {
            if binary > 0 {
                value.checked_mul(1 << binary)
            } else if power >= 0 {
                10i128
                    .checked_pow(power.unsigned_abs())
                    .and_then(|p| value.checked_mul(p))
            } else {
                let divisor = 10i128.checked_pow(power.unsigned_abs())?;
                Some(value / divisor + i128::from(up && value % divisor != 0))
            }
        };
        // The number in 10^-18ths as far as it goes, then scaled.
        const FINE: usize = 18;
        for byte in whole.bytes() {
            nano = nano
                .saturating_mul(10)
                .saturating_add(i128::from(byte - b'0'));
        }
        let mut fine: i128 = 0;
        for at in 0..FINE {
            let digit = fraction.as_bytes().get(at).map_or(0, |byte| byte - b'0');
            fine = fine * 10 + i128::from(digit);
        }
        rounded |= fraction.bytes().skip(FINE).any(|byte| byte != b'0');
        let one = 10i128.pow(9);
        let whole = nano
            .checked_mul(NANO)
            .and_then(|value| scale(value, true))
            .unwrap_or(MOST);
        let part = scale(fine, true).map_or(MOST, |value| {
            value / one + i128::from(rounded || value % one != 0)
        });
        let nano = whole.saturating_add(part).min(MOST);
        Some(Self {
            nano: if negative { -nano } else { nano },
            format,
        })
    }

    /// The sum, in this one's format.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            nano: self.nano.saturating_add(other.nano),
            ..self
        }
    }

    /// So many whole ones.
    pub fn whole(count: i64) -> Self {
        Self {
            nano: i128::from(count) * NANO,
            format: Format::Decimal,
        }
    }

    /// Its power of ten or of two.
    fn suffix(suffix: &str) -> Option<(i32, u32, Format)> {
        if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            return Some((0, *bits, Format::Binary));
        }
        if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            return Some((power.cast_signed() - 9, 0, Format::Decimal));
        }
        let exponent = suffix.strip_prefix(['e', 'E'])?;
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if digits.is_empty() || digits.len() > 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let exponent: i32 = exponent.parse().ok()?;
        Some((exponent.clamp(-40, 40), 0, Format::Exponent))
    }

    /// As upstream writes it: without fractions, in the largest unit that does.
    pub fn canonical(self) -> String {
        if self.nano == 0 {
            return "0".to_owned();
        }
        let sign = if self.nano < 0 { "-" } else { "" };
        let nano = self.nano.abs();
        let whole = nano / NANO;
        if self.format == Format::Binary && nano % NANO == 0 && whole >= 1024 {
            let (name, bits) = BINARY
                .iter()
                .rev()
                .find(|(_, bits)| whole % (1i128 << bits) == 0)
                .copied()
                .unwrap_or(("", 0));
            return format!("{sign}{}{name}", whole >> bits);
        }
        let (name, power) = DECIMAL
            .iter()
            .rev()
            .find(|(_, power)| nano % 10i128.pow(*power) == 0)
            .copied()
            .unwrap_or(("n", 0));
        let amount = nano / 10i128.pow(power);
        match self.format {
            Format::Exponent if power != 9 => format!("{sign}{amount}e{}", power.cast_signed() - 9),
            _ => format!("{sign}{amount}{name}"),
        }
    }
}

/// What a Table shows of a quantity; absent ones are 0.
pub(crate) fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "0".to_owned(),
        Some(value) => match Quantity::of(value) {
            Some(quantity) => quantity.canonical(),
            None => value.as_str().unwrap_or("<invalid>").to_owned(),
        },
    }
}

/// All of them together, in the format of the first; what isn't a quantity is 0.
pub(crate) fn sum<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    let sum = values.filter_map(Quantity::of).reduce(|a, b| Quantity {
        nano: a.nano.saturating_add(b.nano),
        ..a
    });
    sum.map_or("0".to_owned(), Quantity::canonical)
}

/// Rewrites the quantities of a map (a ResourceList) as upstream keeps them: what isn't one stays, for validation to say.
pub(crate) fn canonicalize(list: Option<&mut Value>) {
    if let Some(Value::Object(list)) = list {
        for value in list.values_mut() {
            canonicalize_one(Some(value));
        }
    }
}

pub(crate) fn canonicalize_one(value: Option<&mut Value>) {
    if let Some(value) = value
        && let Some(quantity) = Quantity::of(value)
    {
        *value = quantity.canonical().into();
    }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn quantities_are_written_as_upstream_writes_them() {
        for (text, canonical) in [
            ("0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("1000Ki", "1000Ki"),
            ("512Ki", "512Ki"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("8E", "8E"),
            ("1000", "1k"),
            ("2000k", "2M"),
            ("-1", "-1"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("1n", "1n"),
            ("9999999999999999999999", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("0Ki", "0"),
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(quantity.canonical(), canonical, "{text}");
            let again = Quantity::parse(canonical).unwrap();
            assert_eq!(again.canonical(), canonical, "{canonical} again");
        }
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "", "x", "1x", "1 Gi", "Gi", "--1", "1.2.3", "1e", "1e1000", "1e+", "0x10", "1,5", "١",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }
}
