use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_kubelet::{RUN, is_path_component, keys, remove_kubelet_dir};
use berth_proto::cri::{
    self, ContainerFilter, ContainerState, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxState, PodSandboxStatusRequest, RemovePodSandboxRequest,
    StopPodSandboxRequest,
};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{
    error::Error,
    node::{Address, Node},
    output::{self, Format, Table},
};

/// Where `berth run` makes volumes and keeps what is known of pods: one directory a pod, named by its uid.
pub const VOLUMES_DIR: &str = "/var/lib/berth-run";

/// Where the kubelet keeps logs, and log collectors look for them.
pub const LOGS_DIR: &str = "/var/log/pods";

#[derive(Debug, Subcommand)]
pub enum Pod {
    /// List the pods that are here
    List,
    /// Show pods with their containers
    Status(Names),
    /// Kill what runs in pods and give back their addresses
    Stop(Names),
    /// Stop and forget pods; of a pod that `berth run` made, logs and volumes too
    Remove(Remove),
}

#[derive(Debug, Args)]
pub struct Names {
    /// NAME, NAMESPACE/NAME, ID or the beginning of one
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Remove {
    #[command(flatten)]
    names: Names,
    /// Where `berth run` was told to make volumes
    #[arg(long, default_value = VOLUMES_DIR)]
    volumes_dir: PathBuf,
}

/// A pod as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub state: &'static str,
    pub created_at: Option<String>,
    #[serde(skip)]
    created: i64,
    /// It was made by `berth run`, so its directories are ours to remove.
    #[serde(skip)]
    by_run: bool,
}

impl Listed {
    fn new(pod: cri::PodSandbox) -> Self {
        let state = pod_state(pod.state());
        let metadata = pod.metadata.unwrap_or_default();
        Listed {
            state,
            id: pod.id,
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            created_at: output::time(pod.created_at),
            created: pod.created_at,
            by_run: pod
                .annotations
                .get(keys::CONFIG_SOURCE)
                .is_some_and(|source| source == RUN),
        }
    }

    pub fn is_ready(&self) -> bool {
        self.state == READY
    }
}

const READY: &str = "Ready";

fn pod_state(state: PodSandboxState) -> &'static str {
    match state {
        PodSandboxState::SandboxReady => READY,
        PodSandboxState::SandboxNotready => "NotReady",
    }
}

fn container_state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "Created",
        ContainerState::ContainerRunning => "Running",
        ContainerState::ContainerExited => "Exited",
        ContainerState::ContainerUnknown => "Unknown",
    }
}

