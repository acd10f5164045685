//! What a driver publishes of its pod after each event. Readers take it as it is and never wait for anybody.

use std::{net::IpAddr, sync::Arc};

use berth_proto::cri;

use super::{
    Pod,
    record::{ContainerRecord, Exit, PodLimits, Timeline},
    shim::Shim,
};

#[derive(Debug, Clone)]
pub struct PodView {
    pub pod: Arc<Pod>,
    /// The word for people; CRI has only two.
    pub state: &'static str,
    pub ready: bool,
    /// A pod that is being made has been told to nobody, and is in no list.
    pub listed: bool,
    pub ips: Vec<IpAddr>,
    pub netns: String,
    /// The pod's first interface.
    pub interface: String,
    pub timeline: Timeline,
    pub why: String,
    pub limits: PodLimits,
    pub shim: Option<Shim>,
    pub sandbox_pid: u32,
    pub containers: Vec<ContainerView>,
}

#[derive(Debug, Clone)]
pub struct ContainerView {
    pub record: Arc<ContainerRecord>,
    pub state: cri::ContainerState,
    /// ns since the epoch; 0: not yet
    pub started_at: i64,
    pub exit: Option<Exit>,
    /// As the shim says it, for people. Nothing here uses it.
    pub pid: u32,
    pub timeline: Timeline,
}

impl PodView {
    /// Of a pod whose driver has not said anything yet.
    pub(super) fn unborn(pod: Arc<Pod>) -> Self {
        Self {
            pod,
            state: "creating",
            ready: false,
            listed: false,
            ips: vec![],
            netns: String::new(),
            interface: String::new(),
            timeline: Timeline::default(),
            why: String::new(),
            limits: PodLimits::default(),
            shim: None,
            sandbox_pid: 0,
            containers: vec![],
        }
    }

    pub fn sandbox_state(&self) -> cri::PodSandboxState {
        match self.ready {
            true => cri::PodSandboxState::SandboxReady,
            false => cri::PodSandboxState::SandboxNotready,
        }
    }

    pub fn container(&self, id: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.record.id == id)
    }
}
