//! Resources that change while a pod runs, by a real kubectl.

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, cgroup};
use serde_json::{Value, json};

use crate::{
    member::{Member, NODE},
    scene::container,
};

const MIB: u64 = 1 << 20;

/// The memory limit of a container as it sees it.
fn limit(member: &Member, pod: &str, container: &str) -> Result<u64> {
    let file = match cgroup::unified() {
        true => "/sys/fs/cgroup/memory.max",
        false => "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    };
    let said = member
        .server
        .kubectl(&["exec", pod, "-c", container, "--", "cat", file])?;
    said.trim().parse().with_context(|| said.clone())
}

fn resize(member: &Member, pod: &str, container: &str, resources: Value) -> Result<()> {
    let patch = json!({"spec": {"containers": [{"name": container, "resources": resources}]}});
    member
        .server
        .kubectl(&[
            "patch",
            "pod",
            pod,
            "--subresource",
            "resize",
            "--patch",
            &patch.to_string(),
        ])
        .map(drop)
}

/// The reason of a condition; none: it is not there.
fn pending(it: &Value) -> Option<&str> {
    let all = it["status"]["conditions"].as_array()?;
    let one = all.iter().find(|one| one["type"] == "PodResizePending")?;
    one["reason"].as_str()
}

fn is_settled(it: &Value) -> bool {
    let all = it["status"]["conditions"].as_array();
    let mut kinds = all.into_iter().flatten().map(|one| &one["type"]);
    !kinds.any(|kind| kind == "PodResizePending" || kind == "PodResizeInProgress")
}

#[test]
fn resources_change_while_a_pod_runs_or_are_told_why_not() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        let command = "command: [sh, -c, \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]";
        member.apply(
            "web",
            &format!(
                "  containers:\n  - {{name: a, image: busybox, {command}, resources: {{requests: {{cpu: 100m, memory: 32Mi}}, limits: {{cpu: 200m, memory: 64Mi}}}}}}\n  \
                 - {{name: b, image: busybox, {command}, resources: {{requests: {{memory: 32Mi}}, limits: {{memory: 64Mi}}}}, resizePolicy: [{{resourceName: memory, restartPolicy: RestartContainer}}]}}"
            ),
        )?;
        let web = member.wait_ready("web").await?;
        let id = |it: &Value, name: &str| {
            container(&it["status"], name)["containerID"]
                .as_str()
                .map(str::to_owned)
        };
        ensure!(limit(&member, "web", "a")? == 64 * MIB);

        // up, then down, and nothing is started again
        for (cpu, memory) in [("300m", 128), ("150m", 48)] {
            let memory_text = format!("{memory}Mi");
            let wanted =
                json!({"requests": {"cpu": "120m"}, "limits": {"cpu": cpu, "memory": memory_text}});
            resize(&member, "web", "a", wanted)?;
            let it = member
                .wait("pod", "web", "resized", |it| {
                    let status = container(&it["status"], "a");
                    is_settled(it)
                        && status["resources"]["limits"]["memory"] == memory_text.as_str()
                        && status["allocatedResources"]["cpu"] == "120m"
                })
                .await?;
            let status = container(&it["status"], "a");
            ensure!(
                status["resources"]["limits"]["cpu"] == cpu
                    && status["restartCount"] == 0
                    && id(&it, "a") == id(&web, "a"),
                "{it:#}"
            );
            ensure!(limit(&member, "web", "a")? == memory * MIB);
        }

        // one that wants to be started again for it is
        let wanted = json!({"limits": {"memory": "96Mi"}});
        resize(&member, "web", "b", wanted)?;
        let it = member
            .wait("pod", "web", "started again", |it| {
                let status = container(&it["status"], "b");
                is_settled(it) && status["restartCount"] == 1 && status["ready"] == true
            })
            .await?;
        ensure!(
            container(&it["status"], "a")["restartCount"] == 0
                && container(&it["status"], "b")["resources"]["limits"]["memory"] == "96Mi",
            "{it:#}"
        );
        ensure!(limit(&member, "web", "b")? == 96 * MIB);

        // more than the node has
        let wanted = json!({"requests": {"cpu": "5000"}, "limits": {"cpu": "5000"}});
        resize(&member, "web", "a", wanted)?;
        let infeasible = |it: &Value| pending(it) == Some("Infeasible");
        member.wait("pod", "web", "infeasible", infeasible).await?;
        member.kubelet.kill_9();
        member.kubelet.spawn()?;
        let it = member.wait_ready("web").await?;
        ensure!(
            container(&it["status"], "a")["resources"]["limits"]["cpu"] == "150m"
                && container(&it["status"], "b")["restartCount"] == 1
                && id(&it, "a") == id(&web, "a"),
            "{it:#}"
        );

        // more than others leave: until they go
        let it = member.server.json(&["get", "node", NODE])?;
        let cpus = it["status"]["capacity"]["cpu"].as_str().context("no cpu")?;
        let most: u64 = cpus.parse::<u64>()? * 1000 - 300;
        member.apply(
            "other",
            &format!(
                "  containers: [{{name: a, image: busybox, {command}, resources: {{requests: {{cpu: {most}m}}}}}}]"
            ),
        )?;
        member.wait_ready("other").await?;
        let wanted = json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}});
        resize(&member, "web", "a", wanted)?;
        let deferred = |it: &Value| pending(it) == Some("Deferred");
        let it = member.wait("pod", "web", "deferred", deferred).await?;
        ensure!(
            container(&it["status"], "a")["allocatedResources"]["cpu"] == "120m",
            "{it:#}"
        );
        member.server.kubectl(&["delete", "pod", "other"])?;
        let it = member
            .wait("pod", "web", "given what it wanted", |it| {
                is_settled(it)
                    && container(&it["status"], "a")["resources"]["limits"]["cpu"] == "500m"
            })
            .await?;
        ensure!(container(&it["status"], "a")["restartCount"] == 0, "{it:#}");
        member.server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}
