//! The bytes of a process's standard streams on their way: out of its pipes (or its console) into the log file and a client's
//! fifo, and from a client's fifo into its stdin. What a client names instead of a fifo is opened elsewhere (`stdio_uri`).
//!
//! Decisions:
//! - One read buffer for the whole shim: reading, splitting and writing happen between two awaits of the one thread, so a
//!   stream that is idle holds nothing but its unfinished line.
//! - With a log, a client's fifo that is full loses bytes and the log loses none. Without a log the fifo is all there is, and the process waits
//!   for it, as under any shim.
//! - Fifos are opened for reading and writing: an open can't block, and a client that went away is no SIGPIPE.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use berth_engine::Stdio;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{OpenOptions, Receiver, Sender},
    select,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use crate::{
    cri_log::{LogFile, LogStream, Stream},
    error::Error,
    journal, late_reader,
    logging_program::Logger,
    taps::{Tap, Taps},
};

/// One read. Half a pipe: more would only make the shim's one buffer larger.
const READ_BYTES: usize = 32 << 10;
/// Formatted lines kept as a buffer between reads; a read of nothing but newlines makes 45 bytes of each, and is given back.
const KEPT_LINE_BYTES: usize = 64 << 10;
/// Read at the end from a stream that somebody else still holds open: what a pipe can hold, and no endless writer.
const FINAL_READS: usize = 1 << 20 >> 15;

/// An input that is to be closed is closed when it was silent for this long.
const CLOSING: Duration = Duration::from_millis(20);

thread_local! {
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Lets go of the buffer, and of that for formatted lines: the next read makes them anew.
pub fn give_back() {
    SCRATCH.take();
}

/// What a process's streams are to be connected to.
#[derive(Debug, Default)]
pub struct Request {
    pub tty: bool,
    pub ends: Ends,
    pub log: Option<Arc<LogFile>>,
    /// stdin is a pipe that stays open, also with no fifo and after a client's end.
    pub keep_stdin: bool,
    /// Clients may come later: output is read also where nobody wants it yet.
    pub attachable: bool,
    /// A console's master is another's: its bytes come and go by pipes.
    pub piped_console: bool,
}

/// The shim's side, before the process exists.
#[derive(Debug)]
pub struct Plumbing {
    request: Request,
    input: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
}

/// The client's ends.
#[derive(Debug, Default)]
pub struct Ends {
    pub stdin: Option<Receiver>,
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
    pub logger: Option<Logger>,
}

/// Where a client has output.
#[derive(Debug)]
pub enum Sink {
    /// A fifo, or a pipe. It may be full.
    Pipe(Sender),
    /// A fifo that no client had opened yet when we did.
    Awaited(Sender),
    /// A file of the node. Its disk may be full: what does not fit is lost, and the process goes on.
    File(File),
}

impl Sink {
    /// Writes what it takes now.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Pipe(pipe) | Sink::Awaited(pipe) => pipe.try_write(bytes),
            Sink::File(file) => {
                if let Err(error) = file.write_all(bytes) {
                    journal!(
                        "{} bytes of output are lost: write a log file: {error}",
                        bytes.len()
                    );
                }
                Ok(bytes.len())
            }
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Pipe(pipe) | Sink::Awaited(pipe) => pipe.write_all(bytes).await,
            Sink::File(_) => self.try_write(bytes).map(drop),
        }
    }
}

/// The shim's side of a running process.
#[derive(Debug)]
pub struct Io {
    outputs: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    input: Option<JoinHandle<()>>,
    close_input: watch::Sender<bool>,
    held_input: Option<OwnedFd>,
    pub console: Option<OwnedFd>,
    taps: Arc<Taps>,
    logger: Option<Logger>,
}

