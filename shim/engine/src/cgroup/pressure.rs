//! Pressure stall information: how long tasks of a cgroup waited for CPU, memory or IO (cgroup v2, Linux 4.20).

use std::{fs, path::Path};

/// A pressure file.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// At least one task stalled.
    pub some: Stall,
    /// All tasks stalled at once. The kernel has had it for CPU since 5.13.
    pub full: Stall,
}

/// One line of it.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 s.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// µs since the cgroup was made.
    pub total_us: u64,
}

/// `None` where the kernel has none: built without it, started without `psi=1` (then reading fails), or an older one.
pub(super) fn read(path: &Path) -> Option<Pressure> {
    parse(&fs::read_to_string(path).ok()?)
}

fn parse(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let of = |line: &&str| line.split_whitespace().next() == Some(name);
        text.lines().find(of).and_then(stall)
    };
    Some(Pressure {
        some: line("some")?,
        full: line("full").unwrap_or_default(),
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn stall(line: &str) -> Option<Stall> {
    let value = |key: &str| {
        line.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    };
    let average = |key: &str| value(key)?.parse::<f64>().ok().filter(|n| n.is_finite());
    Some(Stall {
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
        total_us: value("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read_and_a_missing_full_is_none_of_it() {
        let some = "some avg10=98.57 avg60=96.75 avg300=58.29 total=9791345028\n";
        let stall = Stall {
            avg10: 98.57,
            avg60: 96.75,
            avg300: 58.29,
            total_us: 9_791_345_028,
        };
        let read = parse(&format!(
            "{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
        ));
        let read = read.unwrap();
        assert_eq!((read.some, read.full.total_us), (stall, 7));
        assert_eq!(parse(some).unwrap().full, Stall::default());
        for broken in ["", "some avg10=1", "full avg10=0 avg60=0 avg300=0 total=0"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_no_pressure_and_not_zero() {
        assert_eq!(
            read(Path::new("/sys/fs/cgroup/not/there/cpu.pressure")),
            None
        );
    }
}
