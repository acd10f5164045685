use crate::{AccountTokens, NodeMonitor, PodNetwork};

/// What of controllers can be set.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub node_monitor: NodeMonitor,
    /// Of each a part is every node's; none: nodes get no podCIDR.
    pub pod_networks: Vec<PodNetwork>,
    /// None: Secrets for tokens of ServiceAccounts stay as they are.
    pub account_tokens: Option<AccountTokens>,
}
