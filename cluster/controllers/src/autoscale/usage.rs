//! What pods use, by the API `metrics.k8s.io`.

use std::collections::BTreeMap;

use berth_kinds::Quantity;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// Of a pod or of one container of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Thousandths of the resource's unit.
    pub milli: i64,
    pub at: Timestamp,
    /// Over which it was measured, until `at`.
    pub window: SignedDuration,
}

#[derive(Debug, Deserialize)]
pub(super) struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Debug, Deserialize)]
struct PodMetrics {
    metadata: Metadata,
    #[serde(default)]
    timestamp: Option<Timestamp>,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Debug, Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

/// Rounded up, as upstream's.
pub(super) fn milli(quantity: &str) -> Option<i64> {
    let nano = Quantity::parse(quantity)?.nano;
    let milli = nano.div_euclid(1_000_000) + i128::from(nano.rem_euclid(1_000_000) != 0);
    i64::try_from(milli).ok()
}

impl PodMetricsList {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// By the names of pods. One of which a container is missing is left out.
    pub fn of(&self, resource: &str, container: Option<&str>) -> BTreeMap<String, Usage> {
        let of = |pod: &PodMetrics| {
            let mut containers: Vec<&ContainerMetrics> = pod.containers.iter().collect();
            if let Some(container) = container {
                containers.retain(|one| one.name == container);
            }
            if containers.is_empty() {
                return None;
            }
            let each = containers.iter().map(|one| milli(one.usage.get(resource)?));
            Some(Usage {
                milli: each.sum::<Option<i64>>()?,
                at: pod.timestamp.unwrap_or_default(),
                window: pod.window.parse().unwrap_or_default(),
            })
        };
        let pods = self.items.iter();
        pods.filter_map(|pod| Some((pod.metadata.name.clone(), of(pod)?)))
            .collect()
    }
}

/// An amount as the API writes it: memory by powers of 1024 if it can be, all else by those of 1000.
pub(super) fn written(resource: &str, milli: i64) -> String {
    let by = |mut amount: i64, base: i64, suffixes: &[&str]| {
        let mut at = 0;
        while amount != 0 && amount % base == 0 && at + 1 < suffixes.len() {
            amount /= base;
            at += 1;
        }
        format!("{amount}{}", suffixes[at])
    };
    if resource == "memory" && milli.unsigned_abs() >= 1024 * 1000 {
        let bytes = milli.div_euclid(1000) + i64::from(milli.rem_euclid(1000) != 0);
        return by(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]);
    }
    if milli == 0 {
        return "0".into();
    }
    by(milli, 1000, &["m", "", "k", "M", "G", "T", "P", "E"])
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_pods_containers_are_summed_up() {
        let list: PodMetricsList = from_value(json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": [
                {"name": "x", "usage": {"cpu": "100m", "memory": "1Mi"}}, {"name": "y", "usage": {"cpu": "1500000n"}},
            ]},
            {"metadata": {"name": "b"}, "timestamp": "2026-01-01T00:00:00Z", "window": "1m0s", "containers": []},
        ]}))
        .expect("a list");
        let cpu = list.of("cpu", None);
        assert_eq!(
            (cpu.len(), cpu["a"].milli, cpu["a"].window),
            (1, 102, SignedDuration::from_secs(15))
        );
        assert!(list.of("memory", None).is_empty());
        assert_eq!(list.of("memory", Some("x"))["a"].milli, 1_048_576_000);
        assert!(list.of("cpu", Some("z")).is_empty());
        assert_eq!(
            list.items[1].window.parse::<SignedDuration>().ok(),
            Some(SignedDuration::from_secs(60))
        );
    }

    #[test]
    fn amounts_are_written_as_upstream_writes_them() {
        for (resource, milli, text) in [
            ("cpu", 500, "500m"),
            ("cpu", 2000, "2"),
            ("cpu", 1500, "1500m"),
            ("cpu", 2_000_000, "2k"),
            ("cpu", 0, "0"),
            ("memory", 1_048_576_000, "1Mi"),
            ("memory", 1_048_577_500, "1048578"),
            ("memory", 512_000, "512"),
        ] {
            assert_eq!(written(resource, milli), text);
        }
    }
}
