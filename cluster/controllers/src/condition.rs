//! Conditions of pods and nodes.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition};

pub(crate) fn of_pod<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub(crate) fn of_node<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Its condition Ready is True.
pub(crate) fn pod_is_ready(pod: &Pod) -> bool {
    of_pod(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// It has ended, and can't begin again.
pub(crate) fn pod_has_ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The node that it is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}
