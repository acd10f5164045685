//! Numbers that may be a share of a whole: `3`, `25%`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How a share that is no whole number is made one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// What is no number and no share of one hundred is 0: the API server lets none through.
pub(crate) fn of(value: Option<&IntOrString>, whole: i32, round: Round) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|text| text.parse().ok());
            let percent: i64 = percent.unwrap_or(0);
            let hundredfold = percent.saturating_mul(whole.into());
            let share = match round {
                Round::Up => hundredfold.saturating_add(99).div_euclid(100),
                Round::Down => hundredfold.div_euclid(100),
            };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_as_is_asked() {
        for (value, whole, up, down) in [
            ("25%", 10, 3, 2),
            ("25%", 4, 1, 1),
            ("1%", 1, 1, 0),
            ("0%", 10, 0, 0),
            ("100%", 7, 7, 7),
            ("150%", 3, 5, 4),
            ("25%", 0, 0, 0),
            ("x", 10, 0, 0),
            ("99999999999%", i32::MAX, i32::MAX, i32::MAX),
        ] {
            let value = IntOrString::String(value.to_owned());
            assert_eq!(of(Some(&value), whole, Round::Up), up, "{value:?}");
            assert_eq!(of(Some(&value), whole, Round::Down), down, "{value:?}");
        }
        assert_eq!(of(Some(&IntOrString::Int(3)), 1, Round::Up), 3);
        assert_eq!(of(None, 10, Round::Up), 0);
    }
}
