//! Schedules of CronJobs: five fields, names of months and days, steps, the words that stand for them, and `@every 1h30m`.

/// When a CronJob's jobs begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    Calendar(Calendar),
    /// So many seconds after the one before; at least one.
    Every(u32),
}

/// Minutes by the clock on the wall. A bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both a day of the month and one of the week are named: either is enough.
    either: bool,
}

impl Calendar {
    /// Sunday is weekday 0.
    pub fn has_day(&self, month: u8, day: u8, weekday: u8) -> bool {
        let (day, weekday) = (has(self.days, day), has(self.weekdays, weekday));
        has(self.months, month)
            && if self.either {
                day || weekday
            } else {
                day && weekday
            }
    }

    pub fn has_hour(&self, hour: u8) -> bool {
        has(self.hours, hour)
    }

    /// The first of the hour that is not before `minute`.
    pub fn minute_from(&self, minute: u8) -> Option<u8> {
        (minute..60).find(|minute| has(self.minutes, *minute))
    }
}

fn has(bits: u64, at: u8) -> bool {
    bits >> at & 1 == 1
}

impl std::str::FromStr for Schedule {
    type Err = String;

    fn from_str(schedule: &str) -> Result<Self, String> {
        let schedule = schedule.trim();
        if schedule.contains("TZ") {
            return Err(
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned(),
            );
        }
        let Some(word) = schedule.strip_prefix('@') else {
            return fields(schedule);
        };
        match word {
            "yearly" | "annually" => fields("0 0 1 1 *"),
            "monthly" => fields("0 0 1 * *"),
            "weekly" => fields("0 0 * * 0"),
            "daily" | "midnight" => fields("0 0 * * *"),
            "hourly" => fields("0 * * * *"),
            _ => match word.strip_prefix("every ") {
                Some(every) => duration(every).map(Self::Every).ok_or_else(|| {
                    format!(
                        "failed to parse duration @every {every}: time: invalid duration {every:?}"
                    )
                }),
                None => Err(format!("unrecognized descriptor: @{word}")),
            },
        }
    }
}

/// What is wrong with a schedule.
pub(crate) fn wrong(schedule: &str) -> Option<String> {
    schedule.parse::<Schedule>().err()
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn fields(schedule: &str) -> Result<Schedule, String> {
    let fields: Vec<_> = schedule.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = fields[..] else {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    };
    let (days, any_day) = field(days, 1, 31, &[])?;
    let (weekdays, any_weekday) = field(weekdays, 0, 6, &DAYS)?;
    Ok(Schedule::Calendar(Calendar {
        minutes: field(minutes, 0, 59, &[])?.0,
        hours: field(hours, 0, 23, &[])?.0,
        days,
        months: field(months, 1, 12, &MONTHS)?.0,
        weekdays,
        either: !any_day && !any_weekday,
    }))
}

/// Its bits, and whether a `*` says that any will do.
fn field(field: &str, min: u32, max: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let mut all = (0, false);
    for part in field.split(',') {
        let (bits, any) = range(part, min, max, names)?;
        all = (all.0 | bits, all.1 || any);
    }
    Ok(all)
}

/// `*`, `5`, `1-5`, `*/2`, `5/10` (from 5 on), `1-10/3`.
fn range(part: &str, min: u32, max: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let (span, step) = match part.split_once('/') {
        Some((span, step)) => (span, Some(step)),
        None => (part, None),
    };
    if step.is_some_and(|step| step.contains('/')) {
        return Err(format!("too many slashes: {part}"));
    }
    let number = |text: &str| -> Result<u32, String> {
        text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
            )
        })
    };
    let value = |text: &str| {
        let lower = text.to_lowercase();
        match names.iter().position(|name| *name == lower) {
            Some(at) => Ok(u32::try_from(at).unwrap_or(0) + min),
            None => number(text),
        }
    };
    let every = step.map(number).transpose()?;
    if every == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    let is_any = span == "*" || span == "?";
    let (from, to) = match span.split_once('-') {
        _ if is_any => (min, max),
        Some((from, to)) => (value(from)?, value(to)?),
        None => {
            let one = value(span)?;
            (one, if every.is_some() { max } else { one })
        }
    };
    if from < min {
        return Err(format!(
            "beginning of range ({from}) below minimum ({min}): {part}"
        ));
    }
    if to > max {
        return Err(format!("end of range ({to}) above maximum ({max}): {part}"));
    }
    if from > to {
        return Err(format!(
            "beginning of range ({from}) beyond end of range ({to}): {part}"
        ));
    }
    let every = every.unwrap_or(1);
    let steps = (from..=to).step_by(usize::try_from(every).unwrap_or(usize::MAX));
    let bits = steps.fold(0, |bits, at| bits | 1 << at);
    Ok((bits, is_any && every == 1))
}

