//! What is told of pods, in the words of upstream's events.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Normal,
    Warning,
}

/// One thing that happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    pub level: Level,
    /// `Pulled`, `Started`, `Unhealthy`, `BackOff`, …
    pub reason: &'static str,
    /// `namespace/name`.
    pub pod: String,
    pub uid: String,
    /// `v1.Pod`'s field that it is about: `spec.containers{a}`; empty: the whole pod.
    pub field: String,
    /// Empty: the whole pod.
    pub container: String,
    pub message: String,
}
