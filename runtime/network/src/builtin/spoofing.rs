//! A pod sends as itself and as nobody else (SEC-NET-05): each port of the bridge has its pod's MAC and addresses, and frames that name others as
//! their sender are dropped before the bridge learns from them.
//!
//! ```text
//! table bridge berth-<bridge>
//!   prerouting   from a pod's port: from_pods
//!   from_pods    IPv4, ARP, IPv6: the sender's port, MAC and address belong together; router adverts, redirects, foreign neighbour adverts,
//!                tags of VLANs and all other protocols: dropped
//! ```
//!
//! What is for a bridge itself (01:80:c2:00:00:0x, such as LLDP) comes by no hook, and the bridge would learn from it, too: that it is told not to, by
//! `no_linklocal_learn` ([`crate::link::up_bridge`]).
//!
//! What belongs together stands in sets, so that a pod that comes or goes changes no rule. A link that is in no set is none of ours and passes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::libc;

use super::{
    attach::pod_mac,
    nfnetlink::Message,
    nftables::{
        self as nft, Comparison, Element, Field, Header, Hook, Meta, Register, Rule, Verdict,
    },
    table::link_name,
};

/// Before bridge-nf-call-iptables has translated anything (NF_BR_PRI_NAT_DST_BRIDGED), where the addresses are those of the wire.
const PRIORITY: i32 = -300;
const FROM_PODS: &str = "from_pods";
const PORTS: &str = "ports";
const PORTS_V4: &str = "ports_v4";
const PORTS_V6: &str = "ports_v6";
/// Behind the link's name and the MAC.
const ADDRESS: Register = Register(6);
/// Of ICMPv6 (RFC 4861).
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

/// The ports of the bridge that pods have, by the names of their links, with the pods' addresses.
#[derive(Debug, Default)]
pub struct Ports(Mutex<BTreeMap<String, Vec<IpAddr>>>);

impl Ports {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<IpAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a lease of the last run says.
    pub fn restore(&self, link: &str, address: IpAddr) {
        let mut ports = self.lock();
        let addresses = ports.entry(link.to_owned()).or_default();
        addresses.push(address);
        addresses.sort();
    }

    /// The link is the pod's with these addresses. Returns what the sets have of it.
    pub fn add(&self, link: &str, addresses: &[IpAddr]) -> Vec<Entry> {
        self.lock().insert(link.to_owned(), addresses.to_vec());
        entries(link, addresses)
    }

    /// Returns what the sets have of the link.
    pub fn remove(&self, link: &str) -> Vec<Entry> {
        match self.lock().remove(link) {
            Some(addresses) => entries(link, &addresses),
            None => Vec::new(),
        }
    }

    /// What the sets have of all.
    pub fn all(&self) -> Vec<Entry> {
        let ports = self.lock();
        ports
            .iter()
            .flat_map(|(link, addresses)| entries(link, addresses))
            .collect()
    }
}

