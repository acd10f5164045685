//! What of the controllers of nodes can be set, by upstream's flags.

use std::{net::IpAddr, time::Duration};

use berth_controllers::{NodeMonitor, Options, PodNetwork};
use berth_kubelet::duration;
use clap::Args;

use crate::error::Error;

#[derive(Debug, Args)]
pub struct Nodes {
    /// How often all nodes are looked at
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = some_time)]
    node_monitor_period: Duration,
    /// A node that shows no sign for longer, by lease or status, is called Unknown
    #[arg(long, value_name = "TIME", default_value = "50s", value_parser = some_time)]
    node_monitor_grace_period: Duration,
    /// … one that has never said how it does
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = some_time)]
    node_startup_grace_period: Duration,
    /// Nodes a second of a zone whose pods are evicted when they aren't ready
    #[arg(long, value_name = "RATE", default_value_t = 0.1, value_parser = rate)]
    node_eviction_rate: f64,
    /// … of a zone most of which isn't ready
    #[arg(long, value_name = "RATE", default_value_t = 0.01, value_parser = rate)]
    secondary_node_eviction_rate: f64,
    /// A zone of no more nodes than this is not evicted while most of it isn't ready
    #[arg(long, value_name = "N", default_value_t = 50)]
    large_cluster_size_threshold: usize,
    /// The share of nodes that aren't ready from which on it is most of the zone
    #[arg(long, value_name = "SHARE", default_value_t = 0.55, value_parser = rate)]
    unhealthy_zone_threshold: f64,
    /// Give each node a part of the pods' network (spec.podCIDR)
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    allocate_node_cidrs: bool,
    /// The pods' network; two of them, of both families, with a comma between
    #[arg(
        long,
        value_name = "NETWORK/PREFIX",
        default_value = "10.244.0.0/16",
        value_delimiter = ','
    )]
    cluster_cidr: Vec<ipnet::IpNet>,
    /// The mask of a node's part of an IPv4 network
    #[arg(
        long,
        value_name = "BITS",
        alias = "node-cidr-mask-size",
        default_value_t = 24
    )]
    node_cidr_mask_size_ipv4: u8,
    /// … of an IPv6 one
    #[arg(long, value_name = "BITS", default_value_t = 64)]
    node_cidr_mask_size_ipv6: u8,
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() {
        return Err("it has to be some time".into());
    }
    Ok(time)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if !rate.is_finite() || rate < 0.0 {
        return Err("it can't be less than 0".into());
    }
    Ok(rate)
}

impl Nodes {
    pub fn options(&self) -> Result<Options, Error> {
        Ok(Options {
            node_monitor: self.monitor(),
            pod_networks: self.networks()?,
            ..Options::default()
        })
    }

    fn monitor(&self) -> NodeMonitor {
        NodeMonitor {
            period: self.node_monitor_period,
            grace_period: self.node_monitor_grace_period,
            startup_grace_period: self.node_startup_grace_period,
            eviction_rate: self.node_eviction_rate,
            secondary_eviction_rate: self.secondary_node_eviction_rate,
            large_cluster_size_threshold: self.large_cluster_size_threshold,
            unhealthy_zone_threshold: self.unhealthy_zone_threshold,
        }
    }

    fn networks(&self) -> Result<Vec<PodNetwork>, Error> {
        if !self.allocate_node_cidrs {
            return Ok(Vec::new());
        }
        let failed = |why: String| Error::Invalid {
            what: "--cluster-cidr can't be used".into(),
            why,
        };
        let is_v4 = |network: &ipnet::IpNet| matches!(network.addr(), IpAddr::V4(_));
        let v4 = self
            .cluster_cidr
            .iter()
            .filter(|network| is_v4(network))
            .count();
        if v4 > 1 || self.cluster_cidr.len() - v4 > 1 {
            let why = "a node has one part of each family: two networks of one can't be divided";
            return Err(failed(why.into()));
        }
        let part = |network: &ipnet::IpNet| {
            let bits = if is_v4(network) {
                self.node_cidr_mask_size_ipv4
            } else {
                self.node_cidr_mask_size_ipv6
            };
            PodNetwork::new(*network, bits).map_err(failed)
        };
        self.cluster_cidr.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        nodes: Nodes,
    }

    fn parse(arguments: &[&str]) -> Option<Nodes> {
        let all = ["controllers"].iter().chain(arguments);
        Line::try_parse_from(all).ok().map(|line| line.nodes)
    }

    #[test]
    fn flags_are_upstreams_and_mean_what_theirs_mean() {
        let nodes = parse(&[]).expect("none is needed");
        let monitor = format!("{:?}", nodes.monitor());
        assert_eq!(
            monitor,
            format!("{:?}", NodeMonitor::default()),
            "the same defaults"
        );
        assert!(nodes.networks().expect("none").is_empty());
        for (arguments, networks) in [
            (&["--allocate-node-cidrs"][..], Some(1)),
            (
                &[
                    "--allocate-node-cidrs=true",
                    "--cluster-cidr=10.0.0.0/16,fd00::/48",
                ],
                Some(2),
            ),
            (
                &[
                    "--allocate-node-cidrs",
                    "--cluster-cidr=10.0.0.0/16,10.1.0.0/16",
                ],
                None,
            ),
            (
                &[
                    "--allocate-node-cidrs",
                    "--cluster-cidr=10.0.0.0/16",
                    "--node-cidr-mask-size=12",
                ],
                None,
            ),
        ] {
            let nodes = parse(arguments).expect("it is well formed");
            assert_eq!(
                nodes.networks().ok().map(|all| all.len()),
                networks,
                "{arguments:?}"
            );
        }
        for refused in [
            "--node-monitor-grace-period=0s",
            "--node-eviction-rate=-1",
            "--node-eviction-rate=NaN",
            "--cluster-cidr=ten",
        ] {
            assert!(parse(&[refused]).is_none(), "{refused}");
        }
    }
}
