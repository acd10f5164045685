//! The Node: what there is, what of it pods may have, and how it does. Pure functions of what was looked at.

use std::collections::BTreeMap;

use berth_proto::cri;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints,
        NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use crate::{
    Division, NodeFacts, Thresholds,
    admission::Pressure,
    division::Amounts,
    machine::{Identity, Machine, architecture, binary},
};

/// The version of Kubernetes whose kubelet this one does the work of.
pub(crate) const VERSION: &str = "v1.36.0";
/// Upstream's: the images that are told of, the largest first.
const MOST_IMAGES: usize = 50;
/// … and names of one.
const MOST_NAMES: usize = 5;

/// What was looked at.
#[derive(Debug)]
pub(crate) struct Looked<'a> {
    pub facts: &'a NodeFacts,
    pub machine: &'a Machine,
    pub identity: &'a Identity,
    pub max_pods: usize,
    pub division: &'a Division,
    pub thresholds: &'a Thresholds,
    /// What it runs short of.
    pub pressure: Pressure,
    /// 0: nothing is served.
    pub port: u16,
    /// `berth://0.1.0`.
    pub runtime_version: &'a str,
    /// Or why the runtime has none to tell.
    pub runtime: Result<&'a cri::StatusResponse, &'a str>,
    pub images: &'a [cri::Image],
    /// The machine shuts down.
    pub shuts_down: bool,
    pub now: Timestamp,
}

pub(crate) fn status(looked: &Looked<'_>, before: &[NodeCondition]) -> NodeStatus {
    let (capacity, allocatable) = resources(looked);
    let mut addresses: Vec<_> = looked
        .facts
        .ips
        .iter()
        .map(|ip| address("InternalIP", ip))
        .collect();
    addresses.push(address("Hostname", &looked.facts.name));
    let runtime = looked.runtime.ok();
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(allocatable),
        capacity: Some(capacity),
        conditions: Some(conditions(looked, before)),
        daemon_endpoints: (looked.port != 0).then(|| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(looked.port),
            }),
        }),
        features: runtime
            .and_then(|it| it.features.as_ref())
            .map(|it| NodeFeatures {
                supplemental_groups_policy: Some(it.supplemental_groups_policy),
            }),
        images: Some(images(looked.images)),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().into(),
            boot_id: looked.identity.boot_id.clone(),
            container_runtime_version: looked.runtime_version.to_owned(),
            kernel_version: looked.identity.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.into(),
            machine_id: looked.identity.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: looked.identity.os_image.clone(),
            system_uuid: looked.identity.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        runtime_handlers: runtime.map(|it| it.runtime_handlers.iter().map(handler).collect()),
        ..NodeStatus::default()
    }
}

fn address(kind: &str, address: &str) -> NodeAddress {
    NodeAddress {
        type_: kind.into(),
        address: address.into(),
    }
}

fn handler(handler: &cri::RuntimeHandler) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: handler
            .features
            .as_ref()
            .map(|it| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(it.recursive_read_only_mounts),
                user_namespaces: Some(it.user_namespaces),
            }),
    }
}

type Resources = BTreeMap<String, Quantity>;

/// What there is, and what of it pods may ask for.
fn resources(looked: &Looked<'_>) -> (Resources, Resources) {
    let capacity = Amounts::capacity(looked.machine, looked.facts, looked.max_pods);
    let allocatable = looked.division.allocatable(&capacity, looked.thresholds);
    (
        written(&capacity, |bytes| format!("{}Ki", bytes / 1024)),
        written(&allocatable, |bytes| bytes.to_string()),
    )
}

fn written(amounts: &Amounts, storage: impl Fn(u64) -> String) -> Resources {
    let mut all = Resources::new();
    let mut put = |name: &str, text: String| {
        all.insert(name.to_owned(), Quantity(text));
    };
    let cpu = amounts.cpu_milli;
    put(
        "cpu",
        match cpu % 1000 {
            0 => (cpu / 1000).to_string(),
            _ => format!("{cpu}m"),
        },
    );
    put("memory", format!("{}Ki", amounts.memory / 1024));
    put("pods", amounts.pods.to_string());
    put("ephemeral-storage", storage(amounts.storage));
    for (size, bytes) in &amounts.huge_pages {
        put(&format!("hugepages-{}", binary(*size)), binary(*bytes));
    }
    all
}

