//! RFC 3339, as Kubernetes writes and reads it.

/// `2026-11-22T15:04:05Z`, with six digits after the second where they are given; nothing for years that four digits don't hold.
pub(crate) fn rfc3339(seconds: i64, micros: Option<i32>) -> Option<String> {
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days)?;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = match micros {
        Some(micros @ 0..1_000_000) => format!(".{micros:06}"),
        Some(_) => return None,
        None => String::new(),
    };
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"
    ))
}

/// The day that is so many days after 1970-01-01, in the proleptic Gregorian calendar, of the years 0 to 9999.
fn civil(days: i64) -> Option<(i64, i64, i64)> {
    // Counted from 0000-03-01, so that a leap day is a year's last.
    let days = days.checked_add(719_468)?;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (0..=9999).contains(&year).then_some((year, month, day))
}

/// Whether it is a time as Go's `time.Parse(time.RFC3339, …)` reads it: a fraction and an offset are fine.
pub(crate) fn is_rfc3339(text: &str) -> bool {
    parse(text).is_some()
}

fn parse(text: &str) -> Option<()> {
    let number = |from: usize, digits: usize| -> Option<u32> {
        let part = text.get(from..from + digits)?;
        part.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(())?;
        part.parse().ok()
    };
    let byte = |at: usize, is: u8| (text.as_bytes().get(at) == Some(&is)).then_some(());
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    byte(4, b'-')?;
    byte(7, b'-')?;
    byte(10, b'T')?;
    byte(13, b':')?;
    byte(16, b':')?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let in_range = (1..=days).contains(&day)
        && number(11, 2)? < 24
        && number(14, 2)? < 60
        && number(17, 2)? < 60;
    in_range.then_some(())?;
    let mut at = 19;
    if byte(at, b'.').is_some() {
        let digits = text[at + 1..]
            .bytes()
            .take_while(u8::is_ascii_digit)
            .count();
        (digits > 0).then_some(())?;
        at += 1 + digits;
    }
    if byte(at, b'Z').is_some() {
        return (text.len() == at + 1).then_some(());
    }
    byte(at, b'+').or_else(|| byte(at, b'-'))?;
    byte(at + 3, b':')?;
    let offset = number(at + 1, 2)? < 24 && number(at + 4, 2)? < 60;
    (offset && text.len() == at + 6).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_the_day_that_they_are_in() {
        for (seconds, micros, text) in [
            (0, None, "1970-01-01T00:00:00Z"),
            (951_782_400, None, "2000-02-29T00:00:00Z"),
            (1_795_359_845, None, "2026-11-22T15:04:05Z"),
            (1_795_359_845, Some(42), "2026-11-22T15:04:05.000042Z"),
            (-1, None, "1969-12-31T23:59:59Z"),
            (-62_135_596_800, None, "0001-01-01T00:00:00Z"),
            (253_402_300_799, None, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds, micros).as_deref(), Some(text));
        }
        for seconds in [i64::MIN, i64::MAX, 253_402_300_800] {
            assert_eq!(rfc3339(seconds, None), None, "{seconds}");
        }
        assert_eq!(rfc3339(0, Some(-1)), None);
    }

    #[test]
    fn times_are_told_from_other_strings() {
        for text in [
            "2026-11-22T15:04:05Z",
            "2026-11-22T15:04:05.123456789Z",
            "2024-02-29T00:00:00+01:30",
        ] {
            assert!(is_rfc3339(text), "{text}");
        }
        for text in [
            "",
            "now",
            "2026-11-22",
            "2026-11-22 15:04:05Z",
            "2026-11-22T15:04:05",
            "2026-13-22T15:04:05Z",
            "2026-02-29T15:04:05Z",
            "2026-11-22T24:04:05Z",
            "2026-11-22T15:04:05.Z",
            "2026-11-22T15:04:05Zx",
            "2026-11-22T15:04:05+0100",
            "+026-11-22T15:04:05Z",
            "2026-11-22T15:04:0é",
        ] {
            assert!(!is_rfc3339(text), "{text}");
        }
    }
}
