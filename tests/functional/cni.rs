//! CNI: the reference plugins of the package `containernetworking-plugins`, and plugins that misbehave in every way that we know of.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    self, NetworkConfig, PodSandboxConfig, PortMapping, Protocol, RuntimeConfig,
    UpdateRuntimeConfigRequest,
};
use berth_tests::{
    BUSYBOX, Node, Pod, Setup,
    cni::{Fake, fake, fake_with, put},
    container,
    failpoint::{Action, spec},
    node::BRIDGE,
    process,
    request::PodRequest,
};
use serde_json::{Value, json};
use tonic::Code;

/// Longer than anything here takes that is not meant to hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// bridge + host-local, and what `more` adds to the list.
fn bridge(dir: &Path, name: &str, subnet: &str, more: &[Value]) -> String {
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": leases(dir), "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": subnet}]],
        },
    })];
    plugins.extend_from_slice(more);
    json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string()
}

fn leases(dir: &Path) -> PathBuf {
    dir.join("leases")
}

/// Addresses that host-local has given out.
fn leased(dir: &Path) -> Vec<String> {
    let networks = fs::read_dir(leases(dir)).into_iter().flatten().flatten();
    let files = networks.flat_map(|network| fs::read_dir(network.path()).into_iter().flatten());
    let mut all: Vec<_> = files
        .flatten()
        .map(|file| file.file_name().display().to_string())
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    all.sort();
    all
}

/// What the plugins change of the host for good: iptables' tables stay when their rules are gone, forwarding stays on. It is to be
/// there before.
fn tables() -> Result<()> {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(key), "1")?;
    }
    for program in ["iptables", "ip6tables"] {
        for table in ["nat", "filter", "mangle"] {
            for act in ["-N", "-X"] {
                Command::new(program)
                    .args(["-t", table, act, "BERTH-TEST"])
                    .status()
                    .with_context(|| format!("run {program}"))?;
            }
        }
    }
    Ok(())
}

async fn network_ready(node: &Node) -> Result<(bool, String)> {
    let request = cri::StatusRequest { verbose: false };
    let status = node.cri.runtime().status(request).await?.into_inner();
    let conditions = status.status.unwrap_or_default().conditions;
    let network = conditions.into_iter().find(|c| c.r#type == "NetworkReady");
    let network = network.context("no condition NetworkReady")?;
    Ok((network.status, network.message))
}

async fn not_ready(node: &Node, words: &[&str]) -> Result<()> {
    let (ready, why) = network_ready(node).await?;
    ensure!(!ready, "NetworkReady is true");
    for word in words {
        ensure!(
            why.contains(word),
            "the reason does not name {word:?}: {why}"
        );
    }
    Ok(())
}

async fn address(node: &Node, pod: &Pod) -> Result<String> {
    let status = node.cri.pod_status(&pod.id).await?;
    Ok(status.network.unwrap_or_default().ip)
}

async fn remove(node: &Node, pod: &Pod) -> Result<()> {
    node.cri.stop_pod(&pod.id).await.context("stop")?;
    node.cri.remove_pod(&pod.id).await.context("remove")
}

fn clean(node: &Node) -> Result<()> {
    let findings = node.audit()?;
    ensure!(findings.is_empty(), "the audit prints {findings:#?}");
    Ok(())
}

/// What one of the pod's containers says of the pod's network.
async fn inside(node: &Node, pod: &Pod, script: &str) -> Result<String> {
    let name = format!("c{:08x}", rand::random::<u32>());
    let config = container(&name, BUSYBOX, &["sh", "-c", script]);
    let (code, said) = node.outcome(pod, config).await?;
    ensure!(code == 0, "{script} ended with {code}: {said}");
    Ok(said.trim().to_owned())
}

fn masked_in(prepare: fn(&Path) -> Result<()>) -> Setup {
    Setup {
        before: Some(prepare),
        network: "cni_timeout_ms = 10000\n".into(),
        ..Default::default()
    }
}

fn the_whole_chain(dir: &Path) -> Result<()> {
    tables()?;
    let chain = [
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "firewall", "backend": "iptables"}),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}),
        json!({"type": "loopback"}),
    ];
    put(
        &dir.join("cni/10-net.conflist"),
        &bridge(dir, "net", "10.201.0.0/24", &chain),
    )
}

