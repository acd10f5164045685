use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use berth_proto::cri::ContainerState;
use clap::Args;

use super::pod;
use crate::{
    error::Error,
    node::{Address, Node},
};

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Looks at the log between two questions to the runtime whether its container has ended.
const LOOKS_PER_QUESTION: u32 = 5;

/// Read at once of a log of which others must have their turn, too.
const LINES_AT_ONCE: usize = 1000;

/// Read at a time when looking for the last lines from a file's end.
const TAIL_BLOCK_BYTES: u64 = 64 << 10;

/// Print what a container has written
///
/// It is read from the log file on this machine; stdout goes to stdout, stderr to stderr.
#[derive(Debug, Args)]
pub struct Logs {
    /// The pod, by NAME, NAMESPACE/NAME or ID
    pod: String,
    /// The container; without it the pod's first
    #[arg(long, short)]
    container: Option<String>,
    /// Go on until the container ends
    #[arg(long, short)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
}

impl Logs {
    pub async fn run(self, address: &Address) -> Result<ExitCode, Error> {
        let node = Node::connect(address).await?;
        let pod = pod::find(&node, &self.pod).await?;
        let container = pod::container(&node, &pod, self.container.as_deref()).await?;
        let status = pod::container_status(&node, &container.id).await?;
        if status.log_path.is_empty() {
            return Err(Error::NoLog {
                name: container.name,
            });
        }
        let mut log = Log::open(status.log_path.into(), self.tail)?;
        let mut printer = Printer {
            timestamps: self.timestamps,
            stdout: io::stdout(),
            stderr: io::stderr(),
        };
        let mut looks = 0;
        loop {
            // Asked before the log is read, so that what a container wrote last is read once it has ended.
            let ended = looks % LOOKS_PER_QUESTION == 0 && has_ended(&node, &container.id).await?;
            log.read(&mut printer)?;
            if !self.follow || ended {
                log.finish(&mut printer)?;
                return Ok(ExitCode::SUCCESS);
            }
            looks += 1;
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    }
}

async fn has_ended(node: &Node, id: &str) -> Result<bool, Error> {
    match pod::container_status(node, id).await {
        Ok(status) => Ok(!matches!(
            status.state(),
            ContainerState::ContainerCreated | ContainerState::ContainerRunning
        )),
        // removed meanwhile
        Err(Error::Rpc { status, .. }) if status.code() == tonic::Code::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A CRI log file that may be rotated while it is read.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    reader: BufReader<File>,
    /// A line whose end is not written yet.
    unfinished: Vec<u8>,
}

impl Log {
    pub fn open(path: PathBuf, tail: Option<u64>) -> Result<Self, Error> {
        let failed = |source| Error::File {
            what: "read the log",
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(failed)?;
        if let Some(lines) = tail {
            seek_to_last(&mut file, lines).map_err(failed)?;
        }
        Ok(Log {
            reader: BufReader::new(file),
            path,
            unfinished: Vec::new(),
        })
    }

    /// Prints every whole line that there is by now, also of the file that a rotation has put in this one's place.
    fn read(&mut self, printer: &mut Printer<impl Write, impl Write>) -> Result<(), Error> {
        while !self.read_some(printer)? {}
        Ok(())
    }

    /// Prints some lines; whether those were all that there are by now.
    pub fn read_some(
        &mut self,
        printer: &mut Printer<impl Write, impl Write>,
    ) -> Result<bool, Error> {
        if !self.read_file(printer, LINES_AT_ONCE)? {
            return Ok(false);
        }
        let Some(next) = self.rotated()? else {
            return Ok(true);
        };
        // what was written between our last read and the rotation
        if self.read_file(printer, LINES_AT_ONCE)? {
            self.reader = BufReader::new(next);
        }
        Ok(false)
    }

    /// At most so many lines; whether the file has no more.
    fn read_file(
        &mut self,
        printer: &mut Printer<impl Write, impl Write>,
        lines: usize,
    ) -> Result<bool, Error> {
        for _ in 0..lines {
            let count = self
                .reader
                .read_until(b'\n', &mut self.unfinished)
                .map_err(|source| Error::File {
                    what: "read the log",
                    path: self.path.clone(),
                    source,
                })?;
            if count == 0 {
                printer.flush().map_err(Error::Print)?;
                return Ok(true);
            }
            if self.unfinished.ends_with(b"\n") {
                printer
                    .line(&self.unfinished[..self.unfinished.len() - 1])
                    .map_err(Error::Print)?;
                self.unfinished.clear();
            }
        }
        Ok(false)
    }

    /// The file at the path, where it is no longer the one that is read.
    fn rotated(&self) -> Result<Option<File>, Error> {
        let failed = |source| Error::File {
            what: "read the log",
            path: self.path.clone(),
            source,
        };
        let next = match File::open(&self.path) {
            Ok(next) => next,
            // between the rename and the new file, or removed with its container
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let identity = |file: &File| {
            file.metadata()
                .map(|metadata| (metadata.dev(), metadata.ino()))
        };
        let (ours, theirs) = (
            identity(self.reader.get_ref()).map_err(failed)?,
            identity(&next).map_err(failed)?,
        );
        Ok((ours != theirs).then_some(next))
    }

    /// A last line without its end is printed all the same.
    pub fn finish(&mut self, printer: &mut Printer<impl Write, impl Write>) -> Result<(), Error> {
        if !self.unfinished.is_empty() {
            printer
                .line(&std::mem::take(&mut self.unfinished))
                .map_err(Error::Print)?;
        }
        printer.flush().map_err(Error::Print)
    }
}

/// Puts the file where its last `lines` lines begin, reading from the end: logs can be large.
fn seek_to_last(file: &mut File, lines: u64) -> io::Result<()> {
    let mut position = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(());
    }
    let mut block = vec![0; TAIL_BLOCK_BYTES as usize];
    // the newline that ends the last line is not between two lines
    let mut wanted = lines + 1;
    while position > 0 {
        let size = position.min(TAIL_BLOCK_BYTES);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..size as usize];
        file.read_exact(block)?;
        for (index, _) in block
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            wanted -= 1;
            if wanted == 0 {
                file.seek(SeekFrom::Start(position + index as u64 + 1))?;
                return Ok(());
            }
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

/// Takes CRI log lines apart: `TIME STREAM TAG TEXT`, where tag P says that the line goes on in the next entry.
#[derive(Debug)]
pub struct Printer<O, E> {
    pub timestamps: bool,
    pub stdout: O,
    pub stderr: E,
}

impl<O: Write, E: Write> Printer<O, E> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(entry) = Entry::parse(line) else {
            // not ours to judge: shown as it is
            self.stdout.write_all(line)?;
            return self.stdout.write_all(b"\n");
        };
        let timestamps = self.timestamps;
        let to: &mut dyn Write = if entry.stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        if timestamps {
            to.write_all(entry.time)?;
            to.write_all(b" ")?;
        }
        to.write_all(entry.text)?;
        // With timestamps each entry stands on a line of its own, or times would appear in the middle of lines.
        if entry.full || timestamps {
            to.write_all(b"\n")
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()?;
        self.stderr.flush()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a [u8],
    stderr: bool,
    full: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
        let stderr = match stream {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        // tags are divided by colons; the first says whether the line is whole
        let full = match tags.split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Entry {
            time,
            stderr,
            full,
            text: parts.next().unwrap_or_default(),
        })
    }
}

/// The last lines of a log, for an error message; nothing where there is no log.
pub fn last_lines(path: &Path, lines: u64) -> String {
    let Ok(mut log) = Log::open(path.to_owned(), Some(lines)) else {
        return String::new();
    };
    // Both streams as they came.
    let text = std::cell::RefCell::new(Vec::new());
    struct Shared<'a>(&'a std::cell::RefCell<Vec<u8>>);
    impl Write for Shared<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut printer = Printer {
        timestamps: false,
        stdout: Shared(&text),
        stderr: Shared(&text),
    };
    let _ = log
        .read(&mut printer)
        .and_then(|()| log.finish(&mut printer));
    String::from_utf8_lossy(&text.into_inner()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-01T00:00:00.000000001Z";

    fn printed(timestamps: bool, lines: &[&str]) -> (String, String) {
        let mut printer = Printer {
            timestamps,
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        for line in lines {
            printer.line(line.as_bytes()).unwrap();
        }
        (
            String::from_utf8(printer.stdout).unwrap(),
            String::from_utf8(printer.stderr).unwrap(),
        )
    }

    #[test]
    fn streams_are_told_apart_and_partial_entries_joined() {
        let lines = [
            format!("{TIME} stdout P one "),
            format!("{TIME} stderr F oops"),
            format!("{TIME} stdout F line"),
            format!("{TIME} stdout F "),
            format!("{TIME} stdout F"),
            "not a CRI line".to_owned(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(
            printed(false, &lines),
            ("one line\n\n\nnot a CRI line\n".into(), "oops\n".into())
        );
        let (stdout, stderr) = printed(true, &lines[..3]);
        assert_eq!(stdout, format!("{TIME} one \n{TIME} line\n"));
        assert_eq!(stderr, format!("{TIME} oops\n"));
    }

    #[test]
    fn the_last_lines_are_found_from_the_end_also_over_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = |n: usize| format!("{TIME} stdout F {n} {}\n", "x".repeat(1000));
        std::fs::write(&path, (0..200).map(line).collect::<String>()).unwrap();
        for (tail, first) in [
            (0, None),
            (1, Some(199)),
            (150, Some(50)),
            (200, Some(0)),
            (1000, Some(0)),
        ] {
            let mut log = Log::open(path.clone(), Some(tail)).unwrap();
            let mut printer = Printer {
                timestamps: false,
                stdout: Vec::new(),
                stderr: Vec::new(),
            };
            log.read(&mut printer).unwrap();
            let text = String::from_utf8(printer.stdout).unwrap();
            assert_eq!(
                text.lines()
                    .next()
                    .map(|line| line.split(' ').next().unwrap().parse().unwrap()),
                first
            );
            assert_eq!(text.lines().count() as u64, tail.min(200));
        }
        assert!(last_lines(&path, 2).starts_with("198 "));
        assert_eq!(last_lines(&dir.path().join("none"), 2), "");
    }

    #[test]
    fn no_line_is_lost_or_doubled_over_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut writer = File::create(&path).unwrap();
        let mut log = Log::open(path.clone(), None).unwrap();
        let mut printer = Printer {
            timestamps: false,
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        write!(writer, "{TIME} stdout F 1\n{TIME} stdout F 2, half").unwrap();
        log.read(&mut printer).unwrap();
        writeln!(writer, " and half").unwrap();
        std::fs::rename(&path, dir.path().join("0.log.old")).unwrap();
        log.read(&mut printer).unwrap();
        writeln!(writer, "{TIME} stdout F 3").unwrap();
        let mut writer = File::create(&path).unwrap();
        writeln!(writer, "{TIME} stdout F 4").unwrap();
        log.read(&mut printer).unwrap();
        assert_eq!(
            String::from_utf8(printer.stdout).unwrap(),
            "1\n2, half and half\n3\n4\n"
        );
    }
}
