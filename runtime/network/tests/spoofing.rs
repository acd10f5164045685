//! Frames that a pod sends in another's name, on the real bridge (SEC-NET-05).

mod wharf;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use berth_network::{Attachment, Builtin as Network};
use nix::{
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};
use wharf::*;

type Mac = [u8; 6];
const EVERYBODY: Mac = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// What a frame ends with, by which it is known where it arrives.
const MARK: usize = 8;

/// eth0 of a pod, as a process with NET_RAW has it.
struct Wire {
    socket: OwnedFd,
    mac: Mac,
}

impl Wire {
    fn of(pod: &Attachment) -> Self {
        inside(&pod.netns, || {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .unwrap();
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(20)).unwrap();
            let own = getifaddrs()
                .unwrap()
                .filter(|found| found.interface_name == "eth0")
                .find_map(|found| found.address?.as_link_addr().copied())
                .unwrap();
            bind(socket.as_raw_fd(), &own).unwrap();
            Self {
                socket,
                mac: own.addr().unwrap(),
            }
        })
    }

    fn send(&self, frame: &[u8]) {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    /// Whether a frame with this mark at its end comes.
    fn gets(&self, mark: &[u8], patience: Duration) -> bool {
        let since = Instant::now();
        let mut frame = [0; 2048];
        while since.elapsed() < patience {
            if let Ok(length) = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty())
                && frame[..length].ends_with(mark)
            {
                return true;
            }
        }
        false
    }
}

fn frame(to: Mac, from: Mac, protocol: u16, content: &[u8]) -> Vec<u8> {
    [&to[..], &from, &protocol.to_be_bytes(), content].concat()
}

/// UDP to the discard port. (Nobody checks a checksum that is zero.)
fn ipv4(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("{from} {to}")
    };
    let length = (20 + 8 + MARK as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = packet
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 9, 0, 9, 0, 8 + MARK as u8, 0, 0]);
    packet
}

fn arp(reply: bool, (mac, ip): (Mac, IpAddr), (to_mac, to_ip): (Mac, IpAddr)) -> Vec<u8> {
    let (IpAddr::V4(ip), IpAddr::V4(to_ip)) = (ip, to_ip) else {
        panic!("{ip} {to_ip}")
    };
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, if reply { 2 } else { 1 }];
    packet.extend(mac);
    packet.extend(ip.octets());
    packet.extend(to_mac);
    packet.extend(to_ip.octets());
    packet
}

fn ipv6(from: IpAddr, to: &str, next: u8, content: &[u8]) -> Vec<u8> {
    let IpAddr::V6(from) = from else {
        panic!("{from}")
    };
    let length = ((content.len() + MARK) as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 255];
    packet.extend(from.octets());
    packet.extend(to.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(content);
    packet
}

/// Of ICMPv6 and about a target: a solicitation, an advert, a redirect.
fn about(kind: u8, target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else {
        panic!("{target}")
    };
    let mut message = vec![kind, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message
}

fn link_local(mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([
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
    ])
    .into()
}

fn attach(network: &Network) -> (String, Attachment) {
    let id = pod_id();
    let (attachment, _) = run(network.attach(&request(&id))).unwrap();
    (id, attachment)
}

fn host_mac(link: &str) -> Mac {
    let text = Command::new("ip")
        .args(["-br", "link", "show", link])
        .output()
        .unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    let mac = text.split_whitespace().find(|word| word.contains(':'));
    let bytes: Vec<u8> = mac
        .unwrap()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// The port of the bridge behind which it has learnt the MAC to be.
fn learnt(bridge: &str, mac: Mac) -> Vec<String> {
    let output = Command::new("bridge")
        .args(["fdb", "show", "br", bridge])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut ports: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with(&mac) && !line.contains("permanent"))
        .filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned))
        .collect();
    ports.dedup();
    ports
}

