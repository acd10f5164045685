//! One answer: the counters, and what is read at the moment of asking.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_proto::cri::ContainerState;
use berth_state::Object;

use super::{Timed, code_name, text::Text};
use crate::{error::Error, pod::registry::Registry};

/// The audit reads the whole kernel side and, where it finds something, looks for three seconds: in the background, and at most so often.
const AUDIT_EVERY: Duration = Duration::from_secs(60);
/// What /proc counts time in, on every architecture that Berth runs on: a part of the kernel's interface, not its own clock.
const USER_HZ: f64 = 100.0;
/// How a pod's driver calls its states.
const POD_STATES: [&str; 6] = [
    "creating", "ready", "broken", "stopping", "stopped", "removing",
];

/// What answers are gathered from.
#[derive(Debug, Clone)]
pub struct Source {
    pub registry: Arc<Registry>,
    pub streams: Arc<berth_stream::Server>,
    audit: Arc<Audit>,
}

#[derive(Debug, Default)]
struct Audit {
    running: AtomicBool,
    last: Mutex<Option<Audited>>,
}

#[derive(Debug, Clone)]
struct Audited {
    at: Instant,
    unix_seconds: u64,
    leaked: usize,
    missing: usize,
}

impl Source {
    pub fn new(registry: Arc<Registry>, streams: Arc<berth_stream::Server>) -> Self {
        Self {
            registry,
            streams,
            audit: Arc::default(),
        }
    }

    /// The whole answer. Reads the ledger's files: off the event loop.
    pub async fn gather(self) -> Result<String, Error> {
        self.audit_when_due();
        tokio::task::spawn_blocking(move || {
            let mut text = Text::default();
            self.counters(&mut text);
            self.pods(&mut text);
            self.ledger(&mut text);
            self.audited(&mut text);
            process(&mut text);
            text.into_string()
        })
        .await
        .map_err(|_| Error::Panicked("metrics"))
    }

    fn counters(&self, text: &mut Text) {
        let node = &self.registry.node;
        let metrics = &node.metrics;
        text.family("berth_build_info", "gauge", "The daemon's version.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.family(
            "berth_rpc_duration_seconds",
            "histogram",
            "RPCs answered, by method and code; of streams, until they began.",
        );
        for (method, code, histogram) in metrics.rpcs.all() {
            text.histogram(&[("method", method), ("code", code_name(code))], &histogram);
        }
        text.family("berth_rpcs_in_flight", "gauge", "RPCs under way.")
            .sample(&[], metrics.rpcs_in_flight.get());
        for (name, help, timed) in [
            (
                "berth_image_pull_duration_seconds",
                "Pulls of images, by outcome.",
                &metrics.image_pulls,
            ),
            (
                "berth_shim_start_duration_seconds",
                "Starts of shims, by outcome.",
                &metrics.shim_starts,
            ),
            (
                "berth_network_attach_duration_seconds",
                "Attachments of pods to their networks (CNI ADD, or built-in), by outcome.",
                &metrics.network_attaches,
            ),
            (
                "berth_network_detach_duration_seconds",
                "Detachments of pods from their networks (CNI DEL, or built-in), by outcome.",
                &metrics.network_detaches,
            ),
        ] {
            both(text, name, help, timed);
        }
        text.family(
            "berth_image_pull_bytes_total",
            "counter",
            "Bytes of layers that came from registries.",
        )
        .sample(&[], berth_image::downloaded_bytes());
        text.family("berth_images", "gauge", "Images that are here.")
            .sample(&[], node.images.list().len());
        text.family(
            "berth_stream_sessions",
            "gauge",
            "Connections of exec, attach and port-forward.",
        )
        .sample(&[], self.streams.sessions());
        text.family(
            "berth_event_subscribers",
            "gauge",
            "Clients that hear of container events.",
        )
        .sample(&[], self.registry.happenings.subscribers());
        text.family(
            "berth_event_subscribers_lagged_total",
            "counter",
            "Clients of container events that were let go because they did not keep up.",
        )
        .sample(&[], self.registry.happenings.lagged());
        text.family(
            "berth_tracing_spans_exported_total",
            "counter",
            "Spans that the tracing endpoint has taken.",
        )
        .sample(&[], metrics.spans_exported.get());
        text.family(
            "berth_tracing_spans_dropped_total",
            "counter",
            "Spans that were lost: the endpoint was down, slow or refused them.",
        )
        .sample(&[], metrics.spans_dropped.get());
    }

    fn pods(&self, text: &mut Text) {
        let mut pods = BTreeMap::from(POD_STATES.map(|state| (state, 0)));
        let mut containers = BTreeMap::from(["created", "exited", "running"].map(|s| (s, 0)));
        for view in self.registry.every_view() {
            *pods.entry(view.state).or_default() += 1;
            for container in &view.containers {
                let state = match container.state {
                    ContainerState::ContainerRunning => "running",
                    ContainerState::ContainerExited => "exited",
                    _ => "created",
                };
                *containers.entry(state).or_default() += 1;
            }
        }
        text.family("berth_pods", "gauge", "Pods, by state.");
        for (state, count) in pods {
            text.sample(&[("state", state)], count);
        }
        text.family("berth_containers", "gauge", "Containers, by state.");
        for (state, count) in containers {
            text.sample(&[("state", state)], count);
        }
    }

