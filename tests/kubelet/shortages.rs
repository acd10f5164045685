//! The node runs short: who goes, and what is told.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, Setup, identity::run};
use rustix::fs::statvfs;
use serde_json::Value;

use crate::{
    events::{events, told},
    losses::Losses,
    member::{Member, NODE, condition, sandboxes},
    pulls::version,
    scene::{container, pod},
};

const SLEEPER: &str = "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

#[test]
fn a_node_that_runs_short_evicts_who_uses_more_than_it_asked_for() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.apply("greedy", SLEEPER)?;
        member.apply(
            "modest",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000'], resources: {requests: {memory: 1Gi}}}]",
        )?;
        for name in ["greedy", "modest"] {
            member.wait_ready(name).await?;
        }
        // more than any machine has
        member.kubelet.kill_9();
        for flag in [
            "--eviction-soft=memory.available<1Pi",
            "--eviction-soft-grace-period=memory.available=0s",
        ] {
            member.kubelet.with_flag(flag);
        }
        member.kubelet.spawn()?;
        let first = member
            .wait("pod", "greedy", "evicted", |it| {
                it["status"]["reason"] == "Evicted"
            })
            .await?;
        ensure!(
            first["status"]["phase"] == "Failed"
                && first["status"]["message"]
                    .as_str()
                    .is_some_and(|it| it.contains("low on resource: memory")),
            "{first:#}"
        );
        let modest = member.server.json(&["get", "pod", "modest"])?;
        ensure!(modest["status"]["phase"] == "Running", "{modest:#}");
        member
            .wait("node", NODE, "under pressure", |it| {
                condition(it, "MemoryPressure") == "True"
            })
            .await?;
        // what the node's own disk asks for stays
        member.kubelet.put("own.yaml", &pod("own", SLEEPER))?;
        member
            .wait("pod", "modest", "evicted", |it| {
                it["status"]["reason"] == "Evicted"
            })
            .await?;
        ensure!(
            sandboxes(node, "greedy").await? == 0,
            "it is evicted and still there"
        );
        member.wait_ready(&format!("own-{NODE}")).await?;
        member.kubelet.take("own.yaml")?;
        member.kubelet.wait_gone(node, "own").await?;
        member
            .server
            .kubectl(&["delete", "pod", "greedy", "modest"])?;
        member.end()
    })
}

const REGISTRY: &str = "localhost:5000/own";
/// Images go however little of their disk is in use, and however new they are.
const ALL: [&str; 3] = [
    "--image-gc-high-threshold=1",
    "--image-gc-low-threshold=0",
    "--minimum-image-ttl-duration=0s",
];

fn small() -> Setup {
    Setup {
        root_bytes: Some(64 << 20),
        ..Setup::default()
    }
}

/// Images that are like no other, as somebody has pulled them; their ids.
async fn bring(node: &Node, names: &[&str]) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for name in names {
        version(name)?.push(&node.registry, &format!("own/{name}"), &["1"])?;
        ids.push(node.cri.pull(&format!("{REGISTRY}/{name}:1")).await?);
    }
    Ok(ids)
}

async fn is_here(node: &Node, name: &str) -> Result<bool> {
    let image = node.cri.image(&format!("{REGISTRY}/{name}:1")).await?;
    Ok(image.is_some())
}

/// Leaves so many percent of the file system that `file` comes to lie on.
fn fill(file: &Path, percent: u64) -> Result<()> {
    let fs = statvfs(file.parent().context("no directory")?)?;
    let bytes = fs.f_frsize * (fs.f_bavail - fs.f_blocks * percent / 100);
    Ok(fs::write(file, vec![0; usize::try_from(bytes)?])?)
}

