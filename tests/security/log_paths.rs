//! SEC-CRI-04: log paths that lead elsewhere (CVE-2025-0750, CVE-2026-53489).

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{BUSYBOX, Node, container, sh};
use nix::{sys::stat::Mode, unistd::mkfifo};

#[test]
fn logs_are_never_written_through_links_or_into_other_files_sec_cri_04() -> Result<()> {
    Node::test(async |node| {
        let secret = node.canary.dir.join("secret");
        let noisy = sh("while :; do echo noise; sleep 0.05; done");
        for kind in [
            "symlink",
            "dangling",
            "hardlink",
            "fifo",
            "directory",
            "parent",
        ] {
            let pod = node.run(node.pod(kind)).await?;
            let config = container("a", BUSYBOX, &noisy);
            let path = node.log_path(&pod, &config);
            let parent = path.parent().expect("a log lies in a directory");
            fs::create_dir_all(parent)?;
            match kind {
                "symlink" => symlink(&secret, &path)?,
                "dangling" => symlink(node.canary.dir.join("new"), &path)?,
                "hardlink" => {
                    // Not of the canary: the link count would change. Of a file of its own, to be compared.
                    fs::write(node.dir.join("innocent"), "innocent")?;
                    fs::hard_link(node.dir.join("innocent"), &path)?;
                }
                "fifo" => mkfifo(&path, Mode::S_IRWXU)?,
                "directory" => fs::create_dir(&path)?,
                _ => {
                    fs::remove_dir(parent)?;
                    symlink(&node.canary.dir, parent)?;
                }
            }
            let begin = Instant::now();
            node.cri.pull(BUSYBOX).await?;
            if let Ok(id) = node.cri.create(&pod.id, &config, &pod.config).await {
                let _ = node.cri.start(&id).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                node.cri.remove(&id).await?;
            }
            ensure!(
                begin.elapsed() < Duration::from_secs(5),
                "{kind}: took {:?}",
                begin.elapsed()
            );
            node.canary
                .check()
                .with_context(|| format!("a log path that is a {kind}"))?;
            let findings = node.audit()?;
            ensure!(findings.is_empty(), "{kind}: {findings:?}");
            node.remove_all().await?;
            ensure!(
                kind != "hardlink" || fs::read_to_string(node.dir.join("innocent"))? == "innocent",
                "another file was written to"
            );
        }
        Ok(())
    })
}

#[test]
fn a_log_replaced_by_a_link_is_not_reopened_sec_cri_04() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("reopen")).await?;
        let config = container(
            "a",
            BUSYBOX,
            &sh("while :; do echo noise; sleep 0.02; done"),
        );
        let id = node.start_container(&pod, config.clone()).await?;
        let path = node.log_path(&pod, &config);
        for target in [node.canary.dir.join("secret"), node.canary.dir.join("new")] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fs::rename(&path, path.with_extension("away"))?;
            symlink(&target, &path)?;
            let _ = node.cri.reopen_log(&id).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            node.canary.check()?;
            fs::remove_file(&path)?;
            node.cri.reopen_log(&id).await?;
        }
        node.cri.stop(&id, 0).await?;
        Ok(())
    })
}