    /// An owner whose entries can't be read is left out: what matters of it the audit tells.
    fn ledger(&self, text: &mut Text) {
        let ledger = &self.registry.node.ledger;
        let attached: HashSet<String> = self
            .registry
            .every_view()
            .iter()
            .filter(|view| view.ready || view.state == "creating")
            .map(|view| view.pod.id.clone())
            .collect();
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        let mut owed = 0;
        for owner in ledger.owners().unwrap_or_default() {
            for object in ledger.outstanding(&owner).unwrap_or_default() {
                *kinds.entry(object.kind()).or_default() += 1;
                owed += u64::from(matches!(object, Object::Cni(_)) && !attached.contains(&owner));
            }
        }
        text.family(
            "berth_ledger_objects",
            "gauge",
            "Kernel objects that the ledger has, by kind.",
        );
        for (kind, count) in kinds {
            text.sample(&[("kind", kind)], count);
        }
        text.family(
            "berth_network_owed_dels",
            "gauge",
            "Pods that are not ready and whose CNI DEL has not succeeded yet.",
        )
        .sample(&[], owed);
    }

    fn audited(&self, text: &mut Text) {
        let last = self.audit.last.lock();
        let Some(audited) = last.unwrap_or_else(PoisonError::into_inner).clone() else {
            return;
        };
        text.family(
            "berth_audit_findings",
            "gauge",
            "Differences between ledger and kernel that the last audit found.",
        )
        .sample(&[("difference", "leaked")], audited.leaked)
        .sample(&[("difference", "missing")], audited.missing);
        text.family(
            "berth_audit_timestamp_seconds",
            "gauge",
            "Unix time of the last audit.",
        )
        .sample(&[], audited.unix_seconds);
    }

    /// Begins an audit where the last one is old. Its outcome is in a later answer.
    fn audit_when_due(&self) {
        let audit = self.audit.clone();
        {
            let last = audit.last.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = last.as_ref().is_some_and(|l| l.at.elapsed() < AUDIT_EVERY);
            if fresh || audit.running.swap(true, Ordering::Relaxed) {
                return;
            }
        }
        let config = &self.registry.node.config;
        let (root, state) = (config.root.clone(), config.state.clone());
        tokio::task::spawn_blocking(move || {
            match berth_state::audit::audit(&root, &state) {
                Ok(findings) => {
                    let leaked = findings.iter().filter(|f| f.difference == "leaked").count();
                    let audited = Audited {
                        at: Instant::now(),
                        unix_seconds: SystemTime::now()
                            .duration_since(UNIX_EPOCH)
                            .map_or(0, |d| d.as_secs()),
                        leaked,
                        missing: findings.len() - leaked,
                    };
                    *audit.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(audited);
                }
                Err(e) => tracing::warn!("audit: {e}"),
            }
            audit.running.store(false, Ordering::Relaxed);
        });
    }
}

fn both(text: &mut Text, name: &'static str, help: &str, timed: &Timed) {
    text.family(name, "histogram", help)
        .histogram(&[("outcome", "succeeded")], &timed.succeeded)
        .histogram(&[("outcome", "failed")], &timed.failed);
}

/// What every Prometheus client tells of its process, under the same names.
fn process(text: &mut Text) {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let stat = read("stat");
    // The name of the program may hold anything, and ends with the last parenthesis.
    let fields: Vec<u64> = stat.rsplit_once(')').map_or(vec![], |(_, rest)| {
        rest.split_whitespace()
            .map(|f| f.parse().unwrap_or(0))
            .collect()
    });
    // By proc(5)'s numbers, of which the third is the first here.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let cpu = (field(14) + field(15)) as f64 / USER_HZ;
    text.family(
        "process_cpu_seconds_total",
        "counter",
        "CPU time used, in seconds.",
    )
    .sample(&[], cpu);
    text.family("process_threads", "gauge", "Threads.")
        .sample(&[], field(20));
    text.family("process_virtual_memory_bytes", "gauge", "Address space.")
        .sample(&[], field(23));
    let status = read("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|kib| kib.split_whitespace().next()?.parse().ok());
    let resident: u64 = resident.unwrap_or(0);
    text.family("process_resident_memory_bytes", "gauge", "Memory in use.")
        .sample(&[], resident * 1024);
    let kernel = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = kernel.lines().find_map(|line| line.strip_prefix("btime "));
    let boot: f64 = boot
        .and_then(|time| time.trim().parse().ok())
        .unwrap_or(0.0);
    text.family(
        "process_start_time_seconds",
        "gauge",
        "Unix time of its start.",
    )
    .sample(&[], boot + field(22) as f64 / USER_HZ);
    let open = fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count().saturating_sub(1));
    text.family("process_open_fds", "gauge", "Open file descriptors.")
        .sample(&[], open);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    text.family(
        "process_max_fds",
        "gauge",
        "File descriptors that there may be.",
    )
    .sample(&[], limit.map_or(-1.0, |limit| limit as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_of_itself_what_the_kernel_says() {
        let mut text = Text::default();
        process(&mut text);
        let text = text.into_string();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} in {text}"))
                .parse()
                .unwrap()
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!((0.0..86_400.0).contains(&(now - value("process_start_time_seconds") + 1.0)));
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0);
        assert!(value("process_open_fds") <= value("process_max_fds"));
    }
}
