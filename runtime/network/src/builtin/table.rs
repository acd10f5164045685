//! Our tables of nf_tables, two a bridge: `inet berth-<bridge>` for packets, and `bridge berth-<bridge>` for frames (see [`super::spoofing`]).
//!
//! ```text
//! guard        prerouting   what comes from or to 127/8 and not through lo: dropped
//! prerouting   nat          to an address of the host: host_ports
//! output       nat          to an address of the host: host_ports
//! host_ports                the maps: to the pod's address and port
//! postrouting  nat          pods' traffic that leaves; what comes back to pods through a host port
//! ```
//!
//! A host port is an element of a map, so a pod that comes or goes changes no rule. The bridge's entry in the ledger stands for the tables as
//! well: they are made after the one and removed before the other.
//!
//! # Order
//! NAT chains of other programs at the usual priorities (kube-proxy's) come before ours: a host port never takes a service's node port.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ipnet::IpNet;
use nix::libc;

use super::{
    host_port::Target,
    nfnetlink::{Message, Refusal, Socket},
    nftables::{
        self as nft, Comparison, Element, Field, Header, Hook, Meta, NFPROTO_BRIDGE, NFPROTO_INET,
        NFPROTO_IPV4, NFPROTO_IPV6, Register, Rule, Tracked, Verdict,
    },
    spoofing,
};
use crate::{Error, Protocol};

/// Before connection tracking (NF_IP_PRI_CONNTRACK -200), where the addresses are those of the wire.
const RAW_PRIORITY: i32 = -300;
/// After NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC: see "Order".
const DNAT_PRIORITY: i32 = -100 + 10;
const SNAT_PRIORITY: i32 = 100 + 10;

/// A set is what it was listed as this often, with such pauses.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(10);
const HOST_PORTS: &str = "host_ports";
/// IFNAMSIZ
const LINK_NAME_BYTES: usize = 16;
/// IPS_DST_NAT: the connection's destination was translated.
const STATUS_DNAT: u32 = 1 << 5;
/// RTN_LOCAL: an address of the host.
const LOCAL: u32 = libc::RTN_LOCAL as u32;

/// The facts of one family.
#[derive(Debug, Clone, Copy)]
struct Family {
    number: u8,
    ports: &'static str,
    ports_at: &'static str,
    address: Field,
    source_offset: u32,
    destination_offset: u32,
    original_destination: Tracked,
}

const IPV4: Family = Family {
    number: NFPROTO_IPV4,
    ports: "host_ports_v4",
    ports_at: "host_ports_at_v4",
    address: Field::Address4,
    source_offset: 12,
    destination_offset: 16,
    original_destination: Tracked::Address4,
};
const IPV6: Family = Family {
    number: NFPROTO_IPV6,
    ports: "host_ports_v6",
    ports_at: "host_ports_at_v6",
    address: Field::Address6,
    source_offset: 8,
    destination_offset: 24,
    original_destination: Tracked::Address6,
};

fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => IPV4,
        IpAddr::V6(_) => IPV6,
    }
}

/// As the kernel compares it.
pub fn link_name(name: &str) -> Vec<u8> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(LINK_NAME_BYTES, 0);
    padded
}

#[derive(Debug)]
pub struct Table {
    name: String,
    bridge: String,
    /// The pods' ranges.
    subnets: Vec<IpNet>,
    masquerade: bool,
    /// The kernel can't look into frames (CONFIG_NF_TABLES_BRIDGE), which was said in the log.
    no_frames: AtomicBool,
    /// Kept open: a socket that is closed waits until the kernel has freed what was deleted (nft_rcv_nl_event), which takes milliseconds.
    socket: Mutex<Option<Socket>>,
}

impl Table {
    pub fn new(bridge: &str, subnets: Vec<IpNet>, masquerade: bool) -> Self {
        Self {
            name: format!("berth-{bridge}"),
            bridge: bridge.to_owned(),
            subnets,
            masquerade,
            no_frames: AtomicBool::new(false),
            socket: Mutex::default(),
        }
    }

