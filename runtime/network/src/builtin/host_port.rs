//! Ports of the host that lead to pods: who has which.
//!
//! A pod's ports stand in the files of its leases (see [`super::lease`]), so that a daemon that starts knows them before anybody asks; those of a
//! pod of a CNI network in its record. Plugins lead the latter, but no port is two pods', whoever leads it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{Error, PortMapping, Protocol};

/// One port of the host, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    pub protocol: Protocol,
    /// The unspecified address: every address of the host in this family.
    pub host: SocketAddr,
    pub container_port: u16,
}

impl Forward {
    /// Forwards of different slots never overlap.
    fn slot(&self) -> (Protocol, u16, bool) {
        (self.protocol, self.host.port(), self.host.is_ipv4())
    }

    /// Whether a packet could be for both.
    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.host.ip(), other.host.ip());
        self.slot() == other.slot() && (a == b || a.is_unspecified() || b.is_unspecified())
    }

    /// A line of a lease.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let protocol = match words.next()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        let forward = Self {
            protocol,
            host: words.next()?.parse().ok()?,
            container_port: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(forward)
    }
}

/// As a line of a lease has it.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.protocol, self.host, self.container_port)
    }
}

/// A forward and the pod's address that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    pub forward: Forward,
    pub address: IpAddr,
}

#[derive(Debug, Clone, Default)]
struct Claim {
    forwards: Vec<Forward>,
    addresses: Vec<IpAddr>,
    /// CNI plugins lead them: they are nobody else's until DEL has succeeded.
    plugged: bool,
}

impl Claim {
    fn targets(&self) -> impl Iterator<Item = Target> {
        self.forwards.iter().filter_map(|forward| {
            let address = self
                .addresses
                .iter()
                .find(|address| address.is_ipv4() == forward.host.is_ipv4())?;
            Some(Target {
                forward: *forward,
                address: *address,
            })
        })
    }
}

/// The host ports of all pods, by the pods.
#[derive(Debug, Default)]
pub struct HostPorts(Mutex<BTreeMap<String, Claim>>);

