//! What is used of processors between two looks.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::exposition::{Id, Look, Point};

/// Of a node or a container, over a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub cpu_nano_cores: u64,
    /// At the end.
    pub memory_bytes: u64,
    pub since: Timestamp,
    pub until: Timestamp,
}

impl Rate {
    /// `None`: no time has passed, or it was begun anew.
    fn between(before: &Point, now: &Point) -> Option<Self> {
        let used = now.cpu_ns.checked_sub(before.cpu_ns)?;
        let passed = now.at.duration_since(before.at).as_nanos();
        let passed = u128::try_from(passed).ok().filter(|passed| *passed > 0)?;
        Some(Self {
            cpu_nano_cores: u64::try_from(u128::from(used) * 1_000_000_000 / passed).ok()?,
            memory_bytes: now.memory_bytes,
            since: before.at,
            until: now.at,
        })
    }

    /// As metrics-server writes it: nano-cores, and KiB where they are whole.
    pub fn usage(&self) -> Value {
        let memory = match self.memory_bytes {
            bytes if bytes % 1024 == 0 => format!("{}Ki", bytes / 1024),
            bytes => bytes.to_string(),
        };
        let cpu = match self.cpu_nano_cores {
            0 => "0".to_owned(),
            nano => format!("{nano}n"),
        };
        json!({"cpu": cpu, "memory": memory})
    }

    /// metav1.Duration, as Go writes it.
    pub fn window(&self) -> String {
        let window: SignedDuration = self.until.duration_since(self.since);
        let text = format!("{:.3}", window.as_secs_f64());
        let text = text.trim_end_matches('0').trim_end_matches('.');
        match window.as_secs() / 60 {
            0 => format!("{text}s"),
            minutes => {
                let rest = window.as_secs_f64() - minutes as f64 * 60.0;
                let rest = format!("{rest:.3}");
                format!(
                    "{minutes}m{}s",
                    rest.trim_end_matches('0').trim_end_matches('.')
                )
            }
        }
    }
}

/// The last two looks at something at which its figures were not the same ones.
#[derive(Debug, Clone, Copy)]
struct Two {
    before: Option<Point>,
    now: Point,
}

impl Two {
    fn followed_by(known: Option<Self>, now: Point) -> Self {
        match known {
            // the kubelet has not measured since (cAdvisor's figures are some seconds old)
            Some(known) if known.now.at == now.at => known,
            Some(known) => Self {
                before: Some(known.now),
                now,
            },
            None => Self { before: None, now },
        }
    }

    fn rate(&self) -> Option<Rate> {
        Rate::between(self.before.as_ref()?, &self.now)
    }
}

/// What is known of one node.
#[derive(Debug, Default)]
pub struct Track {
    node: Option<Two>,
    containers: BTreeMap<Id, Two>,
}

impl Track {
    /// What is not in the last look is forgotten.
    pub fn followed_by(mut self, look: Look) -> Self {
        Self {
            node: look.node.map(|now| Two::followed_by(self.node, now)),
            containers: look
                .containers
                .into_iter()
                .map(|(id, now)| {
                    let two = Two::followed_by(self.containers.remove(&id), now);
                    (id, two)
                })
                .collect(),
        }
    }

    pub fn node(&self) -> Option<Rate> {
        self.node?.rate()
    }

    pub fn containers(&self) -> impl Iterator<Item = (&Id, Rate)> {
        self.containers
            .iter()
            .filter_map(|(id, two)| Some((id, two.rate()?)))
    }

    /// Of a pod, whether their rates are known or not.
    pub fn count(&self, namespace: &str, pod: &str) -> usize {
        let first = (namespace.to_owned(), pod.to_owned(), String::new());
        self.containers
            .range(first..)
            .take_while(|((of, name, _), _)| of == namespace && name == pod)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(cpu_ns: u64, ms: i64) -> Point {
        Point {
            cpu_ns,
            memory_bytes: 2048,
            at: Timestamp::from_millisecond(ms).expect("a time"),
        }
    }

    fn look(node: Point, containers: &[(&str, Point)]) -> Look {
        let id = |name: &str| ("a".to_owned(), "p".to_owned(), name.to_owned());
        Look {
            node: Some(node),
            containers: containers
                .iter()
                .map(|(name, at)| (id(name), *at))
                .collect(),
        }
    }

    #[test]
    fn a_rate_is_between_two_looks_that_differ() {
        let one = look(point(1_000_000_000, 1_000), &[("c", point(500, 900))]);
        let track = Track::default().followed_by(one);
        assert_eq!((track.node(), track.containers().count()), (None, 0));
        assert_eq!(track.count("a", "p"), 1);
        let two = look(
            point(2_500_000_000, 3_000),
            // not measured since; and one that is new
            &[("c", point(500, 900)), ("d", point(1, 3_000))],
        );
        let track = track.followed_by(two);
        let node = track.node().expect("two looks");
        assert_eq!(node.cpu_nano_cores, 750_000_000);
        assert_eq!(node.usage(), json!({"cpu": "750000000n", "memory": "2Ki"}));
        assert_eq!(node.window(), "2s");
        assert_eq!((track.containers().count(), track.count("a", "p")), (0, 2));
        let three = look(
            point(2_500_000_000, 78_500),
            &[("c", point(1_000_500, 10_900)), ("d", point(0, 78_500))],
        );
        let track = track.followed_by(three);
        assert_eq!(track.node().map(|rate| rate.cpu_nano_cores), Some(0));
        assert_eq!(track.node().expect("a rate").window(), "1m15.5s");
        let known: Vec<_> = track.containers().collect();
        // d was begun anew: its counter is smaller
        assert_eq!(known.len(), 1);
        assert_eq!(
            (known[0].0.2.as_str(), known[0].1.cpu_nano_cores),
            ("c", 100_000)
        );
        let none = track.followed_by(Look::default());
        assert_eq!((none.node(), none.count("a", "p")), (None, 0));
    }
}
