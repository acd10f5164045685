//! GetContainerEvents.

use std::time::Duration;

use berth_proto::cri::*;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::{Service, containers::container_status, pod_sandboxes::pod_sandbox_status};
use crate::{
    error::Error,
    pod::happenings::{Happening, MAX_BEHIND, MAX_SUBSCRIBERS},
};

/// Answers on their way to the client: each holds the status of a whole pod, so most of a burst waits as the small [`Happening`]s.
const IN_FLIGHT: usize = 16;

/// A client that takes nothing for so long is gone, or might as well be.
const PATIENCE: Duration = Duration::from_secs(300);

/// Every event from now on, in order and without a gap. A client that does not keep up is told so by RESOURCE_EXHAUSTED, and must list
/// before it subscribes again; the end of the daemon is UNAVAILABLE.
pub fn subscribe(
    service: &Service,
) -> Result<impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + use<>, Error> {
    let mut happenings = service.registry.happenings.subscribe().ok_or_else(|| {
        Error::ResourceExhausted(format!(
            "{MAX_SUBSCRIBERS} clients hear of container events already, the most that there may be"
        ))
    })?;
    let (answers, stream) = mpsc::channel(IN_FLIGHT);
    let service = service.clone();
    tokio::spawn(async move {
        while let Some(happening) = happenings.recv().await {
            let event = Ok(translate(&service, happening));
            match timeout(PATIENCE, answers.send(event)).await {
                Ok(Ok(())) => {}
                // The client has left.
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
        let why = format!(
            "this stream of events ended: the daemon ends, or more than {MAX_BEHIND} events waited to be read; list, then subscribe again"
        );
        let _ = answers.try_send(Err(Status::resource_exhausted(why)));
    });
    Ok(ReceiverStream::new(stream))
}

fn translate(service: &Service, happening: Happening) -> ContainerEventResponse {
    let pod = &happening.pod;
    ContainerEventResponse {
        container_id: happening.id,
        container_event_type: happening.what.into(),
        created_at: happening.at,
        pod_sandbox_status: Some(pod_sandbox_status(pod)),
        containers_statuses: pod
            .containers
            .iter()
            .map(|container| container_status(service, container))
            .collect(),
    }
}
