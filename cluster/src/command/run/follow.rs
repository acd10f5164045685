//! What the containers of a pod write, printed as they write it.
//!
//! # Synchronization
//! A thread of its own reads and prints, since a container that floods its log, or a reader that does not read, must not keep the pod's worker
//! from its work. It ends once it is told to and has read everything; or with the process.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use super::super::{
    logs::{Log, Printer},
    progress::wrote_beside,
};
use crate::error::Error;

/// How often logs are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Of a line of several containers' that is not ended; a longer one is broken.
const LONGEST_LINE_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub struct Follower {
    is_last: Arc<AtomicBool>,
    done: oneshot::Receiver<Result<(), Error>>,
}

impl Follower {
    /// Prints the logs of containers of these names below the pod's log directory, all to standard error where `beside` says so.
    pub fn start(logs: &Path, containers: Vec<String>, beside: bool) -> Self {
        let is_last = Arc::new(AtomicBool::new(false));
        let (sender, done) = oneshot::channel();
        let width = containers.iter().map(String::len).max().unwrap_or(0);
        let is_alone = containers.len() == 1;
        let prefix = |name: &str| match is_alone {
            true => String::new(),
            false => format!("{name:width$} | "),
        };
        let stdout = || -> Box<dyn Write + Send> {
            match beside {
                true => Box::new(io::stderr()),
                false => Box::new(io::stdout()),
            }
        };
        let mut followed: Vec<_> = containers
            .iter()
            .map(|name| Followed {
                dir: logs.join(name),
                attempt: 0,
                log: None,
                printer: Printer {
                    timestamps: false,
                    stdout: Prefixed::new(prefix(name), stdout()),
                    stderr: Prefixed::new(prefix(name), Box::new(io::stderr())),
                },
            })
            .collect();
        let told = is_last.clone();
        thread::spawn(move || {
            // nobody may wait for it any more
            let _ = sender.send(follow(&mut followed, &told));
        });
        Self { is_last, done }
    }

    /// Prints the rest of logs that nobody writes any more.
    pub async fn finish(self) -> Result<(), Error> {
        self.is_last.store(true, Ordering::Relaxed);
        self.done.await.unwrap_or(Ok(()))
    }

    /// Waits until it can't go on, and why.
    pub async fn unread(&mut self) -> Error {
        match (&mut self.done).await {
            Ok(Err(error)) => error,
            // it does not end by itself
            Ok(Ok(())) | Err(_) => Error::Invalid {
                what: "the logs are not followed any more".into(),
                why: "their reader has broken; this is a bug".into(),
            },
        }
    }
}

fn follow(all: &mut [Followed], is_last: &AtomicBool) -> Result<(), Error> {
    loop {
        // asked before the look, so that what was written last is read
        let is_last = is_last.load(Ordering::Relaxed);
        let mut is_all = true;
        for one in &mut *all {
            is_all &= one.look()?;
        }
        match (is_all, is_last) {
            (false, _) => {}
            (true, false) => thread::sleep(INTERVAL),
            (true, true) => return all.iter_mut().try_for_each(Followed::finish),
        }
    }
}

/// One container's logs, one file each attempt.
struct Followed {
    dir: PathBuf,
    attempt: u32,
    log: Option<Log>,
    printer: Printer<Prefixed, Prefixed>,
}

impl Followed {
    fn path(&self, attempt: u32) -> PathBuf {
        self.dir.join(format!("{attempt}.log"))
    }

    /// Prints some of what is new; whether that was all.
    fn look(&mut self) -> Result<bool, Error> {
        let log = match &mut self.log {
            Some(log) => log,
            None => match Log::open(self.path(self.attempt), None) {
                Ok(log) => self.log.insert(log),
                // not made yet
                Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(true);
                }
                Err(error) => return Err(error),
            },
        };
        // asked before the rest is read: nobody writes it any more then
        let next = self.dir.join(format!("{}.log", self.attempt + 1));
        let has_next = next.exists();
        let is_all = log.read_some(&mut self.printer)?;
        if is_all && has_next {
            self.finish()?;
            self.attempt += 1;
            return Ok(false);
        }
        Ok(is_all)
    }

    /// A last line without its end is printed all the same.
    fn finish(&mut self) -> Result<(), Error> {
        if let Some(mut log) = self.log.take() {
            log.finish(&mut self.printer)?;
        }
        let Printer { stdout, stderr, .. } = &mut self.printer;
        stdout
            .finish()
            .and_then(|()| stderr.finish())
            .map_err(Error::Print)
    }
}

/// Puts a container's name in front of each line, and each line out as a whole: containers write at the same time.
struct Prefixed {
    prefix: String,
    line: Vec<u8>,
    to: Box<dyn Write + Send>,
}

impl Prefixed {
    fn new(prefix: String, to: Box<dyn Write + Send>) -> Self {
        Self {
            line: Vec::new(),
            prefix,
            to,
        }
    }

    fn put(&mut self) -> io::Result<()> {
        let mut line = Vec::with_capacity(self.prefix.len() + self.line.len() + 1);
        line.extend_from_slice(self.prefix.as_bytes());
        line.append(&mut self.line);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        wrote_beside();
        self.to.write_all(&line)
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.put()?;
        }
        self.to.flush()
    }
}

impl Write for Prefixed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.prefix.is_empty() {
            wrote_beside();
            self.to.write_all(bytes)?;
            return Ok(bytes.len());
        }
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() >= LONGEST_LINE_BYTES {
                self.put()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Mutex, PoisonError},
    };

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn text(&self) -> String {
            let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8(bytes.clone()).unwrap()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn followed(dir: &Path, prefix: &str, to: &Shared) -> Followed {
        let out = || Prefixed::new(prefix.into(), Box::new(to.clone()));
        Followed {
            dir: dir.into(),
            attempt: 0,
            log: None,
            printer: Printer {
                timestamps: false,
                stdout: out(),
                stderr: out(),
            },
        }
    }

    fn line(stream: &str, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:00.000000001Z {stream} {tag} {text}\n")
    }

    #[test]
    fn every_attempt_of_a_container_is_printed_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let to = Shared::default();
        let mut one = followed(dir.path(), "a | ", &to);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(one.look().unwrap(), "there is none yet");
        write("0.log", &line("stdout", "F", "first"));
        assert!(one.look().unwrap());
        let two = line("stdout", "F", "first") + &line("stderr", "P", "no end");
        write("0.log", &two);
        write("1.log", &line("stdout", "F", "again"));
        while !one.look().unwrap() {}
        one.finish().unwrap();
        assert_eq!(to.text(), "a | first\na | no end\na | again\n");
    }

    #[test]
    fn lines_of_several_containers_are_whole_and_one_alone_is_as_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let to = Shared::default();
        let (mut a, mut b) = (
            followed(dir.path(), "a  | ", &to),
            followed(dir.path(), "bb | ", &to),
        );
        a.printer.stdout.write_all(b"half ").unwrap();
        b.printer.stdout.write_all(b"whole\n").unwrap();
        a.printer.stdout.write_all(b"and half\nno").unwrap();
        assert_eq!(to.text(), "bb | whole\na  | half and half\n");
        let long = vec![b'x'; 2 * LONGEST_LINE_BYTES];
        a.printer.stdout.write_all(&long).unwrap();
        assert!(
            a.printer.stdout.line.is_empty(),
            "a line is not kept for ever"
        );

        let to = Shared::default();
        let mut alone = followed(dir.path(), "", &to);
        alone.printer.stdout.write_all(b"a prompt: ").unwrap();
        assert_eq!(to.text(), "a prompt: ");
    }
}
