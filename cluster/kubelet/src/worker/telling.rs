//! What is told of a pod: its status, kept for the next kubelet.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::Worker;
use crate::{
    API,
    observed::Observed,
    plan::Over,
    pod::Desired,
    status::{Parts, status},
    store,
};

/// What a server has of a pod that this node has nothing of: that it is over, and what others told.
pub(super) fn told_before(pod: &Desired) -> Option<PodStatus> {
    let status = pod.pod.status.clone().filter(|_| pod.source == API)?;
    let is_over = Over::told(&status).is_some();
    Some(match is_over {
        true => status,
        false => PodStatus {
            conditions: status.conditions,
            ..PodStatus::default()
        },
    })
}

impl Worker {
    /// The last that is told. It is not kept: the same pod may come again before it has gone.
    pub(super) fn tell_the_end(&self, observed: &Observed) {
        let last = self.status(observed, &BTreeMap::new(), Some(&Over::Ended));
        self.node.publish(&self.pod, &last);
    }

    /// Tells what is new of the pod, and keeps it.
    pub(super) fn publish(
        &mut self,
        observed: &Observed,
        waiting: &BTreeMap<String, (String, String)>,
        over: Option<&Over>,
    ) {
        let status = self.status(observed, waiting, over);
        let is_new = self.before.as_ref() != Some(&status);
        if self.is_told && !is_new {
            return;
        }
        self.is_told = true;
        self.node.publish(&self.pod, &status);
        if !is_new {
            return;
        }
        self.before = Some(status.clone());
        // What the node's own disk asks for begins anew with the machine.
        if self.pod.source != API && matches!(self.failed, Some((Over::Shutdown, _))) {
            return;
        }
        if let Err(error) = store::keep_status(&self.node, &self.pod.uid, &status) {
            tracing::warn!(pod = %self.pod.full_name(), %error, "the status is not kept");
        }
    }

    fn status(
        &self,
        observed: &Observed,
        waiting: &BTreeMap<String, (String, String)>,
        over: Option<&Over>,
    ) -> PodStatus {
        status(&Parts {
            pod: &self.pod,
            observed,
            waiting,
            health: &self.health,
            over,
            before: self.before.as_ref(),
            node: &self.node.config.node,
            resize: self.resizing.progress(),
            runtime: &self.node.runtime_name,
            now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
        })
    }
}
