//! Counters and histograms: atomics, no lock, no allocation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A number that is added to; a gauge where it is also taken from.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds in ms: from a status that is read to a pull of a large image.
pub const BOUNDS_MS: [u64; 14] = [
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000, 300_000,
];

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Each with those between its bound and the one before; the last above all bounds.
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let bucket = BOUNDS_MS
            .iter()
            .position(|bound| took <= Duration::from_millis(*bound))
            .unwrap_or(BOUNDS_MS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Relaxed);
    }

    /// Each bucket with all below it, the last being the count of all: at one moment, as the exposition wants them.
    pub fn cumulative(&self) -> [u64; BOUNDS_MS.len() + 1] {
        let mut sum = 0;
        self.buckets.each_ref().map(|bucket| {
            sum += bucket.load(Relaxed);
            sum
        })
    }

    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.cumulative()[BOUNDS_MS.len()]
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_us.load(Relaxed) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_within_it() {
        let histogram = Histogram::default();
        for ms in [0, 1, 2, 3, 400_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let buckets = histogram.cumulative();
        assert_eq!(buckets[..3], [2, 3, 4]);
        assert_eq!((buckets[13], buckets[14]), (4, 5));
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum_seconds() - 400.006).abs() < 1e-9);
        assert!(BOUNDS_MS.is_sorted());
    }
}
