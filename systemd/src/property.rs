//! What a unit is told: properties by their names on D-Bus (org.freedesktop.systemd1(5)).
//!
//! Limits come from the files of cgroup v2 that they stand for: systemd writes the same files, at each reload of its own again, so what it does
//! not know of it would put back. What it has no property for is in the file alone, and systemd leaves it alone.

/// A processor's or memory node's number beyond this is in no mask: far more than Linux has (CONFIG_NR_CPUS is at most 8192).
const MAX_NUMBER: usize = 8191;
/// systemd's "infinity".
const NO_LIMIT: u64 = u64::MAX;
/// systemd keeps a quota as whole percents of a processor.
const PERCENT_US: u64 = 10_000;
const SECOND_US: u64 = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    Number(u64),
    Text(String),
    Processes(Vec<u32>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub name: &'static str,
    pub value: Value,
}

impl Property {
    pub fn new(name: &'static str, value: Value) -> Property {
        Property { name, value }
    }

    pub fn flag(name: &'static str) -> Property {
        Property::new(name, Value::Bool(true))
    }

    pub fn text(name: &'static str, value: impl Into<String>) -> Property {
        Property::new(name, Value::Text(value.into()))
    }
}

/// The properties that stand for a cgroup file of this value; none for a file that systemd does not write, and for a value that the kernel
/// will refuse.
pub fn of_file(file: &str, value: &str) -> Vec<Property> {
    let number = |name| {
        let number = match value {
            "max" => Some(NO_LIMIT),
            value => value.parse().ok(),
        };
        number
            .map(|number| Property::new(name, Value::Number(number)))
            .into_iter()
            .collect()
    };
    let set = |name| {
        mask(value)
            .map(|bytes| Property::new(name, Value::Bytes(bytes)))
            .into_iter()
            .collect()
    };
    match file {
        "cpu.max" => quota(value).unwrap_or_default(),
        "cpu.weight" => number("CPUWeight"),
        "cpuset.cpus" => set("AllowedCPUs"),
        "cpuset.mems" => set("AllowedMemoryNodes"),
        "memory.max" => number("MemoryMax"),
        "memory.high" => number("MemoryHigh"),
        "memory.low" => number("MemoryLow"),
        "memory.min" => number("MemoryMin"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "io.weight" => {
            let weight = value.strip_prefix("default ").unwrap_or(value);
            weight
                .parse()
                .ok()
                .map(|weight| Property::new("IOWeight", Value::Number(weight)))
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}

/// `20000 100000`, or `max 100000`: rounded up, for less than was asked for would throttle. The file has it to the microsecond.
fn quota(value: &str) -> Option<Vec<Property>> {
    let mut words = value.split_whitespace();
    let quota = words.next()?;
    let period: u64 = words.next().unwrap_or("100000").parse().ok()?;
    let per_second = match quota {
        "max" => NO_LIMIT,
        quota => {
            let quota: u64 = quota.parse().ok()?;
            quota
                .checked_mul(SECOND_US)?
                .checked_div(period)?
                .max(1)
                .checked_next_multiple_of(PERCENT_US)?
        }
    };
    Some(vec![
        Property::new("CPUQuotaPerSecUSec", Value::Number(per_second)),
        Property::new("CPUQuotaPeriodUSec", Value::Number(period)),
    ])
}

/// `0-2,7` as bits, the lowest of the first byte first.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MAX_NUMBER {
            return None;
        }
        if bytes.len() <= last / 8 {
            bytes.resize(last / 8 + 1, 0);
        }
        for number in first..=last {
            bytes[number / 8] |= 1 << (number % 8);
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_property_that_writes_it() {
        let number = |name, value| vec![Property::new(name, Value::Number(value))];
        for (file, value, expected) in [
            ("memory.max", "33554432", number("MemoryMax", 32 << 20)),
            ("memory.max", "max", number("MemoryMax", u64::MAX)),
            ("memory.high", "1", number("MemoryHigh", 1)),
            ("memory.low", "2", number("MemoryLow", 2)),
            ("memory.min", "3", number("MemoryMin", 3)),
            ("memory.swap.max", "0", number("MemorySwapMax", 0)),
            ("cpu.weight", "59", number("CPUWeight", 59)),
            ("pids.max", "64", number("TasksMax", 64)),
            ("pids.max", "max", number("TasksMax", u64::MAX)),
            ("io.weight", "default 50", number("IOWeight", 50)),
            ("memory.max", "much", vec![]),
            ("memory.oom.group", "1", vec![]),
            ("hugetlb.2MB.max", "0", vec![]),
            ("cpu.max.burst", "1000", vec![]),
            ("cpu.max", "", vec![]),
            ("cpu.max", "1 0", vec![]),
        ] {
            assert_eq!(of_file(file, value), expected, "{file} {value}");
        }
    }

    #[test]
    fn a_quota_is_whole_percents_and_never_less() {
        for (value, per_second, period) in [
            ("20000 100000", 200_000, 100_000),
            // 1.5 % of a processor.
            ("1500 100000", 20_000, 100_000),
            ("1000 1000000", 10_000, 1_000_000),
            ("max 50000", u64::MAX, 50_000),
        ] {
            let expected = vec![
                Property::new("CPUQuotaPerSecUSec", Value::Number(per_second)),
                Property::new("CPUQuotaPeriodUSec", Value::Number(period)),
            ];
            assert_eq!(of_file("cpu.max", value), expected, "{value}");
        }
    }

    #[test]
    fn a_list_of_processors_is_a_mask() {
        for (list, bytes) in [
            ("0", Some(vec![1])),
            ("0-2,9", Some(vec![0b111, 0b10])),
            ("8191", Some([vec![0; 1023], vec![0x80]].concat())),
            ("8192", None),
            ("3-1", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(mask(list), bytes, "{list}");
        }
    }
}
