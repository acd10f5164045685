//! When the node runs short of memory, disk or process ids, pods end so that the others can go on: one at a time, first who uses more than it asked
//! for. A pod that has more on the disk than it may have ends, too. CPU is never a reason: it can be shared by waiting (BO-25).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_proto::cri;
use k8s_openapi::api::core::v1::ResourceRequirements;
use tokio::sync::mpsc;

use crate::{
    Desired, Level, Thresholds, admission, amounts, images, keys,
    machine::{Fs, Machine, binary},
    node::Node,
    qos::{rounded, units},
    storage::{self, Usage},
    thresholds::{Course, Left, Observed, Signal, Threshold},
    view::Shown,
    worker::Why,
};

/// Upstream's.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Upstream's, for who has to go at once.
const AT_ONCE: Duration = Duration::from_secs(1);
const STORAGE: &str = "ephemeral-storage";
const NANO: i128 = 1_000_000_000;

/// A pod that has to go, by its uid, and what is told of that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub uid: String,
    pub why: Why,
}

/// What the node has left, and of whom what is known.
#[derive(Debug, Default)]
struct Look {
    observed: Observed,
    /// Images and writable layers lie on another file system than logs and volumes.
    is_split: bool,
    stats: Vec<cri::PodSandboxStats>,
    usage: BTreeMap<String, Usage>,
}

/// Looks until nobody listens.
pub(crate) async fn watch(node: Node, thresholds: Thresholds, told: mpsc::Sender<Evicted>) {
    let mut course = Course::default();
    let mut image_dir = None;
    let mut walk_after = Instant::now();
    while !told.is_closed() {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut look = observe(&node, &mut image_dir).await;
        let now = Instant::now();
        let verdict = course.follow(&thresholds, &look.observed, now);
        node.pressed.set(verdict.pressure);
        let mut pods = node.view.all();
        pods.retain(may_go);
        let is_of_disk = |it: &Threshold| it.signal.is_of_disk();
        let all = verdict.acts.as_ref().is_some_and(is_of_disk);
        let walked: Vec<Shown> = pods
            .iter()
            .filter(|it| all || is_limited(&it.pod))
            .cloned()
            .collect();
        let is_due = !walked.is_empty() && now >= walk_after;
        if is_due || verdict.acts.is_some() {
            look.stats = node.runtime.pod_stats().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "what pods use is not known");
                Vec::new()
            });
        }
        if is_due {
            look.usage = walk(&node, walked).await;
            walk_after = Instant::now() + storage::rest(now.elapsed(), LOOK_EVERY / 2);
        }
        let over: Vec<Evicted> = pods
            .iter()
            .filter_map(|it| over_its_limit(&it.pod, &look))
            .collect();
        let is_over = !over.is_empty();
        for evicted in over {
            if told.send(evicted).await.is_err() {
                return;
            }
        }
        let Some(threshold) = verdict.acts.filter(|_| !is_over) else {
            continue;
        };
        let message = format!("Attempting to reclaim {}", threshold.signal.resource());
        node.tell_of_node(Level::Warning, "EvictionThresholdMet", message);
        // what nobody uses goes before who is used
        if threshold.signal.is_of_disk() {
            if let Err(error) = images::remove_unused(&node).await {
                tracing::warn!(%error, "images that nobody uses are not removed");
            }
            let after = observe(&node, &mut image_dir).await;
            if !threshold.is_passed(&after.observed, true) {
                continue;
            }
        }
        match first(&threshold, &thresholds, &pods, &look) {
            Some(evicted) => {
                if told.send(evicted).await.is_err() {
                    return;
                }
            }
            None => tracing::warn!(
                scarce = threshold.signal.resource(),
                "the node runs short, and nobody may be evicted"
            ),
        }
    }
}

