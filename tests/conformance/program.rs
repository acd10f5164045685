//! `cri-conformance`: asks a CRI server, whoever's it is, what a client may expect of it.
//!
//! It wants to be on the same machine, as root: it reads log files and makes volumes. Exit code 1: a case has failed that is not
//! known to; 2: it could not ask.

use std::{
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Cri,
    conformance::{Case, GROUPS, Request},
    debian,
    registry::Registry,
};
use clap::{Parser, ValueEnum};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// A line a case, as it ends.
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Parser)]
#[command(about = "Asks a CRI server what its clients may expect of it, case by case")]
struct Cli {
    /// The runtime service, such as unix:///run/berth/berth.sock.
    #[arg(long, default_value = "unix:///run/berth/berth.sock")]
    endpoint: String,
    /// The image service, where it is another's.
    #[arg(long)]
    image_endpoint: Option<String>,
    /// Only cases with one of these in their names (may be repeated); a name is RPC/sentence.
    #[arg(long, value_name = "PART")]
    filter: Vec<String>,
    /// Not the cases with one of these in their names.
    #[arg(long, value_name = "PART")]
    skip: Vec<String>,
    /// Names the cases, and asks nothing.
    #[arg(long)]
    list: bool,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// The runtime handler of every pod.
    #[arg(long, default_value = "")]
    runtime_handler: String,
    /// An image with a shell and the usual commands, that can be pulled. Without it the program serves one itself, from a
    /// docker-registry on a free port of 127.0.0.1, made from Debian's busybox.
    #[arg(long)]
    image: Option<String>,
    /// Pods are on the host's network: the server has no CNI.
    #[arg(long)]
    host_network: bool,
    /// How many cases at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where logs and volumes of the cases go; the server must see the same files there.
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn chosen(cli: &Cli) -> Vec<Case> {
    let has = |case: &Case, parts: &[String]| parts.iter().any(|part| case.id().contains(part));
    let cases = GROUPS.iter().flat_map(|(_, cases)| cases.iter().copied());
    cases
        .filter(|case| cli.filter.is_empty() || has(case, &cli.filter))
        .filter(|case| !has(case, &cli.skip))
        .collect()
}

fn socket(endpoint: &str) -> Result<&Path> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    ensure!(path.starts_with('/'), "{endpoint} is no unix:///path");
    Ok(Path::new(path))
}

/// The image that the program serves itself, for as long as the registry lives.
fn serve(dir: &Path) -> Result<(Registry, String)> {
    let storage = debian::storage()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let registry = Registry::start(dir, &storage, &address, false)?;
    Ok((registry, format!("{address}/library/busybox:latest")))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let cases = chosen(cli);
    if cli.list {
        let mut out = std::io::stdout().lock();
        for case in cases {
            writeln!(out, "{}", case.id())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!cases.is_empty(), "no case has such a name: see --list");
    let dir = cli
        .dir
        .join(format!("cri-conformance-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let outcome = ask(cli, &cases, &dir);
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

#[tokio::main]
async fn ask(cli: &Cli, cases: &[Case], dir: &Path) -> Result<ExitCode> {
    let (_registry, image) = match &cli.image {
        Some(image) => (None, image.clone()),
        None => serve(&dir.join("registry")).map(|(registry, image)| (Some(registry), image))?,
    };
    let runtime = socket(&cli.endpoint)?;
    let mut cri = Cri::connect(runtime)
        .await
        .with_context(|| format!("connect to {}", cli.endpoint))?;
    if let Some(images) = &cli.image_endpoint {
        cri = cri.with_images_of(socket(images)?).await?;
    }
    let request = Request {
        cri,
        image,
        runtime_handler: cli.runtime_handler.clone(),
        dir: dir.to_owned(),
        host_network: cli.host_network,
        jobs: cli.jobs,
    };
    let table = matches!(cli.output, Output::Table);
    let told = |verdict: &berth_tests::conformance::report::Verdict| {
        if table {
            println!("{}", verdict.line());
        }
    };
    let report = request.run(cases, &told).await?;
    match cli.output {
        Output::Table => println!("\n{}", report.summary()),
        Output::Json => println!("{}", report.json()?),
        Output::Yaml => println!("{}", report.yaml()?),
    }
    Ok(ExitCode::from(u8::from(report.failed > 0)))
}
