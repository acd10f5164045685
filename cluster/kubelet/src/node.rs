//! What all workers share: the runtime, the directories, and what is known of the node.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::Semaphore;

use crate::{
    CgroupDriver, Desired, Division, Error, Happening, Level, Objects, Role, Runtime, Told,
    admission::Pressed,
    cgroup::Cgroups,
    division::Amounts,
    images::{ImagePolicy, Uses},
    network::Network,
    view::View,
    volume::Shared,
};

/// Sandboxes that are taken down at a time: each is work of several processes, and where hundreds of pods end at once none of them would be done in its time.
pub(crate) const TAKEDOWNS: usize = 64;

/// How this node is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Upstream's `/var/lib/kubelet`: pods' volumes and what is kept of them.
    pub kubelet_dir: PathBuf,
    /// Upstream's `/var/log/pods`.
    pub logs_dir: PathBuf,
    /// Below which pods' cgroups are, by their class (`/`: the root of the hierarchies); none: the runtime puts them where it likes, without limits of
    /// the node.
    pub cgroup_root: Option<String>,
    /// Where the runtime does not tell which it has.
    pub cgroup_driver: CgroupDriver,
    pub division: Division,
    /// Pods of other kubelets in the same runtime are let be; those of a source that no longer names them are ended, if this kubelet is what
    /// keeps the source.
    pub source: &'static str,
    pub max_pods: usize,
    pub images: ImagePolicy,
    /// Cluster DNS; empty: there is none, and pods have the node's.
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub node: NodeFacts,
}

/// What of this machine is told to pods.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub name: String,
    pub ips: Vec<String>,
    /// Bytes; 0: not known.
    pub memory_bytes: i64,
    pub cpus: i64,
}

impl NodeFacts {
    pub fn of_this_machine() -> Self {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_ascii_lowercase();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok());
        Self {
            name,
            ips: Vec::from_iter(own_address()),
            memory_bytes: kib.unwrap_or(0) * 1024,
            cpus: std::thread::available_parallelism()
                .map_or(1, |it| i64::try_from(it.get()).unwrap_or(1)),
        }
    }
}

/// The address that the node would send from, to nowhere in particular: connecting a datagram socket sends nothing.
fn own_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

/// A name under which many workers know the same node.
pub(crate) type Node = Arc<Inner>;

pub(crate) struct Inner {
    pub config: Config,
    pub runtime: Runtime,
    pub objects: Objects,
    pub told: Told,
    /// `berth`, `containerd`: in front of containers' ids.
    pub runtime_name: String,
    pub view: View,
    /// None: they are the runtime's alone.
    pub cgroups: Option<Arc<Cgroups>>,
    /// What pods may ask for altogether.
    pub allocatable: Mutex<Amounts>,
    /// What it runs short of.
    pub pressed: Pressed,
    /// Since when each image was not used.
    pub images: tokio::sync::Mutex<Uses>,
    pub volumes: Shared,
    pub network: Network,
    /// Of pods that are taken down now.
    pub takedowns: Semaphore,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub fn allocatable(&self) -> Amounts {
        let held = self.allocatable.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_allocatable(&self, amounts: Amounts) {
        let held = self.allocatable.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = amounts;
    }

    /// `<kubelet_dir>/pods/<uid>`
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.kubelet_dir.join("pods").join(uid)
    }

    /// `/var/log/pods/<namespace>_<name>_<uid>`
    pub fn log_dir(&self, pod: &Desired) -> PathBuf {
        self.config
            .logs_dir
            .join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    pub fn kubelet_dir(&self) -> &Path {
        &self.config.kubelet_dir
    }

    /// The pod's cgroup is there, with the pod's limits. `anew`: somebody may have removed it, also where the pod is as it was.
    pub async fn ensure_cgroup(&self, pod: &Arc<Desired>, anew: bool) -> Result<(), Error> {
        let Some(cgroups) = self.cgroups.clone().filter(|it| anew || !it.knows(pod)) else {
            return Ok(());
        };
        let pod = pod.clone();
        let path = cgroups.parent_of(&pod);
        match tokio::task::spawn_blocking(move || cgroups.ensure(&pod)).await {
            Ok(done) => done,
            Err(error) => Err(broken("make", path, &error)),
        }
    }

    pub async fn remove_cgroup(&self, pod: &Arc<Desired>) -> Result<(), Error> {
        let Some(cgroups) = self.cgroups.clone() else {
            return Ok(());
        };
        let pod = pod.clone();
        let path = cgroups.parent_of(&pod);
        match tokio::task::spawn_blocking(move || cgroups.remove(&pod)).await {
            Ok(done) => done,
            Err(error) => Err(broken("remove", path, &error)),
        }
    }

    /// What is new of a pod.
    pub fn publish(&self, pod: &Desired, status: &PodStatus) {
        self.view.tell(&pod.uid, status);
        (self.told.status)(pod, status);
    }

    pub fn tell(
        &self,
        level: Level,
        pod: &Desired,
        container: &str,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let list = pod.container(container).map(|spec| match spec.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Main => "containers",
            Role::Ephemeral => "ephemeralContainers",
        });
        let happening = Happening {
            level,
            reason,
            pod: pod.full_name(),
            uid: pod.uid.clone(),
            field: list.map_or(String::new(), |list| format!("spec.{list}{{{container}}}")),
            container: container.to_owned(),
            message: message.into(),
        };
        (self.told.happened)(&happening);
    }

    /// What happens to the node itself.
    pub fn tell_of_node(&self, level: Level, reason: &'static str, message: impl Into<String>) {
        self.told.of_node(level, reason, message);
    }
}

fn broken(what: &'static str, path: String, error: &tokio::task::JoinError) -> Error {
    Error::Cgroup {
        what,
        path,
        why: error.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node whose runtime nobody serves.
    pub fn node(dir: &str) -> Node {
        // a channel wants one, also where nothing is ever asked over it
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let limits = Default::default();
        let cgroups = Cgroups::new(CgroupDriver::Cgroupfs, "/", limits, None, Vec::new()).unwrap();
        Arc::new(Inner {
            config: Config {
                kubelet_dir: dir.into(),
                logs_dir: "/logs".into(),
                cgroup_root: None,
                cgroup_driver: CgroupDriver::Cgroupfs,
                division: Division::default(),
                source: "run",
                max_pods: 10,
                images: ImagePolicy::default(),
                cluster_dns: Vec::new(),
                cluster_domain: "cluster.local".into(),
                node: NodeFacts::default(),
            },
            runtime: Runtime::new("/nonexistent/runtime.sock").unwrap(),
            objects: Objects::default(),
            told: Told::default(),
            runtime_name: "berth".into(),
            view: View::default(),
            cgroups: Some(Arc::new(cgroups)),
            allocatable: Mutex::default(),
            pressed: Pressed::default(),
            images: Default::default(),
            volumes: Default::default(),
            network: Network::default(),
            takedowns: Semaphore::new(TAKEDOWNS),
        })
    }
}
