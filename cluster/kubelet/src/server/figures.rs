//! What the node and its pods use: `/stats/summary` for people and eviction, `/metrics/resource` for the metrics server, `/metrics` of the kubelet itself.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_proto::cri::{self, UInt64Value};
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::{
    Error, keys,
    machine::{Fs, Machine, traffic},
    node::{Inner, Node},
    storage,
};

use super::summary::{Begins, Looked, OnDisk};

/// In /proc/stat.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// A value of `/metrics/resource` and when it was so: milliseconds since the epoch, as upstream writes.
struct Sample<'a> {
    name: &'static str,
    kind: &'static str,
    labels: &'a str,
    value: String,
    at_ms: i64,
}

#[derive(Debug)]
pub(super) struct Figures {
    /// CPU time of the node at the last look, and when: for its rate.
    last: Mutex<Option<(u64, i64)>>,
    disk: tokio::sync::Mutex<Disk>,
}

/// What pods had on the disk when it was looked at last, and when it may be looked at again.
#[derive(Debug, Default)]
struct Disk {
    found: Arc<OnDisk>,
    next: Option<Instant>,
}

impl Default for Figures {
    /// The first look is at what was used since now.
    fn default() -> Self {
        let now = nanoseconds(Timestamp::now());
        Self {
            last: Mutex::new(Some((cpu_nanoseconds(), now))),
            disk: Default::default(),
        }
    }
}

impl Figures {
    /// # Errors
    /// The runtime does not tell.
    pub async fn summary(&self, node: &Node) -> Result<Value, Error> {
        let pods = node.runtime.pod_stats().await?;
        let image_fs = node.runtime.image_fs().await.ok().flatten();
        let image_fs = image_fs.and_then(|path| Fs::of(Path::new(&path)));
        let disk = self.disk(node).await;
        let now = Timestamp::now();
        let cpu = cpu_nanoseconds();
        let looked = Looked {
            node: &node.config.node.name,
            started: started(),
            cpu,
            rate: self.rate(cpu, nanoseconds(now)),
            machine: Machine::now(node.kubelet_dir()),
            traffic: traffic(),
            image_fs,
            disk: &disk,
            begins: &begins(node),
            now,
        };
        Ok(looked.summary(&pods))
    }

    /// What pods have on the disk: looked at anew where that is not too much work.
    async fn disk(&self, node: &Node) -> Arc<OnDisk> {
        let mut disk = self.disk.lock().await;
        if disk.next.is_none_or(|next| next <= Instant::now()) {
            let node = node.clone();
            let walks = move || {
                let begin = processor_time();
                let all = node.view.all().into_iter();
                let found: OnDisk = all
                    .map(|it| (it.pod.uid.clone(), storage::measured(&node, &it.pod)))
                    .collect();
                (found, processor_time().saturating_sub(begin))
            };
            let walked = tokio::task::spawn_blocking(walks).await;
            let (found, took) = walked.unwrap_or_default();
            disk.found = Arc::new(found);
            disk.next = Some(Instant::now() + storage::rest(took, Duration::ZERO));
        }
        disk.found.clone()
    }

