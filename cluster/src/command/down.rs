//! `berth down`: what `berth up` and `berth join` have made is taken back.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use super::up::{self, DATA, NODES, PROGRAM};
use crate::{
    error::Error,
    host::{failed, file, network, node, program::Program},
};

/// `berth up` ends its programs first, each of which has ten seconds.
const END: Duration = Duration::from_secs(60);

/// End the cluster that runs on this machine, with the pods of its nodes
///
/// Ends `berth up` (or `berth join`), stops and removes the pods of the nodes that it had on this machine, ends their kubelets and the runtimes that it started, and
/// takes their networks away. The objects of the API stay for the next `berth up`, unless --purge removes them.
#[derive(Debug, Args)]
pub struct Down {
    /// Of the cluster
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// Remove DIR as well: objects, certificates, the nodes' images
    #[arg(long)]
    purge: bool,
}

impl Down {
    pub async fn run(self) -> Result<ExitCode, Error> {
        if !self.data.is_dir() {
            let what = format!("cannot end the cluster of {}", self.data.display());
            return Err(failed(what, "there is none: --data names its directory"));
        }
        Program::this(PROGRAM, &self.data).end_within(END).await;
        let nodes = node::known(&self.data.join(NODES));
        if node::has_numbered(&self.data.join(NODES)) {
            up::claim_network(&self.data)?;
        }
        let mut first = None;
        for (dir, record) in &nodes {
            match node::take_away(dir, record).await {
                Ok(()) => up::say(&format!("node {} is away\n", record.name)),
                Err(error) => {
                    eprintln!("berth: node {} is not wholly away: {error}", record.name);
                    first.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first {
            return Err(error);
        }
        // also of a `berth up` that came no further than the bridge
        if network::is_of(&self.data) {
            network::remove_bridge().await;
            network::release();
        }
        if self.purge {
            fs::remove_dir_all(&self.data).map_err(file("remove", &self.data))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
