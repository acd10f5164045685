//! RuntimeClass: the handlers of the configuration.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{BUSYBOX, Node, Setup, container, cri::refused};
use tonic::Code;

#[test]
fn each_handler_is_reported_with_its_features_and_runs_pods() -> Result<()> {
    let setup = Setup {
        config:
            "[runtime.handlers.berth]\n[runtime.handlers.second]\n[runtime.handlers.nowhere]\nshim = \"/no/such/shim\"\n"
                .into(),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let mut client = node.cri.runtime();
        let status = client.status(cri::StatusRequest::default()).await?;
        let status = status.into_inner();
        let names: BTreeSet<&str> = status
            .runtime_handlers
            .iter()
            .map(|handler| handler.name.as_str())
            .collect();
        ensure!(
            names == BTreeSet::from(["", "berth", "nowhere", "second"]),
            "{names:?}"
        );
        for handler in &status.runtime_handlers {
            let features = handler.features.as_ref().context("no features")?;
            // Of another shim than Berth's own nothing is promised that its contract does not have.
            let own = handler.name != "nowhere";
            ensure!(features.recursive_read_only_mounts == own, "{handler:?}");
        }
        let features = status.features.context("no features of the runtime")?;
        ensure!(features.supplemental_groups_policy);

        let config = node.pod("second");
        let id = node.cri.run_pod_with(&config, "second").await?;
        ensure!(node.cri.pod_status(&id).await?.runtime_handler == "second");
        let pod = berth_tests::Pod { id, config };
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        ensure!(node.cri.exec(&id, &["echo", "runs"]).await? == "runs");
        node.restart().await?;
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");

        refused(
            node.cri.run_pod_with(&node.pod("none"), "third").await,
            Code::InvalidArgument,
            &["third", "berth, nowhere, second"],
        )?;
        let missing = node.cri.run_pod_with(&node.pod("missing"), "nowhere").await;
        refused(missing, Code::Internal, &["/no/such/shim", "nowhere"])?;
        Ok(())
    })
}

#[test]
fn names_that_lead_elsewhere_are_no_handlers_and_make_nothing_sec_cri_09() -> Result<()> {
    Node::test(async |node| {
        let long = "x".repeat(1 << 20);
        for name in [
            "../../bin/sh",
            "/bin/sh",
            "berth/../x",
            "berth\0",
            "Berth",
            " ",
            &long,
        ] {
            let answer = node.cri.run_pod_with(&node.pod("handler"), name).await;
            refused(answer, Code::InvalidArgument, &["handler"])
                .with_context(|| format!("{name:.40?}"))?;
        }
        ensure!(node.cri.pods(None).await?.is_empty());
        let pods = node.daemon.state.join("pods");
        ensure!(!pods.exists() || std::fs::read_dir(pods)?.count() == 0);
        Ok(())
    })
}