impl Pod {
    pub async fn run(self, address: &Address, format: Format) -> Result<ExitCode, Error> {
        let node = Node::connect(address).await?;
        match self {
            Pod::List => list(&node, format).await?,
            Pod::Status(names) => {
                let mut details = Vec::new();
                for name in &names.pods {
                    let pod = find(&node, name).await?;
                    details.push(detail(&node, &pod.id).await?);
                }
                print_details(format, &details)?;
            }
            Pod::Stop(names) => {
                for name in &names.pods {
                    let pod = find(&node, name).await?;
                    stop(&node, &pod.id, &pod.name).await?;
                    output::text_out(&format!("{}\n", pod.id))?;
                }
            }
            Pod::Remove(Remove { names, volumes_dir }) => {
                for name in &names.pods {
                    let pod = find(&node, name).await?;
                    stop(&node, &pod.id, &pod.name).await?;
                    remove(&node, &pod.id, &pod.name).await?;
                    if pod.by_run {
                        remove_directories(&pod, &volumes_dir)?;
                    }
                    output::text_out(&format!("{}\n", pod.id))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Every pod, the newest first.
pub async fn all(node: &Node) -> Result<Vec<Listed>, Error> {
    let answer = node
        .runtime()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .map_err(node.cannot("list pods"))?
        .into_inner();
    let mut pods: Vec<Listed> = answer.items.into_iter().map(Listed::new).collect();
    pods.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(pods)
}

/// The pod that a person means.
pub async fn find(node: &Node, name: &str) -> Result<Listed, Error> {
    choose(all(node).await?, name)
}

/// A whole ID wins; then a name (the ready one where a stopped one has the same); then the beginning of an ID.
fn choose(pods: Vec<Listed>, name: &str) -> Result<Listed, Error> {
    if let Some(pod) = pods.iter().find(|pod| pod.id == name) {
        return Ok(pod.clone());
    }
    let (namespace, bare) = match name.split_once('/') {
        Some((namespace, bare)) => (Some(namespace), bare),
        None => (None, name),
    };
    let named = |pod: &&Listed| {
        pod.name == bare && namespace.is_none_or(|namespace| pod.namespace == namespace)
    };
    let mut candidates: Vec<&Listed> = pods.iter().filter(named).collect();
    if candidates.iter().any(|pod| pod.is_ready()) {
        candidates.retain(|pod| pod.is_ready());
    }
    if candidates.is_empty() && !name.is_empty() {
        candidates = pods.iter().filter(|pod| pod.id.starts_with(name)).collect();
    }
    match candidates[..] {
        [] => Err(Error::NoPod {
            name: name.to_owned(),
        }),
        [pod] => Ok(pod.clone()),
        _ => Err(Error::AmbiguousPod {
            name: name.to_owned(),
            candidates: candidates
                .iter()
                .map(|pod| {
                    format!(
                        "{} ({}/{})",
                        output::short(&pod.id),
                        pod.namespace,
                        pod.name
                    )
                })
                .collect(),
        }),
    }
}

/// A container of a pod: the one that is named, else the first that was made; of one that was made again, the newest.
#[derive(Debug, Clone)]
pub struct ChosenContainer {
    pub id: String,
    pub name: String,
}

pub async fn container(
    node: &Node,
    pod: &Listed,
    name: Option<&str>,
) -> Result<ChosenContainer, Error> {
    let mut containers = containers(node, &pod.id).await?;
    containers.sort_by_key(|container| container.created_at);
    let name_of = |container: &cri::Container| container.metadata.clone().unwrap_or_default().name;
    let mut newest: Vec<(String, String)> = Vec::new();
    for container in &containers {
        match newest
            .iter_mut()
            .find(|(name, _)| *name == name_of(container))
        {
            Some(entry) => entry.1 = container.id.clone(),
            None => newest.push((name_of(container), container.id.clone())),
        }
    }
    let running = |id: &str| {
        containers
            .iter()
            .any(|it| it.id == id && it.state() == ContainerState::ContainerRunning)
    };
    let chosen = match name {
        Some(name) => newest.iter().find(|(its, id)| its == name || id == name),
        // init containers come first and have ended: a running one is what is meant
        None => newest.iter().find(|(_, id)| running(id)).or(newest.first()),
    };
    match (chosen, name) {
        (Some((name, id)), _) => Ok(ChosenContainer {
            id: id.clone(),
            name: name.clone(),
        }),
        (None, Some(name)) => Err(Error::NoContainer {
            pod: pod.name.clone(),
            name: name.to_owned(),
            has: newest.into_iter().map(|(name, _)| name).collect(),
        }),
        (None, None) => Err(Error::EmptyPod {
            pod: pod.name.clone(),
        }),
    }
}

pub async fn containers(node: &Node, pod_id: &str) -> Result<Vec<cri::Container>, Error> {
    let filter = ContainerFilter {
        pod_sandbox_id: pod_id.to_owned(),
        ..Default::default()
    };
    let answer = node
        .runtime()
        .list_containers(ListContainersRequest {
            filter: Some(filter),
        })
        .await
        .map_err(node.cannot(format!("list the containers of pod {pod_id}")))?;
    Ok(answer.into_inner().containers)
}

pub async fn stop(node: &Node, id: &str, name: &str) -> Result<(), Error> {
    let request = StopPodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
    };
    node.runtime()
        .stop_pod_sandbox(request)
        .await
        .map_err(node.cannot(format!("stop pod {name} ({id})")))?;
    Ok(())
}

pub async fn remove(node: &Node, id: &str, name: &str) -> Result<(), Error> {
    let request = RemovePodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
    };
    node.runtime()
        .remove_pod_sandbox(request)
        .await
        .map_err(node.cannot(format!("remove pod {name} ({id})")))?;
    Ok(())
}

/// The directories come from the pod's identity, which is checked here: an annotation must not be able to name them.
fn remove_directories(pod: &Listed, volumes_dir: &Path) -> Result<(), Error> {
    let parts = [&pod.namespace, &pod.name, &pod.uid];
    if parts.iter().any(|part| !is_path_component(part)) {
        return Ok(());
    }
    // a `berth run` that still keeps the pod ends by itself, now that the pod is gone
    remove_kubelet_dir(&volumes_dir.join(&pod.uid))?;
    let logs = log_directory(&pod.namespace, &pod.name, &pod.uid);
    match std::fs::remove_dir_all(&logs) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File {
            what: "remove",
            path: logs,
            source,
        }),
        _ => Ok(()),
    }
}

pub fn log_directory(namespace: &str, name: &str, uid: &str) -> PathBuf {
    Path::new(LOGS_DIR).join(format!("{namespace}_{name}_{uid}"))
}

async fn list(node: &Node, format: Format) -> Result<(), Error> {
    let pods = all(node).await?;
    output::print(format, &pods, || {
        let now = output::now();
        let mut table = Table::new(&["NAMESPACE", "NAME", "STATE", "AGE", "ID"]);
        for pod in &pods {
            table.row([
                pod.namespace.clone(),
                pod.name.clone(),
                pod.state.into(),
                output::age(pod.created, now),
                output::short(&pod.id),
            ]);
        }
        table
    })
}

/// A pod with its containers.
#[derive(Debug, Serialize)]
pub struct Detail {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub state: &'static str,
    pub ips: Vec<String>,
    pub created_at: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub containers: Vec<ContainerDetail>,
}

#[derive(Debug, Serialize)]
pub struct ContainerDetail {
    pub id: String,
    pub name: String,
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub image: String,
    pub image_id: String,
    pub created_at: Option<String>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub log_path: String,
}

impl ContainerDetail {
    pub fn new(status: cri::ContainerStatus) -> Self {
        let exited = status.state() == ContainerState::ContainerExited;
        let image = status.image.clone().unwrap_or_default();
        ContainerDetail {
            state: container_state(status.state()),
            exit_code: exited.then_some(status.exit_code),
            name: status.metadata.unwrap_or_default().name,
            id: status.id,
            reason: status.reason,
            message: status.message,
            image: if image.user_specified_image.is_empty() {
                image.image
            } else {
                image.user_specified_image
            },
            image_id: status.image_id,
            created_at: output::time(status.created_at),
            started_at: output::time(status.started_at),
            finished_at: output::time(status.finished_at),
            log_path: status.log_path,
        }
    }