impl Plumbing {
    /// Makes pipes for what is wanted. What nobody wants is left out, and becomes `/dev/null`.
    pub fn lay(request: Request) -> Result<(Stdio, Plumbing), Error> {
        let mut plumbing = Plumbing {
            request,
            input: None,
            outputs: Vec::new(),
        };
        let mut stdio = Stdio::default();
        let piped_console = plumbing.request.tty && plumbing.request.piped_console;
        if plumbing.request.tty && !piped_console {
            return Ok((stdio, plumbing));
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("make a pipe"));
        if plumbing.request.ends.stdin.is_some() || plumbing.request.keep_stdin {
            let (theirs, ours) = pipe()?;
            (stdio.stdin, plumbing.input) = (Some(theirs), Some(ours));
        }
        let read = plumbing.request.log.is_some() || plumbing.request.attachable;
        if read || plumbing.request.ends.stdout.is_some() {
            let (ours, theirs) = pipe()?;
            stdio.stdout = Some(theirs);
            plumbing.outputs.push((Stream::Stdout, ours));
        }
        if !piped_console && (read || plumbing.request.ends.stderr.is_some()) {
            let (ours, theirs) = pipe()?;
            stdio.stderr = Some(theirs);
            plumbing.outputs.push((Stream::Stderr, ours));
        }
        Ok((stdio, plumbing))
    }

    /// Lets the bytes flow.
    pub fn open(mut self, console: Option<OwnedFd>) -> Result<Io, Error> {
        let step = "watch a stream";
        if let Some(console) = &console {
            set_nonblocking(console).map_err(Error::io(step))?;
            let again = || console.try_clone().map_err(Error::io(step));
            self.outputs.push((Stream::Stdout, again()?));
            self.input = Some(again()?);
        }
        let stop = watch::Sender::new(false);
        let close_input = watch::Sender::new(false);
        let mut io = Io {
            outputs: Vec::new(),
            stop,
            input: None,
            close_input,
            held_input: None,
            console,
            taps: Arc::default(),
            logger: self.request.ends.logger.take(),
        };
        for (stream, fd) in self.outputs {
            set_nonblocking(&fd).map_err(Error::io(step))?;
            let source = Receiver::from_owned_fd_unchecked(fd).map_err(Error::io(step))?;
            let fifo = match stream {
                Stream::Stdout => self.request.ends.stdout.take(),
                Stream::Stderr => self.request.ends.stderr.take(),
            };
            let log = self.request.log.clone();
            io.outputs.push(tokio::spawn(pump_output(
                source,
                stream,
                log,
                fifo,
                io.taps.clone(),
                io.stop.subscribe(),
            )));
        }
        match (self.request.ends.stdin, self.input) {
            (Some(fifo), Some(sink)) => {
                set_nonblocking(&sink).map_err(Error::io(step))?;
                let sink = Sender::from_owned_fd_unchecked(sink).map_err(Error::io(step))?;
                io.input = Some(tokio::spawn(pump_input(
                    fifo,
                    sink,
                    io.close_input.subscribe(),
                )));
            }
            (None, held) => io.held_input = held,
            (Some(_), None) => {}
        }
        Ok(io)
    }
}

impl Io {
    /// The process's stdin ends, after what the client has written so far.
    pub fn close_input(&mut self) {
        self.close_input.send_replace(true);
        self.held_input = None;
    }

    /// The process has ended: takes what it has left in its pipes, and gives up where a grandchild holds them open for longer (REL-10).
    pub async fn drain(mut self, patience: Duration) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let ended = timeout(patience, async {
            for output in &mut self.outputs {
                let _ = output.await;
            }
        });
        if ended.await.is_err() {
            self.stop.send_replace(true);
            for output in &mut self.outputs {
                if !output.is_finished() && timeout(patience, &mut *output).await.is_err() {
                    output.abort();
                }
            }
        }
        self.taps.close();
        if let Some(logger) = self.logger.take() {
            tokio::spawn(logger.finish());
        }
    }

    /// Attaches a client by the name `id`: copies of the output go to the fifos `stdout` and `stderr`, and what comes out of the fifo
    /// `stdin` goes to the process. An empty path: not wanted. Answers the task that carries the input; it ends when the client closes
    /// its end.
    pub fn attach(
        &self,
        id: &str,
        [stdin, stdout, stderr]: [&str; 3],
    ) -> Result<Option<JoinHandle<()>>, Error> {
        let input = match (stdin, &self.held_input) {
            ("", _) => None,
            (_, None) => {
                return Err(Error::invalid(
                    "attach",
                    "its stdin was not asked for when it was made, or is closed",
                ));
            }
            (path, Some(held)) => {
                let fifo = OpenOptions::new()
                    .open_receiver(path)
                    .map_err(Error::io(format!("open fifo {path}")))?;
                let step = "duplicate stdin of a process";
                let sink = held.try_clone().map_err(Error::io(step))?;
                set_nonblocking(&sink).map_err(Error::io(step))?;
                let sink = Sender::from_owned_fd_unchecked(sink).map_err(Error::io(step))?;
                Some((fifo, sink))
            }
        };
        self.taps.insert(id, Tap::open(stdout, stderr)?)?;
        Ok(input.map(|(fifo, sink)| {
            let pump = tokio::spawn(pump_input(fifo, sink, self.close_input.subscribe()));
            self.taps.feed(id, pump.abort_handle());
            pump
        }))
    }

    /// Lets a client go. One that is not there is no error.
    pub fn detach(&self, id: &str) {
        self.taps.remove(id);
    }
}

pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    Ok(())
}

/// What one read brought.
enum Got {
    /// What is still to be written.
    Bytes(Vec<u8>),
    Taken,
    Nothing,
    End,
}

async fn pump_output(
    source: Receiver,
    stream: Stream,
    log: Option<Arc<LogFile>>,
    mut fifo: Option<Sink>,
    taps: Arc<Taps>,
    mut stop: watch::Receiver<bool>,
) {
    let mut lines = log.as_deref().map(|file| LogStream::new(file, stream));
    let mut reads_left = usize::MAX;
    loop {
        if reads_left == usize::MAX {
            select! {
                biased;
                ready = source.readable() => if ready.is_err() { break },
                // An error: the sender is gone, which asks for the same.
                _ = stop.wait_for(|stop| *stop) => reads_left = FINAL_READS,
            }
        } else if reads_left == 0 {
            break;
        } else {
            reads_left -= 1;
        }
        let got = SCRATCH.with_borrow_mut(|(buffer, scratch)| {
            buffer.resize(READ_BYTES, 0);
            let n = match source.try_read(buffer) {
                Ok(0) => return Got::End,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Got::Nothing,
                // A console whose last holder is gone answers EIO.
                Err(_) => return Got::End,
            };
            taps.spread(stream, &buffer[..n]);
            let Some(lines) = &mut lines else {
                let Some(fifo) = &mut fifo else {
                    return Got::Taken;
                };
                return match fifo.try_write(&buffer[..n]) {
                    Ok(written) if written == n => Got::Taken,
                    // What found no room waits for it.
                    Ok(written) => Got::Bytes(buffer[written..n].to_vec()),
                    Err(_) => Got::Bytes(buffer[..n].to_vec()),
                };
            };
            lines.write(&buffer[..n], scratch);
            if scratch.capacity() > KEPT_LINE_BYTES {
                *scratch = Vec::new();
            }
            if let Some(fifo) = &mut fifo {
                let _ = fifo.try_write(&buffer[..n]);
            }
            Got::Taken
        });
        match got {
            Got::Taken => {}
            Got::Nothing if reads_left == usize::MAX => {}
            Got::Nothing | Got::End => break,
            Got::Bytes(bytes) => {
                let Some(sink) = &mut fifo else { continue };
                let written = select! {
                    written = sink.write_all(&bytes) => written.is_ok(),
                    _ = stop.wait_for(|stop| *stop) => false,
                };
                if !written {
                    // Without its reader the stream is still emptied, or the process would wait for good.
                    fifo = None;
                }
            }
        }
    }
    if let Some(lines) = &mut lines {
        lines.finish();
    }
    if let Some(Sink::Awaited(fifo)) = fifo {
        late_reader::leave(fifo);
    }
}