#[test]
fn the_reference_plugins_attach_pods_with_ports_bandwidth_firewall_and_tuning() -> Result<()> {
    Node::test_with(masked_in(the_whole_chain), async |node| {
        ensure!(network_ready(node).await?.0);
        let serving = node.pod("serving").with(|config| {
            config.port_mappings = vec![PortMapping {
                protocol: Protocol::Tcp.into(),
                container_port: 80,
                host_port: 18080,
                host_ip: String::new(),
            }];
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
        let (serving, asking) = (
            node.run(serving).await?,
            node.run(node.pod("asking")).await?,
        );
        let (of_serving, of_asking) = (
            address(node, &serving).await?,
            address(node, &asking).await?,
        );
        ensure!(of_serving.starts_with("10.201.0.") && of_asking.starts_with("10.201.0."));
        ensure!(leased(&node.dir).len() == 2, "{:?}", leased(&node.dir));
        let verbose = node.cri.pod_status_verbose(&serving.id, true).await?;
        let info: Value = serde_json::from_str(&verbose.info["info"])?;
        let netns = PathBuf::from(info["netns"].as_str().unwrap_or_default());
        ensure!(netns.exists(), "the verbose info names {netns:?}");

        let server = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
        node.start_container(&serving, container("web", BUSYBOX, &["sh", "-c", server]))
            .await?;
        let get = |host: &str| {
            format!(
                "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{host}/ && exit; sleep 0.2; done; exit 1"
            )
        };
        ensure!(inside(node, &asking, &get(&of_serving)).await? == "served");
        ensure!(
            inside(node, &asking, "cat /proc/sys/net/core/somaxconn").await? == "500",
            "tuning did not run"
        );
        ensure!(
            inside(node, &asking, "ip -o link show lo")
                .await?
                .contains("LOWER_UP")
        );
        // The host port: from the host, by loopback and by another address of it, and from another pod.
        for host in ["127.0.0.1:18080", "10.201.0.1:18080"] {
            let got = Command::new("busybox")
                .args(["sh", "-c", &get(host)])
                .output()?;
            ensure!(got.stdout == b"served\n", "{host}: {got:?}");
        }
        ensure!(inside(node, &asking, &get("10.201.0.1:18080")).await? == "served");
        let queues = Command::new("tc").args(["qdisc", "show"]).output()?;
        let queues = String::from_utf8_lossy(&queues.stdout).into_owned();
        ensure!(
            queues.contains("rate 10Mbit") && queues.contains("rate 20Mbit"),
            "bandwidth did not run: {queues}"
        );
        let request = cri::PodSandboxStatsRequest {
            pod_sandbox_id: serving.id.clone(),
        };
        let stats = node.cri.runtime().pod_sandbox_stats(request).await?;
        let linux = stats.into_inner().stats.and_then(|stats| stats.linux);
        let network = linux.and_then(|linux| linux.network).unwrap_or_default();
        let eth0 = network.default_interface.clone().unwrap_or_default();
        ensure!(
            eth0.name == "eth0" && eth0.rx_bytes.is_some_and(|bytes| bytes.value > 0),
            "{network:?}"
        );
        // One port for two pods: the second is told whose it is.
        let twice = node
            .pod("twice")
            .with(|config| config.port_mappings = serving.config.port_mappings.clone());
        let error = node.cri.run_pod(&twice).await.unwrap_err();
        ensure!(
            error.message().contains("18080") && error.message().contains(&serving.id),
            "{error:?}"
        );
        clean(node)?;
        for pod in [&serving, &asking] {
            remove(node, pod).await?;
        }
        ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
        let rules = Command::new("iptables-save").output()?;
        let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
        ensure!(!rules.contains("10.201.0."), "rules were left: {rules}");
        Ok(())
    })
}

#[test]
fn addresses_of_both_families_are_told_ipv4_first() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        let conf = json!({"cniVersion": "0.4.0", "name": "dual", "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": leases(dir),
                     "ranges": [[{"subnet": "fd00:201::/64"}], [{"subnet": "10.201.1.0/24"}]]},
        }]});
        put(&dir.join("cni/10-dual.conflist"), &conf.to_string())
    }
    Node::test_with(masked_in(prepare), async |node| {
        let pod = node.run(node.pod("dual")).await?;
        let network = node
            .cri
            .pod_status(&pod.id)
            .await?
            .network
            .unwrap_or_default();
        ensure!(network.ip.starts_with("10.201.1."), "{network:?}");
        ensure!(
            network.additional_ips.len() == 1
                && network.additional_ips[0].ip.starts_with("fd00:201::"),
            "{network:?}"
        );
        Ok(())
    })
}

