//! `berth scheduler`: pods get nodes.

use std::{path::PathBuf, process::ExitCode};

use berth_scheduler::{Fit, Scheduler as Inner, Settings};
use clap::Args;

use crate::error::Error;

/// Find each pod a node
///
/// Pods that name this scheduler (spec.schedulerName) and have no node yet are bound to the best of those that have room and may take them. Why a pod fits
/// nowhere is told in its condition PodScheduled and in an event, node by node; it is tried again when something has changed that may help. A pod may end
/// less important ones, within disruption budgets where that is possible.
///
/// What it did is told on standard error; BERTH_LOG says how much of it.
#[derive(Debug, Args)]
pub struct Scheduler {
    /// The API server, and who the scheduler is to it (system:kube-scheduler)
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Where pods go among nodes that have room: `worst` (most is left), `best` (least is left), `hybrid` (least, and nothing is stranded)
    #[arg(long, value_name = "FIT", default_value = "worst")]
    fit: Fit,
    /// When so many nodes of a hundred would do, no more are looked for; 0: fewer of them, the larger the cluster is
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    percentage_of_nodes_to_score: u8,
    /// Pods that ask for this one are scheduled
    #[arg(long, value_name = "NAME", default_value = "default-scheduler")]
    scheduler_name: String,
}

impl Scheduler {
    pub async fn run(self) -> Result<ExitCode, Error> {
        super::log();
        let client = super::client(&self.kubeconfig).await?;
        let ends = super::ended()?;
        let settings = Settings {
            fit: self.fit,
            percentage_of_nodes_to_score: self.percentage_of_nodes_to_score.into(),
        };
        let seed = std::time::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .subsec_nanos();
        let inner = Inner::new(&self.scheduler_name, settings, seed.into());
        let served = berth_scheduler::run(client, inner, &self.scheduler_name, ends).await;
        served.map_err(|error| Error::Invalid {
            what: "scheduling has stopped".into(),
            why: error.to_string(),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
