//! `berth shim run` and `create`: a container from its bundle, in the foreground from beginning to end, or only made.

use std::process::ExitCode;

use berth_proto::shim::api::{
    CloseIORequest, Empty, KillRequest, ResizePtyRequest, StartRequest, StartResponse,
};
use clap::Args;
use tokio::{
    select,
    signal::unix::{Signal as Signals, SignalKind, signal},
};

use super::{
    events::Socket,
    life::{self, Origin, Reserved},
    place::{Place, Record},
    stdio::{Fifos, Names, Streams},
    task::Task,
    terminal::{self, Raw},
};
use crate::{
    error::Error,
    output::{self, Format},
};

/// So many signals to this program are handed to the process; the next one is SIGKILL for all of the container.
const HANDED_ON: u32 = 2;
const SIGKILL: u32 = 9;

/// Run a container from a bundle: start its shim, create, start, wait, delete
///
/// Exits with the process's exit code. SIGINT and SIGTERM go to the process; the third is SIGKILL. Whatever happens, nothing is left of the
/// container or its shim, but of one that was detached.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    streams: Wanted,
    /// Print the shim's events on stderr
    #[arg(long, conflicts_with = "detach")]
    events: bool,
    /// Leave it running, and print its pid
    #[arg(long, short)]
    detach: bool,
}

/// Make a container and its shim without starting it, and print its pid
///
/// Its streams are /dev/null, or what --stdin, --stdout and --stderr name.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    uris: Uris,
    /// With a terminal, whatever the bundle says
    #[arg(long, short)]
    tty: bool,
}

/// How a process is connected.
#[derive(Debug, Args)]
pub struct Wanted {
    /// With a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// With this program's stdin
    #[arg(long, short)]
    pub interactive: bool,
    #[command(flatten)]
    pub uris: Uris,
}

/// Streams that are handed to the shim as they are: paths of fifos, `file:///…`, `binary:///…`, what it understands.
#[derive(Debug, Args)]
pub struct Uris {
    /// A path or URI for stdin, handed to the shim as it is (as the next two)
    #[arg(long, value_name = "URI", default_value = "")]
    stdin: String,
    #[arg(long, value_name = "URI", default_value = "")]
    stdout: String,
    #[arg(long, value_name = "URI", default_value = "")]
    stderr: String,
}

