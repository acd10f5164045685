//! `/containerLogs`: what a container has written, as its log file has it.
//!
//! A file is opened beneath the directory of logs, through no link, and only where it is a plain file with one name: a pod may have that directory mounted
//! (SEC-KUB-04).

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use url::form_urlencoded;

use super::{Body, text};
use crate::{node::Node, view::Shown};

/// Read at a time.
const BLOCK_BYTES: usize = 64 << 10;
/// The longest line that is put together; a runtime writes lines of 16 KiB.
const LINE_BYTES: usize = 256 << 10;
/// Between two looks at a file that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Answers that wait for their client to read: then reading waits, too.
const WAITING: usize = 4;
/// The most lines that are looked for from a file's end.
const MOST_TAIL: u64 = 1 << 40;

#[derive(Debug, Clone, Default, PartialEq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<u64>,
    limit: Option<u64>,
    since: Option<Timestamp>,
    /// `stdout` or `stderr`; both where it is none.
    stream: Option<&'static str>,
}

impl Options {
    fn of(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let flag = || match value.as_ref() {
                "true" | "1" => Ok(true),
                "false" | "0" | "" => Ok(false),
                other => Err(format!("{name}: {other:?} is neither true nor false")),
            };
            let number = |least: u64| {
                let number = value.parse::<u64>().ok().filter(|number| *number >= least);
                number.ok_or_else(|| format!("{name}: {value:?} is no number of at least {least}"))
            };
            match name.as_ref() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(number(0)?.min(MOST_TAIL)),
                "limitBytes" => options.limit = Some(number(1)?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(number(1)?).unwrap_or(i64::MAX);
                    let since = now.as_second().saturating_sub(seconds).max(0);
                    options.since = Timestamp::from_second(since).ok();
                }
                "sinceTime" => {
                    let since: Timestamp = value
                        .parse()
                        .map_err(|error| format!("sinceTime: {error}"))?;
                    options.since = Some(since);
                }
                "stream" => {
                    options.stream = match value.as_ref() {
                        "" | "All" => None,
                        "Stdout" => Some("stdout"),
                        "Stderr" => Some("stderr"),
                        other => {
                            return Err(format!(
                                "stream: {other:?} is none of All, Stdout, Stderr"
                            ));
                        }
                    }
                }
                // what a newer server knows is not ours to refuse
                _ => {}
            }
        }
        Ok(options)
    }
}

pub(super) async fn answer(
    node: &Node,
    namespace: &str,
    pod: &str,
    container: &str,
    query: Option<&str>,
) -> Response<Body> {
    let options = match Options::of(query.unwrap_or_default(), Timestamp::now()) {
        Ok(options) => options,
        Err(why) => return text(StatusCode::UNPROCESSABLE_ENTITY, &why),
    };
    let Some(shown) = node.view.find(namespace, pod) else {
        return text(
            StatusCode::NOT_FOUND,
            &format!("pod \"{pod}\" does not exist"),
        );
    };
    let attempt = match attempt(&shown, container, options.previous) {
        Ok(attempt) => attempt,
        Err((status, why)) => return text(status, &why),
    };
    let dir = node.log_dir(&shown.pod);
    let Some(dir) = dir.file_name().map(|name| name.to_owned()) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the pod has no logs");
    };
    let path = Path::new(&dir)
        .join(container)
        .join(format!("{attempt}.log"));
    let root = node.config.logs_dir.clone();
    let tail = options.tail;
    let opened = tokio::task::spawn_blocking({
        let (root, path) = (root.clone(), path.clone());
        move || Log::open(&root, &path, tail)
    });
    let log = match opened.await {
        Ok(Ok(log)) => log,
        Ok(Err(error)) => {
            let why = format!("cannot read the log of container {container}: {error}");
            return text(StatusCode::INTERNAL_SERVER_ERROR, &why);
        }
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let followed = Followed {
        node: node.clone(),
        uid: shown.pod.uid.clone(),
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        attempt,
        root: root.into(),
        path: path.into(),
    };
    tokio::spawn(pour(
        log,
        Lines::new(options.clone()),
        options,
        followed,
        sender,
    ));
    let frames =
        ReceiverStream::new(receiver).map(|bytes: io::Result<Bytes>| bytes.map(Frame::data));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Which of the container's lives is meant.
fn attempt(shown: &Shown, container: &str, previous: bool) -> Result<u32, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let pod = &shown.pod.name;
    if shown.pod.container(container).is_none() {
        return Err(bad(format!(
            "container {container} is not valid for pod {pod}"
        )));
    }
    let waits = |reason: &str| {
        bad(format!(
            "container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"
        ))
    };
    let Some(status) = shown.container(container) else {
        return Err(waits("no status of it is known yet"));
    };
    let state = status.state.clone().unwrap_or_default();
    let has_last = status
        .last_state
        .as_ref()
        .is_some_and(|last| last.terminated.is_some());
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    match (previous, state.waiting) {
        // the one that waits has not been made: the last one is the newest that there is
        (_, Some(_)) if has_last => Ok(count),
        (false, Some(waiting)) => Err(waits(
            waiting.reason.as_deref().unwrap_or("ContainerCreating"),
        )),
        (false, None) => Ok(count),
        (true, None) if has_last && count > 0 => Ok(count - 1),
        (true, _) => Err(bad(format!(
            "previous terminated container \"{container}\" in pod \"{pod}\" not found"
        ))),
    }
}

