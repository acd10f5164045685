//! What of the node pods may have, as the kernel holds them to it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{Node, cgroup, machine::patient};

use crate::scene::{Kubelet, pod};

const LIMIT: Duration = Duration::from_secs(40);

/// A file of the cgroup `name` below the test's own, by the machine's version of cgroups.
fn path(node: &Node, controller: &str, name: &str, v1: &str, v2: &str) -> PathBuf {
    let below = node.own_cgroup_parent(name);
    let below = below.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    match cgroup::unified() {
        true => root.join(below).join(v2),
        false => root.join(controller).join(below).join(v1),
    }
}

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn memory(node: &Node, name: &str) -> Result<String> {
    read(&path(
        node,
        "memory",
        name,
        "memory.limit_in_bytes",
        "memory.max",
    ))
}

fn weight(node: &Node, name: &str) -> Result<String> {
    read(&path(node, "cpu", name, "cpu.shares", "cpu.weight"))
}

fn pids(node: &Node, name: &str) -> Result<String> {
    read(&path(node, "pids", name, "pids.max", "pids.max"))
}

/// v1's shares, or the weight that stands for them.
fn shares(v1: &str, v2: &str) -> String {
    if cgroup::unified() { v2 } else { v1 }.to_owned()
}

async fn until(kubelet: &Kubelet, what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patient(LIMIT);
    loop {
        match is() {
            Ok(true) => return Ok(()),
            found if Instant::now() > deadline => {
                bail!("in vain waited until {what} ({found:?})\n{}", kubelet.log())
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The scores of all processes in cgroups of containers of a pod.
fn oom_scores(node: &Node, pod: &str) -> Result<Vec<String>> {
    let directory = path(node, "memory", pod, "", "");
    let mut scores = Vec::new();
    for entry in fs::read_dir(&directory)?.flatten() {
        let procs = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            scores.push(read(Path::new(&format!("/proc/{pid}/oom_score_adj")))?);
        }
    }
    Ok(scores)
}

fn memory_of_the_machine() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let kib = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|rest| rest.trim().strip_suffix("kB"));
    Ok(kib.context("no MemTotal")?.trim().parse::<u64>()? * 1024)
}

fn uid(kubelet: &Kubelet, name: &str) -> Result<String> {
    let dir = kubelet
        .pod_dir(name)
        .with_context(|| format!("no {name}"))?;
    Ok(dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned())
}

fn sleeper(name: &str, resources: &str) -> String {
    pod(
        name,
        &format!(
            "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: busybox, command: [sleep, '1000'], resources: {resources}}}]"
        ),
    )
}

#[test]
fn pods_lie_by_their_class_below_what_the_node_has_for_them_and_a_fork_bomb_is_the_pods_own_rel_17()
-> Result<()> {
    Node::test(async |node| {
        #[rustfmt::skip]
        let flags = [
            "--system-reserved", "cpu=100m,memory=256Mi,pid=100", "--kube-reserved", "memory=256Mi", "--pod-max-pids", "64",
        ];
        let mut kubelet = Kubelet::start_with(node, &flags)?;
        for (name, resources) in [
            ("whole", "{limits: {cpu: 200m, memory: 64Mi}}"),
            ("some", "{requests: {cpu: 300m, memory: 1Gi}}"),
            ("none", "{}"),
        ] {
            kubelet.put(&format!("{name}.yaml"), &sleeper(name, resources))?;
        }
        for name in ["whole", "some", "none"] {
            kubelet.wait_ready(name).await?;
        }
        // all of them together
        let most = memory_of_the_machine()? - (512 << 20);
        let limit: u64 = memory(node, "kubepods")?.parse()?;
        ensure!(limit <= most && most - limit < 65536, "{limit} of {most}");
        let pid_max: u64 = read(Path::new("/proc/sys/kernel/pid_max"))?.parse()?;
        let threads: u64 = read(Path::new("/proc/sys/kernel/threads-max"))?.parse()?;
        let all = (pid_max.min(threads) - 100).to_string();
        ensure!(
            pids(node, "kubepods")? == all,
            "{}",
            pids(node, "kubepods")?
        );
        // each class, and each pod
        let of = |class: &str, name: &str| -> Result<String> {
            Ok(format!("kubepods/{class}pod{}", uid(&kubelet, name)?))
        };
        let (whole, some, none) = (
            of("", "whole")?,
            of("burstable/", "some")?,
            of("besteffort/", "none")?,
        );
        for (name, v1, v2) in [
            ("kubepods/burstable", "307", "40"),
            ("kubepods/besteffort", "2", "1"),
            (&whole, "204", "29"),
            (&some, "307", "40"),
            (&none, "2", "1"),
        ] {
            ensure!(
                weight(node, name)? == shares(v1, v2),
                "{name}: {}",
                weight(node, name)?
            );
        }
        let quota = path(node, "cpu", &whole, "cpu.cfs_quota_us", "cpu.max");
        ensure!(read(&quota)?.starts_with("20000"), "{}", read(&quota)?);
        ensure!(memory(node, &whole)? == (64 << 20).to_string());
        for name in [&whole, &some, &none] {
            ensure!(pids(node, name)? == "64", "{name}");
        }
        for (name, score) in [
            (&whole, -997),
            (&none, 1000),
            (
                &some,
                1000 - 1000 * (1 << 30) / i64::try_from(memory_of_the_machine()?)?,
            ),
        ] {
            let scores = oom_scores(node, name)?;
            ensure!(
                scores.contains(&score.to_string()),
                "{name}: {scores:?}, {score}"
            );
        }

        // One that forks without end has the pod's processes and no more, and others come and go beside it.
        let bomb = "mkfifo /tmp/f; sh -c 'while :; do sleep 1000 & done'; read x < /tmp/f";
        kubelet.put(
            "bomb.yaml",
            &pod(
                "bomb",
                &format!(
                    "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: busybox, command: [sh, -c, \"{bomb}\"]}}]"
                ),
            ),
        )?;
        kubelet.wait_ready("bomb").await?;
        let bomb = of("besteffort/", "bomb")?;
        let current = path(node, "pids", &bomb, "pids.current", "pids.current");
        until(&kubelet, "the pod has all its processes", || {
            Ok(read(&current)? == "64")
        })
        .await?;
        kubelet.put("after.yaml", &sleeper("after", "{requests: {cpu: 100m}}"))?;
        kubelet.wait_ready("after").await?;
        ensure!(read(&current)? == "64");
        // 400m together
        let burstable = || weight(node, "kubepods/burstable");
        ensure!(burstable()? == shares("409", "49"), "{}", burstable()?);
        for name in ["bomb", "after"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        ensure!(
            !path(node, "pids", &bomb, "", "").exists(),
            "{bomb} is left"
        );
        ensure!(burstable()? == shares("307", "40"), "{}", burstable()?);

        // What somebody else has changed or removed is as it was; what nobody knows goes.
        fs::write(
            path(
                node,
                "cpu",
                "kubepods/burstable",
                "cpu.shares",
                "cpu.weight",
            ),
            "1000",
        )?;
        fs::write(path(node, "pids", &whole, "pids.max", "pids.max"), "1000")?;
        fs::write(
            path(
                node,
                "memory",
                "kubepods",
                "memory.limit_in_bytes",
                "memory.max",
            ),
            (8_u64 << 30).to_string(),
        )?;
        let ghost = path(node, "pids", "kubepods/burstable/podghost", "", "");
        fs::create_dir(&ghost)?;
        until(&kubelet, "all is as it was", || {
            Ok(burstable()? == shares("307", "40")
                && pids(node, &whole)? == "64"
                && memory(node, "kubepods")? == limit.to_string()
                && !ghost.exists())
        })
        .await?;

        // Another kubelet takes them over; one that is told to keep more than there is says so.
        kubelet.kill_9();
        let refused = kubelet
            .another()?
            .args(["--enforce-node-allocatable", "system-reserved"])
            .output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            !refused.status.success() && said.contains("not built"),
            "{said}"
        );
        fs::create_dir(&ghost)?;
        kubelet.with_flag("--pod-max-pids=80");
        kubelet.spawn()?;
        until(&kubelet, "the pods have the new limit", || {
            Ok(pids(node, &some)? == "80" && pids(node, &none)? == "80" && !ghost.exists())
        })
        .await?;
        for name in ["whole", "some", "none"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        let left: Vec<_> = cgroup::tree(&node.own_cgroup_parent("kubepods"))
            .into_iter()
            .filter(|dir| dir.display().to_string().contains("/pod"))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
