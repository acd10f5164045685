//! `/stats/summary` and `/metrics/resource`, beside the files that they tell of.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, identity::run};
use rustix::fs::statvfs;
use serde_json::Value;

use crate::{
    limits,
    member::{Member, NODE},
};

const LINK: &str = "uplink0";

fn raw(member: &Member, what: &str) -> Result<String> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/{what}");
    member.server.kubectl(&["get", "--raw", &path])
}

pub fn summary(member: &Member) -> Result<Value> {
    Ok(serde_json::from_str(&raw(member, "stats/summary")?)?)
}

/// Bytes on the disk and inodes of a directory, itself with them.
fn du(dir: &Path) -> Result<(u64, u64)> {
    let of_one = |path: &Path| anyhow::Ok(fs::symlink_metadata(path)?.blocks() * 512);
    let (mut bytes, mut inodes) = (of_one(dir)?, 1);
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let (more_bytes, more_inodes) = match fs::symlink_metadata(&path)?.is_dir() {
            true => du(&path)?,
            false => (of_one(&path)?, 1),
        };
        (bytes, inodes) = (bytes + more_bytes, inodes + more_inodes);
    }
    Ok((bytes, inodes))
}

fn number(path: &str) -> Result<u64> {
    Ok(fs::read_to_string(path)?.trim().parse()?)
}

/// A line of /proc/meminfo, bytes.
fn meminfo(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim_start_matches(':').trim().strip_suffix(" kB"));
    Ok(kib.context("no such line")?.parse::<u64>()? * 1024)
}

fn received(link: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let prefix = format!("{link}:");
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(&prefix));
    let first = line.and_then(|rest| rest.split_whitespace().next());
    Ok(first.context("no such link")?.parse()?)
}

