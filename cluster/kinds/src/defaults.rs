//! What upstream's defaults fill in. Doing it twice changes nothing.

mod access;
mod admission;
mod container;
mod network;
mod node;
mod pod;
mod storage;
mod volume;
mod workload;

pub(crate) use access::*;
pub(crate) use admission::*;
pub(crate) use network::*;
pub(crate) use node::*;
pub(crate) use pod::{pod, pod_template};
pub(crate) use storage::*;
pub(crate) use workload::*;
