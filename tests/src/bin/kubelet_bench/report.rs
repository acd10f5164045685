//! The figures as a table and as JSON.

use std::{collections::BTreeMap, time::Instant};

use berth_tests::figures::quantile;
use serde_json::{Value, json};

/// In the order in which they were measured.
#[derive(Debug, Default)]
pub struct Figures {
    order: Vec<String>,
    /// Milliseconds.
    times: BTreeMap<String, Vec<f64>>,
    told: BTreeMap<String, f64>,
}

impl Figures {
    pub fn note(&mut self, figure: &str, begin: Instant) {
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        if !self.times.contains_key(figure) {
            self.order.push(figure.to_owned());
        }
        self.times.entry(figure.to_owned()).or_default().push(ms);
    }

    pub fn tell(&mut self, figure: &str, value: f64) {
        self.order.push(figure.to_owned());
        self.told.insert(figure.to_owned(), value);
    }

    pub fn print(&self) {
        println!("{:<46} {:>9} {:>9} {:>9}", "ms", "median", "p99", "runs");
        for figure in &self.order {
            if let Some(values) = self.times.get(figure) {
                let [median, p99] = [0.5, 0.99].map(|part| quantile(values, part));
                println!("{figure:<46} {median:>9.1} {p99:>9.1} {:>9}", values.len());
            }
        }
        for figure in &self.order {
            if let Some(value) = self.told.get(figure) {
                println!("{figure:<46} {value:>9.2}");
            }
        }
    }

    pub fn json(&self) -> Value {
        let mut all = json!({});
        for (figure, values) in &self.times {
            let [median, p99] = [0.5, 0.99].map(|part| quantile(values, part));
            // each by itself, too: whether it is linear is seen in their order
            all[figure] = json!({"median_ms": median, "p99_ms": p99, "runs_ms": values});
        }
        for (figure, value) in &self.told {
            all[figure] = json!(value);
        }
        all
    }
}
