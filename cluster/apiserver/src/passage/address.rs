//! Which addresses this server may be sent to: whoever writes a node, a pod or an endpoint would else choose what it reaches on its own machine (SEC-API-03,
//! CVE-2022-3294, CVE-2020-8562).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds answer with the machine's own credentials, beside the link-local 169.254.169.254.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Not so: loopback, link-local, multicast, broadcast, unspecified, and those of metadata services, whatever form they are written in.
pub fn may_be_dialled(address: IpAddr) -> bool {
    let address = plain(address);
    if METADATA.contains(&address) {
        return false;
    }
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0)
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address.is_unspecified())
        }
    }
}

/// Where an admin's own configuration may lead, a webhook's URL: beside those, to this machine, as upstream has it.
pub fn may_be_called(address: IpAddr) -> bool {
    may_be_dialled(address) || plain(address).is_loopback()
}

/// The IPv4 address within an IPv6 one that leads there: mapped, compatible, NAT64, 6to4.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let s = v6.segments();
    let within = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            within(high, low)
        }
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => within(high, low),
        [0x2002, high, low, ..] => within(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_this_machine_or_its_cloud_is_not_dialled_sec_api_03() {
        for (address, may) in [
            ("10.0.0.1", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("8.8.8.8", true),
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("169.254.169.254", false),
            ("169.254.1.1", false),
            ("100.100.100.200", false),
            ("192.0.0.192", false),
            ("168.63.129.16", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("fd00:ec2::254", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::7f00:1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("::ffff:10.0.0.1", true),
        ] {
            assert_eq!(
                may_be_dialled(address.parse().expect("an address")),
                may,
                "{address}"
            );
        }
        for (address, may) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", true),
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("0.0.0.0", false),
            ("fe80::1", false),
        ] {
            assert_eq!(
                may_be_called(address.parse().expect("an address")),
                may,
                "{address}"
            );
        }
    }
}
