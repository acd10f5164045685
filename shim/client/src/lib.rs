//! Any shim v2, from outside: berthd, `berth shim` and our own shim, which may stand before another, start and call shims by this.
//!
//! - [`action`]: the shim as a command: `start`, `delete`, `-info`
//! - [`bootstrap`]: what `start` has printed
//! - [`connection`]: the task service, a deadline on each call
//! - [`frames`]: a connection's bytes, looked at before anybody waits for more of them
//! - [`failure`]: what became of a step
//!
//! What a shim prints and answers is a stranger's word: read in bounds and within a deadline, and never shown raw.

pub mod action;
pub mod bootstrap;
pub mod connection;
pub mod failure;
pub mod frames;

pub use self::{
    action::{Action, Ended, Patience},
    bootstrap::Bootstrap,
    connection::{Connection, connect},
    failure::Failure,
};
