//! `berth controllers`: the cluster is kept as its objects say.

mod nodes;

use std::{path::PathBuf, process::ExitCode};

use berth_controllers::{Options, Selection};
use berth_leader::Seat;
use clap::Args;

use nodes::Nodes;

use crate::error::Error;

/// Upstream's: a stock controller manager and this one never lead at once.
const LEASE: &str = "kube-controller-manager";

/// Keep a cluster as its objects say
///
/// Deployments get their pods, jobs are run to their end, services find their endpoints, nodes that are silent lose their pods: what upstream's
/// kube-controller-manager does, by controllers of the same names.
///
/// What it did is told on standard error; BERTH_LOG says how much of it.
#[derive(Debug, Args)]
pub struct Controllers {
    /// The API server, and who the controllers are to it (system:kube-controller-manager)
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Which controllers run: `*` for all, NAME for one, -NAME for all but one
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "*",
        allow_hyphen_values = true
    )]
    controllers: Selection,
    /// Stand by while another one leads (the Lease kube-controller-manager in kube-system); end if the lead is lost
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    leader_elect: bool,
    #[command(flatten)]
    nodes: Nodes,
}

impl Controllers {
    pub async fn run(self) -> Result<ExitCode, Error> {
        super::log();
        let options = Options {
            node_monitor: self.nodes.monitor(),
            pod_networks: self.nodes.networks()?,
        };
        let client = super::client(&self.kubeconfig).await?;
        let ends = super::ended()?;
        let keeps =
            |ends| berth_controllers::run(client.clone(), &self.controllers, options.clone(), ends);
        if !self.leader_elect {
            keeps(ends).await;
            return Ok(ExitCode::SUCCESS);
        }
        let seat = Seat::new(LEASE, &berth_kubelet::NodeFacts::of_this_machine().name);
        berth_leader::lead(client.clone(), seat, ends, keeps)
            .await
            .map(|_| ExitCode::SUCCESS)
            .map_err(|error| Error::Invalid {
                what: "the controllers have stopped".into(),
                why: error.to_string(),
            })
    }
}