/// Seconds of what Go writes as one: `1h30m`.
fn duration(text: &str) -> Option<u32> {
    const UNITS: [(&str, f64); 7] = [
        ("ms", 1e-3),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ns", 1e-9),
        ("h", 3600.0),
        ("m", 60.0),
        ("s", 1.0),
    ];
    let (mut rest, mut seconds) = (text, 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .filter(|digits| *digits > 0)?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, in_seconds) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        seconds += amount * in_seconds;
        rest = &rest[unit.len()..];
    }
    // a century at most: the longest that a number of Go's has room for is three
    Some((seconds as u32).clamp(1, 100 * 366 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::{Schedule, wrong};

    #[test]
    fn a_schedule_names_minutes() {
        let calendar = |text: &str| match text.parse() {
            Ok(Schedule::Calendar(calendar)) => calendar,
            other => panic!("{text}: {other:?}"),
        };
        let minutes = |text: &str| -> Vec<u8> {
            let calendar = calendar(text);
            let mut at = 0;
            std::iter::from_fn(|| {
                let minute = calendar.minute_from(at)?;
                at = minute + 1;
                Some(minute)
            })
            .collect()
        };
        assert_eq!(minutes("*/20 * * * *"), [0, 20, 40]);
        assert_eq!(minutes("50/5 * * * *"), [50, 55]);
        assert_eq!(minutes("1-10/4,3,59 * * * *"), [1, 3, 5, 9, 59]);
        assert_eq!(calendar("@weekly"), calendar("0 0 * * sun"));
        let hours = calendar("0 9-17/4 * * *");
        assert!(hours.has_hour(13) && !hours.has_hour(14));
        // the 13th, and every Friday
        let either = calendar("0 0 13 * fri");
        assert!(either.has_day(1, 13, 1) && either.has_day(1, 2, 5) && !either.has_day(1, 2, 1));
        // a star with a step names days, too
        let both = calendar("0 0 */2 * fri");
        assert!(both.has_day(1, 3, 1) && both.has_day(1, 2, 5));
        let only = calendar("0 0 * feb fri");
        assert!(only.has_day(2, 3, 5) && !only.has_day(2, 3, 4) && !only.has_day(3, 3, 5));
        assert_eq!("@every 1h30m".parse(), Ok(Schedule::Every(5400)));
        assert_eq!("@every 1.5s".parse(), Ok(Schedule::Every(1)));
        assert_eq!("@every 1ms".parse(), Ok(Schedule::Every(1)));
    }

    #[test]
    fn a_schedule_has_five_fields_or_a_word() {
        for good in [
            "* * * * *",
            "*/5 * * * *",
            "0 0 1 1 0",
            "0 3 * * mon-fri",
            "0,30 8-18/2 ? JAN,feb *",
            "@hourly",
            "@every 1h30m",
            " 0 0 * * 6 ",
        ] {
            assert_eq!(wrong(good), None, "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "1//2 * * * *",
            "TZ=UTC 0 0 * * *",
            "@often",
            "@every x",
            "@every ",
            "-1 * * * *",
            "ä * * * *",
        ] {
            assert!(wrong(bad).is_some(), "{bad}");
        }
    }
}
