//! Measures shims under one containerd, in turns, so that what else the machine does falls on all of them alike.

mod execs;
mod report;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::process::{self, pss_kib};
use clap::Parser;
use serde_json::{Value, json};

use crate::{
    execs::Shim,
    tasks::{Containerd, Kind},
};

/// Execs before the first weighing: what a shim takes once and keeps is not growth.
const WARM_UP: usize = 200;
/// Until what a shim has given back is back.
const SETTLE: Duration = Duration::from_secs(2);

/// Times containers and pods by containerd's task service, and weighs their shims.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// NAME=RUNTIME[=BINARY], once a kind; the first is compared with the others
    #[arg(long = "kind", required = true)]
    kinds: Vec<String>,
    /// containerd's socket
    #[arg(long)]
    socket: PathBuf,
    /// Its state directory
    #[arg(long)]
    state: PathBuf,
    /// A root file system with `sleep` and `true`
    #[arg(long)]
    root: PathBuf,
    /// A config.json
    #[arg(long)]
    spec: PathBuf,
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Pods of each kind that stand still while they are weighed
    #[arg(long, default_value_t = 10)]
    pods: usize,
    /// Execs in one container of the first kind
    #[arg(long, default_value_t = 100_000)]
    execs: usize,
    /// … and of each other: theirs take longer
    #[arg(long, default_value_t = 10_000)]
    other_execs: usize,
    /// Execs at a time
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// What the figures are of, for the JSON
    #[arg(long, default_value = "release")]
    build: String,
    /// The figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured of one kind.
#[derive(Debug)]
pub struct Measured {
    pub kind: Kind,
    /// Milliseconds, by figure.
    pub times: BTreeMap<&'static str, Vec<f64>>,
    /// By figure.
    pub values: BTreeMap<&'static str, f64>,
}

impl Measured {
    fn note(&mut self, figure: &'static str, begin: Instant) {
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        self.times.entry(figure).or_default().push(ms);
    }
}

/// One container of the pod `group`.
struct Made {
    id: String,
}

struct Bench {
    arguments: Arguments,
    containerd: Containerd,
    spec: Value,
    number: u32,
}

impl Bench {
    fn next(&mut self, name: &str) -> String {
        self.number += 1;
        format!("{name}-{}-{}", std::process::id(), self.number)
    }

    /// Its record in containerd: not what is measured.
    async fn add(&mut self, kind: &Kind, group: Option<&str>) -> Result<Made> {
        let id = match group {
            Some(_) => self.next("member"),
            None => self.next("shim"),
        };
        let mut spec = self.spec.clone();
        spec["root"] = json!({"path": "rootfs", "readonly": true});
        spec["linux"]["cgroupsPath"] = json!(format!("/berth-bench-shims/{id}"));
        let (group, role) = match group {
            Some(group) => (group, "container"),
            None => (id.as_str(), "sandbox"),
        };
        spec["annotations"] = json!({
            "io.kubernetes.cri.sandbox-id": group,
            "io.kubernetes.cri.container-type": role,
        });
        self.containerd.add(&id, kind, &spec).await?;
        Ok(Made { id })
    }

    async fn up(&self, made: &Made) -> Result<()> {
        self.containerd
            .create(&made.id, &self.arguments.root)
            .await?;
        self.containerd.start(&made.id).await
    }

    async fn down(&self, made: &Made) -> Result<()> {
        self.containerd.kill(&made.id).await?;
        self.containerd.delete(&made.id).await
    }

    async fn one(&mut self, measured: &mut Measured) -> Result<()> {
        let made = self.add(&measured.kind, None).await?;
        let all = Instant::now();
        let begin = Instant::now();
        self.containerd
            .create(&made.id, &self.arguments.root)
            .await?;
        measured.note("create", begin);
        let begin = Instant::now();
        self.containerd.start(&made.id).await?;
        measured.note("start", begin);
        let begin = Instant::now();
        self.containerd.kill(&made.id).await?;
        measured.note("kill and its end", begin);
        let begin = Instant::now();
        self.containerd.delete(&made.id).await?;
        measured.note("delete", begin);
        measured.note(report::WHOLE, all);
        self.containerd.forget(&made.id).await
    }

