//! What upstream refuses, in its words: kubectl prints them, and people search for them.
//!
//! A rule sees an object after its defaults, with name (or `generateName`) and namespace filled in by whoever serves it.

mod access;
mod admission;
mod autoscale;
mod batch;
mod claims;
mod container;
mod data;
mod endpoints;
mod extension;
mod meta;
mod network;
mod node;
mod pod;
mod pod_update;
mod quota;
mod resources;
mod scheduling;
mod service;
mod volume;
mod workload;

pub(crate) use access::*;
pub(crate) use admission::*;
pub(crate) use autoscale::*;
pub(crate) use batch::*;
pub(crate) use claims::*;
pub(crate) use data::*;
pub(crate) use endpoints::*;
pub(crate) use extension::*;
pub(crate) use meta::{cluster_subdomain, subdomain, update as metadata_update};
pub(crate) use network::*;
pub(crate) use node::*;
pub(crate) use pod::{pod, pod_template};
pub(crate) use pod_update::pod_update;
pub use pod_update::{ephemeral_containers_update, resize_update};
pub(crate) use quota::*;
pub(crate) use service::*;
pub(crate) use workload::*;
