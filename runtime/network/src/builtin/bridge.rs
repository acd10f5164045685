//! The bridge: made with the first pod, removed when the daemon stops and none is left.

use std::{
    os::unix::ffi::OsStrExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_state::Object;
use ipnet::IpNet;

use crate::{
    Error, LEDGER_OWNER,
    builtin::Inner,
    link::{self, Link, Mac, Route},
    netlink::{Socket, is_there},
    netns,
};

/// MTU of Ethernet, where the host has no default route to ask.
const DEFAULT_MTU: u32 = 1500;
/// A VPN's trick for "everything" without touching the default route: two halves. As little a collision as that is.
const MAX_WHOLE_WORLD_PREFIX: u8 = 1;
/// 2000::/3 is all that is routed in the world.
const MAX_WHOLE_WORLD_PREFIX_V6: u8 = 3;

#[derive(Debug, Clone, Copy)]
pub struct Bridge {
    pub index: u32,
    pub mtu: u32,
}

/// The bridge, once it is known to be there. The lock also keeps two attaches from making it at once.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<Bridge>>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, Option<Bridge>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody removed the bridge: look again.
    pub fn forget(&self) {
        *self.lock() = None;
    }
}

impl Inner {
    fn bridge_object(&self) -> Object {
        Object::Link(self.config.bridge.clone())
    }

    /// Marks the bridge as this daemon's: two daemons that were given the same name would hand out the same addresses.
    pub(super) fn bridge_mac(&self) -> Mac {
        let mut hash = Fnv::default();
        hash.add(self.config.bridge.as_bytes());
        for subnet in &self.subnets {
            hash.add(subnet.to_string().as_bytes());
        }
        hash.add(self.config.lease_dir.as_os_str().as_bytes());
        hash.mac()
    }

    fn is_ours(&self, link: &Link) -> bool {
        link.kind == "bridge" && link.mac == self.bridge_mac()
    }

    pub(super) fn netlink(&self, what: &'static str) -> impl Fn(std::io::Error) -> Error {
        move |source| Error::Netlink {
            what,
            link: self.config.bridge.clone(),
            source,
        }
    }

    /// Whether the bridge is there, or could be made.
    pub fn check_bridge(&self) -> Result<(), Error> {
        let mut host = Socket::open().map_err(self.netlink("open a netlink socket for"))?;
        let found =
            Link::find(&mut host, &self.config.bridge).map_err(self.netlink("look for link"))?;
        if let Some(link) = &found
            && !self.is_ours(link)
            && !self.is_replaceable(&mut host, link)?
        {
            return Err(self.foreign(link));
        }
        let routes = link::routes(&mut host).map_err(self.netlink("list the host's routes for"))?;
        self.check_routes(&mut host, &routes, found.map(|link| link.index))
    }

    fn foreign(&self, link: &Link) -> Error {
        let what = match link.kind.as_str() {
            "" => "a physical or virtual interface".to_owned(),
            "bridge" => {
                "a bridge of another program, or of a daemon with another [network] configuration"
                    .to_owned()
            }
            kind => format!("a {kind} link"),
        };
        Error::ForeignLink {
            name: link.name.clone(),
            what,
        }
    }

    fn check_routes(
        &self,
        host: &mut Socket,
        routes: &[Route],
        bridge: Option<u32>,
    ) -> Result<(), Error> {
        let found = self
            .subnets
            .iter()
            .find_map(|subnet| Some((*subnet, colliding(routes, *subnet, bridge)?)));
        let Some((subnet, route)) = found else {
            return Ok(());
        };
        let links = Link::all(host).unwrap_or_default();
        let link = links
            .into_iter()
            .find(|link| Some(link.index) == route.link)
            .map(|link| link.name);
        Err(Error::SubnetTaken {
            subnet,
            route: route.destination,
            link,
        })
    }

    /// The bridge with its address, up.
    pub fn ensure_bridge(&self, host: &mut Socket) -> Result<Bridge, Error> {
        let mut known = self.bridge.lock();
        if let Some(bridge) = *known {
            return Ok(bridge);
        }
        let name = &self.config.bridge;
        let mut found = Link::find(host, name).map_err(self.netlink("look for link"))?;
        if let Some(link) = &found
            && !self.is_ours(link)
        {
            if !self.is_replaceable(host, link)? {
                return Err(self.foreign(link));
            }
            tracing::info!(
                bridge = name,
                "the configuration changed: making the bridge anew"
            );
            Link::delete(host, link.index).map_err(self.netlink("remove bridge"))?;
            found = None;
        }
        let routes = link::routes(host).map_err(self.netlink("list the host's routes for"))?;
        let bridge = match found {
            Some(link) => {
                self.intend(LEDGER_OWNER, &self.bridge_object())?;
                self.finish_bridge(host, link.index, link.mtu, &routes)?
            }
            None => self.make_bridge(host, &routes)?,
        };
        *known = Some(bridge);
        Ok(bridge)
    }

