//! ContainerStats and ListContainerStats.

use std::{
    fs,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerStatsFilter, PodSandboxStatsFilter, UInt64Value};
use berth_tests::{
    BUSYBOX, Node, cgroup, container,
    machine::patient,
    process, refused,
    request::{ContainerRequest, PodRequest},
    sh,
};
use tonic::Code;

#[test]
fn figures_are_the_containers_own_and_grow_with_use() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("stats")).await?;
        let idle = node
            .start_container(&pod, container("idle", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let busy = node
            .start_container(
                &pod,
                container(
                    "busy",
                    BUSYBOX,
                    &sh("head -c 8000000 /dev/zero > /file; sync; while :; do :; done"),
                ),
            )
            .await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // The file is written by then, but where the machine is slow.
        let deadline = Instant::now() + patient(Duration::from_millis(1500));
        let written = |stats: &berth_proto::cri::ContainerStats| {
            let layer = stats.writable_layer.clone().unwrap_or_default();
            layer.used_bytes.unwrap_or_default().value
        };
        while written(&node.cri.stats(&busy).await?) < 8_000_000 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let (of_idle, of_busy) = (node.cri.stats(&idle).await?, node.cri.stats(&busy).await?);
        let cpu = |stats: &berth_proto::cri::ContainerStats| {
            stats
                .cpu
                .unwrap_or_default()
                .usage_core_nano_seconds
                .unwrap_or_default()
                .value
        };
        ensure!(
            cpu(&of_busy) > 200_000_000 && cpu(&of_busy) > cpu(&of_idle),
            "{} and {} ns",
            cpu(&of_busy),
            cpu(&of_idle)
        );
        let memory = of_idle.memory.unwrap_or_default();
        let (set, usage) = (
            memory.working_set_bytes.unwrap_or_default().value,
            memory.usage_bytes.unwrap_or_default().value,
        );
        ensure!((1..64 << 20).contains(&set) && usage >= set, "{memory:?}");
        let layer = of_busy.writable_layer.clone().unwrap_or_default();
        ensure!(
            written(&of_busy) >= 8_000_000 && layer.inodes_used.unwrap_or_default().value >= 1,
            "{layer:?}"
        );
        let attributes = of_busy.attributes.clone().unwrap_or_default();
        ensure!(attributes.id == busy && attributes.metadata.unwrap_or_default().name == "busy");

        ensure!(node.cri.list_stats(None).await?.len() == 2);
        let of_one = ContainerStatsFilter {
            id: busy.clone(),
            ..Default::default()
        };
        ensure!(node.cri.list_stats(Some(of_one)).await?.len() == 1);
        let of_pod = ContainerStatsFilter {
            pod_sandbox_id: pod.id.clone(),
            ..Default::default()
        };
        ensure!(node.cri.list_stats(Some(of_pod)).await?.len() == 2);
        refused(node.cri.stats(&"0".repeat(64)).await, Code::NotFound, &[])
    })
}

fn number(value: Option<UInt64Value>) -> Result<u64> {
    value.map(|value| value.value).context("a figure is absent")
}

fn within(what: &str, value: Option<UInt64Value>, range: RangeInclusive<u64>) -> Result<()> {
    let value = number(value).context(what.to_owned())?;
    ensure!(
        range.contains(&value),
        "{what}: {value} is not in {range:?}"
    );
    Ok(())
}

/// What the kernel says of the container of `pid` now.
struct Kernel {
    cpu_ns: u64,
    usage: u64,
    rss: u64,
    inactive_file: u64,
    faults: u64,
    major_faults: u64,
    swap: u64,
    waited_us: [Option<u64>; 3],
}

impl Kernel {
    fn read(pid: i32) -> Result<Self> {
        let stat = cgroup::value(pid, "memory", "memory.stat", "memory.stat")?;
        let (total, v2) = (
            if cgroup::unified() { "" } else { "total_" },
            cgroup::unified(),
        );
        let of = |key: &str| {
            cgroup::counter(&stat, &format!("{total}{key} ")).with_context(|| key.to_owned())
        };
        let cpu = match v2 {
            true => {
                let stat = cgroup::value(pid, "cpu", "", "cpu.stat")?;
                cgroup::counter(&stat, "usage_usec ").context("usage_usec")? * 1000
            }
            false => cgroup::value(pid, "cpuacct", "cpuacct.usage", "")?.parse()?,
        };
        let usage = cgroup::value(pid, "memory", "memory.usage_in_bytes", "memory.current")?;
        let v2_directory = cgroup::v2_directory(pid)?;
        let waited = |file: &str| {
            let text = fs::read_to_string(v2_directory.join(file)).ok()?;
            text.lines().next()?.rsplit_once("total=")?.1.parse().ok()
        };
        Ok(Self {
            cpu_ns: cpu,
            usage: usage.parse()?,
            rss: of(if v2 { "anon" } else { "rss" })?,
            inactive_file: of("inactive_file")?,
            faults: of("pgfault")?,
            major_faults: of("pgmajfault")?,
            swap: of("swap").unwrap_or(0),
            waited_us: ["cpu.pressure", "memory.pressure", "io.pressure"].map(waited),
        })
    }
}

