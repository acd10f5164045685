//! When images are pulled, and what a pod is: what runs as one, and comes anew each time.

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, debian, image::Image};
use serde_json::{Value, json};

use crate::{
    member::{Member, NODE},
    scene::{Kubelet, container, pod},
};

const NAME: &str = "localhost:5000/own/pulled";

/// Busybox, and another image each time.
pub fn version(which: &str) -> Result<Image> {
    let env = ["PATH=/bin".to_owned(), format!("VERSION={which}")];
    Ok(debian::busybox_image()?.but(json!({"Env": env})))
}

fn id(status: &Value) -> Result<String> {
    let id = container(status, "a")["containerID"].as_str();
    let id = id.and_then(|id| id.rsplit('/').next());
    Ok(id.context("no container")?.to_owned())
}

#[test]
fn an_image_is_pulled_as_its_policy_says_and_by_its_name_where_there_is_none_po_06() -> Result<()> {
    Node::test(async |node| {
        let digest = version("one")?.push(&node.registry, "own/pulled", &["latest", "1"])?;
        let kubelet = Kubelet::start(node)?;
        let by_digest = format!("{NAME}@{digest}");
        let tagged = format!("{NAME}:1");
        // the same three names before and after the tags have been moved
        for (round, [latest, by_tag, by_digests]) in [
            ("before", ["one", "one", "one"]),
            ("after", ["two", "one", "one"]),
        ] {
            for (name, image, wanted) in [
                ("latest", NAME, latest),
                ("tagged", &tagged, by_tag),
                ("digest", &by_digest, by_digests),
            ] {
                let name = format!("{name}-{round}");
                let spec = format!(
                    "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: '{image}', command: [sleep, '1000']}}]"
                );
                kubelet.put(&format!("{name}.yaml"), &pod(&name, &spec))?;
                let status = kubelet.wait_ready(&name).await?;
                let found = node.cri.shell(&id(&status)?, "echo $VERSION").await?;
                ensure!(found.trim() == wanted, "{name}: {found}");
            }
            version("two")?.push(&node.registry, "own/pulled", &["latest", "1"])?;
        }
        for (name, image, policy, wanted) in [
            ("present", NAME, "IfNotPresent", Some("two")),
            ("asked", &tagged, "Always", Some("two")),
            ("here", &tagged, "Never", Some("two")),
            ("not-here", "localhost:5000/own/pulled:none", "Never", None),
        ] {
            let spec = format!(
                "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: '{image}', imagePullPolicy: {policy}, command: [sleep, '1000']}}]"
            );
            kubelet.put(&format!("{name}.yaml"), &pod(name, &spec))?;
            let Some(wanted) = wanted else {
                let waits = |status: &Value| {
                    container(status, "a")["state"]["waiting"]["reason"] == "ErrImageNeverPull"
                };
                kubelet.wait(name, "without its image", waits).await?;
                continue;
            };
            let status = kubelet.wait_ready(name).await?;
            let found = node.cri.shell(&id(&status)?, "echo $VERSION").await?;
            ensure!(found.trim() == wanted, "{name}: {found}");
        }
        for name in ["present", "asked", "here", "not-here"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        for round in ["before", "after"] {
            for name in ["latest", "tagged", "digest"] {
                kubelet.take(&format!("{name}-{round}.yaml"))?;
                kubelet.wait_gone(node, &format!("{name}-{round}")).await?;
            }
        }
        kubelet.wait_empty()
    })
}

/// PO-13 and PO-14: as kubectl shows it.
#[test]
fn a_pod_comes_and_goes_as_one_and_another_of_its_name_is_another_po_01_po_04() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let spec = "  volumes: [{name: v, emptyDir: {}}]\n  containers:\n  \
             - {name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo x >> /v/lives; exec sleep 1000'], volumeMounts: [{name: v, mountPath: /v}]}\n  \
             - {name: b, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v}]}";
        let mut before = None;
        for _ in 0..2 {
            member.apply("one", spec)?;
            let found = member.wait_ready("one").await?;
            let ip = found["status"]["podIP"].as_str().context("no address")?;
            let get = |arguments: &[&str]| member.server.kubectl(arguments);
            let short = get(&["get", "pod", "one", "--no-headers"])?;
            let words: Vec<_> = short.split_whitespace().take(4).collect();
            ensure!(words == ["one", "2/2", "Running", "0"], "{short}");
            let wide = get(&["get", "pods", "-o", "wide", "--no-headers"])?;
            let words: Vec<_> = wide.split_whitespace().collect();
            ensure!(words.contains(&ip) && words.contains(&NODE), "{wide}");
            // both are in one network and see one volume, of this life alone
            let script = "cat /v/lives; ip -4 -o addr show eth0 | awk '{print $4}'";
            let [a, b] =
                ["a", "b"].map(|name| get(&["exec", "one", "-c", name, "--", "sh", "-c", script]));
            let (a, b) = (a?, b?);
            ensure!(
                a == b && a.starts_with("x\n") && a.matches('x').count() == 1,
                "{a} {b}"
            );
            ensure!(a.contains(ip), "{a}");

            let own = (found["metadata"]["uid"].clone(), id(&found["status"])?);
            if let Some((uid, container)) = before.replace(own.clone()) {
                ensure!(uid != own.0 && container != own.1, "{found:#}");
            }
            member.server.kubectl(&["delete", "pod", "one"])?;
            let left = node.cri.containers(None).await?;
            let runs = left.iter().filter(|one| one.state == 1).count();
            ensure!(runs == 0, "{left:#?}");
        }
        member.end()
    })
}
