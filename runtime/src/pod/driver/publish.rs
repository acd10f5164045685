//! What others see of the pod.

use berth_proto::cri;

use super::{Container, ContainerState, Driver, State};
use crate::pod::{
    pod_limits,
    record::Exit,
    view::{ContainerView, PodView},
};

impl Driver {
    pub(super) fn view(&self) -> PodView {
        let (state, listed) = match &self.state {
            State::Creating { .. } => ("creating", false),
            State::Ready { .. } => ("ready", true),
            State::Broken => ("broken", true),
            State::Stopping { .. } => ("stopping", true),
            State::Stopped { .. } => ("stopped", true),
            State::Removing { .. } => ("removing", true),
            State::Gone => ("gone", false),
        };
        let attachment = self.record.attachment.as_ref();
        PodView {
            pod: self.pod.clone(),
            state,
            ready: matches!(self.state, State::Ready { .. }),
            listed,
            ips: attachment.map(|a| a.ips.clone()).unwrap_or_default(),
            netns: attachment
                .map(|a| a.netns.display().to_string())
                .unwrap_or_default(),
            interface: attachment.map(|a| a.interface.clone()).unwrap_or_default(),
            timeline: self.record.timeline.clone(),
            why: self.record.why.clone(),
            limits: pod_limits::now(&self.record),
            shim: self.shim(),
            sandbox_pid: self.said.sandbox_pid,
            containers: self
                .containers
                .values()
                .filter_map(container_view)
                .collect(),
        }
    }
}

pub(super) fn container_view(container: &Container) -> Option<ContainerView> {
    use cri::ContainerState as Cri;
    let record = container.record.clone()?;
    let (state, started_at, exit) = match &container.state {
        ContainerState::Creating { .. } => return None,
        ContainerState::Created | ContainerState::Starting { .. } => {
            (Cri::ContainerCreated, 0, None)
        }
        ContainerState::Running { started_at, .. } => (Cri::ContainerRunning, *started_at, None),
        ContainerState::Exited(exit) => (Cri::ContainerExited, exit.started_at, Some(exit.clone())),
        ContainerState::Broken { why } => (
            Cri::ContainerExited,
            0,
            Some(Exit {
                reason: "ContainerCreateError".into(),
                ..Exit::unknown(why)
            }),
        ),
        ContainerState::Removing { exit, .. } => (
            Cri::ContainerExited,
            exit.as_ref().map_or(0, |e| e.started_at),
            exit.clone(),
        ),
    };
    Some(ContainerView {
        record,
        state,
        started_at,
        exit,
        pid: container.pid,
        timeline: container.timeline.clone(),
    })
}