#[test]
fn a_pod_sends_in_nobody_s_name_but_its_own_sec_net_05() {
    let wharf = Wharf::dual_stack();
    let network = wharf.network();
    let (pods, attachments): (Vec<_>, Vec<_>) = (0..3).map(|_| attach(&network)).unzip();
    let [evil, victim, witness] = &attachments[..] else {
        panic!()
    };
    let (evil_wire, victim_wire, wire) = (Wire::of(evil), Wire::of(victim), Wire::of(witness));
    let (own, his, there) = (evil_wire.mac, victim_wire.mac, wire.mac);
    let gateway: Mac = host_mac(&wharf.config.bridge);
    let gateway_ip: IpAddr = network.gateway().into();
    let gateway_v6: IpAddr = "fd07:201::1".parse().unwrap();
    let (ip4, ip6) = (|pod: &Attachment| pod.ips[0], |pod: &Attachment| pod.ips[1]);
    let (me, him, to) = (ip4(evil), ip4(victim), ip4(witness));
    let (me6, him6) = (ip6(evil), ip6(victim));
    let all_nodes = "ff02::1";
    let no_ip: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    let no_ip6: IpAddr = Ipv6Addr::UNSPECIFIED.into();

    let plain = ipv4(me, to);
    let tagged = |tag: u16| {
        frame(
            there,
            own,
            tag,
            &[&[0, 7], &IPV4.to_be_bytes()[..], &plain].concat(),
        )
    };
    let v6 =
        |from, next, content: &[u8]| frame(there, own, IPV6, &ipv6(from, all_nodes, next, content));
    // A header of options before ICMPv6, as one who hopes that nobody looks behind it.
    let hidden = |kind, target| [&[58, 0, 1, 4, 0, 0, 0, 0][..], &about(kind, target)].concat();
    let arp_of = |reply, mac, ip| frame(there, own, ARP, &arp(reply, (mac, ip), (there, to)));
    let cases: Vec<(&str, bool, Vec<u8>)> = vec![
        ("IPv4 of its own", true, frame(there, own, IPV4, &plain)),
        ("a question for the witness", true, arp_of(false, own, me)),
        ("an answer about itself", true, arp_of(true, own, me)),
        ("IPv6 of its own", true, v6(me6, 59, &[])),
        ("IPv6 of its link", true, v6(link_local(own), 59, &[])),
        ("an advert of itself", true, v6(me6, 58, &about(136, me6))),
        ("a solicitation", true, v6(me6, 58, &about(135, him6))),
        ("its own duplicate", true, v6(no_ip6, 58, &about(135, me6))),
        ("a sibling's MAC", false, frame(there, his, IPV4, &plain)),
        (
            "the gateway's MAC",
            false,
            frame(there, gateway, IPV4, &plain),
        ),
        (
            "a sibling's address",
            false,
            frame(there, own, IPV4, &ipv4(him, to)),
        ),
        (
            "a sibling, whole",
            false,
            frame(there, his, IPV4, &ipv4(him, to)),
        ),
        (
            "the gateway's address",
            false,
            frame(there, own, IPV4, &ipv4(gateway_ip, to)),
        ),
        (
            "an address of nobody",
            false,
            frame(there, own, IPV4, &ipv4("10.201.7.250".parse().unwrap(), to)),
        ),
        (
            "no address",
            false,
            frame(there, own, IPV4, &ipv4(no_ip, to)),
        ),
        ("ARP: a sibling is here", false, arp_of(true, own, him)),
        ("ARP: a sibling asks", false, arp_of(false, own, him)),
        (
            "ARP: the gateway is here",
            false,
            arp_of(true, own, gateway_ip),
        ),
        (
            "ARP: to everybody",
            false,
            frame(
                EVERYBODY,
                own,
                ARP,
                &arp(true, (own, gateway_ip), (EVERYBODY, gateway_ip)),
            ),
        ),
        ("ARP: I am at a sibling's", false, arp_of(true, his, me)),
        (
            "ARP: of long addresses",
            false,
            frame(
                there,
                own,
                ARP,
                &[&[0, 1, 8, 0, 8, 4, 0, 2][..], &[0; 24]].concat(),
            ),
        ),
        ("IPv6 of a sibling", false, v6(him6, 59, &[])),
        ("IPv6 of the gateway", false, v6(gateway_v6, 59, &[])),
        (
            "IPv6 of a sibling's link",
            false,
            v6(link_local(his), 59, &[]),
        ),
        (
            "IPv6 under a sibling's MAC",
            false,
            frame(there, his, IPV6, &ipv6(him6, all_nodes, 59, &[])),
        ),
        (
            "an advert of a sibling",
            false,
            v6(me6, 58, &about(136, him6)),
        ),
        (
            "an advert of the gateway",
            false,
            v6(me6, 58, &about(136, gateway_v6)),
        ),
        (
            "an advert behind options",
            false,
            v6(me6, 60, &hidden(136, gateway_v6)),
        ),
        (
            "a sibling's duplicate",
            false,
            v6(no_ip6, 58, &about(135, link_local(his))),
        ),
        (
            "a router's advert (SEC-NET-04)",
            false,
            v6(link_local(own), 58, &about(134, me6)),
        ),
        ("a redirect", false, v6(me6, 58, &about(137, me6))),
        ("a tag of a VLAN", false, tagged(0x8100)),
        ("a tag of a service's VLAN", false, tagged(0x88a8)),
        (
            "a protocol of its own",
            false,
            frame(there, own, 0x88b5, &[]),
        ),
        (
            "a length, for a bridge",
            false,
            frame([1, 0x80, 0xc2, 0, 0, 0], own, 38, &[0x42, 0x42, 3]),
        ),
    ];
    for guarded in [true, false] {
        if !guarded {
            // The same frames arrive where our rules are not: it is the rules that keep them out.
            nft(&["delete", "table", "bridge", &wharf.table()]);
        }
        for (n, (what, good, frame)) in cases.iter().enumerate() {
            let mark = [&random().to_be_bytes()[..7], &[n as u8]].concat();
            evil_wire.send(&[&frame[..], &mark].concat());
            let expected = *good || !guarded;
            let patience = if expected {
                PATIENCE
            } else {
                Duration::from_millis(60)
            };
            assert_eq!(
                wire.gets(&mark, patience),
                expected,
                "{what}, guarded: {guarded}\n{}",
                ruleset()
            );
        }
        // And they come back by themselves.
        assert_eq!(run(network.reconcile()).unwrap(), !guarded);
    }
    for pod in &pods {
        run(network.detach(pod)).unwrap();
    }
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}

