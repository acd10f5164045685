//! Limits: what is over them is throttled where it can be, and killed where it must be.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerState, HugepageLimit};
use berth_tests::{
    BUSYBOX, Node, cgroup, container,
    cri::refused,
    process,
    request::{ContainerRequest, PodRequest},
    sh, systemd,
};
use tonic::Code;

/// Takes memory until it is stopped: busybox' `tail` keeps a whole line, and this one has no end.
const EAT_MEMORY: &str = "exec tail -n 1 /dev/zero";

#[test]
fn a_container_over_its_cpu_limit_is_throttled_and_lives_bo_24_bo_25() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("cpu")).await?;
        let spinning =
            container("spin", BUSYBOX, &sh("while :; do :; done")).resources(|resources| {
                resources.cpu_period = 100_000;
                resources.cpu_quota = 10_000;
            });
        let id = node.start_container(&pod, spinning).await?;
        let pid = process::init_of(&id)
            .context("the container has no process")?
            .pid;
        let throttled = || {
            cgroup::value(pid, "cpu", "cpu.stat", "cpu.stat")
                .ok()
                .and_then(|text| cgroup::counter(&text, "nr_throttled"))
                .unwrap_or(0)
        };
        ensure!(
            process::eventually(Duration::from_secs(10), || throttled() >= 5),
            "nr_throttled is {}",
            throttled()
        );
        let before = node
            .cri
            .stats(&id)
            .await?
            .cpu
            .unwrap_or_default()
            .usage_core_nano_seconds
            .unwrap_or_default()
            .value;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = node
            .cri
            .stats(&id)
            .await?
            .cpu
            .unwrap_or_default()
            .usage_core_nano_seconds
            .unwrap_or_default()
            .value
            - before;
        ensure!(
            (50_000_000..400_000_000).contains(&used),
            "a tenth of a core for 2 s were {used} ns"
        );
        ensure!(
            node.cri.status(&id).await?.state() == ContainerState::ContainerRunning,
            "CPU over the limit ended it"
        );
        Ok(())
    })
}

#[test]
fn a_container_over_its_memory_limit_is_oom_killed_with_137_and_its_neighbour_lives_bo_25()
-> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("memory")).await?;
        let neighbour = node
            .start_container(&pod, container("neighbour", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let limited = |name: &str, script: &str| {
            container(name, BUSYBOX, &sh(script)).resources(|resources| {
                resources.memory_limit_in_bytes = 24 << 20;
                resources.memory_swap_limit_in_bytes = 24 << 20;
            })
        };
        let eater = node
            .start_container(&pod, limited("eater", EAT_MEMORY))
            .await?;
        let status = node.cri.wait_exit(&eater).await?;
        ensure!(
            (status.exit_code, status.reason.as_str()) == (137, "OOMKilled"),
            "{} {}",
            status.exit_code,
            status.reason
        );
        ensure!(node.cri.status(&neighbour).await?.state() == ContainerState::ContainerRunning);
        ensure!(node.cri.exec(&neighbour, &["echo", "alive"]).await? == "alive");
        // Killed for another reason, it was not the memory.
        let killed = node
            .start_container(&pod, limited("killed", "sleep 1000"))
            .await?;
        node.cri.stop(&killed, 0).await?;
        let status = node.cri.status(&killed).await?;
        ensure!(
            (status.exit_code, status.reason.as_str()) == (137, "Error"),
            "{} {}",
            status.exit_code,
            status.reason
        );
        Ok(())
    })
}

