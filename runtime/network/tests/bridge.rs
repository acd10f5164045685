//! The built-in network on the real kernel (as root): every test has a network namespace and directories of its own, and leaves nothing.

mod wharf;

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt,
    path::Path,
    thread,
    time::Duration,
};

use berth_network::{Attachment, Builtin as Network, Config, Error};
use berth_state::{Ledger, Object};
use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use wharf::*;

#[test]
fn two_pods_reach_each_other_the_host_and_are_reached_by_it() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    run(async {
        let (first, timing) = network.attach(&request(&a)).await.unwrap();
        assert!(timing.netns_ms > 0.0 && timing.network_ms > 0.0);
        let (second, _) = network.attach(&request(&b)).await.unwrap();
        assert_ne!(first.ips, second.ips);
        assert_eq!(first.interface, "eth0");
        assert_eq!(first.netns, network.netns_path(&a));
        for address in [ip(&first), ip(&second)] {
            let IpAddr::V4(address) = address else {
                panic!("{address}")
            };
            assert!(wharf.config.subnet.contains(&address) && address != network.gateway());
        }
        let gateway = IpAddr::V4(network.gateway());
        assert_eq!(
            talk(Some(&first.netns), ip(&first), Some(&second.netns)),
            ip(&second),
            "pod to pod, the address untouched"
        );
        assert_eq!(
            talk(None, gateway, Some(&first.netns)),
            ip(&first),
            "pod to host"
        );
        assert_eq!(
            talk(Some(&second.netns), ip(&second), None),
            gateway,
            "host to pod"
        );
        network.ready().unwrap();

        network.detach(&a).await.unwrap();
        eventually("the link is gone", || !link_exists(&first.host_link));
        assert!(
            !network.remove_bridge_if_unused().await.unwrap(),
            "a pod is left"
        );
        assert_eq!(talk(None, gateway, Some(&second.netns)), ip(&second));
        network.detach(&b).await.unwrap();
        network.detach(&b).await.unwrap();
        assert!(network.remove_bridge_if_unused().await.unwrap());
        assert!(network.remove_bridge_if_unused().await.unwrap());
    });
}