#[test]
fn every_figure_is_what_the_kernel_says() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("kernel")).await?;
        // 8 MiB of memory (tail keeps one long line) and 8 MB of files, then nothing more happens.
        let script = "head -c 8000000 /dev/zero > /file; (head -c 8388608 /dev/zero; sleep 1000) | tail -n 1";
        let config = container("kernel", BUSYBOX, &sh(script)).resources(|resources| {
            resources.memory_limit_in_bytes = 64 << 20;
            resources.memory_swap_limit_in_bytes = 96 << 20;
        });
        let id = node.start_container(&pod, config).await?;
        let unlimited = node
            .start_container(&pod, container("unlimited", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let init = process::init_of(&id).context("the container has no process")?;
        let settled = || Kernel::read(init.pid).is_ok_and(|kernel| kernel.rss > 8 << 20);
        ensure!(process::eventually(Duration::from_secs(10), settled));
        node.cri.stats(&id).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;

        let before = Kernel::read(init.pid)?;
        let stats = node.cri.stats(&id).await?;
        let after = Kernel::read(init.pid)?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos() as i64;
        let cpu = stats.cpu.context("no CPU")?;
        let used = before.cpu_ns..=after.cpu_ns;
        within("CPU time", cpu.usage_core_nano_seconds, used)?;
        within("CPU rate", cpu.usage_nano_cores, 0..=2_000_000_000)?;
        ensure!(
            now - cpu.timestamp < 10_000_000_000,
            "{} is not now",
            cpu.timestamp
        );
        let memory = stats.memory.context("no memory")?;
        // The kernel counts in batches of 64 pages a processor.
        let near = |value: u64| value.saturating_sub(2 << 20)..=value + (2 << 20);
        within("usage", memory.usage_bytes, near(before.usage))?;
        within("rss", memory.rss_bytes, near(before.rss))?;
        let set = before.usage - before.inactive_file;
        within("working set", memory.working_set_bytes, near(set))?;
        within("available", memory.available_bytes, near((64 << 20) - set))?;
        within(
            "page faults",
            memory.page_faults,
            before.faults..=after.faults,
        )?;
        let major = before.major_faults..=after.major_faults;
        within("major page faults", memory.major_page_faults, major)?;
        match cgroup::value(
            init.pid,
            "memory",
            "memory.memsw.usage_in_bytes",
            "memory.swap.current",
        ) {
            Ok(_) => {
                let swap = stats.swap.context("swap is accounted, and not told of")?;
                within("swap", swap.swap_usage_bytes, before.swap..=after.swap)?;
                let left = (32 << 20) - before.swap;
                within("swap available", swap.swap_available_bytes, left..=left)?;
            }
            Err(_) => ensure!(stats.swap.is_none(), "swap is not accounted: {stats:?}"),
        }
        let pressures = [cpu.psi, memory.psi, stats.io.and_then(|io| io.psi)];
        for (at, told) in pressures.into_iter().enumerate() {
            match (before.waited_us[at], after.waited_us[at]) {
                (Some(before), Some(after)) => {
                    let some = told.and_then(|psi| psi.some).context("no pressure")?;
                    ensure!((before..=after).contains(&some.total), "{at}: {some:?}");
                }
                _ => ensure!(told.is_none(), "pressure out of nowhere: {told:?}"),
            }
        }
        let unlimited = node.cri.stats(&unlimited).await?;
        let memory = unlimited.memory.context("no memory")?;
        ensure!(
            memory.available_bytes.is_none(),
            "available without a limit: {memory:?}"
        );
        let left = unlimited.swap.and_then(|swap| swap.swap_available_bytes);
        ensure!(left.is_none(), "swap available without a limit");
        Ok(())
    })
}

