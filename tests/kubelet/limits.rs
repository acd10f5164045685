//! What of the node pods may have, as the kernel holds them to it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{Node, cgroup, machine::patient};

use crate::{
    events,
    member::{Member, NODE, condition},
    scene::{Kubelet, pod},
};

const LIMIT: Duration = Duration::from_secs(40);

/// A file of the cgroup `name` below the test's own, by the machine's version of cgroups.
pub fn path(node: &Node, controller: &str, name: &str, v1: &str, v2: &str) -> PathBuf {
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

/// PO-07, too: limits are what the kernel holds a pod to.
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
            (whole.as_str(), "204", "29"),
            (some.as_str(), "307", "40"),
            (none.as_str(), "2", "1"),
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
        // Without CAP_SYS_RESOURCE nobody comes below what the daemon itself has.
        let own = read(Path::new("/proc/self/oom_score_adj"))?;
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
                scores.contains(&score.to_string()) || score < 0 && scores.contains(&own),
                "{name}: {scores:?}, {score}"
            );
        }

        // One that forks without end has the pod's processes and no more, and others come and go beside it.
        let bomb = "sh -c 'while :; do sleep 1000 & done'; exec tail -f /dev/null";
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
        // the shell that could make no more has ended
        let is_full = || -> Result<bool> {
            let count: u32 = read(&current)?.parse()?;
            Ok((60..=64).contains(&count))
        };
        until(&kubelet, "the pod has all its processes", is_full).await?;
        kubelet.put("after.yaml", &sleeper("after", "{requests: {cpu: 100m}}"))?;
        kubelet.wait_ready("after").await?;
        ensure!(is_full()?, "{}", read(&current)?);
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
        fs::write(path(node, "pids", &some, "pids.max", "pids.max"), "1000")?;
        kubelet.spawn()?;
        until(&kubelet, "the pods have their limits again", || {
            Ok(pids(node, &some)? == "64" && pids(node, &none)? == "64" && !ghost.exists())
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

const SLEEPER: &str = "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

fn asking(resources: &str) -> String {
    format!(
        "  containers: [{{name: a, image: busybox, command: [sleep, '1000'], resources: {{requests: {resources}}}}}]"
    )
}

/// Waits until the pod has failed for this reason.
async fn failed(member: &Member, name: &str, reason: &str, says: &str) -> Result<()> {
    let it = member
        .wait("pod", name, reason, |it| it["status"]["phase"] == "Failed")
        .await?;
    let message = it["status"]["message"].as_str().unwrap_or_default();
    ensure!(
        it["status"]["reason"] == reason && message.contains(says),
        "{it:#}"
    );
    Ok(())
}

/// PO-07, too: what is asked for decides who fits.
#[test]
fn a_pod_that_the_node_can_not_take_is_failed_in_upstreams_words_and_who_runs_is_never_asked_again()
-> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        let server = &member.server;
        member.apply("big", &asking("{cpu: 1000}"))?;
        failed(&member, "big", "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: ").await?;
        member.apply("fat", &asking("{memory: 1000Ti}"))?;
        failed(
            &member,
            "fat",
            "OutOfmemory",
            "Node didn't have enough resource: memory",
        )
        .await?;
        let wants = format!("{SLEEPER}\n  nodeSelector: {{disk: slow}}");
        member.apply("elsewhere", &wants)?;
        failed(
            &member,
            "elsewhere",
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        )
        .await?;
        // a label that came a moment before the pod
        server.kubectl(&["label", "node", NODE, "disk=slow", "--overwrite"])?;
        member.apply("here", &wants)?;
        member.wait_ready("here").await?;
        let port = "  containers: [{name: a, image: busybox, command: [sleep, '1000'], ports: [{containerPort: 80, hostPort: 18080}]}]";
        member.apply("port-a", port)?;
        member.wait_ready("port-a").await?;
        member.apply("port-b", port)?;
        failed(&member, "port-b", "NodePorts", "free ports").await?;

        // For what the node's own disk asks for, others go; what can't be had is said, and stops nobody.
        let cpus = server.json(&["get", "node", NODE])?["status"]["allocatable"]["cpu"]
            .as_str()
            .context("no cpu")?
            .parse::<u32>()?;
        member.apply("greedy", &asking(&format!("{{cpu: {cpus}}}")))?;
        member.wait_ready("greedy").await?;
        member
            .kubelet
            .put("huge.yaml", &pod("huge", &asking("{cpu: 1000}")))?;
        member
            .kubelet
            .put("own.yaml", &pod("own", &asking("{cpu: 500m}")))?;
        failed(
            &member,
            "greedy",
            "Preempting",
            "Preempted in order to admit critical pod",
        )
        .await?;
        let own = format!("own-{NODE}");
        let before = member.wait_ready(&own).await?;
        let disrupted = server.json(&["get", "pod", "greedy"])?;
        ensure!(
            condition(&disrupted, "DisruptionTarget") == "True",
            "{disrupted:#}"
        );
        failed(
            &member,
            &format!("huge-{NODE}"),
            "UnexpectedAdmissionError",
            "cpu",
        )
        .await?;
        ensure!(member.kubelet.pod_dir("huge").is_none());

        // On a node that has become too small for them, those that run go on.
        member.kubelet.kill_9();
        member
            .kubelet
            .with_flag(&format!("--kube-reserved=cpu={}m", cpus * 1000 - 100));
        member.kubelet.spawn()?;
        let server = &member.server;
        member
            .wait("node", NODE, "smaller", |it| {
                it["status"]["allocatable"]["cpu"] == "100m"
            })
            .await?;
        member.apply("late", &asking("{cpu: 50m}"))?;
        failed(
            &member,
            "late",
            "OutOfcpu",
            "requested: 50, used: 500, capacity: 100",
        )
        .await?;
        let after = member.wait_ready(&own).await?;
        ensure!(
            before["status"]["containerStatuses"][0]["containerID"]
                == after["status"]["containerStatuses"][0]["containerID"],
            "{before:#} {after:#}"
        );
        member.wait_ready("here").await?;
        let shares = weight(node, "kubepods")?;
        ensure!(shares == self::shares("102", "17"), "{shares}");

        // taints are followed, not asked for
        server.kubectl(&["taint", "node", NODE, "gone=v:NoExecute"])?;
        let mut round = 0;
        loop {
            let name = format!("taint-{round}");
            member.apply(&name, SLEEPER)?;
            let it = member
                .wait("pod", &name, "failed or up", |it| {
                    it["status"]["phase"] == "Failed" || condition(it, "Ready") == "True"
                })
                .await?;
            if it["status"]["reason"] == "TaintToleration" {
                break;
            }
            round += 1;
            ensure!(round < 20, "{it:#}");
        }
        let tolerant = format!("{SLEEPER}\n  tolerations: [{{key: gone, operator: Exists}}]");
        member.apply("tolerant", &tolerant)?;
        member.wait_ready("tolerant").await?;
        for file in ["own.yaml", "huge.yaml"] {
            member.kubelet.take(file)?;
        }
        member.kubelet.wait_gone(node, "own").await?;
        server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}

#[test]
fn who_has_more_on_the_disk_than_it_may_goes_and_a_shortage_that_lasts_is_one_sec_kub_06()
-> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        let fills = |what: &str, more: &str| {
            format!(
                "  containers: [{{name: a, image: busybox, command: [sh, -c, '{what}; sleep 1000']{more}}}]"
            )
        };
        let volume = "volumeMounts: [{name: v, mountPath: /v}]";
        let dd = "dd if=/dev/zero of=/v/file bs=1M count=3";
        let spec = fills(dd, &format!(", {volume}"));
        member.apply(
            "fills",
            &format!("{spec}\n  volumes: [{{name: v, emptyDir: {{sizeLimit: 1Mi}}}}]"),
        )?;
        member.apply(
            "modest",
            &format!("{spec}\n  volumes: [{{name: v, emptyDir: {{sizeLimit: 10Mi}}}}]"),
        )?;
        let limit = ", resources: {limits: {ephemeral-storage: 1Mi}}";
        member.apply(
            "talks",
            &fills(
                "yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | head -c 3000000",
                limit,
            ),
        )?;
        member.apply(
            "writes",
            &fills("dd if=/dev/zero of=/file bs=1M count=3", limit),
        )?;
        // files of the node's that are mounted into it: who grows them fills the node's disk, not its own layer
        for (name, file) in [("hosts", "/etc/hosts"), ("message", "/dev/termination-log")] {
            let what = format!("dd if=/dev/zero of={file} bs=1M count=3");
            member.apply(name, &fills(&what, limit))?;
        }
        failed(
            &member,
            "fills",
            "Evicted",
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\".",
        )
        .await?;
        for name in ["talks", "writes", "hosts", "message"] {
            failed(
                &member,
                name,
                "Evicted",
                "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.",
            )
            .await?;
        }
        member.wait_ready("modest").await?;

        // more than any machine has, for a while
        member.kubelet.kill_9();
        for flag in [
            "--eviction-soft=memory.available<1Pi",
            "--eviction-soft-grace-period=memory.available=5s",
            "--eviction-max-pod-grace-period=1",
        ] {
            member.kubelet.with_flag(flag);
        }
        member.kubelet.spawn()?;
        failed(
            &member,
            "modest",
            "Evicted",
            "The node was low on resource: memory. Threshold quantity: 1048576Gi, available: ",
        )
        .await?;
        let words = "Warning EvictionThresholdMet [] Attempting to reclaim memory";
        events::told(&member, NODE, &[words]).await?;
        let modest = member.server.json(&["get", "pod", "modest"])?;
        ensure!(
            condition(&modest, "DisruptionTarget") == "True",
            "{modest:#}"
        );
        member
            .wait("node", NODE, "under pressure", |it| {
                condition(it, "MemoryPressure") == "True"
            })
            .await?;
        member.apply("late", SLEEPER)?;
        failed(
            &member,
            "late",
            "Evicted",
            "Pod was rejected: The node had condition: [MemoryPressure]. ",
        )
        .await?;
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}