/// A log file, and where in it reading goes on.
#[derive(Debug)]
struct Log {
    file: File,
    id: (u64, u64),
}

impl Log {
    fn open(root: &Path, path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // the root is the node's own, by whatever links it is reached
        let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
        // a FIFO that is waited for would hold a thread
        let file = openat2(
            &root,
            path,
            flags | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )?;
        let mut file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::other(
                "it is no plain file with one name: whoever put it there is not the runtime",
            ));
        }
        if let Some(lines) = tail {
            seek_to_last(&mut file, lines)?;
        }
        Ok(Self {
            file,
            id: (metadata.dev(), metadata.ino()),
        })
    }

    /// What comes next; empty: there is no more yet.
    fn block(&mut self) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK_BYTES];
        let read = self.file.read(&mut block)?;
        block.truncate(read);
        Ok(block)
    }
}

/// Puts the file where its last `lines` lines begin. Read from the end: logs can be large.
fn seek_to_last(file: &mut File, lines: u64) -> io::Result<()> {
    let mut position = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(());
    }
    let mut found = 0;
    let mut block = vec![0; BLOCK_BYTES];
    let mut is_last = true;
    while position > 0 {
        let size = position.min(BLOCK_BYTES as u64);
        position -= size;
        let part = &mut block[..usize::try_from(size).unwrap_or(BLOCK_BYTES)];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            // the newline that ends the last line begins none
            if *byte == b'\n' && !std::mem::take(&mut is_last) {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(position + index as u64 + 1))?;
                    return Ok(());
                }
            }
            is_last = false;
        }
    }
    file.seek(SeekFrom::Start(0)).map(drop)
}

/// Makes of the file's lines (`TIME STREAM TAG TEXT`) what is asked for.
#[derive(Debug)]
struct Lines {
    options: Options,
    /// A line whose end has not come yet.
    rest: Vec<u8>,
    /// What was written last was a part of a line.
    in_line: bool,
    left: u64,
}

impl Lines {
    fn new(options: Options) -> Self {
        Self {
            left: options.limit.unwrap_or(u64::MAX),
            options,
            rest: Vec::new(),
            in_line: false,
        }
    }

    fn is_full(&self) -> bool {
        self.left == 0
    }

    fn feed(&mut self, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = std::mem::take(&mut self.rest);
        let mut block = block;
        while let Some(end) = block.iter().position(|byte| *byte == b'\n') {
            let (line, after) = block.split_at(end);
            block = &after[1..];
            if rest.is_empty() {
                self.line(line, &mut out);
            } else {
                rest.extend_from_slice(line);
                self.line(&rest, &mut out);
                rest.clear();
            }
        }
        rest.extend_from_slice(block);
        if rest.len() > LINE_BYTES {
            self.line(&rest, &mut out);
            rest.clear();
        }
        self.rest = rest;
        out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= out.len() as u64;
        out
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag)) = (parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let words = parts.next().unwrap_or_default();
        if self
            .options
            .stream
            .is_some_and(|wanted| wanted.as_bytes() != stream)
        {
            return;
        }
        if let Some(since) = self.options.since {
            let time = std::str::from_utf8(time)
                .ok()
                .and_then(|time| time.parse::<Timestamp>().ok());
            if time.is_some_and(|time| time < since) {
                return;
            }
        }
        if self.options.timestamps && !self.in_line {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(words);
        self.in_line = tag == b"P";
        if !self.in_line {
            out.push(b'\n');
        }
    }
}

/// Whose log it is, and how to know that no more will come.
struct Followed {
    node: Node,
    uid: String,
    namespace: String,
    pod: String,
    container: String,
    attempt: u32,
    root: Arc<Path>,
    path: Arc<Path>,
}

