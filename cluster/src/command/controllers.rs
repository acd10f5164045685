//! `berth controllers`: the cluster is kept as its objects say.

mod accounts;
mod nodes;
pub mod tokens;

use std::{path::PathBuf, process::ExitCode};

use berth_controllers::{Callers, Options, Selection};
use berth_leader::Seat;
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::{error::Error, host::failed};
pub use nodes::Nodes;

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
    /// The API server, and who the controllers are to it: system:kube-controller-manager with --use-service-account-credentials, else one who may do what any of
    /// them does
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
    /// Each controller is its own ServiceAccount of kube-system to the server, with the rights of its default role; who is in the kubeconfig lists and watches, makes
    /// the accounts and asks for their tokens
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    use_service_account_credentials: bool,
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    tokens: tokens::Tokens,
}

impl Controllers {
    pub async fn run(self) -> Result<ExitCode, Error> {
        super::serve();
        let options = Options {
            account_tokens: self.tokens.read()?,
            ..self.nodes.options()?
        };
        let manager = super::client(&self.kubeconfig).await?;
        let callers = if self.use_service_account_credentials {
            accounts::callers(manager, super::nobody(&self.kubeconfig).await?)
        } else {
            Callers::one(manager)
        };
        let ends = super::ended()?;
        keep(callers, self.controllers, options, self.leader_elect, ends)
            .await
            .map(|()| ExitCode::SUCCESS)
    }
}

/// Until `ends`.
///
/// # Errors
/// The lead is lost.
pub async fn keep(
    callers: Callers,
    selection: Selection,
    options: Options,
    elect: bool,
    ends: CancellationToken,
) -> Result<(), Error> {
    let keeps = |ends| berth_controllers::run(callers.clone(), &selection, options.clone(), ends);
    if !elect {
        keeps(ends).await;
        return Ok(());
    }
    let seat = Seat::new(LEASE, &berth_kubelet::NodeFacts::of_this_machine().name);
    berth_leader::lead(callers.manager().clone(), seat, ends, keeps)
        .await
        .map(drop)
        .map_err(|error| failed("the controllers have stopped", error))
}
