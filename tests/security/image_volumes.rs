//! SEC-IMG-09: volumes that an image declares (CVE-2022-23648). They ask for nothing here: what is written there is in the container's
//! own writable layer, nothing is copied, and their paths are never resolved on the node.

use anyhow::{Result, ensure};
use berth_tests::{Node, container, debian, sh, tarball::Entry};
use serde_json::{Map, json};

/// More than any image has.
const MANY: usize = 10_000;

#[test]
fn volumes_that_an_image_declares_lead_nowhere_outside_sec_img_09() -> Result<()> {
    Node::test(async |node| {
        let outside = node.dir.join("canary").display().to_string();
        let upwards = format!("/../../../../../../..{outside}");
        let pod = node.run(node.pod("volumes")).await?;
        let many = (0..MANY).map(|number| format!("/volumes/{number}"));
        let sets: [Vec<String>; 6] = [
            vec![upwards.clone(), "/../../etc".into()],
            vec![String::new()],
            vec!["/".into()],
            vec!["/link/etc".into(), "/link".into()],
            vec!["/data".into(), "relative".into(), "/da\nta".into()],
            many.collect(),
        ];
        for (number, paths) in sets.into_iter().enumerate() {
            let volumes: Map<_, _> = paths.iter().map(|path| (path.clone(), json!({}))).collect();
            let repository = format!("own/volumes-{number}");
            debian::busybox_image()?
                .plus(&[
                    Entry::symlink("link", &outside),
                    Entry::dir("data", 0o755),
                    Entry::file("data/kept", 0o644, "kept"),
                ])?
                .but(json!({"Volumes": volumes}))
                .push(&node.registry, &repository, &["1"])?;
            let image = format!("localhost:5000/{repository}:1");
            // What lies at the declared places, and that they can be written.
            let script = format!(
                "cat /data/kept; cat {outside}/etc/passwd /link/etc/passwd; echo new > /data/new; cat /data/new"
            );
            let config = container(&format!("c{number}"), &image, &sh(&script));
            let id = node.start_container(&pod, config.clone()).await?;
            ensure!(node.cri.wait_exit(&id).await?.exit_code == 0);
            for stream in ["stdout", "stderr"] {
                let text = node.log_text(&pod, &config, stream)?;
                node.canary.unseen_in(&repository, text.as_bytes())?;
                ensure!(stream == "stderr" || text == "keptnew\n", "{text:?}");
            }
            let mounts = node.cri.status(&id).await?.mounts;
            ensure!(mounts.is_empty(), "{mounts:?}");
            node.cri.remove(&id).await?;
        }
        Ok(())
    })
}
