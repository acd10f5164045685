//! Makes a container from an OCI spec. One seam ([`Engine`]: `create`, `start`, `exec`, `kill`, `delete`), one suite for every
//! engine behind it (`tests/suite.rs`).
//!
//! ```text
//!   shim (subreaper, event loop)          zygote (one thread, no foreign descriptor)
//!   ───────────────────────────           ─────────────────────────────────────────
//!   Engine::create ── a datagram: op, descriptors, reply socket ──▶ forks a worker
//!        │                                                           │ worker: natively, by libcontainer, or our exec
//!        │ ◀───────────── the answer, with a pidfd ───────────────── ┘ exits; the zygote reaps it,
//!        │ ◀───────────── end of the reply socket ──────────────────── and closes its copy of the socket:
//!        ▼                                                             from here init is the shim's own child
//!   waitid(P_PIDFD)
//! ```
//!
//! Invariant: no code of libcontainer runs in a process that has a second thread, and none in the shim.
//! Invariant: a process that an engine has answered with can be waited for by the caller, also if it has ended already.

pub mod cgroup;
mod channel;
mod checkpoint;
mod command;
mod complaints;
mod confine;
mod console;
mod engine;
mod error;
mod exec;
mod features;
mod filter;
mod hooks;
mod idmap;
mod init;
mod keyring;
mod launched;
mod memory_policy;
mod native;
mod pause;
mod process;
mod record;
mod request;
mod restore;
mod worker;
mod zygote;

pub use engine::{Checkpoint, Create, Engine, Exec, Process, Restore, Stdio};
pub use error::Error;
pub use features::features;
pub use launched::{Config, Launched, Maker};
pub use pause::{Pause, UserNamespace};
pub use zygote::Zygote;
