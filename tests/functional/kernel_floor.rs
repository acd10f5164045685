//! What the daemon says of its kernel, held against the kernel's version and against what it is given to stand on.

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{BUSYBOX, Node, cgroup, container, refused, request::ContainerRequest};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{StatVfsMountFlags, statvfs};
use tonic::Code;

async fn status(node: &Node) -> Result<cri::StatusResponse> {
    let request = cri::StatusRequest { verbose: true };
    Ok(node.cri.runtime().status(request).await?.into_inner())
}

/// `6.1.0-40-amd64`: 6, 1.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[test]
fn features_of_the_kernel_are_told_as_its_version_has_them() -> Result<()> {
    Node::test(async |node| {
        let told = status(node).await?;
        let kernel: serde_json::Value = serde_json::from_str(&told.info["kernel"])?;
        let machine = nix::sys::utsname::uname()?;
        let release = machine.release().to_string_lossy().into_owned();
        ensure!(kernel["release"] == release.as_str(), "{kernel}");
        let own = version(&release).context("a kernel without a version")?;
        let features = kernel["features"].as_array().context("no features")?;
        ensure!(features.len() >= 5 && (features.len() >= 9 || !cgroup::unified()));
        let log = std::fs::read_to_string(&node.daemon.log)?;
        for feature in features {
            let name = feature["name"].as_str().context("no name")?;
            let since = version(feature["since"].as_str().unwrap_or_default());
            let since = since.with_context(|| format!("{name} is since when?"))?;
            // Those of kernel.org and Debian's; others may carry features back.
            ensure!(
                feature["missing"].is_null() == (own >= since),
                "{release}: {feature}"
            );
            // Said at the start, too.
            ensure!(
                log.contains(&format!("the kernel lacks {name}")) != feature["missing"].is_null(),
                "{name}: {log}"
            );
        }
        let ready = told.status.context("no status")?.conditions;
        let runtime = ready.iter().find(|c| c.r#type == "RuntimeReady");
        ensure!(runtime.is_some_and(|runtime| runtime.status), "{ready:?}");
        Ok(())
    })
}

/// In this test's own mount namespace: no other test's cgroups are touched. What else their mounts forbid stays.
fn remount_cgroups(flags: MsFlags) -> Result<()> {
    let kept = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
    for root in cgroup::roots() {
        let of_mount = statvfs(&root)?.f_flag & kept;
        // These have the same numbers there (<sys/statvfs.h>).
        let of_mount = MsFlags::from_bits_truncate(of_mount.bits());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | of_mount | flags;
        mount(None::<&str>, &root, None::<&str>, flags, None::<&str>)
            .with_context(|| format!("remount {}", root.display()))?;
    }
    Ok(())
}

#[test]
fn a_node_whose_cgroups_are_read_only_is_not_ready_and_refuses_pods_by_its_reason() -> Result<()> {
    Node::test(async |node| {
        remount_cgroups(MsFlags::MS_RDONLY)?;
        node.restart().await?;
        let conditions = status(node).await?.status.context("no status")?.conditions;
        let runtime = conditions.iter().find(|c| c.r#type == "RuntimeReady");
        let runtime = runtime.context("no condition")?;
        ensure!(
            !runtime.status
                && runtime.reason == "CgroupsUnusable"
                && runtime.message.contains("read-only"),
            "{runtime:?}"
        );
        let answer = node.cri.run_pod(&node.pod("refused")).await;
        refused(answer, Code::FailedPrecondition, &["read-only", "cgroup"])?;
        ensure!(node.cri.pods(None).await?.is_empty());
        // Images are none of its matter.
        node.cri.pull(BUSYBOX).await?;
        // As the message says, and the next daemon has pods again.
        remount_cgroups(MsFlags::empty())?;
        node.restart().await?;
        node.run(node.pod("taken")).await?;
        Ok(())
    })
}

#[test]
fn a_limit_whose_controller_is_not_there_makes_no_container() -> Result<()> {
    const MEMORY: &str = "/sys/fs/cgroup/memory";
    if cgroup::unified() {
        eprintln!("skipped: cgroup v2 has a test of its own for this");
        return Ok(());
    }
    Node::test(async |node| {
        // In this test's own mount namespace.
        umount2(MEMORY, MntFlags::MNT_DETACH)?;
        node.restart().await?;
        let pod = node.run(node.pod("none")).await?;
        node.cri.pull(BUSYBOX).await?;
        let config = container("limited", BUSYBOX, &["sleep", "1000"])
            .resources(|resources| resources.memory_limit_in_bytes = 32 << 20);
        let answer = node.cri.create(&pod.id, &config, &pod.config).await;
        let said = answer.as_ref().err().map(tonic::Status::message);
        ensure!(
            said.is_some_and(|said| said.contains("no memory controller")),
            "{answer:?}"
        );
        ensure!(node.cri.containers(None).await?.is_empty());
        // Who asks for none has one.
        let free = container("free", BUSYBOX, &["sleep", "1000"]);
        node.start_container(&pod, free).await?;
        mount(
            Some("cgroup"),
            MEMORY,
            Some("cgroup"),
            MsFlags::MS_RELATIME,
            Some("memory"),
        )?;
        node.remove_all().await?;
        node.restart().await
    })
}
