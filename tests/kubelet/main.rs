//! The kubelet over a real runtime: manifests go in, and what runs, what is told of it, and what is left is looked at.

mod cluster;
mod limits;
mod lives;
mod member;
mod probes;
mod restarts;
mod scene;
mod volumes;
