//! `berth scheduler`: pods get nodes.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_leader::Seat;
use berth_scheduler::{Fit, Profile, Scheduler as Inner, Settings};
use clap::Args;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{error::Error, host::failed};

/// Upstream's: a stock scheduler and this one never lead at once.
const LEASE: &str = "kube-scheduler";

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
    /// A KubeSchedulerConfiguration (YAML): profiles, each with a schedulerName, weights of scores, how pods fit, whether room is made for them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fit", "percentage_of_nodes_to_score", "scheduler_name"])]
    config: Option<PathBuf>,
    /// Pods that ask for this one are scheduled
    #[arg(long, value_name = "NAME", default_value = "default-scheduler")]
    scheduler_name: String,
    /// Stand by while another one leads (the Lease kube-scheduler in kube-system); end if the lead is lost
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    leader_elect: bool,
}

impl Scheduler {
    pub async fn run(self) -> Result<ExitCode, Error> {
        super::serve();
        let client = super::client(&self.kubeconfig).await?;
        let ends = super::ended()?;
        let profiles = match &self.config {
            Some(file) => read(file)?,
            None => vec![Profile::new(
                &self.scheduler_name,
                Settings {
                    fit: self.fit,
                    percentage_of_nodes_to_score: self.percentage_of_nodes_to_score.into(),
                    ..Settings::default()
                },
            )],
        };
        schedule(client, profiles, self.leader_elect, ends)
            .await
            .map(|()| ExitCode::SUCCESS)
    }
}

fn read(file: &Path) -> Result<Vec<Profile>, Error> {
    let unusable = |why: String| failed(format!("cannot use {}", file.display()), why);
    let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let value = serde_saphyr::from_str(&text).map_err(|error| unusable(error.to_string()))?;
    Profile::all(value).map_err(unusable)
}

pub fn by_default() -> Vec<Profile> {
    vec![Profile::new("default-scheduler", Settings::default())]
}

/// Until `ends`.
///
/// # Errors
/// The lead is lost, or a watch ends.
pub async fn schedule(
    client: Client,
    profiles: Vec<Profile>,
    elect: bool,
    ends: CancellationToken,
) -> Result<(), Error> {
    let seed = std::time::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .subsec_nanos();
    let inner = Inner::with(profiles, seed.into());
    let stopped = |why: String| failed("scheduling has stopped", why);
    let schedules = |ends| berth_scheduler::run(client.clone(), inner, ends);
    if !elect {
        let done = schedules(ends).await;
        return done.map_err(|error| stopped(error.to_string()));
    }
    let seat = Seat::new(LEASE, &berth_kubelet::NodeFacts::of_this_machine().name);
    match berth_leader::lead(client.clone(), seat, ends, schedules).await {
        Ok(Some(Err(error))) => Err(stopped(error.to_string())),
        Err(error) => Err(stopped(error.to_string())),
        Ok(_) => Ok(()),
    }
}
