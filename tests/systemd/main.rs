//! Berth where systemd is PID 1: cgroups that are its units, and `berthd` as a service. `hack/vm --init systemd` boots such a machine;
//! anywhere else each test says that it is skipped.

mod by_hand;
mod driver;
mod faults;
mod kubelet;
mod package;
#[path = "../kubelet/scene.rs"]
#[expect(dead_code, reason = "the kubelet's own tests use all of it")]
mod scene;
mod service;