async fn pump_input(fifo: Receiver, mut sink: Sender, mut close: watch::Receiver<bool>) {
    let mut closing = false;
    loop {
        if closing {
            // What the client wrote before it asked may not have been noticed yet.
            if timeout(CLOSING, fifo.readable()).await.is_err() {
                return;
            }
        } else {
            select! {
                biased;
                ready = fifo.readable() => if ready.is_err() { return },
                _ = close.wait_for(|close| *close) => {
                    closing = true;
                    continue;
                }
            }
        }
        let got = SCRATCH.with_borrow_mut(|(buffer, _)| {
            buffer.resize(READ_BYTES, 0);
            match fifo.try_read(buffer) {
                Ok(0) => Got::End,
                Ok(n) => match sink.try_write(&buffer[..n]) {
                    Ok(written) if written == n => Got::Taken,
                    Ok(written) => Got::Bytes(buffer[written..n].to_vec()),
                    Err(_) => Got::Bytes(buffer[..n].to_vec()),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Got::Nothing,
                Err(_) => Got::End,
            }
        });
        match got {
            Got::Taken | Got::Nothing => {}
            Got::End => return,
            Got::Bytes(rest) => {
                if sink.write_all(&rest).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio_uri::{fifo_in, fifo_out};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn a_stream_that_a_grandchild_holds_open_is_given_up_with_all_it_held_rel_10() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        runtime().block_on(async {
            let log = Arc::new(LogFile::open(&path).unwrap());
            let (stdio, plumbing) = Plumbing::lay(Request {
                log: Some(log),
                ..Request::default()
            })
            .unwrap();
            let io = plumbing.open(None).unwrap();
            let mut held = std::fs::File::from(stdio.stdout.unwrap());
            held.write_all(b"one\ntwo").unwrap();
            drop(stdio.stderr);
            let began = std::time::Instant::now();
            io.drain(Duration::from_millis(100)).await;
            assert!(began.elapsed() < Duration::from_secs(1));
            drop(held);
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(" stdout F one\n") && text.contains(" stdout P two\n"),
            "{text}"
        );
    }

    #[test]
    fn stdout_and_stderr_reach_the_log_under_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        runtime().block_on(async {
            let log = Arc::new(LogFile::open(&path).unwrap());
            let (stdio, plumbing) = Plumbing::lay(Request {
                log: Some(log),
                ..Request::default()
            })
            .unwrap();
            let io = plumbing.open(None).unwrap();
            std::fs::File::from(stdio.stdout.unwrap())
                .write_all(b"out\n")
                .unwrap();
            std::fs::File::from(stdio.stderr.unwrap())
                .write_all(b"err\n")
                .unwrap();
            io.drain(Duration::from_secs(5)).await;
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(" stdout F out\n") && text.contains(" stderr F err\n"),
            "{text}"
        );
    }

    #[test]
    fn a_full_fifo_never_stops_a_logged_stream() {
        let dir = tempfile::tempdir().unwrap();
        let (path, fifo) = (dir.path().join("log"), dir.path().join("fifo"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        const LINES: usize = 20_000;
        runtime().block_on(async {
            let log = Arc::new(LogFile::open(&path).unwrap());
            let request = Request {
                log: Some(log),
                ends: Ends {
                    stdout: Some(Sink::Pipe(fifo_out(fifo.to_str().unwrap()).unwrap())),
                    ..Ends::default()
                },
                ..Request::default()
            };
            let (stdio, plumbing) = Plumbing::lay(request).unwrap();
            let io = plumbing.open(None).unwrap();
            let mut out = std::fs::File::from(stdio.stdout.unwrap());
            drop(stdio.stderr);
            let writer = std::thread::spawn(move || {
                (0..LINES).for_each(|i| writeln!(out, "line {i}").unwrap())
            });
            io.drain(Duration::from_secs(20)).await;
            writer.join().unwrap();
        });
        assert_eq!(
            std::fs::read_to_string(&path).unwrap().lines().count(),
            LINES
        );
    }

    #[test]
    fn stdin_comes_from_the_fifo_and_ends_when_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let text = runtime().block_on(async {
            let request = Request {
                ends: Ends {
                    stdin: Some(fifo_in(fifo.to_str().unwrap(), true).unwrap()),
                    ..Ends::default()
                },
                keep_stdin: true,
                ..Request::default()
            };
            let (stdio, plumbing) = Plumbing::lay(request).unwrap();
            let mut io = plumbing.open(None).unwrap();
            let mut client = std::fs::File::options().write(true).open(&fifo).unwrap();
            client.write_all(b"hello").unwrap();
            drop(client);
            io.close_input();
            let stdin = stdio.stdin.unwrap();
            tokio::task::spawn_blocking(move || {
                io::read_to_string(std::fs::File::from(stdin)).unwrap()
            })
            .await
            .unwrap()
        });
        assert_eq!(text, "hello");
    }
}
