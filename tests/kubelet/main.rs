//! The kubelet over a real runtime: manifests go in, and what runs, what is told of it, and what is left is looked at.

mod away;
mod claims;
mod cluster;
mod configuration;
mod containerd;
mod events;
mod faults;
mod figures;
mod hostile;
mod joining;
mod limits;
mod line;
mod lives;
mod logind;
mod losses;
mod lost_calls;
mod member;
mod probes;
mod pulls;
mod resizes;
mod restarts;
mod scene;
mod shutdowns;
mod sources;
mod stock;
mod volumes;
