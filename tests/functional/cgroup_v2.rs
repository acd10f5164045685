//! What only unified cgroup v2 can be asked for. On a machine with v1 these tests say that they were skipped; `hack/test --vm` runs them.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerState, HugepageLimit};
use berth_tests::{
    BUSYBOX, Node, cgroup, container,
    cri::refused,
    process,
    request::{ContainerRequest, PodRequest, sh},
};
use tonic::Code;

const MIB: i64 = 1 << 20;

fn skipped() -> bool {
    let skipped = !cgroup::unified();
    if skipped {
        eprintln!("skipped: this machine has cgroup v1");
    }
    skipped
}

#[test]
fn every_limit_is_in_its_file() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("limits")).await?;
        let unified = [
            ("memory.min", "1048576"),
            ("memory.low", "2097152"),
            ("memory.high", "25165824"),
            ("memory.oom.group", "1"),
            ("pids.max", "32"),
            ("cpu.max.burst", "1000"),
            ("cgroup.max.depth", "3"),
        ];
        let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.cpu_period = 50_000;
            resources.cpu_quota = 25_000;
            resources.cpu_shares = 512;
            resources.cpuset_cpus = "0".into();
            resources.cpuset_mems = "0".into();
            resources.memory_limit_in_bytes = 32 * MIB;
            resources.memory_swap_limit_in_bytes = 32 * MIB;
            resources.hugepage_limits = vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 4 << 20,
            }];
            resources.unified = unified
                .map(|(file, value)| (file.to_owned(), value.to_owned()))
                .into();
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let has = cgroup::directory(pid, "")?;
        let asked = [
            ("cpu.max", "25000 50000"),
            // Kubernetes' newer curve (kubernetes#131216); the line of old gave 20.
            ("cpu.weight", "59"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
            ("memory.max", "33554432"),
            ("memory.swap.max", "0"),
            ("hugetlb.2MB.max", "4194304"),
        ];
        for (file, value) in asked.into_iter().chain(unified) {
            let path = has.join(file);
            let told = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(told.trim() == value, "{file}: {told:?} and not {value:?}");
        }
        Ok(())
    })
}

#[test]
fn weights_are_those_that_kubernetes_has_for_shares() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("weights")).await?;
        // A milliCPU is 1.024 shares; the three points of the curve are the least, the default and the most.
        for (shares, weight) in [
            (2, "1"),
            (102, "17"),
            (1024, "100"),
            (2048, "174"),
            (262_144, "10000"),
        ] {
            let name = format!("of-{shares}");
            let config = container(&name, BUSYBOX, &["sleep", "1000"])
                .resources(|resources| resources.cpu_shares = shares);
            let id = node.start_container(&pod, config).await?;
            let pid = process::init_of(&id).context("no process")?.pid;
            let told = cgroup::value(pid, "cpu", "", "cpu.weight")?;
            ensure!(told == weight, "{shares} shares: {told} and not {weight}");
        }
        Ok(())
    })
}

#[test]
fn io_is_limited_on_the_device_that_is_named() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        // A disk, not a part of one: the kernel takes no others.
        let disk = fs::read_dir("/sys/block")?
            .flatten()
            .map(|entry| entry.path())
            .find(|disk| disk.join("device").exists())
            .context("this machine has no disk")?;
        let number = fs::read_to_string(disk.join("dev"))?.trim().to_owned();
        let pod = node.run(node.pod("io")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
            resources.unified = [("io.max".to_owned(), format!("{number} wbps=1048576"))].into();
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let told = cgroup::value(pid, "io", "", "io.max")?;
        ensure!(
            told.contains(&number) && told.contains("wbps=1048576"),
            "{told}"
        );
        Ok(())
    })
}

#[test]
fn a_container_whose_limit_can_not_be_set_does_not_start_and_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("half")).await?;
        node.cri.pull(BUSYBOX).await?;
        for (file, value) in [
            // No kernel has it; no kernel takes it; a device that is nowhere.
            ("memory.nonsense", "1"),
            ("memory.high", "a lot"),
            ("io.max", "4095:1048575 wbps=1"),
        ] {
            let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
                resources.memory_limit_in_bytes = 32 * MIB;
                resources.unified = [(file.to_owned(), value.to_owned())].into();
            });
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            let said = answer
                .as_ref()
                .err()
                .map(|status| status.message().to_owned());
            ensure!(
                said.as_ref().is_some_and(|said| said.contains(file)),
                "{file}: {answer:?}"
            );
            ensure!(node.cri.containers(None).await?.is_empty());
        }
        // How a cgroup is run is no limit (SEC-ENG-11).
        for file in ["cgroup.procs", "cgroup.kill", "cgroup.subtree_control"] {
            let config = container("a", BUSYBOX, &["sleep", "1000"]).resources(|resources| {
                resources.unified = [(file.to_owned(), "1".to_owned())].into();
            });
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(answer, Code::InvalidArgument, &["unified", file])?;
        }
        let left: Vec<_> = cgroup::tree(&node.cgroup_parent)
            .into_iter()
            .filter(|dir| {
                dir.file_name()
                    .is_some_and(|name| name.len() == 64 && !dir.ends_with(&pod.id))
            })
            .collect();
        ensure!(left.is_empty(), "cgroups were left: {left:?}");
        Ok(())
    })
}

