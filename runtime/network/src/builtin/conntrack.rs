//! Tracked connections that must be forgotten: a translation is decided with a flow's first packet and kept while packets come, and a client of
//! UDP never begins anew. So flows to a host port that was just given stay untranslated, and those of a pod that is gone lead to whoever gets
//! its address, unless they are deleted.
//!
//! The kernel's table has a quarter of a million buckets on an ordinary machine. To list its flows, filtered or not, takes the lock of each of them,
//! 10 to 15 ms in all; to delete those that match a filter passes empty ones over, 0.6 ms. Kernels that can't delete by a filter are asked
//! for a list.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::libc;

use super::{
    host_port::Target,
    nfnetlink::{Attributes, Message, NFNL_SUBSYS_CTNETLINK, Parsed, Socket},
    table::protocol_number,
};
use crate::{Error, Protocol};

/// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Which parts of a tuple a filter compares.
const F_IP_SRC: u32 = 1 << 0;
const F_IP_DST: u32 = 1 << 1;
const F_PROTO_NUM: u32 = 1 << 3;
const F_PROTO_DST_PORT: u32 = 1 << 5;
/// More deletions by a filter take longer than one list.
const MAX_DELETIONS: usize = 16;

/// One direction of a flow.
#[derive(Debug, PartialEq, Eq)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    destination_port: Option<u16>,
}

impl Tuple {
    fn parse(tuple: &Parsed<'_>) -> Self {
        let (ip, proto) = (tuple.nested(CTA_TUPLE_IP), tuple.nested(CTA_TUPLE_PROTO));
        let address = |v4, v6| {
            let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.bytes(v4)?).ok()?).into());
            let v6 = || Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.bytes(v6)?).ok()?).into());
            v4().or_else(v6)
        };
        Self {
            source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC),
            destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST),
            protocol: proto.bytes(CTA_PROTO_NUM).and_then(|b| b.first().copied()),
            destination_port: proto.number16(CTA_PROTO_DST_PORT),
        }
    }
}

/// Forgets the UDP flows to these host ports: those that lead to the pod, and those that lead to `local`, the host's own addresses. (Flows to the
/// same port of others, such as pods' questions to a name server of the world, stay.)
pub fn forget(targets: &[Target], local: &[IpAddr]) -> Result<(), Error> {
    let mut socket = None;
    for target in targets {
        let host = target.forward.host;
        if target.forward.protocol != Protocol::Udp {
            continue;
        }
        let failed = |what| {
            move |source| Error::Conntrack {
                what,
                of: format!("host port {host}/udp"),
                source,
            }
        };
        let socket = match &mut socket {
            Some(socket) => socket,
            none => none.insert(Socket::open().map_err(failed("open a netlink socket for"))?),
        };
        // Where the flows lead that are to be forgotten.
        let local: Vec<IpAddr> = local
            .iter()
            .copied()
            .filter(|ip| ip.is_ipv4() == host.is_ipv4())
            .filter(|ip| host.ip().is_unspecified() || host.ip() == *ip)
            .collect();
        if local.len() >= MAX_DELETIONS
            || !forget_matching(socket, target, &local).map_err(failed("delete"))?
        {
            forget_listed(socket, target, &local).map_err(failed("list and delete"))?;
        }
    }
    Ok(())
}