/// Only what is left.
async fn observe(node: &Node, image_dir: &mut Option<PathBuf>) -> Look {
    if image_dir.is_none() {
        *image_dir = node
            .runtime
            .image_fs()
            .await
            .ok()
            .flatten()
            .map(PathBuf::from);
    }
    let (node, images) = (node.clone(), image_dir.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let dir = node.kubelet_dir();
        let machine = Machine::now(dir);
        let mut look = Look {
            observed: of_machine(&machine),
            ..Look::default()
        };
        if let Some(left) = node.cgroups.as_ref().and_then(|it| it.memory_left()) {
            look.observed.insert(Signal::AllocatableMemory, left);
        }
        if let Some((fs, images)) = images.and_then(|images| Some((Fs::of(&images)?, images))) {
            look.observed.extend(of_images(&fs));
            look.is_split = Fs::is_another(dir, &images);
        }
        look
    });
    looked.await.unwrap_or_default()
}

fn of_machine(machine: &Machine) -> Observed {
    let left = |available, capacity| Left {
        available,
        capacity,
    };
    BTreeMap::from([
        (
            Signal::Memory,
            left(machine.memory_available, machine.memory),
        ),
        (Signal::NodeFs, left(machine.fs.available, machine.fs.bytes)),
        (
            Signal::NodeInodes,
            left(machine.fs.inodes_free, machine.fs.inodes),
        ),
        (
            Signal::Pids,
            left(machine.pids.saturating_sub(machine.pids_used), machine.pids),
        ),
    ])
}

fn of_images(fs: &Fs) -> [(Signal, Left); 2] {
    let left = |available, capacity| Left {
        available,
        capacity,
    };
    [
        (Signal::ImageFs, left(fs.available, fs.bytes)),
        (Signal::ImageInodes, left(fs.inodes_free, fs.inodes)),
    ]
}

async fn walk(node: &Node, pods: Vec<Shown>) -> BTreeMap<String, Usage> {
    let node = node.clone();
    let walked = tokio::task::spawn_blocking(move || {
        let all = pods.iter().map(|shown| &shown.pod);
        all.map(|pod| (pod.uid.clone(), storage::of_pod(&node, pod)))
            .collect()
    });
    walked.await.unwrap_or_default()
}

/// Neither what the node's own disk asks for, nor what the cluster can't be without, nor what ends already.
fn may_go(shown: &Shown) -> bool {
    let pod = &shown.pod;
    let phase = shown.status.phase.as_deref().unwrap_or_default();
    !admission::is_critical(pod)
        && pod.deletion().is_none()
        && !matches!(phase, "Failed" | "Succeeded")
}

/// Sizes that emptyDirs on the disk may have: bytes, and as they are written.
fn size_limits(pod: &Desired) -> impl Iterator<Item = (&str, u64, &str)> {
    pod.spec.volumes.iter().flatten().filter_map(|volume| {
        let dir = volume.empty_dir.as_ref()?;
        let text = &dir.size_limit.as_ref()?.0;
        let bytes = berth_kinds::Quantity::parse(text)?.nano / NANO;
        let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
        let is_on_disk = dir.medium.as_deref().unwrap_or_default().is_empty();
        is_on_disk.then_some((volume.name.as_str(), bytes, text.as_str()))
    })
}

fn is_limited(pod: &Desired) -> bool {
    size_limits(pod).next().is_some() || amounts::limit(pod, STORAGE).nano > 0
}

/// Upstream's words.
fn over_its_limit(pod: &Desired, look: &Look) -> Option<Evicted> {
    let usage = look.usage.get(&pod.uid)?;
    let stats = look.stats_of(pod);
    let message = over_in_words(pod, usage, stats)?;
    Some(Evicted {
        uid: pod.uid.clone(),
        why: Why {
            reason: "Evicted",
            message,
            disrupts: None,
            grace: Some(AT_ONCE),
        },
    })
}

