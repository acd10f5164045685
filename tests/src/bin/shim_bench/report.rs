//! The figures as a table and as JSON.

use berth_tests::figures::quantile;
use serde_json::{Value, json};

use crate::Measured;

pub const WHOLE: &str = "create + start + kill + delete";
pub const POD: &str = "pod of three, up and down";

const TIMES: [&str; 7] = [
    WHOLE,
    "create",
    "start",
    "kill and its end",
    "delete",
    "pod of three, up",
    POD,
];
const VALUES: [&str; 11] = [
    "shim, one container, MiB",
    "shim, three more, MiB",
    "processes a shim",
    "execs",
    "execs a second",
    "alone, before its execs, MiB",
    "alone, after its execs, MiB",
    "growth by its execs, KiB",
    "more open files",
    "more heap, KiB",
    "more threads",
];

pub fn report(all: &[Measured], build: &str) -> Value {
    let mut figures = json!({"build": build});
    println!("build: {build}");
    println!(
        "{:<32} {:<12} {:>8} {:>8}   the first to it",
        "ms", "", "median", "p95"
    );
    for figure in TIMES {
        let median = |measured: &Measured| {
            let values = measured.times.get(figure)?;
            Some(quantile(values, 0.5))
        };
        let first = median(&all[0]);
        for measured in all {
            let (Some(values), Some(median)) = (measured.times.get(figure), median(measured))
            else {
                continue;
            };
            let p95 = quantile(values, 0.95);
            let ratio = first.map_or(f64::NAN, |first| first / median);
            let name = &measured.kind.name;
            println!("{figure:<32} {name:<12} {median:>8.1} {p95:>8.1}   {ratio:>5.2}");
            figures[name][figure] =
                json!({"median_ms": median, "p95_ms": p95, "runs": values.len()});
        }
    }
    println!();
    for figure in VALUES {
        for measured in all {
            let Some(value) = measured.values.get(figure) else {
                continue;
            };
            let ratio = all[0]
                .values
                .get(figure)
                .map_or(f64::NAN, |first| first / value);
            let name = &measured.kind.name;
            println!(
                "{figure:<32} {name:<12} {value:>8.2} {:>8}   {ratio:>5.2}",
                ""
            );
            figures[name][figure] = json!(value);
        }
    }
    figures
}
