//! resource.Quantity, as far as decoding must know it.

/// Upstream's, for a string that is none.
pub(crate) const MESSAGE: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// A signed number with at most one point and a suffix: binary (`Ki` to `Ei`), decimal (`n` to `E`), or an exponent (`e3`).
pub(crate) fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits);
    if !number.contains(|c: char| c.is_ascii_digit()) || number.matches('.').count() > 1 {
        return false;
    }
    match suffix {
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" => true,
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => true,
        _ => suffix.strip_prefix(['e', 'E']).is_some_and(|exponent| {
            let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            (1..=9).contains(&exponent.len()) && exponent.bytes().all(|c| c.is_ascii_digit())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_told_from_other_strings() {
        for text in [
            "0", "1", "+1", "-1.5", ".5", "1.", "100m", "1Ki", "2Ei", "1E", "1e3", "1E-3", "12k",
        ] {
            assert!(is_quantity(text), "{text}");
        }
        for text in [
            "",
            ".",
            "+",
            "1K",
            "1ki",
            "1.2.3",
            "1mi",
            "Ki",
            "1 Gi",
            " 1",
            "1e",
            "1e3Ki",
            "--1",
            "1e9999999999",
            "0x10",
            "1é",
        ] {
            assert!(!is_quantity(text), "{text}");
        }
    }
}