    /// Whether the bridge that is there is one of these ranges.
    pub fn has_made_the_bridge(&self) -> Result<bool, Error> {
        let mut host = Socket::open().map_err(self.netlink("open a netlink socket for"))?;
        let found =
            Link::find(&mut host, &self.config.bridge).map_err(self.netlink("look for link"))?;
        Ok(found.is_some_and(|link| self.is_ours(&link)))
    }

    /// A bridge that we made, by the ledger, under another configuration, and that has no pods.
    fn is_replaceable(&self, host: &mut Socket, link: &Link) -> Result<bool, Error> {
        let ledgered = self
            .outstanding(LEDGER_OWNER)?
            .contains(&self.bridge_object());
        Ok(ledgered && link.kind == "bridge" && !self.has_ports(host, link.index)?)
    }

    fn has_ports(&self, host: &mut Socket, index: u32) -> Result<bool, Error> {
        let links = Link::all(host).map_err(self.netlink("list the ports of"))?;
        Ok(links.iter().any(|link| link.master == Some(index)))
    }

    fn make_bridge(&self, host: &mut Socket, routes: &[Route]) -> Result<Bridge, Error> {
        let name = &self.config.bridge;
        self.check_routes(host, routes, None)?;
        let mtu = match self.config.mtu {
            Some(mtu) => mtu,
            None => default_mtu(host, routes).map_err(self.netlink("list the host's links for"))?,
        };
        self.intend(LEDGER_OWNER, &self.bridge_object())?;
        let made = (|| {
            berth_failpoint::site!("network.bridge.intended")
                .map_err(self.netlink("make bridge"))?;
            link::create_bridge(host, name, self.bridge_mac(), mtu)
                .map_err(self.netlink("make bridge"))?;
            berth_failpoint::site!("network.bridge.made").map_err(self.netlink("make bridge"))?;
            let link = Link::find(host, name).map_err(self.netlink("look for link"))?;
            let index = link
                .ok_or_else(|| self.netlink("look for link")(nix::Error::ENODEV.into()))?
                .index;
            self.finish_bridge(host, index, mtu, routes)
        })();
        if made.is_err() {
            // Best effort: it stays in the ledger where it can't be removed now.
            if let Err(error) = self.route_no_more().and_then(|()| self.table.remove()) {
                tracing::warn!(%error, "undoing the rules of the bridge");
                return made;
            }
            match Link::find(host, name) {
                Ok(Some(link)) if !self.is_ours(&link) => {
                    drop(self.strike(LEDGER_OWNER, &self.bridge_object()))
                }
                Ok(Some(link)) if Link::delete(host, link.index).is_err() => {}
                Ok(_) => drop(self.strike(LEDGER_OWNER, &self.bridge_object())),
                Err(_) => {}
            }
        }
        made
    }

    /// Gives the bridge its addresses and its rules, and brings it up; also one that a daemon left half made.
    fn finish_bridge(
        &self,
        host: &mut Socket,
        index: u32,
        mtu: u32,
        routes: &[Route],
    ) -> Result<Bridge, Error> {
        let name = &self.config.bridge;
        // SEC-NET-04: a pod must not become the host's router.
        netns::sysctl_ipv6(name, "accept_ra", "0")?;
        for (address, subnet) in self.gateways().zip(&self.subnets) {
            match host.change(vec![link::add_address(index, address, *subnet)]) {
                Err(error) if !is_there(&error) => {
                    return Err(Error::Address {
                        address,
                        link: name.clone(),
                        source: error,
                    });
                }
                _ => {}
            }
        }
        berth_failpoint::site!("network.bridge.addressed").map_err(self.netlink("make bridge"))?;
        self.route_for_pods(host, routes)?;
        host.change(vec![link::up_bridge(index)])
            .map_err(self.netlink("bring up"))?;
        Ok(Bridge { index, mtu })
    }

    /// Removes the bridge where it has no port. A pod that is being attached at this moment finds it gone and makes it anew.
    pub fn remove_bridge_if_unused(&self) -> Result<bool, Error> {
        self.take_over()?;
        self.close_pool()?;
        self.finish_departures()?;
        let mut known = self.bridge.lock();
        let object = self.bridge_object();
        if !self.outstanding(LEDGER_OWNER)?.contains(&object) {
            return Ok(true);
        }
        let mut host = Socket::open().map_err(self.netlink("open a netlink socket for"))?;
        if let Some(link) =
            Link::find(&mut host, &self.config.bridge).map_err(self.netlink("look for link"))?
            && (self.is_ours(&link) || self.is_replaceable(&mut host, &link)?)
        {
            if self.has_ports(&mut host, link.index)? {
                return Ok(false);
            }
            self.remove_rules()?;
            Link::delete(&mut host, link.index).map_err(self.netlink("remove bridge"))?;
        } else {
            self.remove_rules()?;
        }
        *known = None;
        berth_failpoint::site!("network.bridge.removed").map_err(self.netlink("remove bridge"))?;
        self.strike(LEDGER_OWNER, &object)?;
        Ok(true)
    }
}