#[test]
fn figures_of_a_pod_are_its_cgroups_and_hold_those_of_its_containers() -> Result<()> {
    Node::test(async |node| {
        let empty = node.run(node.pod("empty")).await?;
        let stats = node.cri.pod_stats(&empty.id).await?;
        ensure!(
            stats.containers.is_empty()
                && number(stats.process.unwrap_or_default().process_count)? == 0
        );
        ensure!(number(stats.memory.unwrap_or_default().usage_bytes)? == 0);

        let labelled = node.pod("pod").with(|config| {
            config.labels.insert("app".into(), "stats".into());
        });
        let pod = node.run(labelled).await?;
        let one = container("one", BUSYBOX, &sh("sleep 1000 & sleep 1000 & wait"));
        let one = node.start_container(&pod, one).await?;
        let two = container("two", BUSYBOX, &["sleep", "1000"]);
        let two = node.start_container(&pod, two).await?;
        let ended = node
            .start_container(&pod, container("ended", BUSYBOX, &["true"]))
            .await?;
        node.cri.wait_exit(&ended).await?;
        let init = process::init_of(&two).context("no process")?;
        let address = node
            .cri
            .pod_status(&empty.id)
            .await?
            .network
            .unwrap_or_default()
            .ip;
        node.cri
            .shell(&two, &format!("ping -c 2 -W 2 {address}"))
            .await?;
        ensure!(process::eventually(
            Duration::from_secs(5),
            || process::in_cgroup(&one).len() == 3
        ));

        node.cri.pod_stats(&pod.id).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stats = node.cri.pod_stats(&pod.id).await?;
        let mut names: Vec<_> = stats
            .containers
            .iter()
            .filter_map(|stats| Some(stats.attributes.as_ref()?.metadata.as_ref()?.name.as_str()))
            .collect();
        names.sort_unstable();
        ensure!(names == ["one", "two"], "{names:?}");
        ensure!(
            number(stats.process.unwrap_or_default().process_count)? == 4,
            "{stats:?}"
        );
        let cpu = stats.cpu.unwrap_or_default();
        let of_containers = stats
            .containers
            .iter()
            .map(|stats| number(stats.cpu.unwrap_or_default().usage_core_nano_seconds))
            .sum::<Result<u64>>()?;
        ensure!(number(cpu.usage_core_nano_seconds)? > 0 && of_containers > 0);
        ensure!(cpu.usage_nano_cores.is_some(), "no rate after two samples");
        ensure!(
            stats.containers.iter().all(|stats| stats
                .cpu
                .unwrap_or_default()
                .usage_nano_cores
                .is_some())
        );
        ensure!(number(stats.memory.unwrap_or_default().usage_bytes)? > 0);

        let network = stats.network.context("no network")?;
        let eth0 = network.default_interface.clone().context("no interface")?;
        ensure!(
            eth0.name == "eth0" && network.interfaces.is_empty(),
            "{network:?}"
        );
        let kernel = fs::read_to_string(format!("/proc/{}/net/dev", init.pid))?;
        let line = kernel
            .lines()
            .find_map(|line| line.trim().strip_prefix("eth0:"));
        let received: u64 = line
            .context("no eth0")?
            .split_whitespace()
            .next()
            .context("no bytes")?
            .parse()?;
        ensure!(
            received > 0 && number(eth0.rx_bytes)? <= received,
            "{eth0:?}: {received}"
        );
        ensure!(number(eth0.rx_bytes)? > 0 && number(eth0.tx_bytes)? > 0);

        let list = async |filter: PodSandboxStatsFilter| -> Result<usize> {
            let request = cri::ListPodSandboxStatsRequest {
                filter: Some(filter),
            };
            let listed = node.cri.runtime().list_pod_sandbox_stats(request).await?;
            Ok(listed.into_inner().stats.len())
        };
        ensure!(list(PodSandboxStatsFilter::default()).await? == 2);
        let by_label = PodSandboxStatsFilter {
            label_selector: [("app".to_owned(), "stats".to_owned())].into(),
            ..Default::default()
        };
        ensure!(list(by_label).await? == 1);
        let by_id = PodSandboxStatsFilter {
            id: pod.id[..12].to_owned(),
            ..Default::default()
        };
        ensure!(list(by_id).await? == 1);
        node.cri.stop_pod(&pod.id).await?;
        ensure!(
            list(PodSandboxStatsFilter::default()).await? == 1,
            "a stopped pod is listed"
        );
        refused(
            node.cri.pod_stats(&"0".repeat(64)).await,
            Code::NotFound,
            &[],
        )
    })
}