#[test]
fn a_full_disk_is_told_of_in_upstreams_words_and_what_pods_name_stays() -> Result<()> {
    Node::test_with(small(), async |node| {
        let mut member = Member::start(node).await?;
        bring(node, &["mounted", "awaited", "forgotten"]).await?;
        member.apply(
            "runs",
            &format!(
                "  containers: [{{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]\n  \
                 volumes: [{{name: v, image: {{reference: '{REGISTRY}/mounted:1', pullPolicy: Never}}}}]"
            ),
        )?;
        // no container yet, nor anywhere to pull it from again
        member.apply(
            "waits",
            &format!(
                "  containers: [{{name: a, image: '{REGISTRY}/awaited:1', imagePullPolicy: Never, command: [sleep, '1000'], envFrom: [{{configMapRef: {{name: late}}}}]}}]"
            ),
        )?;
        let before = member.wait_ready("runs").await?;
        let lacks = |it: &Value| {
            let waiting = &container(&it["status"], "a")["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
        };
        member
            .wait("pod", "waits", "without its words", lacks)
            .await?;

        member.kubelet.kill_9();
        let filler = node.daemon.root.join("filler");
        fill(&filler, 9)?;
        member.kubelet.with_flag("--minimum-image-ttl-duration=0s");
        member.kubelet.spawn()?;
        // the second time nothing is left to be freed
        let (begins, ends) = (
            "Insufficient free disk space on the node's image filesystem (9",
            "% of 64.0 MiB used). Failed to free sufficient space by deleting unused images (freed 0 bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
        );
        told(
            &member,
            NODE,
            &[
                &format!("Warning FreeDiskSpaceFailed [] {begins}"),
                &format!("Warning ImageGCFailed [] {begins}"),
            ],
        )
        .await?;
        let all = events(&member, NODE)?;
        let failed = all.iter().find(|it| it.contains("ImageGCFailed"));
        ensure!(failed.is_some_and(|it| it.ends_with(ends)), "{all:#?}");
        ensure!(!is_here(node, "forgotten").await?, "nothing was removed");
        for name in ["mounted", "awaited"] {
            ensure!(is_here(node, name).await?, "{name} is not here");
        }
        ensure!(node.cri.image("busybox").await?.is_some(), "no busybox");
        fs::remove_file(&filler)?;

        let words = ["create", "configmap", "late", "--from-literal=x=y"];
        member.server.kubectl(&words)?;
        member.wait_ready("waits").await?;
        let after = member.wait_ready("runs").await?;
        ensure!(
            container(&before["status"], "a")["containerID"]
                == container(&after["status"], "a")["containerID"],
            "{after:#}"
        );
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}

#[test]
fn a_disk_that_says_that_it_has_no_room_at_all_is_told_of() -> Result<()> {
    let setup = Setup {
        // one without a limit says that it has no blocks
        before: Some(|dir| {
            let root = dir.join("lib").display().to_string();
            run(
                "mount",
                &["-t", "tmpfs", "-o", "size=0,mode=0700", "tmpfs", &root],
            )
        }),
        ..Setup::default()
    };
    Node::test_with(setup, async |node| {
        ensure!(statvfs(&node.daemon.root)?.f_blocks == 0, "it has a size");
        let member = Member::start(node).await?;
        let words = "invalid capacity 0 on image filesystem";
        let wanted = ["InvalidDiskCapacity", "ImageGCFailed"]
            .map(|reason| format!("Warning {reason} [] {words}"));
        told(&member, NODE, &wanted.each_ref().map(String::as_str)).await?;
        // there is room all the same
        member.apply("runs", SLEEPER)?;
        member.wait_ready("runs").await?;
        member.server.kubectl(&["delete", "pod", "runs"])?;
        member.end()
    })
}

#[test]
fn images_that_the_runtime_can_not_tell_of_or_remove_are_told_of_and_go_later() -> Result<()> {
    Node::test_with(small(), async |node| {
        let at = node.dir.join("line.sock");
        let line = Losses::lay(&at, &node.daemon.socket(), None)?;
        let ids = bring(node, &["one", "two"]).await?;
        line.refuse("RemoveImage", true);
        let mut member = Member::start_on(node, &at, &ALL).await?;
        told(&member, NODE, &["Warning ImageGCFailed [] wanted to free "]).await?;
        let all = events(&member, NODE)?;
        let failed = all.iter().find(|it| it.contains("ImageGCFailed"));
        let failed = failed.context("it is gone")?;
        let words = " bytes, but freed 0 bytes space with errors in image deletion: [the runtime can't remove image sha256:";
        // one that stays is not in the way of the next
        ensure!(
            failed.contains(words) && ids.iter().all(|id| failed.contains(id)),
            "{failed} {ids:?}"
        );

        member.kubelet.kill_9();
        line.refuse("ListImages", true);
        member.kubelet.spawn()?;
        let words = "Warning ImageGCFailed [] the runtime can't list images: the line refuses";
        told(&member, NODE, &[words]).await?;

        member.kubelet.kill_9();
        for call in ["ListImages", "RemoveImage"] {
            line.refuse(call, false);
        }
        member.kubelet.spawn()?;
        // the first that goes may be room enough
        member
            .until("one is gone", || {
                Ok(member.kubelet.log().contains("removed: its disk fills up"))
            })
            .await?;
        let left = [is_here(node, "one").await?, is_here(node, "two").await?];
        ensure!(left != [true, true], "neither is gone");
        member.end()
    })
}