impl Uris {
    pub fn names(self) -> Names {
        Names {
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    pub fn any(&self) -> bool {
        [&self.stdin, &self.stdout, &self.stderr]
            .iter()
            .any(|uri| !uri.is_empty())
    }
}

impl Wanted {
    /// Fifos of this program's own, unless others were named or nobody stays to serve them.
    pub fn lay(
        self,
        record: &Record,
        process: &str,
        detach: bool,
    ) -> Result<(Option<Fifos>, Names), Error> {
        if detach || self.uris.any() {
            return Ok((None, self.uris.names()));
        }
        let fifos = Fifos::make(&record.dir, process, self.interactive, self.tty)?;
        let names = fifos.names.clone();
        Ok((Some(fifos), names))
    }
}

impl Run {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let tty = self.streams.tty;
        let reserved = Reserved::new(place, &self.origin, Some(tty))?;
        let laid = self.streams.lay(&reserved.record, "init", self.detach);
        let (fifos, names) = match laid {
            Ok(laid) => laid,
            Err(error) => return Err(life::undone(error, reserved.record.remove(place))),
        };
        let mut printing = None;
        if !self.detach {
            match Socket::listen(&reserved.record.events).await {
                Ok(Some(socket)) if self.events => {
                    printing = Some(socket.print(&reserved.record.id, Some(format)));
                }
                Ok(Some(socket)) => {
                    printing = Some(socket.print(&reserved.record.id, None));
                }
                Ok(None) if self.events => {
                    eprintln!("berth: the events of this shim go to another process already");
                }
                Ok(None) => {}
                Err(error) => return Err(life::undone(error, reserved.record.remove(place))),
            }
        }
        let made = reserved.make(place, names).await?;
        let outcome = async {
            let process = Process {
                task: &made.task,
                id: &made.record.id,
                exec_id: "",
            };
            process.start().await?;
            if self.detach {
                return Ok(None);
            }
            process.attended(fifos, tty).await.map(Some)
        }
        .await;
        let code = match outcome {
            Ok(Some(code)) => code,
            Ok(None) => {
                output::text_out(&format!("{}\n", made.pid))?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => {
                let error = life::with_log(error, &made.log);
                let tidied = if error.is_refusal() {
                    life::end_by_force(place, &made.record, &made.task).await
                } else {
                    life::give_up(place, &made.record).await
                };
                return Err(life::undone(error, tidied));
            }
        };
        if let Err(error) = life::end(place, &made.record, &made.task).await {
            let error = life::with_log(error, &made.log);
            return Err(life::undone(
                error,
                life::give_up(place, &made.record).await,
            ));
        }
        if let (true, Some(printing)) = (self.events, printing) {
            printing.finish().await;
        }
        Ok(exit_code(code))
    }
}

impl Create {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let tty = self.tty.then_some(true);
        let reserved = Reserved::new(place, &self.origin, tty)?;
        let made = reserved.make(place, self.uris.names()).await?;
        output::text_out(&format!("{}\n", made.pid))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A process's exit code has 8 bits; what does not fit must not look like success.
pub fn exit_code(status: u32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

/// A container's first process, or an exec.
#[derive(Debug)]
pub struct Process<'a> {
    pub task: &'a Task,
    pub id: &'a str,
    pub exec_id: &'a str,
}

impl Process<'_> {
    pub async fn start(&self) -> Result<u32, Error> {
        let request = StartRequest {
            id: self.id.into(),
            exec_id: self.exec_id.into(),
            ..Default::default()
        };
        let started: StartResponse = self.task.call("Start", &request).await?;
        Ok(started.pid)
    }

    /// Carries its streams, the size of its terminal and signals until it has ended; its exit status.
    pub async fn attended(&self, fifos: Option<Fifos>, tty: bool) -> Result<u32, Error> {
        // Before the first byte of output; restored when this returns, or unwinds. Not without a way for what is typed: nobody could even
        // interrupt it.
        let typed = fifos.as_ref().is_some_and(Fifos::has_stdin);
        let raw = if tty && typed { Raw::enter() } else { None };
        let mut resized = listen(SignalKind::window_change())?;
        let mut handed_on = [
            (listen(SignalKind::interrupt())?, 2),
            (listen(SignalKind::terminate())?, 15),
            (listen(SignalKind::hangup())?, 1),
            (listen(SignalKind::quit())?, 3),
        ];
        let mut streams = fifos.map(Fifos::connect);
        if tty {
            self.resize().await?;
        }
        let ended = life::ended(self.task, self.id, self.exec_id);
        tokio::pin!(ended);
        let mut signals = 0;
        let status = loop {
            let [interrupt, terminate, hangup, quit] = &mut handed_on;
            let number = select! {
                ended = &mut ended => break ended?.exit_status,
                fed = input_ended(&mut streams) => {
                    fed?;
                    self.close_input().await?;
                    continue;
                }
                _ = resized.recv() => {
                    if tty {
                        self.resize().await?;
                    }
                    continue;
                }
                _ = interrupt.0.recv() => interrupt.1,
                _ = terminate.0.recv() => terminate.1,
                _ = hangup.0.recv() => hangup.1,
                _ = quit.0.recv() => quit.1,
            };
            signals += 1;
            let all = signals > HANDED_ON;
            let number = if all { SIGKILL } else { number };
            self.kill(number, all && self.exec_id.is_empty()).await?;
        };
        if let Some(streams) = streams {
            streams.drain().await;
        }
        drop(raw);
        Ok(status)
    }

    async fn resize(&self) -> Result<(), Error> {
        let (width, height) = terminal::size();
        let request = ResizePtyRequest {
            id: self.id.into(),
            exec_id: self.exec_id.into(),
            width,
            height,
            ..Default::default()
        };
        unless_ended(self.task.call("ResizePty", &request).await)
    }

    async fn close_input(&self) -> Result<(), Error> {
        let request = CloseIORequest {
            id: self.id.into(),
            exec_id: self.exec_id.into(),
            stdin: true,
            ..Default::default()
        };
        unless_ended(self.task.call("CloseIO", &request).await)
    }

    async fn kill(&self, signal: u32, all: bool) -> Result<(), Error> {
        let request = KillRequest {
            id: self.id.into(),
            exec_id: self.exec_id.into(),
            signal,
            all,
            ..Default::default()
        };
        unless_ended(self.task.call("Kill", &request).await)
    }
}

/// What is refused is refused because the process has just ended: its `Wait` says so.
fn unless_ended(answer: Result<Empty, Error>) -> Result<(), Error> {
    match answer {
        Err(error) if !error.is_refusal() => Err(error),
        _ => Ok(()),
    }
}

async fn input_ended(streams: &mut Option<Streams>) -> Result<(), Error> {
    match streams {
        Some(streams) => streams.input_ended().await,
        None => std::future::pending().await,
    }
}

pub fn listen(kind: SignalKind) -> Result<Signals, Error> {
    signal(kind).map_err(|source| Error::File {
        what: "listen for signals by",
        path: "/proc/self".into(),
        source,
    })
}
