//! `berth scheduler`: pods get nodes.

use std::{path::PathBuf, process::ExitCode};

use berth_leader::Seat;
use berth_scheduler::{Fit, Scheduler as Inner, Settings};
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
        let settings = Settings {
            fit: self.fit,
            percentage_of_nodes_to_score: self.percentage_of_nodes_to_score.into(),
        };
        let wish = Wish {
            name: self.scheduler_name,
            settings,
        };
        schedule(client, wish, self.leader_elect, ends)
            .await
            .map(|()| ExitCode::SUCCESS)
    }
}

/// Which pods are scheduled, and how.
pub struct Wish {
    name: String,
    settings: Settings,
}

pub fn by_default() -> Wish {
    Wish {
        name: "default-scheduler".into(),
        settings: Settings {
            fit: Fit::Worst,
            percentage_of_nodes_to_score: 0,
        },
    }
}

/// Until `ends`.
///
/// # Errors
/// The lead is lost, or a watch ends.
pub async fn schedule(
    client: Client,
    wish: Wish,
    elect: bool,
    ends: CancellationToken,
) -> Result<(), Error> {
    let seed = std::time::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .subsec_nanos();
    let inner = Inner::new(&wish.name, wish.settings, seed.into());
    let stopped = |why: String| failed("scheduling has stopped", why);
    let schedules = |ends| berth_scheduler::run(client.clone(), inner, &wish.name, ends);
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