#[test]
fn containers_of_a_pod_share_address_and_loopback_po_03() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pod = pod_id();
    let (attachment, _) = run(network.attach(&request(&pod))).unwrap();
    // What a container sees is what a thread in the namespace sees.
    let seen = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .connect(SocketAddr::from((network.gateway(), 9)))
            .unwrap();
        let links: Vec<String> = fs::read_to_string("/proc/thread-self/net/dev")
            .unwrap()
            .lines()
            .skip(2)
            .map(|l| l.trim().to_owned())
            .collect();
        (socket.local_addr().unwrap().ip(), links.len())
    };
    assert_eq!(inside(&attachment.netns, seen), (ip(&attachment), 2));
    assert_eq!(inside(&attachment.netns, seen), (ip(&attachment), 2));
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    assert_eq!(
        talk(Some(&attachment.netns), loopback, Some(&attachment.netns)),
        loopback
    );
    run(network.detach(&pod)).unwrap();
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn no_link_of_ours_takes_router_adverts_sec_net_04() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pod = pod_id();
    let (attachment, _) = run(network.attach(&request(&pod))).unwrap();
    let accept_ra = |link: &str| {
        fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/accept_ra")).unwrap()
    };
    assert_eq!(accept_ra(&wharf.config.bridge), "0\n");
    assert_eq!(accept_ra(&attachment.host_link), "0\n");
    assert_eq!(inside(&attachment.netns, || accept_ra("eth0")), "0\n");
    run(network.detach(&pod)).unwrap();
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn an_attached_pod_stays_as_it_is_over_a_restart_and_another_attach() {
    let wharf = Wharf::new(24);
    let pod = pod_id();
    let (before, _) = run(wharf.network().attach(&request(&pod))).unwrap();
    let mac = |link: &str| nix::net::if_::if_nametoindex(link).unwrap();
    let index = mac(&before.host_link);
    let network = wharf.network();
    let (after, _) = run(network.attach(&request(&pod))).unwrap();
    assert_eq!(before, after);
    assert_eq!(mac(&after.host_link), index, "the link was not made anew");
    let other = pod_id();
    let (other_attachment, _) = run(network.attach(&request(&other))).unwrap();
    assert_ne!(other_attachment.ips, after.ips, "the lease survived");
    for pod in [&pod, &other] {
        run(network.detach(pod)).unwrap();
    }
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn what_is_broken_in_an_attached_pod_is_made_anew_by_the_next_attach() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pod = pod_id();
    let breaks: [fn(&Attachment); 4] = [
        |a| ip_command(&["link", "delete", &a.host_link]),
        |a| umount2(&a.netns, MntFlags::MNT_DETACH).unwrap(),
        |a| inside(&a.netns, || ip_command(&["route", "delete", "default"])),
        |a| inside(&a.netns, || ip_command(&["link", "set", "eth0", "down"])),
    ];
    for (n, break_it) in breaks.into_iter().enumerate() {
        let (before, _) = run(network.attach(&request(&pod))).unwrap();
        break_it(&before);
        let (after, _) = run(network.attach(&request(&pod))).unwrap();
        assert_eq!(
            talk(None, network.gateway().into(), Some(&after.netns)),
            ip(&after),
            "break {n}"
        );
    }
    run(network.detach(&pod)).unwrap();
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn a_range_of_one_address_serves_pod_after_pod_and_says_when_it_is_exhausted_rel_05() {
    let wharf = Wharf::new(30);
    let network = wharf.network();
    run(async {
        for _ in 0..10 {
            let pod = pod_id();
            network.attach(&request(&pod)).await.unwrap();
            let other = pod_id();
            let error = network.attach(&request(&other)).await.unwrap_err();
            assert!(
                matches!(error, Error::Exhausted { leased: 1, .. }),
                "{error}"
            );
            assert!(wharf.ledger().outstanding(&other).unwrap().is_empty());
            assert!(!network.netns_path(&other).exists());
            network.detach(&pod).await.unwrap();
        }
        network.remove_bridge_if_unused().await.unwrap();
    });
}

#[test]
fn pods_attached_all_at_once_get_addresses_of_their_own() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pods: Vec<String> = (0..50).map(|_| pod_id()).collect();
    run(async {
        let tasks: Vec<_> = pods
            .iter()
            .cloned()
            .map(|pod| (network.clone(), pod))
            .map(|(n, pod)| tokio::spawn(async move { n.attach(&request(&pod)).await }))
            .collect();
        let mut ips = HashSet::new();
        for task in tasks {
            let (attachment, _) = task.await.unwrap().unwrap();
            assert!(ips.insert(ip(&attachment)));
        }
        // The first still reaches.
        assert!(
            talk(
                None,
                network.gateway().into(),
                Some(&network.netns_path(&pods[0]))
            )
            .is_ipv4()
        );
        let tasks: Vec<_> = pods
            .iter()
            .cloned()
            .map(|pod| (network.clone(), pod))
            .map(|(n, pod)| tokio::spawn(async move { n.detach(&pod).await }))
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert!(network.remove_bridge_if_unused().await.unwrap());
    });
}

#[test]
fn calls_that_the_client_gave_up_leave_nothing_after_a_detach() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    run(async {
        for wait_us in [0, 50, 200, 500, 1000, 2000, 5000] {
            let pod = pod_id();
            let given_up = {
                let (network, pod) = (network.clone(), pod.clone());
                tokio::spawn(async move { network.attach(&request(&pod)).await })
            };
            thread::sleep(Duration::from_micros(wait_us / 2));
            tokio::task::yield_now().await;
            thread::sleep(Duration::from_micros(wait_us));
            given_up.abort();
            network.detach(&pod).await.unwrap();
            assert!(wharf.ledger().outstanding(&pod).unwrap().is_empty());
        }
        network.remove_bridge_if_unused().await.unwrap();
    });
}

