//! Measures CRI servers from outside, in turns, so that what else the machine does falls on all of them alike.

mod report;
mod sandboxes;
mod weight;

use std::{
    collections::BTreeMap,
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
    request::{ContainerRequest, container, runtime_default},
};
use clap::Parser;

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

    fn figure(&mut self, figure: &'static str) -> &mut Vec<f64> {
        self.figures.entry(figure).or_default()
    }

    fn note(&mut self, figure: &'static str, begin: Instant) {
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        self.figure(figure).push(ms);
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
    let all = report::report(&servers);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}