#[test]
fn a_bridge_learns_nothing_from_a_pod_that_lies_sec_net_05() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let ((a, evil), (b, victim)) = (attach(&network), attach(&network));
    let (wire, his) = (Wire::of(&evil), Wire::of(&victim).mac);
    let bridge = &wharf.config.bridge;
    // The victim speaks, so the bridge knows where it is.
    talk(None, network.gateway().into(), Some(&victim.netns));
    assert_eq!(learnt(bridge, his), vec![victim.host_link.clone()]);
    // LLDP's group never is forwarded, and yet the bridge learns from what comes to it.
    for group in [0x00, 0x02, 0x0e] {
        let lldp = frame([1, 0x80, 0xc2, 0, 0, group], his, 0x88cc, &[0; 46]);
        wire.send(&lldp);
        wire.send(&frame(
            EVERYBODY,
            his,
            IPV4,
            &ipv4(ip(&victim), network.gateway().into()),
        ));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(
            learnt(bridge, his),
            vec![victim.host_link.clone()],
            "{group:x}"
        );
        if group == 0x0e {
            // Otherwise it does: the frame is one that teaches.
            ip_command(&[
                "link",
                "set",
                bridge,
                "type",
                "bridge",
                "no_linklocal_learn",
                "0",
            ]);
            wire.send(&lldp);
            eventually("the bridge was fooled", || {
                learnt(bridge, his) == [evil.host_link.clone()]
            });
        }
    }
    talk(None, network.gateway().into(), Some(&victim.netns));
    // Neither does the host's table of neighbours.
    let wrong = arp(
        true,
        (wire.mac, ip(&victim)),
        (host_mac(bridge), network.gateway().into()),
    );
    wire.send(&frame(
        host_mac(bridge),
        wire.mac,
        ARP,
        &[wrong, vec![0; 18]].concat(),
    ));
    assert_eq!(
        talk(Some(&victim.netns), ip(&victim), None),
        IpAddr::from(network.gateway())
    );
    for pod in [&a, &b] {
        run(network.detach(pod)).unwrap();
    }
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}

#[test]
fn what_a_pod_may_send_comes_with_it_goes_with_it_and_outlives_the_daemon() {
    let wharf = Wharf::dual_stack();
    let network = wharf.network();
    let ((a, first), (b, second)) = (attach(&network), attach(&network));
    let has = |link: &str| ruleset().contains(&format!("\"{link}\""));
    assert!(
        has(&first.host_link) && has(&second.host_link),
        "{}",
        ruleset()
    );
    let network = wharf.network();
    assert!(!run(network.reconcile()).unwrap(), "all is there");
    nft(&["flush", "ruleset"]);
    assert!(run(network.reconcile()).unwrap());
    assert!(
        has(&first.host_link) && has(&second.host_link),
        "{}",
        ruleset()
    );
    assert_eq!(
        talk(Some(&second.netns), ip(&second), Some(&first.netns)),
        ip(&first)
    );
    run(network.detach(&a)).unwrap();
    eventually("the sets forgot it", || !has(&first.host_link));
    assert!(has(&second.host_link));
    assert!(!run(network.reconcile()).unwrap());
    let tamper = format!("{{ \"{}\" }}", second.host_link);
    nft(&[
        "delete",
        "element",
        "bridge",
        &wharf.table(),
        "ports",
        &tamper,
    ]);
    assert!(run(network.reconcile()).unwrap());
    assert!(has(&second.host_link));
    run(network.detach(&b)).unwrap();
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}

#[test]
fn links_of_other_programs_and_of_other_bridges_pass() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let (a, pod) = attach(&network);
    // A port that somebody put into our bridge by hand is not ours to judge.
    let (told, tid) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        told.send(nix::unistd::gettid()).unwrap();
        let _ = ended.recv();
    });
    let tid = tid.recv().unwrap().to_string();
    let guest = format!("/proc/self/task/{tid}/ns/net");
    ip_command(&[
        "link", "add", "hand0", "type", "veth", "peer", "name", "eth0", "netns", &tid,
    ]);
    ip_command(&["link", "set", "hand0", "master", &wharf.config.bridge, "up"]);
    inside(Path::new(&guest), || {
        ip_command(&["address", "add", "10.201.7.200/24", "dev", "eth0"]);
        ip_command(&["link", "set", "eth0", "up"]);
    });
    let address: IpAddr = "10.201.7.200".parse().unwrap();
    assert_eq!(
        talk(Some(&pod.netns), ip(&pod), Some(Path::new(&guest))),
        address
    );
    ip_command(&["link", "delete", "hand0"]);
    drop(end);
    run(network.detach(&a)).unwrap();
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}
