//! What quotas bound, by the names that they have for it.

/// Core's kinds that are counted by their plural alone.
pub const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// What of services is counted beside themselves.
const OF_SERVICES: [&str; 2] = ["services.loadbalancers", "services.nodeports"];
/// What is summed up.
pub(crate) const SUMMED: [&str; 10] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
];

/// Whether it is counted one by one.
pub(crate) fn is_counted(name: &str) -> bool {
    COUNTED.contains(&name) || OF_SERVICES.contains(&name)
}