    fn rate(&self, cpu: u64, now: i64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.replace((cpu, now))?;
        let (used, passed) = (
            cpu.checked_sub(before.0)?,
            u64::try_from(now - before.1).ok()?,
        );
        u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(passed.max(1))).ok()
    }

    /// # Errors
    /// As [`Self::summary`].
    pub async fn resource(&self, node: &Inner) -> Result<String, Error> {
        let pods = node.runtime.pod_stats().await?;
        let machine = Machine::now(node.kubelet_dir());
        let used = machine.memory.saturating_sub(machine.memory_available);
        let now_ms = Timestamp::now().as_millisecond();
        let begins = begins(node);
        let mut samples = Samples::default();
        samples.cpu(
            "node_cpu_usage_seconds_total",
            "",
            cpu_nanoseconds(),
            now_ms,
        );
        samples.put(Sample {
            name: "node_memory_working_set_bytes",
            kind: "gauge",
            labels: "",
            value: used.to_string(),
            at_ms: now_ms,
        });
        samples.put(Sample {
            name: "node_swap_usage_bytes",
            kind: "gauge",
            labels: "",
            value: (machine.swap - machine.swap_free).to_string(),
            at_ms: now_ms,
        });
        for stats in &pods {
            let (Some(linux), Some((namespace, name, uid))) = (&stats.linux, identity(stats))
            else {
                continue;
            };
            let labels = format!("{{namespace=\"{namespace}\",pod=\"{name}\"}}");
            samples.used(
                [
                    "pod_cpu_usage_seconds_total",
                    "pod_memory_working_set_bytes",
                ],
                &labels,
                linux.cpu.as_ref(),
                linux.memory.as_ref(),
            );
            samples.swap("pod_swap_usage_bytes", &labels, swap_of_pod(linux));
            for container in &linux.containers {
                let of = container_name(container);
                let labels =
                    format!("{{container=\"{of}\",namespace=\"{namespace}\",pod=\"{name}\"}}");
                samples.used(
                    [
                        "container_cpu_usage_seconds_total",
                        "container_memory_working_set_bytes",
                    ],
                    &labels,
                    container.cpu.as_ref(),
                    container.memory.as_ref(),
                );
                let swap = container.swap.as_ref();
                let used = swap.and_then(|it| Some((value(&it.swap_usage_bytes)?, it.timestamp)));
                samples.swap("container_swap_usage_bytes", &labels, used);
                let limit = swap.and_then(|it| {
                    let left = value(&it.swap_available_bytes)?;
                    Some((
                        left.saturating_add(value(&it.swap_usage_bytes)?),
                        it.timestamp,
                    ))
                });
                samples.swap("container_swap_limit_bytes", &labels, limit);
                if let Some(began) = begins.get(&(uid.clone(), of)) {
                    samples.put(Sample {
                        name: "container_start_time_seconds",
                        kind: "gauge",
                        labels: &labels,
                        value: format!("{:.3}", began.as_millisecond() as f64 / 1e3),
                        at_ms: now_ms,
                    });
                }
            }
        }
        Ok(samples.text())
    }

    /// Of the kubelet.
    pub fn own(&self, node: &Inner) -> String {
        let mut text = String::new();
        let all = node.view.all();
        let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut running, mut restarts) = (0, 0);
        for shown in &all {
            let phase = shown.status.phase.as_deref().unwrap_or("Unknown");
            *phases.entry(phase).or_default() += 1;
            for status in shown.status.container_statuses.iter().flatten() {
                restarts += status.restart_count;
                let state = status.state.as_ref();
                running += usize::from(state.is_some_and(|it| it.running.is_some()));
            }
        }
        let _ = writeln!(text, "# TYPE kubelet_node_name gauge");
        let _ = writeln!(
            text,
            "kubelet_node_name{{node=\"{}\"}} 1",
            node.config.node.name
        );
        let _ = writeln!(
            text,
            "# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {}",
            all.len()
        );
        let _ = writeln!(text, "# TYPE berth_kubelet_pods gauge");
        for (phase, count) in phases {
            let _ = writeln!(text, "berth_kubelet_pods{{phase=\"{phase}\"}} {count}");
        }
        let _ = writeln!(text, "# TYPE kubelet_running_containers gauge");
        let _ = writeln!(
            text,
            "kubelet_running_containers{{container_state=\"running\"}} {running}"
        );
        let _ = writeln!(
            text,
            "# TYPE berth_kubelet_container_restarts gauge\nberth_kubelet_container_restarts {restarts}"
        );
        if let Some((rss, cpu)) = own_use() {
            let _ = writeln!(
                text,
                "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {rss}"
            );
            let _ = writeln!(
                text,
                "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {cpu:.2}"
            );
        }
        text
    }
}

/// By their names, each name's kind and lines.
#[derive(Debug, Default)]
struct Samples(BTreeMap<&'static str, (&'static str, Vec<String>)>);

impl Samples {
    fn put(&mut self, sample: Sample<'_>) {
        let Sample {
            name,
            kind,
            labels,
            value,
            at_ms,
        } = sample;
        let (_, lines) = self.0.entry(name).or_insert((kind, Vec::new()));
        lines.push(format!("{name}{labels} {value} {at_ms}\n"));
    }

    fn cpu(&mut self, name: &'static str, labels: &str, nanoseconds: u64, at_ms: i64) {
        self.put(Sample {
            name,
            kind: "counter",
            labels,
            value: format!("{:.9}", nanoseconds as f64 / 1e9),
            at_ms,
        });
    }

    /// Bytes, and when.
    fn swap(&mut self, name: &'static str, labels: &str, used: Option<(u64, i64)>) {
        if let Some((bytes, at)) = used {
            self.put(Sample {
                name,
                kind: "gauge",
                labels,
                value: bytes.to_string(),
                at_ms: at / 1_000_000,
            });
        }
    }

