//! Measures the kubelet with our API server and runtime: from a pod's creation until the API says that it runs, what it weighs and uses while nothing
//! happens, what probes cost, and how long many pods take to be gone. All of it the real programs, in a machine of their own.

mod cluster;
mod report;
mod uses;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use berth_tests::{Node, Setup};
use clap::Parser;

use cluster::Cluster;
use report::Figures;

/// Of pods that are made one after another.
const ROUNDS: usize = 30;
/// … by kubectl.
const KUBECTL_ROUNDS: usize = 10;
const AT_ONCE: usize = 30;
/// A step up, and those whose probes are looked at.
const HUNDRED: usize = 100;
/// Until what was begun has come to rest.
const REST: Duration = Duration::from_secs(10);

/// Measures `berth kubelet` beside `berth up --server` and `berthd`.
#[derive(Debug, Parser)]
struct Arguments {
    /// Up to so many pods
    #[arg(long, default_value_t = 500)]
    pods: usize,
    /// How long the kubelet is watched while nothing happens, in seconds
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// The figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.pods > 0, "--pods: at least one");
    let setup = Setup {
        no_restart: true,
        ..Setup::default()
    };
    Node::test_with(setup, async |node| {
        let cluster = Cluster::start(node, arguments.pods).await?;
        let measured = measure(&cluster, &arguments).await;
        let ended = cluster.end().await;
        let figures = measured?;
        ended?;
        figures.print();
        if let Some(path) = &arguments.json {
            std::fs::write(path, serde_json::to_string_pretty(&figures.json())?)?;
        }
        Ok(())
    })
}

async fn measure(cluster: &Cluster, arguments: &Arguments) -> Result<Figures> {
    let idle = Duration::from_secs(arguments.idle_seconds);
    let mut figures = Figures::default();
    // the first has its image pulled, and fills caches
    cluster.create("first", cluster::SLEEPER).await?;
    cluster.delete_all().await?;
    tokio::time::sleep(REST).await;
    uses::over(cluster, idle, "idle", &mut figures).await?;

    for round in 0..ROUNDS.min(arguments.pods) {
        let begin = Instant::now();
        cluster
            .create(&format!("one-{round}"), cluster::SLEEPER)
            .await?;
        figures.note("create to Running, by the API", begin);
    }
    cluster.delete_all().await?;
    for round in 0..KUBECTL_ROUNDS.min(arguments.pods) {
        let begin = Instant::now();
        cluster.create_by_kubectl(&format!("ctl-{round}")).await?;
        figures.note("create to Running, by kubectl", begin);
    }
    cluster.delete_all().await?;

    let names = named("burst", 0..AT_ONCE.min(arguments.pods));
    let begin = Instant::now();
    cluster.create_all(&names, cluster::SLEEPER).await?;
    figures.note("30 at once: until all run", begin);
    cluster.delete_all().await?;

    let mut made = 0;
    while made < arguments.pods {
        let to = (made + HUNDRED).min(arguments.pods);
        let begin = Instant::now();
        cluster
            .create_all(&named("up", made..to), cluster::SLEEPER)
            .await?;
        figures.note("a hundred more: until all run", begin);
        if made == 0 {
            tokio::time::sleep(REST).await;
            uses::over(cluster, idle, "with 100 pods", &mut figures).await?;
        }
        made = to;
    }
    figures.tell("pods", made as f64);
    figures.tell("with all pods, MiB", uses::pss_mib(cluster));
    let begin = Instant::now();
    cluster.delete_all().await?;
    figures.note("all pods deleted at once: until all are gone", begin);

    // what is left of them is to be the allocator's, not ours
    tokio::time::sleep(REST).await;
    figures.tell("once they are gone, MiB", uses::pss_mib(cluster));
    let probed = named("probed", 0..HUNDRED.min(arguments.pods));
    cluster.create_all(&probed, cluster::PROBED).await?;
    tokio::time::sleep(REST).await;
    uses::over(cluster, idle, "with 100 pods' probes", &mut figures).await?;
    cluster.delete_all().await?;
    Ok(figures)
}

fn named(what: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{what}-{number}")).collect()
}