#[test]
fn configurations_come_change_and_go_while_pods_run() -> Result<()> {
    fn prepare(_: &Path) -> Result<()> {
        tables()
    }
    let mut setup = masked_in(prepare);
    setup.network.push_str("builtin = false\n");
    // At the end there is no configuration again: nothing to run a fresh pod with.
    setup.no_restart = true;
    Node::test_with(setup, async |node| {
        let dir = node.dir.clone();
        let file = dir.join("cni/10-net.conflist");
        not_ready(node, &["no CNI configuration", "builtin"]).await?;
        let error = node.cri.run_pod(&node.pod("early")).await.unwrap_err();
        ensure!(
            error.message().contains("no CNI configuration"),
            "{error:?}"
        );
        clean(node)?;

        put(&dir.join("cni/00-broken.conf"), "{\"name\": \"secret-7\", ")?;
        not_ready(node, &["00-broken.conf", "no JSON"]).await?;
        put(&file, &bridge(&dir, "one", "10.201.2.0/24", &[]))?;
        ensure!(
            network_ready(node).await?.0,
            "a broken file costs the others"
        );
        let first = node.run(node.pod("first")).await?;
        ensure!(address(node, &first).await?.starts_with("10.201.2."));

        // The bridge of another subnet is another.
        let two = bridge(&dir, "two", "10.201.3.0/24", &[]).replace(BRIDGE, "cni-two");
        put(&file, &two)?;
        let second = node.run(node.pod("second")).await?;
        ensure!(address(node, &second).await?.starts_with("10.201.3."));
        node.restart().await?;
        ensure!(address(node, &first).await?.starts_with("10.201.2."));
        ensure!(leased(&dir).len() == 2);

        fs::remove_file(&file)?;
        not_ready(node, &["00-broken.conf"]).await?;
        fs::remove_file(dir.join("cni/00-broken.conf"))?;
        not_ready(node, &["no CNI configuration"]).await?;
        // They leave by what they came with.
        for pod in [&first, &second] {
            remove(node, pod).await?;
        }
        ensure!(leased(&dir).is_empty(), "{:?}", leased(&dir));
        let log = fs::read_to_string(&node.daemon.log)?;
        ensure!(
            !log.contains("secret-7"),
            "the log has a configuration's content"
        );
        Command::new("ip")
            .args(["link", "delete", "cni-two"])
            .status()?;
        clean(node)
    })
}

#[test]
fn a_pod_keeps_the_network_that_it_came_with() -> Result<()> {
    fn prepare(_: &Path) -> Result<()> {
        tables()
    }
    let mut setup = masked_in(prepare);
    // CNI's bridge must not have the name of the other.
    setup.network.push_str("subnet = \"10.202.0.0/24\"\n");
    Node::test_with(setup, async |node| {
        let dir = node.dir.clone();
        let file = dir.join("cni/10-net.conflist");
        let builtin = node.run(node.pod("builtin")).await?;
        ensure!(address(node, &builtin).await?.starts_with("10.202.0."));
        let other = bridge(&dir, "net", "10.201.4.0/24", &[]).replace(BRIDGE, "cni-other");
        put(&file, &other)?;
        let plugged = node.run(node.pod("plugged")).await?;
        ensure!(address(node, &plugged).await?.starts_with("10.201.4."));
        fs::remove_file(&file)?;
        let again = node.run(node.pod("again")).await?;
        ensure!(address(node, &again).await?.starts_with("10.202.0."));
        node.restart().await?;
        for pod in [&plugged, &builtin, &again] {
            remove(node, pod).await?;
        }
        ensure!(leased(&dir).is_empty());
        Command::new("ip")
            .args(["link", "delete", "cni-other"])
            .status()?;
        clean(node)
    })
}

fn with_fake() -> Setup {
    Setup {
        before: Some(fake),
        network: "cni_timeout_ms = 1500\ncni_bin_dirs = [\"$DIR/plugins\"]\n".into(),
        ..Default::default()
    }
}

