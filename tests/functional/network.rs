//! The built-in bridge, and pods on the host's network.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, NamespaceMode};
use berth_tests::{
    BUSYBOX, Node, container,
    request::{ContainerRequest, PodRequest},
    sh,
};

#[test]
fn pods_reach_each_other_and_the_host_over_the_bridge() -> Result<()> {
    Node::test(async |node| {
        let (one, two) = (
            node.run(node.pod("one")).await?,
            node.run(node.pod("two")).await?,
        );
        let a = node
            .start_container(&one, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        node.start_container(
            &two,
            container(
                "b",
                BUSYBOX,
                &sh("echo from two > /tmp/index.html; exec httpd -f -p 80 -h /tmp"),
            ),
        )
        .await?;
        let address =
            |status: berth_proto::cri::PodSandboxStatus| status.network.unwrap_or_default().ip;
        let (of_one, of_two) = (
            address(node.cri.pod_status(&one.id).await?),
            address(node.cri.pod_status(&two.id).await?),
        );
        ensure!(of_one != of_two && !of_one.is_empty(), "{of_one} {of_two}");
        let get = format!(
            "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{of_two}/ && exit; sleep 0.1; done; exit 1"
        );
        ensure!(node.cri.shell(&a, &get).await? == "from two");
        ensure!(
            node.cri
                .exec(&a, &["ip", "-o", "-4", "addr", "show", "eth0"])
                .await?
                .contains(&of_one)
        );
        ensure!(
            node.cri
                .exec(&a, &["ip", "-o", "link", "show", "lo"])
                .await?
                .contains("LOWER_UP")
        );
        // The gateway is the host's end of the bridge.
        let gateway = node
            .cri
            .shell(
                &a,
                "ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'",
            )
            .await?;
        node.cri
            .exec(&a, &["ping", "-c", "1", "-W", "2", &gateway])
            .await
            .context("ping the host")?;
        // And the host reaches the pod.
        let answer = Command::new("busybox")
            .args(["wget", "-q", "-O", "-", &format!("http://{of_two}/")])
            .output()?;
        ensure!(
            answer.stdout == b"from two\n",
            "the host does not reach the pod: {answer:?}"
        );
        Ok(())
    })
}

#[test]
fn addresses_are_given_back_and_survive_a_restart_rel_05() -> Result<()> {
    let setup = berth_tests::Setup {
        config: String::new(),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let keeper = node.run(node.pod("keeper")).await?;
        let kept = node
            .cri
            .pod_status(&keeper.id)
            .await?
            .network
            .unwrap_or_default()
            .ip;
        node.restart().await?;
        ensure!(
            node.cri
                .pod_status(&keeper.id)
                .await?
                .network
                .unwrap_or_default()
                .ip
                == kept
        );
        let mut seen = BTreeSet::new();
        for round in 0..6 {
            let pod = node.run(node.pod(&format!("round-{round}"))).await?;
            let address = node
                .cri
                .pod_status(&pod.id)
                .await?
                .network
                .unwrap_or_default()
                .ip;
            ensure!(address != kept, "{address} is given twice");
            seen.insert(address);
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        let leases = fs::read_dir(node.daemon.state.join("leases"))?.count();
        ensure!(
            leases == 1,
            "one pod has {leases} leases, after these: {seen:?}"
        );
        Ok(())
    })
}

#[test]
fn a_pod_on_the_host_network_has_the_hosts_links_and_name() -> Result<()> {
    Node::test(async |node| {
        let pod = node
            .run(
                node.pod("host")
                    .on_the_host_network()
                    .with(|config| config.hostname = String::new()),
            )
            .await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).security(|security| {
            security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into()
        });
        let id = node.start_container(&pod, config).await?;
        let own = fs::read_link("/proc/thread-self/ns/net")?
            .display()
            .to_string();
        ensure!(
            node.cri
                .exec(&id, &["readlink", "/proc/self/ns/net"])
                .await?
                == own
        );
        ensure!(
            node.cri.exec(&id, &["hostname"]).await?
                == nix::unistd::gethostname()?.to_string_lossy()
        );
        ensure!(
            fs::read_dir(node.daemon.state.join("netns"))
                .map(|dir| dir.count())
                .unwrap_or(0)
                == 0,
            "a namespace was made for it"
        );
        Ok(())
    })
}