fn over_in_words(
    pod: &Desired,
    usage: &Usage,
    stats: Option<&cri::PodSandboxStats>,
) -> Option<String> {
    if usage.is_cut && is_limited(pod) {
        let why = "The pod has more files, or deeper directories, than are counted: it can't be held to its limit of local ephemeral storage. ";
        return Some(why.into());
    }
    for (name, limit, text) in size_limits(pod) {
        if usage.volumes.get(name).is_some_and(|used| *used > limit) {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "
            ));
        }
    }
    let whole = rounded(amounts::limit(pod, STORAGE).nano, NANO).unsigned_abs();
    let used = usage
        .bytes()
        .saturating_add(layers(stats, |it| it.used_bytes));
    if whole > 0 && used > whole {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            binary(whole)
        ));
    }
    pod.containers.iter().find_map(|spec| {
        let resources = spec.container.resources.as_ref()?;
        let limit = units(&resources.limits, STORAGE)?.unsigned_abs();
        let text = &resources.limits.as_ref()?.get(STORAGE)?.0;
        let logs = usage.logs.get(spec.name()).copied().unwrap_or(0);
        let layer = of_container(stats, spec.name()).and_then(|it| it.writable_layer.as_ref());
        let layer = layer.and_then(|it| it.used_bytes).map_or(0, |it| it.value);
        (limit > 0 && logs.saturating_add(layer) > limit).then(|| {
            let name = spec.name();
            format!("Container {name} exceeded its local ephemeral storage limit {text:?}. ")
        })
    })
}

fn layers(
    stats: Option<&cri::PodSandboxStats>,
    of: fn(&cri::FilesystemUsage) -> Option<cri::UInt64Value>,
) -> u64 {
    let linux = stats.and_then(|it| it.linux.as_ref());
    let containers = linux.into_iter().flat_map(|it| &it.containers);
    containers
        .filter_map(|one| of(one.writable_layer.as_ref()?))
        .map(|it| it.value)
        .sum()
}

fn of_container<'a>(
    stats: Option<&'a cri::PodSandboxStats>,
    name: &str,
) -> Option<&'a cri::ContainerStats> {
    stats?.linux.as_ref()?.containers.iter().find(|one| {
        let attributes = one.attributes.as_ref();
        let label = attributes.and_then(|it| it.labels.get(keys::CONTAINER_NAME));
        label.is_some_and(|label| label == name)
    })
}

fn working_set(memory: Option<&cri::MemoryUsage>) -> Option<u64> {
    Some(memory?.working_set_bytes.as_ref()?.value)
}

impl Look {
    fn stats_of(&self, pod: &Desired) -> Option<&cri::PodSandboxStats> {
        self.stats.iter().find(|stats| {
            let metadata = stats
                .attributes
                .as_ref()
                .and_then(|it| it.metadata.as_ref());
            metadata.is_some_and(|it| it.uid == pod.uid)
        })
    }

    /// What a pod uses of it.
    fn used(&self, signal: Signal, pod: &Desired) -> u64 {
        let stats = self.stats_of(pod);
        let linux = stats.and_then(|it| it.linux.as_ref());
        let usage = self.usage.get(&pod.uid);
        let (has_layers, has_files) = match signal {
            Signal::NodeFs | Signal::NodeInodes => (!self.is_split, true),
            _ => (true, !self.is_split),
        };
        type Counts = fn(&cri::FilesystemUsage) -> Option<cri::UInt64Value>;
        let of_layers = |of: Counts| if has_layers { layers(stats, of) } else { 0 };
        let of_files = |of: fn(&Usage) -> u64| usage.filter(|_| has_files).map_or(0, of);
        match signal {
            Signal::Memory | Signal::AllocatableMemory => {
                working_set(linux.and_then(|it| it.memory.as_ref())).unwrap_or(0)
            }
            Signal::NodeFs | Signal::ImageFs => {
                of_layers(|it| it.used_bytes).saturating_add(of_files(Usage::bytes))
            }
            Signal::NodeInodes | Signal::ImageInodes => {
                of_layers(|it| it.inodes_used).saturating_add(of_files(|it| it.files))
            }
            Signal::Pids => linux
                .and_then(|it| it.process.as_ref()?.process_count.as_ref())
                .map_or(0, |it| it.value),
        }
    }
}

/// What it asked for; of process ids and inodes nobody asks for any.
fn asked(signal: Signal, pod: &Desired) -> u64 {
    match signal.resource() {
        name @ ("memory" | STORAGE) => rounded(amounts::request(pod, name), NANO).unsigned_abs(),
        _ => 0,
    }
}