    fn failed(&self) -> impl Fn(Refusal) -> Error {
        |refusal| Error::Nftables {
            what: refusal.what,
            table: self.name.clone(),
            source: refusal.source,
        }
    }

    fn io(&self, what: &'static str) -> impl Fn(std::io::Error) -> Error {
        move |source| self.failed()(Refusal { what, source })
    }

    /// On an error the socket is a new one next time: answers may be left in this one.
    fn with_socket<T>(
        &self,
        act: impl FnOnce(&mut Socket) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut held = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut socket = match held.take() {
            Some(socket) => socket,
            None => Socket::open().map_err(self.io("open a netlink socket for"))?,
        };
        let result = act(&mut socket)?;
        *held = Some(socket);
        Ok(result)
    }

    /// Both tables, whole, in one transaction, whatever was there under their name.
    pub fn replace(
        &self,
        targets: &[(String, Target)],
        ports: &[spoofing::Entry],
    ) -> Result<(), Error> {
        let name = &self.name;
        let why = format!("pods on {}", self.bridge);
        // Deleting what is not there would fail; adding what is there does not.
        let anew = || {
            vec![
                nft::add_table(name, &why),
                nft::delete_table(name),
                nft::add_table(name, &why),
            ]
        };
        let mut messages = anew();
        messages.extend(self.structure());
        messages.extend(self.rules());
        for (pod_id, target) in targets {
            messages.push(self.add_target(pod_id, target));
        }
        let mut with_frames = messages.clone();
        with_frames.extend(anew().into_iter().map(Message::for_frames));
        with_frames.extend(spoofing::structure(name));
        with_frames.extend(spoofing::rules(name));
        with_frames.extend(ports.iter().map(|entry| self.add_port(entry)));
        if self.no_frames() {
            return self.transact(&messages);
        }
        match self.transact(&with_frames) {
            // There is no such family, or no such kind of chain in it.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT)
                ) =>
            {
                self.transact(&messages)?;
                tracing::warn!(
                    %error,
                    "this kernel can't look into a bridge's frames (CONFIG_NF_TABLES_BRIDGE): a pod with NET_RAW can send under another's address"
                );
                self.no_frames.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    fn no_frames(&self) -> bool {
        self.no_frames.load(Ordering::Relaxed)
    }

    /// Removes the tables; ones that are gone are no error.
    pub fn remove(&self) -> Result<(), Error> {
        let mut messages = vec![
            nft::add_table(&self.name, ""),
            nft::delete_table(&self.name),
        ];
        if !self.no_frames() {
            let of_frames: Vec<_> = messages.iter().cloned().map(Message::for_frames).collect();
            messages.extend(of_frames);
        }
        self.transact(&messages)
    }

    /// Adds a pod's host ports, and what its port of the bridge may send.
    pub fn add(
        &self,
        pod_id: &str,
        targets: &[Target],
        ports: &[spoofing::Entry],
    ) -> Result<(), Error> {
        let mut messages: Vec<_> = targets.iter().map(|t| self.add_target(pod_id, t)).collect();
        if !self.no_frames() {
            messages.extend(ports.iter().map(|entry| self.add_port(entry)));
        }
        self.transact(&messages)
    }

    /// Removes what of these is there.
    pub fn remove_elements(
        &self,
        targets: &[Target],
        ports: &[spoofing::Entry],
    ) -> Result<(), Error> {
        let mut elements: Vec<_> = targets.iter().map(element).collect();
        let mut ports = match self.no_frames() {
            true => Vec::new(),
            false => ports.to_vec(),
        };
        let removal = |elements: &[spoofing::Entry], ports: &[spoofing::Entry]| -> Vec<Message> {
            let delete =
                |entry: &spoofing::Entry| nft::delete_element(&self.name, entry.0, &entry.1);
            let of_frames = ports.iter().map(delete).map(Message::for_frames);
            elements.iter().map(delete).chain(of_frames).collect()
        };
        match self.transact(&removal(&elements, &ports)) {
            // All or none: without those that a daemon died before it added, or that a firewall flushed.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let mut there = Vec::new();
                for (set, _) in self.maps() {
                    let found = self.elements(NFPROTO_INET, set)?.unwrap_or_default();
                    there.extend(found.into_iter().map(|element| (set, element)));
                }
                elements.retain(|element| there.contains(element));
                there.clear();
                if !ports.is_empty() {
                    for (set, _) in spoofing::sets() {
                        let found = self.elements(NFPROTO_BRIDGE, set)?.unwrap_or_default();
                        there.extend(found.into_iter().map(|element| (set, element)));
                    }
                }
                ports.retain(|entry| there.contains(entry));
                self.transact(&removal(&elements, &ports))
            }
            result => result,
        }
    }

    fn transact(&self, messages: &[Message]) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        self.with_socket(|socket| socket.transact(messages).map_err(self.failed()))
    }