#[test]
fn a_plugin_that_misbehaves_fails_its_pod_alone_and_leaves_nothing_sec_net_02() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        let cases: &[(&str, &str, &[&str])] = &[
            ("hangs", "sleep 1000", &["fake", "ADD", "1.5 s"]),
            ("hangs after its lease", "", &["fake", "ADD", "1.5 s"]),
            ("crashes", "kill -SEGV $$", &["fake", "ADD", "signal"]),
            (
                "says rubbish",
                "echo what; exit 0",
                &["fake", "ADD", "what"],
            ),
            (
                "says 10 MB",
                "head -c 10000000 /dev/zero; exit 0",
                &["fake", "ADD", "1048576 bytes"],
            ),
            ("never stops", "exec yes", &["fake", "ADD", "1048576 bytes"]),
            ("says nothing", "exit 0", &["fake", "ADD", "nothing"]),
            (
                "fails with exit 0",
                r#"echo '{"cniVersion":"1.1.0","code":7,"msg":"no luck","details":"at all"}'; exit 0"#,
                &["error 7", "no luck", "at all"],
            ),
            (
                "fails",
                r#"echo because >&2; echo '{"code":100,"msg":"no luck"}'; exit 1"#,
                &["error 100", "because"],
            ),
            ("fails without a word", "exit 3", &["exit status: 3"]),
            (
                "gives no address",
                r#"echo '{"cniVersion":"1.1.0","ips":[]}'; exit 0"#,
                &["fake", "no address"],
            ),
            (
                "gives an impossible one",
                r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.300/24"}]}'; exit 0"#,
                &["10.0.0.300"],
            ),
            (
                "answers in a version of tomorrow",
                r#"echo '{"cniVersion":"3.0.0","ips":[{"address":"10.0.0.3/24"}]}'; exit 0"#,
                &["3.0.0"],
            ),
        ];
        for (what, script, words) in cases {
            match script.is_empty() {
                true => fs::write(fake.0.join("after-ADD"), "sleep 1000")?,
                false => fake.on("ADD", script)?,
            }
            fake.forget_calls();
            let since = Instant::now();
            let error = node.cri.run_pod(&node.pod("victim")).await.unwrap_err();
            ensure!(since.elapsed() < PATIENCE, "{what}: {:?}", since.elapsed());
            for word in *words {
                ensure!(
                    error.message().contains(word),
                    "{what}: {word:?} is not in {error:?}"
                );
            }
            ensure!(!error.message().contains("secret-7"), "{what}: {error:?}");
            ensure!(
                fake.count("DEL ") == 1 && fake.leases() == 0,
                "{what}: {:?}, {} leases",
                fake.calls(),
                fake.leases()
            );
            ensure!(
                node.cri.pods(None).await?.is_empty(),
                "{what}: a pod is listed"
            );
            clean(node).with_context(|| (*what).to_owned())?;
            fake.well()?;
            let next = node
                .run(node.pod("next"))
                .await
                .with_context(|| format!("after: {what}"))?;
            remove(node, &next).await?;
        }
        let hung = process::of_this_machine()
            .iter()
            .any(|process| process.cmdline().starts_with("sleep 1000"));
        ensure!(!hung, "a plugin that hung lives on");
        // One that is not there.
        let gone = fake.0.join("gone");
        fs::rename(fake.0.join("fake"), &gone)?;
        let error = node.cri.run_pod(&node.pod("victim")).await.unwrap_err();
        ensure!(
            error.message().contains("fake") && error.message().contains("cni_bin_dirs"),
            "{error:?}"
        );
        not_ready(node, &["fake", "no such file"]).await?;
        fs::rename(&gone, fake.0.join("fake"))?;
        clean(node)?;
        // One whose address another pod has.
        let first = node.run(node.pod("first")).await?;
        let stolen = address(node, &first).await?;
        fake.on(
            "ADD",
            &format!(
                r#"echo '{{"cniVersion":"1.1.0","ips":[{{"address":"{stolen}/24"}}]}}'; exit 0"#
            ),
        )?;
        let error = node.cri.run_pod(&node.pod("thief")).await.unwrap_err();
        ensure!(
            error.message().contains(&stolen) && error.message().contains(&first.id),
            "{error:?}"
        );
        fake.well()?;
        remove(node, &first).await?;
        ensure!(fake.leases() == 0);
        let log = fs::read_to_string(&node.daemon.log)?;
        ensure!(
            !log.contains("secret-7"),
            "the log has a configuration's content"
        );
        clean(node)
    })
}

#[test]
fn types_that_lead_out_of_the_directories_of_plugins_never_run_sec_net_01() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let marker = node.dir.join("marker");
        let evil = node.dir.join("evil");
        fs::write(&evil, format!("#!/bin/sh\ntouch {}\n", marker.display()))?;
        fs::set_permissions(&evil, fs::Permissions::from_mode(0o755))?;
        let file = node.dir.join("cni/10-fake.conflist");
        for kind in [
            "../evil",
            &evil.display().to_string(),
            "./../evil",
            "",
            ".",
            "a/b",
        ] {
            let conf = json!({"cniVersion": "1.1.0", "name": "evil", "plugins": [{"type": "fake"}, {"type": kind}]});
            put(&file, &conf.to_string())?;
            not_ready(node, &["10-fake.conflist", "type"]).await?;
            let error = node.cri.run_pod(&node.pod("victim")).await.unwrap_err();
            ensure!(error.message().contains("type"), "{error:?}");
        }
        let conf = json!({"cniVersion": "1.1.0", "name": "fake", "type": "fake"});
        put(&file, &conf.to_string())?;
        fs::set_permissions(node.dir.join("cni"), fs::Permissions::from_mode(0o777))?;
        not_ready(node, &["everybody"]).await?;
        fs::set_permissions(node.dir.join("cni"), fs::Permissions::from_mode(0o755))?;
        ensure!(network_ready(node).await?.0);
        ensure!(!marker.exists(), "it ran");
        clean(node)
    })
}

