//! Host ports and masquerading on the real kernel, seen from the host, from pods and from another machine.

mod wharf;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use berth_network::{AttachRequest, Attachment, Builtin as Network, Error, PortMapping, Protocol};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, ipproto,
    sockopt::{Timeout, set_socket_timeout},
};
use wharf::*;

const HOST_PORT: u16 = 8080;
const PORT: u16 = 80;

fn mapping(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> PortMapping {
    PortMapping {
        protocol,
        container_port: PORT,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

fn with_ports(pod_id: &str, port_mappings: &[PortMapping]) -> AttachRequest {
    AttachRequest {
        port_mappings: port_mappings.to_vec(),
        ..request(pod_id)
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn attach(network: &Network, pod_id: &str, mappings: &[PortMapping]) -> Attachment {
    run(network.attach(&with_ports(pod_id, mappings)))
        .unwrap()
        .0
}

fn gone(network: &Network, pods: &[&str]) {
    for pod in pods {
        run(network.detach(pod)).unwrap();
    }
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}

/// Asks `to` from `from`; the pod's server is there for one client.
fn reaches(pod: &Attachment, from: Option<&Path>, to: SocketAddr) -> std::io::Result<IpAddr> {
    let family = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let listener = inside(&pod.netns, || TcpListener::bind(at(family, PORT)).unwrap());
    listener.set_nonblocking(false).unwrap();
    let own = listener.local_addr().unwrap().port();
    let server = serve(listener);
    let answer = ask(from, to);
    if answer.is_err() {
        // Ends the server.
        let _ = ask(
            Some(&pod.netns),
            at(if to.is_ipv4() { "127.0.0.1" } else { "::1" }, own),
        );
    }
    server.join().unwrap();
    answer
}

#[test]
fn a_host_port_leads_to_its_pod_from_the_host_from_pods_and_from_outside() {
    for bridge_nf in ["0", "1"] {
        let wharf = Wharf::dual_stack();
        for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            std::fs::write(format!("/proc/sys/net/bridge/{key}"), bridge_nf).unwrap();
        }
        let outside = Outside::new();
        let network = wharf.network();
        let (a, b) = (pod_id(), pod_id());
        let server = attach(&network, &a, &[mapping(Protocol::Tcp, None, HOST_PORT)]);
        let (other, _) = run(network.attach(&request(&b))).unwrap();
        let gateway = network.gateway().to_string();
        let gateway_v6 = "fd07:201::1";

        let cases: [(&str, Option<&Path>, &str, Option<&str>); 12] = [
            ("host, loopback", None, "127.0.0.1", Some(&gateway)),
            ("host, its address", None, HOST, Some(HOST)),
            ("host, the gateway", None, &gateway, Some(&gateway)),
            ("another pod", Some(&other.netns), HOST, Some(&gateway)),
            (
                "another pod, the gateway",
                Some(&other.netns),
                &gateway,
                Some(&gateway),
            ),
            ("the pod itself", Some(&server.netns), HOST, Some(&gateway)),
            ("outside", Some(&outside.netns), HOST, Some(OUTSIDE)),
            ("host, its v6 address", None, HOST_V6, Some(HOST_V6)),
            (
                "another pod, v6",
                Some(&other.netns),
                HOST_V6,
                Some(gateway_v6),
            ),
            (
                "the pod itself, v6",
                Some(&server.netns),
                HOST_V6,
                Some(gateway_v6),
            ),
            (
                "outside, v6",
                Some(&outside.netns),
                HOST_V6,
                Some(OUTSIDE_V6),
            ),
            ("host, v6 loopback: refused at once", None, "::1", None),
        ];
        for (from, place, to, seen) in cases {
            let answer = reaches(&server, place, at(to, HOST_PORT));
            match seen {
                Some(seen) => assert_eq!(
                    answer.unwrap_or_else(|e| panic!(
                        "{from}, bridge-nf {bridge_nf}: {e}\n{}",
                        ruleset()
                    )),
                    seen.parse::<IpAddr>().unwrap(),
                    "{from}, bridge-nf {bridge_nf}"
                ),
                None => assert_eq!(
                    answer.unwrap_err().kind(),
                    std::io::ErrorKind::ConnectionRefused,
                    "{from}"
                ),
            }
        }
        run(network.detach(&a)).unwrap();
        assert!(ask(None, at("127.0.0.1", HOST_PORT)).is_err());
        gone(&network, &[&b]);
    }
}

#[test]
fn pods_reach_the_world_under_the_host_s_address_and_each_other_under_their_own() {
    let wharf = Wharf::dual_stack();
    let outside = Outside::new();
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    let (first, _) = run(network.attach(&request(&a))).unwrap();
    let (second, _) = run(network.attach(&request(&b))).unwrap();
    assert_eq!((first.ips.len(), second.ips.len()), (2, 2));
    for (n, (world, host)) in [(OUTSIDE, HOST), (OUTSIDE_V6, HOST_V6)]
        .into_iter()
        .enumerate()
    {
        let host: IpAddr = host.parse().unwrap();
        let world = world.parse().unwrap();
        assert_eq!(talk(Some(&outside.netns), world, Some(&first.netns)), host);
        assert_eq!(
            talk(Some(&first.netns), first.ips[n], Some(&second.netns)),
            second.ips[n]
        );
        assert_eq!(talk(None, host, Some(&first.netns)), first.ips[n]);
    }
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/up0/forwarding").unwrap();
    assert_eq!(forwarding(), "1\n");
    let global = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!(global, "0\n", "the host is no router of its other links");
    // Off again when the bridge goes, though another daemon turned it on.
    drop(network);
    let network = wharf.network();
    gone(&network, &[&a, &b]);
    assert_eq!(forwarding(), "0\n");
}

#[test]
fn a_way_to_the_world_that_comes_up_after_the_pods_is_theirs_with_the_next_look() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let a = pod_id();
    let (pod, _) = run(network.attach(&request(&a))).unwrap();
    let outside = Outside::new();
    assert!(run(network.reconcile()).unwrap());
    assert!(!run(network.reconcile()).unwrap());
    assert_eq!(
        talk(
            Some(&outside.netns),
            OUTSIDE.parse().unwrap(),
            Some(&pod.netns)
        ),
        HOST.parse::<IpAddr>().unwrap()
    );
    gone(&network, &[&a]);
}

#[test]
fn without_masquerade_nothing_of_the_host_is_touched() {
    let mut wharf = Wharf::new(24);
    wharf.config.masquerade = false;
    let outside = Outside::new();
    let network = wharf.network();
    let a = pod_id();
    let (pod, _) = run(network.attach(&request(&a))).unwrap();
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    assert_eq!(read("/proc/sys/net/ipv4/conf/up0/forwarding"), "0\n");
    // An operator who routes the pods' range sees their own addresses.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    inside(&outside.netns, || {
        ip_command(&["route", "add", "10.201.7.0/24", "via", HOST]);
    });
    assert_eq!(
        talk(
            Some(&outside.netns),
            OUTSIDE.parse().unwrap(),
            Some(&pod.netns)
        ),
        ip(&pod)
    );
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    gone(&network, &[&a]);
}

#[test]
fn a_host_that_was_made_a_router_meanwhile_stays_one() {
    let wharf = Wharf::new(24);
    let _outside = Outside::new();
    let network = wharf.network();
    let a = pod_id();
    run(network.attach(&request(&a))).unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    gone(&network, &[&a]);
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/conf/up0/forwarding").unwrap();
    assert_eq!(forwarding, "1\n");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
}

#[test]
fn what_was_turned_on_is_turned_off_though_rules_were_flushed_between_two_daemons() {
    let wharf = Wharf::new(24);
    let _outside = Outside::new();
    let network = wharf.network();
    let a = pod_id();
    run(network.attach(&request(&a))).unwrap();
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/up0/forwarding").unwrap();
    assert_eq!(forwarding(), "1\n");
    drop(network);
    nft(&["flush", "ruleset"]);
    gone(&wharf.network(), &[&a]);
    assert_eq!(forwarding(), "0\n");
}

#[test]
fn a_host_port_takes_nothing_that_is_for_others_sec_net_06() {
    let wharf = Wharf::new(24);
    let outside = Outside::new();
    let network = wharf.network();
    let (a, b, c) = (pod_id(), pod_id(), pod_id());
    // Of the same number as the ports that the others serve.
    let taken = mapping(Protocol::Tcp, None, PORT);
    let thief = attach(&network, &a, &[taken]);
    let (client, _) = run(network.attach(&request(&b))).unwrap();
    let (server, _) = run(network.attach(&request(&c))).unwrap();
    let _thief = inside(&thief.netns, || {
        TcpListener::bind(at("0.0.0.0", PORT)).unwrap()
    });
    for (place, address) in [
        (&outside.netns, OUTSIDE.parse().unwrap()),
        (&server.netns, ip(&server)),
    ] {
        let listener = inside(place, || TcpListener::bind((address, PORT)).unwrap());
        let serving = serve(listener);
        ask(Some(&client.netns), SocketAddr::new(address, PORT)).unwrap();
        serving.join().unwrap();
    }
    gone(&network, &[&a, &b, &c]);
}

#[test]
fn a_host_ip_limits_a_host_port_to_that_address() {
    let wharf = Wharf::new(24);
    ip_command(&["address", "add", "198.51.100.7/32", "dev", "lo"]);
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    let first = attach(
        &network,
        &a,
        &[mapping(Protocol::Tcp, Some("198.51.100.7"), HOST_PORT)],
    );
    let second = attach(
        &network,
        &b,
        &[mapping(Protocol::Tcp, Some("127.0.0.1"), HOST_PORT)],
    );
    let gateway = IpAddr::from(network.gateway());
    for (pod, to) in [(&first, "198.51.100.7"), (&second, "127.0.0.1")] {
        reaches(pod, None, at(to, HOST_PORT)).unwrap();
    }
    // A pod that is led back to itself, or to another, by an address that only one of them has.
    for from in [&first, &second] {
        assert_eq!(
            reaches(&first, Some(&from.netns), at("198.51.100.7", HOST_PORT)).unwrap(),
            gateway
        );
    }
    assert!(ask(None, SocketAddr::new(gateway, HOST_PORT)).is_err());
    gone(&network, &[&a, &b]);
}

#[test]
fn a_port_that_another_pod_or_a_process_has_is_refused_by_name_and_leaves_nothing() {
    let wharf = Wharf::new(24);
    let (a, b) = (pod_id(), pod_id());
    let port = mapping(Protocol::Tcp, None, HOST_PORT);
    let mut network = wharf.network();
    attach(&network, &a, std::slice::from_ref(&port));
    for _ in 0..2 {
        for host_ip in [None, Some("127.0.0.1")] {
            let wanted = mapping(Protocol::Tcp, host_ip, HOST_PORT);
            let error = run(network.attach(&with_ports(&b, &[wanted]))).unwrap_err();
            assert!(matches!(error, Error::HostPortTaken { .. }), "{error}");
            assert!(error.to_string().contains(&a), "{error}");
        }
        assert!(wharf.ledger().outstanding(&b).unwrap().is_empty());
        attach(&network, &b, &[mapping(Protocol::Udp, None, HOST_PORT)]);
        run(network.detach(&b)).unwrap();
        // After a restart, too.
        drop(network);
        network = wharf.network();
    }
    run(network.detach(&a)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listening = listener.local_addr().unwrap();
    let wanted = mapping(Protocol::Tcp, None, listening.port());
    let error = run(network.attach(&with_ports(&b, std::slice::from_ref(&wanted)))).unwrap_err();
    assert!(
        error.to_string().contains(&listening.to_string()),
        "{error}"
    );
    drop(listener);
    attach(&network, &b, &[wanted, port]);
    gone(&network, &[&b]);
}

#[test]
fn a_pod_with_thousands_of_host_ports_has_them_all_in_one_transaction() {
    let wharf = Wharf::dual_stack();
    let network = wharf.network();
    let a = pod_id();
    let mappings: Vec<_> = (10_000..13_000)
        .map(|port| mapping(Protocol::Tcp, None, port))
        .collect();
    let pod = attach(&network, &a, &mappings);
    reaches(&pod, None, at("127.0.0.1", 12_999)).unwrap();
    assert!(!run(wharf.network().reconcile()).unwrap(), "all are there");
    run(network.detach(&a)).unwrap();
    assert!(!ruleset().contains("elements = { tcp"));
    gone(&network, &[]);
}

#[test]
fn udp_clients_that_never_stop_find_the_pod_that_has_the_port_now() {
    udp_clients_find_the_pod(0);
}

/// More addresses than deletions by a filter are worth: flows are listed, as kernels that know no such filter have it.
#[test]
fn udp_clients_of_a_host_of_many_addresses_find_the_pod_that_has_the_port_now() {
    udp_clients_find_the_pod(20);
}

fn udp_clients_find_the_pod(more_addresses: u8) {
    let wharf = Wharf::new(24);
    for n in 1..=more_addresses {
        ip_command(&["address", "add", &format!("198.51.100.{n}/32"), "dev", "lo"]);
    }
    let outside = Outside::new();
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    let port = [mapping(Protocol::Udp, None, 5353)];
    let from_host = UdpSocket::bind("0.0.0.0:0").unwrap();
    let from_outside = inside(&outside.netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    let ask = |patience| {
        (
            ping(&from_host, at("127.0.0.1", 5353), patience),
            ping(&from_outside, at(HOST, 5353), patience),
        )
    };
    // These make flows that nothing translates.
    run(network.attach(&request(&b))).unwrap();
    run(network.detach(&b)).unwrap();
    ask(MOMENT);
    let said = |name: &str| (Some(name.to_owned()), Some(name.to_owned()));
    for (pod, name) in [(&a, "first"), (&b, "second")] {
        let attachment = attach(&network, pod, &port);
        let echo = Echo::new(Some(&attachment.netns), at("0.0.0.0", PORT), name);
        assert_eq!(ask(PATIENCE), said(name));
        assert_eq!(ask(PATIENCE), said(name));
        drop(echo);
        run(network.detach(pod)).unwrap();
        assert_eq!(ask(MOMENT), (None, None));
    }
    gone(&network, &[]);
}

#[test]
fn other_flows_of_a_host_port_s_number_are_not_forgotten_with_it() {
    let wharf = Wharf::new(24);
    let outside = Outside::new();
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    let (client, _) = run(network.attach(&request(&a))).unwrap();
    let server = inside(&outside.netns, || UdpSocket::bind(at(OUTSIDE, 53)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let question = inside(&client.netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    question.set_read_timeout(Some(PATIENCE)).unwrap();
    question.send_to(b"?", at(OUTSIDE, 53)).unwrap();
    let mut buffer = [0; 8];
    let (_, asker) = server.recv_from(&mut buffer).unwrap();
    // Between question and answer a pod with that port comes and goes.
    attach(&network, &b, &[mapping(Protocol::Udp, None, 53)]);
    run(network.detach(&b)).unwrap();
    server.send_to(b"!", asker).unwrap();
    assert_eq!(question.recv(&mut buffer).unwrap(), 1);
    gone(&network, &[&a]);
}

/// An SCTP packet that begins an association (RFC 9260, 3.3.2).
fn init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    // No verification tag yet, and the checksum to come.
    packet.extend([0; 8]);
    // INIT, its length, a tag, a window of 64 KiB, a stream each way, the first number.
    packet.extend([1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c::crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// The kernel need not have SCTP sockets for its packets to be translated: an INIT is sent and received as raw IP.
#[test]
fn sctp_is_led_to_its_pod_like_the_others() {
    let wharf = Wharf::new(24);
    let outside = Outside::new();
    let network = wharf.network();
    let a = pod_id();
    let pod = attach(&network, &a, &[mapping(Protocol::Sctp, None, HOST_PORT)]);
    let raw = |place: &Path| {
        let open = || {
            rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap()
        };
        inside(place, open)
    };
    let (sender, receiver) = (raw(&outside.netns), raw(&pod.netns));
    set_socket_timeout(&receiver, Timeout::Recv, Some(PATIENCE)).unwrap();
    rustix::net::sendto(
        &sender,
        &init(4000, HOST_PORT),
        SendFlags::empty(),
        &at(HOST, 0),
    )
    .unwrap();
    let mut buffer = [0; 128];
    let (length, _) = rustix::net::recv(&receiver, &mut buffer[..], RecvFlags::empty()).unwrap();
    // Behind an IP header of 20 bytes, the ports; the checksum was made anew for the new one.
    assert_eq!(buffer[20..length], init(4000, PORT));
    gone(&network, &[&a]);
}

#[test]
fn loopback_of_the_host_is_out_of_reach_for_pods_and_neighbours_sec_net_03() {
    let wharf = Wharf::new(24);
    let outside = Outside::new();
    let network = wharf.network();
    let a = pod_id();
    // Makes the bridge a way for packets with loopback addresses.
    let pod = attach(&network, &a, &[mapping(Protocol::Tcp, None, HOST_PORT)]);
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    service.set_read_timeout(Some(MOMENT)).unwrap();
    let target = service.local_addr().unwrap();
    let send = |place: &Path, via: &str| {
        inside(place, || {
            let link = if via == HOST { "out0" } else { "eth0" };
            for link in ["all", link] {
                let path = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
                std::fs::write(path, "1").unwrap();
            }
            ip_command(&["-4", "address", "flush", "dev", "lo"]);
            ip_command(&["route", "replace", "127.0.0.1/32", "via", via, "dev", link]);
            let source = if via == HOST {
                OUTSIDE.parse().unwrap()
            } else {
                ip(&pod)
            };
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.send_to(b"martian", target).unwrap();
        });
    };
    let gateway = network.gateway().to_string();
    let mut buffer = [0; 16];
    for (place, via) in [(&outside.netns, HOST), (&pod.netns, gateway.as_str())] {
        send(place, via);
        assert!(service.recv(&mut buffer).is_err(), "from {via}");
    }
    // The same packet arrives where our guard is not: it is the guard that keeps it out.
    nft(&["flush", "chain", "inet", &wharf.table(), "guard"]);
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    send(&pod.netns, &gateway);
    assert_eq!(service.recv(&mut buffer).unwrap(), 7);
    service.set_read_timeout(Some(MOMENT)).unwrap();
    // And it comes back by itself (SEC-NET-07).
    assert!(run(network.reconcile()).unwrap());
    send(&pod.netns, &gateway);
    assert!(service.recv(&mut buffer).is_err());
    gone(&network, &[&a]);
}

#[test]
fn rules_that_were_flushed_or_tampered_with_are_made_anew_and_others_left_alone_sec_net_07() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    let table = wharf.table();
    let server = attach(&network, &a, &[mapping(Protocol::Tcp, None, HOST_PORT)]);
    assert!(!run(network.reconcile()).unwrap(), "nothing is amiss");
    let whole = ruleset();
    nft(&["add", "table", "inet", "foreign"]);
    nft(&[
        "add",
        "chain",
        "inet",
        "foreign",
        "input",
        "{ type filter hook input priority 0; }",
    ]);
    nft(&[
        "add", "rule", "inet", "foreign", "input", "tcp", "dport", "1", "drop",
    ]);
    let stray = "{ tcp . 9999 : 10.201.7.99 . 1 }";
    let tampers: [&[&str]; 5] = [
        &["flush", "table", "inet", &table],
        &["delete", "table", "inet", &table],
        &["flush", "map", "inet", &table, "host_ports_v4"],
        &["add", "element", "inet", &table, "host_ports_v4", stray],
        &["flush", "chain", "inet", &table, "prerouting"],
    ];
    for tamper in tampers {
        for network in [&network, &wharf.network()] {
            nft(tamper);
            assert!(run(network.reconcile()).unwrap(), "{tamper:?}");
            let now = ruleset();
            assert!(
                now.starts_with(&whole) || now.contains("foreign"),
                "{tamper:?}"
            );
            let ours = |text: &str| {
                let from = text.find(&format!("table inet {table}")).unwrap();
                let text = &text[from..];
                text[..text.find("\n}").unwrap()].to_owned()
            };
            assert_eq!(ours(&now), ours(&whole), "{tamper:?}");
            assert!(now.contains("tcp dport 1 drop"));
            reaches(&server, None, at("127.0.0.1", HOST_PORT)).unwrap();
        }
    }
    // A pod that comes, and one that goes, while the table is gone.
    nft(&["delete", "table", "inet", &table]);
    let other = attach(&network, &b, &[mapping(Protocol::Tcp, None, 9090)]);
    reaches(&other, None, at("127.0.0.1", 9090)).unwrap();
    reaches(&server, None, at("127.0.0.1", HOST_PORT)).unwrap();
    nft(&["delete", "table", "inet", &table]);
    run(network.detach(&a)).unwrap();
    drop(network);
    let network = wharf.network();
    run(network.detach(&b)).unwrap();
    gone(&network, &[]);
    assert!(ruleset().contains("tcp dport 1 drop"));
    nft(&["delete", "table", "inet", "foreign"]);
}

#[test]
fn two_daemons_on_one_host_keep_out_of_each_other_s_tables() {
    let wharf = Wharf::new(24);
    let dir = tempfile::tempdir().unwrap();
    let mut config = wharf.config.clone();
    config.bridge = "bt1".into();
    config.subnet = "10.202.7.0/24".parse().unwrap();
    config.netns_dir = dir.path().join("netns");
    config.lease_dir = dir.path().join("leases");
    let ledger = berth_state::Ledger::open(&dir.path().join("ledger")).unwrap();
    let (first, second) = (wharf.network(), Network::open(config, ledger).unwrap());
    let (a, b) = (pod_id(), pod_id());
    let on_first = attach(&first, &a, &[mapping(Protocol::Tcp, None, 8001)]);
    let on_second = attach(&second, &b, &[mapping(Protocol::Tcp, None, 8002)]);
    reaches(&on_first, None, at("127.0.0.1", 8001)).unwrap();
    reaches(&on_second, None, at("127.0.0.1", 8002)).unwrap();
    // From a pod of the one to a pod of the other, by the host.
    reaches(
        &on_second,
        Some(&on_first.netns),
        SocketAddr::new(first.gateway().into(), 8002),
    )
    .unwrap();
    gone(&second, &[&b]);
    reaches(&on_first, None, at("127.0.0.1", 8001)).unwrap();
    gone(&first, &[&a]);
}

#[test]
fn what_goes_through_a_pod_s_interface_is_counted() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let a = pod_id();
    let (pod, _) = run(network.attach(&request(&a))).unwrap();
    let counters = || {
        let all = run(network.statistics(&a)).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].name, "eth0");
        all[0].clone()
    };
    let before = counters();
    let echo = Echo::new(Some(&pod.netns), SocketAddr::new(ip(&pod), 7), "0123456789");
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..10 {
        ping(&socket, SocketAddr::new(ip(&pod), 7), PATIENCE).unwrap();
    }
    drop(echo);
    let after = counters();
    assert!(after.rx_packets >= before.rx_packets + 10, "{after:?}");
    // Ethernet, IP and UDP headers and a byte each; and those of the answers.
    assert!(
        after.rx_bytes >= before.rx_bytes + 10 * (14 + 20 + 8 + 1),
        "{after:?}"
    );
    assert!(
        after.tx_bytes >= before.tx_bytes + 10 * (14 + 20 + 8 + 10),
        "{after:?}"
    );
    assert!(after.tx_packets >= before.tx_packets + 10, "{after:?}");
    assert_eq!((after.rx_errors, after.tx_errors), (0, 0));
    gone(&network, &[&a]);
    assert!(run(network.statistics(&a)).is_err());
}
