//! The node runs short: who goes, and what is told.

use anyhow::{Result, ensure};
use berth_tests::Node;

use crate::{
    member::{Member, NODE, condition, sandboxes},
    scene::pod,
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
