//! CheckpointContainer: is there such a container, does it run, how long may it take; the rest is [`crate::checkpoint`]'s.

use std::{path::PathBuf, time::Duration};

use berth_proto::cri::{CheckpointContainerRequest, CheckpointContainerResponse};

use super::{Service, containers::running};
use crate::{
    checkpoint::{self, Checkpoint, DEFAULT_TIMEOUT, MAX_TIMEOUT},
    error::Error,
};

pub async fn checkpoint_container(
    service: &Service,
    request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    let timeout = match u64::try_from(request.timeout).map(Duration::from_secs) {
        Ok(Duration::ZERO) => DEFAULT_TIMEOUT,
        Ok(timeout) => timeout.min(MAX_TIMEOUT),
        Err(_) => {
            return Err(Error::InvalidArgument(format!(
                "timeout {}: it must not be negative",
                request.timeout
            )));
        }
    };
    let shim = running(&pod, &container, "checkpoint")?.clone();
    let handler = &pod.pod.handler;
    if !pod.pod.node.handler_config(handler).is_own() {
        return Err(Error::FailedPrecondition(format!(
            "a checkpoint is not possible: the shim of runtime handler {handler} is not Berth's own"
        )));
    }
    let plan = Checkpoint {
        pod: pod.pod.clone(),
        shim,
        container: container.record.clone(),
        started_at: container.started_at,
        location: PathBuf::from(request.location),
        timeout,
    };
    // To its end, also when the caller is gone: a container must not be left standing still.
    tokio::spawn(checkpoint::checkpoint(plan))
        .await
        .map_err(|_| Error::Panicked("checkpoint"))??;
    Ok(CheckpointContainerResponse {})
}
