use crate::{NodeMonitor, PodNetwork};

/// What of controllers can be set.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub node_monitor: NodeMonitor,
    /// Of each a part is every node's; none: nodes get no podCIDR.
    pub pod_networks: Vec<PodNetwork>,
}
