//! What went through a pod's interfaces.

use std::path::Path;

use crate::{
    Error, link,
    netns::{self, Home},
};

/// Counters of an interface of a pod, as the pod sees them, since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceStatistics {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Of all interfaces in the namespace that is pinned at `path`, but for lo. Enters the namespace: for a thread that ends afterwards.
pub fn of(path: &Path) -> Result<Vec<InterfaceStatistics>, Error> {
    let home = Home::remember()?;
    let mut inside = netns::socket_in(&home, path)?;
    let counters = link::counters(&mut inside).map_err(|source| Error::Netlink {
        what: "read the counters of the links in",
        link: path.display().to_string(),
        source,
    })?;
    Ok(counters
        .into_iter()
        .filter(|(name, _)| name != "lo")
        .map(|(name, counters)| InterfaceStatistics {
            name,
            rx_bytes: counters.rx_bytes,
            rx_packets: counters.rx_packets,
            rx_errors: counters.rx_errors,
            rx_dropped: counters.rx_dropped,
            tx_bytes: counters.tx_bytes,
            tx_packets: counters.tx_packets,
            tx_errors: counters.tx_errors,
            tx_dropped: counters.tx_dropped,
        })
        .collect())
}
