//! The CRI's metrics: ListMetricDescriptors, ListPodSandboxMetrics and its stream.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, Metric, MetricType, NamespaceMode};
use berth_tests::{
    BUSYBOX, Node, cgroup, container, process,
    request::{ContainerRequest, PodRequest},
    sh, systemd,
};

/// Metrics by name, each with its labels.
type Told = Vec<(String, BTreeMap<String, String>, u64)>;

/// Holds every metric against its descriptor.
fn told(keys: &HashMap<String, Vec<String>>, metrics: &[Metric]) -> Result<Told> {
    let mut told = Vec::new();
    for metric in metrics {
        let keys = keys.get(&metric.name);
        let keys = keys.with_context(|| format!("{} has no descriptor", metric.name))?;
        ensure!(
            keys.len() == metric.label_values.len(),
            "{metric:?} for {keys:?}"
        );
        let total = metric.name.ends_with("_total") && metric.name != "container_fs_inodes_total";
        ensure!(
            !total || metric.metric_type() == MetricType::Counter,
            "{metric:?}"
        );
        let labels = keys
            .iter()
            .cloned()
            .zip(metric.label_values.iter().cloned());
        let value = metric.value.context("no value")?.value;
        told.push((metric.name.clone(), labels.collect(), value));
    }
    let mut series: Vec<_> = told
        .iter()
        .map(|(name, labels, _)| (name, labels))
        .collect();
    series.sort();
    let all = series.len();
    series.dedup();
    ensure!(series.len() == all, "a series is told twice");
    Ok(told)
}

fn value(told: &Told, name: &str) -> Result<u64> {
    let found = told.iter().find(|(metric, ..)| metric == name);
    found
        .map(|(.., value)| *value)
        .with_context(|| format!("no {name}"))
}

