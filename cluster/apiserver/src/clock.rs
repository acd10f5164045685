//! Times as the API writes them: RFC 3339, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, Unit};

/// Seconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

/// metav1.Time: to the second.
pub fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

/// metav1.MicroTime, now.
pub fn micro_time() -> String {
    let now = Timestamp::now();
    let now = now.round(Unit::Microsecond).unwrap_or(now);
    now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Seconds since the epoch of an RFC 3339 time.
pub fn parse(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_was_written() {
        assert_eq!(time(1_790_000_000), "2026-09-21T14:13:20Z");
        assert_eq!(parse(&time(1_790_000_000)), Some(1_790_000_000));
        assert_eq!(parse("yesterday"), None);
        assert_eq!(micro_time().len(), "2026-09-21T14:13:20.000000Z".len());
    }
}
