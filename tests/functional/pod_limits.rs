//! Limits of a whole pod: given with it, and changed while it runs.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};
use berth_tests::{
    BUSYBOX, Node, Pod, cgroup, container, cri::refused, process, request::PodRequest, systemd,
};
use tonic::Code;

const MIB: i64 = 1 << 20;

/// Where the pod's own cgroup is for a controller.
fn place(parent: &str, controller: &str) -> PathBuf {
    let below = parent.trim_start_matches('/');
    match cgroup::unified() {
        true => PathBuf::from("/sys/fs/cgroup").join(below),
        false => PathBuf::from("/sys/fs/cgroup").join(controller).join(below),
    }
}

fn read(parent: &str, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let file = place(parent, controller).join(if cgroup::unified() { v2 } else { v1 });
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().to_owned())
}

fn memory(parent: &str) -> Result<String> {
    read(parent, "memory", "memory.limit_in_bytes", "memory.max")
}

/// Quota and period, µs.
fn cpu(parent: &str) -> Result<(String, String)> {
    if cgroup::unified() {
        let both = read(parent, "cpu", "", "cpu.max")?;
        let (quota, period) = both.split_once(' ').context("cpu.max")?;
        return Ok((quota.into(), period.into()));
    }
    Ok((
        read(parent, "cpu", "cpu.cfs_quota_us", "")?,
        read(parent, "cpu", "cpu.cfs_period_us", "")?,
    ))
}

async fn update(
    node: &Node,
    pod: &str,
    resources: Option<LinuxContainerResources>,
    overhead: Option<LinuxContainerResources>,
) -> Result<(), tonic::Status> {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.to_owned(),
        resources,
        overhead,
    };
    let mut client = node.cri.runtime();
    client.update_pod_sandbox_resources(request).await.map(drop)
}

/// What the pod's verbose status has of its memory limits: of the resources, of the overhead.
async fn told(node: &Node, pod: &Pod) -> Result<(i64, i64)> {
    let status = node.cri.pod_status_verbose(&pod.id, true).await?;
    let info: serde_json::Value = serde_json::from_str(&status.info["info"])?;
    let of = |part: &str| info[part]["memoryLimitInBytes"].as_i64();
    Ok((
        of("resources").context("no resources")?,
        of("overhead").context("no overhead")?,
    ))
}

fn limits(memory: i64, quota: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_period: if quota == 0 { 0 } else { 100_000 },
        ..Default::default()
    }
}

#[test]
fn a_pod_has_its_limits_and_its_overhead_and_they_change_in_place() -> Result<()> {
    Node::test(async |node| {
        let parent = node.own_cgroup_parent("limited");
        let config = node.pod("limited").linux(|linux| {
            linux.cgroup_parent = parent.clone();
            linux.resources = Some(LinuxContainerResources {
                cpu_shares: 512,
                cpuset_cpus: "0".into(),
                cpuset_mems: "0".into(),
                ..limits(64 * MIB, 50_000)
            });
            linux.overhead = Some(limits(16 * MIB, 10_000));
        });
        let pod = node.run(config).await?;
        // Before there is any container.
        ensure!(memory(&parent)? == (80 * MIB).to_string());
        ensure!(cpu(&parent)? == ("60000".into(), "100000".into()));
        ensure!(read(&parent, "cpuset", "cpuset.cpus", "cpuset.cpus")? == "0");
        ensure!(told(node, &pod).await? == (64 * MIB, 16 * MIB));
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let of_container = cgroup::directory(pid, "memory")?;
        ensure!(of_container.parent() == Some(place(&parent, "memory").as_path()));
        let name = of_container.file_name().and_then(|name| name.to_str());
        ensure!(name.is_some_and(|name| systemd::names(name, &id)));

        update(node, &pod.id, Some(limits(128 * MIB, 70_000)), None).await?;
        ensure!(memory(&parent)? == (144 * MIB).to_string());
        ensure!(cpu(&parent)? == ("80000".into(), "100000".into()));
        update(node, &pod.id, None, Some(limits(32 * MIB, 0))).await?;
        ensure!(memory(&parent)? == (160 * MIB).to_string());
        ensure!(cpu(&parent)? == ("80000".into(), "100000".into()));
        ensure!(told(node, &pod).await? == (128 * MIB, 32 * MIB));

        // The next daemon knows them, and goes on from there.
        node.restart().await?;
        ensure!(told(node, &pod).await? == (128 * MIB, 32 * MIB));
        ensure!(memory(&parent)? == (160 * MIB).to_string());
        update(node, &pod.id, None, Some(limits(8 * MIB, 0))).await?;
        ensure!(memory(&parent)? == (136 * MIB).to_string());
        ensure!(process::init_of(&id).context("no process")?.pid == pid);
        Ok(())
    })
}

#[test]
fn a_pod_without_limits_gets_some_before_and_after_its_first_container() -> Result<()> {
    Node::test(async |node| {
        for with_container in [false, true] {
            let name = format!("later-{with_container}");
            let pod = node.run(node.pod(&name)).await?;
            if with_container {
                node.start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
                    .await?;
            }
            update(node, &pod.id, Some(limits(64 * MIB, 0)), None).await?;
            ensure!(memory(&node.own_cgroup_parent(&pod.id))? == (64 * MIB).to_string());
        }
        Ok(())
    })
}

