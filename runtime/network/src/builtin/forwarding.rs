//! The host as the pods' router.
//!
//! A packet is forwarded where the link that it came in through allows it. With `masquerade` on, that is the bridge, which is ours, and the host's
//! links to the world, which are not: those with a default route, or where there is none, all that lead anywhere. Their switches
//! (`net.ipv4.conf.<link>.forwarding`; for IPv6 `force_forwarding`, Linux 6.17) are turned on where they are off, which is said in the log and
//! written down in the ledger before, and turned off again when the bridge goes. `net.ipv4.ip_forward` itself, which would make a router of every link, is
//! never touched. An older kernel has no such switch for IPv6: there `net.ipv6.conf.all.forwarding` is for the operator to set, since it
//! makes the host deaf to the router that it may have its own address from.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use berth_state::Object;
use ipnet::IpNet;

use super::Inner;
use crate::{
    Error, LEDGER_OWNER,
    link::{Link, Route},
    netlink::Socket,
};

/// The switch of a link, and the one above it that makes it needless.
fn switch(ipv6: bool, link: &str) -> (String, &'static str) {
    match ipv6 {
        false => (
            format!("/proc/sys/net/ipv4/conf/{link}/forwarding"),
            "/proc/sys/net/ipv4/ip_forward",
        ),
        true => (
            format!("/proc/sys/net/ipv6/conf/{link}/force_forwarding"),
            "/proc/sys/net/ipv6/conf/all/forwarding",
        ),
    }
}

fn is_on(path: impl AsRef<Path>) -> io::Result<bool> {
    Ok(fs::read_to_string(path)?.trim() != "0")
}

fn set(path: impl AsRef<Path>, value: &str) -> Result<(), Error> {
    let path = path.as_ref();
    fs::write(path, value).map_err(|source| Error::Sysctl {
        path: path.display().to_string(),
        source,
    })
}

impl Inner {
    /// What is to be turned on is written down, then come the table and the switches.
    pub(super) fn route_for_pods(&self, host: &mut Socket, routes: &[Route]) -> Result<(), Error> {
        if self.config.masquerade {
            for path in self.to_switch(host, routes)? {
                self.intend(LEDGER_OWNER, &Object::Sysctl(path))?;
            }
        }
        {
            let _turn = self.table_turn();
            self.replace_table()?;
        }
        berth_failpoint::site!("network.table.made").map_err(self.netlink("make the rules of"))?;
        for path in self.switched()? {
            // The link may be gone since.
            if matches!(is_on(&path), Ok(false)) {
                tracing::info!(
                    path = %path.display(),
                    "turning on: pods reach the world through this link (off again when the bridge goes; [network] masquerade = false leaves it alone)"
                );
                set(&path, "1")?;
            }
        }
        let bridge = &self.config.bridge;
        // Our own link's, which go with it. From a port of 127.0.0.1 packets leave through the bridge with a loopback address; the guard in the
        // table keeps others' out.
        set(format!("/proc/sys/net/ipv4/conf/{bridge}/forwarding"), "1")?;
        set(
            format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"),
            "1",
        )?;
        if self.config.subnet_v6.is_some() {
            self.route_ipv6(bridge)?;
        }
        Ok(())
    }

    fn route_ipv6(&self, bridge: &str) -> Result<(), Error> {
        let (path, all) = switch(true, bridge);
        match set(&path, "1") {
            Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                if !is_on(all).unwrap_or(false) {
                    tracing::warn!(
                        "pods have no IPv6 beyond this host, since this kernel can forward it for all links only: set net.ipv6.conf.all.forwarding=1 (and accept_ra=2 for links with an address from a router), or take Linux 6.17"
                    );
                }
                Ok(())
            }
            result => result,
        }
    }

    /// The switches that we turned on, or were about to.
    fn switched(&self) -> Result<Vec<PathBuf>, Error> {
        let objects = self.outstanding(LEDGER_OWNER)?.into_iter();
        Ok(objects
            .filter_map(|object| match object {
                Object::Sysctl(path) => Some(path),
                _ => None,
            })
            .collect())
    }

    /// Whether a way to the world has come up since the rules were made.
    pub(super) fn has_new_uplink(
        &self,
        host: &mut Socket,
        routes: &[Route],
    ) -> Result<bool, Error> {
        Ok(self.config.masquerade && !self.to_switch(host, routes)?.is_empty())
    }

    /// The switches of links to the world that are off.
    fn to_switch(&self, host: &mut Socket, routes: &[Route]) -> Result<Vec<PathBuf>, Error> {
        let links = Link::all(host).map_err(self.netlink("list the host's links for"))?;
        let mut found = Vec::new();
        for ipv6 in [false, true] {
            if ipv6 && self.config.subnet_v6.is_none() {
                continue;
            }
            let (_, all) = switch(ipv6, "all");
            if is_on(all).unwrap_or(false) {
                continue;
            }
            for link in uplinks(routes, ipv6) {
                let Some(link) = links.iter().find(|l| l.index == link) else {
                    continue;
                };
                let ours = link.name == self.config.bridge || link.name == "lo";
                let (path, _) = switch(ipv6, &link.name);
                if !ours && matches!(is_on(&path), Ok(false)) {
                    found.push(path.into());
                }
            }
        }
        Ok(found)
    }

    /// Turns off what we turned on, but where somebody has made a router of the whole host meanwhile and may count on it.
    pub(super) fn route_no_more(&self) -> Result<(), Error> {
        for path in self.switched()? {
            let ipv6 = path.starts_with("/proc/sys/net/ipv6");
            let (_, all) = switch(ipv6, "all");
            if matches!(is_on(&path), Ok(true)) && !is_on(all).unwrap_or(false) {
                tracing::info!(path = %path.display(), "turning off, as it was before the first pod");
                set(&path, "0")?;
            }
            self.strike(LEDGER_OWNER, &Object::Sysctl(path))?;
        }
        Ok(())
    }
}

/// The links with a default route; where there is none, all that lead to other hosts.
fn uplinks(routes: &[Route], ipv6: bool) -> BTreeSet<u32> {
    let main: Vec<&Route> = routes
        .iter()
        .filter(|route| {
            // Every link has a route to its own wire's link-local addresses, the pods' too.
            let link_local =
                matches!(route.destination, IpNet::V6(net) if net.addr().is_unicast_link_local());
            route.main_unicast && !link_local && route.destination.addr().is_ipv6() == ipv6
        })
        .collect();
    let default: BTreeSet<u32> = main
        .iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .filter_map(|route| route.link)
        .collect();
    match default.is_empty() {
        false => default,
        true => main.iter().filter_map(|route| route.link).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_world_is_the_default_route_or_else_every_route() {
        let route = |destination: &str, link, main_unicast| Route {
            destination: destination.parse().unwrap(),
            link: Some(link),
            main_unicast,
        };
        let mut routes = vec![
            route("127.0.0.1/32", 1, false),
            route("10.0.0.0/24", 2, true),
            route("10.1.0.0/24", 3, true),
            route("fd00::/64", 4, true),
            route("fe80::/64", 5, true),
        ];
        assert_eq!(uplinks(&routes, false), BTreeSet::from([2, 3]));
        assert_eq!(uplinks(&routes, true), BTreeSet::from([4]));
        routes.push(route("0.0.0.0/0", 2, true));
        assert_eq!(uplinks(&routes, false), BTreeSet::from([2]));
        assert_eq!(uplinks(&routes, true), BTreeSet::from([4]));
    }
}
