//! A pod into the network and out of it.
//!
//! ```text
//!   netns: intended → pinned → lease: intended → made → link: intended → made (in the bridge) → addressed, up
//! ```
//!
//! Each step is in the ledger before it is taken; detach is the ledger read backwards, whatever of it is really there.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use berth_state::Object;
use nix::libc;

use crate::{
    AttachRequest, Attachment, Error, INTERFACE, Timing,
    builtin::{
        Inner,
        bridge::Bridge,
        conntrack,
        host_port::{self, Forward, Target},
        pool::Member,
    },
    link::{self, Link, Mac, Veth},
    netlink::{Socket, is_there},
    netns::{self, Home, Made},
};

/// Index of lo in every namespace (LOOPBACK_IFINDEX).
pub(super) const LO: u32 = 1;

/// A pod's namespace on the way to it.
enum Namespace {
    /// Of the pool.
    Ready(Member),
    New(Made),
}

impl Inner {
    pub fn attach(
        self: &Arc<Self>,
        request: &AttachRequest,
        given: Option<File>,
    ) -> Result<(Attachment, Timing), Error> {
        let (pod_id, mappings) = (request.pod_id.as_str(), &request.port_mappings);
        self.take_over()?;
        // Of the same pod's last time: its link's name is taken until then.
        self.wait_until_left(Some(pod_id));
        let home = Home::remember()?;
        let mut host = Socket::open().map_err(|source| Error::Netlink {
            what: "open a netlink socket for",
            link: pod_id.to_owned(),
            source,
        })?;
        let left = self.network_objects(pod_id)?;
        if !left.is_empty() {
            if let Some(attachment) = self.attached(&home, &mut host, pod_id, &left)? {
                return Ok((attachment, Timing::default()));
            }
            tracing::info!(pod_id, "the pod's network is half made: making it anew");
            self.undo(pod_id)?;
        }
        let forwards = host_port::forwards(mappings, self.config.subnet_v6.is_some())?;
        host_port::check_listeners(&forwards)?;
        self.host_ports.reserve(pod_id, &forwards)?;
        let attaching = self.pool.attaching();
        let built = self.build(&home, &mut host, request, &forwards, given);
        drop(attaching);
        self.fill_pool();
        built.inspect_err(|error| {
            if let Err(undo) = self.undo(pod_id) {
                tracing::error!(pod_id, %error, %undo, "attaching failed and could not be undone; what is left is in the ledger");
            }
        })
    }

    fn build(
        &self,
        home: &Home,
        host: &mut Socket,
        request: &AttachRequest,
        forwards: &[Forward],
        given: Option<File>,
    ) -> Result<(Attachment, Timing), Error> {
        let start = Instant::now();
        let pod_id = request.pod_id.as_str();
        let path = self.config.netns_dir.join(pod_id);
        let bridge = self.ensure_bridge(host)?;
        self.intend(pod_id, &Object::Netns(path.clone()))?;
        let ready = match given {
            // Those of the pool belong to the node's user namespace.
            Some(_) => None,
            None => self.take_member(&bridge),
        };
        let namespace = match ready {
            Some(member) => {
                self.pin(&member, pod_id, &path)?;
                Namespace::Ready(member)
            }
            None => Namespace::New(self.make_netns(home, pod_id, &path, given)?),
        };
        let netns_made = Instant::now();

        let addresses = self.lease(pod_id, forwards)?;
        let host_link = match &namespace {
            Namespace::Ready(member) => member.link().to_owned(),
            Namespace::New(_) => host_link(pod_id),
        };
        self.intend(pod_id, &Object::Link(host_link.clone()))?;
        let (mut inside, eth0) = match namespace {
            Namespace::Ready(member) => self.adopt(host, member, pod_id, &addresses)?,
            Namespace::New(made) => self.furnish(host, made, pod_id, &bridge, &addresses)?,
        };
        let at = |what| {
            move |source| Error::Netlink {
                what,
                link: format!("{INTERFACE} of {pod_id}"),
                source,
            }
        };
        let mut changes = vec![link::up(LO), link::up(eth0)];
        for (address, subnet) in addresses.iter().zip(&self.subnets) {
            changes.push(link::add_address(eth0, *address, *subnet));
        }
        changes.extend(self.gateways().map(link::add_default_route));
        inside
            .socket
            .change(changes)
            .map_err(at("give address and route to"))?;
        berth_failpoint::site!("network.link.addressed").map_err(at("finish"))?;
        if let Some(bandwidth) = &request.bandwidth {
            self.shape(host, &host_link, &mut inside.socket, eth0, bandwidth)?;
        }
        self.open_ports(host, pod_id, &host_link, &addresses)?;

        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        let timing = Timing {
            netns_ms: ms(start, netns_made),
            network_ms: ms(netns_made, Instant::now()),
        };
        Ok((
            Attachment {
                netns: path,
                interface: INTERFACE.to_owned(),
                ips: addresses,
                host_link,
            },
            timing,
        ))
    }

