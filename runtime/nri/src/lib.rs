//! NRI, the Node Resource Interface 0.12: plugins follow pods and containers through their life, and change containers before they are
//! made and while they run.
//!
//! ```text
//!  plugin ── one socket ── [mux] ─┬─ 1: Plugin service, we call ──▶ [plugin]  one request at a time, each with its time
//!                                 └─ 2: Runtime service, it calls   RegisterPlugin, UpdateContainers
//!  [registry]   who is connected, in the order of the indices; joining; the gate
//!  [pass]       what the pod driver asks: one event of one pod, told to all
//!  [adjustment] what all plugins together want of a container, and who of them collide
//!  [validator]  what they may want
//! ```
//!
//! # Synchronization
//! **The one ordering point is the gate**, a fair read-write lock. Whoever begins, changes or ends a pod or container holds it for
//! reading ([`Pass`]) from before the first plugin is told until the change is to be seen in [`Runtime::snapshot`]. A plugin that joins
//! holds it for writing from its snapshot until it is in the list. So each pod and container is in what a plugin is synchronized with, or is
//! told to it as an event: never both, never neither. A joining plugin waits for what is under way, and is waited for, within bounds: see
//! [`registry`].
//!
//! A plugin is asked one thing at a time, as containerd does it: stock plugins need not be ready for more.

#![forbid(unsafe_code)]

pub mod adjustment;
mod error;
pub mod launch;
pub mod mux;
pub mod owners;
pub mod pass;
pub mod plugin;
pub mod registry;
pub mod resources;
mod synchronize;
pub mod validator;

pub use berth_proto::nri::nri as api;
pub use error::Error;
pub use pass::{Created, Pass};
pub use registry::{Nri, Runtime, Settings};
pub use validator::Validator;

/// The version of the interface that is spoken.
pub const NRI_VERSION: &str = "0.12.0";