impl Followed {
    fn still_runs(&self) -> bool {
        let Some(shown) = self.node.view.find(&self.namespace, &self.pod) else {
            return false;
        };
        let running = shown.running_id(&self.container).is_some();
        let count = shown.container(&self.container).map(|it| it.restart_count);
        shown.pod.uid == self.uid
            && running
            && count.and_then(|count| u32::try_from(count).ok()) == Some(self.attempt)
    }
}

/// Sends the log until its end, or the client's.
async fn pour(
    mut log: Log,
    mut lines: Lines,
    options: Options,
    followed: Followed,
    sender: mpsc::Sender<io::Result<Bytes>>,
) {
    loop {
        // Asked before the log is read, so that what a container wrote last is read once it has ended.
        let goes_on = options.follow && followed.still_runs();
        let read = tokio::task::spawn_blocking(move || (log.block(), log)).await;
        let Ok((block, back)) = read else {
            return;
        };
        log = back;
        match block {
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
            Ok(block) if block.is_empty() => {
                let (root, path, id) = (followed.root.clone(), followed.path.clone(), log.id);
                if !options.follow {
                    return;
                }
                // Rotated: what was written before that has been read now, and the new one begins.
                let next = tokio::task::spawn_blocking(move || Log::open(&root, &path, None)).await;
                if let Ok(Ok(next)) = next
                    && next.id != id
                {
                    log = next;
                    continue;
                }
                if !goes_on {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = sender.closed() => return,
                }
            }
            Ok(block) => {
                let out = lines.feed(&block);
                if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
                    return;
                }
                if lines.is_full() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::CWD;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n2026-01-01T00:00:02Z stderr F two words\n2026-01-01T00:00:03Z stdout P par\n2026-01-01T00:00:03Z stdout F tial\n";

    fn all(query: &str, size: usize) -> String {
        let now: Timestamp = "2026-01-01T00:00:04Z".parse().unwrap();
        let mut lines = Lines::new(Options::of(query, now).unwrap());
        let mut out = Vec::new();
        for part in LOG.as_bytes().chunks(size) {
            out.extend(lines.feed(part));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_as_they_were_written_and_as_was_asked_for() {
        for (query, expected) in [
            ("", "one\ntwo words\npartial\n"),
            ("stream=Stderr", "two words\n"),
            ("limitBytes=6", "one\ntw"),
            ("sinceTime=2026-01-01T00:00:02Z", "two words\npartial\n"),
            ("sinceSeconds=1", "partial\n"),
            (
                "timestamps=true&stream=Stdout",
                "2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:03Z partial\n",
            ),
        ] {
            for size in [1, 7, 1000] {
                assert_eq!(all(query, size), expected, "{query} {size}");
            }
        }
        for bad in [
            "follow=perhaps",
            "tailLines=-1",
            "limitBytes=0",
            "sinceTime=yesterday",
            "stream=Both",
        ] {
            assert!(Options::of(bad, Timestamp::now()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let long: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        fs::write(dir.path().join("log"), &long).unwrap();
        for (lines, first) in [
            (1, "line 19999\n"),
            (3, "line 19997\n"),
            (15_000, "line 5000\n"),
            (50_000, "line 0\n"),
        ] {
            let mut log = Log::open(dir.path(), Path::new("log"), Some(lines)).unwrap();
            let block = String::from_utf8(log.block().unwrap()).unwrap();
            assert!(block.starts_with(first), "{lines}");
        }
        let mut log = Log::open(dir.path(), Path::new("log"), Some(0)).unwrap();
        assert!(log.block().unwrap().is_empty());
    }

    #[test]
    fn only_a_plain_file_beneath_the_logs_is_opened_sec_kub_04() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("logs/pod/c")).unwrap();
        fs::write(at("canary"), "canary").unwrap();
        fs::write(at("logs/pod/c/0.log"), LOG).unwrap();
        std::os::unix::fs::symlink(at("canary"), at("logs/pod/c/1.log")).unwrap();
        fs::hard_link(at("canary"), at("logs/pod/c/2.log")).unwrap();
        rustix::fs::mkfifoat(CWD, at("logs/pod/c/3.log"), Mode::RWXU).unwrap();
        fs::create_dir(at("logs/pod/c/4.log")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("logs/pod/away")).unwrap();
        let open = |path: &str| Log::open(&at("logs"), Path::new(path), None);
        assert!(open("pod/c/0.log").is_ok());
        for path in [
            "pod/c/1.log",
            "pod/c/2.log",
            "pod/c/3.log",
            "pod/c/4.log",
            "pod/away/canary",
            "../canary",
            "pod/../../canary",
            "/etc/passwd",
        ] {
            assert!(open(path).is_err(), "{path}");
        }
    }
}