    fn state_in_words(&self) -> String {
        let reason = if self.reason.is_empty() {
            String::new()
        } else {
            format!(", {}", self.reason)
        };
        match self.exit_code {
            Some(code) => format!("{} ({code}{reason})", self.state),
            None => self.state.to_owned(),
        }
    }
}

pub async fn container_status(node: &Node, id: &str) -> Result<cri::ContainerStatus, Error> {
    node.runtime()
        .container_status(ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        })
        .await
        .map_err(node.cannot(format!("ask for container {id}")))?
        .into_inner()
        .status
        .ok_or_else(|| node.lacks("ContainerStatus", "a status"))
}

async fn sandbox_status(node: &Node, id: &str) -> Result<cri::PodSandboxStatus, Error> {
    node.runtime()
        .pod_sandbox_status(PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        })
        .await
        .map_err(node.cannot(format!("ask for pod {id}")))?
        .into_inner()
        .status
        .ok_or_else(|| node.lacks("PodSandboxStatus", "a status"))
}

/// The pod's addresses; none for a pod in the node's network.
fn ips(status: &cri::PodSandboxStatus) -> Vec<String> {
    let network = status.network.clone().unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip)
        .chain(more)
        .filter(|ip| !ip.is_empty())
        .collect()
}

pub async fn detail(node: &Node, id: &str) -> Result<Detail, Error> {
    let status = sandbox_status(node, id).await?;
    let mut containers = containers(node, id).await?;
    containers.sort_by_key(|container| container.created_at);
    let mut details = Vec::new();
    for container in containers {
        details.push(ContainerDetail::new(
            container_status(node, &container.id).await?,
        ));
    }
    let (state, ips) = (pod_state(status.state()), ips(&status));
    let metadata = status.metadata.unwrap_or_default();
    Ok(Detail {
        id: status.id,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        state,
        ips,
        created_at: output::time(status.created_at),
        labels: status.labels.into_iter().collect(),
        containers: details,
    })
}