#[test]
fn metrics_fit_their_descriptors_and_say_what_the_kernel_says() -> Result<()> {
    Node::test(async |node| {
        let descriptors = node
            .cri
            .runtime()
            .list_metric_descriptors(cri::ListMetricDescriptorsRequest {})
            .await?
            .into_inner()
            .descriptors;
        let keys: HashMap<String, Vec<String>> = descriptors
            .iter()
            .map(|descriptor| (descriptor.name.clone(), descriptor.label_keys.clone()))
            .collect();
        ensure!(keys.len() == descriptors.len() && descriptors.iter().all(|d| !d.help.is_empty()));

        let pod = node.run(node.pod("metrics")).await?;
        let on_the_node = node.pod("hostnet").linux(|linux| {
            let security = linux.security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
        });
        let on_the_node = node.run(on_the_node).await?;
        let script = "dd if=/dev/zero of=/file bs=1M count=4 conv=fsync; nc -l -p 9000 & while :; do :; done";
        let config = container("busy", BUSYBOX, &sh(script)).resources(|resources| {
            resources.cpu_period = 100_000;
            // A fifth: on a busy node, too, it wants more than that of some period, and is throttled.
            resources.cpu_quota = 20_000;
            resources.cpu_shares = 512;
            resources.memory_limit_in_bytes = 64 << 20;
            resources.memory_swap_limit_in_bytes = 64 << 20;
        });
        let id = node.start_container(&pod, config).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let used = || {
            let text = match cgroup::unified() {
                false => cgroup::value(pid, "cpuacct", "cpuacct.usage", "")?,
                true => cgroup::value(pid, "cpu", "", "cpu.stat")?,
            };
            let v2 = cgroup::counter(&text, "usage_usec ").map(|us| us * 1000);
            Ok::<u64, anyhow::Error>(v2.unwrap_or(text.trim().parse().unwrap_or(0)))
        };
        let busy = || used().is_ok_and(|ns| ns > 1_100_000_000);
        ensure!(process::eventually(Duration::from_secs(30), busy));
        let listening = || process::in_cgroup(&id).len() == 2;
        ensure!(process::eventually(Duration::from_secs(10), listening));

        let before = used()? / 1_000_000_000;
        let pods = node
            .cri
            .runtime()
            .list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})
            .await?
            .into_inner()
            .pod_metrics;
        let after = used()? / 1_000_000_000;
        ensure!(pods.len() == 2, "{}", pods.len());
        let of = |id: &str| {
            pods.iter()
                .find(|of| of.pod_sandbox_id == id)
                .context("no pod")
        };

        let of_pod = told(&keys, &of(&pod.id)?.metrics)?;
        ensure!(value(&of_pod, "container_cpu_usage_seconds_total")? >= 1);
        let received = of_pod
            .iter()
            .find(|(name, ..)| name == "container_network_receive_bytes_total");
        let (_, labels, bytes) = received.context("no network")?;
        let metadata = pod.config.metadata.clone().unwrap_or_default();
        ensure!(
            labels["interface"] == "eth0"
                && labels["container"].is_empty()
                && labels["pod"] == metadata.name,
            "{labels:?}"
        );
        let kernel = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        let line = kernel
            .lines()
            .find_map(|line| line.trim().strip_prefix("eth0:"))
            .context("no eth0")?;
        let now: u64 = line
            .split_whitespace()
            .next()
            .context("no bytes")?
            .parse()?;
        ensure!(*bytes <= now);
        let alone = told(&keys, &of(&on_the_node.id)?.metrics)?;
        ensure!(
            !alone
                .iter()
                .any(|(name, ..)| name.starts_with("container_network_")),
            "the node's network is no pod's"
        );

        let of_container = &of(&pod.id)?.container_metrics;
        ensure!(of_container.len() == 1 && of_container[0].container_id == id);
        let told = told(&keys, &of_container[0].metrics)?;
        let (_, labels, _) = &told[0];
        for (key, wanted) in [
            ("container", "busy"),
            ("name", &id),
            ("namespace", &metadata.namespace),
            ("pod", &metadata.name),
        ] {
            ensure!(labels[key] == *wanted, "{key}: {labels:?}");
        }
        ensure!(
            (labels["id"].rsplit('/').next()).is_some_and(|name| systemd::names(name, &id))
                && labels["image"].contains("busybox"),
            "{labels:?}"
        );
        ensure!((before..=after).contains(&value(&told, "container_cpu_usage_seconds_total")?));
        for (name, wanted) in [
            ("container_spec_cpu_period", 100_000),
            ("container_spec_cpu_quota", 20_000),
            ("container_spec_cpu_shares", 512),
            ("container_spec_memory_limit_bytes", 64 << 20),
            ("container_spec_memory_swap_limit_bytes", 64 << 20),
            ("container_spec_memory_reservation_limit_bytes", 0),
            ("container_processes", 2),
            ("container_threads", 2),
            ("container_sockets", 1),
            ("container_oom_events_total", 0),
        ] {
            ensure!(
                value(&told, name)? == wanted,
                "{name} is {}",
                value(&told, name)?
            );
        }
        ensure!(value(&told, "container_cpu_cfs_throttled_periods_total")? > 0);
        ensure!(value(&told, "container_file_descriptors")? >= 7);
        ensure!(value(&told, "container_fs_usage_bytes")? >= 4 << 20);
        ensure!(
            value(&told, "container_fs_limit_bytes")? > value(&told, "container_fs_usage_bytes")?
        );
        let soft = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let soft = soft
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .context("no limit")?;
        let soft: u64 = soft
            .split_whitespace()
            .next()
            .context("no limit")?
            .parse()?;
        ensure!(value(&told, "container_ulimits_soft")? == soft);
        let pressure = fs::read_to_string(cgroup::v2_directory(pid)?.join("cpu.pressure"));
        ensure!(
            pressure.is_ok()
                == value(&told, "container_pressure_cpu_waiting_seconds_total").is_ok()
        );

        // Every descriptor but those of what this machine lacks has a value.
        let without: Vec<&String> = keys
            .keys()
            .filter(|name| !of_pod.iter().chain(&told).any(|(told, ..)| told == *name))
            .filter(|name| {
                !["hugetlb", "pressure", "blkio", "fs_reads", "fs_writes"]
                    .iter()
                    .any(|part| name.contains(part))
            })
            .collect();
        ensure!(without.is_empty(), "{without:?}");

        let mut stream = node
            .cri
            .runtime()
            .stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})
            .await?
            .into_inner();
        let mut streamed = Vec::new();
        while let Some(part) = stream.message().await? {
            streamed.extend(
                part.pod_sandbox_metrics
                    .into_iter()
                    .map(|of| (of.pod_sandbox_id, of.container_metrics.len())),
            );
        }
        let listed: Vec<_> = pods
            .iter()
            .map(|of| (of.pod_sandbox_id.clone(), of.container_metrics.len()))
            .collect();
        ensure!(streamed == listed, "{streamed:?}");
        Ok(())
    })
}
