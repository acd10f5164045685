//! What is told of pods and of the node, in the words of upstream's events.

/// Nothing is left of a pod: told to who keeps one by hand, no event of the API.
pub(crate) const REMOVED: &str = "Removed";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Normal,
    Warning,
}

/// One thing that happened to a pod, or to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    pub level: Level,
    /// `Pulled`, `Started`, `Unhealthy`, `BackOff`, `NodeReady`, …
    pub reason: &'static str,
    /// `namespace/name`; empty: it is about the node itself.
    pub pod: String,
    pub uid: String,
    /// `v1.Pod`'s field that it is about: `spec.containers{a}`; empty: the whole pod.
    pub field: String,
    /// Empty: the whole pod.
    pub container: String,
    pub message: String,
}
