//! What a caller asks of a pod's network: the same for the built-in bridge and for CNI.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A token bucket has room for what passes in this part of a second: a limit with a larger one limits nothing for its first seconds.
const BURSTS_A_SECOND: u64 = 10;
/// Smaller buckets than some packets of the largest size stop all traffic. Bits.
const MIN_BURST_BITS: u64 = 64 * 1024 * 8;
/// CNI's bandwidth plugin takes no more (32 bits of bytes, less one).
const MAX_BURST_BITS: u64 = (u32::MAX as u64 - 1) * 8;

/// A pod that is to be attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// 64 lower-case hex digits.
    pub pod_id: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    /// Those with a host port; a container's port alone needs nothing of the network.
    pub port_mappings: Vec<PortMapping>,
    /// `None`: as much as there is.
    pub bandwidth: Option<Bandwidth>,
    pub dns: Dns,
    /// Further names that a plugin may make known for the pod.
    pub aliases: Vec<String>,
    /// The pod's cgroup, relative to the root of each hierarchy.
    #[serde(default)]
    pub cgroup_path: Option<PathBuf>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A port of the host that leads to one of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    /// 1 to 65535
    pub container_port: u16,
    /// 1 to 65535
    pub host_port: u16,
    /// `None`: every address of the host, of both families.
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Limits of a pod's traffic, as its annotations `kubernetes.io/{ingress,egress}-bandwidth` ask. Seen from the pod. bits/s
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// bits/s to the pod
    pub ingress_bits: Option<u64>,
    /// bits/s from the pod
    pub egress_bits: Option<u64>,
}

impl Bandwidth {
    /// The token bucket of a limit. Bits.
    pub fn burst_bits(rate: u64) -> u64 {
        (rate / BURSTS_A_SECOND).clamp(MIN_BURST_BITS, MAX_BURST_BITS)
    }
}

/// The pod's resolver, as its `dns_config` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.searches.is_empty() && self.options.is_empty()
    }
}

impl Protocol {
    /// As CNI and nftables spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.host_port, self.protocol),
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}
