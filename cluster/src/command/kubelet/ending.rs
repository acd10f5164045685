//! How pods end with the machine.

use std::time::Duration;

use berth_kubelet::{Kubelet, ShutdownPolicy, duration, listen_to_logind};
use clap::Args;

use crate::error::Error;

#[derive(Debug, Args)]
pub struct Ending {
    /// How long a shutdown of the machine is held up, by logind's leave, while pods end; 0: not at all
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    shutdown_grace_period: Duration,
    /// The last part of that is for critical pods
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    shutdown_grace_period_critical_pods: Duration,
    /// In place of both: how long the pods from each priority on have, the least important first
    #[arg(long, value_name = "PRIORITY=SECONDS,...", conflicts_with_all = ["shutdown_grace_period", "shutdown_grace_period_critical_pods"])]
    shutdown_grace_period_by_pod_priority: Option<ShutdownPolicy>,
}

impl Ending {
    /// # Errors
    /// Times that make no sense together.
    pub fn apply(&self, kubelet: Kubelet) -> Result<Kubelet, Error> {
        let policy = match &self.shutdown_grace_period_by_pod_priority {
            Some(policy) => policy.clone(),
            None => {
                let (whole, critical) = (
                    self.shutdown_grace_period,
                    self.shutdown_grace_period_critical_pods,
                );
                ShutdownPolicy::of(whole, critical).map_err(|why| Error::Invalid {
                    what: "--shutdown-grace-period-critical-pods".into(),
                    why,
                })?
            }
        };
        if policy.whole().is_zero() {
            return Ok(kubelet);
        }
        let news = listen_to_logind(policy.whole());
        Ok(kubelet.ending_with_the_machine(policy, news))
    }
}
