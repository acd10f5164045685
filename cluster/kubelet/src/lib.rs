//! The kubelet: the node's init system, over any CRI socket.
//!
//! ```text
//! source ── pods as they should be ──▶ kubelet ── one task a pod ──▶ worker
//!                                                                     │  observe: the runtime's lists, by the pod's uid
//!                                    events, relist, probes, timers ─▶│  plan:    what comes next, a pure function
//!                                                                     ▼  execute: volumes, images, hooks, the CRI
//!                                                                    status
//! ```
//!
//! Invariant: what a pod's worker does next hangs on what it was asked for and what the runtime says is there, not on what it remembers:
//! so a kubelet that was killed goes on where it was, and restarts nothing. What it does remember (back-off, probes) may be lost.

mod admission;
mod amounts;
mod api;
mod backoff;
mod cgroup;
mod division;
mod error;
mod events;
mod eviction;
mod execute;
mod happening;
mod hook;
mod ignored;
mod image;
mod images;
pub mod keys;
mod kubelet;
mod machine;
pub mod manifest;
mod network;
mod node;
mod objects;
mod observed;
mod oom;
mod plan;
mod pod;
mod probe;
mod problem;
mod qos;
mod removal;
mod resize;
mod rotation;
mod runtime;
mod server;
mod shutdown;
mod source;
mod status;
mod storage;
mod store;
mod terminate;
mod thresholds;
mod translate;
mod unbuilt;
mod user_namespace;
mod view;
mod volume;
mod worker;

pub use admission::Pressed;
pub use api::{
    API, Cluster, Joining, Known, Mirrors, OwnNode, Recorder, Register, Renewal, Source, Statuses,
    Taint,
};
pub use cgroup::CgroupDriver;
pub use division::{Division, Enforced, Reserved};
pub use error::Error;
pub use happening::{Happening, Level};
pub use images::ImagePolicy;
pub use kubelet::{Kubelet, Told};
pub use node::{Config, NodeFacts};
pub use objects::Objects;
pub use pod::{ContainerSpec, Desired, PullPolicy, RUN, RestartPolicy, Role, is_path_component};
pub use problem::Problem;
pub use runtime::{Puller, Runtime};
pub use server::{Certificate, Listen, Server};
pub use shutdown::{ShutdownNews, ShutdownPolicy, listen_to_logind};
pub use source::{Directory, UrlConfig, UrlHeader, UrlSource, both, join};
pub use thresholds::{Graces, Levels, Reclaims, Thresholds, duration};
pub use volume::remove_kubelet_dir;

/// To servers.
const USER_AGENT: &str = concat!("berth-kubelet/", env!("CARGO_PKG_VERSION"));