    fn add_target(&self, pod_id: &str, target: &Target) -> Message {
        let (set, element) = element(target);
        nft::add_element(&self.name, set, &element, &format!("pod {pod_id}"))
    }

    /// The link's name tells whose it is.
    fn add_port(&self, (set, element): &spoofing::Entry) -> Message {
        nft::add_element(&self.name, set, element, "").for_frames()
    }

    /// Whether the kernel's tables are those that [`Table::replace`] would make.
    pub fn is_whole(
        &self,
        targets: &[(String, Target)],
        ports: &[spoofing::Entry],
    ) -> Result<bool, Error> {
        let targets: Vec<_> = targets.iter().map(|(_, target)| element(target)).collect();
        let maps = self.maps().map(|(set, _)| set);
        if !self.has(NFPROTO_INET, self.rules().len(), &maps, &targets)? {
            return Ok(false);
        }
        let rules = spoofing::rules(&self.name).len();
        let sets = spoofing::sets().map(|(set, _)| set);
        Ok(self.no_frames() || self.has(NFPROTO_BRIDGE, rules, &sets, ports)?)
    }

    /// Whether our table of this family has so many rules, and these elements in these sets.
    fn has(
        &self,
        family: u8,
        rules: usize,
        sets: &[&'static str],
        elements: &[spoofing::Entry],
    ) -> Result<bool, Error> {
        let found = std::cell::Cell::new(0);
        let listed = self.with_socket(|socket| {
            Ok(socket.dump(
                &nft::list_rules(&self.name).of_family(family),
                || found.set(0),
                |rule| found.set(found.get() + usize::from(nft::is_rule_of(&self.name, rule))),
            ))
        })?;
        match listed {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
            Err(error) => return Err(self.io("list rules")(error)),
            Ok(()) if found.get() != rules => return Ok(false),
            Ok(()) => {}
        }
        for set in sets {
            let expected: BTreeSet<_> = elements
                .iter()
                .filter(|(name, _)| name == set)
                .map(|(_, element)| element.clone())
                .collect();
            if !self.has_elements(family, set, &expected)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether these are the elements of the set.
    fn has_elements(
        &self,
        family: u8,
        set: &str,
        expected: &BTreeSet<Element>,
    ) -> Result<bool, Error> {
        // A hash table that the kernel is making larger is listed with some of its elements twice, or not at all.
        for _ in 0..LOOKS {
            let found = self.elements(family, set)?;
            if found.map(BTreeSet::from_iter).as_ref() == Some(expected) {
                return Ok(true);
            }
            thread::sleep(PAUSE);
        }
        Ok(false)
    }

    /// `None` where the table or the set is gone.
    fn elements(&self, family: u8, set: &str) -> Result<Option<Vec<Element>>, Error> {
        let found = std::cell::RefCell::new(Vec::new());
        let listed = self.with_socket(|socket| {
            Ok(socket.dump(
                &nft::list_elements(&self.name, set).of_family(family),
                || found.borrow_mut().clear(),
                |attributes| found.borrow_mut().extend(nft::elements(attributes)),
            ))
        })?;
        match listed {
            Ok(()) => Ok(Some(found.into_inner())),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.io("list elements")(error)),
        }
    }

    /// The maps of both families, each with its key's fields.
    fn maps(&self) -> [(&'static str, Vec<Field>); 4] {
        let any = vec![Field::Protocol, Field::Port];
        let at = |address| vec![address, Field::Protocol, Field::Port];
        [
            (IPV4.ports, any.clone()),
            (IPV4.ports_at, at(IPV4.address)),
            (IPV6.ports, any),
            (IPV6.ports_at, at(IPV6.address)),
        ]
    }

    fn structure(&self) -> Vec<Message> {
        let name = &self.name;
        let mut messages = vec![
            nft::add_base_chain(name, "guard", "filter", Hook::PreRouting, RAW_PRIORITY),
            nft::add_base_chain(name, "prerouting", "nat", Hook::PreRouting, DNAT_PRIORITY),
            nft::add_base_chain(name, "output", "nat", Hook::LocalOut, DNAT_PRIORITY),
            nft::add_base_chain(name, "postrouting", "nat", Hook::PostRouting, SNAT_PRIORITY),
            nft::add_chain(name, HOST_PORTS),
        ];
        let mut id = 0;
        for (set, key) in self.maps() {
            let address = match set == IPV4.ports || set == IPV4.ports_at {
                true => Field::Address4,
                false => Field::Address6,
            };
            id += 1;
            messages.push(nft::add_set(name, set, &key, &[address, Field::Port], id));
        }
        messages
    }

    fn rules(&self) -> Vec<Message> {
        let name = &self.name;
        let mut rules = Vec::new();
        // CVE-2020-8558: with route_localnet, which host ports on 127.0.0.1 need, the kernel no longer drops these itself. (SEC-NET-03)
        let loopback: IpNet = IpNet::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0).into(), 8);
        for offset in [IPV4.destination_offset, IPV4.source_offset] {
            rules.push(
                link(Rule::new(), Meta::InterfaceIn, Comparison::Different, "lo")
                    .of(IPV4)
                    .within(IPV4, offset, Comparison::Equal, loopback)
                    .verdict(Verdict::Drop)
                    .add_to(name, "guard"),
            );
        }
        // There is no route_localnet for IPv6: refused is better than never answered.
        rules.push(
            Rule::new()
                .of(IPV6)
                .within(
                    IPV6,
                    IPV6.destination_offset,
                    Comparison::Equal,
                    IpNet::new_assert(std::net::Ipv6Addr::LOCALHOST.into(), 128),
                )
                .verdict(Verdict::Return)
                .add_to(name, "output"),
        );
        // Only what is for the host itself: other pods' and the world's ports of the same number are not ours to take (SEC-NET-06).
        for chain in ["prerouting", "output"] {
            rules.push(
                Rule::new()
                    .load_destination_kind(Register(0))
                    .compare(Register(0), Comparison::Equal, &LOCAL.to_ne_bytes())
                    .verdict(Verdict::Jump(HOST_PORTS))
                    .add_to(name, chain),
            );
        }
        for subnet in &self.subnets {
            let family = family_of(subnet.addr());
            let port = Register(family.address.bytes() / 4);
            let dnat = |rule: Rule| {
                rule.dnat(family.number, Register(0), port)
                    .add_to(name, HOST_PORTS)
            };
            rules.push(dnat(Rule::new().of(family).for_port_at(family)));
            rules.push(dnat(Rule::new().of(family).for_port(family)));
            // A pod that was led back to a pod: the answer goes to the host first, which alone can translate it back; on the bridge it would
            // go straight to the asker, from an address that it never asked. For host ports only: what a service's proxy translates is its own.
            let back = || {
                link(
                    Rule::new(),
                    Meta::InterfaceOut,
                    Comparison::Equal,
                    &self.bridge,
                )
                .of(family)
                .within(family, family.source_offset, Comparison::Equal, *subnet)
                .translated()
            };
            rules.push(
                back()
                    .asked_for_port_at(family)
                    .masquerade()
                    .comment("pods that asked a host port with a host IP")
                    .add_to(name, "postrouting"),
            );
            rules.push(
                back()
                    .asked_for_port(family)
                    .masquerade()
                    .comment("pods that asked a host port")
                    .add_to(name, "postrouting"),
            );
            if subnet.addr().is_ipv4() {
                rules.push(
                    link(
                        Rule::new(),
                        Meta::InterfaceOut,
                        Comparison::Equal,
                        &self.bridge,
                    )
                    .of(IPV4)
                    .within(IPV4, IPV4.source_offset, Comparison::Equal, loopback)
                    .masquerade()
                    .add_to(name, "postrouting"),
                );
            }
            if self.masquerade {
                rules.push(
                    link(
                        Rule::new(),
                        Meta::InterfaceOut,
                        Comparison::Different,
                        &self.bridge,
                    )
                    .of(family)
                    .within(family, family.source_offset, Comparison::Equal, *subnet)
                    .within(
                        family,
                        family.destination_offset,
                        Comparison::Different,
                        *subnet,
                    )
                    .masquerade()
                    .add_to(name, "postrouting"),
                );
            }
        }
        rules
    }
}

fn link(rule: Rule, side: Meta, how: Comparison, name: &str) -> Rule {
    rule.load_meta(side, Register(0))
        .compare(Register(0), how, &link_name(name))
}

/// Phrases of our rules.
impl Rule {
    fn of(self, family: Family) -> Self {
        self.load_meta(Meta::Family, Register(0)).compare(
            Register(0),
            Comparison::Equal,
            &[family.number],
        )
    }