    /// The pod's namespace with lo up: the one that it has, or a new one.
    pub fn ensure_bare_netns(&self, pod_id: &str, given: Option<File>) -> Result<PathBuf, Error> {
        let path = self.config.netns_dir.join(pod_id);
        let object = Object::Netns(path.clone());
        if self.outstanding(pod_id)?.contains(&object) {
            if netns::is_pinned(&path) {
                return Ok(path);
            }
            netns::unpin(&path)?;
        }
        self.intend(pod_id, &object)?;
        let home = Home::remember()?;
        let made = self.make_netns(&home, pod_id, &path, given);
        let made = made.and_then(|mut made| {
            made.socket
                .change(vec![link::up(LO)])
                .map_err(|source| Error::Netlink {
                    what: "bring up",
                    link: format!("lo of {pod_id}"),
                    source,
                })
        });
        match made {
            Ok(()) => Ok(path),
            Err(error) => {
                if let Err(undo) = netns::unpin(&path).and_then(|()| self.strike(pod_id, &object)) {
                    tracing::error!(pod_id, %error, %undo, "making a namespace failed and could not be undone; what is left is in the ledger");
                }
                Err(error)
            }
        }
    }

    /// The veth pair between a new namespace and the bridge; the pod's end is down still. Returns the namespace and its eth0.
    fn furnish(
        &self,
        host: &mut Socket,
        mut inside: Made,
        pod_id: &str,
        bridge: &Bridge,
        addresses: &[IpAddr],
    ) -> Result<(Made, u32), Error> {
        let host_link = host_link(pod_id);
        let mut veth = Veth {
            host_name: &host_link,
            host_mac: host_mac(pod_id),
            host_up: true,
            bridge: bridge.index,
            mtu: bridge.mtu,
            peer_name: INTERFACE,
            peer_mac: pod_mac(addresses),
            peer_netns: inside.file.as_raw_fd(),
        };
        self.make_veth(host, &mut veth, pod_id)?;
        let at = |what| {
            move |source| Error::Netlink {
                what,
                link: format!("{INTERFACE} of {pod_id}"),
                source,
            }
        };
        berth_failpoint::site!("network.link.made").map_err(at("make link"))?;
        // The bridge takes what comes in at its port; this one guards the moment in which the port is not yet one (SEC-NET-04).
        netns::sysctl_ipv6(&host_link, "accept_ra", "0")?;
        let eth0 = Link::find(&mut inside.socket, INTERFACE)
            .map_err(at("look for"))?
            .ok_or_else(|| at("look for")(io::Error::from_raw_os_error(libc::ENODEV)))?;
        Ok((inside, eth0.index))
    }

    fn pin(&self, member: &Member, pod_id: &str, path: &Path) -> Result<(), Error> {
        netns::pin(member.netns(), path)
            .inspect_err(|error| self.forget_foreign_pin(pod_id, path, error))
    }