    fn used(
        &mut self,
        [of_cpu, of_memory]: [&'static str; 2],
        labels: &str,
        cpu: Option<&cri::CpuUsage>,
        memory: Option<&cri::MemoryUsage>,
    ) {
        let ms = |nanoseconds: i64| nanoseconds / 1_000_000;
        if let Some((cpu, used)) =
            cpu.and_then(|it| Some((it, value(&it.usage_core_nano_seconds)?)))
        {
            self.cpu(of_cpu, labels, used, ms(cpu.timestamp));
        }
        if let Some((memory, used)) =
            memory.and_then(|it| Some((it, value(&it.working_set_bytes)?)))
        {
            self.put(Sample {
                name: of_memory,
                kind: "gauge",
                labels,
                value: used.to_string(),
                at_ms: ms(memory.timestamp),
            });
        }
    }

    fn text(self) -> String {
        let mut text = String::new();
        for (name, (kind, lines)) in self.0 {
            let _ = writeln!(text, "# TYPE {name} {kind}");
            text.extend(lines);
        }
        text.push_str("# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n");
        text
    }
}

fn begins(node: &Inner) -> Begins {
    let mut begins = Begins::new();
    for shown in node.view.all() {
        let (uid, status) = (&shown.pod.uid, &shown.status);
        if let Some(began) = &status.start_time {
            begins.insert((uid.clone(), String::new()), began.0);
        }
        let lists = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        for one in lists.into_iter().flatten().flatten() {
            let running = one.state.as_ref().and_then(|it| it.running.as_ref());
            if let Some(began) = running.and_then(|it| it.started_at.as_ref()) {
                begins.insert((uid.clone(), one.name.clone()), began.0);
            }
        }
    }
    begins
}

/// Of its containers together, and when; the runtime tells it of these alone.
pub(super) fn swap_of_pod(linux: &cri::LinuxPodSandboxStats) -> Option<(u64, i64)> {
    let all = linux.containers.iter().filter_map(|it| it.swap.as_ref());
    let all = all.filter_map(|it| Some((value(&it.swap_usage_bytes)?, it.timestamp)));
    all.reduce(|(sum, at), (bytes, other)| (sum.saturating_add(bytes), at.max(other)))
}

fn nanoseconds(time: Timestamp) -> i64 {
    time.as_nanosecond().try_into().unwrap_or(i64::MAX)
}

pub(super) fn value(it: &Option<UInt64Value>) -> Option<u64> {
    it.as_ref().map(|it| it.value)
}

/// Namespace, name and uid.
pub(super) fn identity(stats: &cri::PodSandboxStats) -> Option<(String, String, String)> {
    let metadata = stats.attributes.as_ref()?.metadata.clone()?;
    Some((metadata.namespace, metadata.name, metadata.uid))
}

pub(super) fn container_name(stats: &cri::ContainerStats) -> String {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let label = attributes.labels.get(keys::CONTAINER_NAME).cloned();
    label.unwrap_or_else(|| attributes.metadata.unwrap_or_default().name)
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Busy time of all processors since the start: all but idle and waiting for disks.
fn cpu_nanoseconds() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; those of guests are in user
    [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|at| ticks.get(*at))
        .sum::<u64>()
        .saturating_mul(NANOSECONDS_PER_TICK)
}

fn started() -> Option<String> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    let time = Timestamp::from_second(seconds.trim().parse().ok()?).ok()?;
    Some(time.to_string())
}

/// Resident bytes, and seconds of CPU, of this process.
fn own_use() -> Option<(u64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = rss.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some((kib * 1024, (ticks * NANOSECONDS_PER_TICK) as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_known_from_the_second_look_on() {
        let figures = Figures {
            last: Mutex::default(),
            disk: Default::default(),
        };
        assert_eq!(figures.rate(1_000, 0), None);
        assert_eq!(figures.rate(501_000, 1_000_000), Some(500_000_000));
        // a clock that was set back
        assert_eq!(figures.rate(600_000, 0), None);
        assert!(cpu_nanoseconds() > 0 && started().is_some());
        assert!(own_use().is_some_and(|(rss, _)| rss > 0));
        let first = Figures::default();
        let later = nanoseconds(Timestamp::now()) + 1_000_000;
        let rate = first.rate(cpu_nanoseconds(), later);
        assert!(rate.is_some(), "the first look has a rate, too");
    }

    #[test]
    fn each_sample_has_its_own_time_and_stands_below_its_name() {
        let mut samples = Samples::default();
        let cpu = |used, timestamp| cri::CpuUsage {
            timestamp,
            usage_core_nano_seconds: Some(UInt64Value { value: used }),
            ..Default::default()
        };
        let memory = cri::MemoryUsage {
            timestamp: 3_000_000,
            working_set_bytes: Some(UInt64Value { value: 4096 }),
            ..Default::default()
        };
        for (labels, cpu) in [
            ("{pod=\"a\"}", cpu(1_500_000_000, 1_000_000)),
            ("{pod=\"b\"}", cpu(7, 2_000_000)),
        ] {
            let names = [
                "pod_cpu_usage_seconds_total",
                "pod_memory_working_set_bytes",
            ];
            samples.used(names, labels, Some(&cpu), Some(&memory));
            samples.used(names, labels, None, Some(&cri::MemoryUsage::default()));
        }
        assert_eq!(
            samples.text(),
            "# TYPE pod_cpu_usage_seconds_total counter\n\
             pod_cpu_usage_seconds_total{pod=\"a\"} 1.500000000 1\n\
             pod_cpu_usage_seconds_total{pod=\"b\"} 0.000000007 2\n\
             # TYPE pod_memory_working_set_bytes gauge\n\
             pod_memory_working_set_bytes{pod=\"a\"} 4096 3\n\
             pod_memory_working_set_bytes{pod=\"b\"} 4096 3\n\
             # TYPE resource_scrape_error gauge\n\
             resource_scrape_error 0\n"
        );
    }
}
