//! `berth shim`: drives any shim v2 as containerd does, without a containerd and without a CRI: for the one who debugs a shim.
//!
//! ```text
//!   binary    the shim as a command: start, delete, -info          its answers are a stranger's: bounded, parsed, named
//!   task      the task service, v2 or v3, a deadline on each call
//!   place     <state>/tasks/NAMESPACE/ID/: the bundle that the shim gets, our record beside it
//!   life      a container's way: made (binary, Create), ended (Delete, Shutdown), given up (SIGKILL, `delete`)
//!   stdio     fifos and this program's own streams; terminal: raw mode and sizes
//!   events    the socket that the shim tells its events to
//! ```
//!
//! Invariant: what a shim was started for is on record before it is started; whatever it does then can be removed by that record.

mod binary;
mod bundle;
mod calls;
mod events;
mod exec;
mod life;
mod place;
mod run;
mod spec;
mod stdio;
mod task;
mod terminal;
mod views;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use crate::{error::Error, output::Format};

/// Drive a containerd shim (shim v2) by hand: no containerd, no CRI server
///
/// For debugging. It starts the shim as containerd does, makes containers from OCI bundles with it, and calls its task service (v2 or v3).
/// What a container was made with is kept below --state, so that later commands find its shim by the container's ID.
#[derive(Debug, Args)]
pub struct Shim {
    /// Directory for bundles, sockets and fifos; root's own
    #[arg(long, global = true, default_value = "/run/berth-shim")]
    state: PathBuf,
    /// The namespace that the shim is told
    #[arg(long, short, global = true, default_value = "default")]
    namespace: String,
    /// Seconds after which a shim that does not answer is said to hang
    #[arg(long, global = true, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Copy the shim's log to stderr, and ask it for more of it
    #[arg(long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Create(run::Create),
    Start(calls::Start),
    Exec(exec::Exec),
    Ps(calls::Ps),
    State(calls::State),
    Pids(calls::Pids),
    Stats(calls::Stats),
    Kill(calls::Kill),
    Pause(calls::Pause),
    Resume(calls::Resume),
    Update(calls::Update),
    Wait(calls::Wait),
    Delete(calls::Delete),
    Shutdown(calls::Shutdown),
    Events(events::Listen),
    Info(calls::Info),
    Spec(spec::Spec),
}

impl Shim {
    pub async fn run(self, format: Format) -> Result<ExitCode, Error> {
        // A shim is told paths in it, and has a working directory of its own.
        let state = std::path::absolute(&self.state).map_err(|source| Error::File {
            what: "find",
            path: self.state,
            source,
        })?;
        let place = place::Place {
            state,
            namespace: self.namespace,
            deadline: Duration::from_secs(self.timeout.into()),
            verbose: self.verbose,
        };
        match self.command {
            Command::Run(command) => command.run(&place, format).await,
            Command::Create(command) => command.run(&place).await,
            Command::Start(command) => command.run(&place).await,
            Command::Exec(command) => command.run(&place).await,
            Command::Ps(command) => command.run(&place, format).await,
            Command::State(command) => command.run(&place, format).await,
            Command::Pids(command) => command.run(&place, format).await,
            Command::Stats(command) => command.run(&place, format).await,
            Command::Kill(command) => command.run(&place).await,
            Command::Pause(command) => command.run(&place).await,
            Command::Resume(command) => command.run(&place).await,
            Command::Update(command) => command.run(&place).await,
            Command::Wait(command) => command.run(&place, format).await,
            Command::Delete(command) => command.run(&place, format).await,
            Command::Shutdown(command) => command.run(&place).await,
            Command::Events(command) => command.run(&place, format).await,
            Command::Info(command) => command.run(&place, format).await,
            Command::Spec(command) => command.run(),
        }
    }
}
