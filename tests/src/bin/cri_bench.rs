//! Measures CRI servers from outside, in turns, so that what else the machine does falls on all of them alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::{
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};
use berth_tests::{
    Cri,
    process::{self, Process},
    request::{ContainerRequest, container, runtime_default},
};
use clap::Parser;
use serde_json::{Value, json};

/// Times pod starts, ExecSync and removal over the CRI, and weighs the processes behind it.
#[derive(Debug, Parser)]
struct Arguments {
    /// NAME=SOCKET=DAEMON_PID[=RUNTIME_HANDLER], once a server
    #[arg(long = "server", required = true)]
    servers: Vec<String>,
    /// Image with a shell and `sleep`; it is there already, or can be pulled
    #[arg(long)]
    image: String,
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Pods that stand still while memory is weighed
    #[arg(long, default_value_t = 10)]
    pods: usize,
    /// Leave out pods with their own network
    #[arg(long)]
    no_bridge: bool,
    /// Where logs go
    #[arg(long)]
    logs: PathBuf,
    /// The figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Calls at a time, where several are.
const IN_FLIGHT: usize = 10;

struct Server {
    name: String,
    handler: String,
    daemon: i32,
    cri: Cri,
    figures: BTreeMap<&'static str, Vec<f64>>,
    memory: BTreeMap<&'static str, f64>,
}

fn pod(logs: &Path, name: &str, network: NamespaceMode) -> PodSandboxConfig {
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption {
            network: network.into(),
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        }),
        seccomp: Some(runtime_default()),
        ..Default::default()
    };
    let uid = format!("{:032x}", rand::random::<u128>());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: "bench".into(),
            attempt: 0,
        }),
        log_directory: logs.join(uid).display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Server {
    async fn connect(words: &str) -> Result<Self> {
        let parts: Vec<&str> = words.split('=').collect();
        let (name, socket, pid, handler) = match parts[..] {
            [name, socket, pid] => (name, socket, pid, ""),
            [name, socket, pid, handler] => (name, socket, pid, handler),
            _ => bail!("--server {words}: NAME=SOCKET=DAEMON_PID[=RUNTIME_HANDLER]"),
        };
        let cri = Cri::connect(Path::new(socket))
            .await
            .with_context(|| format!("connect to {socket}"))?;
        Ok(Self {
            name: name.into(),
            handler: handler.into(),
            daemon: pid.parse()?,
            cri,
            figures: BTreeMap::new(),
            memory: BTreeMap::new(),
        })
    }

    /// RunPodSandbox, CreateContainer, StartContainer.
    async fn up(&self, arguments: &Arguments, network: NamespaceMode) -> Result<(String, String)> {
        let config = pod(&arguments.logs, "pod", network);
        let asked = container(
            "app",
            &arguments.image,
            &["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"],
        )
        .security(|security: &mut LinuxContainerSecurityContext| {
            security.namespace_options.get_or_insert_default().network = network.into()
        });
        std::fs::create_dir_all(Path::new(&config.log_directory).join("app"))?;
        let id = self
            .cri
            .run_pod_with(&config, &self.handler)
            .await
            .with_context(|| format!("{}: RunPodSandbox", self.name))?;
        let container = self
            .cri
            .create(&id, &asked, &config)
            .await
            .with_context(|| format!("{}: CreateContainer", self.name))?;
        self.cri
            .start(&container)
            .await
            .with_context(|| format!("{}: StartContainer", self.name))?;
        Ok((id, container))
    }

    async fn down(&self, pod: &str, container: &str) -> Result<()> {
        self.cri.stop(container, 10).await?;
        self.cri.remove(container).await?;
        self.cri.stop_pod(pod).await?;
        Ok(self.cri.remove_pod(pod).await?)
    }

    fn note(&mut self, figure: &'static str, begin: Instant) {
        self.figures
            .entry(figure)
            .or_default()
            .push(begin.elapsed().as_secs_f64() * 1000.0);
    }

    async fn round(&mut self, arguments: &Arguments, network: NamespaceMode) -> Result<()> {
        let host = network == NamespaceMode::Node;
        let begin = Instant::now();
        let (pod, container) = self.up(arguments, network).await?;
        self.note(
            if host {
                "pod up, host network"
            } else {
                "pod up, bridge"
            },
            begin,
        );
        // The shell of the container sets its trap.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if host {
            let begin = Instant::now();
            self.cri.exec(&container, &["true"]).await?;
            self.note("ExecSync", begin);
        }
        let begin = Instant::now();
        self.down(&pod, &container).await?;
        self.note(
            if host {
                "stop + remove, host network"
            } else {
                "stop + remove, bridge"
            },
            begin,
        );
        Ok(())
    }

    /// RunPodSandbox alone, with a network of its own: one after another, and [`IN_FLIGHT`] at a time.
    async fn sandboxes(&mut self, arguments: &Arguments) -> Result<()> {
        let mut made = Vec::new();
        for _ in 0..arguments.rounds {
            let config = pod(&arguments.logs, "sandbox", NamespaceMode::Pod);
            let begin = Instant::now();
            made.push(self.cri.run_pod_with(&config, &self.handler).await?);
            self.note("RunPodSandbox, bridge", begin);
            if let Some(last) = made.last()
                && let Some(ms) = self.network_ms(last).await?
            {
                let figures = self.figures.entry("its network's share").or_default();
                figures.push(ms);
            }
        }
        self.remove_all(std::mem::take(&mut made)).await?;

        let begin = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..arguments.rounds {
            if running.len() == IN_FLIGHT {
                made.push(self.joined(running.join_next().await)?);
            }
            let (cri, handler) = (self.cri.clone(), self.handler.clone());
            let config = pod(&arguments.logs, "sandbox", NamespaceMode::Pod);
            running.spawn(async move {
                let begin = Instant::now();
                let id = cri.run_pod_with(&config, &handler).await?;
                anyhow::Ok((id, begin.elapsed().as_secs_f64() * 1000.0))
            });
        }
        while !running.is_empty() {
            made.push(self.joined(running.join_next().await)?);
        }
        let each = begin.elapsed().as_secs_f64() * 1000.0 / arguments.rounds as f64;
        let figures = self.figures.entry("a pod of 10 in flight").or_default();
        figures.push(each);
        self.remove_all(made).await
    }

    fn joined(
        &mut self,
        ended: Option<Result<Result<(String, f64)>, tokio::task::JoinError>>,
    ) -> Result<String> {
        let (id, ms) = ended.context("nothing was under way")???;
        let figures = self.figures.entry("RunPodSandbox, 10 in flight");
        figures.or_default().push(ms);
        Ok(id)
    }

    async fn remove_all(&self, pods: Vec<String>) -> Result<()> {
        for pod in pods {
            self.cri.stop_pod(&pod).await?;
            self.cri.remove_pod(&pod).await?;
        }
        Ok(())
    }

    /// What the server itself says of its phases, where it does.
    async fn network_ms(&self, pod: &str) -> Result<Option<f64>> {
        let status = self.cri.pod_status_verbose(pod, true).await?;
        let Some(text) = status.info.get("timeline") else {
            return Ok(None);
        };
        let timeline: Value = serde_json::from_str(text)?;
        let ms = |phase: &str| timeline[phase].as_f64();
        Ok(ms("netns").zip(ms("network")).map(|(a, b)| a + b))
    }

    async fn weigh(&mut self, arguments: &Arguments) -> Result<()> {
        self.memory
            .insert("daemon, MiB", pss_kib(self.daemon) / 1024.0);
        // Helpers of earlier pods are not these pods' weight.
        let before: BTreeSet<i32> = process::all().iter().map(|process| process.pid).collect();
        let mut made = Vec::new();
        for _ in 0..arguments.pods {
            made.push(self.up(arguments, NamespaceMode::Node).await?);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ids: Vec<&String> = made.iter().map(|(_, container)| container).collect();
        let of_container = |process: &Process| {
            let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid))
                .unwrap_or_default();
            ids.iter().any(|id| cgroups.contains(id.as_str()))
        };
        let mine = std::process::id() as i32;
        let new: Vec<Process> = process::all()
            .into_iter()
            .filter(|process| {
                !before.contains(&process.pid) && process.pid != mine && !of_container(process)
            })
            .collect();
        let helpers: Vec<&Process> = new
            .iter()
            .filter(|process| process.exe().is_some())
            .collect();
        let total: f64 = helpers.iter().map(|process| pss_kib(process.pid)).sum();
        self.memory
            .insert("a pod, MiB", total / 1024.0 / arguments.pods as f64);
        self.memory.insert(
            "processes a pod",
            helpers.len() as f64 / arguments.pods as f64,
        );
        self.memory
            .insert("daemon with the pods, MiB", pss_kib(self.daemon) / 1024.0);
        for (pod, container) in &made {
            self.down(pod, container).await?;
        }
        Ok(())
    }
}

