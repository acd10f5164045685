//! What a kubelet, crictl and a person may expect of a node.

#![allow(
    clippy::type_complexity,
    clippy::cloned_ref_to_slice_refs,
    reason = "tables of cases are tuples, and what is expected stands as a list"
)]

mod apparmor;
mod bad_input;
mod berth_cli;
mod berth_run;
mod berth_shim;
mod cdi;
mod cgroup_v2;
mod checkpoint;
mod cni;
mod containerd_churn;
mod containerd_client;
mod copies;
mod devices;
mod ending;
mod events;
mod exec;
mod full_disk;
mod handed_down;
mod host_port;
mod hung_mounts;
mod identity;
mod image_volumes;
mod images;
mod instant_exits;
mod isolation;
mod kernel_floor;
mod lifecycle;
mod log_lines;
mod logs;
mod metrics;
mod mounts;
mod network;
mod nri;
mod oom;
mod pod_limits;
mod port_forward;
mod power_cuts;
mod probes;
mod prometheus;
mod real_images;
mod resources;
mod rotation;
mod runtime_handlers;
mod security_context;
mod sharing;
mod static_pod;
mod stats;
mod stock_shims;
mod streaming;
mod stuck_stops;
mod terminals;
mod tracing;
mod under_containerd;
mod unfit;
mod update;
mod user_namespaces;
