//! Limits that change while a container runs.

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerState};
use berth_tests::{
    BUSYBOX, Node, cgroup, container, cri::refused, process, request::ContainerRequest, sh,
};
use tonic::Code;

async fn update(
    node: &Node,
    id: &str,
    linux: cri::LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    let mut client = node.cri.runtime();
    client.update_container_resources(request).await.map(drop)
}

#[test]
fn limits_change_in_place_and_survive_a_restart_of_the_daemon() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("update")).await?;
        let config = container("c", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.cpu_period = 100_000;
            resources.cpu_quota = 50_000;
            resources.cpu_shares = 512;
            resources.memory_limit_in_bytes = 64 << 20;
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let change = cri::LinuxContainerResources {
            cpu_quota: 20_000,
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        };
        update(node, &id, change).await?;
        let (quota, memory) = match cgroup::unified() {
            true => ("20000 100000", "134217728"),
            false => ("20000", "134217728"),
        };
        let cpu = cgroup::value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
        ensure!(cpu.trim() == quota, "{cpu}");
        let limit = cgroup::value(pid, "memory", "memory.limit_in_bytes", "memory.max")?;
        ensure!(limit.trim() == memory, "{limit}");
        let now = async |node: &Node| -> Result<cri::LinuxContainerResources> {
            let status = node.cri.status(&id).await?;
            let resources = status.resources.and_then(|resources| resources.linux);
            resources.context("the status has no resources")
        };
        let expected = (20_000, 512, 128 << 20);
        for restarted in [false, true] {
            if restarted {
                node.restart().await?;
            }
            let told = now(node).await?;
            ensure!(
                (told.cpu_quota, told.cpu_shares, told.memory_limit_in_bytes) == expected,
                "{told:?}"
            );
        }
        ensure!(process::init_of(&id).context("no process")?.pid == pid);
        Ok(())
    })
}

#[test]
fn a_change_that_makes_no_sense_changes_nothing() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("refused")).await?;
        let config = container("c", BUSYBOX, &["sleep", "1000"])
            .resources(|resources| resources.memory_limit_in_bytes = 64 << 20);
        let id = node.start_container(&pod, config).await?;
        let before = node.cri.status(&id).await?;
        let table: [(fn(&mut cri::LinuxContainerResources), &str); 4] = [
            (|r| r.cpu_quota = 10, "cpu_quota"),
            (|r| r.cpu_period = 1, "cpu_period"),
            (|r| r.cpuset_cpus = "4000".into(), "cpuset_cpus"),
            (
                |r| r.memory_swap_limit_in_bytes = 1 << 20,
                "memory_swap_limit_in_bytes",
            ),
        ];
        for (change, field) in table {
            let mut resources = cri::LinuxContainerResources::default();
            change(&mut resources);
            refused(
                update(node, &id, resources).await,
                Code::InvalidArgument,
                &[field],
            )?;
        }
        ensure!(
            node.cri.status(&id).await? == before,
            "a refused change has changed something"
        );

        let ended = node
            .start_container(&pod, container("ended", BUSYBOX, &sh("exit 0")))
            .await?;
        ensure!(node.cri.wait_exit(&ended).await?.state() == ContainerState::ContainerExited);
        let change = cri::LinuxContainerResources {
            cpu_shares: 100,
            ..Default::default()
        };
        refused(
            update(node, &ended, change.clone()).await,
            Code::FailedPrecondition,
            &["exited"],
        )?;
        refused(
            update(node, "nobody", change).await,
            Code::NotFound,
            &["nobody"],
        )?;
        Ok(())
    })
}
