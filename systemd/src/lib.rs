//! Units of systemd, asked for over D-Bus: the slices and scopes that containers' cgroups are where systemd rules the machine.
//!
//! - `name`: slices by name and by path, and what a scope of a container is called
//! - `property`: what a unit is told of limits, from the files of cgroup v2
//! - `weight`: a cgroup's part of the processors, in v2's measure
//! - `units`: starting, changing and stopping them; each waits for systemd's answer, for a bounded time
//! - `login`: a lock on the machine's shutdown, and the word that one is coming (logind)
//! - `bus`: a connection to the system bus: authentication, calls and their answers
//! - `message`: D-Bus messages as bytes
//!
//! A client of its own, and a small one: it lives for one call, in whatever process needs it, without a thread or a runtime. Whoever makes
//! a container is a short-lived worker of a shim, and a shim is to stay small. zbus brings an executor and some fifty crates,
//! dbus-rs the C library; rustbus 0.19 is of the right kind and depends on a nix of 2023.

#![forbid(unsafe_code)]

mod bus;
mod login;
mod message;
pub mod name;
pub mod property;
mod units;
mod weight;

pub use login::Login;
pub use property::Property;
pub use units::{Error, Started, Units, is_booted};
pub use weight::weight_of_shares;