impl HostPorts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a lease of the last run says.
    pub fn restore(&self, pod_id: &str, address: IpAddr, forwards: Vec<Forward>) {
        let mut claims = self.lock();
        let claim = claims.entry(pod_id.to_owned()).or_default();
        claim.forwards.extend(forwards);
        claim.addresses.push(address);
    }

    /// The ports are the pod's, or another's: then its name is in the error. Of a pod that had some already, these are all from now on.
    pub fn reserve(&self, pod_id: &str, forwards: &[Forward]) -> Result<(), Error> {
        self.claim(pod_id, forwards, false)
    }

    /// As [`HostPorts::reserve`], for a pod whose ports plugins lead.
    pub fn reserve_plugged(&self, pod_id: &str, forwards: &[Forward]) -> Result<(), Error> {
        self.claim(pod_id, forwards, true)
    }

    fn claim(&self, pod_id: &str, forwards: &[Forward], plugged: bool) -> Result<(), Error> {
        if forwards.is_empty() {
            return Ok(());
        }
        let mut claims = self.lock();
        let mut taken: HashMap<_, Vec<(&str, &Forward)>> = HashMap::new();
        for (pod, claim) in claims.iter().filter(|(pod, _)| *pod != pod_id) {
            for forward in &claim.forwards {
                let there = taken.entry(forward.slot()).or_default();
                there.push((pod, forward));
            }
        }
        for forward in forwards {
            let there = taken.entry(forward.slot()).or_default();
            if let Some((pod, taken)) = there.iter().find(|(_, f)| f.overlaps(forward)) {
                return Err(Error::HostPortTaken {
                    host: forward.host,
                    protocol: forward.protocol,
                    pod_id: (*pod).to_owned(),
                    taken: taken.host,
                });
            }
            there.push((pod_id, forward));
        }
        let claim = Claim {
            forwards: forwards.to_vec(),
            addresses: Vec::new(),
            plugged,
        };
        claims.insert(pod_id.to_owned(), claim);
        Ok(())
    }

    /// Where the pod's ports lead to, now that it has addresses.
    pub fn bind(&self, pod_id: &str, addresses: &[IpAddr]) -> Vec<Target> {
        match self.lock().get_mut(pod_id) {
            Some(claim) if !claim.plugged => {
                claim.addresses = addresses.to_vec();
                claim.targets().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The ports lead nowhere from now on, and stay the pod's. Returns where they led to.
    pub fn unbind(&self, pod_id: &str) -> Vec<Target> {
        match self.lock().get_mut(pod_id) {
            Some(claim) => {
                let targets = claim.targets().collect();
                claim.addresses.clear();
                targets
            }
            None => Vec::new(),
        }
    }

    /// Those that plugins lead stay.
    pub fn release(&self, pod_id: &str) {
        self.release_where(pod_id, false);
    }

    pub fn release_plugged(&self, pod_id: &str) {
        self.release_where(pod_id, true);
    }

    fn release_where(&self, pod_id: &str, plugged: bool) {
        let mut claims = self.lock();
        if claims.get(pod_id).is_some_and(|c| c.plugged == plugged) {
            claims.remove(pod_id);
        }
    }

    /// What the daemon before this one, or these ranges', knew of pods whose ports plugins lead.
    pub fn restore_plugged(&self, pod_id: &str, forwards: Vec<Forward>) {
        let claim = Claim {
            forwards,
            addresses: Vec::new(),
            plugged: true,
        };
        self.lock().insert(pod_id.to_owned(), claim);
    }

    pub fn plugged(&self) -> Vec<(String, Vec<Forward>)> {
        self.lock()
            .iter()
            .filter(|(_, claim)| claim.plugged)
            .map(|(pod, claim)| (pod.clone(), claim.forwards.clone()))
            .collect()
    }

    /// All that lead somewhere, with their pods.
    pub fn all(&self) -> Vec<(String, Target)> {
        self.lock()
            .iter()
            .flat_map(|(pod, claim)| claim.targets().map(|target| (pod.clone(), target)))
            .collect()
    }
}

/// The forwards that a pod asks for, each once. `ipv6`: whether pods have addresses of that family.
pub fn forwards(mappings: &[PortMapping], ipv6: bool) -> Result<Vec<Forward>, Error> {
    let mut forwards = Vec::new();
    let mut seen = HashSet::new();
    for mapping in mappings {
        if mapping.host_port == 0 || mapping.container_port == 0 {
            return Err(Error::HostPort {
                mapping: mapping.clone(),
                why: "a port is 1 to 65535".into(),
            });
        }
        let mut add = |ip: IpAddr| {
            let forward = Forward {
                protocol: mapping.protocol,
                host: SocketAddr::new(ip, mapping.host_port),
                container_port: mapping.container_port,
            };
            if seen.insert(forward) {
                forwards.push(forward);
            }
        };
        match mapping.host_ip {
            None => {
                add(Ipv4Addr::UNSPECIFIED.into());
                if ipv6 {
                    add(Ipv6Addr::UNSPECIFIED.into());
                }
            }
            Some(IpAddr::V6(ip)) if ip.is_loopback() => {
                return Err(Error::HostPort {
                    mapping: mapping.clone(),
                    why: "the kernel forwards nothing from ::1; take 127.0.0.1".into(),
                });
            }
            Some(ip @ IpAddr::V6(_)) if !ipv6 => {
                return Err(Error::HostPort {
                    mapping: mapping.clone(),
                    why: format!(
                        "pods have no IPv6 address for {ip} to lead to; set [network] subnet_v6"
                    ),
                });
            }
            Some(ip) => add(ip),
        }
    }
    Ok(forwards)
}

/// The ports that a pod of a CNI network takes; what of them can work, its plugins know.
pub fn plugged_forwards(mappings: &[PortMapping]) -> Vec<Forward> {
    let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let mut forwards: Vec<Forward> = Vec::new();
    for mapping in mappings {
        for ip in mapping.host_ip.map_or(unspecified.to_vec(), |ip| vec![ip]) {
            let forward = Forward {
                protocol: mapping.protocol,
                host: SocketAddr::new(ip, mapping.host_port),
                container_port: mapping.container_port,
            };
            if !forwards.contains(&forward) {
                forwards.push(forward);
            }
        }
    }
    forwards
}

/// Refuses ports that a process of the host listens on: the rules would take them from it (a pod with host port 22 would cut off sshd). A
/// process that begins to listen later gets none of what comes to the port.
pub fn check_listeners(forwards: &[Forward]) -> Result<(), Error> {
    for (protocol, tables) in [
        (Protocol::Tcp, ["tcp", "tcp6"]),
        (Protocol::Udp, ["udp", "udp6"]),
    ] {
        if !forwards.iter().any(|forward| forward.protocol == protocol) {
            continue;
        }
        for table in tables {
            let path = format!("/proc/thread-self/net/{table}");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(Error::Listeners { path, source }),
            };
            for listener in text
                .lines()
                .skip(1)
                .filter_map(|line| listener(line, protocol))
            {
                let shadowed = forwards
                    .iter()
                    .find(|forward| forward.protocol == protocol && captures(forward, listener));
                if let Some(forward) = shadowed {
                    return Err(Error::HostPortListening {
                        host: forward.host,
                        protocol,
                        listener,
                    });
                }
            }
        }
    }
    Ok(())
}

/// Whether packets to the listener would be taken by the forward. A wildcard of IPv6 listens for IPv4, too (but for IPV6_V6ONLY, which the table does
/// not tell).
fn captures(forward: &Forward, listener: SocketAddr) -> bool {
    let (ours, theirs) = (forward.host.ip(), listener.ip().to_canonical());
    forward.host.port() == listener.port()
        && match (ours, theirs) {
            (IpAddr::V4(_), IpAddr::V6(ip)) => ip.is_unspecified(),
            (IpAddr::V6(_), IpAddr::V4(_)) => false,
            _ => ours == theirs || ours.is_unspecified() || theirs.is_unspecified(),
        }
}

/// The address of a socket that waits for clients, from its line of /proc/net/{tcp,udp}{,6} (proc_net_tcp(5)).
fn listener(line: &str, protocol: Protocol) -> Option<SocketAddr> {
    /// TCP_LISTEN, and TCP_CLOSE of an unconnected UDP socket.
    const LISTEN: &str = "0A";
    const UNCONNECTED: &str = "07";
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let waits = match protocol {
        Protocol::Udp => UNCONNECTED,
        _ => LISTEN,
    };
    if state != waits {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes, each printed as a number of the machine.
    let word = |n: usize| -> Option<[u8; 4]> {
        let digits = address.get(n * 8..n * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for n in 0..4 {
                bytes[n * 4..n * 4 + 4].copy_from_slice(&word(n)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> PortMapping {
        PortMapping {
            protocol,
            container_port: 80,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn two_pods_conflict_where_a_packet_could_be_for_both_sec_net_06() {
        use Protocol::{Sctp, Tcp, Udp};
        let cases = [
            ((Tcp, None, 80), (Tcp, None, 80), true),
            ((Tcp, None, 80), (Udp, None, 80), false),
            ((Tcp, None, 80), (Sctp, None, 80), false),
            ((Tcp, None, 80), (Tcp, None, 81), false),
            ((Tcp, None, 80), (Tcp, Some("10.0.0.1"), 80), true),
            ((Tcp, None, 80), (Tcp, Some("fd00::1"), 80), true),
            (
                (Tcp, Some("10.0.0.1"), 80),
                (Tcp, Some("10.0.0.2"), 80),
                false,
            ),
            (
                (Tcp, Some("10.0.0.1"), 80),
                (Tcp, Some("10.0.0.1"), 80),
                true,
            ),
            (
                (Tcp, Some("0.0.0.0"), 80),
                (Tcp, Some("10.0.0.1"), 80),
                true,
            ),
            ((Tcp, Some("0.0.0.0"), 80), (Tcp, Some("::"), 80), false),
            ((Tcp, Some("::"), 80), (Tcp, Some("fd00::1"), 80), true),
        ];
        for (first, second, conflict) in cases {
            for (a, b) in [(first, second), (second, first)] {
                let ports = HostPorts::default();
                let of = |m: (Protocol, Option<&str>, u16)| {
                    forwards(&[mapping(m.0, m.1, m.2)], true).unwrap()
                };
                ports.reserve("pod-a", &of(a)).unwrap();
                let result = ports.reserve("pod-b", &of(b));
                assert_eq!(result.is_err(), conflict, "{a:?} {b:?}");
                if let Err(error) = result {
                    assert!(error.to_string().contains("pod-a"), "{error}");
                    ports.release("pod-a");
                    ports.reserve("pod-b", &of(b)).unwrap();
                }
            }
        }
    }

    #[test]
    fn ports_that_plugins_lead_are_nobody_else_s_and_no_rule_of_ours() {
        let ports = HostPorts::default();
        let port = mapping(Protocol::Tcp, None, 80);
        let loopback = mapping(Protocol::Tcp, Some("::1"), 80);
        let ours = forwards(std::slice::from_ref(&port), true).unwrap();
        let theirs = plugged_forwards(&[port.clone(), port]);
        assert_eq!(theirs.len(), 2);
        ports.reserve_plugged("plugged", &theirs).unwrap();
        ports.bind("plugged", &["10.0.0.1".parse().unwrap()]);
        assert!(ports.all().is_empty());
        for _ in 0..2 {
            let error = ports.reserve("builtin", &ours).unwrap_err().to_string();
            assert!(error.contains("plugged"), "{error}");
            let loopback = plugged_forwards(std::slice::from_ref(&loopback));
            assert!(ports.reserve_plugged("another", &loopback).is_err());
            // The end of its namespace is not that of its rules.
            ports.release("plugged");
        }
        let restored = HostPorts::default();
        for (pod, forwards) in ports.plugged() {
            restored.restore_plugged(&pod, forwards);
        }
        assert!(restored.reserve("builtin", &ours).is_err());
        ports.release_plugged("plugged");
        ports.reserve("builtin", &ours).unwrap();
        ports.release_plugged("builtin");
        assert!(ports.reserve_plugged("plugged", &theirs).is_err());
        assert!(ports.plugged().is_empty());
    }

    #[test]
    fn one_pod_may_ask_twice_for_the_same_and_not_for_two_things_on_one_port() {
        let ports = HostPorts::default();
        let same = mapping(Protocol::Tcp, None, 80);
        let twice = forwards(&[same.clone(), same.clone()], false).unwrap();
        assert_eq!(twice.len(), 1);
        ports.reserve("pod", &twice).unwrap();
        ports.reserve("pod", &twice).unwrap();
        let other = PortMapping {
            container_port: 81,
            ..same.clone()
        };
        let two = forwards(&[same, other], false).unwrap();
        assert!(matches!(
            ports.reserve("pod", &two),
            Err(Error::HostPortTaken { .. })
        ));
    }

    #[test]
    fn what_can_not_work_is_refused_with_its_reason() {
        for (mapping, ipv6) in [
            (mapping(Protocol::Tcp, None, 0), true),
            (mapping(Protocol::Tcp, Some("::1"), 80), true),
            (mapping(Protocol::Tcp, Some("fd00::1"), 80), false),
        ] {
            assert!(matches!(
                forwards(&[mapping], ipv6),
                Err(Error::HostPort { .. })
            ));
        }
    }

    #[test]
    fn a_forward_survives_its_line_in_a_lease() {
        let all = forwards(
            &[
                mapping(Protocol::Tcp, None, 80),
                mapping(Protocol::Udp, Some("10.0.0.1"), 53),
                mapping(Protocol::Sctp, Some("fd00::1"), 99),
            ],
            true,
        )
        .unwrap();
        assert_eq!(all.len(), 4);
        for forward in all {
            assert_eq!(Forward::parse(&forward.to_string()), Some(forward));
        }
        for line in [
            "",
            "tcp",
            "tcp 1.2.3.4:5",
            "icmp 1.2.3.4:5 6",
            "tcp 1.2.3.4:5 6 7",
            "tcp :5 6",
        ] {
            assert_eq!(Forward::parse(line), None, "{line}");
        }
    }

    #[test]
    fn sockets_that_wait_are_found_in_the_tables_of_proc() {
        let lines = [
            (
                "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1",
                Protocol::Tcp,
                Some("127.0.0.1:8080"),
            ),
            (
                "   0: 0100007F:1F90 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 1",
                Protocol::Tcp,
                None,
            ),
            (
                "  1: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 1",
                Protocol::Udp,
                Some("[::]:53"),
            ),
            ("rubbish", Protocol::Tcp, None),
        ];
        // The tables are in the machine's byte order, and so are these.
        if cfg!(target_endian = "little") {
            for (line, protocol, expected) in lines {
                assert_eq!(
                    listener(line, protocol),
                    expected.map(|s| s.parse().unwrap()),
                    "{line}"
                );
            }
        }
        let captured = |ours: &str, theirs: &str| {
            let forward = Forward {
                protocol: Protocol::Tcp,
                host: ours.parse().unwrap(),
                container_port: 1,
            };
            captures(&forward, theirs.parse().unwrap())
        };
        for (ours, theirs, expected) in [
            ("0.0.0.0:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("10.0.0.1:80", "127.0.0.1:80", false),
            ("10.0.0.1:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "[::]:80", true),
            ("10.0.0.1:80", "[::ffff:10.0.0.1]:80", true),
            ("0.0.0.0:80", "[fd00::1]:80", false),
            ("[::]:80", "0.0.0.0:80", false),
            ("[::]:80", "[fd00::1]:80", true),
            ("0.0.0.0:80", "0.0.0.0:81", false),
        ] {
            assert_eq!(captured(ours, theirs), expected, "{ours} {theirs}");
        }
    }
}