#[test]
fn a_plugin_knows_the_pod_and_gets_nothing_of_the_daemons() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        fake_with(
            dir,
            &json!({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"], "name": "fake",
                "plugins": [{"type": "fake", "capabilities": {"portMappings": true, "dns": true, "aliases": true}}]}),
        )
    }
    let setup = Setup {
        before: Some(prepare),
        inherited: vec![fs::File::open("/etc/hostname")?.into()],
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        fake.on("ADD", "ls -l /proc/self/fd > \"$here/fds\"")?;
        let pod = node.run(node.pod("known")).await?;
        let metadata = pod.config.metadata.clone().unwrap_or_default();
        let environment = fs::read_to_string(fake.0.join("env.ADD"))?;
        let arguments = format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=known;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.id, metadata.uid
        );
        let netns = format!(
            "CNI_NETNS={}",
            node.daemon.state.join("netns").join(&pod.id).display()
        );
        for line in [&arguments, &netns, "CNI_IFNAME=eth0", "CNI_COMMAND=ADD"] {
            ensure!(
                environment.lines().any(|has| has == line),
                "{line} is not in {environment}"
            );
        }
        ensure!(
            !environment.contains("RUST_") && !environment.contains("FAIL"),
            "{environment}"
        );
        let told = fake.told("ADD")?;
        ensure!(
            told["cniVersion"] == "1.1.0" && told["name"] == "fake",
            "{told}"
        );
        ensure!(
            told.get("capabilities").is_none() && told.get("prevResult").is_none(),
            "{told}"
        );
        ensure!(
            told["runtimeConfig"]
                == json!({"dns": {"servers": ["192.0.2.53"], "searches": ["svc.test"], "options": ["ndots:5"]}, "aliases": ["known"]}),
            "{told}"
        );
        let descriptors = fs::read_to_string(fake.0.join("fds"))?;
        ensure!(
            !descriptors.contains("hostname")
                && !descriptors.contains("socket:")
                && !descriptors.contains("berthd"),
            "{descriptors}"
        );
        remove(node, &pod).await?;
        let told = fake.told("DEL")?;
        ensure!(
            told["prevResult"]["ips"][0]["address"] == "10.203.0.2/24",
            "{told}"
        );
        ensure!(
            told["runtimeConfig"]["aliases"] == json!(["known"]),
            "{told}"
        );
        Ok(())
    })
}

#[test]
fn a_pod_joins_as_many_networks_as_are_asked_for() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        fake(dir)?;
        for name in ["second", "third"] {
            let conf = json!({"cniVersion": "1.0.0", "name": name, "type": "fake"});
            put(&dir.join(format!("cni/{name}.conf")), &conf.to_string())?;
        }
        Ok(())
    }
    let mut setup = with_fake();
    setup.before = Some(prepare);
    setup.network.push_str("cni_max_conf_num = 2\n");
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        let pod = node.run(node.pod("joined")).await?;
        ensure!(fake.count(&format!("ADD {} eth0", pod.id)) == 1);
        ensure!(fake.count(&format!("ADD {} eth1", pod.id)) == 1 && fake.count("eth2") == 0);
        ensure!(
            address(node, &pod).await? == "10.203.0.2",
            "the first network is the pod's"
        );
        // The second fails: the first is let go of, too.
        fake.on("ADD", "[ $CNI_IFNAME = eth1 ] && exit 1")?;
        node.cri.run_pod(&node.pod("half")).await.unwrap_err();
        ensure!(fake.leases() == 2, "{:?}", fake.calls());
        fake.well()?;
        remove(node, &pod).await?;
        let calls = fake.calls();
        let order: Vec<_> = calls[calls.len() - 2..]
            .iter()
            .map(|c| c.contains("eth1"))
            .collect();
        ensure!(order == [true, false], "{calls:?}");
        ensure!(fake.leases() == 0);
        Ok(())
    })
}

