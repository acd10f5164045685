//! The kubelet or the API server ends, or the machine: what runs goes on, and what ran begins again.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::Node;
use serde_json::Value;

use crate::{
    member::{Member, condition, sandboxes},
    scene::container,
};

const SLEEPER: &str = "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

fn restarts(it: &Value) -> (Value, Value) {
    let status = container(&it["status"], "a");
    (
        status["containerID"].clone(),
        status["restartCount"].clone(),
    )
}

#[test]
fn the_end_of_the_kubelet_or_of_the_server_ends_no_pod_bo_15() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        for name in ["stays", "goes", "dies"] {
            member.apply(name, SLEEPER)?;
        }
        for name in ["stays", "goes", "dies"] {
            member.wait_ready(name).await?;
        }
        let before = restarts(&member.wait_ready("stays").await?);
        // deleted while the kubelet is down (REL-23)
        member.kubelet.kill_9();
        member
            .server
            .kubectl(&["delete", "pod", "goes", "--wait=false"])?;
        member.kubelet.spawn()?;
        member
            .until("the deleted one is gone", || {
                Ok(!member.server.ask(&["get", "pod", "goes"], "")?.ok)
            })
            .await?;
        ensure!(sandboxes(node, "goes").await? == 0);
        ensure!(
            restarts(&member.wait_ready("stays").await?) == before,
            "it was restarted"
        );

        // The server goes away; what ends meanwhile is begun again, and told later.
        member.server.kill_9()?;
        let dies = node.cri.containers(None).await?;
        let dies = dies
            .iter()
            .find(|it| {
                it.labels
                    .get("io.kubernetes.pod.name")
                    .is_some_and(|name| name == "dies")
            })
            .context("no container of dies")?;
        node.cri.stop(&dies.id, 0).await?;
        let begun = Instant::now();
        loop {
            let all = node.cri.containers(None).await?;
            let mut again = all.iter().filter(|it| {
                it.labels
                    .get("io.kubernetes.pod.name")
                    .is_some_and(|name| name == "dies")
                    && it.metadata.as_ref().is_some_and(|it| it.attempt == 1)
            });
            if again.next().is_some() {
                break;
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                member.kubelet.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // and the kubelet is begun without it
        member.kubelet.kill_9();
        member.kubelet.spawn()?;
        member
            .until("it goes on with the pods that it knows", || {
                Ok(member
                    .kubelet
                    .log()
                    .contains("the pods that were known last are kept"))
            })
            .await?;
        member.server.start_again_there()?;
        member
            .wait("pod", "dies", "told of", |it| {
                container(&it["status"], "a")["restartCount"] == 1
                    && condition(it, "Ready") == "True"
            })
            .await?;
        ensure!(
            restarts(&member.wait_ready("stays").await?) == before,
            "it was restarted"
        );
        member.server.kubectl(&["delete", "pod", "stays", "dies"])?;
        member.end()
    })
}

#[test]
fn after_a_reboot_without_a_server_the_last_known_pods_are_begun() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.server.kubectl(&[
            "create",
            "configmap",
            "words",
            "--from-literal=greeting=hello",
        ])?;
        member.apply(
            "web",
            "  containers: [{name: a, image: busybox, command: [sh, -c, 'cat /words/greeting && sleep 1000'], volumeMounts: [{name: words, mountPath: /words}]}]\n  \
             volumes: [{name: words, configMap: {name: words}}]",
        )?;
        let before = member.wait_ready("web").await?;
        member.server.kill_9()?;
        member.kubelet.kill_9();
        // What a reboot takes: all that ran, and what was in memory.
        for pod in node.cri.pods(None).await? {
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        let volumes = member
            .kubelet
            .pods_dir()
            .join(before["metadata"]["uid"].as_str().context("no uid")?)
            .join("volumes");
        let mounted = Command::new("findmnt").args(["-rno", "TARGET"]).output()?;
        for target in String::from_utf8(mounted.stdout)?.lines() {
            if target.starts_with(&volumes.display().to_string()) {
                berth_tests::identity::run("umount", &[target])?;
            }
        }
        fs::remove_dir_all(&volumes)?;
        member.kubelet.spawn()?;
        let begun = Instant::now();
        while sandboxes(node, "web").await? == 0 {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                member.kubelet.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        member.server.start_again_there()?;
        let after = member
            .wait("pod", "web", "up again, by another container", |it| {
                condition(it, "Ready") == "True" && restarts(it).0 != restarts(&before).0
            })
            .await?;
        ensure!(after["metadata"]["uid"] == before["metadata"]["uid"]);
        ensure!(member.server.kubectl(&["logs", "web"])? == "hello");
        // its token has come with the server
        member
            .until("the token is there", || {
                let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
                Ok(member
                    .server
                    .ask(&["exec", "web", "--", "test", "-s", path], "")?
                    .ok)
            })
            .await?;
        member.server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}
