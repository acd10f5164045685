//! The measure of processor time: v1's shares, v2's weight.

/// v2's `cpu.weight` (1…10000, default 100) for v1's `cpu.shares` (2…262144, default 1024): the curve through these three
/// points that the OCI runtimes agreed on in 2025 (github.com/kubernetes/kubernetes/issues/131216); the older straight line
/// gave the default of 1024 shares a weight of 39.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_of_the_default_shares_is_the_default_weight() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (1 << 40, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