    /// Not ours to remove: nothing in the ledger said that it is there.
    fn forget_foreign_pin(&self, pod_id: &str, path: &Path, error: &Error) {
        if matches!(error, Error::Netns { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        {
            let _ = self.strike(pod_id, &Object::Netns(path.to_owned()));
        }
    }

    fn make_netns(
        &self,
        home: &Home,
        pod_id: &str,
        path: &Path,
        given: Option<File>,
    ) -> Result<Made, Error> {
        berth_failpoint::site!("network.netns.intended").map_err(|source| Error::Netns {
            what: "make",
            path: path.to_owned(),
            source,
        })?;
        netns::make(home, path, given)
            .inspect_err(|error| self.forget_foreign_pin(pod_id, path, error))
    }

    fn make_veth(&self, host: &mut Socket, veth: &mut Veth<'_>, pod_id: &str) -> Result<(), Error> {
        let at = |source| Error::Netlink {
            what: "make link",
            link: veth.host_name.to_owned(),
            source,
        };
        berth_failpoint::site!("network.link.intended").map_err(at)?;
        let error = match veth.create(host) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if is_there(&error) {
            let _ = self.strike(pod_id, &Object::Link(veth.host_name.to_owned()));
            return Err(Error::ForeignLink {
                name: veth.host_name.to_owned(),
                what: "its name is the one of this pod's link".to_owned(),
            });
        }
        // The bridge was removed behind our back (or by the daemon's own stop): once more with a new one.
        if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) {
            self.bridge.forget();
            veth.bridge = self.ensure_bridge(host)?.index;
            return veth.create(host).map_err(|source| Error::Netlink {
                what: "make link",
                link: veth.host_name.to_owned(),
                source,
            });
        }
        Err(Error::Netlink {
            what: "make link",
            link: veth.host_name.to_owned(),
            source: error,
        })
    }

    /// The pod's attachment, where all of it is there.
    fn attached(
        &self,
        home: &Home,
        host: &mut Socket,
        pod_id: &str,
        objects: &[Object],
    ) -> Result<Option<Attachment>, Error> {
        let path = self.config.netns_dir.join(pod_id);
        let Some(host_link) = objects.iter().find_map(|object| match object {
            Object::Link(name) => Some(name.clone()),
            _ => None,
        }) else {
            return Ok(None);
        };
        let mut addresses: Vec<IpAddr> = objects
            .iter()
            .filter_map(|object| match object {
                Object::Lease(address) => Some(*address),
                _ => None,
            })
            .collect();
        addresses.sort();
        if addresses.len() != self.subnets.len() {
            return Ok(None);
        }
        if !objects.contains(&Object::Netns(path.clone())) || !netns::is_pinned(&path) {
            return Ok(None);
        }
        for (address, subnet) in addresses.iter().zip(&self.subnets) {
            if self.leases.owner(*address)?.as_deref() != Some(pod_id) || !subnet.contains(address)
            {
                return Ok(None);
            }
        }
        let bridge = self.ensure_bridge(host)?;
        let at = |what, link: &str| {
            let link = link.to_owned();
            move |source| Error::Netlink { what, link, source }
        };
        let whole = match Link::find(host, &host_link).map_err(at("look for", &host_link))? {
            Some(link) => {
                link.up && link.master == Some(bridge.index) && link.mac == host_mac(pod_id)
            }
            None => false,
        };
        if !whole {
            return Ok(None);
        }
        let mut inside = netns::socket_in(home, &path)?;
        let Some(link) = Link::find(&mut inside, INTERFACE).map_err(at("look for", INTERFACE))?
        else {
            return Ok(None);
        };
        let mut addressed = link.up;
        for address in &addresses {
            addressed = addressed
                && link::has_address(&mut inside, link.index, *address)
                    .map_err(at("list the addresses of", INTERFACE))?;
        }
        // The default routes are the last thing that attach makes, in one datagram with the rest.
        let routes = link::routes(&mut inside).map_err(at("list the routes of", INTERFACE))?;
        let routed = addresses.iter().all(|address| {
            routes.iter().any(|r| {
                r.main_unicast
                    && r.destination.prefix_len() == 0
                    && r.destination.addr().is_ipv4() == address.is_ipv4()
            })
        });
        if !addressed || !routed {
            return Ok(None);
        }
        Ok(Some(Attachment {
            netns: path,
            interface: INTERFACE.to_owned(),
            ips: addresses,
            host_link,
        }))
    }

    fn lease(&self, pod_id: &str, forwards: &[Forward]) -> Result<Vec<IpAddr>, Error> {
        loop {
            // Asked before, so that one that leaves meanwhile is not missed.
            let more = self.any_leaving();
            match self.leases.allocate(&self.ledger, pod_id, forwards) {
                Err(Error::Exhausted { .. }) if more => self.wait_until_left(None),
                result => return result,
            }
        }
    }

    /// Leads the pod's host ports to it, and lets it send as itself alone.
    fn open_ports(
        &self,
        host: &mut Socket,
        pod_id: &str,
        host_link: &str,
        addresses: &[IpAddr],
    ) -> Result<(), Error> {
        let _turn = self.table_turn();
        let targets = self.host_ports.bind(pod_id, addresses);
        let own = self.ports.add(host_link, addresses);
        if let Err(error) = self.table.add(pod_id, &targets, &own) {
            tracing::warn!(pod_id, %error, "making the rules of the bridge anew");
            self.replace_table()?;
        }
        if targets.is_empty() {
            return Ok(());
        }
        let at = |what| {
            move |source| Error::Netlink {
                what,
                link: pod_id.to_owned(),
                source,
            }
        };
        berth_failpoint::site!("network.ports.opened").map_err(at("open the host ports of"))?;
        let local = link::addresses(host).map_err(at("list the host's addresses for"))?;
        conntrack::forget(&targets, &local)
    }

    /// Takes the pod's host ports out of the rules. Returns where they led: flows that they began are to be forgotten.
    pub(super) fn close_ports(&self, pod_id: &str) -> Result<Vec<Target>, Error> {
        let _turn = self.table_turn();
        let targets = self.host_ports.unbind(pod_id);
        if targets.is_empty() {
            return Ok(targets);
        }
        let closed = self.table.remove_elements(&targets, &[]).and_then(|()| {
            berth_failpoint::site!("network.ports.closed").map_err(|source| Error::Netlink {
                what: "close the host ports of",
                link: pod_id.to_owned(),
                source,
            })
        });
        match closed {
            Ok(()) => Ok(targets),
            Err(error) => {
                let addresses: Vec<IpAddr> = targets.iter().map(|target| target.address).collect();
                self.host_ports.bind(pod_id, &addresses);
                Err(error)
            }
        }
    }

    pub(super) fn replace_table(&self) -> Result<(), Error> {
        self.table
            .replace(&self.host_ports.all(), &self.ports.all())
    }

    /// Takes what these links may send out of the rules.
    pub(super) fn forget_links<'a>(
        &self,
        links: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Error> {
        let _turn = self.table_turn();
        let of_links: Vec<_> = links
            .into_iter()
            .flat_map(|link| self.ports.remove(link))
            .collect();
        self.table.remove_elements(&[], &of_links)
    }

    /// Removes at once what there is of the pod.
    fn undo(&self, pod_id: &str) -> Result<(), Error> {
        // An address that a port still leads to must not be given to another pod.
        let targets = self.close_ports(pod_id)?;
        conntrack::forget(&targets, &[])?;
        let mut host = None;
        let mut first_error = None;
        for object in self.network_objects(pod_id)?.into_iter().rev() {
            // One that can't be removed does not keep the others; it stays in the ledger.
            if let Err(error) = self
                .remove(&mut host, pod_id, &object)
                .and_then(|()| self.strike(pod_id, &object))
            {
                tracing::warn!(pod_id, %error, "undoing");
                first_error.get_or_insert(error);
            }
        }
        self.host_ports.release(pod_id);
        first_error.map_or(Ok(()), Err)
    }

    fn remove(
        &self,
        host: &mut Option<Socket>,
        pod_id: &str,
        object: &Object,
    ) -> Result<(), Error> {
        match object {
            Object::Netns(path) => netns::unpin(path),
            Object::Lease(address) => self.leases.free(*address, pod_id),
            Object::Link(name) => {
                self.forget_links([name.as_str()])?;
                // Else the daemon died between writing the name down and finding that somebody else had it.
                self.remove_link(host, name, |link| link.mac == host_mac(pod_id))
            }
            _ => Ok(()),
        }
    }

    /// What the ledger has of the pod's network, in the order of making.
    pub(super) fn network_objects(&self, pod_id: &str) -> Result<Vec<Object>, Error> {
        let mut objects = self.outstanding(pod_id)?;
        objects.retain(|object| {
            matches!(
                object,
                Object::Netns(_) | Object::Lease(_) | Object::Link(_)
            )
        });
        Ok(objects)
    }

    pub fn outstanding(&self, owner: &str) -> Result<Vec<Object>, Error> {
        self.ledger
            .outstanding(owner)
            .map_err(|source| Error::Ledger {
                owner: owner.to_owned(),
                source,
            })
    }

    pub fn intend(&self, owner: &str, object: &Object) -> Result<(), Error> {
        self.ledger
            .intend(owner, object)
            .map_err(|source| Error::Ledger {
                owner: owner.to_owned(),
                source,
            })
    }

    pub fn strike(&self, owner: &str, object: &Object) -> Result<(), Error> {
        self.ledger
            .strike(owner, object)
            .map_err(|source| Error::Ledger {
                owner: owner.to_owned(),
                source,
            })
    }
}

/// Name of the host's end: 15 bytes, the most that a link's name has.
pub(super) fn host_link(pod_id: &str) -> String {
    format!("berth{}", &pod_id[..10])
}

/// MAC of the host's end, from digits of the id that its name does not have: together they tell that a link is this pod's.
pub(super) fn host_mac(pod_id: &str) -> Mac {
    let digits = u64::from_str_radix(&pod_id[10..20], 16)
        .unwrap_or_default()
        .to_be_bytes();
    [0x0e, digits[3], digits[4], digits[5], digits[6], digits[7]]
}

/// MAC of the pod's end, from its IPv4 address: neighbours that remember the address's last pod need not learn a new one.
pub(super) fn pod_mac(addresses: &[IpAddr]) -> Mac {
    let [a, b, c, d] = addresses
        .iter()
        .find_map(|address| match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        })
        .unwrap_or_default();
    [0x0a, 0xbe, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_marks_come_from_the_id_and_fit_the_kernel() {
        let pod_id = "0123456789abcdef".repeat(4);
        assert_eq!(host_link(&pod_id), "berth0123456789");
        assert_eq!(
            host_link(&pod_id).len(),
            crate::builtin::MAX_LINK_NAME_BYTES
        );
        assert_eq!(host_mac(&pod_id), [0x0e, 0xab, 0xcd, 0xef, 0x01, 0x23]);
        for mac in [host_mac(&pod_id), pod_mac(&[IpAddr::from([10, 88, 0, 2])])] {
            assert_eq!(mac[0] & 3, 2, "locally administered, unicast");
        }
    }

    #[test]
    fn ids_that_are_paths_are_refused_sec_cri_09() {
        for id in [
            "",
            "..",
            "a/b",
            &"A".repeat(64),
            &"g".repeat(64),
            &"a".repeat(63),
            &"a".repeat(65),
            &"x".repeat(1 << 20),
        ] {
            assert!(matches!(crate::check_pod_id(id), Err(Error::PodId { .. })));
        }
        crate::check_pod_id(&"0a".repeat(32)).unwrap();
    }
}