    fn within(self, family: Family, offset: u32, how: Comparison, net: IpNet) -> Self {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let length = family.address.bytes();
        self.load_payload(Header::Network, offset, length, Register(0))
            .mask(Register(0), &octets(net.netmask()))
            .compare(Register(0), how, &octets(net.network()))
    }

    fn translated(self) -> Self {
        self.load_tracked(Tracked::Status, Register(0))
            .mask(Register(0), &STATUS_DNAT.to_ne_bytes())
            .compare(Register(0), Comparison::Different, &0u32.to_ne_bytes())
    }

    /// The packet's protocol and port are of a host port on every address; its pod's address and port are loaded.
    fn for_port(self, family: Family) -> Self {
        self.load_meta(Meta::Protocol, Register(0))
            .load_payload(Header::Transport, 2, 2, Register(1))
            .look_up(family.ports, Register(0), Register(0))
    }

    fn for_port_at(self, family: Family) -> Self {
        let after = family.address.bytes() / 4;
        self.load_payload(
            Header::Network,
            family.destination_offset,
            family.address.bytes(),
            Register(0),
        )
        .load_meta(Meta::Protocol, Register(after))
        .load_payload(Header::Transport, 2, 2, Register(after + 1))
        .look_up(family.ports_at, Register(0), Register(0))
    }

