//! The pool of namespaces on the real kernel.

mod wharf;

use std::{os::unix::process::ExitStatusExt, time::Instant};

use berth_network::{Builtin as Network, LEDGER_OWNER};
use berth_state::Object;
use nix::libc;
use wharf::*;

fn full(network: &Network, size: usize) {
    run(network.fill_pool()).unwrap();
    eventually("the pool is full", || network.pooled() == size);
}

fn pool_links(wharf: &Wharf) -> Vec<String> {
    let objects = wharf.ledger().outstanding(LEDGER_OWNER).unwrap();
    objects
        .into_iter()
        .filter_map(|object| match object {
            Object::Link(name) if name.starts_with("berth") => Some(name),
            _ => None,
        })
        .collect()
}

#[test]
fn a_pod_with_a_namespace_of_the_pool_is_like_any_other() {
    let mut wharf = Wharf::dual_stack();
    wharf.config.namespace_pool = 3;
    let _outside = Outside::new();
    let network = wharf.network();
    full(&network, 3);
    let links = pool_links(&wharf);
    assert_eq!(links.len(), 3, "each is in the ledger");
    assert!(links.iter().all(|link| link_exists(link)));

    let mut plain = wharf.config.clone();
    plain.namespace_pool = 0;
    let without = Network::open(plain, wharf.ledger()).unwrap();
    let (a, b) = (pod_id(), pod_id());
    let (pooled, _) = run(network.attach(&request(&a))).unwrap();
    let (fresh, _) = run(without.attach(&request(&b))).unwrap();
    eventually("the pool is full again", || network.pooled() == 3);

    // What a container sees but for the addresses.
    let seen = |attachment: &berth_network::Attachment| {
        inside(&attachment.netns, || {
            let output = |arguments: &[&str]| {
                let output = std::process::Command::new("ip").args(arguments).output();
                String::from_utf8(output.unwrap().stdout).unwrap()
            };
            let mut text = output(&["-brief", "link"]);
            text += &output(&["route"]);
            text += &output(&["-6", "route", "show", "default"]);
            for key in ["accept_ra", "accept_dad"] {
                let path = format!("/proc/sys/net/ipv6/conf/eth0/{key}");
                text += &std::fs::read_to_string(path).unwrap();
            }
            // Index, addresses and their digits differ.
            text.lines()
                .map(|line| line.split("10.201.7.").next().unwrap())
                .flat_map(|line| line.split_whitespace())
                .filter(|word| !word.contains("0a:be:") && !word.contains("@if"))
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(seen(&pooled), seen(&fresh));
    for n in 0..2 {
        assert_eq!(
            talk(Some(&pooled.netns), pooled.ips[n], Some(&fresh.netns)),
            fresh.ips[n]
        );
        assert_eq!(
            talk(Some(&fresh.netns), fresh.ips[n], Some(&pooled.netns)),
            pooled.ips[n]
        );
    }
    let again = run(without.attach(&request(&a))).unwrap().0;
    assert_eq!(again, pooled, "another daemon finds it whole");
    for pod in [&a, &b] {
        run(network.detach(pod)).unwrap();
    }
    run(without.detach(&b)).unwrap();
    assert!(run(network.remove_bridge_if_unused()).unwrap());
    assert_eq!(network.pooled(), 0);
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_of_its_pool_to_the_next_one() {
    for site in [
        "network.lease.made",
        "network.link.addressed",
        "network.netns.unmounted",
    ] {
        let wharf = Wharf::new(24);
        let pod = pod_id();
        let (attach, detach) = (format!("attach:{pod}"), format!("detach:{pod}"));
        let output = wharf.child(
            &format!("{site}=return(kill)"),
            &["pool:3", &attach, &detach, "close"],
        );
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGKILL),
            "{site}: {output:?}"
        );
        assert!(!pool_links(&wharf).is_empty(), "{site}");
        let network = wharf.network();
        run(network.reconcile()).unwrap();
        assert!(pool_links(&wharf).is_empty(), "{site}");
        run(network.attach(&request(&pod))).unwrap();
        run(network.detach(&pod)).unwrap();
        run(network.remove_bridge_if_unused()).unwrap();
        assert_eq!(wharf.left(), Vec::<String>::new(), "{site}");
    }
}

#[test]
fn a_pool_whose_bridge_was_removed_by_hand_is_made_anew() {
    let mut wharf = Wharf::new(24);
    wharf.config.namespace_pool = 2;
    let network = wharf.network();
    full(&network, 2);
    ip_command(&["link", "delete", &wharf.config.bridge]);
    run(network.reconcile()).unwrap();
    let pod = pod_id();
    let (attachment, _) = run(network.attach(&request(&pod))).unwrap();
    assert_eq!(
        talk(None, network.gateway().into(), Some(&attachment.netns)),
        ip(&attachment)
    );
    run(network.detach(&pod)).unwrap();
    run(network.remove_bridge_if_unused()).unwrap();
}

/// Figures, not promises: they depend on the machine and its load.
#[test]
#[ignore = "a benchmark: alone, with --release, on a machine at rest"]
fn figures_of_many_pods_with_the_pool_and_without() {
    const PODS: usize = 50;
    for (pool, in_flight) in [(0, 1), (0, 10), (0, PODS), (16, 1), (16, 10), (64, PODS)] {
        let mut wharf = Wharf::new(24);
        wharf.config.namespace_pool = pool;
        let _outside = Outside::new();
        let network = wharf.network();
        full(&network, pool);
        let pods: Vec<String> = (0..PODS).map(|_| pod_id()).collect();
        let (mut attach, mut detach) = (Vec::new(), Vec::new());
        let whole = Instant::now();
        run(async {
            for batch in pods.chunks(in_flight) {
                let tasks: Vec<_> = batch
                    .iter()
                    .map(|pod| (network.clone(), request(pod)))
                    .map(|(network, request)| {
                        tokio::spawn(async move {
                            let start = Instant::now();
                            network.attach(&request).await.unwrap();
                            start.elapsed()
                        })
                    })
                    .collect();
                for task in tasks {
                    attach.push(task.await.unwrap());
                }
                if in_flight == 1 && pool > 0 {
                    while network.pooled() < pool {
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                }
            }
        });
        let whole = whole.elapsed();
        run(async {
            for pod in &pods {
                let start = Instant::now();
                network.detach(pod).await.unwrap();
                detach.push(start.elapsed());
            }
            network.remove_bridge_if_unused().await.unwrap();
        });
        attach.sort();
        detach.sort();
        println!(
            "pool {pool}, {in_flight} in flight: attach best {:?}, median {:?}, p95 {:?}, all {PODS} in {whole:?}; detach median {:?}, p95 {:?}",
            attach[0],
            attach[PODS / 2],
            attach[PODS * 95 / 100],
            detach[PODS / 2],
            detach[PODS * 95 / 100]
        );
    }
}
