//! What every pod of this node shares: configuration, stores, facts of the machine. Nothing here changes a pod's state.

use std::path::{Path, PathBuf};

use berth_image::Store;
use berth_network::Network;
use berth_spec::Host;
use berth_state::Ledger;

use crate::{
    apparmor::DefaultProfile,
    cgroup::Hierarchies,
    cgroup_driver::Chosen,
    config::Config,
    cri::cpu_rate::CpuSamples,
    error::Error,
    handler::{Handler, OWN, UNKNOWN},
    handler_features::Asked,
    kernel_floor::Floor,
    metrics::Metrics,
    nri::Plugins,
    pod::userns::Possible,
};

#[derive(Debug)]
pub struct Node {
    pub config: Config,
    pub ledger: Ledger,
    pub images: Store,
    pub network: Network,
    pub host: Host,
    pub cgroup: Chosen,
    pub cgroups: Hierarchies,
    pub cpu: CpuSamples,
    pub nri: Plugins,
    pub metrics: Metrics,
    pub user_namespaces_possible: Possible,
    pub apparmor: DefaultProfile,
    pub kernel: Floor,
    pub handler_features: Asked,
}

impl Node {
    /// Why no pod can run on this machine; as the condition RuntimeReady has it.
    pub fn unfit(&self) -> Option<String> {
        let kernel = self.kernel.too_low();
        kernel.or_else(|| self.host.cgroups_unusable.clone())
    }

    /// Where layers and snapshots lie.
    pub fn image_root(&self) -> PathBuf {
        self.config.root.join("image")
    }

    /// Records of pods outlive a reboot.
    pub fn pod_records(&self) -> PathBuf {
        self.config.root.join("pods")
    }

    pub fn container_records(&self) -> PathBuf {
        self.config.root.join("containers")
    }

    pub fn pod_record(&self, pod_id: &str) -> PathBuf {
        self.pod_records().join(format!("{pod_id}.json"))
    }

    pub fn container_record(&self, container_id: &str) -> PathBuf {
        self.container_records()
            .join(format!("{container_id}.json"))
    }

    /// The pod's bundle.
    pub fn pod_dir(&self, pod_id: &str) -> PathBuf {
        self.config.state.join("pods").join(pod_id)
    }

    pub fn container_dir(&self, pod_id: &str, container_id: &str) -> PathBuf {
        self.pod_dir(pod_id).join("containers").join(container_id)
    }

    /// Where the shim writes down how a container ended, before anyone is told.
    pub fn exits_dir(&self, pod_id: &str) -> PathBuf {
        self.pod_dir(pod_id).join("exits")
    }

    pub fn shim_sockets(&self) -> PathBuf {
        self.config.state.join("s")
    }

    /// Where a shim started for the pod listens: `<state>/s/<first 16 digits>`.
    pub fn shim_socket(&self, pod_id: &str) -> PathBuf {
        self.shim_sockets().join(&pod_id[..16])
    }

    /// The handler's full name: an empty one means the default. Refuses names that the configuration does not have.
    pub fn handler<'a>(&'a self, asked: &'a str) -> Result<&'a str, Error> {
        let name = match asked {
            "" => self.config.runtime.default_handler.as_str(),
            name => name,
        };
        if !self.config.runtime.handlers.contains_key(name) {
            return Err(Error::InvalidArgument(format!(
                "runtime handler {} is not in this node's configuration ([runtime.handlers] has {})",
                berth_spec::quoted(name),
                self.config
                    .runtime
                    .handlers
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        Ok(name)
    }

    /// What the configuration says of a handler.
    pub fn handler_config(&self, handler: &str) -> &Handler {
        let handlers = &self.config.runtime.handlers;
        handlers.get(handler).unwrap_or(&UNKNOWN)
    }

    /// The binary of the pod's own shim: as configured, else beside berthd, else by PATH.
    pub fn shim_binary(&self, handler: &str) -> PathBuf {
        let configured = self.handler_config(handler);
        if configured.is_own() && configured.shim.has_root() {
            return configured.shim.clone();
        }
        std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(|dir| dir.join(OWN)))
            .filter(|path| path.exists())
            .unwrap_or_else(|| Path::new(OWN).to_owned())
    }
}