pub fn print_details(format: Format, details: &[Detail]) -> Result<(), Error> {
    if format == Format::Table {
        for (index, detail) in details.iter().enumerate() {
            if index > 0 {
                output::text_out("\n")?;
            }
            output::text_out(&in_words(detail))?;
        }
        return Ok(());
    }
    match details {
        [one] => output::print(format, one, Table::default),
        many => output::print(format, &many, Table::default),
    }
}

fn in_words(detail: &Detail) -> String {
    let mut head = Table::default();
    head.row([
        "Pod:".into(),
        format!("{}/{}", detail.namespace, detail.name),
    ]);
    head.row(["ID:".into(), detail.id.clone()]);
    head.row(["State:".into(), detail.state.into()]);
    head.row([
        "IP:".into(),
        if detail.ips.is_empty() {
            "the node's".into()
        } else {
            detail.ips.join(", ")
        },
    ]);
    let mut table = Table::new(&["CONTAINER", "STATE", "IMAGE", "ID"]);
    for container in &detail.containers {
        table.row([
            container.name.clone(),
            container.state_in_words(),
            container.image.clone(),
            output::short(&container.id),
        ]);
    }
    let messages: String = detail
        .containers
        .iter()
        .filter(|container| !container.message.is_empty())
        .map(|container| format!("{}: {}\n", container.name, container.message))
        .collect();
    format!("{head}\n{table}{messages}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, namespace: &str, name: &str, ready: bool) -> Listed {
        let state = if ready {
            PodSandboxState::SandboxReady
        } else {
            PodSandboxState::SandboxNotready
        };
        Listed::new(cri::PodSandbox {
            id: id.into(),
            state: state.into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn a_pod_is_found_by_id_name_and_beginning_of_an_id_in_this_order() {
        let pods = || {
            vec![
                pod("aa11", "default", "web", false),
                pod("aa22", "default", "web", true),
                pod("bb33", "other", "db", true),
                pod("cc44", "default", "db", true),
                pod("dd55", "default", "aa11", true),
            ]
        };
        let found = |name: &str| {
            choose(pods(), name)
                .map(|pod| pod.id)
                .map_err(|error| error.to_string())
        };
        assert_eq!(found("aa11").unwrap(), "aa11", "an ID before a name");
        assert_eq!(found("web").unwrap(), "aa22", "the ready one of two");
        assert_eq!(found("other/db").unwrap(), "bb33");
        assert_eq!(found("cc").unwrap(), "cc44");
        assert_eq!(
            found("db").unwrap_err(),
            "\"db\" could be any of bb33 (other/db), cc44 (default/db): say more of the ID"
        );
        assert_eq!(
            found("x").unwrap_err(),
            "no pod \"x\": `berth pod list` shows the pods that there are"
        );
        assert!(found("").is_err());
    }

    #[test]
    fn directories_are_removed_only_where_the_identity_is_a_plain_name() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = dir.path().join("volumes");
        std::fs::create_dir_all(volumes.join("uid-1/data")).unwrap();
        std::fs::create_dir_all(dir.path().join("outside")).unwrap();
        let removed = |uid: &str| {
            let pod = Listed {
                uid: uid.into(),
                ..pod("aa", "default", "berth-test-no-such-pod", true)
            };
            remove_directories(&pod, &volumes).unwrap();
        };
        removed("../outside");
        removed("");
        assert!(dir.path().join("outside").exists() && volumes.join("uid-1").exists());
        removed("uid-1");
        assert!(!volumes.join("uid-1").exists());
    }
}