#[test]
fn foreign_links_and_routes_are_told_and_left_alone() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pod = pod_id();
    let name = wharf.config.bridge.as_str();
    let gateway = format!("{}/24", network.gateway());

    for (kind, says) in [
        ("bridge", "a bridge of another program"),
        ("veth", "a veth link"),
    ] {
        ip_command(&["link", "add", name, "type", kind]);
        for error in [
            network.ready().unwrap_err(),
            run(network.attach(&request(&pod))).unwrap_err(),
        ] {
            assert!(
                error.to_string().contains(says) && error.to_string().contains(name),
                "{error}"
            );
        }
        assert!(link_exists(name));
        ip_command(&["link", "delete", name]);
    }

    let other = format!("bo{:08x}", random() as u32);
    ip_command(&["link", "add", &other, "type", "bridge"]);
    ip_command(&["address", "add", &gateway, "dev", &other]);
    ip_command(&["link", "set", &other, "up"]);
    let errors = [
        network.ready().unwrap_err(),
        run(network.attach(&request(&pod))).unwrap_err(),
    ];
    ip_command(&["link", "delete", &other]);
    for error in errors {
        assert!(
            matches!(&error, Error::SubnetTaken { link: Some(link), .. } if *link == other),
            "{error}"
        );
    }

    // A link that has the pod's name without being the pod's survives its attach and its detach.
    let link = format!("berth{}", &pod[..10]);
    ip_command(&["link", "add", &link, "type", "bridge"]);
    let error = run(network.attach(&request(&pod))).unwrap_err();
    wharf
        .ledger()
        .intend(&pod, &Object::Link(link.clone()))
        .unwrap();
    run(network.detach(&pod)).unwrap();
    let survived = link_exists(&link);
    ip_command(&["link", "delete", &link]);
    assert!(matches!(error, Error::ForeignLink { .. }), "{error}");
    assert!(survived);
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn a_bridge_removed_by_hand_comes_back_with_the_next_pod() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    run(network.attach(&request(&a))).unwrap();
    run(network.detach(&a)).unwrap();
    ip_command(&["link", "delete", &wharf.config.bridge]);
    let (attachment, _) = run(network.attach(&request(&b))).unwrap();
    assert_eq!(
        talk(None, network.gateway().into(), Some(&attachment.netns)),
        ip(&attachment)
    );
    run(network.detach(&b)).unwrap();
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn a_changed_configuration_replaces_an_unused_bridge_and_respects_a_used_one() {
    let wharf = Wharf::new(24);
    let pod = pod_id();
    run(wharf.network().attach(&request(&pod))).unwrap();
    let mut config = wharf.config.clone();
    config.subnet = ipnet::Ipv4Net::new(config.subnet.network(), 25).unwrap();
    let changed = Network::open(config, wharf.ledger()).unwrap();
    assert!(matches!(changed.ready(), Err(Error::ForeignLink { .. })));
    run(changed.detach(&pod)).unwrap();
    let (attachment, _) = run(changed.attach(&request(&pod))).unwrap();
    assert_eq!(
        talk(None, changed.gateway().into(), Some(&attachment.netns)),
        ip(&attachment)
    );
    run(changed.detach(&pod)).unwrap();
    assert!(run(changed.remove_bridge_if_unused()).unwrap());
}

#[test]
fn ranges_that_the_kubelet_tells_are_taken_up_once_no_pod_has_an_address_of_others() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let (a, b) = (pod_id(), pod_id());
    let ranges = |texts: &[&str]| -> Vec<ipnet::IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let told = ranges(&["fd07:300::/64", "10.203.4.0/24", "10.204.0.0/16"]);
    run(network.attach(&request(&a))).unwrap();
    let error = run(network.set_ranges(&told)).unwrap_err();
    assert!(matches!(error, Error::RangesInUse { .. }), "{error}");
    run(network.detach(&a)).unwrap();
    run(network.set_ranges(&told)).unwrap();
    let (attachment, _) = run(network.attach(&request(&a))).unwrap();
    let of_told = |attachment: &Attachment| {
        told[1].contains(&attachment.ips[0]) && told[0].contains(&attachment.ips[1])
    };
    assert!(of_told(&attachment), "{attachment:?}");
    assert_eq!(
        talk(None, network.gateway().into(), Some(&attachment.netns)),
        ip(&attachment)
    );
    // A daemon that starts is told before it does anything, and finds its pods.
    let network = wharf.network();
    run(network.set_ranges(&told)).unwrap();
    run(network.reconcile()).unwrap();
    assert_eq!(run(network.attach(&request(&a))).unwrap().0, attachment);
    let (other, _) = run(network.attach(&request(&b))).unwrap();
    assert!(of_told(&other), "{other:?}");
    for refused in ["10.203.4.0/31", "127.0.0.0/8"] {
        let error = run(network.set_ranges(&ranges(&[refused]))).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
    for pod in [&a, &b] {
        run(network.detach(pod)).unwrap();
    }
    // None told: as it was configured.
    run(network.set_ranges(&[])).unwrap();
    let (attachment, _) = run(network.attach(&request(&a))).unwrap();
    assert_eq!(attachment.ips.len(), 1);
    run(network.detach(&a)).unwrap();
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}

