//! Host ports of CNI networks: portmap leads them, and no port is two pods', whichever network they have.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{PodSandboxConfig, PortMapping, Protocol};
use berth_tests::{
    Node,
    cni::{CONF, Fake, put},
};
use nix::sched::{CloneFlags, setns};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, ipproto,
    sockopt::{Timeout, set_socket_timeout},
};
use serde_json::json;

use super::{PATIENCE, address, bridge, clean, leased, masked_in, remove, tables, with_fake};
use crate::host_port::{HOST, neighbour, neighbours_namespace};

/// For what must not come.
const MOMENT: Duration = Duration::from_millis(300);
const GATEWAY: &str = "10.201.11.1";

/// In the network namespace; the test's own where there is none.
fn placed<T: Send>(netns: Option<&Path>, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(netns) = netns else {
        return act();
    };
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            setns(fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
            act()
        });
        acting.join().expect("no panic")
    })
}

fn mapping(protocol: Protocol, host_port: i32, container_port: i32, host_ip: &str) -> PortMapping {
    PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: host_ip.to_owned(),
    }
}

fn with(mut pod: PodSandboxConfig, mappings: &[PortMapping]) -> PodSandboxConfig {
    pod.port_mappings = mappings.to_vec();
    pod
}

/// Serves "tcp" and "udp" on these ports of the pod for as long as the test's process lives.
fn serve(netns: &Path, tcp: u16, udp: u16) -> Result<()> {
    let (listener, socket) = placed(Some(netns), || {
        Ok((
            TcpListener::bind(("0.0.0.0", tcp))?,
            UdpSocket::bind(("0.0.0.0", udp))?,
        ))
    })?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let _ = (&client).write_all(b"tcp");
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(b"udp", peer);
        }
    });
    Ok(())
}

