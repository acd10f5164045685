use std::{path::PathBuf, process::ExitCode};

use berth_proto::cri::CheckpointContainerRequest;
use clap::Args;

use super::pod;
use crate::{
    error::Error,
    node::{Address, Node},
    output,
};

/// Write a running container's processes and files to an archive
///
/// The container goes on running. The node needs CRIU; checkpointctl shows what is in the archive. It holds the container's memory,
/// secrets included: only root may read it.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// The pod, by NAME, NAMESPACE/NAME or ID
    pod: String,
    /// The container; without it the pod's first
    #[arg(long, short)]
    container: Option<String>,
    /// The archive to be made, on the runtime's node; what is there already is not overwritten
    #[arg(long, short, value_name = "FILE")]
    export: PathBuf,
    /// Seconds that it may take; 0: the runtime's own limit
    #[arg(long, default_value_t = 0)]
    timeout: u32,
}

impl Checkpoint {
    pub async fn run(self, address: &Address) -> Result<ExitCode, Error> {
        let location = std::path::absolute(&self.export).map_err(|source| Error::File {
            what: "find the place of",
            path: self.export.clone(),
            source,
        })?;
        let node = Node::connect(address).await?;
        let pod = pod::find(&node, &self.pod).await?;
        let container = pod::container(&node, &pod, self.container.as_deref()).await?;
        node.runtime()
            .checkpoint_container(CheckpointContainerRequest {
                container_id: container.id,
                location: location.display().to_string(),
                timeout: self.timeout.into(),
            })
            .await
            .map_err(node.cannot(format!(
                "checkpoint container {} of pod {}",
                container.name, pod.name
            )))?;
        output::text_out(&format!("{}\n", location.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