#[test]
fn a_del_that_fails_is_tried_until_it_succeeds_and_keeps_nobody_rel_05() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        let fail_three_times = r#"n=$(cat "$here/failed" 2>/dev/null || echo 0); if [ $n -lt 3 ]; then echo $((n+1)) > "$here/failed"; echo '{"code":11,"msg":"not now"}'; exit 1; fi"#;
        let pod = node.run(node.pod("sticky")).await?;
        fake.on("DEL", fail_three_times)?;
        let error = node.cri.stop_pod(&pod.id).await.unwrap_err();
        ensure!(
            error.message().contains("DEL") && error.message().contains("not now"),
            "{error:?}"
        );
        clean(node)?;
        // Others come and go meanwhile.
        let other = node.run(node.pod("other")).await?;
        ensure!(fake.leases() == 2);
        // Nobody asks again: the daemon does.
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() == 2 {
            ensure!(
                Instant::now() < deadline,
                "the DEL is not tried again: {:?}",
                fake.calls()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(
            fake.count(&format!("DEL {}", pod.id)) == 4,
            "{:?}",
            fake.calls()
        );
        fake.well()?;
        remove(node, &pod).await?;
        ensure!(
            fake.count(&format!("DEL {}", pod.id)) == 4,
            "{:?}",
            fake.calls()
        );
        remove(node, &other).await?;

        // The plugin fails ADD and DEL: there is no pod, and its DEL is owed all the same.
        fs::remove_file(fake.0.join("failed"))?;
        fake.forget_calls();
        fs::write(fake.0.join("after-ADD"), "exit 1")?;
        fake.on("DEL", fail_three_times)?;
        node.cri.run_pod(&node.pod("unlucky")).await.unwrap_err();
        let pods = node.cri.pods(None).await?;
        ensure!(
            pods.is_empty() && fake.leases() == 1,
            "{pods:?}, {:?}",
            fake.calls()
        );
        clean(node)?;
        // The next daemon owes it, too.
        node.restart().await?;
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() > 0 {
            ensure!(Instant::now() < deadline, "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(fake.count("DEL ") == 4, "{:?}", fake.calls());
        fake.well()?;
        clean(node)?;
        let next = node.run(node.pod("next")).await?;

        // One that never finds its way in the pod's namespace is told that it is gone.
        fake.on("DEL", "[ -z \"$CNI_NETNS\" ] || exit 1")?;
        for _ in 0..3 {
            node.cri.stop_pod(&next.id).await.unwrap_err();
        }
        remove(node, &next).await?;
        ensure!(fake.leases() == 0, "{:?}", fake.calls());
        fake.well()?;
        clean(node)
    })
}

#[test]
fn a_daemon_that_dies_between_add_and_its_record_leaves_no_address_rel_05() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        for site in [
            "network.cni.intended",
            "network.cni.recorded",
            "network.cni.added",
            "network.cni.attached",
        ] {
            fake.forget_calls();
            node.daemon.terminate()?;
            node.daemon.failpoints = spec([(site, Action::Kill)]);
            node.daemon.spawn()?;
            node.cri = node.daemon.ready().await?;
            let config = node.pod("cut");
            node.cri.run_pod(&config).await.unwrap_err();
            ensure!(
                node.daemon.was_killed(PATIENCE).await,
                "{site} was not reached"
            );
            let added = fake.leases();
            node.daemon.failpoints = String::new();
            node.restart().await?;
            ensure!(
                fake.leases() == 0,
                "{site}: {added} leases, then {:?}",
                fake.calls()
            );
            clean(node).context(site)?;
            // The kubelet asks again.
            let pod = node.run(config).await?;
            remove(node, &pod).await?;
            ensure!(fake.leases() == 0, "{site}: {:?}", fake.calls());
            clean(node).context(site)?;
        }
        for site in ["network.cni.deleted", "network.cni.forgotten"] {
            node.daemon.terminate()?;
            node.daemon.failpoints = spec([(site, Action::Kill)]);
            node.daemon.spawn()?;
            node.cri = node.daemon.ready().await?;
            let pod = node.run(node.pod("cut")).await?;
            node.cri.stop_pod(&pod.id).await.unwrap_err();
            ensure!(
                node.daemon.was_killed(PATIENCE).await,
                "{site} was not reached"
            );
            node.daemon.failpoints = String::new();
            node.restart().await?;
            remove(node, &pod).await?;
            ensure!(fake.leases() == 0, "{site}: {:?}", fake.calls());
            clean(node).context(site)?;
        }
        Ok(())
    })
}

#[test]
fn a_plugin_that_outlives_its_daemon_is_ended_before_its_pod_is_let_go_of() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        network: "cni_timeout_ms = 15000\ncni_bin_dirs = [\"$DIR/plugins\"]\n".into(),
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        // It makes its lease late: after the DEL, if it were left alone.
        fake.on("ADD", "touch \"$here/begun\"; sleep 2")?;
        let (cri, config) = (node.cri.clone(), node.pod("slow"));
        let asked = tokio::spawn(async move { cri.run_pod(&config).await });
        let deadline = Instant::now() + PATIENCE;
        while !fake.0.join("begun").exists() {
            ensure!(Instant::now() < deadline, "ADD was not called");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.restart().await?;
        let _ = asked.await;
        ensure!(fake.count("DEL ") == 1, "{:?}", fake.calls());
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(
            fake.leases() == 0,
            "ADD went on after DEL: {:?}",
            fake.calls()
        );
        clean(node)
    })
}