    /// A sandbox's container and three more in its shim.
    async fn pod(&mut self, kind: &Kind) -> Result<Vec<Made>> {
        let mut made = vec![self.add(kind, None).await?];
        for _ in 0..3 {
            let group = made[0].id.clone();
            made.push(self.add(kind, Some(&group)).await?);
        }
        Ok(made)
    }

    async fn pod_of_three(&mut self, measured: &mut Measured) -> Result<()> {
        let pod = self.pod(&measured.kind).await?;
        let begin = Instant::now();
        for made in &pod {
            self.up(made).await?;
        }
        measured.note("pod of three, up", begin);
        for made in pod.iter().rev() {
            self.down(made).await?;
        }
        measured.note(report::POD, begin);
        self.forget(pod).await
    }

    async fn forget(&self, all: Vec<Made>) -> Result<()> {
        for made in all {
            self.containerd.forget(&made.id).await?;
        }
        Ok(())
    }

    async fn shims(&self, of: &[Made]) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for made in of {
            pids.push(
                Shim::of(&self.arguments.state, &made.id)
                    .await?
                    .pid()
                    .await?,
            );
        }
        Ok(pids)
    }

    /// The weight of shims with one container each, and then with a sandbox and three.
    async fn weigh(&mut self, measured: &mut Measured) -> Result<()> {
        let kind = measured.kind.clone();
        let (mut sandboxes, mut members) = (Vec::new(), Vec::new());
        for _ in 0..self.arguments.pods {
            let made = self.add(&kind, None).await?;
            self.up(&made).await?;
            sandboxes.push(made);
        }
        let shims = self.shims(&sandboxes).await?;
        tokio::time::sleep(SETTLE).await;
        let count = self.arguments.pods as f64;
        let (mib, processes) = weight(&shims);
        measured
            .values
            .insert("shim, one container, MiB", mib / count);
        measured
            .values
            .insert("processes a shim", processes / count);
        for sandbox in &sandboxes {
            for _ in 0..3 {
                let made = self.add(&kind, Some(&sandbox.id)).await?;
                self.up(&made).await?;
                members.push(made);
            }
        }
        tokio::time::sleep(SETTLE).await;
        let (mib, _) = weight(&shims);
        measured.values.insert("shim, three more, MiB", mib / count);
        members.extend(sandboxes);
        for made in &members {
            self.down(made).await?;
        }
        self.forget(members).await
    }

    async fn execs(&mut self, measured: &mut Measured, count: usize) -> Result<()> {
        let made = self.add(&measured.kind, None).await?;
        self.up(&made).await?;
        let shim = Shim::of(&self.arguments.state, &made.id).await?;
        let pid = shim.pid().await?;
        let mut process = self.spec["process"].clone();
        process["args"] = json!(["true"]);
        process["terminal"] = json!(false);
        let process = process.to_string().into_bytes();
        let in_flight = self.arguments.in_flight;
        shim.execs(&process, WARM_UP, in_flight).await?;
        tokio::time::sleep(SETTLE).await;
        let before = Weighed::of(pid);
        println!("{}: before its execs: {before}", measured.kind.name);
        let mut after = before;
        let (mut done, mut seconds) = (0, 0.0);
        // What grows is seen on its way, too.
        for until in [count / 10, count / 2, count] {
            let begin = Instant::now();
            shim.execs(&process, until - done, in_flight).await?;
            seconds += begin.elapsed().as_secs_f64();
            done = until;
            tokio::time::sleep(SETTLE).await;
            after = Weighed::of(pid);
            println!("{}: after {done} execs: {after}", measured.kind.name);
        }
        for (figure, value) in [
            ("alone, before its execs, MiB", before.mib),
            ("alone, after its execs, MiB", after.mib),
            (
                "growth by its execs, KiB",
                (after.mib - before.mib) * 1024.0,
            ),
            ("execs", count as f64),
            ("execs a second", count as f64 / seconds),
            (
                "more open files",
                after.open_files as f64 - before.open_files as f64,
            ),
            ("more heap, KiB", after.heap_kib - before.heap_kib),
            ("more threads", after.threads as f64 - before.threads as f64),
        ] {
            measured.values.insert(figure, value);
        }
        self.down(&made).await?;
        self.containerd.forget(&made.id).await
    }
}

