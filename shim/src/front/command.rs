//! The other shim as a command: `start` leaves it serving, `delete` cleans up after a dead one.

use std::{
    cell::RefCell,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use berth_engine::Error;
use berth_shim_client::{Action, Ended, Failure, Patience, action, bootstrap::NEWEST};
use tokio::runtime::{Builder, Handle};

use super::client::Name;
use crate::reaper::Reaper;

/// `start` forks, listens and answers: milliseconds, or seconds where a virtual machine boots.
pub const START: Duration = Duration::from_secs(20);
/// `delete` kills and unmounts what one container has left.
pub const DELETE: Duration = Duration::from_secs(10);

/// What every action of one pod's shim is called with.
#[derive(Debug, Clone)]
pub struct Calling {
    pub name: Name,
    pub program: PathBuf,
    pub namespace: String,
    /// Our own socket: where events go. In the environment of all that the shim starts, too, which is how that is found again.
    pub events: PathBuf,
    pub publish_binary: String,
}

/// Who reaps this process's children, where that is not the caller.
#[derive(Debug, Clone, Copy)]
pub struct Reaping<'a> {
    pub reaper: &'a Arc<Reaper>,
    pub runtime: &'a Handle,
}

impl Calling {
    /// Runs `action` for `id` in its bundle, on a thread that may block. Without `reaping` this thread reaps.
    pub fn run(
        &self,
        name: &'static str,
        id: &str,
        bundle: &Path,
        (stdin, deadline): (&[u8], Duration),
        reaping: Option<Reaping<'_>>,
    ) -> Result<Ended, Error> {
        let action = Action {
            program: self.program.clone(),
            namespace: self.namespace.clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            address: self.events.clone(),
            events: Some(self.events.clone()),
            publish_binary: self.publish_binary.clone(),
            max_version: NEWEST,
            ..Action::default()
        };
        let command = action.command(name);
        let ended = match reaping {
            Some(by) => by.run(command, stdin, deadline),
            None => Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .map_err(|error| Failure::Failed(format!("start a runtime: {error}")))
                .and_then(|own| {
                    own.block_on(action::run(command, stdin, deadline, Patience::Exit))
                }),
        };
        ended.map_err(|failure| self.failed(name, failure))
    }

    pub fn failed(&self, name: &str, failure: Failure) -> Error {
        self.name
            .failure(format!("run its action `{name}`"), failure)
    }
}

impl Reaping<'_> {
    fn run(self, command: Command, stdin: &[u8], deadline: Duration) -> Result<Ended, Failure> {
        let exit = RefCell::new(None);
        let spawn = |command: &mut Command| {
            let making = self.reaper.making();
            let _not_before_its_pid_is_held = self.reaper.hold_off();
            let spawned = action::spawn(command)?;
            *exit.borrow_mut() = Some(making.register(spawned.pid.as_raw_nonzero().get()));
            Ok(spawned)
        };
        let reap = |_: &action::Spawned| {
            let exit = exit.take();
            async {
                let exit = exit?.await.ok()?;
                // In wait(2)'s form; what a signal has ended is no success either way.
                Some(ExitStatus::from_raw((exit.code & 0xff) << 8))
            }
        };
        let ended = action::run_with(command, stdin, deadline, Patience::Exit, spawn, reap);
        self.runtime.block_on(ended)
    }
}
