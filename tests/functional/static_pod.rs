//! The calls of a stock kubelet that brings up a static pod and takes it down, in the kubelet's order.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_proto::cri::{
    self, ContainerFilter, ContainerState, LinuxContainerResources, PodSandboxFilter,
    PodSandboxState, PodSandboxStateValue,
};
use berth_tests::{
    BUSYBOX, Node, container,
    request::{ContainerRequest, PodRequest},
    sh, systemd,
};

#[test]
fn a_static_pod_becomes_running_and_ready_with_stats_and_goes_again() -> Result<()> {
    Node::test(async |node| {
        // The kubelet's own start.
        node.cri.version().await?;
        ensure!(!node.cri.fs_info().await?.image_filesystems.is_empty());
        for _ in 0..3 {
            let config = node
                .cri
                .runtime()
                .runtime_config(cri::RuntimeConfigRequest {})
                .await?
                .into_inner();
            let wanted = match systemd::is_wanted() {
                true => cri::CgroupDriver::Systemd,
                false => cri::CgroupDriver::Cgroupfs,
            };
            ensure!(
                config
                    .linux
                    .is_some_and(|linux| linux.cgroup_driver() == wanted)
            );
        }
        let status = node
            .cri
            .runtime()
            .status(cri::StatusRequest { verbose: false })
            .await?
            .into_inner();
        let conditions = status.status.unwrap_or_default().conditions;
        for name in ["RuntimeReady", "NetworkReady"] {
            ensure!(
                conditions
                    .iter()
                    .any(|condition| condition.r#type == name && condition.status),
                "{name}: {conditions:?}"
            );
        }
        ensure!(
            status
                .runtime_handlers
                .iter()
                .any(|handler| handler.name.is_empty()),
            "the default handler is not told of"
        );
        node.cri.pods(None).await?;
        node.cri.containers(None).await?;
        node.cri.list_stats(None).await?;

        // A burstable pod, with everything that a kubelet sends and nobody reads.
        let parent = node.own_cgroup_parent("kubepods/burstable/podf00");
        let config = node.pod("static").linux(|linux| {
            linux.cgroup_parent = parent.clone();
            linux.overhead = Some(LinuxContainerResources::default());
            linux.resources = Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_shares: 102,
                ..Default::default()
            });
            linux
                .sysctls
                .insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        });
        let pod = node.run(config).await?;
        let status = node.cri.pod_status(&pod.id).await?;
        ensure!(
            status.state() == PodSandboxState::SandboxReady
                && !status.network.unwrap_or_default().ip.is_empty()
        );
        ensure!(
            node.cri.image(BUSYBOX).await?.is_none() && node.cri.image(BUSYBOX).await?.is_none()
        );
        let image = node.cri.pull(BUSYBOX).await?;
        let id = node
            .cri
            .image(BUSYBOX)
            .await?
            .map(|image| image.id)
            .unwrap_or_default();
        ensure!(!id.is_empty() && !image.is_empty());

        let config = container("app", &id, &sh("echo up; exec sleep 1000"))
            .with(|config| {
                config
                    .image
                    .as_mut()
                    .expect("it has an image")
                    .user_specified_image = BUSYBOX.into()
            })
            .resources(|resources| {
                resources.memory_limit_in_bytes = 64 << 20;
                // The same as the memory limit: no swap. Must not fail where swap is not accounted.
                resources.memory_swap_limit_in_bytes = 64 << 20;
                resources.hugepage_limits = ["2MB", "1GB"]
                    .map(|size| cri::HugepageLimit {
                        page_size: size.into(),
                        limit: 0,
                    })
                    .to_vec();
                resources.oom_score_adj = -997;
            })
            .env("KUBERNETES_SERVICE_HOST", b"10.96.0.1");
        let app = node.create(&pod, &config).await?;
        node.cri.start(&app).await?;
        let running = Some(cri::ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        });
        let filter = ContainerFilter {
            state: running,
            ..Default::default()
        };
        ensure!(
            node.cri
                .containers(Some(filter))
                .await?
                .iter()
                .any(|listed| listed.id == app && listed.image_id == id)
        );
        let ready = Some(PodSandboxStateValue {
            state: PodSandboxState::SandboxReady.into(),
        });
        ensure!(
            node.cri
                .pods(Some(PodSandboxFilter {
                    state: ready,
                    ..Default::default()
                }))
                .await?
                .len()
                == 1
        );
        let status = node.cri.status(&app).await?;
        ensure!(
            status.state() == ContainerState::ContainerRunning && status.image_id == id,
            "{status:?}"
        );
        ensure!(
            status.log_path == node.log_path(&pod, &config).display().to_string(),
            "{}",
            status.log_path
        );
        let linux = status
            .resources
            .unwrap_or_default()
            .linux
            .unwrap_or_default();
        ensure!(linux.memory_limit_in_bytes == 64 << 20, "{linux:?}");
        let stats = node.cri.list_stats(None).await?;
        ensure!(
            stats.iter().any(
                |stats| stats.attributes.as_ref().is_some_and(|of| of.id == app)
                    && stats.memory.is_some()
            ),
            "{stats:?}"
        );

        // Down again.
        node.cri.stop(&app, 1).await?;
        node.cri.stop_pod(&pod.id).await?;
        let status = node.cri.pod_status(&pod.id).await?;
        ensure!(status.state() == PodSandboxState::SandboxNotready);
        ensure!(node.cri.status(&app).await?.state() == ContainerState::ContainerExited);
        node.cri.remove(&app).await?;
        ensure!(
            node.cri
                .status(&app)
                .await
                .is_err_and(|status| status.code() == tonic::Code::NotFound)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        ensure!(node.cri.pods(None).await?.is_empty());
        Ok(())
    })
}
