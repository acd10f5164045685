//! `berth`: what a person types on a node.

mod command;
mod error;
mod host;
mod node;
mod output;
mod rest;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use crate::{command::*, error::Error, node::Address, output::Format};

/// What blocks still when a command is over is not waited for any longer: a name that is looked up takes ten seconds where nobody answers.
const LINGER: Duration = Duration::from_secs(1);

/// Pods, containers and images on this node.
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100)]
pub struct Cli {
    /// The runtime's CRI socket
    #[arg(
        long,
        global = true,
        env = "BERTH_ENDPOINT",
        default_value = "unix:///run/berth/berth.sock"
    )]
    endpoint: Address,
    /// How answers are printed
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    /// List, look at, stop and remove pods
    #[command(subcommand)]
    Pod(pod::Pod),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Checkpoint(checkpoint::Checkpoint),
    /// Pull, list, import and remove images
    #[command(subcommand)]
    Image(image::Image),
    Audit(audit::Audit),
    Shim(Box<shim::Shim>),
    Up(Box<up::Up>),
    Join(join::Join),
    Down(down::Down),
    Status(status::Status),
    /// Make tokens by which machines join
    #[command(subcommand)]
    Token(token::Token),
    Kubelet(Box<kubelet::Kubelet>),
    Scheduler(scheduler::Scheduler),
    Controllers(controllers::Controllers),
    Completion(shell::Completion),
    Man(shell::Man),
    Version(version::Version),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up(up) => up.run(&cli.endpoint),
        command => run(cli.endpoint, cli.output, command),
    };
    match result {
        Ok(code) => code,
        // the reader of a pipe has gone: nobody is left to tell
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(endpoint: Address, output: Format, command: Command) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Invalid {
            what: "cannot begin".into(),
            why: error.to_string(),
        })?;
    let done = runtime.block_on(carry_out(endpoint, output, command));
    runtime.shutdown_timeout(LINGER);
    done
}

async fn carry_out(endpoint: Address, output: Format, command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Run(run) => run.run(&endpoint, output).await,
        Command::Pod(pod) => pod.run(&endpoint, output).await,
        Command::Logs(logs) => logs.run(&endpoint).await,
        Command::Exec(exec) => exec.run(&endpoint).await,
        Command::Checkpoint(checkpoint) => checkpoint.run(&endpoint).await,
        Command::Image(image) => image.run(&endpoint, output).await,
        Command::Join(join) => join.run(&endpoint).await,
        Command::Down(down) => down.run().await,
        Command::Status(status) => status.run(output).await,
        Command::Token(token) => token.run().await,
        Command::Audit(audit) => audit.run(output),
        Command::Shim(shim) => shim.run(output).await,
        Command::Kubelet(kubelet) => kubelet.run(&endpoint).await,
        Command::Scheduler(scheduler) => scheduler.run().await,
        Command::Controllers(controllers) => controllers.run().await,
        Command::Up(_) => unreachable!("it runs on threads of its own"),
        Command::Completion(completion) => completion.run(),
        Command::Man(man) => man.run(),
        Command::Version(version) => version.run(&endpoint, output).await,
    }
}