#[test]
fn names_resolve_as_the_pod_asks() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("dns")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let resolv = node.cri.exec(&id, &["cat", "/etc/resolv.conf"]).await?;
        for line in [
            "nameserver 192.0.2.53",
            "search svc.test",
            "options ndots:5",
        ] {
            ensure!(
                resolv.lines().any(|has| has == line),
                "{line} is not in {resolv:?}"
            );
        }
        ensure!(node.cri.exec(&id, &["cat", "/etc/hostname"]).await? == "dns");
        let hosts = node.cri.exec(&id, &["cat", "/etc/hosts"]).await?;
        let address = node
            .cri
            .pod_status(&pod.id)
            .await?
            .network
            .unwrap_or_default()
            .ip;
        ensure!(
            hosts.contains("localhost")
                && hosts
                    .lines()
                    .any(|line| line.contains(&address) && line.contains("dns")),
            "{hosts}"
        );
        Ok(())
    })
}

#[test]
fn another_program_s_policy_for_forwarded_packets_is_told_with_what_to_do() -> Result<()> {
    let nft = |line: &str| -> Result<()> {
        let status = Command::new("nft").args(line.split(' ')).status()?;
        ensure!(status.success(), "nft {line}");
        Ok(())
    };
    let condition = async |node: &Node| -> Result<cri::RuntimeCondition> {
        let request = cri::StatusRequest { verbose: false };
        let status = node.cri.runtime().status(request).await?.into_inner();
        let mut conditions = status.status.unwrap_or_default().conditions.into_iter();
        conditions
            .find(|c| c.r#type == "NetworkReady")
            .context("no condition NetworkReady")
    };
    Node::test(async |node| {
        let ready = condition(node).await?;
        ensure!(ready.status && ready.message.is_empty(), "{ready:?}");
        nft("add table ip filter")?;
        nft("add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }")?;
        // At its start, a daemon looks.
        node.restart().await?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let told = loop {
            let told = condition(node).await?;
            if !told.message.is_empty() {
                break told;
            }
            ensure!(Instant::now() < deadline, "nothing is told");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(
            told.status && told.reason == "ForwardingBlocked",
            "{told:?}"
        );
        for word in ["ip filter FORWARD", "policy drop", "oifname berth0 accept"] {
            ensure!(told.message.contains(word), "{told:?}");
        }
        ensure!(fs::read_to_string(&node.daemon.log)?.contains("policy drop"));
        nft("delete table ip filter")
    })
}

#[test]
fn annotations_for_bandwidth_limit_a_pod_of_the_built_in_network() -> Result<()> {
    Node::test(async |node| {
        let pod = node.pod("slow").with(|config| {
            config.annotations = [
                (
                    "kubernetes.io/ingress-bandwidth".to_owned(),
                    "10M".to_owned(),
                ),
                (
                    "kubernetes.io/egress-bandwidth".to_owned(),
                    "20M".to_owned(),
                ),
            ]
            .into();
        });
        let pod = node.run(pod).await?;
        let netns = node.daemon.state.join("netns").join(&pod.id);
        let net = format!("--net={}", netns.display());
        for (program, arguments, rate) in [
            ("tc", vec!["qdisc", "show"], "rate 10Mbit"),
            (
                "nsenter",
                vec![net.as_str(), "tc", "qdisc", "show"],
                "rate 20Mbit",
            ),
        ] {
            let output = Command::new(program).args(arguments).output()?;
            let queues = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(queues.contains("tbf") && queues.contains(rate), "{queues}");
        }
        Ok(())
    })
}