fn images(all: &[cri::Image]) -> Vec<ContainerImage> {
    let mut all: Vec<&cri::Image> = all.iter().collect();
    all.sort_by_key(|image| std::cmp::Reverse(image.size));
    all.into_iter()
        .take(MOST_IMAGES)
        .map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .iter()
                    .chain(&image.repo_tags)
                    .take(MOST_NAMES)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

fn conditions(looked: &Looked<'_>, before: &[NodeCondition]) -> Vec<NodeCondition> {
    let short = looked.pressure;
    let pressure = |is: bool, kind, has: &'static str, lacks: &'static str, what: &str| {
        let (reason, text) = match is {
            true => (has, format!("kubelet has {what}")),
            false => (
                lacks,
                format!("kubelet has {}", what.replace("insufficient", "sufficient")),
            ),
        };
        condition(looked.now, before, kind, is, reason, text)
    };
    let ready = match looked.shuts_down {
        true => Err("node is shutting down".into()),
        false => readiness(looked.runtime),
    };
    vec![
        pressure(
            short.memory,
            "MemoryPressure",
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
            "insufficient memory available",
        ),
        condition(
            looked.now,
            before,
            "DiskPressure",
            short.disk,
            if short.disk {
                "KubeletHasDiskPressure"
            } else {
                "KubeletHasNoDiskPressure"
            },
            if short.disk {
                "kubelet has disk pressure".into()
            } else {
                "kubelet has no disk pressure".into()
            },
        ),
        pressure(
            short.pids,
            "PIDPressure",
            "KubeletHasInsufficientPID",
            "KubeletHasSufficientPID",
            "insufficient PID available",
        ),
        match ready {
            Ok(()) => condition(
                looked.now,
                before,
                "Ready",
                true,
                "KubeletReady",
                "kubelet is posting ready status".into(),
            ),
            Err(why) => condition(looked.now, before, "Ready", false, "KubeletNotReady", why),
        },
    ]
}

/// Whether pods can be started: what the runtime says of itself.
fn readiness(runtime: Result<&cri::StatusResponse, &str>) -> Result<(), String> {
    let status = runtime.map_err(|why| format!("container runtime is down: {why}"))?;
    let all = status.status.as_ref().map(|it| it.conditions.as_slice());
    let mut wrong = Vec::new();
    for kind in ["RuntimeReady", "NetworkReady"] {
        match all
            .unwrap_or_default()
            .iter()
            .find(|one| one.r#type == kind)
        {
            Some(one) if one.status => {}
            Some(one) => wrong.push(format!(
                "container runtime: {kind}=false reason:{} message:{}",
                one.reason, one.message
            )),
            None => wrong.push(format!("container runtime does not tell {kind}")),
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join(", ")),
    }
}

fn condition(
    now: Timestamp,
    before: &[NodeCondition],
    kind: &str,
    is: bool,
    reason: &str,
    message: String,
) -> NodeCondition {
    let status = if is { "True" } else { "False" };
    let same = before
        .iter()
        .find(|one| one.type_ == kind && one.status == status);
    NodeCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: same
            .and_then(|one| one.last_transition_time.clone())
            .or(Some(Time(now))),
    }
}

/// What has changed of the conditions, by upstream's reasons for events.
pub(crate) fn news(before: &[NodeCondition], now: &[NodeCondition]) -> Vec<&'static str> {
    let is = |all: &[NodeCondition], kind: &str| {
        let one = all.iter().find(|one| one.type_ == kind);
        one.map(|one| one.status == "True")
    };
    let kinds = [
        (
            "MemoryPressure",
            "NodeHasInsufficientMemory",
            "NodeHasSufficientMemory",
        ),
        (
            "DiskPressure",
            "NodeHasDiskPressure",
            "NodeHasNoDiskPressure",
        ),
        (
            "PIDPressure",
            "NodeHasInsufficientPID",
            "NodeHasSufficientPID",
        ),
        ("Ready", "NodeReady", "NodeNotReady"),
    ];
    let changed = kinds.into_iter().filter_map(|(kind, holds, holds_not)| {
        let now = is(now, kind)?;
        (is(before, kind) != Some(now)).then_some(if now { holds } else { holds_not })
    });
    changed.collect()
}

/// Whether the server has other conditions than it was told: somebody has not heard of the node for long, and says so. Of whom nothing is known contradicts nobody.
pub(crate) fn contradicts(server: &[NodeCondition], told: &[NodeCondition]) -> bool {
    let has = |one: &NodeCondition| {
        server
            .iter()
            .any(|it| it.type_ == one.type_ && it.status == one.status)
    };
    !server.is_empty() && !told.iter().all(has)
}

