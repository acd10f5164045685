//! Block devices: how fast a cgroup may read and write each of them, and its share where several want one.
//!
//! The kernel keeps these limits a device and a direction. v1 has a file for each direction (Documentation/admin-guide/cgroup-v1/
//! blkio-controller.rst), v2 one line a device (`io.max`). Shares are kept by a scheduler: v1 has the file of BFQ alone since CFQ is gone
//! (Linux 5.0), v2 `io.weight`.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::Write;

/// Of v2's `io.weight`, for OCI's 10 to 1000.
const MAX_WEIGHT_V2: u64 = 10_000;

/// A direction of OCI's: its devices, v1's file, v2's key.
type Direction<'a> = (
    &'a Option<Vec<LinuxThrottleDevice>>,
    &'static str,
    &'static str,
);

fn directions(asked: &LinuxBlockIo) -> [Direction<'_>; 4] {
    [
        (
            asked.throttle_read_bps_device(),
            "blkio.throttle.read_bps_device",
            "rbps",
        ),
        (
            asked.throttle_write_bps_device(),
            "blkio.throttle.write_bps_device",
            "wbps",
        ),
        (
            asked.throttle_read_iops_device(),
            "blkio.throttle.read_iops_device",
            "riops",
        ),
        (
            asked.throttle_write_iops_device(),
            "blkio.throttle.write_iops_device",
            "wiops",
        ),
    ]
}

/// A rate of 0 takes a limit away.
pub(super) fn plan_v1(asked: &LinuxBlockIo) -> Vec<Write> {
    let mut plan = Vec::new();
    if let Some(weight) = asked.weight().filter(|weight| *weight != 0) {
        plan.push(Write::new("blkio", "blkio.bfq.weight", weight));
    }
    for of in asked.weight_device().iter().flatten() {
        if let Some(weight) = of.weight() {
            let line = format!("{}:{} {weight}", of.major(), of.minor());
            plan.push(Write::new("blkio", "blkio.bfq.weight_device", line));
        }
    }
    for (devices, file, _) in directions(asked) {
        for of in devices.iter().flatten() {
            let line = format!("{}:{} {}", of.major(), of.minor(), of.rate());
            plan.push(Write::new("blkio", file, line));
        }
    }
    plan
}

pub(super) fn plan_v2(asked: &LinuxBlockIo) -> Vec<Write> {
    let mut plan = Vec::new();
    if let Some(weight) = asked.weight().filter(|weight| *weight != 0) {
        let line = format!("default {}", weight_v2(weight));
        plan.push(Write::new("io", "io.weight", line));
    }
    for of in asked.weight_device().iter().flatten() {
        if let Some(weight) = of.weight() {
            let line = format!("{}:{} {}", of.major(), of.minor(), weight_v2(weight));
            plan.push(Write::new("io", "io.weight", line));
        }
    }
    for (devices, _, key) in directions(asked) {
        for of in devices.iter().flatten() {
            let rate = match of.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = format!("{}:{} {key}={rate}", of.major(), of.minor());
            plan.push(Write::new("io", "io.max", line));
        }
    }
    plan
}

/// The straight line from 10…1000 to 1…10000.
fn weight_v2(weight: u16) -> u64 {
    let above = u64::from(weight.clamp(10, 1000)) - 10;
    1 + above * (MAX_WEIGHT_V2 - 1) / 990
}

/// Whether a write is for one device of a file that has a line for each.
pub(super) fn is_of_device(write: &Write) -> bool {
    write.file.ends_with("_device") || write.file == "io.max" || write.file == "io.weight"
}

/// What undoes a write, from what the file said before: this device's line, or none.
pub(super) fn undo(write: &Write, said: &str) -> String {
    let device = write.value.split(' ').next().unwrap_or_default();
    let before = said
        .lines()
        .find(|line| line.split(' ').next() == Some(device));
    match (before, write.file.as_str()) {
        (Some(line), _) => line.to_owned(),
        (None, "io.max") => format!("{device} rbps=max wbps=max riops=max wiops=max"),
        (None, "io.weight") => format!("{device} default"),
        (None, _) => format!("{device} 0"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(plan: Vec<Write>) -> Vec<String> {
        plan.into_iter()
            .map(|write| format!("{} {} = {}", write.controller, write.file, write.value))
            .collect()
    }

    #[test]
    fn shares_and_rates_are_a_line_a_device() {
        let asked: LinuxBlockIo = serde_json::from_value(json!({
            "weight": 100,
            "weightDevice": [{"major": 8, "minor": 16, "weight": 1000}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}, {"major": 9, "minor": 1, "rate": 7}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}],
        }))
        .unwrap();
        assert_eq!(
            lines(plan_v1(&asked)),
            [
                "blkio blkio.bfq.weight = 100",
                "blkio blkio.bfq.weight_device = 8:16 1000",
                "blkio blkio.throttle.read_bps_device = 8:0 1048576",
                "blkio blkio.throttle.read_bps_device = 9:1 7",
                "blkio blkio.throttle.write_iops_device = 8:0 0",
            ]
        );
        assert_eq!(
            lines(plan_v2(&asked)),
            [
                "io io.weight = default 910",
                "io io.weight = 8:16 10000",
                "io io.max = 8:0 rbps=1048576",
                "io io.max = 9:1 rbps=7",
                "io io.max = 8:0 wiops=max",
            ]
        );
        for (oci, v2) in [(0, 1), (10, 1), (500, 4950), (1000, 10_000), (9999, 10_000)] {
            assert_eq!(weight_v2(oci), v2, "{oci}");
        }
        assert!(lines(plan_v1(&LinuxBlockIo::default())).is_empty());
    }

    #[test]
    fn an_undone_write_leaves_its_device_as_it_was() {
        for (file, said, undone) in [
            ("blkio.throttle.read_bps_device", "8:16 1\n8:0 5\n", "8:0 5"),
            ("blkio.throttle.read_bps_device", "8:16 1\n", "8:0 0"),
            ("io.max", "", "8:0 rbps=max wbps=max riops=max wiops=max"),
            (
                "io.max",
                "8:0 rbps=1 wbps=max riops=max wiops=max\n",
                "8:0 rbps=1 wbps=max riops=max wiops=max",
            ),
            ("io.weight", "default 100\n", "8:0 default"),
        ] {
            let write = Write::new("blkio", file, "8:0 9");
            assert!(is_of_device(&write));
            assert_eq!(undo(&write, said), undone, "{file}: {said:?}");
        }
        let write = Write::new("io", "io.weight", "default 9");
        assert_eq!(undo(&write, "default 100\n8:0 3\n"), "default 100");
        assert!(!is_of_device(&Write::new("memory", "memory.max", 1)));
    }
}
