//! The tables of the configuration, and what each key is when it is missing.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::keys::{
    absolute, absolute_all, absolute_or_empty, cgroup_parent, endpoint, from_0_to_1_000_000,
    from_0_to_64, from_1_to_64, from_1_to_100_000, from_100_ms_to_1_h, link_name, metrics_listen,
    mtu, subnet, subnet_v6,
};
use crate::handler::Handler;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    #[serde(deserialize_with = "absolute")]
    pub hosts_dir: PathBuf,
    #[serde(deserialize_with = "from_1_to_64")]
    pub max_parallel_layers: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    #[serde(deserialize_with = "absolute")]
    pub cni_conf_dir: PathBuf,
    #[serde(deserialize_with = "absolute_all")]
    pub cni_bin_dirs: Vec<PathBuf>,
    #[serde(deserialize_with = "from_1_to_64")]
    pub cni_max_conf_num: usize,
    #[serde(deserialize_with = "from_100_ms_to_1_h")]
    pub cni_timeout_ms: usize,
    /// Empty: none.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub cni_conf_template: PathBuf,
    /// The built-in network takes pods where there is no CNI configuration.
    pub builtin: bool,
    #[serde(deserialize_with = "link_name")]
    pub bridge: String,
    #[serde(deserialize_with = "subnet")]
    pub subnet: Ipv4Net,
    #[serde(with = "subnet_v6")]
    pub subnet_v6: Option<Ipv6Net>,
    pub masquerade: bool,
    #[serde(deserialize_with = "mtu")]
    pub mtu: u32,
    #[serde(deserialize_with = "from_0_to_64")]
    pub namespace_pool: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// A path for cgroupfs, a slice for systemd. Empty: the driver's own.
    #[serde(deserialize_with = "cgroup_parent")]
    pub parent: PathBuf,
    pub driver: CgroupDriver,
}

/// As it is asked for; which it is then, [`crate::cgroup_driver`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where the machine is its, else cgroupfs.
    Auto,
    Cgroupfs,
    Systemd,
}

impl<'de> Deserialize<'de> for CgroupDriver {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(Self::Auto),
            "cgroupfs" => Ok(Self::Cgroupfs),
            "systemd" => Ok(Self::Systemd),
            other => Err(de::Error::custom(format!(
                "key `driver`: {other:?} is no cgroup driver, allowed are \"auto\", \"cgroupfs\" and \"systemd\""
            ))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Name of the handler that an empty `runtime_handler` means.
    pub default_handler: String,
    /// Where devices of the Container Device Interface are described; the later directory goes before.
    #[serde(deserialize_with = "absolute_all")]
    pub cdi_spec_dirs: Vec<PathBuf>,
    pub handlers: BTreeMap<String, Handler>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// CRIU's program. Empty: `criu` on PATH.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub criu: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nri {
    pub disable: bool,
    /// Empty: none.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub socket: PathBuf,
    #[serde(deserialize_with = "absolute")]
    pub plugin_dir: PathBuf,
    #[serde(deserialize_with = "absolute")]
    pub plugin_config_dir: PathBuf,
    #[serde(deserialize_with = "from_100_ms_to_1_h")]
    pub registration_timeout_ms: usize,
    #[serde(deserialize_with = "from_100_ms_to_1_h")]
    pub request_timeout_ms: usize,
    pub default_validator: berth_nri::Validator,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    pub listen: SocketAddr,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub idle_timeout_s: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// `None`, written as an empty string: not served.
    #[serde(with = "metrics_listen")]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// Empty: nothing is traced.
    #[serde(deserialize_with = "endpoint")]
    pub endpoint: String,
    #[serde(deserialize_with = "from_0_to_1_000_000")]
    pub sampling_rate_per_million: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub pods: usize,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub containers_per_pod: usize,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub exec_output_mib: usize,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub shutdown_grace_ms: usize,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            hosts_dir: "/etc/berth/certs.d".into(),
            max_parallel_layers: 4,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_max_conf_num: 1,
            cni_timeout_ms: 60_000,
            cni_conf_template: PathBuf::new(),
            builtin: true,
            bridge: "berth0".into(),
            subnet: Ipv4Net::new_assert([10, 88, 0, 0].into(), 16),
            subnet_v6: None,
            masquerade: true,
            mtu: 0,
            namespace_pool: 0,
        }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            parent: PathBuf::new(),
            driver: CgroupDriver::Auto,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            default_handler: "berth".into(),
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            handlers: BTreeMap::from([("berth".into(), Handler::default())]),
        }
    }
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            disable: false,
            socket: "/var/run/nri/nri.sock".into(),
            plugin_dir: "/opt/nri/plugins".into(),
            plugin_config_dir: "/etc/nri/conf.d".into(),
            registration_timeout_ms: 5000,
            request_timeout_ms: 2000,
            default_validator: berth_nri::Validator::default(),
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            idle_timeout_s: berth_stream::IDLE_LIMIT.as_secs() as usize,
        }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sampling_rate_per_million: 1_000_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pods: 10_000,
            containers_per_pod: 256,
            exec_output_mib: 16,
            shutdown_grace_ms: 2000,
        }
    }
}
