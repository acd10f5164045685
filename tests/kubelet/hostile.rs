//! Pods that put links where the kubelet writes, reads and removes.

use std::{fs, os::unix::fs::symlink, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, identity::run, process::eventually, swap::Swap};
use serde_json::Value;

use crate::{
    member::{Member, NODE},
    scene::{Kubelet, container, pod},
};

const SLEEPER: &str = "  automountServiceAccountToken: false\n  containers: [{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo its own words; exec sleep 1000'], volumeMounts: [{name: d, mountPath: /d}, {name: c, mountPath: /c}, {name: s, mountPath: /s}, {name: p, mountPath: /p}]}]\n  \
     volumes: [{name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}, {name: c, configMap: {name: c}}, {name: s, secret: {secretName: s}}, \
     {name: p, projected: {sources: [{configMap: {name: c}}, {secret: {name: s}}, {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]}}]";

fn uid(pod: &Value) -> Result<String> {
    Ok(pod["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned())
}

#[test]
fn volumes_whose_links_are_swapped_while_they_are_brought_up_to_date_and_removed_lead_nowhere_sec_kub_05()
-> Result<()> {
    const ROUNDS: usize = 3;
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        let server = &member.server;
        server.kubectl(&["create", "configmap", "c", "--from-literal=key=value"])?;
        server.kubectl(&[
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=other=value",
        ])?;
        member.apply("swapped", SLEEPER)?;
        let found = member.wait_ready("swapped").await?;
        let dir = member.kubelet.pods_dir().join(uid(&found)?).join("volumes");
        let places: Vec<_> = [
            ("downward-api/d", "..data"),
            ("downward-api/d", "labels"),
            ("configmap/c", "..data"),
            ("secret/s", "..data"),
            ("projected/p", "..data"),
        ]
        .map(|(volume, name)| {
            let volume = dir.join(format!("kubernetes.io~{volume}"));
            (volume.join(name), volume.join(format!("other-{name}")))
        })
        .into();
        let swaps: Vec<_> = places
            .iter()
            .map(|(place, other)| Swap::start(place, other))
            .collect();
        // The kubelet takes away what is not its own: beside what is there, a link to what is the node's, again and again.
        let plant = || {
            let before: Vec<u64> = swaps.iter().map(Swap::rounds).collect();
            let all_swap = || {
                for (_, other) in &places {
                    // it is there already, perhaps
                    let _ = symlink(&node.canary.dir, other);
                }
                let mut all = swaps.iter().zip(&before);
                all.all(|(swap, before)| swap.rounds() > *before)
            };
            eventually(Duration::from_secs(20), all_swap)
        };
        for round in 0..ROUNDS {
            let label = format!("round=number-{round}");
            member
                .server
                .kubectl(&["label", "--overwrite", "pod", "swapped", &label])?;
            let value = format!("key=changed-{round}");
            let changed = member.server.kubectl(&[
                "create",
                "configmap",
                "c",
                "--dry-run=client",
                "-o",
                "yaml",
                "--from-literal",
                &value,
            ])?;
            member
                .server
                .kubectl_with(&["apply", "-f", "-"], &changed)?;
            ensure!(plant(), "nothing is swapped");
            // one that has just come brings all up to date at once
            member.kubelet.kill_9();
            member.kubelet.spawn()?;
            let registered = || {
                let log = member.kubelet.log();
                log.matches("the node is registered").count() >= round + 2
            };
            let is_there = eventually(Duration::from_secs(30), registered);
            ensure!(is_there, "{}", member.kubelet.log());
            node.canary.check()?;
        }
        ensure!(plant(), "nothing is swapped");
        let kept = [
            node.canary.dir.join("secret"),
            node.canary.dir.join("etc/deep/er/key"),
        ];
        member
            .server
            .kubectl(&["delete", "pod", "swapped", "--wait=false"])?;
        // removing what changes under one's hands may take more than one try
        let gone = eventually(Duration::from_secs(10), || !dir.exists());
        drop(swaps);
        if !gone {
            member
                .until("its directory is gone", || Ok(!dir.exists()))
                .await?;
        }
        node.canary.check()?;
        ensure!(kept.iter().all(|path| path.exists()));
        member
            .until("the pod is gone", || {
                let said = member.server.ask(&["get", "pod", "swapped"], "")?;
                Ok(!said.ok && said.stderr.contains("NotFound"))
            })
            .await?;
        member.end()
    })
}

#[test]
fn the_type_of_a_host_path_is_that_of_what_its_links_lead_to_sec_kub_05() -> Result<()> {
    Node::test(async |node| {
        let host = node.volume("host")?;
        fs::create_dir(host.join("directory"))?;
        fs::write(host.join("file"), "a file\n")?;
        symlink("directory", host.join("to-directory"))?;
        symlink("file", host.join("to-file"))?;
        symlink("nowhere", host.join("to-nothing"))?;
        let kubelet = Kubelet::start(node)?;
        let of = |link: &str, kind: &str| {
            let path = host.join(link);
            let spec = format!(
                "  terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, hostPath: {{path: {}, type: {kind}}}}}]\n  containers: [{{name: a, image: busybox, command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]",
                path.display()
            );
            let name = format!("{link}-as-{}", kind.to_lowercase());
            (name.clone(), pod(&name, &spec))
        };
        let good = [of("to-directory", "Directory"), of("to-file", "File")];
        let bad = [
            of("to-file", "Directory"),
            of("to-directory", "File"),
            of("to-nothing", "Directory"),
            of("to-file", "Socket"),
        ];
        for (name, text) in good.iter().chain(&bad) {
            kubelet.put(&format!("{name}.yaml"), text)?;
        }
        for (name, _) in &good {
            kubelet.wait_ready(name).await?;
        }
        for (name, _) in &bad {
            let refused = |status: &Value| {
                let waiting = &container(status, "a")["state"]["waiting"];
                waiting["message"]
                    .as_str()
                    .is_some_and(|it| it.contains("hostPath"))
            };
            kubelet.wait(name, "told why it waits", refused).await?;
        }
        let made = node.cri.pods(None).await?.len();
        ensure!(made == good.len(), "{made} were made");
        for (name, _) in good.iter().chain(&bad) {
            kubelet.take(&format!("{name}.yaml"))?;
        }
        for (name, _) in good.iter().chain(&bad) {
            kubelet.wait_gone(node, name).await?;
        }
        ensure!(fs::read_to_string(host.join("file"))? == "a file\n");
        kubelet.wait_empty()
    })
}

