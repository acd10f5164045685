//! Prometheus' text form, as far as a kubelet's `/metrics/resource` needs it: a name, labels, a number, at times a time (ms since the epoch).
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Of a node or a container, at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Since its start.
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub at: Timestamp,
}

/// Namespace, pod, container.
pub type Id = (String, String, String);

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub node: Option<Point>,
    /// Those without both figures are not among them.
    pub containers: BTreeMap<Id, Point>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Halves {
    cpu: Option<(u64, Timestamp)>,
    memory_bytes: Option<u64>,
}

impl Halves {
    fn whole(self) -> Option<Point> {
        let (cpu_ns, at) = self.cpu?;
        Some(Point {
            cpu_ns,
            memory_bytes: self.memory_bytes?,
            at,
        })
    }
}

/// Lines that are not understood are passed over: more may be told than is asked for.
pub fn read(text: &str, now: Timestamp) -> Look {
    let mut node = Halves::default();
    let mut containers: BTreeMap<Id, Halves> = BTreeMap::new();
    for line in text.lines() {
        let Some(Line {
            name,
            labels,
            value,
            at,
        }) = Line::of(line)
        else {
            continue;
        };
        let (of_node, what) = match name.split_once('_') {
            Some(("node", what)) => (true, what),
            Some(("container", what)) => (false, what),
            _ => continue,
        };
        if !matches!(what, "cpu_usage_seconds_total" | "memory_working_set_bytes") {
            continue;
        }
        let halves = if of_node {
            &mut node
        } else {
            let label = |name: &str| {
                let mut labels = labels.iter();
                labels.find_map(|(key, value)| (*key == name).then(|| value.clone()))
            };
            let id = (label("namespace"), label("pod"), label("container"));
            let (Some(namespace), Some(pod), Some(container)) = id else {
                continue;
            };
            containers.entry((namespace, pod, container)).or_default()
        };
        // a number that is none of a counter's is none
        if what == "memory_working_set_bytes" {
            halves.memory_bytes = whole(value);
        } else {
            halves.cpu = whole(value * 1e9).map(|ns| (ns, at.unwrap_or(now)));
        }
    }
    Look {
        node: node.whole(),
        containers: containers
            .into_iter()
            .filter_map(|(id, halves)| Some((id, halves.whole()?)))
            .collect(),
    }
}

fn whole(value: f64) -> Option<u64> {
    // 2^53: all whole numbers below are exact
    (value.is_finite() && (0.0..9e18).contains(&value)).then_some(value as u64)
}

#[derive(Debug, PartialEq)]
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
    at: Option<Timestamp>,
}

impl<'a> Line<'a> {
    /// `None`: a comment, or none of this form.
    fn of(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
        let (name, mut rest) = line.split_at(end);
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let mut labels = Vec::new();
        if let Some(within) = rest.strip_prefix('{') {
            rest = within;
            loop {
                rest = rest.trim_start_matches([',', ' ']);
                if let Some(after) = rest.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (key, after) = rest.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.push((key.trim(), value));
                rest = after;
            }
        }
        let mut words = rest.split_whitespace();
        let value = words.next()?.parse().ok()?;
        let at = match words.next() {
            Some(ms) => Some(Timestamp::from_millisecond(ms.parse().ok()?).ok()?),
            None => None,
        };
        Some(Self {
            name,
            labels,
            value,
            at,
        })
    }
}

/// A label's value until its closing quote, and what comes after.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_kubelets_answer_is_read() {
        let text = r#"
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="c",namespace="default",pod="web-1"} 4.5 1790000000500
container_cpu_usage_seconds_total{container="half",namespace="default",pod="web-1"} 1
container_memory_working_set_bytes{container="c",namespace="default",pod="web-1"} 1.048576e+06 1790000000500
container_memory_working_set_bytes{ namespace="a\"b\\c\n", pod="p", container="d", } 7
container_cpu_usage_seconds_total{namespace="a\"b\\c\n",pod="p",container="d"} 0.000000002
container_start_time_seconds{container="c",namespace="default",pod="web-1"} 1.79e+09
node_cpu_usage_seconds_total 100.25
node_memory_working_set_bytes 2048 1790000000000
pod_cpu_usage_seconds_total{namespace="default",pod="web-1"} 4.5
container_cpu_usage_seconds_total{container="broken",namespace="default"
resource_scrape_error 0
"#;
        let now = Timestamp::from_second(1_790_000_009).expect("a time");
        let look = read(text, now);
        let point = |cpu_ns, memory_bytes, at| Point {
            cpu_ns,
            memory_bytes,
            at,
        };
        assert_eq!(look.node, Some(point(100_250_000_000, 2048, now)));
        let at = Timestamp::from_millisecond(1_790_000_000_500).expect("a time");
        let id = |namespace: &str, pod: &str, container: &str| {
            (namespace.to_owned(), pod.to_owned(), container.to_owned())
        };
        assert_eq!(
            look.containers,
            BTreeMap::from([
                (
                    id("default", "web-1", "c"),
                    point(4_500_000_000, 1_048_576, at)
                ),
                (id("a\"b\\c\n", "p", "d"), point(2, 7, now)),
            ])
        );
    }

    #[test]
    fn what_is_no_number_is_none() {
        for value in ["NaN", "+Inf", "-1", "x", ""] {
            let text =
                format!("node_cpu_usage_seconds_total {value}\nnode_memory_working_set_bytes 1\n");
            assert_eq!(read(&text, Timestamp::UNIX_EPOCH).node, None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_is_too_odd(text in "(node_cpu_usage_seconds_total|container_|[{}\"=\\\\, \n#]|[a-z0-9.é]){0,60}") {
            read(&text, Timestamp::UNIX_EPOCH);
        }

        #[test]
        fn a_label_is_read_as_it_was_written(value in "\\PC{0,20}") {
            let written = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let line = format!("a{{b=\"{written}\"}} 1");
            let read = Line::of(&line).expect("a line");
            prop_assert_eq!(read.labels, vec![("b", value)]);
        }
    }
}