/// Without the heartbeat: whether there is anything to tell.
pub(crate) fn without_heartbeat(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

/// Labels that every node has.
pub(crate) fn labels(node: &str) -> BTreeMap<String, String> {
    let arch = architecture();
    [
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Fs;

    fn machine() -> Machine {
        Machine {
            memory: 8 << 30,
            memory_available: 4 << 30,
            fs: Fs {
                bytes: 100 << 30,
                free: 50 << 30,
                available: 50 << 30,
                inodes: 1000,
                inodes_free: 900,
            },
            pids: 32768,
            pids_used: 100,
            huge_pages: vec![(2 << 20, 0), (1 << 30, 1 << 30)],
            swap: 0,
            swap_free: 0,
        }
    }

    fn of(
        pressure: Pressure,
        runtime: Result<&cri::StatusResponse, &str>,
        before: &[NodeCondition],
        now: i64,
    ) -> NodeStatus {
        let facts = NodeFacts {
            name: "n1".into(),
            ips: vec!["10.0.0.1".into()],
            memory_bytes: 8 << 30,
            cpus: 2,
        };
        status(
            &Looked {
                shuts_down: false,
                facts: &facts,
                machine: &machine(),
                identity: &Identity::default(),
                max_pods: 110,
                division: &Division::default(),
                thresholds: &Thresholds::default(),
                pressure,
                port: 10250,
                runtime_version: "berth://0.1.0",
                runtime,
                images: &[],
                now: Timestamp::from_second(now).unwrap(),
            },
            before,
        )
    }

    fn runtime(network: bool) -> cri::StatusResponse {
        let condition = |kind: &str, status| cri::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: "NoNetwork".into(),
            message: "none".into(),
        };
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true),
                    condition("NetworkReady", network),
                ],
            }),
            ..Default::default()
        }
    }

    fn is(status: &NodeStatus, kind: &str) -> String {
        let all = status.conditions.as_deref().unwrap();
        let one = all.iter().find(|one| one.type_ == kind).unwrap();
        format!(
            "{} {} {}",
            one.status,
            one.reason.as_deref().unwrap(),
            one.last_transition_time.as_ref().unwrap().0.as_second()
        )
    }

    #[test]
    fn a_node_tells_what_it_has_and_how_it_does_kl_04() {
        let good = runtime(true);
        let first = of(Pressure::default(), Ok(&good), &[], 100);
        let quantity = |all: &Option<Resources>, name: &str| all.as_ref().unwrap()[name].0.clone();
        assert_eq!(quantity(&first.capacity, "memory"), "8388608Ki");
        assert_eq!(quantity(&first.capacity, "hugepages-1Gi"), "1Gi");
        assert_eq!(quantity(&first.capacity, "hugepages-2Mi"), "0");
        assert_eq!(
            quantity(&first.allocatable, "memory"),
            format!("{}Ki", (8u64 << 20) - (100 << 10) - (1 << 20))
        );
        assert_eq!(quantity(&first.allocatable, "pods"), "110");
        assert_eq!(is(&first, "Ready"), "True KubeletReady 100");
        assert_eq!(
            is(&first, "MemoryPressure"),
            "False KubeletHasSufficientMemory 100"
        );

        let before = first.conditions.clone().unwrap();
        let short = Pressure {
            memory: true,
            disk: true,
            pids: true,
        };
        let bad = runtime(false);
        let second = of(short, Ok(&bad), &before, 200);
        assert_eq!(is(&second, "Ready"), "False KubeletNotReady 200");
        assert_eq!(
            is(&second, "MemoryPressure"),
            "True KubeletHasInsufficientMemory 200"
        );
        assert_eq!(
            is(&second, "DiskPressure"),
            "True KubeletHasDiskPressure 200"
        );
        assert_eq!(
            is(&second, "PIDPressure"),
            "True KubeletHasInsufficientPID 200"
        );
        let third = of(Pressure::default(), Err("gone"), &before, 300);
        assert_eq!(
            is(&third, "MemoryPressure"),
            "False KubeletHasSufficientMemory 100"
        );
        assert_eq!(is(&third, "Ready"), "False KubeletNotReady 300");
        let conditions_of = |status: &NodeStatus| status.conditions.clone().unwrap();
        assert_eq!(
            news(&[], &conditions_of(&first)),
            [
                "NodeHasSufficientMemory",
                "NodeHasNoDiskPressure",
                "NodeHasSufficientPID",
                "NodeReady"
            ]
        );
        assert_eq!(
            news(&before, &conditions_of(&second)),
            [
                "NodeHasInsufficientMemory",
                "NodeHasDiskPressure",
                "NodeHasInsufficientPID",
                "NodeNotReady"
            ]
        );
        assert_eq!(news(&before, &conditions_of(&third)), ["NodeNotReady"]);
        assert!(news(&before, &before).is_empty());
        // somebody has said that nothing is heard of the node, or something of his own beside
        let mut server = before.clone();
        assert!(!contradicts(&server, &before) && !contradicts(&[], &before));
        server.push(NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "True".into(),
            ..NodeCondition::default()
        });
        assert!(!contradicts(&server, &before));
        for one in &mut server {
            one.status = "Unknown".into();
        }
        assert!(contradicts(&server, &before));
        let again = of(Pressure::default(), Ok(&good), &server, 350);
        assert_eq!(is(&again, "Ready"), "True KubeletReady 350");
        assert_eq!(news(&server, &conditions_of(&again)), ["NodeReady"]);
        // only the heartbeat: nothing to tell
        let later = of(Pressure::default(), Ok(&good), &before, 400);
        assert_ne!(later, first);
        assert_eq!(without_heartbeat(&later), without_heartbeat(&first));
    }
}