#[test]
fn a_pin_replaced_by_anything_is_still_removed_sec_net_08() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let replace: [fn(&Path); 5] = [
        |_| {},
        |pin| fs::write(pin, "a regular file").unwrap(),
        |pin| std::os::unix::fs::symlink("/etc/passwd", pin).unwrap(),
        |pin| fs::create_dir(pin).unwrap(),
        |pin| {
            fs::write(pin, "").unwrap();
            for _ in 0..3 {
                mount(
                    Some("/proc/self/ns/uts"),
                    pin,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .unwrap();
            }
        },
    ];
    for replace in replace {
        let pod = pod_id();
        let (attachment, _) = run(network.attach(&request(&pod))).unwrap();
        umount2(&attachment.netns, MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(&attachment.netns).unwrap();
        replace(&attachment.netns);
        run(network.detach(&pod)).unwrap();
        assert!(fs::symlink_metadata(&attachment.netns).is_err());
        eventually("the link is gone", || !link_exists(&attachment.host_link));
    }
    assert!(Path::new("/etc/passwd").exists());
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn a_copy_of_the_pin_in_another_mount_namespace_does_not_keep_the_pod_s_network() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pod = pod_id();
    let (attachment, _) = run(network.attach(&request(&pod))).unwrap();
    let (ready, wait) = std::sync::mpsc::channel();
    let (go_on, gone) = std::sync::mpsc::channel::<()>();
    let pin = attachment.netns.clone();
    let other = thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        ready.send(()).unwrap();
        gone.recv().unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        mounts.contains(pin.to_str().unwrap())
    });
    wait.recv().unwrap();
    run(network.detach(&pod)).unwrap();
    go_on.send(()).unwrap();
    assert!(!other.join().unwrap(), "the copy went with the file");
    run(network.remove_bridge_if_unused()).unwrap();
}

#[test]
fn a_pod_whose_namespace_is_still_in_use_is_detached_all_the_same() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let pod = pod_id();
    let (attachment, _) = run(network.attach(&request(&pod))).unwrap();
    let held = fs::File::open(&attachment.netns).unwrap();
    run(network.detach(&pod)).unwrap();
    eventually("the link is gone", || !link_exists(&attachment.host_link));
    drop(held);
    run(network.remove_bridge_if_unused()).unwrap();
}

/// Every failpoint of the sources, in the order of the files.
fn sites() -> Vec<String> {
    let mut sites = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = fs::read_dir(src.join("builtin")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    for file in files.chain([src.join("netns.rs")]) {
        let source = fs::read_to_string(file).unwrap();
        sites.extend(
            source
                .split("site!(\"")
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().to_owned()),
        );
    }
    sites
}

#[test]
fn a_daemon_killed_at_any_step_leaves_what_a_detach_from_the_ledger_removes_sec_net_08() {
    let sites = sites();
    assert!(sites.len() > 10, "{sites:?}");
    for site in &sites {
        let wharf = Wharf::new(24);
        let pod = pod_id();
        // Another program's, of the same names as ours but for the table's.
        for family in ["inet", "bridge"] {
            nft(&["add", "table", family, "berth-other"]);
            nft(&["add", "chain", family, "berth-other", "prerouting"]);
            nft(&[
                "add",
                "rule",
                family,
                "berth-other",
                "prerouting",
                "counter",
                "accept",
            ]);
        }
        let foreign = ruleset();
        let (attach, detach) = (format!("attach:{pod}"), format!("detach:{pod}"));
        let output = wharf.child(
            &format!("{site}=return(kill)"),
            &[&attach, &detach, "close"],
        );
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGKILL),
            "{site} was not reached: {output:?}"
        );

        let network = wharf.network();
        run(async {
            // Retried to the end, as a kubelet does …
            let (attachment, _) = network
                .attach(&request(&pod))
                .await
                .unwrap_or_else(|e| panic!("{site}: {e}"));
            assert_eq!(
                talk(None, network.gateway().into(), Some(&attachment.netns)),
                ip(&attachment),
                "{site}"
            );
            network.detach(&pod).await.unwrap();
            network.remove_bridge_if_unused().await.unwrap();
        });
        assert_eq!(wharf.left(), Vec::<String>::new(), "{site}");

        // … and given up.
        let output = wharf.child(
            &format!("{site}=return(kill)"),
            &[&attach, &detach, "close"],
        );
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{site}");
        let network = wharf.network();
        run(network.detach(&pod)).unwrap();
        run(network.remove_bridge_if_unused()).unwrap();
        assert_eq!(wharf.left(), Vec::<String>::new(), "{site}");
        assert!(!link_exists(&format!("berth{}", &pod[..10])), "{site}");
        assert_eq!(
            ruleset(),
            foreign,
            "{site}: nobody else's rules are touched"
        );
    }
}

