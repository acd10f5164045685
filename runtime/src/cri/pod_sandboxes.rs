//! Stop, remove, status and list of pod sandboxes.

use std::collections::HashMap;

use berth_proto::cri::*;
use serde_json::json;

use super::{Service, containers, filter};
use crate::{
    error::Error,
    pod::{
        event::Request,
        record::{PodLimits, now_ns},
        view::PodView,
    },
};

/// A pod that is not known has been stopped and removed: no error, as the CRI has it.
pub async fn stop(
    service: &Service,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Error> {
    let done = match service.registry.pod(&request.pod_sandbox_id) {
        Ok(pod) => pod.ask(|reply| Request::Stop { reply }).await,
        Err(e) => Err(e),
    };
    gone_is_fine(done)?;
    Ok(StopPodSandboxResponse {})
}

pub async fn remove(
    service: &Service,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Error> {
    let done = match service.registry.pod(&request.pod_sandbox_id) {
        Ok(pod) => pod.ask(|reply| Request::Remove { reply }).await,
        Err(e) => Err(e),
    };
    gone_is_fine(done)?;
    Ok(RemovePodSandboxResponse {})
}

pub fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NotFound { .. } | Error::PodGone(_)) => Ok(()),
        other => other,
    }
}

pub fn list(service: &Service, request: ListPodSandboxRequest) -> ListPodSandboxResponse {
    let asked = request.filter.unwrap_or_default();
    let state = asked.state.as_ref().map(|s| s.state);
    let items = service
        .registry
        .views()
        .iter()
        .filter(|pod| {
            filter::id(&asked.id, &pod.pod.id)
                && filter::state(state, pod.sandbox_state() as i32)
                && filter::labels(&asked.label_selector, &pod.pod.config.labels)
        })
        .map(|pod| PodSandbox {
            id: pod.pod.id.clone(),
            metadata: pod.pod.config.metadata.clone(),
            state: pod.sandbox_state() as i32,
            created_at: pod.pod.created_at,
            labels: pod.pod.config.labels.clone(),
            annotations: pod.pod.config.annotations.clone(),
            runtime_handler: pod.pod.handler.clone(),
        })
        .collect();
    ListPodSandboxResponse { items }
}

pub async fn update(
    service: &Service,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Error> {
    let pod = service.registry.pod(&request.pod_sandbox_id)?;
    if request.overhead.is_none() && request.resources.is_none() {
        return Err(Error::InvalidArgument(format!(
            "update pod sandbox {}: neither overhead nor resources are given",
            pod.pod.id
        )));
    }
    let change = Box::new(PodLimits {
        resources: request.resources.unwrap_or_default(),
        overhead: request.overhead.unwrap_or_default(),
    });
    pod.ask(|reply| Request::UpdatePod { change, reply })
        .await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}

pub fn status(
    service: &Service,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Error> {
    let view = service.registry.pod(&request.pod_sandbox_id)?.view();
    if !view.listed {
        return Err(Error::NotFound {
            what: "pod sandbox",
            id: request.pod_sandbox_id,
        });
    }
    Ok(PodSandboxStatusResponse {
        status: Some(pod_sandbox_status(&view)),
        info: match request.verbose {
            true => info(service, &view),
            false => HashMap::new(),
        },
        containers_statuses: view
            .containers
            .iter()
            .map(|container| containers::container_status(service, container))
            .collect(),
        timestamp: now_ns(),
    })
}

pub fn pod_sandbox_status(view: &PodView) -> PodSandboxStatus {
    let pod = &view.pod;
    let mut ips = view.ips.iter().map(|ip| ip.to_string());
    PodSandboxStatus {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: view.sandbox_state() as i32,
        created_at: pod.created_at,
        // On the node's network the kubelet knows the address itself.
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(pod.namespaces()),
            }),
        }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
    }
}

fn user_namespace(userns: &UserNamespace) -> serde_json::Value {
    let list = |list: &[IdMapping]| -> Vec<_> {
        let of = |m: &IdMapping| json!({ "containerID": m.container_id, "hostID": m.host_id, "size": m.length });
        list.iter().map(of).collect()
    };
    json!({ "uids": list(&userns.uids), "gids": list(&userns.gids) })
}

fn info(service: &Service, view: &PodView) -> HashMap<String, String> {
    let pod = &view.pod;
    let info = json!({
        "pid": view.sandbox_pid,
        "state": view.state,
        "why": view.why,
        "hostname": pod.hostname(),
        "netns": view.netns,
        "userNamespace": berth_spec::user_namespace(&pod.config).map(user_namespace),
        "cgroupParent": pod.cgroup_parent,
        "resources": resources(&view.limits.resources),
        "overhead": resources(&view.limits.overhead),
        "bundle": pod.dir(),
        "shim": service.registry.node.shim_socket(&pod.id),
        "timeline": view.timeline,
    });
    HashMap::from([
        ("info".to_owned(), info.to_string()),
        ("timeline".to_owned(), json!(view.timeline).to_string()),
    ])
}

/// Of the limits that are given, those that people ask for.
fn resources(limits: &LinuxContainerResources) -> serde_json::Value {
    json!({
        "cpuPeriod": limits.cpu_period,
        "cpuQuota": limits.cpu_quota,
        "cpuShares": limits.cpu_shares,
        "cpusetCpus": limits.cpuset_cpus,
        "cpusetMems": limits.cpuset_mems,
        "memoryLimitInBytes": limits.memory_limit_in_bytes,
        "memorySwapLimitInBytes": limits.memory_swap_limit_in_bytes,
    })
}
