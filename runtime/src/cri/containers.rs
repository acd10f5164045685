//! Start, stop, remove, status, list and log rotation of containers.

use std::collections::HashMap;

use berth_proto::cri::*;
use serde_json::json;

use super::{Service, filter, pod_sandboxes::gone_is_fine};
use crate::{
    error::Error,
    pod::{
        event::Request,
        stop::{self, grace},
        update::By,
        view::{ContainerView, PodView},
    },
};

pub async fn start(
    service: &Service,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Error> {
    let (id, pod) = service.registry.container(&request.container_id)?;
    pod.ask(|reply| Request::Start { id, reply }).await?;
    Ok(StartContainerResponse {})
}

/// A container that is not known has been stopped and removed: no error, as the CRI has it.
pub async fn stop(
    service: &Service,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Error> {
    let grace = grace(request.timeout);
    let done = match service.registry.container(&request.container_id) {
        Ok((id, pod)) => {
            pod.ask(|reply| Request::StopContainer { id, grace, reply })
                .await
        }
        Err(e) => Err(e),
    };
    gone_is_fine(done)?;
    Ok(StopContainerResponse {})
}

pub async fn remove(
    service: &Service,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Error> {
    let done = match service.registry.container(&request.container_id) {
        Ok((id, pod)) => {
            pod.ask(|reply| Request::RemoveContainer { id, reply })
                .await
        }
        Err(e) => Err(e),
    };
    gone_is_fine(done)?;
    Ok(RemoveContainerResponse {})
}

pub async fn update(
    service: &Service,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Error> {
    let (id, pod) = service.registry.container(&request.container_id)?;
    let resources = request.linux.ok_or_else(|| {
        Error::InvalidArgument(format!(
            "update container {id}: no linux resources are given"
        ))
    })?;
    let resources = Box::new(resources);
    let request = |reply| Request::Update {
        id,
        resources,
        by: By::Caller,
        reply,
    };
    pod.ask(request).await?;
    Ok(UpdateContainerResourcesResponse {})
}

pub async fn reopen_log(
    service: &Service,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    let shim = running(&pod, &container, "reopen the log of")?;
    shim.reopen_log(&container.record.id).await?;
    Ok(ReopenContainerLogResponse {})
}

/// The shim of a container that runs.
pub fn running<'a>(
    pod: &'a PodView,
    container: &ContainerView,
    act: &str,
) -> Result<&'a crate::pod::shim::Shim, Error> {
    let id = &container.record.id;
    match (&pod.shim, container.state) {
        (Some(shim), ContainerState::ContainerRunning) => Ok(shim),
        (_, state) => Err(Error::FailedPrecondition(format!(
            "{act} container {id}: it is not running, its state is {}",
            state.as_str_name()
        ))),
    }
}

pub fn list(service: &Service, request: ListContainersRequest) -> ListContainersResponse {
    let asked = request.filter.unwrap_or_default();
    let state = asked.state.as_ref().map(|s| s.state);
    let mut containers = vec![];
    for pod in service.registry.views() {
        if !filter::id(&asked.pod_sandbox_id, &pod.pod.id) {
            continue;
        }
        let fitting = pod.containers.iter().filter(|c| {
            filter::id(&asked.id, &c.record.id)
                && filter::state(state, c.state as i32)
                && filter::labels(&asked.label_selector, &c.record.config.labels)
        });
        containers.extend(fitting.map(|c| {
            let record = &c.record;
            Container {
                id: record.id.clone(),
                pod_sandbox_id: record.pod_id.clone(),
                metadata: record.config.metadata.clone(),
                image: record.config.image.clone(),
                // The kubelet's image collector compares it with image ids.
                image_ref: record.image_id.clone(),
                state: c.state as i32,
                created_at: record.created_at,
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
                image_id: record.image_id.clone(),
            }
        }));
    }
    ListContainersResponse { containers }
}

pub fn status(
    service: &Service,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    Ok(ContainerStatusResponse {
        status: Some(container_status(service, &container)),
        info: match request.verbose {
            true => info(&pod, &container),
            false => HashMap::new(),
        },
    })
}

pub fn container_status(service: &Service, container: &ContainerView) -> ContainerStatus {
    let record = &container.record;
    let config = &record.config;
    let exit = container.exit.clone();
    let (reason, message) = match &exit {
        None => Default::default(),
        Some(exit) => {
            let reason = match (exit.reason.as_str(), exit.code) {
                ("", 0) => "Completed",
                ("", _) => "Error",
                (reason, _) => reason,
            };
            (reason.to_owned(), exit.message.clone())
        }
    };
    let (uid, gid, supplemental_groups) = record.user.clone();
    ContainerStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: container.state as i32,
        created_at: record.created_at,
        started_at: container.started_at,
        finished_at: exit.as_ref().map_or(0, |e| e.finished_at),
        exit_code: exit.as_ref().map_or(0, |e| e.code),
        image: Some(image_spec(service, container)),
        image_ref: record.image_ref.clone(),
        reason,
        message,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: record.log_path.display().to_string(),
        resources: (record.resources != LinuxContainerResources::default()).then(|| {
            ContainerResources {
                linux: Some(record.resources.clone()),
                windows: None,
            }
        }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid,
                gid,
                supplemental_groups,
            }),
        }),
        stop_signal: stop::to_cri(record.stop_signal) as i32,
    }
}

/// The image by a name that people know: what the user wrote, else a tag of the image, else what CreateContainer said.
fn image_spec(service: &Service, container: &ContainerView) -> ImageSpec {
    let mut spec = container.record.config.image.clone().unwrap_or_default();
    let images = &service.registry.node.images;
    if let Ok(Some(image)) = images.resolve(&container.record.image_id)
        && let Some(tag) = image.repo_tags.first()
    {
        spec.image = tag.clone();
    }
    spec
}

fn info(pod: &PodView, container: &ContainerView) -> HashMap<String, String> {
    let record = &container.record;
    let bundle = pod.pod.container_dir(&record.id);
    let spec: serde_json::Value = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let info = json!({
        "sandboxID": record.pod_id,
        "pid": container.pid,
        "bundle": bundle,
        "notes": record.notes,
        "timeline": container.timeline,
        "runtimeSpec": spec,
    });
    HashMap::from([
        ("info".to_owned(), info.to_string()),
        ("timeline".to_owned(), json!(container.timeline).to_string()),
    ])
}
