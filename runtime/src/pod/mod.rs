//! Pods and their containers: the lifecycle, written once.
//!
//! One task drives one pod ([`driver`]). It is fed from a closed [`event::Event`]: requests of RPC handlers, what the shim says,
//! work that has ended, time that has passed. Nothing else changes a pod. Whether a request may be taken now is decided by a
//! pure type ([`request_queue`]); long work (calls to the shim, mounts) runs beside the driver and comes back as an event, so a
//! pod always answers. Who only reads takes the published [`view`] and never waits.
//!
//! ```text
//!  pod         ┌─ failed, undone ─▶ (gone)
//!   Run ─▶ Creating ─▶ Ready ─ Stop, shim dead ─▶ Stopping ─▶ Stopped ─ Remove ─▶ Removing ─▶ (gone)
//!              └─ failed, something left ─▶ Broken ─────────── Stop ──▲      Remove ──▲
//!
//!  container   ┌─ failed, undone ─▶ (gone)
//!   Create ─▶ Creating ─▶ Created ─ Start ─▶ Starting ─▶ Running ─ it ends ─▶ Exited ─ Remove ─▶ Removing ─▶ (gone)
//!              └─ failed, something left ─▶ Broken    └─ StartError ──────────▲        (from Created and Broken, too)
//! ```
//!
//! | state | holds |
//! |---|---|
//! | pod Creating | those who wait for its id |
//! | pod Ready | the connection to its shim, and the task that watches it |
//! | pod Stopping | those who wait, and whether its end is theirs or the shim's |
//! | container Running | when it is to be killed, and who waits for that |
//! | container Exited | how it ended |
//!
//! **Making** is a chain of phases ([`run`], [`create`]), each written into the ledger before it is made and each able to undo
//! itself. [`teardown`] is the same list read backwards, and needs the ledger alone: it is also what a restarted daemon does
//! with what its predecessor left half made ([`recovery`]).
//!
//! **Keys**: a pod's is (namespace, name, uid, attempt), a container's (pod, name, attempt). The record is on disk, in phase
//! `creating`, before the first kernel object, so there is always somebody who answers a repeated request: the driver that
//! works on it, or the one that recovery makes.

pub mod create;
pub mod differences;
pub mod driver;
pub mod event;
pub mod exit_record;
pub mod files;
pub mod happenings;
pub mod host_paths;
pub mod image_volumes;
pub mod launch;
pub mod mounts;
pub mod network;
pub mod pod_limits;
pub mod record;
pub mod recovery;
pub mod registry;
pub mod request_queue;
pub mod run;
pub mod shim;
pub mod stop;
pub mod teardown;
pub mod unanswered;
pub mod update;
pub mod userns;
pub mod view;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_proto::cri;

use crate::{cgroup_driver, node::Node};

/// What of a pod never changes. Shared by its driver and the work under way.
#[derive(Debug)]
pub struct Pod {
    pub node: Arc<Node>,
    pub id: String,
    pub config: cri::PodSandboxConfig,
    /// The full name: never empty.
    pub handler: String,
    /// ns since the epoch
    pub created_at: i64,
    /// Its cgroup, relative to the root of each hierarchy.
    pub cgroup_parent: PathBuf,
}

/// What makes two RunPodSandbox the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
}

impl PodKey {
    pub fn of(config: &cri::PodSandboxConfig) -> Self {
        let m = config.metadata.clone().unwrap_or_default();
        Self {
            namespace: m.namespace,
            name: m.name,
            uid: m.uid,
            attempt: m.attempt,
        }
    }
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            namespace,
            name,
            uid,
            attempt,
        } = self;
        write!(f, "{namespace}/{name} (uid {uid}, attempt {attempt})")
    }
}

impl Pod {
    pub fn dir(&self) -> PathBuf {
        self.node.pod_dir(&self.id)
    }

    pub fn container_dir(&self, container_id: &str) -> PathBuf {
        self.node.container_dir(&self.id, container_id)
    }

    pub fn security(&self) -> Option<&cri::LinuxSandboxSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }

    pub fn namespaces(&self) -> cri::NamespaceOption {
        self.security()
            .and_then(|s| s.namespace_options.clone())
            .unwrap_or_default()
    }

    pub fn host_network(&self) -> bool {
        self.namespaces().network() == cri::NamespaceMode::Node
    }

    /// On the node's network a pod has the node's name.
    pub fn hostname(&self) -> String {
        if self.host_network() || self.config.hostname.is_empty() {
            return rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned();
        }
        self.config.hostname.clone()
    }

    /// The tmpfs that its containers share, or the node's own.
    pub fn shm(&self) -> PathBuf {
        match self.namespaces().ipc() {
            cri::NamespaceMode::Node => Path::new("/dev/shm").to_owned(),
            _ => self.dir().join("shm"),
        }
    }

    /// Its cgroups are units of systemd.
    pub fn is_by_systemd(&self) -> bool {
        cgroup_driver::is_slice(&self.cgroup_parent)
    }

    /// A container's cgroup, relative to the root of each hierarchy.
    pub fn container_cgroup(&self, container_id: &str) -> PathBuf {
        cgroup_driver::of_container(&self.cgroup_parent, container_id)
    }

    /// The pod's cgroup where no caller has named it: nobody else's.
    pub fn own_cgroup(&self) -> Option<&Path> {
        let linux = self.config.linux.as_ref();
        linux
            .is_none_or(|linux| linux.cgroup_parent.is_empty())
            .then_some(&self.cgroup_parent)
    }
}