/// `false` where the kernel can't.
fn forget_matching(socket: &mut Socket, target: &Target, local: &[IpAddr]) -> io::Result<bool> {
    let host = target.forward.host;
    let to_pod = to_port(host, IPCTNL_MSG_CT_DELETE, None, Some(target.address));
    let to_host = local
        .iter()
        .map(|ip| to_port(host, IPCTNL_MSG_CT_DELETE, Some(*ip), None));
    for request in std::iter::once(to_pod).chain(to_host) {
        match socket.request(&request) {
            Ok(()) => {}
            // To those that know no filter it is the tuple of one flow, which is cut short, or which nobody has.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn forget_listed(socket: &mut Socket, target: &Target, local: &[IpAddr]) -> io::Result<()> {
    let host = target.forward.host;
    let request = to_port(host, IPCTNL_MSG_CT_GET, None, None);
    let found = std::cell::RefCell::new(Vec::new());
    socket.dump(
        &request,
        || found.borrow_mut().clear(),
        |attributes| {
            // Kernels before 5.8 know no filter and show all.
            let flow = Parsed::new(attributes);
            let asked = Tuple::parse(&flow.nested(CTA_TUPLE_ORIG));
            let answers = Tuple::parse(&flow.nested(CTA_TUPLE_REPLY));
            if asked.protocol == Some(protocol_number(Protocol::Udp))
                && asked.destination_port == Some(host.port())
                && (answers.source == Some(target.address)
                    || asked.destination.is_some_and(|to| local.contains(&to)))
                && let Some(delete) = deletion(&flow, request.family)
            {
                found.borrow_mut().push(delete);
            }
        },
    )?;
    for delete in found.into_inner() {
        match socket.request(&delete) {
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            result => result?,
        }
    }
    Ok(())
}

/// What to do with the flows whose first packet went to this port: to `at`, and answered by `by`, where these are given.
fn to_port(
    host: std::net::SocketAddr,
    kind: u8,
    at: Option<IpAddr>,
    by: Option<IpAddr>,
) -> Message {
    let udp = || Attributes::new().bytes(CTA_PROTO_NUM, &[protocol_number(Protocol::Udp)]);
    let ip = |v4, v6, address| match address {
        None => Attributes::new(),
        Some(IpAddr::V4(ip)) => Attributes::new().bytes(v4, &ip.octets()),
        Some(IpAddr::V6(ip)) => Attributes::new().bytes(v6, &ip.octets()),
    };
    let asked = udp().bytes(CTA_PROTO_DST_PORT, &host.port().to_be_bytes());
    let mut attributes = Attributes::new().nested(
        CTA_TUPLE_ORIG,
        Attributes::new()
            .nested(CTA_TUPLE_IP, ip(CTA_IP_V4_DST, CTA_IP_V6_DST, at))
            .nested(CTA_TUPLE_PROTO, asked),
    );
    if by.is_some() {
        attributes = attributes.nested(
            CTA_TUPLE_REPLY,
            Attributes::new()
                .nested(CTA_TUPLE_IP, ip(CTA_IP_V4_SRC, CTA_IP_V6_SRC, by))
                .nested(CTA_TUPLE_PROTO, udp()),
        );
    }
    let flag = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    let orig = F_PROTO_NUM | F_PROTO_DST_PORT | flag(at.is_some(), F_IP_DST);
    // These, unlike all other numbers of netfilter, are in the machine's byte order.
    let filter = Attributes::new()
        .bytes(CTA_FILTER_ORIG_FLAGS, &orig.to_ne_bytes())
        .bytes(
            CTA_FILTER_REPLY_FLAGS,
            &flag(by.is_some(), F_IP_SRC).to_ne_bytes(),
        );
    Message {
        what: "list",
        subsystem: NFNL_SUBSYS_CTNETLINK,
        kind,
        family: match host.ip() {
            IpAddr::V4(_) => libc::AF_INET as u8,
            IpAddr::V6(_) => libc::AF_INET6 as u8,
        },
        flags: 0,
        attributes: attributes.nested(CTA_FILTER, filter),
    }
}

/// Deletes this very flow: its tuple could be another's by then, its id not.
fn deletion(flow: &Parsed<'_>, family: u8) -> Option<Message> {
    let mut attributes = Attributes::new()
        .bytes(CTA_TUPLE_ORIG | 1 << 15, flow.bytes(CTA_TUPLE_ORIG)?)
        .bytes(CTA_ID, flow.bytes(CTA_ID)?);
    if let Some(zone) = flow.bytes(CTA_ZONE) {
        attributes = attributes.bytes(CTA_ZONE, zone);
    }
    Some(Message {
        what: "delete",
        subsystem: NFNL_SUBSYS_CTNETLINK,
        kind: IPCTNL_MSG_CT_DELETE,
        family,
        flags: 0,
        attributes,
    })
}
