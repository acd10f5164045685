//! Another runtime beneath the same kubelet: Debian's containerd, with runc.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node,
    containerd::{Containerd, IMAGE},
    identity::run,
};

use crate::{
    member::{Member, NODE},
    scene::container,
};

/// A network for its pods, by the plugins of Debian's package.
fn network(containerd: &Containerd, addresses: &std::path::Path) -> Result<()> {
    let text = format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "bridge", "bridge": "berth-t1", "isGateway": true,
  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "10.212.0.0/24"}}]], "dataDir": "{}"}}}}]}}"#,
        addresses.display()
    );
    Ok(fs::write(
        containerd.dir().join("cni/10-pods.conflist"),
        text,
    )?)
}

/// KL-03, too: another's CRI, with a network of CNI.
#[test]
fn a_stock_containerd_is_as_good_a_runtime_cri_04_bo_15() -> Result<()> {
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        network(&containerd, &node.dir.join("addresses"))?;
        let socket = containerd.dir().join("containerd.sock");
        let mut member = Member::start_on(node, &socket, &[]).await?;
        let it = member.server.json(&["get", "node", NODE])?;
        let version = &it["status"]["nodeInfo"]["containerRuntimeVersion"];
        ensure!(
            version
                .as_str()
                .is_some_and(|it| it.starts_with("containerd://")),
            "{version}"
        );
        member.server.kubectl_with(
            &["apply", "-f", "-"],
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: runc}\nhandler: runc\n",
        )?;
        member.apply(
            "web",
            &format!(
                "  runtimeClassName: runc\n  containers:\n  - name: a\n    image: {IMAGE}\n    imagePullPolicy: Never\n    \
                 command: [sh, -c, \"trap 'exit 0' TERM; echo hello; echo up > /tmp/up; httpd -p 8080 -h /tmp; while :; do sleep 0.1; done\"]\n    \
                 readinessProbe: {{exec: {{command: [test, -e, /tmp/up]}}, periodSeconds: 1}}\n    livenessProbe: {{httpGet: {{path: /up, port: 8080}}, periodSeconds: 1, initialDelaySeconds: 1}}\n  \
                 - {{name: dies, image: {IMAGE}, imagePullPolicy: Never, command: [sleep, '1000']}}"
            ),
        )?;
        let web = member.wait_ready("web").await?;
        let id = |it: &serde_json::Value, name: &str| {
            container(&it["status"], name)["containerID"]
                .as_str()
                .map(str::to_owned)
        };
        let first = id(&web, "a").context("no id")?;
        ensure!(first.starts_with("containerd://"), "{first}");
        // no shim of ours: it is runc's
        ensure!(berth_tests::process::shims().is_empty(), "a shim of ours");
        ensure!(member.server.kubectl(&["logs", "web", "-c", "a"])? == "hello\n");
        let said = member
            .server
            .kubectl(&["exec", "web", "-c", "a", "--", "cat", "/tmp/up"])?;
        ensure!(said == "up\n", "{said:?}");
        ensure!(
            member
                .kubelet
                .log()
                .contains("the runtime has no events: it is asked every second"),
            "{}",
            member.kubelet.log()
        );

        // an end that nobody tells of is found
        let dead = id(&web, "dies").context("no id")?;
        let cri = containerd.cri().await?;
        cri.stop(dead.rsplit('/').next().unwrap_or_default(), 0)
            .await?;
        member
            .wait("pod", "web", "whole again", |it| {
                let dies = container(&it["status"], "dies");
                dies["restartCount"] == 1 && dies["state"]["running"].is_object()
            })
            .await?;

        member.kubelet.kill_9();
        tokio::time::sleep(Duration::from_secs(1)).await;
        member.kubelet.spawn()?;
        // it has been looked at by the next kubelet
        member.apply("next", &format!("  runtimeClassName: runc\n  containers: [{{name: a, image: {IMAGE}, imagePullPolicy: Never, command: [sleep, '1000']}}]"))?;
        member.wait_ready("next").await?;
        let again = member.wait_ready("web").await?;
        ensure!(
            id(&again, "a") == Some(first) && container(&again["status"], "a")["restartCount"] == 0,
            "{again:#}"
        );
        member.server.kubectl(&["delete", "pods", "--all"])?;
        ensure!(cri.pods(None).await?.is_empty(), "pods are left");
        member.end()?;
        run("ip", &["link", "delete", "berth-t1"])?;
        // the plugin has turned it on
        fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
        Ok(())
    })
}