/// Of shims and what they have forked of themselves, but not of containers: MiB, and how many processes.
fn weight(shims: &[i32]) -> (f64, f64) {
    let roots: BTreeSet<i32> = shims.iter().copied().collect();
    let helpers = process::descendants(&roots).into_iter().filter(|process| {
        let cgroups =
            fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        process.exe().is_some() && !cgroups.contains("/berth-bench-shims/")
    });
    let pids: BTreeSet<i32> = roots
        .iter()
        .copied()
        .chain(helpers.map(|process| process.pid))
        .collect();
    let kib: f64 = pids.iter().map(|pid| pss_kib(*pid)).sum();
    (kib / 1024.0, pids.len() as f64)
}

/// One shim, alone.
#[derive(Debug, Clone, Copy)]
struct Weighed {
    /// PSS, its helpers' with it
    mib: f64,
    /// What malloc has of the kernel, resident
    heap_kib: f64,
    open_files: usize,
    threads: usize,
    /// Its own and its helpers' processes, none of a container
    processes: f64,
}

impl Weighed {
    fn of(pid: i32) -> Self {
        let (mib, processes) = weight(&[pid]);
        let count =
            |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        Self {
            mib,
            heap_kib: heap_kib(pid),
            open_files: count("fd"),
            threads: count("task"),
            processes,
        }
    }
}

impl std::fmt::Display for Weighed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} KiB PSS, {:.0} KiB of heap, {} open files, {} threads, {} processes",
            self.mib * 1024.0,
            self.heap_kib,
            self.open_files,
            self.threads,
            self.processes
        )
    }
}

/// What is resident of the mapping that the kernel calls `[heap]`.
fn heap_kib(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let rss = text
        .lines()
        .skip_while(|line| !line.ends_with("[heap]"))
        .find_map(|line| line.strip_prefix("Rss:"));
    rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

fn parse(words: &str) -> Result<Kind> {
    let parts: Vec<&str> = words.split('=').collect();
    let (name, runtime, binary) = match parts[..] {
        [name, runtime] => (name, runtime, ""),
        [name, runtime, binary] => (name, runtime, binary),
        _ => bail!("--kind {words}: NAME=RUNTIME[=BINARY]"),
    };
    Ok(Kind {
        name: name.into(),
        runtime: runtime.into(),
        binary: binary.into(),
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let text = fs::read_to_string(&arguments.spec)
        .with_context(|| format!("read {}", arguments.spec.display()))?;
    let mut bench = Bench {
        containerd: Containerd::connect(&arguments.socket).await?,
        spec: serde_json::from_str(&text)?,
        arguments,
        number: 0,
    };
    let mut all = Vec::new();
    for words in bench.arguments.kinds.clone() {
        let mut measured = Measured {
            kind: parse(&words)?,
            times: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        // The first of each kind fills caches, and shows who can't run here at all.
        match bench.one(&mut measured).await {
            Ok(()) => {
                measured.times.clear();
                all.push(measured);
            }
            Err(error) => eprintln!("left out: {}: {error:#}", measured.kind.name),
        }
    }
    ensure!(!all.is_empty(), "no kind of shim runs containers");
    for _ in 0..bench.arguments.rounds {
        for measured in &mut all {
            bench.one(measured).await?;
        }
    }
    for _ in 0..bench.arguments.rounds {
        for measured in &mut all {
            bench.pod_of_three(measured).await?;
        }
    }
    for measured in &mut all {
        bench.weigh(measured).await?;
    }
    for (at, measured) in all.iter_mut().enumerate() {
        let count = match at {
            0 => bench.arguments.execs,
            _ => bench.arguments.other_execs,
        };
        if count > 0 {
            bench.execs(measured, count).await?;
        }
    }
    let figures = report::report(&all, &bench.arguments.build);
    if let Some(path) = &bench.arguments.json {
        fs::write(path, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}
