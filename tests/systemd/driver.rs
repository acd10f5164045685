//! Pods as slices, containers as scopes: named, limited and gone as systemd has it.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    CgroupDriver, LinuxContainerResources, RuntimeConfigRequest, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest,
};
use berth_tests::{
    BUSYBOX, Node, Pod, Setup, container, process,
    request::{ContainerRequest, PodRequest},
    sh,
    systemd::{self, property, systemctl},
};

const MIB: i64 = 1 << 20;
/// How many containers die for want of memory: systemd takes their cgroups away as they do.
const DEATHS: usize = 4;

pub fn by_systemd(test: impl AsyncFnOnce(&mut Node) -> Result<()>) -> Result<()> {
    if systemd::is_missing() {
        return Ok(());
    }
    let setup = Setup {
        by_systemd: true,
        ..Setup::default()
    };
    Node::test_with(setup, test)
}

/// A file of a container's cgroup, by the process in it.
fn file(id: &str, name: &str) -> Result<String> {
    let init = process::init_of(id).context("the container has no process")?;
    let of = fs::read_to_string(format!("/proc/{}/cgroup", init.pid))?;
    let path = of.trim().strip_prefix("0::/").context("no v2 cgroup")?;
    value(path, name)
}

pub fn value(cgroup: &str, name: &str) -> Result<String> {
    let path = PathBuf::from("/sys/fs/cgroup")
        .join(cgroup.trim_start_matches('/'))
        .join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// Unit and files, before systemd has read everything again and after.
fn limits_hold(id: &str, memory: i64, quota: &str, shown: &str) -> Result<()> {
    let scope = format!("berth-{id}.scope");
    for again in [false, true] {
        if again {
            systemctl(&["daemon-reload"])?;
        }
        for (name, expected) in [
            ("memory.max", memory.to_string()),
            ("cpu.max", format!("{quota} 100000")),
            ("cpu.weight", "59".into()),
            ("hugetlb.2MB.max", "0".into()),
        ] {
            let is = file(id, name)?;
            ensure!(
                is == expected,
                "{name} (reloaded: {again}): {is}, not {expected}"
            );
        }
        for (name, expected) in [
            ("MemoryMax", memory.to_string().as_str()),
            ("CPUWeight", "59"),
            ("CPUQuotaPerSecUSec", shown),
            ("TasksMax", "infinity"),
            ("Delegate", "yes"),
        ] {
            let is = property(&scope, name)?;
            ensure!(is == expected, "{name}: {is}, not {expected}");
        }
    }
    Ok(())
}

#[test]
fn a_container_is_a_scope_whose_limits_outlive_a_reload() -> Result<()> {
    by_systemd(async |node| {
        let config = node
            .cri
            .runtime()
            .runtime_config(RuntimeConfigRequest {})
            .await?;
        let driver = config
            .into_inner()
            .linux
            .context("no linux")?
            .cgroup_driver();
        ensure!(driver == CgroupDriver::Systemd, "{driver:?}");

        let pod = node.run(node.pod("scoped")).await?;
        let limited = container("limited", BUSYBOX, &["sleep", "1000"]).resources(|r| {
            r.memory_limit_in_bytes = 64 * MIB;
            r.memory_swap_limit_in_bytes = 64 * MIB;
            r.cpu_period = 100_000;
            r.cpu_quota = 20_000;
            r.cpu_shares = 512;
            r.hugepage_limits = vec![berth_proto::cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }];
        });
        let id = node.start_container(&pod, limited).await?;
        let slice = systemd::slice_below(&node.cgroup_parent, &pod.id);
        let init = process::init_of(&id).context("no process")?;
        let at = fs::read_to_string(format!("/proc/{}/cgroup", init.pid))?;
        ensure!(
            at.trim() == format!("0::{slice}/berth-{id}.scope"),
            "{at} in {slice}"
        );
        ensure!(
            file(&id, "cgroup.procs")? == init.pid.to_string(),
            "somebody else is in the scope"
        );
        limits_hold(&id, 64 * MIB, "20000", "200ms")?;
        // A command is where its container is.
        let own = node.cri.shell(&id, "cat /proc/self/cgroup").await?;
        ensure!(own.trim() == "0::/", "{own}");

        let change = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(LinuxContainerResources {
                memory_limit_in_bytes: 96 * MIB,
                memory_swap_limit_in_bytes: 96 * MIB,
                cpu_period: 100_000,
                cpu_quota: 50_000,
                ..Default::default()
            }),
            ..Default::default()
        };
        node.cri
            .runtime()
            .update_container_resources(change)
            .await?;
        limits_hold(&id, 96 * MIB, "50000", "500ms")?;

        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        systemd::gone(&format!("*{id}*"))?;
        systemd::gone(&format!("*{}*", pod.id))
    })
}

