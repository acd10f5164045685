//! A command that runs in a container beside its init: added by Task.Exec, run by Task.Start, with a client's fifos as its streams.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_engine::{Error as EngineError, Exec as EngineExec};
use oci_spec::runtime::Process;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::watch;

use crate::{
    clock,
    container::{Container, Phase, lock, signal_process},
    error::Error,
    pod::{Pod, blocking},
    reaper::Exit,
    stdio_uri,
    stream::{Io, Plumbing, Request},
};

/// How long the fifos stay open after the command has ended when somebody else still holds its pipes.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Exec {
    pub id: String,
    pub container_id: String,
    pub tty: bool,
    /// stdin, stdout, stderr
    pub fifos: [String; 3],
    process: Process,
    state: watch::Sender<State>,
    io: Mutex<Option<Io>>,
    /// A second Start waits for the first.
    order: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
pub enum State {
    Added,
    Running { pid: i32, pidfd: Arc<OwnedFd> },
    Exited { pid: i32, exit: Exit },
}

impl Exec {
    pub fn new(
        id: String,
        container_id: String,
        tty: bool,
        fifos: [String; 3],
        process: Process,
    ) -> Exec {
        Exec {
            id,
            container_id,
            tty,
            fifos,
            process,
            state: watch::Sender::new(State::Added),
            io: Mutex::new(None),
            order: tokio::sync::Mutex::new(()),
        }
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Runs it. What can't be run has ended, so that nobody waits for its end: a command that does not exist with 126, 127 or 128, as
    /// shells have it, anything else with 128.
    pub async fn start(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Arc<Container>,
    ) -> Result<i32, Error> {
        let _order = self.order.lock().await;
        match self.state() {
            State::Added => {}
            State::Running { pid, .. } => return Ok(pid),
            State::Exited { .. } => {
                return Err(Error::State {
                    action: "start exec",
                    id: self.id.clone(),
                    state: "exited".into(),
                });
            }
        }
        let begun = self.begin(pod, container).await;
        if let Err(error) = &begun {
            let code = match error {
                Error::Engine(EngineError::Command { exit_code, .. }) => *exit_code,
                _ => 128,
            };
            let exit = Exit {
                code,
                at: clock::now_ns(),
            };
            self.state.send_replace(State::Exited { pid: 0, exit });
        }
        begun
    }

    async fn begin(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Arc<Container>,
    ) -> Result<i32, Error> {
        must_run(container)?;
        let ends = stdio_uri::open(
            &pod.outside,
            &self.container_id,
            &self.fifos,
            self.tty,
            false,
        )
        .await?;
        let (stdio, plumbing) = Plumbing::lay(Request {
            tty: self.tty,
            ends,
            piped_console: pod.engine.carries_streams(),
            ..Request::default()
        })?;
        let making = pod.reaper.making();
        let engine = pod.engine.clone();
        let request = EngineExec {
            container_id: self.container_id.clone(),
            process: self.process.clone(),
            stdio,
            tty: self.tty,
        };
        let process = blocking("exec", move || Ok(engine.exec(request)?)).await?;
        let exited = making.register(process.pid);
        let pid = process.pid;
        let io = match plumbing.open(process.console) {
            Ok(io) => io,
            Err(error) => {
                // Without its streams it is of no use to anybody; the reaper has it.
                signal_process(&process.pidfd, Signal::KILL.as_raw(), || {
                    format!("kill exec {pid}")
                })?;
                return Err(error);
            }
        };
        *lock(&self.io) = Some(io);
        self.state.send_replace(State::Running {
            pid,
            pidfd: Arc::new(process.pidfd),
        });
        let (exec, pod) = (self.clone(), pod.clone());
        tokio::spawn(async move {
            let Ok(exit) = exited.await else { return };
            exec.state.send_replace(State::Exited { pid, exit });
            pod.events
                .exec_exited(&exec.container_id, &exec.id, pid, exit);
            let io = lock(&exec.io).take();
            if let Some(io) = io {
                io.drain(DRAIN).await;
            }
        });
        Ok(pid)
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Result<Exit, Error> {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited { exit, .. } = &*state.borrow_and_update() {
                return Ok(*exit);
            }
            state
                .changed()
                .await
                .map_err(|_| Error::Lost("an exec's state"))?;
        }
    }

    /// One that has ended, or was never started, is no error. `all`: its process group too, which is all that a command has started
    /// but what an interactive shell or the command itself has put into a group of its own.
    pub fn signal(&self, signal: i32, all: bool) -> Result<(), Error> {
        match self.state() {
            State::Running { pid, pidfd } => {
                let step = || format!("signal exec {}", self.id);
                // It leads its group; while it is there the number is no one else's.
                if all
                    && berth_kernel::pidfd::send_signal(&pidfd, 0).is_ok()
                    && let (Some(group), Some(signal)) =
                        (Pid::from_raw(pid), Signal::from_named_raw(signal))
                    && let Err(error) = kill_process_group(group, signal)
                    && error != rustix::io::Errno::SRCH
                {
                    return Err(Error::io(step())(error));
                }
                signal_process(&pidfd, signal, step)
            }
            State::Added | State::Exited { .. } => Ok(()),
        }
    }

    pub fn close_input(&self) {
        if let Some(io) = &mut *lock(&self.io) {
            io.close_input();
        }
    }

    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        resize(&lock(&self.io), width, height)
    }
}

/// A command can only run beside a running init.
pub fn must_run(container: &Container) -> Result<(), Error> {
    match container.phase() {
        Phase::Running { .. } => Ok(()),
        phase => Err(Error::State {
            action: "run a command in container",
            id: container.id.clone(),
            state: if phase == Phase::Created {
                "not started".into()
            } else {
                "exited".into()
            },
        }),
    }
}

/// Sets the size of a console; a process without one, or that has ended, has nothing to set.
pub fn resize(io: &Option<Io>, width: u32, height: u32) -> Result<(), Error> {
    let Some(console) = io.as_ref().and_then(|io| io.console.as_ref()) else {
        return Ok(());
    };
    // The kernel's own fields have 16 bits.
    let size = rustix::termios::Winsize {
        ws_row: height.min(u16::MAX.into()) as u16,
        ws_col: width.min(u16::MAX.into()) as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(console, size).map_err(Error::io("resize the console"))
}
