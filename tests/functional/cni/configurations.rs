//! What the directory of configurations says, and when it is taken up.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Result, ensure};
use berth_proto::cri::{NetworkConfig, RuntimeConfig, UpdateRuntimeConfigRequest};
use berth_tests::{
    Node,
    cni::{Fake, fake, put},
    node::BRIDGE,
};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    address, bridge, clean, leased, leases, masked_in, network_ready, not_ready, remove, tables,
    with_fake,
};

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

#[test]
fn plugins_with_files_of_their_own_run_after_those_of_the_list() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        fs::copy(fake.0.join("fake"), fake.0.join("second"))?;
        let dir = node.dir.join("cni");
        fs::create_dir(dir.join("fake"))?;
        put(
            &dir.join("fake/10-second.conf"),
            r#"{"type": "second", "mark": 7}"#,
        )?;
        let pod = node.run(node.pod("both")).await?;
        ensure!(fake.count("ADD ") == 2, "{:?}", fake.calls());
        let told = fake.told("ADD")?;
        ensure!(
            told["mark"] == 7 && told["name"] == "fake" && told["prevResult"].is_object(),
            "{told}"
        );
        // The list is to be all: the pod is let go of with what it came with all the same.
        let only = json!({"cniVersion": "1.1.0", "name": "fake", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "fake"}]});
        put(&dir.join("10-fake.conflist"), &only.to_string())?;
        remove(node, &pod).await?;
        ensure!(fake.count("DEL ") == 2, "{:?}", fake.calls());
        ensure!(fake.leases() == 0);
        fake.forget_calls();
        let pod = node.run(node.pod("one")).await?;
        ensure!(fake.count("ADD ") == 1, "{:?}", fake.calls());
        remove(node, &pod).await?;
        put(&dir.join("fake/20-broken.conf"), "{")?;
        let all = json!({"cniVersion": "1.1.0", "name": "fake", "plugins": [{"type": "fake"}]});
        put(&dir.join("10-fake.conflist"), &all.to_string())?;
        not_ready(node, &["20-broken.conf", "no JSON"]).await?;
        fs::remove_file(dir.join("fake/20-broken.conf"))?;
        ensure!(network_ready(node).await?.0);
        clean(node)
    })
}
