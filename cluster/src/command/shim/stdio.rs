//! The standard streams of a container's process and this program's own, connected by fifos, as containerd's clients do it.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, mkfifoat},
    io::Errno,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::{OpenOptions, Receiver, Sender},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::error::Error;

/// One read.
const READ_BYTES: usize = 32 << 10;
/// Reads that wait to be written.
const MAX_QUEUED: usize = 4;
/// A shim opens its end of stdin while it creates the process, or right afterwards.
const OPENED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);
/// Output that is still under way when a process has ended; a grandchild may hold it open for good.
const DRAIN: Duration = Duration::from_secs(5);

/// Paths or URIs for Create or Exec; empty: none.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// Fifos of our own, before the process exists.
#[derive(Debug)]
pub struct Fifos {
    pub names: Names,
    stdin: Option<PathBuf>,
    outputs: Vec<(Receiver, bool)>,
    paths: Vec<PathBuf>,
}

impl Fifos {
    /// Makes them in `dir`, for the process `name`. A terminal has one output.
    pub fn make(dir: &Path, name: &str, stdin: bool, tty: bool) -> Result<Self, Error> {
        let mut fifos = Self {
            names: Names::default(),
            stdin: None,
            outputs: Vec::new(),
            paths: Vec::new(),
        };
        if stdin {
            let path = fifos.fifo(dir, name, "stdin")?;
            fifos.names.stdin = path.display().to_string();
            fifos.stdin = Some(path);
        }
        for (stream, is_stderr) in [("stdout", false), ("stderr", true)] {
            if tty && is_stderr {
                continue;
            }
            let path = fifos.fifo(dir, name, stream)?;
            let receiver =
                OpenOptions::new()
                    .open_receiver(&path)
                    .map_err(|source| Error::File {
                        what: "open",
                        path: path.clone(),
                        source,
                    })?;
            let shown = path.display().to_string();
            if is_stderr {
                fifos.names.stderr = shown;
            } else {
                fifos.names.stdout = shown;
            }
            fifos.outputs.push((receiver, is_stderr));
        }
        Ok(fifos)
    }

    pub fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    fn fifo(&mut self, dir: &Path, name: &str, stream: &str) -> Result<PathBuf, Error> {
        let path = dir.join(format!("{name}-{stream}"));
        mkfifo(&path)?;
        self.paths.push(path.clone());
        Ok(path)
    }

    /// Lets the bytes flow: the shim has opened its ends of the outputs (before that they would be at their end).
    pub fn connect(mut self) -> Streams {
        let outputs = std::mem::take(&mut self.outputs).into_iter();
        let outputs = outputs
            .map(|(from, is_stderr)| {
                if is_stderr {
                    tokio::spawn(pump(from, std::io::stderr()))
                } else {
                    tokio::spawn(pump(from, std::io::stdout()))
                }
            })
            .collect();
        let input = self.stdin.take().map(|path| tokio::spawn(feed(path)));
        Streams {
            outputs,
            input,
            _fifos: self,
        }
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Streams of a process that runs.
#[derive(Debug)]
pub struct Streams {
    outputs: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<Result<(), Error>>>,
    _fifos: Fifos,
}

impl Streams {
    /// When this program's stdin has ended and the process has been given all of it. Never, where it has no stdin.
    pub async fn input_ended(&mut self) -> Result<(), Error> {
        match &mut self.input {
            Some(input) => {
                let ended = input.await;
                self.input = None;
                ended.unwrap_or(Ok(()))
            }
            None => std::future::pending().await,
        }
    }

    /// The process has ended: prints what is left.
    pub async fn drain(mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let _ = timeout(DRAIN, async {
            for output in &mut self.outputs {
                let _ = output.await;
            }
        })
        .await;
        for output in &self.outputs {
            output.abort();
        }
    }
}

pub fn mkfifo(path: &Path) -> Result<(), Error> {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).map_err(|errno| Error::File {
        what: "make the fifo",
        path: path.into(),
        source: errno.into(),
    })
}

async fn pump(mut from: Receiver, to: impl Write + Send + 'static) {
    let mut buffer = vec![0; READ_BYTES];
    let (bytes, written) = writer(to);
    // An error is an end, too.
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        // Without its reader the process goes on all the same.
        let _ = bytes.send(buffer[..n].to_vec()).await;
    }
    drop(bytes);
    let _ = written.await;
}

/// Writes by a thread of its own, and not by the runtime's: output that nobody takes must not hold up the end of this program.
fn writer(mut to: impl Write + Send + 'static) -> (mpsc::Sender<Vec<u8>>, oneshot::Receiver<()>) {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(MAX_QUEUED);
    let (done, written) = oneshot::channel();
    std::thread::spawn(move || {
        while let Some(bytes) = receiver.blocking_recv() {
            if to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
        let _ = done.send(());
    });
    (sender, written)
}

/// This program's stdin into the fifo.
async fn feed(path: PathBuf) -> Result<(), Error> {
    let mut to = open_sender(&path).await?;
    let mut reads = stdin();
    while let Some(bytes) = reads.recv().await {
        if to.write_all(&bytes).await.is_err() {
            // The process reads no more.
            break;
        }
    }
    Ok(())
}

/// Waits for the shim to open its end.
async fn open_sender(path: &Path) -> Result<Sender, Error> {
    let began = Instant::now();
    loop {
        match OpenOptions::new().open_sender(path) {
            Ok(sender) => return Ok(sender),
            Err(error)
                if error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
                    && began.elapsed() < OPENED =>
            {
                sleep(POLL).await;
            }
            Err(source) => {
                return Err(Error::File {
                    what: "give the shim stdin: open",
                    path: path.into(),
                    source,
                });
            }
        }
    }
}

/// What stdin brings. By a thread of its own, and not by the runtime's: a read that waits must not hold up the end of this program.
fn stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(n @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
