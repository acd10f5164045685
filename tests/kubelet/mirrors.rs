//! Pods of the node's own disk, as the API shows them.

use anyhow::{Result, ensure};
use berth_tests::Node;

use crate::{
    member::{Member, NODE, condition},
    scene::{container, pod},
};

#[test]
fn static_pods_have_mirrors_that_follow_their_files_kl_02() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        let text = |words: &str| {
            pod(
                "own",
                &format!(
                    "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: busybox, command: [sh, -c, 'echo {words}; sleep 1000']}}]"
                ),
            )
        };
        member.kubelet.put("own.yaml", &text("first"))?;
        let name = format!("own-{NODE}");
        let first = member.wait_ready(&name).await?;
        ensure!(
            first["metadata"]["annotations"]["kubernetes.io/config.source"] == "file"
                && first["metadata"]["ownerReferences"][0]["kind"] == "Node",
            "{first:#}"
        );
        ensure!(server.kubectl(&["logs", &name])? == "first\n");
        let id = container(&first["status"], "a")["containerID"].clone();
        // deleting the mirror deletes nothing but the mirror
        server.kubectl(&["delete", "pod", &name, "--wait=false"])?;
        let again = member
            .wait("pod", &name, "mirrored anew", |it| {
                it["metadata"]["uid"] != first["metadata"]["uid"]
                    && condition(it, "Ready") == "True"
            })
            .await?;
        ensure!(
            container(&again["status"], "a")["containerID"] == id,
            "{again:#}"
        );
        member.kubelet.put("own.yaml", &text("second"))?;
        member
            .until("the second speaks", || {
                Ok(server.ask(&["logs", &name], "")?.stdout == "second\n")
            })
            .await?;
        member.kubelet.take("own.yaml")?;
        member
            .until("the mirror is gone", || {
                Ok(!server.ask(&["get", "pod", &name], "")?.ok)
            })
            .await?;
        member.kubelet.wait_gone(node, "own").await?;
        member.end()
    })
}
