//! `usage_nano_cores`: the rate between two samples of CPU time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Two samples closer together say little about a rate: then the last rate is told again.
const MIN_SAMPLE_NS: i64 = 100_000_000;

/// Samples that are kept: more than a node has containers. Beyond, those of containers that nobody asks for any more make room.
const MAX_SAMPLES: usize = 16 * 1024;
/// A sample that old is nobody's base for a rate.
const STALE_NS: i64 = 600_000_000_000;

/// The last CPU sample of each container and pod, for `usage_nano_cores`.
#[derive(Debug, Default)]
pub struct CpuSamples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    timestamp: i64,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

impl CpuSamples {
    /// Notes a sample; the rate since the one before it in nanocores (10⁹ = one core), where there is one.
    pub fn rate(&self, id: &str, timestamp: i64, usage_ns: u64) -> Option<u64> {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.get(id).copied();
        let nano_cores = match before {
            Some(before) if timestamp - before.timestamp < MIN_SAMPLE_NS => {
                return before.nano_cores;
            }
            Some(before) => {
                let used = u128::from(usage_ns.saturating_sub(before.usage_ns));
                let passed = (timestamp - before.timestamp) as u128;
                Some((used * 1_000_000_000 / passed) as u64)
            }
            None => None,
        };
        if before.is_none() && samples.len() >= MAX_SAMPLES {
            samples.retain(|_, sample| timestamp - sample.timestamp < STALE_NS);
            if samples.len() >= MAX_SAMPLES {
                return nano_cores;
            }
        }
        samples.insert(
            id.to_owned(),
            Sample {
                timestamp,
                usage_ns,
                nano_cores,
            },
        );
        nano_cores
    }

    pub fn forget(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_samples_and_some_time_between_them() {
        let samples = CpuSamples::default();
        let second = 1_000_000_000;
        assert_eq!(samples.rate("a", second, 0), None);
        assert_eq!(
            samples.rate("a", 2 * second, 500_000_000),
            Some(500_000_000)
        );
        assert_eq!(
            samples.rate("a", 2 * second + 1, 900_000_000),
            Some(500_000_000),
            "too soon: the last rate"
        );
        assert_eq!(samples.rate("a", 3 * second, 500_000_000), Some(0));
        assert_eq!(
            samples.rate("a", 4 * second, 0),
            Some(0),
            "a counter never counts back"
        );
        samples.forget("a");
        assert_eq!(samples.rate("a", 5 * second, 0), None);
    }

    #[test]
    fn samples_are_bounded_and_stale_ones_make_room() {
        let samples = CpuSamples::default();
        for n in 0..MAX_SAMPLES {
            samples.rate(&n.to_string(), 1, 0);
        }
        samples.rate("one too many", 2, 0);
        assert_eq!(samples.0.lock().unwrap().len(), MAX_SAMPLES);
        samples.rate("later", STALE_NS + 2, 0);
        assert_eq!(samples.0.lock().unwrap().len(), 1);
    }
}