/// An element and the set that it belongs into.
pub type Entry = (&'static str, Element);

fn entries(link: &str, addresses: &[IpAddr]) -> Vec<Entry> {
    let mac = pod_mac(addresses);
    let element = |address: &[u8]| {
        let mut key = link_name(link);
        key.extend(mac);
        key.extend([0, 0]);
        key.extend(address);
        Element {
            key,
            value: Vec::new(),
        }
    };
    let port = Element {
        key: link_name(link),
        value: Vec::new(),
    };
    let mut entries = vec![(PORTS, port)];
    for address in addresses {
        entries.push(match address {
            IpAddr::V4(address) => (PORTS_V4, element(&address.octets())),
            IpAddr::V6(address) => (PORTS_V6, element(&address.octets())),
        });
    }
    // The kernel gives each link one of these, by its MAC (RFC 4291, appendix A).
    let [a, b, c, d, e, f] = mac;
    let own = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    entries.push((PORTS_V6, element(&own)));
    entries
}

/// The sets, with the fields of their keys.
pub fn sets() -> [(&'static str, Vec<Field>); 3] {
    let of = |address| vec![Field::InterfaceName, Field::Mac, address];
    [
        (PORTS, vec![Field::InterfaceName]),
        (PORTS_V4, of(Field::Address4)),
        (PORTS_V6, of(Field::Address6)),
    ]
}

/// Chains and sets.
pub fn structure(table: &str) -> Vec<Message> {
    let mut messages = vec![
        nft::add_base_chain(table, "prerouting", "filter", Hook::PreRouting, PRIORITY),
        nft::add_chain(table, FROM_PODS),
    ];
    for ((set, key), id) in sets().iter().zip(100..) {
        messages.push(nft::add_set(table, set, key, &[], id));
    }
    messages.into_iter().map(Message::for_frames).collect()
}

pub fn rules(table: &str) -> Vec<Message> {
    let own = |rule: Rule| rule.add_to(table, FROM_PODS);
    let icmp = |kind: u8| Rule::new().frame_of(libc::ETH_P_IPV6).icmp_v6(kind);
    let rules = [
        Rule::new()
            .load_meta(Meta::InterfaceIn, Register(0))
            .when_in(PORTS, Register(0))
            .verdict(Verdict::Jump(FROM_PODS))
            .add_to(table, "prerouting"),
        own(Rule::new()
            .frame_of(libc::ETH_P_IP)
            .sender()
            .load_payload(Header::Network, 12, 4, ADDRESS)
            .when_in(PORTS_V4, Register(0))
            .verdict(Verdict::Return)),
        // Ethernet and IPv4; the sender of the frame is the one that the message says it is of (RFC 826).
        own(Rule::new()
            .frame_of(libc::ETH_P_ARP)
            .load_payload(Header::Network, 0, 6, Register(0))
            .compare(Register(0), Comparison::Equal, &[0, 1, 8, 0, 6, 4])
            .sender()
            .load_payload(Header::Network, 14, 4, ADDRESS)
            .when_in(PORTS_V4, Register(0))
            .load_payload(Header::Network, 8, 6, Register(4))
            .when_in(PORTS_V4, Register(0))
            .verdict(Verdict::Return)),
        own(icmp(ROUTER_ADVERT).verdict(Verdict::Drop)),
        own(icmp(REDIRECT).verdict(Verdict::Drop)),
        own(icmp(NEIGHBOUR_ADVERT)
            .sender()
            .load_payload(Header::Transport, 8, 16, ADDRESS)
            .unless_in(PORTS_V6, Register(0))
            .verdict(Verdict::Drop)),
        // Whether its own address is another's, too: the one thing that is asked from no address (RFC 4862, 5.4.2).
        own(icmp(NEIGHBOUR_SOLICITATION)
            .load_payload(Header::Network, 8, 16, ADDRESS)
            .compare(ADDRESS, Comparison::Equal, &Ipv6Addr::UNSPECIFIED.octets())
            .sender()
            .load_payload(Header::Transport, 8, 16, ADDRESS)
            .when_in(PORTS_V6, Register(0))
            .verdict(Verdict::Return)),
        own(Rule::new()
            .frame_of(libc::ETH_P_IPV6)
            .sender()
            .load_payload(Header::Network, 8, 16, ADDRESS)
            .when_in(PORTS_V6, Register(0))
            .verdict(Verdict::Return)),
        own(Rule::new().verdict(Verdict::Drop)),
    ];
    rules.into_iter().map(Message::for_frames).collect()
}

/// Phrases of these rules.
impl Rule {
    /// Loads the frame's port and its sender's MAC.
    fn sender(self) -> Self {
        self.load_meta(Meta::InterfaceIn, Register(0))
            .load_payload(Header::Link, 6, 6, Register(4))
    }

    /// By what stands behind the MACs: a tag of a VLAN is none of these.
    fn frame_of(self, protocol: libc::c_int) -> Self {
        self.load_payload(Header::Link, 12, 2, Register(0)).compare(
            Register(0),
            Comparison::Equal,
            &(protocol as u16).to_be_bytes(),
        )
    }

    fn icmp_v6(self, kind: u8) -> Self {
        self.load_meta(Meta::Protocol, Register(0))
            .compare(
                Register(0),
                Comparison::Equal,
                &[libc::IPPROTO_ICMPV6 as u8],
            )
            .load_payload(Header::Transport, 0, 1, Register(0))
            .compare(Register(0), Comparison::Equal, &[kind])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_its_pod_s_addresses_and_the_link_s_own() {
        let ports = Ports::default();
        let addresses = ["10.88.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        let entries = ports.add("berth0123456789", &addresses);
        let sets: Vec<_> = entries.iter().map(|(set, _)| *set).collect();
        assert_eq!(sets, [PORTS, PORTS_V4, PORTS_V6, PORTS_V6]);
        for (set, element) in &entries {
            let (_, fields) = sets_of(set);
            let bytes: u32 = fields.iter().map(|field| field.bytes()).sum();
            assert_eq!(element.key.len() as u32, bytes, "{set}");
        }
        let own: Ipv6Addr = "fe80::8be:aff:fe58:2".parse().unwrap();
        assert!(entries[3].1.key.ends_with(&own.octets()));

        let restored = Ports::default();
        for address in addresses.into_iter().rev() {
            restored.restore("berth0123456789", address);
        }
        assert_eq!(restored.all(), entries);
        assert_eq!(ports.remove("berth0123456789"), entries);
        assert!(ports.remove("berth0123456789").is_empty() && ports.all().is_empty());
    }

    fn sets_of(name: &str) -> (&'static str, Vec<Field>) {
        sets().into_iter().find(|(set, _)| *set == name).unwrap()
    }
}