#[test]
fn a_cgroup_that_the_caller_has_made_keeps_the_callers_limits() -> Result<()> {
    Node::test(async |node| {
        let parent = node.own_cgroup_parent("kubelet");
        let made: Vec<PathBuf> = cgroup::roots()
            .into_iter()
            .map(|root| root.join(parent.trim_start_matches('/')))
            .collect();
        for directory in &made {
            fs::create_dir_all(directory)?;
        }
        let v1 = place(&parent, "cpuset");
        if !cgroup::unified() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = v1.parent().context("no parent")?;
                // Its parent is new, too: from the root downwards.
                let root = fs::read_to_string(format!("/sys/fs/cgroup/cpuset/{file}"))?;
                fs::write(above.join(file), &root)?;
                fs::write(v1.join(file), &root)?;
            }
        }
        if cgroup::unified() {
            // As a kubelet does: files of a controller are where the cgroup above has it.
            let [directory] = made.as_slice() else {
                anyhow::bail!("more roots than one: {made:?}")
            };
            let mut above: Vec<_> = directory.ancestors().skip(1).collect();
            above.retain(|above| above.starts_with("/sys/fs/cgroup"));
            for above in above.into_iter().rev() {
                let file = above.join("cgroup.subtree_control");
                fs::write(&file, "+cpu +cpuset +memory +pids")
                    .with_context(|| file.display().to_string())?;
            }
        }
        let before = memory(&parent)?;
        // As a kubelet tells it of a pod of which one container has a limit, and one has none.
        let config = node.pod("kubelet").linux(|linux| {
            linux.cgroup_parent = parent.clone();
            linux.resources = Some(limits(64 * MIB, 0));
        });
        let pod = node.run(config).await?;
        ensure!(memory(&parent)? == before);
        update(node, &pod.id, Some(limits(32 * MIB, 0)), None).await?;
        ensure!(memory(&parent)? == before);
        ensure!(told(node, &pod).await? == (32 * MIB, 0));
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        ensure!(place(&parent, "memory").exists(), "it is the caller's");
        for directory in &made {
            fs::remove_dir(directory)?;
        }
        Ok(())
    })
}

#[test]
fn a_change_of_a_pod_that_makes_no_sense_changes_nothing() -> Result<()> {
    Node::test(async |node| {
        let parent = node.own_cgroup_parent("refused");
        let config = node.pod("refused").linux(|linux| {
            linux.cgroup_parent = parent.clone();
            linux.resources = Some(limits(64 * MIB, 50_000));
        });
        let pod = node.run(config).await?;
        let table: [(fn(&mut LinuxContainerResources), Code, &str); 5] = [
            (|r| r.cpu_quota = 10, Code::InvalidArgument, "cpu_quota"),
            (|r| r.cpu_period = 1, Code::InvalidArgument, "cpu_period"),
            (
                |r| r.cpuset_cpus = "4000".into(),
                Code::InvalidArgument,
                "cpuset_cpus",
            ),
            (
                |r| r.memory_limit_in_bytes = -5,
                Code::InvalidArgument,
                "memory_limit_in_bytes",
            ),
            (
                |r| drop(r.unified.insert("../x".into(), "1".into())),
                Code::InvalidArgument,
                "unified",
            ),
        ];
        let both = (memory(&parent)?, cpu(&parent)?, told(node, &pod).await?);
        for (change, code, field) in table {
            // Beside one that is fine.
            let mut resources = LinuxContainerResources {
                cpu_shares: 100,
                ..Default::default()
            };
            change(&mut resources);
            for (resources, overhead) in [(Some(resources.clone()), None), (None, Some(resources))]
            {
                refused(
                    update(node, &pod.id, resources, overhead).await,
                    code,
                    &[field],
                )?;
            }
        }
        let swap = LinuxContainerResources {
            memory_swap_limit_in_bytes: MIB,
            ..Default::default()
        };
        refused(
            update(node, &pod.id, Some(swap), None).await,
            Code::InvalidArgument,
            &["memory_swap_limit_in_bytes"],
        )?;
        refused(
            update(node, &pod.id, None, None).await,
            Code::InvalidArgument,
            &["resources"],
        )?;
        refused(
            update(node, "nobody", Some(limits(MIB, 0)), None).await,
            Code::NotFound,
            &["nobody"],
        )?;
        // What the kernel refuses takes nothing else with it: less memory than is in use.
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        if !cgroup::unified() {
            let mut too_little = limits(1, 90_000);
            too_little.cpu_shares = 77;
            let answer = update(node, &pod.id, Some(too_little), None).await;
            refused(answer, Code::FailedPrecondition, &["memory.limit_in_bytes"])?;
        }
        ensure!((memory(&parent)?, cpu(&parent)?, told(node, &pod).await?) == both);
        ensure!(node.cri.exec(&id, &["echo", "alive"]).await? == "alive");

        node.cri.stop_pod(&pod.id).await?;
        refused(
            update(node, &pod.id, Some(limits(MIB, 0)), None).await,
            Code::FailedPrecondition,
            &["stopped"],
        )?;

        // A pod that asks for what this machine has not is not made at all.
        let config = node.pod("never").linux(|linux| {
            linux.resources = Some(LinuxContainerResources {
                cpuset_cpus: "4000".into(),
                ..Default::default()
            });
        });
        refused(
            node.cri.run_pod(&config).await,
            Code::InvalidArgument,
            &["cpuset_cpus"],
        )?;
        Ok(())
    })
}