/// What a power cut and a start leave: `/run` is empty, nothing that ran runs.
async fn reboot(node: &mut Node) -> Result<()> {
    node.daemon.kill_9();
    for process in process::shims() {
        let ours = fs::read_link(format!("/proc/{}/cwd", process.pid))
            .is_ok_and(|cwd| cwd.starts_with(&node.daemon.state));
        if ours {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(process.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    let state = node.daemon.state.display().to_string();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let below = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4));
    for at in below.filter(|at| at.starts_with(&format!("{state}/"))) {
        let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
    }
    fs::remove_dir_all(&state)?;
    Ok(())
}

#[test]
fn after_a_reboot_every_old_pod_is_let_go_of_rel_05() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        let pods = [
            node.run(node.pod("one")).await?,
            node.run(node.pod("two")).await?,
        ];
        reboot(node).await?;
        // Its agent is not there yet either: what DEL needs.
        fake.on("DEL", "sleep 1000")?;
        let since = Instant::now();
        node.restart().await?;
        ensure!(
            since.elapsed() < Duration::from_secs(15),
            "{:?}",
            since.elapsed()
        );
        fake.well()?;
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() > 0 {
            ensure!(Instant::now() < deadline, "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for pod in &pods {
            ensure!(
                fake.count(&format!("DEL {} eth0 []", pod.id)) >= 1,
                "{:?}",
                fake.calls()
            );
            remove(node, pod).await?;
        }
        clean(node)
    })
}

#[test]
fn a_range_of_one_address_serves_fifty_pods_over_reboots_rel_05() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        // The gateway has the one, a pod the other.
        put(
            &dir.join("cni/10-net.conflist"),
            &bridge(dir, "net", "10.201.5.0/30", &[]),
        )
    }
    let mut setup = masked_in(prepare);
    setup.no_restart = true;
    Node::test_with(setup, async |node| {
        for round in 0..50 {
            let pod = node
                .run(node.pod("only"))
                .await
                .with_context(|| format!("round {round}"))?;
            ensure!(address(node, &pod).await? == "10.201.5.2");
            if round % 10 == 3 {
                let error = node.cri.run_pod(&node.pod("second")).await.unwrap_err();
                ensure!(
                    error.message().contains("no IP addresses available"),
                    "{error:?}"
                );
                reboot(node).await?;
                node.restart().await?;
                ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
            }
            remove(node, &pod).await?;
            ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
        }
        clean(node)
    })
}

#[test]
fn status_gc_and_check_of_the_newest_specification_are_asked() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        fake.on(
            "STATUS",
            r#"echo '{"code":50,"msg":"the agent is away"}'; exit 1"#,
        )?;
        // The last answer is good for two seconds.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        not_ready(node, &["fake", "STATUS", "the agent is away"]).await?;
        fake.on("STATUS", "sleep 1000")?;
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let since = Instant::now();
        not_ready(node, &["fake", "STATUS", "1.5 s"]).await?;
        ensure!(since.elapsed() < Duration::from_secs(5));
        fake.well()?;
        tokio::time::sleep(Duration::from_millis(2100)).await;
        ensure!(network_ready(node).await?.0);

        let pod = node.run(node.pod("checked")).await?;
        fake.forget_calls();
        fake.on(
            "CHECK",
            r#"echo '{"code":999,"msg":"its link is lost"}'; exit 1"#,
        )?;
        node.restart().await?;
        let deadline = Instant::now() + PATIENCE;
        let told =
            |log: &Path| fs::read_to_string(log).is_ok_and(|log| log.contains("its link is lost"));
        while fake.count("GC ") == 0 || !told(&node.daemon.log) {
            ensure!(Instant::now() < deadline, "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            fake.told("GC")?["cni.dev/valid-attachments"]
                == json!([{"containerID": pod.id, "ifname": "eth0"}]),
            "{}",
            fake.told("GC")?
        );
        ensure!(fake.told("CHECK")?["prevResult"]["ips"][0]["address"] == "10.203.0.2/24");
        ensure!(fake.count("CHECK ") == 1, "{:?}", fake.calls());
        fake.well()?;

        // A configuration may do without.
        let conf = json!({"cniVersion": "1.1.0", "name": "fake", "disableGC": true, "disableCheck": true, "plugins": [{"type": "fake"}]});
        put(&node.dir.join("cni/10-fake.conflist"), &conf.to_string())?;
        remove(node, &pod).await?;
        node.run(node.pod("unchecked")).await?;
        fake.forget_calls();
        node.restart().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(
            fake.count("GC ") + fake.count("CHECK ") == 0,
            "{:?}",
            fake.calls()
        );
        Ok(())
    })
}

