//! Where a process's standard streams go, as containerd's clients write it: the path of a fifo, or a URI.
//!
//! ```text
//!   /path, fifo:///path          a fifo
//!   file:///path                 a file that output is appended to
//!   binary:///program?k=v        a logging program that output is piped to     (logging_program)
//!   ttrpc+unix:///socket?streaming_id=ID
//!                                a stream of this shim's streaming service     (streams)
//! ```
//!
//! All of them are named by root's own client, never by an image. Any other scheme is refused by its name.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::PathBuf, sync::Arc};

use rustix::{
    fs::{Mode, OFlags, open as open_file},
    io::Errno,
};
use tokio::net::unix::pipe;

use crate::{
    error::Error,
    logging_program::{self, Logger},
    reaper::Reaper,
    stream::{Ends, Sink},
    streams::Streams,
};

/// Longest URI: a path, and the arguments of a logging program.
const MAX_URI_BYTES: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    None,
    Fifo(String),
    File(PathBuf),
    Program { path: PathBuf, args: Vec<String> },
    Stream { socket: PathBuf, id: String },
}

/// Who asks, for whom.
#[derive(Debug, Clone)]
pub struct Outside {
    pub namespace: String,
    pub streams: Arc<Streams>,
    pub reaper: Arc<Reaper>,
}

impl Target {
    pub fn parse(uri: &str) -> Result<Target, Error> {
        if uri.is_empty() {
            return Ok(Target::None);
        }
        let shown = || -> String { uri.chars().take(200).collect() };
        let refuse = |reason: String| Error::invalid(format!("stream {:?}", shown()), reason);
        if uri.len() > MAX_URI_BYTES {
            return Err(refuse(format!("longer than {MAX_URI_BYTES} bytes")));
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(Target::Fifo(uri.to_owned()));
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let decoded = |text: &str| {
            decode(text)
                .ok_or_else(|| refuse("it has a % without two digits, or is no text".into()))
        };
        let path = decoded(path)?;
        let absolute = || {
            if path.starts_with('/') && path.len() > 1 && !path.contains('\0') {
                Ok(PathBuf::from(&path))
            } else {
                Err(refuse(format!("{scheme}:// needs an absolute path")))
            }
        };
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |text: &str| decoded(&text.replace('+', " "));
            pairs.push((text(key)?, text(value)?));
        }
        match scheme {
            "fifo" => Ok(Target::Fifo(absolute()?.display().to_string())),
            "file" => Ok(Target::File(absolute()?)),
            "binary" => {
                let args = pairs.into_iter().flat_map(|(key, value)| [key, value]);
                // A key without a value is an argument by itself.
                let args = args.filter(|argument| !argument.is_empty()).collect();
                Ok(Target::Program {
                    path: absolute()?,
                    args,
                })
            }
            "ttrpc+unix" => {
                let id = pairs.into_iter().find(|(key, _)| key == "streaming_id");
                let Some((_, id)) = id.filter(|(_, id)| !id.is_empty()) else {
                    return Err(refuse("it has no streaming_id".into()));
                };
                Ok(Target::Stream {
                    socket: absolute()?,
                    id,
                })
            }
            other => Err(refuse(format!(
                "the scheme {other:?} is not built: fifo, file, binary and ttrpc+unix are"
            ))),
        }
    }

