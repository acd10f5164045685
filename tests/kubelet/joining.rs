//! How a node comes to a certificate of its own.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, c_program::compile};
use serde_json::Value;

use crate::{
    faults::CLOCK,
    member::{Member, NODE, condition},
};

fn mode(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

#[test]
fn a_node_joins_by_a_token_and_renews_its_certificate_by_itself() -> Result<()> {
    Node::test(async |node| {
        let (kubeconfig, certs) = (node.dir.join("node.kubeconfig"), node.dir.join("certs"));
        let mut member = Member::start_by_token(node, &kubeconfig, &certs).await?;
        let file = certs.join("kubelet-client-current.pem");
        ensure!(mode(&file)? == 0o600 && mode(&kubeconfig)? == 0o600);
        let first = fs::read_to_string(&file)?;
        // what it was told is in use by whoever has the kubeconfig
        let text = fs::read_to_string(&kubeconfig)?;
        ensure!(
            !text.contains("token") && text.contains("kubelet-client-current.pem"),
            "{text}"
        );
        let messages = |all: &Value| -> Vec<String> {
            let all = all["items"].as_array().into_iter().flatten();
            all.map(|one| {
                let condition = &one["status"]["conditions"][0];
                format!(
                    "{} {}",
                    one["spec"]["username"].as_str().unwrap_or(""),
                    condition["message"].as_str().unwrap_or("")
                )
            })
            .collect()
        };
        let all = messages(&member.server.json(&["get", "csr"])?);
        ensure!(
            all == [
                "system:bootstrap:abcdef Auto approving kubelet client certificate after SubjectAccessReview."
            ],
            "{all:?}"
        );

        // eleven months later
        member.kubelet.kill_9();
        let (library, shift) = (node.dir.join("clock.so"), node.dir.join("shift"));
        compile(CLOCK, &library, &["-shared", "-fPIC"])?;
        fs::write(&shift, (335 * 24 * 3600).to_string())?;
        member.kubelet.set_environment(&[
            ("LD_PRELOAD", library.display().to_string()),
            ("CLOCK_SHIFT", shift.display().to_string()),
        ]);
        member.kubelet.spawn()?;
        member
            .until("the certificate is another", || {
                Ok(fs::read_to_string(&file)? != first)
            })
            .await?;
        ensure!(mode(&file)? == 0o600);
        let all = messages(&member.server.json(&["get", "csr"])?);
        let own = "system:node:n1 Auto approving self kubelet client certificate after SubjectAccessReview.";
        ensure!(all.iter().any(|one| one == own), "{all:?}");
        // it is who it was
        member.apply(
            "next",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]",
        )?;
        member.wait_ready("next").await?;

        member.server.kubectl(&["delete", "pod", "next"])?;
        let it = member.server.json(&["get", "node", NODE])?;
        ensure!(condition(&it, "Ready") == "True", "{it:#}");
        member.end()
    })
}