fn ask_tcp(from: Option<&Path>, to: SocketAddr, patience: Duration) -> Result<String> {
    placed(from, || {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn ask_udp(from: Option<&Path>, to: SocketAddr, patience: Duration) -> Result<String> {
    placed(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(patience))?;
        socket.send_to(b"?", to)?;
        let mut buffer = [0; 16];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
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

/// The kernel need not have sockets of SCTP for its packets to be led.
fn raw_sctp(place: Option<&Path>) -> Result<OwnedFd> {
    placed(place, || {
        let protocol = Some(ipproto::SCTP);
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(socket)
    })
}

fn with_portmap(dir: &Path) -> Result<()> {
    tables()?;
    neighbour(dir)?;
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    put(
        &dir.join("cni/10-net.conflist"),
        &bridge(dir, "net", "10.201.11.0/24", &[portmap]),
    )
}

#[test]
fn portmap_leads_every_protocol_to_its_pod_from_everywhere() -> Result<()> {
    Node::test_with(masked_in(with_portmap), async |node| {
        let asked = [
            mapping(Protocol::Tcp, 18080, 80, ""),
            mapping(Protocol::Udp, 18053, 53, ""),
            mapping(Protocol::Sctp, 18132, 132, ""),
            mapping(Protocol::Tcp, 18081, 80, HOST),
            mapping(Protocol::Udp, 18054, 53, HOST),
        ];
        let pod = node.run(with(node.pod("serving"), &asked)).await?;
        let asking = node.run(node.pod("asking")).await?;
        let netns = |id: &str| node.daemon.state.join("netns").join(id);
        serve(&netns(&pod.id), 80, 53)?;
        let outside = PathBuf::from(neighbours_namespace(node)?);
        let sibling = netns(&asking.id);
        let at =
            |ip: &str, port: u16| -> Result<SocketAddr> { Ok(SocketAddr::new(ip.parse()?, port)) };
        let places: [(&str, Option<&Path>, &[&str]); 3] = [
            ("the host", None, &["127.0.0.1", HOST, GATEWAY]),
            ("another pod", Some(&sibling), &[HOST, GATEWAY]),
            ("outside", Some(&outside), &[HOST]),
        ];
        for (who, place, addresses) in places {
            for address in addresses {
                let what = format!("from {who} to {address}");
                let tcp = ask_tcp(place, at(address, 18080)?, PATIENCE);
                ensure!(tcp.with_context(|| what.clone())? == "tcp");
                let udp = ask_udp(place, at(address, 18053)?, PATIENCE);
                ensure!(udp.with_context(|| what.clone())? == "udp");
                // Those with a host IP, by it alone.
                let patience = if *address == HOST { PATIENCE } else { MOMENT };
                let tcp = ask_tcp(place, at(address, 18081)?, patience);
                let udp = ask_udp(place, at(address, 18054)?, patience);
                match *address == HOST {
                    true => ensure!(tcp? == "tcp" && udp? == "udp", "{what}"),
                    false => ensure!(tcp.is_err() && udp.is_err(), "{what}: {tcp:?} {udp:?}"),
                }
            }
        }
        let (sender, receiver) = (raw_sctp(Some(&outside))?, raw_sctp(Some(&netns(&pod.id)))?);
        let packet = init(4000, 18132);
        rustix::net::sendto(&sender, &packet, SendFlags::empty(), &at(HOST, 0)?)?;
        let mut buffer = [0; 128];
        let (length, _) = rustix::net::recv(&receiver, &mut buffer[..], RecvFlags::empty())
            .context("SCTP did not arrive")?;
        // Behind an IP header of 20 bytes, the ports.
        ensure!(
            buffer[20..24] == [0x0f, 0xa0, 0, 132],
            "{:?}",
            &buffer[..length]
        );

        let taken = node.pod("twice");
        for wanted in [
            &asked[1],
            &asked[2],
            &mapping(Protocol::Udp, 18053, 1, HOST),
        ] {
            let error = node
                .cri
                .run_pod(&with(taken.clone(), std::slice::from_ref(wanted)))
                .await
                .unwrap_err();
            ensure!(
                error.message().contains(&pod.id)
                    && error.message().contains(&wanted.host_port.to_string()),
                "{error:?}"
            );
        }
        ensure!(leased(&node.dir).len() == 2, "{:?}", leased(&node.dir));
        for pod in [&pod, &asking] {
            remove(node, pod).await?;
        }
        for port in [18080, 18081] {
            let closed = ask_tcp(Some(&outside), at(HOST, port)?, MOMENT);
            ensure!(closed.is_err(), "{port} is open after its pod is gone");
        }
        clean(node)
    })
}

#[test]
fn a_host_port_is_one_pod_s_whichever_network_it_has_sec_net_06() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        let conf = fs::read_to_string(node.dir.join(CONF))?;
        let file = node.dir.join(CONF);
        let builtin = |on: bool| match on {
            true => fs::remove_file(&file).map_err(Into::into),
            false => put(&file, &conf),
        };
        let (one, two) = (
            mapping(Protocol::Tcp, 18080, 80, ""),
            mapping(Protocol::Tcp, 18081, 80, ""),
        );
        let refused = async |node: &Node, port: &PortMapping, by: &str| -> Result<()> {
            let config = with(node.pod("refused"), std::slice::from_ref(port));
            let error = node.cri.run_pod(&config).await.unwrap_err();
            ensure!(
                error.code() == tonic::Code::FailedPrecondition
                    && error.message().contains(by)
                    && error.message().contains(&port.host_port.to_string()),
                "{error:?}"
            );
            Ok(())
        };
        builtin(true)?;
        let first = node
            .run(with(node.pod("first"), std::slice::from_ref(&one)))
            .await?;
        ensure!(address(node, &first).await?.starts_with("10.88."));
        builtin(false)?;
        refused(node, &one, &first.id).await?;
        refused(
            node,
            &mapping(Protocol::Tcp, 18080, 1, "127.0.0.1"),
            &first.id,
        )
        .await?;
        ensure!(fake.count("ADD ") == 0, "{:?}", fake.calls());
        let second = node
            .run(with(node.pod("second"), std::slice::from_ref(&two)))
            .await?;
        ensure!(address(node, &second).await?.starts_with("10.203."));
        refused(node, &two, &second.id).await?;
        builtin(true)?;
        refused(node, &two, &second.id).await?;
        node.restart().await?;
        refused(node, &two, &second.id).await?;
        builtin(false)?;
        refused(node, &one, &first.id).await?;

        // A plugin whose DEL is owed may lead the port still.
        fake.on("DEL", "echo '{\"code\":11,\"msg\":\"not now\"}'; exit 1")?;
        node.cri.stop_pod(&second.id).await.unwrap_err();
        builtin(true)?;
        refused(node, &two, &second.id).await?;
        fake.well()?;
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() > 0 {
            ensure!(Instant::now() < deadline, "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        remove(node, &second).await?;
        let third = node
            .run(with(node.pod("third"), std::slice::from_ref(&two)))
            .await?;
        remove(node, &first).await?;
        builtin(false)?;
        refused(node, &two, &third.id).await?;
        let fourth = node
            .run(with(node.pod("fourth"), std::slice::from_ref(&one)))
            .await?;
        for pod in [&third, &fourth] {
            remove(node, pod).await?;
        }
        clean(node)
    })
}