#[test]
fn a_step_that_fails_is_undone_and_one_that_fails_twice_is_undone_by_the_next_call_rel_06() {
    for site in sites() {
        for times in ["1*", ""] {
            let wharf = Wharf::new(24);
            let pod = pod_id();
            let (attach, detach) = (format!("attach:{pod}"), format!("detach:{pod}"));
            let output = wharf.child(
                &format!("{site}={times}return(enospc)"),
                &[&attach, &detach, "close"],
            );
            // What leaves by itself is tried again by the daemon that stops.
            let by_itself = ["network.link.removed", "network.lease.freed"];
            if by_itself.contains(&site.as_str()) && !times.is_empty() {
                assert!(output.status.success(), "{site}: {output:?}");
                assert_eq!(wharf.left(), Vec::<String>::new(), "{site}");
                continue;
            }
            assert_eq!(output.status.code(), Some(3), "{site}: {output:?}");
            let told = String::from_utf8(output.stderr).unwrap();
            assert!(told.contains("No space left"), "{site}: {told}");
            run(wharf.network().detach(&pod)).unwrap();
            run(wharf.network().remove_bridge_if_unused()).unwrap();
            assert_eq!(wharf.left(), Vec::<String>::new(), "{site} {times}");
            assert!(!link_exists(&format!("berth{}", &pod[..10])), "{site}");
        }
    }
}

#[test]
fn bad_configurations_are_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let good = Config {
        bridge: "berth0".into(),
        subnet: "10.88.0.0/16".parse().unwrap(),
        subnet_v6: None,
        masquerade: true,
        namespace_pool: 0,
        mtu: None,
        netns_dir: dir.path().join("netns"),
        lease_dir: dir.path().join("leases"),
    };
    let cases: [(&str, Config); 9] = [
        (
            "bridge",
            Config {
                bridge: "".into(),
                ..good.clone()
            },
        ),
        (
            "bridge",
            Config {
                bridge: "../eth0".into(),
                ..good.clone()
            },
        ),
        (
            "bridge",
            Config {
                bridge: "sixteen-bytes-xx".into(),
                ..good.clone()
            },
        ),
        (
            "bridge",
            Config {
                bridge: "all\n".into(),
                ..good.clone()
            },
        ),
        (
            "subnet",
            Config {
                subnet: "10.88.0.0/31".parse().unwrap(),
                ..good.clone()
            },
        ),
        (
            "subnet",
            Config {
                subnet: "127.0.0.0/8".parse().unwrap(),
                ..good.clone()
            },
        ),
        (
            "subnet",
            Config {
                subnet: "0.0.0.0/0".parse().unwrap(),
                ..good.clone()
            },
        ),
        (
            "mtu",
            Config {
                mtu: Some(100),
                ..good.clone()
            },
        ),
        (
            "mtu",
            Config {
                mtu: Some(70_000),
                ..good.clone()
            },
        ),
    ];
    let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
    for (key, config) in cases {
        let error = Network::open(config, ledger.clone()).unwrap_err();
        assert!(
            matches!(&error, Error::Config { key: named, .. } if *named == key),
            "{error}"
        );
    }
    std::os::unix::fs::symlink("/tmp", dir.path().join("link")).unwrap();
    let error = Network::open(
        Config {
            netns_dir: dir.path().join("link"),
            ..good
        },
        ledger,
    )
    .unwrap_err();
    assert!(error.to_string().contains("symlink"), "{error}");
}

#[test]
fn figures_of_attach_and_detach() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    let (mut attach, mut netns, mut detach) = (Vec::new(), Vec::new(), Vec::new());
    run(async {
        let stays = pod_id();
        network.attach(&request(&stays)).await.unwrap();
        for _ in 0..30 {
            let pod = pod_id();
            let start = std::time::Instant::now();
            let (_, timing) = network.attach(&request(&pod)).await.unwrap();
            attach.push(start.elapsed());
            netns.push(timing.netns_ms);
            let start = std::time::Instant::now();
            network.detach(&pod).await.unwrap();
            detach.push(start.elapsed());
        }
        network.detach(&stays).await.unwrap();
        network.remove_bridge_if_unused().await.unwrap();
    });
    attach.sort();
    detach.sort();
    netns.sort_by(f64::total_cmp);
    println!(
        "median: attach {:?} (namespace {:.2} ms; aim 3 ms), detach {:?}; p95: {:?}, {:?}",
        attach[15], netns[15], detach[15], attach[28], detach[28]
    );
}