#[test]
fn what_is_told_of_the_node_and_its_pods_is_what_the_files_say_kl_04() -> Result<()> {
    Node::test(async |node| {
        for line in [
            format!("link add {LINK} type bridge"),
            format!("address add 10.212.0.1/24 dev {LINK}"),
            format!("link set {LINK} up"),
            format!("route add default dev {LINK}"),
        ] {
            run("ip", &line.split(' ').collect::<Vec<_>>())?;
        }
        let member = Member::start(node).await?;
        let server = &member.server;
        server.kubectl(&["create", "configmap", "c", "--from-literal=key=value"])?;
        server.kubectl(&[
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=key=value",
        ])?;
        let fills = "mkdir -p /v/a/b /own; head -c 300000 /dev/zero > /v/a/b/file; head -c 50000 /dev/zero > /m/file; head -c 70000 /dev/zero > /own/file; echo said; sync; touch /v/done; exec sleep 1000";
        let spec = format!(
            "  volumes: [{{name: v, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory}}}}, {{name: c, configMap: {{name: c}}}}, {{name: s, secret: {{secretName: s}}}}, {{name: d, downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}, {{name: h, hostPath: {{path: /}}}}]\n  \
             automountServiceAccountToken: false\n  containers: [{{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '{fills}'], volumeMounts: [{{name: v, mountPath: /v}}, {{name: m, mountPath: /m}}, {{name: c, mountPath: /c}}, {{name: s, mountPath: /s}}, {{name: d, mountPath: /d}}]}}]"
        );
        member.apply("full", &spec)?;
        let pod = member.wait_ready("full").await?;
        let uid = pod["metadata"]["uid"]
            .as_str()
            .context("no uid")?
            .to_owned();
        let dir = member.kubelet.pods_dir().join(&uid);
        let volumes: BTreeMap<&str, PathBuf> = [
            ("v", "empty-dir"),
            ("m", "empty-dir"),
            ("c", "configmap"),
            ("s", "secret"),
            ("d", "downward-api"),
        ]
        .map(|(name, plugin)| {
            let at = format!("volumes/kubernetes.io~{plugin}/{name}");
            (name, dir.join(at))
        })
        .into();
        // no probe runs beside it while it is counted
        let done = volumes["v"].join("done");
        member.until("all is written", || Ok(done.exists())).await?;
        let of_full = |summary: &Value| {
            let pods = summary["pods"].as_array().cloned().unwrap_or_default();
            let mut pods = pods.into_iter();
            pods.find(|one| one["podRef"]["uid"] == uid.as_str())
        };
        let cgroup = format!("kubepods/besteffort/pod{uid}");
        let pids = limits::path(node, "pids", &cgroup, "pids.current", "pids.current");
        let pids = pids.display().to_string();
        let mut last = Value::Null;
        let equal = |pod: &Value| -> Result<bool> {
            let told = pod["volume"].as_array().context("no volumes")?;
            let names = told.iter().filter_map(|one| one["name"].as_str());
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            let mut all = Vec::new();
            for one in told {
                let name = one["name"].as_str().unwrap_or_default();
                let Some(path) = volumes.get(name) else {
                    continue;
                };
                let (bytes, inodes) = du(path)?;
                let fs = statvfs(path)?;
                all.push(
                    one["usedBytes"] == bytes
                        && one["inodesUsed"] == inodes
                        && one["capacityBytes"] == fs.f_blocks * fs.f_frsize
                        && one["inodes"] == fs.f_files,
                );
            }
            Ok(names.iter().eq(volumes.keys()) && all.into_iter().all(|is| is))
        };
        let found = member
            .until("processes and volumes are as the files say", || {
                let summary = summary(&member)?;
                let Some(pod) = of_full(&summary) else {
                    return Ok(false);
                };
                last = summary;
                // what has touched the last file may be on its way out
                let processes = pod["process_stats"]["process_count"] == number(&pids)?;
                Ok(processes && pod["volume"].is_array() && equal(&pod)?)
            })
            .await;
        found.with_context(|| format!("{last:#}"))?;
        let pod = of_full(&last).context("no pod")?;

        // all on the disk is more than the parts that are known, and less than these and what else is small
        let on_disk = &pod["ephemeral-storage"];
        let layer = pod["containers"][0]["rootfs"]["usedBytes"].as_u64();
        let parts = du(&volumes["v"])?.0 + layer.context("no layer")?;
        let whole = on_disk["usedBytes"].as_u64().context("no bytes")?;
        ensure!(
            (parts..parts + (1 << 20)).contains(&whole) && layer >= Some(70_000),
            "{pod:#}"
        );
        ensure!(
            pod["containers"][0]["logs"]["usedBytes"].as_u64() > Some(0),
            "{pod:#}"
        );
        ensure!(pod["network"]["interfaces"][0]["name"] == "eth0", "{pod:#}");

        let told = &last["node"];
        let swap = ["swapAvailableBytes", "swapUsageBytes"].map(|name| told["swap"][name].as_u64());
        let swap = swap[0].context("no swap")? + swap[1].context("no swap")?;
        ensure!(swap == meminfo("SwapTotal")?, "{told:#}");
        let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
        ensure!(told["rlimit"]["maxpid"] == most, "{told:#}");
        ensure!(told["rlimit"]["curproc"].as_u64() > Some(0), "{told:#}");
        let network = &told["network"];
        let links = network["interfaces"].as_array().context("no interfaces")?;
        let inner = |name: &str| name.starts_with("berth") || name == "lo";
        ensure!(
            network["name"] == LINK
                && links[0]["name"] == LINK
                && !links
                    .iter()
                    .any(|one| inner(one["name"].as_str().unwrap_or("lo")))
                && network["rxBytes"].as_u64() <= Some(received(LINK)?),
            "{network:#}"
        );

        let metrics = raw(&member, "metrics/resource")?;
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok())
        };
        ensure!(
            value("node_swap_usage_bytes ").is_some_and(|used| used <= swap),
            "{metrics}"
        );
        // of containers where the machine counts it, and of their pod then, too
        let of_container =
            "container_swap_usage_bytes{container=\"a\",namespace=\"default\",pod=\"full\"}";
        let of_pod = "pod_swap_usage_bytes{namespace=\"default\",pod=\"full\"}";
        let is_told = pod["containers"][0]["swap"]["swapUsageBytes"].is_u64();
        ensure!(
            value(of_container).is_some() == is_told && value(of_pod).is_some() == is_told,
            "{metrics}"
        );
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()?;
        run("ip", &["link", "delete", LINK])
    })
}