#[test]
fn logs_are_read_from_no_link_no_fifo_and_no_file_of_another_name_sec_kub_04() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let spec = "  containers: [{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo its own words; exec sleep 1000']}]";
        member.apply("talks", spec)?;
        let found = member.wait_ready("talks").await?;
        let dir = node
            .dir
            .join(format!("logs/default_talks_{}/a", uid(&found)?));
        let log = dir.join("0.log");
        let asks = || {
            member
                .server
                .ask(&["logs", "talks", "--request-timeout=20s"], "")
        };
        member
            .until("it has spoken", || Ok(asks()?.stdout == "its own words\n"))
            .await?;

        let aside = dir.with_file_name("aside");
        let silent = |what: &str| -> Result<()> {
            let said = asks()?;
            let all = [said.stdout.as_bytes(), said.stderr.as_bytes()].concat();
            node.canary.unseen_in(what, &all)?;
            ensure!(
                !said.stdout.contains("its own words"),
                "{what}: {}",
                said.stdout
            );
            Ok(())
        };
        // as a container that has the directory might
        let secret = node.canary.dir.join("secret");
        fs::rename(&log, dir.join("kept"))?;
        symlink(&secret, &log)?;
        silent("a link")?;
        fs::remove_file(&log)?;
        fs::hard_link(&secret, &log)?;
        silent("a second name")?;
        fs::remove_file(&log)?;
        run("mkfifo", &[&log.display().to_string()])?;
        silent("a fifo")?;
        fs::remove_file(&log)?;
        fs::rename(dir.join("kept"), &log)?;
        // the directory of its logs is another
        fs::rename(&dir, &aside)?;
        let elsewhere = node.volume("elsewhere")?;
        fs::copy(&secret, elsewhere.join("0.log"))?;
        symlink(&elsewhere, &dir)?;
        silent("a link to a directory")?;
        fs::remove_file(&dir)?;
        fs::remove_dir_all(&elsewhere)?;
        fs::rename(&aside, &dir)?;
        ensure!(asks()?.stdout == "its own words\n", "its log is back");
        for path in ["logs/..%2f..%2fetc%2fpasswd", "logs/?query=..%2fsecret"] {
            let raw = format!("/api/v1/nodes/{NODE}/proxy/{path}");
            let said = member.server.ask(&["get", "--raw", &raw], "")?;
            ensure!(
                !said.ok && !said.stdout.contains("root:"),
                "{path}: {}",
                said.stdout
            );
        }
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}

#[test]
fn a_sub_path_that_is_swapped_while_containers_start_is_never_the_nodes_sec_kub_01() -> Result<()> {
    const PODS: usize = 3;
    Node::test(async |node| {
        let host = node.volume("host")?;
        let (real, link) = (host.join("real"), host.join("link"));
        fs::create_dir(&real)?;
        fs::write(real.join("secret"), "within\n")?;
        symlink(&node.canary.dir, &link)?;
        let kubelet = Kubelet::start(node)?;
        let swap = Swap::start(&real, &link);
        // half of them say the name outright, the others by a variable
        let one = |name: usize| {
            let path = match name % 2 {
                0 => "subPath: real",
                _ => "subPathExpr: $(PART)",
            };
            format!(
                "  - {{name: c{name}, image: busybox, imagePullPolicy: IfNotPresent, env: [{{name: PART, value: real}}], command: [sh, -c, 'cat /part/secret; echo ended'], volumeMounts: [{{name: v, mountPath: /part, {path}}}]}}\n"
            )
        };
        let containers: String = (0..8).map(one).collect();
        let spec = format!(
            "  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, hostPath: {{path: {}}}}}]\n  containers:\n{containers}",
            host.display()
        );
        let names: Vec<String> = (0..PODS).map(|index| format!("part-{index}")).collect();
        for name in &names {
            kubelet.put(&format!("{name}.yaml"), &pod(name, &spec))?;
        }
        // how far they come meanwhile is not the test's
        let begun = |status: &Value| !container(status, "c7")["state"].is_null();
        for name in &names {
            kubelet.wait(name, "begun", begun).await?;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(swap.rounds() > 0, "nothing was swapped");
        drop(swap);
        if real.symlink_metadata()?.is_symlink() {
            fs::remove_file(&real)?;
            fs::rename(&link, &real)?;
        }
        // who found a link waits for its next try, once or twice
        let all_end = eventually(Duration::from_secs(150), || {
            names.iter().all(|name| {
                let status = kubelet.status(name).unwrap_or_default();
                matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
            })
        });
        ensure!(all_end, "{}", kubelet.log());
        // whoever has started was within its volume, or nowhere
        node.canary.unseen_below(&node.dir.join("logs"))?;
        node.canary.check()?;
        for name in &names {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        kubelet.wait_empty()
    })
}