#[test]
fn limits_are_in_the_cgroup_as_asked() -> Result<()> {
    Node::test(async |node| {
        let parent = node.own_cgroup_parent("guaranteed");
        let pod = node
            .run(
                node.pod("limits")
                    .linux(|linux| linux.cgroup_parent = parent.clone()),
            )
            .await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.cpu_period = 50_000;
            resources.cpu_quota = 25_000;
            resources.cpu_shares = 512;
            resources.cpuset_cpus = "0".into();
            resources.cpuset_mems = "0".into();
            resources.memory_limit_in_bytes = 32 << 20;
            resources.oom_score_adj = 321;
            // Where the controller is not there, these are left out with a line in the log.
            resources.hugepage_limits = vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }];
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id)
            .context("the container has no process")?
            .pid;
        let memory = cgroup::directory(pid, "memory")?;
        let (above, name) = (memory.parent(), memory.file_name());
        ensure!(
            above.is_some_and(|above| above.ends_with(parent.trim_start_matches('/')))
                && name.is_some_and(|name| systemd::names(&name.to_string_lossy(), &id)),
            "{}",
            memory.display()
        );
        if cgroup::unified() {
            ensure!(cgroup::value(pid, "cpu", "", "cpu.max")? == "25000 50000");
        } else {
            ensure!(cgroup::value(pid, "cpu", "cpu.cfs_quota_us", "")? == "25000");
            ensure!(cgroup::value(pid, "cpu", "cpu.cfs_period_us", "")? == "50000");
            ensure!(cgroup::value(pid, "cpu", "cpu.shares", "")? == "512");
        }
        ensure!(
            cgroup::value(pid, "memory", "memory.limit_in_bytes", "memory.max")?
                == (32 << 20).to_string()
        );
        ensure!(cgroup::value(pid, "cpuset", "cpuset.cpus", "cpuset.cpus")? == "0");
        ensure!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim() == "321");
        Ok(())
    })
}

/// A file of the container's cgroup; none where the machine has none of that name.
fn file(pid: i32, controller: &str, v1: &str, v2: &str) -> Option<String> {
    cgroup::value(pid, controller, v1, v2).ok()
}

#[test]
fn swap_is_limited_where_it_is_counted_and_left_out_where_it_is_not() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("swap")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.memory_limit_in_bytes = 32 << 20;
            resources.memory_swap_limit_in_bytes = 48 << 20;
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let memory = cgroup::value(pid, "memory", "memory.limit_in_bytes", "memory.max")?;
        ensure!(memory == (32 << 20).to_string());
        let swap = file(
            pid,
            "memory",
            "memory.memsw.limit_in_bytes",
            "memory.swap.max",
        );
        let expected: i64 = if cgroup::unified() {
            16 << 20
        } else {
            48 << 20
        };
        match swap {
            Some(swap) => ensure!(swap == expected.to_string(), "{swap}"),
            None => {
                let info = node.cri.status_verbose(&id, true).await?.info;
                ensure!(
                    info["info"].contains("memory_swap_limit_in_bytes"),
                    "{info:?}"
                );
            }
        }
        Ok(())
    })
}

#[test]
fn huge_pages_of_a_size_are_limited_where_there_is_a_controller() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("hugepages")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            // As the kubelet sends it for those who ask for none.
            resources.hugepage_limits = ["2MB", "1GB"]
                .map(|size| HugepageLimit {
                    page_size: size.into(),
                    limit: 0,
                })
                .to_vec();
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let limit = file(
            pid,
            "hugetlb",
            "hugetlb.2MB.limit_in_bytes",
            "hugetlb.2MB.max",
        );
        match limit {
            Some(limit) => ensure!(limit == "0", "{limit}"),
            None => {
                let info = node.cri.status_verbose(&id, true).await?.info;
                ensure!(info["info"].contains("hugepage_limits"), "{info:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn files_of_cgroup_v2_are_written_there_and_refused_on_v1() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("unified")).await?;
        node.cri.pull(BUSYBOX).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.unified = [("memory.high".to_owned(), "33554432".to_owned())].into();
        });
        let created = node.cri.create(&pod.id, &config, &pod.config).await;
        if !cgroup::unified() {
            refused(created, Code::FailedPrecondition, &["unified", "cgroup v1"])?;
            return Ok(());
        }
        let id = created?;
        node.cri.start(&id).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        ensure!(cgroup::value(pid, "memory", "", "memory.high")? == "33554432");
        Ok(())
    })
}

#[test]
fn an_oom_score_that_this_machine_cannot_give_does_not_fail_the_pod() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("critical")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"])
            .resources(|resources| resources.oom_score_adj = -998);
        let id = node.start_container(&pod, config).await?;
        ensure!(node.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
        // What it has is what the daemon could give, and people are told.
        let pid = process::init_of(&id).context("no process")?.pid;
        let has = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
        if has.trim() != "-998" {
            let own = std::fs::read_to_string("/proc/self/oom_score_adj")?;
            ensure!(has == own, "{has}, and the daemon has {own}");
            let info = node.cri.status_verbose(&id, true).await?.info;
            ensure!(info["info"].contains("oom_score_adj -998"), "{info:?}");
        }
        Ok(())
    })
}