#[test]
fn a_container_sees_its_own_cgroup_as_the_root_and_so_does_an_exec() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("private")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"])
            .resources(|resources| resources.memory_limit_in_bytes = 32 * MIB);
        let id = node.start_container(&pod, config).await?;
        let seen = node
            .cri
            .shell(
                &id,
                "cat /proc/self/cgroup /proc/1/cgroup /sys/fs/cgroup/memory.max; echo 1 > /sys/fs/cgroup/memory.max || echo no",
            )
            .await?;
        ensure!(seen == "0::/\n0::/\n33554432\nno", "{seen}");
        let init = process::init_of(&id).context("no process")?.pid;
        let of = |pid: &str| fs::read_link(Path::new("/proc").join(pid).join("ns/cgroup"));
        ensure!(of(&init.to_string())? != of("self")?);
        Ok(())
    })
}

/// Takes 64 MiB, and waits.
const TAKE_64_MIB: &str = "exec tail -n 1 /dev/zero";

#[test]
fn a_death_for_want_of_memory_names_the_cgroup_whose_limit_it_was_rel_16() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let own = node.run(node.pod("own")).await?;
        let limited = container("a", BUSYBOX, &sh(TAKE_64_MIB)).resources(|resources| {
            resources.memory_limit_in_bytes = 16 * MIB;
            resources.memory_swap_limit_in_bytes = 16 * MIB;
        });
        let id = node.start_container(&own, limited).await?;
        let status = node.cri.wait_exit(&id).await?;
        ensure!(
            (status.exit_code, status.reason.as_str()) == (137, "OOMKilled")
                && status.message.contains(&id)
                && status.message.contains("16777216"),
            "{status:?}"
        );
        // The pod's limit, and nobody's fault but this container's; its neighbour lives.
        let parent = node.own_cgroup_parent("tight");
        let pod = node
            .run(node.pod("tight").linux(|linux| {
                linux.cgroup_parent = parent.clone();
                linux
                    .resources
                    .get_or_insert_default()
                    .memory_limit_in_bytes = 24 * MIB;
                linux
                    .resources
                    .get_or_insert_default()
                    .memory_swap_limit_in_bytes = 24 * MIB;
            }))
            .await?;
        let neighbour = node
            .start_container(&pod, container("b", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let config = container("a", BUSYBOX, &sh(TAKE_64_MIB));
        let id = node.start_container(&pod, config).await?;
        let status = node.cri.wait_exit(&id).await?;
        ensure!(
            (status.exit_code, status.reason.as_str()) == (137, "OOMKilled")
                && status.message.contains(&format!("{parent} (25165824"))
                && !status.message.contains(&id),
            "{status:?}"
        );
        ensure!(node.cri.status(&neighbour).await?.state() == ContainerState::ContainerRunning);
        Ok(())
    })
}

#[test]
fn with_oom_group_all_of_a_container_dies_and_without_it_the_one_that_took_it_rel_16() -> Result<()>
{
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("group")).await?;
        // As a kubelet of 1.28 and later asks for it, but for `singleProcessOOMKill`.
        let limited = |name: &str, group: &str| {
            container(
                name,
                BUSYBOX,
                &sh("tail -n 1 /dev/zero; echo survived; exit 7"),
            )
            .resources(|resources| {
                resources.memory_limit_in_bytes = 16 * MIB;
                resources.memory_swap_limit_in_bytes = 16 * MIB;
                resources.unified = [("memory.oom.group".to_owned(), group.to_owned())].into();
            })
        };
        for (name, group, code) in [("together", "1", 137), ("alone", "0", 7)] {
            let config = limited(name, group);
            let (ended, said) = node.outcome(&pod, config).await?;
            ensure!(
                ended == code && said.contains("survived") == (code == 7),
                "{name}: {ended} {said:?}"
            );
        }
        Ok(())
    })
}