impl Inner {
    /// Makes anew what is missing of the bridge's rules; `false` where nothing was. Where there is no bridge, there is nothing to do.
    pub fn reconcile(&self) -> Result<bool, Error> {
        self.take_over()?;
        self.finish_departures()?;
        if !self
            .outstanding(LEDGER_OWNER)?
            .contains(&self.bridge_object())
        {
            return Ok(false);
        }
        let mut host = Socket::open().map_err(self.netlink("open a netlink socket for"))?;
        let mut known = self.bridge.lock();
        let found =
            Link::find(&mut host, &self.config.bridge).map_err(self.netlink("look for link"))?;
        let Some(link) = found.filter(|link| self.is_ours(link)) else {
            *known = None;
            return Ok(false);
        };
        let whole = {
            let _turn = self.table_turn();
            self.table
                .is_whole(&self.host_ports.all(), &self.ports.all())?
        };
        let routes = link::routes(&mut host).map_err(self.netlink("list the host's routes for"))?;
        let new_uplink = self.has_new_uplink(&mut host, &routes)?;
        if whole && !new_uplink && known.is_some() && link.up {
            return Ok(false);
        }
        *known = Some(self.finish_bridge(&mut host, link.index, link.mtu, &routes)?);
        Ok(!whole || new_uplink)
    }

    fn remove_rules(&self) -> Result<(), Error> {
        self.route_no_more()?;
        self.table.remove()?;
        berth_failpoint::site!("network.table.removed").map_err(self.netlink("remove the rules of"))
    }
}

/// The first route whose destination and `subnet` have addresses in common, but for the default route and the bridge's own.
fn colliding(routes: &[Route], subnet: IpNet, bridge: Option<u32>) -> Option<Route> {
    let overlaps = |route: &&Route| {
        let to = route.destination;
        let whole_world = match to {
            IpNet::V4(_) => MAX_WHOLE_WORLD_PREFIX,
            IpNet::V6(_) => MAX_WHOLE_WORLD_PREFIX_V6,
        };
        to.prefix_len() > whole_world
            && (to.contains(&subnet) || subnet.contains(&to))
            && !(route.link.is_some() && route.link == bridge)
    };
    routes.iter().find(overlaps).copied()
}

/// The MTU of the link with the default route: a larger one would lose the pods' large packets beyond it.
fn default_mtu(host: &mut Socket, routes: &[Route]) -> std::io::Result<u32> {
    let Some(index) = routes
        .iter()
        .find(|route| {
            route.main_unicast && route.destination.prefix_len() == 0 && route.link.is_some()
        })
        .and_then(|route| route.link)
    else {
        return Ok(DEFAULT_MTU);
    };
    Ok(Link::all(host)?
        .iter()
        .find(|link| link.index == index)
        .map_or(DEFAULT_MTU, |link| link.mtu))
}

/// FNV-1a, 64 bits: the same in every build, as a mark in the kernel must be.
#[derive(Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// A locally administered unicast address.
    fn mac(&self) -> Mac {
        let b = self.0.to_be_bytes();
        [0x0e, b[0] ^ b[5], b[1] ^ b[6], b[2] ^ b[7], b[3], b[4]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_collides_with_what_shares_addresses_with_it_and_nothing_else() {
        let subnet = "10.88.0.0/16".parse().unwrap();
        let cases = [
            ("0.0.0.0/0", Some(2), false),
            ("0.0.0.0/1", Some(2), false),
            ("10.0.0.0/8", Some(2), true),
            ("10.88.0.0/16", Some(2), true),
            ("10.88.0.0/16", Some(7), false),
            ("10.88.255.255/32", Some(2), true),
            ("10.88.4.0/24", None, true),
            ("10.89.0.0/16", Some(2), false),
            ("127.0.0.0/8", Some(1), false),
            ("::/0", Some(2), false),
            ("fd00::/8", Some(2), false),
        ];
        for (destination, link, collides) in cases {
            let routes = [Route {
                destination: destination.parse().unwrap(),
                link,
                main_unicast: true,
            }];
            assert_eq!(
                colliding(&routes, subnet, Some(7)).is_some(),
                collides,
                "{destination} through {link:?}"
            );
        }
        let unreachable = [Route {
            destination: subnet,
            link: None,
            main_unicast: false,
        }];
        assert!(colliding(&unreachable, subnet, None).is_some());
    }

    #[test]
    fn marks_differ_by_each_part_and_are_local_unicast_addresses() {
        let mark = |parts: &[&str]| {
            let mut hash = Fnv::default();
            parts.iter().for_each(|part| hash.add(part.as_bytes()));
            hash.mac()
        };
        assert_ne!(mark(&["ab", "c"]), mark(&["a", "bc"]));
        assert_ne!(mark(&["a"]), mark(&["b"]));
        assert_eq!(mark(&["a"])[0] & 3, 2);
    }
}
