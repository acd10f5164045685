//! What a kubelet, crictl and a person may expect of a node.

#![allow(
    clippy::type_complexity,
    clippy::cloned_ref_to_slice_refs,
    reason = "tables of cases are tuples, and what is expected stands as a list"
)]

mod bad_input;
mod berth_cli;
mod cdi;
mod cni;
mod copies;
mod ending;
mod events;
mod exec;
mod full_disk;
mod host_port;
mod identity;
mod image_volumes;
mod images;
mod instant_exits;
mod isolation;
mod lifecycle;
mod logs;
mod metrics;
mod mounts;
mod network;
mod oom;
mod pod_limits;
<<<<<<< HEAD
mod port_forward;
=======
mod probes;
>>>>>>> 013448e (Floods, bombs, stuck stops, instant exits and requests that are none: what the CRI does under them is tested (SEC-CRI-09, 11, 12, REL-01, 04, 08 to 10, 15 to 17))
mod real_images;
mod resources;
mod rotation;
mod runtime_handlers;
mod security_context;
mod sharing;
mod static_pod;
mod stats;
mod streaming;
<<<<<<< HEAD
mod terminals;
=======
mod stuck_stops;
>>>>>>> 013448e (Floods, bombs, stuck stops, instant exits and requests that are none: what the CRI does under them is tested (SEC-CRI-09, 11, 12, REL-01, 04, 08 to 10, 15 to 17))
mod under_containerd;
mod update;
