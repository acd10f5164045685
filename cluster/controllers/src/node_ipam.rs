//! Each node gets a part of the pods' network of its own (`spec.podCIDR`).
//!
//! Invariant: one worker, and it sees what it wrote: no part is given to two nodes. What nodes have already, however they came to it, is nobody else's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use berth_recorder::Level;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::json;

use crate::{
    Cache, Context, Error, Key, Merge, Queue,
    controller::{Controller, Next},
};

const COMPONENT: &str = "cidrAllocator";
/// A network is divided into no more parts than 2 to this.
const MOST_BITS: u8 = 16;
/// While all are taken; the deletion of a node is looked at sooner.
const AGAIN: Duration = Duration::from_secs(30);

/// A network whose parts are for nodes: `10.244.0.0/16`, of which each gets a /24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodNetwork {
    all: IpNet,
    part: u8,
}

impl PodNetwork {
    /// # Errors
    /// Nodes can't get such parts of it.
    pub fn new(all: IpNet, part: u8) -> Result<Self, String> {
        let all = all.trunc();
        let (from, most) = (all.prefix_len(), all.max_prefix_len());
        if part < from || part > most {
            return Err(format!(
                "{all} can't be divided into parts with a mask of {part} bits: {from} to {most} would do"
            ));
        }
        if part - from > MOST_BITS {
            return Err(format!(
                "{all} has too many parts with a mask of {part} bits: no more than 2^{MOST_BITS} are kept"
            ));
        }
        Ok(Self { all, part })
    }

    fn count(&self) -> u32 {
        1 << (self.part - self.all.prefix_len())
    }

    fn shift(&self) -> u32 {
        u32::from(self.all.max_prefix_len() - self.part)
    }

    fn part(&self, at: u32) -> Option<IpNet> {
        let offset = u128::from(at) << self.shift();
        let ip = match self.all.network() {
            IpAddr::V4(ip) => {
                let sum = u128::from(u32::from(ip)) + offset;
                IpAddr::V4(Ipv4Addr::from(u32::try_from(sum).ok()?))
            }
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) + offset)),
        };
        IpNet::new(ip, self.part).ok()
    }

    /// The parts that have something of `taken`.
    fn touched(&self, taken: IpNet) -> Option<std::ops::RangeInclusive<u32>> {
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        if taken.contains(&self.all) {
            return Some(0..=self.count() - 1);
        }
        if !self.all.contains(&taken) {
            return None;
        }
        let base = number(self.all.network());
        let at = |ip: IpAddr| u32::try_from((number(ip) - base) >> self.shift()).ok();
        Some(at(taken.network())?..=at(taken.broadcast())?)
    }

    /// The first free part from `start` on, and round.
    fn free(&self, taken: &[IpNet], start: u32) -> Option<u32> {
        let touched: BTreeSet<u32> = taken
            .iter()
            .filter_map(|net| self.touched(*net))
            .flatten()
            .collect();
        let count = self.count();
        (0..count)
            .map(|step| (start % count + step) % count)
            .find(|at| !touched.contains(at))
    }
}

impl FromStr for PodNetwork {
    type Err = String;

    /// A network, with parts of upstream's size: /24, /64 of an IPv6 one.
    fn from_str(text: &str) -> Result<Self, String> {
        let all: IpNet = text
            .parse()
            .map_err(|_| format!("{text:?} is no network like 10.244.0.0/16"))?;
        let part = match all {
            IpNet::V4(_) => 24,
            IpNet::V6(_) => 64,
        };
        Self::new(all, part)
    }
}

pub(crate) struct NodeIpam {
    context: Arc<Context>,
    nodes: Cache<Node>,
    /// Where the next one is looked for: what was given back a moment ago isn't given away at once.
    next: Vec<AtomicU32>,
}

