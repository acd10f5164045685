//! Prometheus' text format, version 0.0.4. Written by hand: it is four rules, and a library would keep a second copy of every number.

use std::fmt::{Display, Write};

use super::value::{BOUNDS_MS, Histogram};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An answer in the making: families one after the other, each with its samples.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    family: &'static str,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    pub fn into_string(self) -> String {
        self.text
    }

    /// Begins a family. `kind`: counter, gauge or histogram.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.family = name;
        // Writing to memory can't fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self
    }

    /// A sample of the family that was begun last.
    pub fn sample(&mut self, labels: Labels, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    pub fn histogram(&mut self, labels: Labels, histogram: &Histogram) -> &mut Self {
        let buckets = histogram.cumulative();
        let bounds = BOUNDS_MS.map(|ms| (ms as f64 / 1e3).to_string());
        let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
        for (bound, count) in bounds.zip(buckets) {
            self.line("_bucket", labels, Some(bound), count);
        }
        self.line("_sum", labels, None, histogram.sum_seconds());
        self.line("_count", labels, None, buckets[BOUNDS_MS.len()]);
        self
    }

    fn line(&mut self, suffix: &str, labels: Labels, bound: Option<&str>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.family);
        let all = labels.iter().copied().chain(bound.map(|b| ("le", b)));
        let mut opened = false;
        for (key, value) in all {
            self.text.push(if opened { ',' } else { '{' });
            opened = true;
            let _ = write!(self.text, "{key}=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if opened {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn labels_are_escaped_and_a_histogram_ends_with_its_sum_and_count() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(30));
        let mut text = Text::default();
        text.family("a_total", "counter", "Help.")
            .sample(&[], 3)
            .sample(&[("k", "a\"b\\c\nd"), ("l", "x")], 0.5)
            .family("h", "histogram", "H.")
            .histogram(&[("k", "v")], &histogram);
        let text = text.into_string();
        assert!(text.starts_with(
            "# HELP a_total Help.\n# TYPE a_total counter\na_total 3\na_total{k=\"a\\\"b\\\\c\\nd\",l=\"x\"} 0.5\n# HELP h H.\n# TYPE h histogram\nh_bucket{k=\"v\",le=\"0.001\"} 0\n"
        ), "{text}");
        assert!(text.ends_with(
            "h_bucket{k=\"v\",le=\"300\"} 1\nh_bucket{k=\"v\",le=\"+Inf\"} 1\nh_sum{k=\"v\"} 0.03\nh_count{k=\"v\"} 1\n"
        ), "{text}");
    }
}
