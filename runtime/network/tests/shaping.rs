//! Limits of bandwidth, on the real kernel.

mod wharf;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use berth_network::{AttachRequest, Bandwidth};
use wharf::*;

/// Well above what the buckets and the sockets' buffers take at once.
const BYTES: usize = 3 << 20;

/// How long so many bytes take from a client to a server.
fn transfer(from: Option<&Path>, to: Option<&Path>, address: SocketAddr) -> Duration {
    let listener = placed(to, || TcpListener::bind(address).unwrap());
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.take(BYTES as u64), &mut std::io::sink()).unwrap()
    });
    let since = Instant::now();
    let mut stream = placed(from, || TcpStream::connect(address).unwrap());
    stream.write_all(&vec![0; BYTES]).unwrap();
    assert_eq!(server.join().unwrap(), BYTES as u64);
    since.elapsed()
}

#[test]
fn a_pod_with_a_limit_is_as_fast_as_it_in_each_direction_and_its_neighbour_is_not_held_up() {
    for namespace_pool in [0, 1] {
        let mut wharf = Wharf::new(24);
        wharf.config.namespace_pool = namespace_pool;
        let network = wharf.network();
        run(network.fill_pool()).unwrap();
        eventually("the pool is full", || network.pooled() == namespace_pool);
        let (a, b) = (pod_id(), pod_id());
        let limited = AttachRequest {
            // 2 MB/s and 1 MB/s
            bandwidth: Some(Bandwidth {
                ingress_bits: Some(16_000_000),
                egress_bits: Some(8_000_000),
            }),
            ..request(&a)
        };
        let (slow, _) = run(network.attach(&limited)).unwrap();
        let (fast, _) = run(network.attach(&request(&b))).unwrap();
        let gateway = SocketAddr::from((network.gateway(), 0));
        let to_pod = |pod: &berth_network::Attachment| {
            transfer(None, Some(&pod.netns), SocketAddr::new(ip(pod), 0))
        };
        let from_pod = |pod: &berth_network::Attachment| transfer(Some(&pod.netns), None, gateway);
        // The bucket's 0.1 s are free.
        for (what, took, least) in [
            ("to the pod", to_pod(&slow), 1.2),
            ("from the pod", from_pod(&slow), 2.5),
        ] {
            let took = took.as_secs_f64();
            assert!(took > least && took < 3.0 * least, "{what}: {took} s");
        }
        for took in [to_pod(&fast), from_pod(&fast)] {
            assert!(took.as_secs_f64() < 1.0, "{took:?}");
        }
        // As it was made, after a restart.
        let (again, _) = run(wharf.network().attach(&limited)).unwrap();
        assert_eq!(again, slow);
        for pod in [&a, &b] {
            run(network.detach(pod)).unwrap();
        }
        assert!(run(network.remove_bridge_if_unused()).unwrap());
    }
}