#[test]
fn a_version_that_the_plugin_does_not_speak_is_told() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        let script = fs::read_to_string(fake.0.join("fake"))?;
        // Not in place: it may be running.
        put(
            &fake.0.join("old"),
            &script.replace("\"1.0.0\",\"1.1.0\"", "\"0.4.0\""),
        )?;
        fs::set_permissions(fake.0.join("old"), fs::Permissions::from_mode(0o755))?;
        let file = node.dir.join("cni/10-fake.conflist");
        let conf = |versions: Value| {
            let mut conf = json!({"cniVersion": "1.1.0", "name": "fake", "plugins": [{"type": "fake"}, {"type": "old"}]});
            conf["cniVersions"] = versions;
            conf.to_string()
        };
        put(&file, &conf(json!([])))?;
        not_ready(node, &["old", "1.1.0", "0.3.1, 0.4.0"]).await?;
        let error = node.cri.run_pod(&node.pod("early")).await.unwrap_err();
        ensure!(error.message().contains("old"), "{error:?}");
        ensure!(fake.count("ADD") == 0);
        // What all have in common is taken; what the plugin answers in another version is put into this one.
        put(&file, &conf(json!(["0.3.1", "0.4.0"])))?;
        let pod = node.run(node.pod("common")).await?;
        let told = fake.told("ADD")?;
        ensure!(
            told["cniVersion"] == "0.4.0" && told["prevResult"]["cniVersion"] == "0.4.0",
            "{told}"
        );
        ensure!(told["prevResult"]["ips"][0]["version"] == "4", "{told}");
        remove(node, &pod).await?;
        clean(node)
    })
}

#[test]
fn the_nodes_ranges_become_a_configuration_by_the_template() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        let template = r#"{"cniVersion": "1.0.0", "name": "made", "plugins": [{"type": "bridge", "bridge": "BRIDGE", "isGateway": true,
 "ipam": {"type": "host-local", "dataDir": "DATA",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}"#;
        let template = template
            .replace("BRIDGE", BRIDGE)
            .replace("DATA", &leases(dir).display().to_string());
        put(&dir.join("template"), &template)
    }
    let mut setup = masked_in(prepare);
    setup
        .network
        .push_str("builtin = false\ncni_conf_template = \"$DIR/template\"\n");
    Node::test_with(setup, async |node| {
        let update = async |cidr: &str| {
            let request = UpdateRuntimeConfigRequest {
                runtime_config: Some(RuntimeConfig {
                    network_config: Some(NetworkConfig {
                        pod_cidr: cidr.into(),
                    }),
                }),
            };
            node.cri.runtime().update_runtime_config(request).await
        };
        not_ready(node, &["no CNI configuration"]).await?;
        let error = update("everything").await.unwrap_err();
        ensure!(error.code() == Code::InvalidArgument, "{error:?}");
        update("").await?;
        not_ready(node, &["no CNI configuration"]).await?;
        update("10.201.6.0/24,fd00:206::/64").await?;
        ensure!(network_ready(node).await?.0);
        let pod = node.run(node.pod("made")).await?;
        let network = node
            .cri
            .pod_status(&pod.id)
            .await?
            .network
            .unwrap_or_default();
        ensure!(network.ip.starts_with("10.201.6."), "{network:?}");
        ensure!(
            network.additional_ips[0].ip.starts_with("fd00:206:"),
            "{network:?}"
        );
        // Another's configuration is left alone.
        let other = node.dir.join("cni/05-other.conflist");
        put(&other, &bridge(&node.dir, "other", "10.201.7.0/24", &[]))?;
        update("10.201.8.0/24").await?;
        let made = fs::read_to_string(node.dir.join("cni/10-berth.conflist"))?;
        ensure!(made.contains("10.201.6.0/24"), "{made}");
        fs::remove_file(other)?;
        Ok(())
    })
}

/// Fifty at once: no error, no address twice, nothing left.
#[test]
fn pods_come_and_go_side_by_side() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        let configs: Vec<PodSandboxConfig> =
            (0..50).map(|n| node.pod(&format!("pod-{n}"))).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for config in configs {
            let cri = node.cri.clone();
            tasks.spawn(async move {
                let id = cri.run_pod(&config).await?;
                cri.stop_pod(&id).await?;
                cri.remove_pod(&id).await
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        ensure!(fake.count("ADD ") == 50 && fake.count("DEL ") == 50);
        ensure!(fake.leases() == 0);
        clean(node)
    })
}
