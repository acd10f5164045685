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
fn every_limit_changes_in_place() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("every")).await?;
        let config = container("c", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.cpu_period = 50_000;
            resources.cpu_quota = 25_000;
            resources.memory_limit_in_bytes = 64 << 20;
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let value = |controller: &str, v1: &str, v2: &str| cgroup::value(pid, controller, v1, v2);
        type Change = fn(&mut cri::LinuxContainerResources);
        // What changes, and what the file says then on v1 and on v2.
        let table: [(Change, &str, (&str, &str), (&str, &str)); 8] = [
            (
                |r| r.cpu_shares = 2048,
                "cpu",
                ("cpu.shares", "cpu.weight"),
                ("2048", "174"),
            ),
            (
                |r| r.cpu_quota = 10_000,
                "cpu",
                ("cpu.cfs_quota_us", "cpu.max"),
                // The period stays.
                ("10000", "10000 50000"),
            ),
            (
                |r| r.cpu_period = 100_000,
                "cpu",
                ("cpu.cfs_period_us", "cpu.max"),
                ("100000", "10000 100000"),
            ),
            (
                |r| r.cpu_quota = -1,
                "cpu",
                ("cpu.cfs_quota_us", "cpu.max"),
                ("-1", "max 100000"),
            ),
            (
                |r| r.cpuset_cpus = "0".into(),
                "cpuset",
                ("cpuset.cpus", "cpuset.cpus"),
                ("0", "0"),
            ),
            (
                |r| r.cpuset_mems = "0".into(),
                "cpuset",
                ("cpuset.mems", "cpuset.mems"),
                ("0", "0"),
            ),
            (
                |r| r.memory_limit_in_bytes = 32 << 20,
                "memory",
                ("memory.limit_in_bytes", "memory.max"),
                ("33554432", "33554432"),
            ),
            (
                |r| r.memory_limit_in_bytes = -1,
                "memory",
                ("memory.limit_in_bytes", "memory.max"),
                ("9223372036854771712", "max"),
            ),
        ];
        for (row, (change, controller, (v1, v2), (on_v1, on_v2))) in table.into_iter().enumerate() {
            let mut resources = cri::LinuxContainerResources::default();
            change(&mut resources);
            update(node, &id, resources).await?;
            let wanted = if cgroup::unified() { on_v2 } else { on_v1 };
            let is = value(controller, v1, v2)?;
            ensure!(is == wanted, "row {row}: {is}, not {wanted}");
        }
        // What this machine counts not is left out, and what it has not is refused.
        let no_pages = cri::LinuxContainerResources {
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            ..Default::default()
        };
        update(node, &id, no_pages).await?;
        if !cgroup::unified() {
            let unified = cri::LinuxContainerResources {
                unified: [("memory.high".to_owned(), "1000000".to_owned())].into(),
                ..Default::default()
            };
            refused(
                update(node, &id, unified).await,
                Code::FailedPrecondition,
                &["unified", "cgroup v1"],
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_change_that_the_kernel_refuses_takes_nothing_else_with_it() -> Result<()> {
    if cgroup::unified() {
        // There memory.max below the use is taken, and the container killed.
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("kernel")).await?;
        let config = container(
            "c",
            BUSYBOX,
            &sh("head -c 8388608 /dev/zero > /dev/shm/full; sleep 1000"),
        )
        .resources(|resources| {
            resources.cpu_period = 100_000;
            resources.cpu_quota = 50_000;
            resources.memory_limit_in_bytes = 64 << 20;
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let usage = || -> i64 {
            let text = cgroup::value(pid, "memory", "memory.usage_in_bytes", "memory.current");
            text.ok().and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        ensure!(process::eventually(
            std::time::Duration::from_secs(10),
            || { usage() > 8 << 20 }
        ));
        let before = node.cri.status(&id).await?;
        let change = cri::LinuxContainerResources {
            cpu_shares: 77,
            cpu_quota: 20_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        refused(
            update(node, &id, change).await,
            Code::FailedPrecondition,
            &["memory.limit_in_bytes"],
        )?;
        ensure!(cgroup::value(pid, "cpu", "cpu.shares", "")? != "77");
        ensure!(cgroup::value(pid, "cpu", "cpu.cfs_quota_us", "")? == "50000");
        let limit = cgroup::value(pid, "memory", "memory.limit_in_bytes", "")?;
        ensure!(limit == (64 << 20).to_string());
        ensure!(node.cri.status(&id).await? == before);
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
