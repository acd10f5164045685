//! Links, their addresses and routes, as the messages that make them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        BridgeBooleanOptionFlags, BridgeBooleanOptions, InfoBridge, InfoBridgePort, InfoData,
        InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags,
        LinkInfo, LinkMessage, Stats64,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};

use crate::netlink::{Socket, is_gone};

pub type Mac = [u8; 6];

/// What we need to know of a link.
#[derive(Debug, Clone)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: String,
    pub mac: Vec<u8>,
    pub master: Option<u32>,
    pub mtu: u32,
    pub up: bool,
}

impl Link {
    /// The link of this name, `None` where there is none.
    pub fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Self>> {
        let mut request = LinkMessage::default();
        request.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        match socket.get(RouteNetlinkMessage::GetLink(request)) {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Self::from(message))),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel's answer is not a link",
            )),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn all(socket: &mut Socket) -> io::Result<Vec<Self>> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let links = socket.dump(RouteNetlinkMessage::GetLink(request))?;
        Ok(links
            .into_iter()
            .filter_map(|m| {
                if let RouteNetlinkMessage::NewLink(m) = m {
                    Some(Self::from(m))
                } else {
                    None
                }
            })
            .collect())
    }

    pub fn delete(socket: &mut Socket, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match socket.change(vec![(RouteNetlinkMessage::DelLink(message), 0)]) {
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            mac: Vec::new(),
            master: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// A veth pair.
#[derive(Debug)]
pub struct Veth<'a> {
    pub host_name: &'a str,
    pub host_mac: Mac,
    pub host_up: bool,
    pub bridge: u32,
    pub mtu: u32,
    pub peer_name: &'a str,
    pub peer_mac: Mac,
    pub peer_netns: RawFd,
}

impl Veth<'_> {
    /// The pair in one message: the host's end up (or down, for one that is yet to get its name) and a port of the bridge, the peer born in its namespace, so that its name can't
    /// collide with one of the host's links and nothing is ever half there. The peer is down: the kernel can't bring it up before the
    /// pair is whole (ENOTCONN of veth_open).
    pub fn create(&self, socket: &mut Socket) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.peer_name.to_owned()),
            LinkAttribute::Address(self.peer_mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(self.peer_netns),
        ];
        let mut host = LinkMessage::default();
        if self.host_up {
            set_up(&mut host);
        }
        host.attributes = vec![
            LinkAttribute::IfName(self.host_name.to_owned()),
            LinkAttribute::Address(self.host_mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Controller(self.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        socket.change(vec![
            (
                RouteNetlinkMessage::NewLink(host),
                NLM_F_CREATE | NLM_F_EXCL,
            ),
            hairpin(self.host_name),
        ])
    }
}

/// Lets the bridge send a frame back through the port it came from: with bridge-nf-call-iptables, a pod that reaches itself by a service or a
/// host port is translated on the bridge.
fn hairpin(port: &str) -> (RouteNetlinkMessage, u16) {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(port.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
                true,
            )])),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(message), 0)
}

/// A bridge, down. A MAC of its own: without one it takes the lowest of its ports', and each pod that comes or goes would change
/// the gateway's under all others.
pub fn create_bridge(socket: &mut Socket, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
    let mut bridge = LinkMessage::default();
    bridge.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    socket.change(vec![(
        RouteNetlinkMessage::NewLink(bridge),
        NLM_F_CREATE | NLM_F_EXCL,
    )])
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

/// Sets a link's MAC.
pub fn set_mac(index: u32, mac: Mac) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Address(mac.to_vec())];
    RouteNetlinkMessage::SetLink(message)
}

/// Brings a link up.
pub fn up(index: u32) -> (RouteNetlinkMessage, u16) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    set_up(&mut message);
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Brings a bridge up, which is to learn nothing from frames for bridges (01:80:c2:00:00:0x; Linux 5.0): no rule sees those.
pub fn up_bridge(index: u32) -> (RouteNetlinkMessage, u16) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    set_up(&mut message);
    let no_learning = BridgeBooleanOptions {
        value: BridgeBooleanOptionFlags::NoLinkLocalLearn,
        mask: BridgeBooleanOptionFlags::NoLinkLocalLearn,
    };
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MultiBoolOpt(
            no_learning,
        )])),
    ])];
    (RouteNetlinkMessage::NewLink(message), 0)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Adds an address with its connected route. IPv6: without asking the neighbours for duplicates, since leases are what makes it unique.
pub fn add_address(index: u32, address: IpAddr, subnet: IpNet) -> (RouteNetlinkMessage, u16) {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = subnet.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    match subnet {
        IpNet::V4(subnet) => message
            .attributes
            .push(AddressAttribute::Broadcast(subnet.broadcast())),
        IpNet::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    (
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// The default route of the namespace, in the gateway's family.
pub fn add_default_route(gateway: IpAddr) -> (RouteNetlinkMessage, u16) {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(match gateway {
        IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
        IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
    })];
    (
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Whether the link has this address.
pub fn has_address(socket: &mut Socket, index: u32, address: IpAddr) -> io::Result<bool> {
    let mut request = AddressMessage::default();
    request.header.family = family(address);
    let addresses = socket.dump(RouteNetlinkMessage::GetAddress(request))?;
    Ok(addresses.iter().any(|message| {
        matches!(message, RouteNetlinkMessage::NewAddress(message)
            if message.header.index == index
                && message.attributes.iter().any(|a| matches!(a,
                    AddressAttribute::Local(ip) | AddressAttribute::Address(ip) if *ip == address)))
    }))
}

/// The addresses of all links.
pub fn addresses(socket: &mut Socket) -> io::Result<Vec<IpAddr>> {
    let addresses = socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(addresses
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                return None;
            };
            let of = |local: bool| {
                message.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            of(true).or_else(|| of(false))
        })
        .collect())
}

/// A route of any table: where to, and through which link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub link: Option<u32>,
    /// In the main table, to hosts (not to addresses of this one, nor to nowhere).
    pub main_unicast: bool,
}

/// Every route of both families.
pub fn routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (family, unspecified) in [
        (AddressFamily::Inet, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (AddressFamily::Inet6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    ] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in socket.dump(RouteNetlinkMessage::GetRoute(request))? {
            // Without IPv6, the kernel lists IPv4's again.
            let RouteNetlinkMessage::NewRoute(message) = message else {
                continue;
            };
            if message.header.address_family != family {
                continue;
            }
            let (mut address, mut link) = (unspecified, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = (*ip).into(),
                    RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = (*ip).into(),
                    RouteAttribute::Oif(index) => link = Some(*index),
                    _ => {}
                }
            }
            let main_unicast = message.header.table == RouteHeader::RT_TABLE_MAIN
                && message.header.kind == RouteType::Unicast;
            if let Ok(destination) = IpNet::new(address, message.header.destination_prefix_length) {
                routes.push(Route {
                    destination,
                    link,
                    main_unicast,
                });
            }
        }
    }
    Ok(routes)
}

/// The counters of all links of the socket's namespace, with their names.
pub fn counters(socket: &mut Socket) -> io::Result<Vec<(String, Stats64)>> {
    let links = socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let counters = links.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewLink(message) = message else {
            return None;
        };
        let (mut name, mut stats) = (None, None);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(link) => name = Some(link),
                LinkAttribute::Stats64(counters) => stats = Some(counters),
                _ => {}
            }
        }
        name.zip(stats)
    });
    Ok(counters.collect())
}
