//! From a pod to what the CRI is asked for. No side effects but one: the node's resolv.conf and hosts are read.

mod container;
pub(crate) mod dns;
pub(crate) mod environment;
mod field;
mod hosts;
mod resources;
mod sandbox;
mod security;

pub(crate) use container::{Making, container};
pub(crate) use environment::expand;
pub(crate) use field::{Fields, resource};
pub(crate) use hosts::hosts;
pub(crate) use resources::{
    of_container as container_resources, of_pod as pod_resources, overhead,
};
pub(crate) use sandbox::{hostname_and_domain, sandbox};
