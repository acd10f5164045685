//! A pod as the runtime says that it is.

use std::collections::HashMap;

use berth_proto::cri::{self, ContainerState, PodSandboxState};
use k8s_openapi::api::core::v1::ResourceRequirements;

use crate::{keys, user_namespace::Ids};

/// All that the runtime has of one pod, the newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Seen>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Of the newest one only; the others' have nothing to say.
    pub ips: Vec<String>,
    /// Of the newest one only, where its users are not the node's.
    pub ids: Option<Ids>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

/// A container. Times are nanoseconds since the epoch, 0: not yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    pub id: String,
    pub name: String,
    pub sandbox: String,
    /// How often there was one of this name before.
    pub attempt: u32,
    pub state: State,
    pub created: i64,
    pub started: i64,
    pub finished: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    /// As the pod's author wrote it.
    pub image: String,
    pub image_id: String,
    /// Of the spec that it was made of; empty: it is not known.
    pub hash: String,
    /// Where a message may be, on the node.
    pub message_file: Option<String>,
    /// What it has by now of cpu and memory, where that is known.
    pub resources: Option<ResourceRequirements>,
    /// It was ended so that it starts again with other resources.
    pub restarting: bool,
}

impl Observed {
    pub fn newest_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.newest_sandbox().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of this name.
    pub fn newest(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().find(|seen| seen.name == name)
    }

    /// All of this name, the newest first.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Seen> {
        self.containers.iter().filter(move |seen| seen.name == name)
    }

    /// Sorted: the newest sandbox and the newest container first.
    pub fn sort(&mut self) {
        self.sandboxes
            .sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created)));
        self.containers
            .sort_by_key(|seen| std::cmp::Reverse((seen.attempt, seen.created)));
    }

    pub fn runs(&self) -> bool {
        self.containers
            .iter()
            .any(|seen| seen.state == State::Running)
    }
}

impl From<cri::PodSandbox> for Sandbox {
    fn from(sandbox: cri::PodSandbox) -> Self {
        Self {
            ready: sandbox.state() == PodSandboxState::SandboxReady,
            attempt: sandbox.metadata.as_ref().map_or(0, |it| it.attempt),
            created: sandbox.created_at,
            id: sandbox.id,
            ips: Vec::new(),
            ids: None,
        }
    }
}

impl Seen {
    /// `sandbox` is not in a status.
    pub fn of(status: cri::ContainerStatus, sandbox: String) -> Self {
        let text =
            |map: &HashMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
        let metadata = status.metadata.clone().unwrap_or_default();
        let asked = status.image.clone().unwrap_or_default();
        let path = text(&status.annotations, keys::TERMINATION_MESSAGE_PATH);
        let resources = text(&status.annotations, keys::RESOURCES);
        let resources = serde_json::from_str(&resources).ok();
        let message_file = status
            .mounts
            .iter()
            .find(|mount| !path.is_empty() && mount.container_path == path)
            .map(|mount| mount.host_path.clone());
        Self {
            state: match status.state() {
                ContainerState::ContainerCreated => State::Created,
                ContainerState::ContainerRunning => State::Running,
                ContainerState::ContainerExited => State::Exited,
                ContainerState::ContainerUnknown => State::Unknown,
            },
            hash: text(&status.annotations, keys::CONTAINER_HASH),
            image: match asked.user_specified_image.is_empty() {
                true => asked.image,
                false => asked.user_specified_image,
            },
            image_id: match status.image_ref.is_empty() {
                true => status.image_id,
                false => status.image_ref,
            },
            id: status.id,
            name: metadata.name,
            sandbox,
            attempt: metadata.attempt,
            created: status.created_at,
            started: status.started_at,
            finished: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            message_file,
            resources,
            restarting: false,
        }
    }
}