fn has_part(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| {
        spec.pod_cidr
            .as_deref()
            .is_some_and(|cidr| !cidr.is_empty())
            || spec
                .pod_cidrs
                .as_ref()
                .is_some_and(|cidrs| !cidrs.is_empty())
    })
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam-controller";
    const ACCOUNT: &'static str = "node-controller";
    const WORKERS: usize = 1;

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let nodes = context.cache::<Node>();
        let all = nodes.clone();
        if !context.options().pod_networks.is_empty() {
            nodes.on_change(move |_, new| match new {
                Some(node) if !has_part(node) => queue.add(Key::of(&**node)),
                Some(_) => {}
                // There is room again.
                None => {
                    for node in all.all().iter().filter(|node| !has_part(node)) {
                        queue.add(Key::of(&**node));
                    }
                }
            });
        }
        let next = context
            .options()
            .pod_networks
            .iter()
            .map(|_| AtomicU32::new(0))
            .collect();
        Self {
            context,
            nodes,
            next,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(node) = self.nodes.get(key).filter(|node| !has_part(node)) else {
            return Ok(Next::Settled);
        };
        let taken: Vec<IpNet> = self
            .nodes
            .all()
            .iter()
            .filter_map(|node| node.spec.as_ref())
            .flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr))
            .filter_map(|cidr| cidr.parse().ok())
            .collect();
        let (mut parts, mut given) = (Vec::new(), Vec::new());
        for (network, next) in self.context.options().pod_networks.iter().zip(&self.next) {
            let at = network.free(&taken, next.load(Ordering::Relaxed));
            let Some((at, part)) = at.and_then(|at| Some((at, network.part(at)?))) else {
                let message = format!("Node {key} status is now: CIDRNotAvailable");
                self.context.event(
                    &*node,
                    COMPONENT,
                    Level::Normal,
                    "CIDRNotAvailable",
                    message,
                );
                tracing::warn!(node = %key, network = %network.all, "no part of the pods' network is left for a node");
                return Ok(Next::After(AGAIN));
            };
            parts.push(part.to_string());
            given.push(at + 1);
        }
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": parts.first(), "podCIDRs": parts},
        });
        match self.context.patch::<Node>(key, &patch, Merge::Json).await {
            Err(error) if !error.is_not_found() => {
                if !error.is_conflict() {
                    let message = format!(
                        "Node {} status is now: CIDRAssignmentFailed",
                        node.name_any()
                    );
                    self.context.event(
                        &*node,
                        COMPONENT,
                        Level::Normal,
                        "CIDRAssignmentFailed",
                        message,
                    );
                }
                Err(error)
            }
            _ => {
                for (next, given) in self.next.iter().zip(given) {
                    next.store(given, Ordering::Relaxed);
                }
                Ok(Next::Settled)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str, part: u8) -> PodNetwork {
        PodNetwork::new(text.parse().expect("a network"), part).expect("parts")
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    }

    #[test]
    fn a_network_is_divided_as_far_as_it_goes() {
        for (text, part, fits) in [
            ("10.244.0.0/16", 24, true),
            ("10.244.0.0/16", 16, true),
            ("10.244.0.0/16", 15, false),
            ("10.0.0.0/8", 25, false),
            ("10.244.0.0/16", 33, false),
            ("fd00::/48", 64, true),
            ("fd00::/40", 64, false),
        ] {
            let made = PodNetwork::new(text.parse().expect("a network"), part);
            assert_eq!(made.is_ok(), fits, "{text} {part}: {made:?}");
        }
        assert_eq!("10.244.3.0/16".parse(), Ok(network("10.244.0.0/16", 24)));
        assert!("10.244.0.0".parse::<PodNetwork>().is_err());
        assert_eq!(
            network("fd00::/48", 64).part(5),
            Some("fd00:0:0:5::/64".parse().expect("a network"))
        );
        assert_eq!(
            network("255.255.0.0/16", 24).part(255),
            Some("255.255.255.0/24".parse().expect("a network"))
        );
    }

    #[test]
    fn what_is_taken_in_whatever_size_is_not_given() {
        let small = network("10.0.0.0/22", 24);
        for (taken, start, wanted) in [
            (nets(&[]), 0, Some(0)),
            (nets(&["10.0.0.0/24"]), 0, Some(1)),
            (nets(&["10.0.0.0/24"]), 3, Some(3)),
            (nets(&["10.0.3.0/24"]), 3, Some(0)),
            (nets(&["10.0.0.0/23"]), 0, Some(2)),
            (nets(&["10.0.0.128/25", "10.0.1.1/32"]), 0, Some(2)),
            (nets(&["10.0.0.0/8"]), 0, None),
            (nets(&["192.168.0.0/16", "fd00::/64"]), 0, Some(0)),
        ] {
            assert_eq!(small.free(&taken, start), wanted, "{taken:?} {start}");
        }
    }

    proptest! {
        #[test]
        fn no_two_have_the_same_part(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..200)) {
            let network = network("10.0.0.0/20", 24);
            let mut taken: Vec<IpNet> = Vec::new();
            let mut next = 0;
            for (gives, which) in steps {
                if gives {
                    let found = network.free(&taken, next);
                    prop_assert_eq!(found.is_none(), taken.len() == 16);
                    if let Some(at) = found {
                        next = at + 1;
                        let part = network.part(at).expect("it is in the network");
                        prop_assert!(!taken.contains(&part) && network.all.contains(&part));
                        taken.push(part);
                    }
                } else if !taken.is_empty() {
                    taken.swap_remove(which.index(taken.len()));
                }
            }
        }
    }
}