    /// As [`Rule::for_port`], of the packet that began the connection.
    fn asked_for_port(self, family: Family) -> Self {
        self.load_meta(Meta::Protocol, Register(0))
            .load_tracked(Tracked::Port, Register(1))
            .look_up(family.ports, Register(0), Register(0))
    }

    fn asked_for_port_at(self, family: Family) -> Self {
        let after = family.address.bytes() / 4;
        self.load_tracked(family.original_destination, Register(0))
            .load_meta(Meta::Protocol, Register(after))
            .load_tracked(Tracked::Port, Register(after + 1))
            .look_up(family.ports_at, Register(0), Register(0))
    }
}

/// The map that a host port belongs into, and what it is there.
fn element(target: &Target) -> (&'static str, Element) {
    let forward = &target.forward;
    let family = family_of(forward.host.ip());
    let mut key = Vec::new();
    let set = match forward.host.ip() {
        ip if ip.is_unspecified() => family.ports,
        IpAddr::V4(ip) => {
            key.extend(ip.octets());
            family.ports_at
        }
        IpAddr::V6(ip) => {
            key.extend(ip.octets());
            family.ports_at
        }
    };
    key.extend([protocol_number(forward.protocol), 0, 0, 0]);
    key.extend(port_bytes(forward.host.port()));
    let to = SocketAddr::new(target.address, forward.container_port);
    let mut value = match to.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    value.extend(port_bytes(to.port()));
    (set, Element { key, value })
}

pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
        Protocol::Sctp => libc::IPPROTO_SCTP as u8,
    }
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