/// Who goes first: who uses more than it asked for, then the least important, then who is furthest above.
fn first(
    threshold: &Threshold,
    thresholds: &Thresholds,
    pods: &[Shown],
    look: &Look,
) -> Option<Evicted> {
    let signal = threshold.signal;
    let rank = |pod: &Desired| {
        let above = i128::from(look.used(signal, pod)) - i128::from(asked(signal, pod));
        let priority = pod.spec.priority.unwrap_or(0);
        (above <= 0, priority, -above, pod.uid.clone())
    };
    let pod = pods
        .iter()
        .map(|shown| &shown.pod)
        .min_by_key(|pod| rank(pod))?;
    let message = in_words(threshold, pod, look);
    Some(Evicted {
        uid: pod.uid.clone(),
        why: Why {
            reason: "Evicted",
            disrupts: Some(message.clone()),
            message,
            grace: Some(match threshold.grace {
                None => AT_ONCE,
                Some(_) => thresholds.max_pod_grace,
            }),
        },
    })
}

/// As upstream.
fn in_words(threshold: &Threshold, pod: &Desired, look: &Look) -> String {
    let signal = threshold.signal;
    let resource = signal.resource();
    let mut message = format!("The node was low on resource: {resource}. ");
    let amount = |amount: u64| match resource {
        "memory" | STORAGE => binary(amount),
        _ => amount.to_string(),
    };
    if let Some(left) = look.observed.get(&signal) {
        message.push_str(&format!(
            "Threshold quantity: {}, available: {}. ",
            amount(threshold.least.of(left.capacity)),
            amount(left.available)
        ));
    }
    let stats = look.stats_of(pod);
    for spec in &pod.containers {
        let name = spec.name();
        let Some(of) = of_container(stats, name) else {
            continue;
        };
        let used = match resource {
            "memory" => working_set(of.memory.as_ref()),
            STORAGE => {
                let layer = of.writable_layer.as_ref().and_then(|it| it.used_bytes);
                let logs = look.usage.get(&pod.uid).and_then(|it| it.logs.get(name));
                layer.map(|it| it.value.saturating_add(logs.copied().unwrap_or(0)))
            }
            _ => None,
        };
        let request = |resources: &ResourceRequirements| units(&resources.requests, resource);
        let request = spec.container.resources.as_ref().and_then(request);
        let request = request.unwrap_or(0).unsigned_abs();
        if let Some(used) = used.filter(|used| *used > request) {
            message.push_str(&format!(
                "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
                binary(used),
                binary(request)
            ));
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;
    use crate::{API, pod::tests::pod};

    const CRITICAL: i32 = 2_000_000_000;

    fn shown(uid: &str, priority: i32, request: &str) -> Shown {
        let text = format!(
            "  priority: {priority}\n  containers: [{{name: a, image: x, resources: {{requests: {{memory: {request}}}}}}}]"
        );
        let mut pod = pod(&text);
        pod.uid = uid.into();
        pod.source = API;
        Shown {
            pod: Arc::new(pod),
            status: PodStatus::default(),
        }
    }

    fn value(value: u64) -> Option<cri::UInt64Value> {
        Some(cri::UInt64Value { value })
    }

    fn uses(uid: &str, memory: u64, layer: u64) -> cri::PodSandboxStats {
        let memory = cri::MemoryUsage {
            working_set_bytes: value(memory),
            ..Default::default()
        };
        let container = cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                labels: [(keys::CONTAINER_NAME.to_owned(), "a".to_owned())].into(),
                ..Default::default()
            }),
            memory: Some(memory),
            writable_layer: Some(cri::FilesystemUsage {
                used_bytes: value(layer),
                ..Default::default()
            }),
            ..Default::default()
        };
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                metadata: Some(cri::PodSandboxMetadata {
                    uid: uid.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                memory: Some(memory),
                containers: vec![container],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn threshold(signal: Signal, text: &str) -> Threshold {
        Threshold {
            signal,
            least: crate::thresholds::Amount::Of(text.parse().unwrap()),
            grace: None,
            reclaim: None,
        }
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first_and_the_important_last() {
        let mut pods = vec![
            shown("important-above", 100, "10"),
            shown("above", 0, "10"),
            shown("far-above", 0, "10"),
            shown("within", -5, "1000"),
            shown("critical", CRITICAL, "1"),
        ];
        let mut own = shown("static", 0, "1");
        Arc::make_mut(&mut own.pod).source = "file";
        pods.push(own);
        pods.retain(may_go);
        let stats = [
            ("important-above", 500),
            ("above", 20),
            ("far-above", 400),
            ("within", 900),
            ("critical", 9999),
            ("static", 9999),
        ];
        let left = Left {
            available: 1 << 20,
            capacity: 1 << 30,
        };
        let look = Look {
            stats: stats
                .into_iter()
                .map(|(uid, bytes)| uses(uid, bytes, 0))
                .collect(),
            observed: BTreeMap::from([(Signal::Memory, left)]),
            ..Look::default()
        };
        let mut order = Vec::new();
        let threshold = threshold(Signal::Memory, "104857600");
        while let Some(next) = first(&threshold, &Thresholds::default(), &pods, &look) {
            if order.is_empty() {
                assert_eq!(
                    next.why.message,
                    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 1Mi. Container a was using 400, request is 10, \
                     has larger consumption of memory. "
                );
                assert_eq!(next.why.grace, Some(AT_ONCE));
            }
            pods.retain(|shown| shown.pod.uid != next.uid);
            order.push(next.uid);
        }
        assert_eq!(order, ["far-above", "above", "important-above", "within"]);
    }

    #[test]
    fn a_soft_threshold_gives_a_pod_the_time_that_pods_may_have() {
        let thresholds = Thresholds {
            max_pod_grace: Duration::from_secs(60),
            ..Thresholds::default()
        };
        let soft = Threshold {
            grace: Some(Duration::from_secs(90)),
            ..threshold(Signal::Pids, "10")
        };
        let evicted = first(&soft, &thresholds, &[shown("a", 0, "1")], &Look::default()).unwrap();
        assert_eq!(evicted.why.grace, Some(Duration::from_secs(60)));
    }

    #[test]
    fn where_images_lie_elsewhere_layers_count_there_and_files_here() {
        let shown = shown("a", 0, "1");
        let usage = Usage {
            own: 100,
            files: 7,
            ..Usage::default()
        };
        let mut look = Look {
            stats: vec![uses("a", 0, 1000)],
            usage: BTreeMap::from([("a".into(), usage)]),
            ..Look::default()
        };
        let used = |look: &Look| {
            [Signal::NodeFs, Signal::ImageFs, Signal::NodeInodes]
                .map(|it| look.used(it, &shown.pod))
        };
        assert_eq!(used(&look), [1100, 1100, 7]);
        look.is_split = true;
        assert_eq!(used(&look), [100, 1000, 7]);
    }

    #[test]
    fn who_has_more_on_the_disk_than_it_may_is_told_so_sec_kub_06() {
        let pod = pod(
            "  volumes: [{name: v, emptyDir: {sizeLimit: 1Ki}}, {name: free, emptyDir: {}}]\n  \
             containers: [{name: a, image: x, resources: {limits: {ephemeral-storage: 4Ki}}}, {name: b, image: x, resources: {limits: {ephemeral-storage: 4Ki}}}]",
        );
        assert!(is_limited(&pod));
        let usage = |volume: u64, free: u64, logs: u64| Usage {
            volumes: BTreeMap::from([("v".into(), volume), ("free".into(), free)]),
            logs: BTreeMap::from([("a".into(), logs)]),
            ..Usage::default()
        };
        let say = |usage: &Usage, layer: u64| {
            over_in_words(&pod, usage, Some(&uses("uid-1", 0, layer))).unwrap_or_default()
        };
        assert_eq!(say(&usage(1024, 0, 1024), 3072), "");
        assert_eq!(
            say(&usage(1025, 0, 0), 0),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". "
        );
        assert_eq!(
            say(&usage(1024, 4096, 1024), 3072),
            "Pod ephemeral local storage usage exceeds the total limit of containers 8Ki. "
        );
        assert_eq!(
            say(&usage(0, 0, 1025), 3072),
            "Container a exceeded its local ephemeral storage limit \"4Ki\". "
        );
        let cut = Usage {
            is_cut: true,
            ..Usage::default()
        };
        assert!(say(&cut, 0).contains("than are counted"));
    }
}