/// Proportional set size of a process.
fn pss_kib(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

/// The value below which `part` of them are.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn report(servers: &[Server]) -> Value {
    let mut all = json!({});
    println!(
        "{:<30} {:<20} {:>8} {:>8} {:>8}   of the first",
        "ms", "", "median", "p95", "p99"
    );
    for figure in [
        "pod up, host network",
        "pod up, bridge",
        "ExecSync",
        "stop + remove, host network",
        "stop + remove, bridge",
        "RunPodSandbox, bridge",
        "its network's share",
        "RunPodSandbox, 10 in flight",
        "a pod of 10 in flight",
    ] {
        let of_first = servers[0]
            .figures
            .get(figure)
            .map(|values| quantile(values, 0.5));
        for server in servers {
            let Some(values) = server.figures.get(figure) else {
                continue;
            };
            let [median, p95, p99] = [0.5, 0.95, 0.99].map(|part| quantile(values, part));
            let ratio = of_first.map(|first| median / first).unwrap_or(f64::NAN);
            println!(
                "{figure:<30} {:<20} {median:>8.1} {p95:>8.1} {p99:>8.1}   {ratio:>5.2}",
                server.name
            );
            all[&server.name][figure] =
                json!({"median_ms": median, "p95_ms": p95, "p99_ms": p99, "runs": values.len()});
        }
    }
    println!();
    for figure in [
        "daemon, MiB",
        "daemon with the pods, MiB",
        "a pod, MiB",
        "processes a pod",
    ] {
        for server in servers {
            let Some(value) = server.memory.get(figure) else {
                continue;
            };
            println!(
                "{:<30} {:<20} {value:>8.2}            PSS",
                figure, server.name
            );
            all[&server.name][figure] = json!(value);
        }
    }
    all
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut servers = Vec::new();
    for words in &arguments.servers {
        let server = Server::connect(words).await?;
        if server.cri.image(&arguments.image).await?.is_none() {
            server
                .cri
                .pull(&arguments.image)
                .await
                .with_context(|| format!("{}: pull {}", server.name, arguments.image))?;
        }
        servers.push(server);
    }
    let networks: &[NamespaceMode] = if arguments.no_bridge {
        &[NamespaceMode::Node]
    } else {
        &[NamespaceMode::Node, NamespaceMode::Pod]
    };
    // The first of each kind fills caches, and shows who can't run here at all.
    let mut able = Vec::new();
    for mut server in servers {
        let mut outcome = Ok(());
        for network in networks {
            outcome = outcome.and(server.round(&arguments, *network).await);
        }
        server.figures.clear();
        match outcome {
            Ok(()) => able.push(server),
            Err(error) => eprintln!("left out: {error:#}"),
        }
    }
    let mut servers = able;
    ensure!(!servers.is_empty(), "no server runs pods");
    for network in networks {
        for _ in 0..arguments.rounds {
            for server in &mut servers {
                server.round(&arguments, *network).await?;
            }
        }
    }
    for server in &mut servers {
        if !arguments.no_bridge {
            server.sandboxes(&arguments).await?;
        }
        server.weigh(&arguments).await?;
    }
    let all = report(&servers);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}