#[test]
fn a_kubelets_slice_is_taken_by_name_and_by_path_and_stays() -> Result<()> {
    by_systemd(async |node| {
        let path = node.own_cgroup_parent("burstable/pod1");
        let slice = path.rsplit('/').next().context("no slice")?.to_owned();
        // As a kubelet makes it, with its limit.
        let status = std::process::Command::new("busctl")
            .args([
                "call",
                "org.freedesktop.systemd1",
                "/org/freedesktop/systemd1",
            ])
            .args(["org.freedesktop.systemd1.Manager", "StartTransientUnit"])
            .args(["ssa(sv)a(sa(sv))", &slice, "fail", "1", "MemoryMax", "t"])
            .args([&(128 * MIB).to_string(), "0"])
            .output()?;
        ensure!(status.status.success(), "{status:?}");
        for named in [slice.clone(), path.clone()] {
            let config = node.pod("kubelet").linux(|linux| {
                linux.cgroup_parent = named.clone();
                // The sum of the containers', which is not for this cgroup.
                linux.resources = Some(LinuxContainerResources {
                    memory_limit_in_bytes: 32 * MIB,
                    ..Default::default()
                });
            });
            let pod = node.run(config).await?;
            let id = node
                .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
                .await?;
            let init = process::init_of(&id).context("no process")?;
            let at = fs::read_to_string(format!("/proc/{}/cgroup", init.pid))?;
            ensure!(at.trim() == format!("0::{path}/berth-{id}.scope"), "{at}");
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
            systemd::gone(&format!("*{id}*"))?;
            ensure!(value(&path, "memory.max")? == (128 * MIB).to_string());
            ensure!(property(&slice, "ActiveState")? == "active");
        }
        for unit in [slice.clone(), slice.replace("-pod1.slice", ".slice")] {
            systemctl(&["stop", &unit])?;
        }
        Ok(())
    })
}

#[test]
fn limits_of_a_pod_are_its_slices_and_change_in_place() -> Result<()> {
    by_systemd(async |node| {
        let config = node.pod("limited").linux(|linux| {
            linux.resources = Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 * MIB,
                cpu_period: 100_000,
                cpu_quota: 15_500,
                ..Default::default()
            });
        });
        let pod = node.run(config).await?;
        let path = systemd::slice_below(&node.cgroup_parent, &pod.id);
        let slice = path.rsplit('/').next().context("no slice")?;
        let hold = |memory: i64, quota: &str, shown: &str| -> Result<()> {
            ensure!(value(&path, "memory.max")? == memory.to_string());
            let cpu = value(&path, "cpu.max")?;
            ensure!(cpu == format!("{quota} 100000"), "{cpu}");
            ensure!(property(slice, "MemoryMax")? == memory.to_string());
            let percent = property(slice, "CPUQuotaPerSecUSec")?;
            ensure!(percent == shown, "{percent}");
            Ok(())
        };
        // systemd knows whole percents, the file knows better.
        hold(64 * MIB, "15500", "160ms")?;
        node.start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let change = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 96 * MIB,
                ..Default::default()
            }),
            overhead: None,
        };
        node.cri
            .runtime()
            .update_pod_sandbox_resources(change)
            .await?;
        hold(96 * MIB, "15500", "160ms")?;
        systemctl(&["daemon-reload"])?;
        ensure!(value(&path, "memory.max")? == (96 * MIB).to_string());
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        systemd::gone(&format!("*{}*", pod.id))
    })
}

#[test]
fn who_dies_for_want_of_memory_is_told_though_its_cgroup_is_gone_rel_16() -> Result<()> {
    by_systemd(async |node| {
        let pod = node.run(node.pod("memory")).await?;
        let neighbour = node
            .start_container(&pod, container("neighbour", BUSYBOX, &["sleep", "1000"]))
            .await?;
        for number in 0..DEATHS {
            let eater = container(
                &format!("eater-{number}"),
                BUSYBOX,
                &sh("exec tail /dev/zero"),
            )
            .resources(|r| {
                r.memory_limit_in_bytes = 16 * MIB;
                r.memory_swap_limit_in_bytes = 16 * MIB;
            });
            let id = node.start_container(&pod, eater).await?;
            let status = node.cri.wait_exit(&id).await?;
            ensure!(
                (status.exit_code, status.reason.as_str()) == (137, "OOMKilled"),
                "{status:?}"
            );
            // One that is killed for another reason is not blamed for it.
            let killed = container(&format!("killed-{number}"), BUSYBOX, &["sleep", "1000"]);
            let id = node.start_container(&pod, killed).await?;
            process::kill_9(process::init_of(&id).context("no process")?.pid);
            let status = node.cri.wait_exit(&id).await?;
            ensure!(
                (status.exit_code, status.reason.as_str()) == (137, "Error"),
                "{status:?}"
            );
        }
        ensure!(node.cri.exec(&neighbour, &["echo", "on"]).await? == "on");
        Ok(())
    })
}

#[test]
fn pods_of_another_shim_are_scopes_too() -> Result<()> {
    if systemd::is_missing() {
        return Ok(());
    }
    let setup = Setup {
        by_systemd: true,
        config:
            "[runtime.handlers.berth]\n[runtime.handlers.runc]\nshim = \"io.containerd.runc.v2\"\n"
                .into(),
        ..Setup::default()
    };
    Node::test_with(setup, async |node| {
        let config = node.pod("stock");
        fs::create_dir_all(&config.log_directory)?;
        let id = node.cri.run_pod_with(&config, "runc").await?;
        let pod = Pod { id, config };
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let slice = systemd::slice_below(&node.cgroup_parent, &pod.id);
        for id in [&pod.id, &id] {
            let scope = format!("berth-{id}.scope");
            let at = property(&scope, "ControlGroup")?;
            ensure!(at == format!("{slice}/{scope}"), "{at}");
        }
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        systemd::gone(&format!("*{id}*"))?;
        systemd::gone(&format!("*{}*", pod.id))
    })
}
