//! Schedules of CronJobs, as far as being one: five fields, names of months and days, steps, and the words that stand for them.

/// What is wrong with a schedule.
pub(crate) fn wrong(schedule: &str) -> Option<String> {
    let schedule = schedule.trim();
    if schedule.contains("TZ") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned());
    }
    if let Some(word) = schedule.strip_prefix('@') {
        return match word {
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => None,
            _ => match word.strip_prefix("every ") {
                Some(every) if duration(every) => None,
                Some(every) => Some(format!(
                    "failed to parse duration @every {every}: time: invalid duration {every:?}"
                )),
                None => Some(format!("unrecognized descriptor: @{word}")),
            },
        };
    }
    let fields: Vec<_> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] = [
        (0, 59, &[]),
        (0, 23, &[]),
        (1, 31, &[]),
        (1, 12, &MONTHS),
        (0, 6, &DAYS),
    ];
    fields
        .iter()
        .zip(bounds)
        .flat_map(|(field, (min, max, names))| {
            field.split(',').map(move |part| (part, min, max, names))
        })
        .find_map(|(part, min, max, names)| range(part, min, max, names).err())
}

/// `*`, `5`, `1-5`, `*/2`, `1-10/3`.
fn range(part: &str, min: u32, max: u32, names: &[&str]) -> Result<(), String> {
    let (span, step) = match part.split_once('/') {
        Some((span, step)) => (span, Some(step)),
        None => (part, None),
    };
    if step.is_some_and(|step| step.contains('/')) {
        return Err(format!("too many slashes: {part}"));
    }
    let value = |text: &str| -> Result<u32, String> {
        let lower = text.to_lowercase();
        if let Some(at) = names.iter().position(|name| *name == lower) {
            return Ok(u32::try_from(at).unwrap_or(0) + min);
        }
        text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
            )
        })
    };
    if let Some(step) = step
        && value(step)? == 0
    {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if span == "*" || span == "?" {
        return Ok(());
    }
    let (from, to) = match span.split_once('-') {
        Some((from, to)) => (value(from)?, value(to)?),
        None => {
            let one = value(span)?;
            (one, one)
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
    Ok(())
}

/// As Go writes one: `1h30m`.
fn duration(text: &str) -> bool {
    let mut rest = text;
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[digits..];
        let Some(unit) = ["ms", "us", "ns", "h", "m", "s"]
            .iter()
            .find(|unit| rest.starts_with(**unit))
        else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::wrong;

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
