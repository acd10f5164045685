//! Timestamps and durations.

use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

use super::{Function, Made, global, method, wrong};
use crate::{Error, Shape, Val};

pub(super) static FUNCTIONS: &[Function] = &[
    global("timestamp", 1, Shape::Timestamp, |_, all, _| {
        match &all[0] {
            Val::Text(text) => text
                .parse()
                .map(Val::Timestamp)
                .map_err(|_| Error::run(format!("invalid timestamp {:?}", &**text))),
            Val::Int(seconds) => Timestamp::from_second(*seconds)
                .map(Val::Timestamp)
                .map_err(|_| Error::run("timestamp overflow")),
            at @ Val::Timestamp(_) => Ok(at.clone()),
            _ => wrong(),
        }
    }),
    global("duration", 1, Shape::Duration, |_, all, _| match &all[0] {
        Val::Text(text) => parse_duration(text)
            .map(Val::Duration)
            .ok_or_else(|| Error::run(format!("invalid duration {:?}", &**text))),
        of @ Val::Duration(_) => Ok(of.clone()),
        _ => wrong(),
    }),
    method("getFullYear", 1, 2, Shape::Int, |_, all, _| {
        part(all, |at| i64::from(at.year()))
    }),
    method("getMonth", 1, 2, Shape::Int, |_, all, _| {
        part(all, |at| i64::from(at.month()) - 1)
    }),
    method("getDate", 1, 2, Shape::Int, |_, all, _| {
        part(all, |at| i64::from(at.day()))
    }),
    method("getDayOfMonth", 1, 2, Shape::Int, |_, all, _| {
        part(all, |at| i64::from(at.day()) - 1)
    }),
    method("getDayOfWeek", 1, 2, Shape::Int, |_, all, _| {
        part(all, |at| i64::from(at.weekday().to_sunday_zero_offset()))
    }),
    method("getDayOfYear", 1, 2, Shape::Int, |_, all, _| {
        part(all, |at| i64::from(at.day_of_year()) - 1)
    }),
    method("getHours", 1, 2, Shape::Int, |_, all, _| match &all[0] {
        Val::Duration(of) => Ok(Val::Int(of.as_hours())),
        _ => part(all, |at| i64::from(at.hour())),
    }),
    method("getMinutes", 1, 2, Shape::Int, |_, all, _| match &all[0] {
        Val::Duration(of) => Ok(Val::Int(of.as_mins())),
        _ => part(all, |at| i64::from(at.minute())),
    }),
    method("getSeconds", 1, 2, Shape::Int, |_, all, _| match &all[0] {
        Val::Duration(of) => Ok(Val::Int(of.as_secs())),
        _ => part(all, |at| i64::from(at.second())),
    }),
    method(
        "getMilliseconds",
        1,
        2,
        Shape::Int,
        |_, all, _| match &all[0] {
            Val::Duration(of) => Ok(Val::Int(i64::try_from(of.as_millis()).unwrap_or(i64::MAX))),
            _ => part(all, |at| i64::from(at.millisecond())),
        },
    ),
];

/// Of a timestamp, in UTC or in the zone that is named: `Europe/Vienna`, `+02:00`.
fn part<'a>(all: &[Val<'a>], part: fn(&Zoned) -> i64) -> Made<'a> {
    let Val::Timestamp(at) = &all[0] else {
        return wrong();
    };
    let zone = match all.get(1) {
        None => TimeZone::UTC,
        Some(Val::Text(name)) => {
            zone(name).ok_or_else(|| Error::run(format!("unknown time zone {:?}", &**name)))?
        }
        Some(_) => return wrong(),
    };
    Ok(Val::Int(part(&at.to_zoned(zone))))
}

fn zone(name: &str) -> Option<TimeZone> {
    if let Some((hours, minutes)) = name.split_once(':') {
        let negative = hours.starts_with('-');
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
        let minutes: i32 = minutes.parse().ok()?;
        if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
            return None;
        }
        let seconds = (hours * 60 + minutes) * 60;
        let offset = if negative { -seconds } else { seconds };
        return Some(TimeZone::fixed(
            jiff::tz::Offset::from_seconds(offset).ok()?,
        ));
    }
    match name {
        "UTC" | "Z" => Some(TimeZone::UTC),
        name => TimeZone::get(name).ok(),
    }
}

/// As Go has durations: `1h30m`, `-1.5s`, `100ms`, `0`. `None`: it is none, or one of more than 292 years.
pub(crate) fn parse_duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 || whole.len() > 19 {
            return None;
        }
        let digits = |text: &str| match text {
            "" => Some(0),
            text => text.parse::<i128>().ok(),
        };
        nanos += digits(whole)? * unit;
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        nanos += digits(fraction)? * unit / scale;
        rest = after;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// `5400s`, `1.5s`: as JSON has durations.
pub(super) fn in_seconds(of: SignedDuration) -> String {
    let nanos = of.as_nanos();
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let fraction = format!("{:09}", nanos % 1_000_000_000);
    match fraction.trim_end_matches('0') {
        "" => format!("{sign}{}s", nanos / 1_000_000_000),
        fraction => format!("{sign}{}.{fraction}s", nanos / 1_000_000_000),
    }
}