    fn scheme(&self) -> &'static str {
        match self {
            Target::None => "none",
            Target::Fifo(_) => "fifo",
            Target::File(_) => "file",
            Target::Program { .. } => "binary",
            Target::Stream { .. } => "ttrpc+unix",
        }
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| (byte? as char).to_digit(16);
            let high = digit(bytes.next())?;
            out.push((high * 16 + digit(bytes.next())?) as u8);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Opens what `[stdin, stdout, stderr]` name, for the process of container `id`. With a terminal stderr is of no use.
pub async fn open(
    outside: &Outside,
    id: &str,
    [stdin, stdout, stderr]: &[String; 3],
    tty: bool,
    keep_stdin: bool,
) -> Result<Ends, Error> {
    let (stdin, stdout) = (Target::parse(stdin)?, Target::parse(stdout)?);
    let stderr = if tty {
        Target::None
    } else {
        Target::parse(stderr)?
    };
    let mut ends = Ends {
        stdin: match stdin {
            Target::None => None,
            Target::Fifo(path) => Some(fifo_in(&path, keep_stdin)?),
            Target::Stream { socket, id } => Some(outside.streams.input(&socket, &id)?),
            other => {
                return Err(Error::invalid(
                    "stdin",
                    format!("{}:// is for output alone", other.scheme()),
                ));
            }
        },
        ..Ends::default()
    };
    if let Target::Program { path, args } = &stdout {
        if stderr != stdout && stderr != Target::None {
            return Err(Error::invalid(
                "stderr",
                "a logging program takes stdout and stderr together: name it for both",
            ));
        }
        let logger = logging_program::start(outside, id, path, args).await?;
        let (stdout, stderr, logger): (_, _, Logger) = logger;
        ends.stdout = Some(Sink::Pipe(stdout));
        ends.stderr = (!tty).then_some(Sink::Pipe(stderr));
        ends.logger = Some(logger);
        return Ok(ends);
    }
    ends.stdout = output(outside, "stdout", stdout)?;
    ends.stderr = output(outside, "stderr", stderr)?;
    Ok(ends)
}

fn output(outside: &Outside, name: &str, target: Target) -> Result<Option<Sink>, Error> {
    Ok(Some(match target {
        Target::None => return Ok(None),
        Target::Fifo(path) => fifo_sink(&path)?,
        Target::File(path) => {
            let step = || format!("open log file {}", path.display());
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io(step()))?;
            }
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o644)
                // What hangs when it is opened, or written, is no file.
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
                .open(&path)
                .map_err(Error::io(step()))?;
            if !file.metadata().map_err(Error::io(step()))?.is_file() {
                return Err(Error::invalid(step(), "it is not a regular file"));
            }
            Sink::File(file)
        }
        Target::Stream { socket, id } => Sink::Pipe(outside.streams.output(&socket, &id)?),
        Target::Program { .. } => {
            return Err(Error::invalid(
                name,
                "a logging program takes stdout and stderr together: name it for both",
            ));
        }
    }))
}

/// Whether its client is there can only be told before we are: our own end reads, too.
fn fifo_sink(path: &str) -> Result<Sink, Error> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let seen = open_file(path, flags, Mode::empty());
    // The first writer stays until there is another: a client that waits in a read would take it for the end.
    let fifo = fifo_out(path)?;
    Ok(match seen {
        Err(Errno::NXIO) => Sink::Awaited(fifo),
        _ => Sink::Pipe(fifo),
    })
}

/// For reading and writing: an open can't block, and a client that went away is no SIGPIPE.
pub fn fifo_out(path: &str) -> Result<pipe::Sender, Error> {
    let mut options = pipe::OpenOptions::new();
    options
        .read_write(true)
        .open_sender(path)
        .map_err(Error::io(format!("open fifo {path}")))
}

/// Read-only, so that the end of the client's side is seen, unless it is not to end with one client.
pub fn fifo_in(path: &str, keep: bool) -> Result<pipe::Receiver, Error> {
    let mut options = pipe::OpenOptions::new();
    options
        .read_write(keep)
        .open_receiver(path)
        .map_err(Error::io(format!("open fifo {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_is_what_it_says_and_others_are_refused_by_name() {
        let program = |path: &str, args: &[&str]| Target::Program {
            path: path.into(),
            args: args.iter().map(ToString::to_string).collect(),
        };
        for (uri, expected) in [
            ("", Target::None),
            ("/run/f", Target::Fifo("/run/f".into())),
            ("fifo:///run/f", Target::Fifo("/run/f".into())),
            ("file:///var/log/a%20b", Target::File("/var/log/a b".into())),
            ("binary:///bin/log", program("/bin/log", &[])),
            (
                "binary:///bin/log?--path=%2Fx+y&-v",
                program("/bin/log", &["--path", "/x y", "-v"]),
            ),
            (
                "ttrpc+unix:///run/s/1?streaming_id=c1-stdout",
                Target::Stream {
                    socket: "/run/s/1".into(),
                    id: "c1-stdout".into(),
                },
            ),
        ] {
            assert_eq!(Target::parse(uri).unwrap(), expected, "{uri}");
        }
        for (uri, word) in [
            ("pipe:///x", "\"pipe\""),
            ("npipe://./pipe/x", "\"npipe\""),
            ("grpc+vsock://3:1?streaming_id=x", "\"grpc+vsock\""),
            ("streaming+ttrpc:///x", "\"streaming+ttrpc\""),
            ("file://relative", "absolute"),
            ("binary://", "absolute"),
            ("file:///a%2", "%"),
            ("file:///a%00b", "absolute"),
            ("ttrpc+unix:///run/s/1", "streaming_id"),
            (&format!("file:///{}", "x".repeat(MAX_URI_BYTES)), "longer"),
        ] {
            let error = Target::parse(uri).unwrap_err().to_string();
            assert!(error.contains(word), "{uri:.60}: {error}");
            assert!(error.len() < 400, "{error}");
        }
    }
}
