//! What plugins are told, and what they may do to us.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::PodSandboxConfig;
use berth_tests::{
    Node, Setup,
    cni::{Fake, fake_with, put},
    process,
    request::PodRequest,
};
use serde_json::json;

use super::{PATIENCE, address, clean, network_ready, not_ready, remove, with_fake};

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
                "plugins": [{"type": "fake", "capabilities": {"portMappings": true, "dns": true, "aliases": true, "cgroupPath": true,
                    "io.kubernetes.cri.pod-annotations": true}}]}),
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
        let known = node.pod("known").with(|config| {
            config.annotations = [("example.org/color".to_owned(), "blue".to_owned())].into();
        });
        let pod = node.run(known).await?;
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
                == json!({"dns": {"servers": ["192.0.2.53"], "searches": ["svc.test"], "options": ["ndots:5"]}, "aliases": ["known"],
                    "cgroupPath": node.own_cgroup_parent(&pod.id),
                    "io.kubernetes.cri.pod-annotations": {"example.org/color": "blue"}}),
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

/// Fifty at once: no error, no address twice, nothing left.
#[test]
fn pods_come_and_go_side_by_side() -> Result<()> {
    // Fifty shells on a machine under load are slow, and none of them hangs.
    let setup = Setup {
        network: "cni_timeout_ms = 20000\ncni_bin_dirs = [\"$DIR/plugins\"]\n".into(),
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
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
