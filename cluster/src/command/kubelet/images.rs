//! When images go that nobody uses.

use std::time::Duration;

use berth_kubelet::{ImagePolicy, duration};
use clap::{Args, value_parser};

use crate::error::Error;

#[derive(Debug, Args)]
pub struct Images {
    /// From how many percent of their disk on images go that nobody uses; 100: only where pods would be evicted
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = value_parser!(u8).range(1..=100))]
    image_gc_high_threshold: u8,
    /// … until no more than so many are in use
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = value_parser!(u8).range(0..=99))]
    image_gc_low_threshold: u8,
    /// How long one stays that has just come
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    minimum_image_ttl_duration: Duration,
}

impl Images {
    /// # Errors
    /// Thresholds that make no sense together.
    pub fn policy(&self) -> Result<ImagePolicy, Error> {
        let (high, low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        ImagePolicy::new(high, low, self.minimum_image_ttl_duration).map_err(|why| Error::Invalid {
            what: "--image-gc-low-threshold".into(),
            why,
        })
    }
}
