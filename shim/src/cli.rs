//! The command line that the shim v2 contract prescribes: Go's flag syntax, one action word.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use protobuf::Message;

use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Make the socket, leave a shim serving on it, print the address.
    Start,
    /// Clean up after a dead shim.
    Delete,
    /// Serve on the socket that `start` has put on stdin.
    #[default]
    Serve,
    Version,
    Info,
    Help,
    /// Hand an event from stdin to the socket of `TTRPC_ADDRESS`: what shims are given as their publish binary.
    Publish,
}

/// What a person is told who runs it by hand.
pub const USAGE: &str = "\
containerd-shim-berth-v2 runs containers for containerd (runtime_type = \"io.containerd.berth.v2\") and for berthd: one process a pod. They start
it; by hand it is of use for questions alone.

Usage:
  containerd-shim-berth-v2 --version    its version
  containerd-shim-berth-v2 -info        what it can do, as a containerd.types.RuntimeInfo (binary; containerd 2 shows it by
                                        `ctr plugins inspect-runtime --runtime io.containerd.berth.v2`)
  containerd-shim-berth-v2 -namespace NAMESPACE -id ID [-bundle DIRECTORY] start
                                        leaves a shim serving ID, whose bundle is the directory, and prints its address
  containerd-shim-berth-v2 -namespace NAMESPACE -id ID [-bundle DIRECTORY] delete
                                        kills and removes what a dead shim of ID has left, and prints a DeleteResponse (binary)

Flags: -address and -publish-binary (containerd's), -debug. The directory is the working directory where none is named.
";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flags {
    pub action: Action,
    pub namespace: String,
    pub id: String,
    pub address: String,
    pub publish_binary: String,
    pub bundle: PathBuf,
    pub debug: bool,
    /// Another shim's program, which makes the containers of this pod; empty: this shim makes them.
    pub front: PathBuf,
    /// `name=value`: options for it.
    pub front_options: Vec<String>,
    /// Of an event.
    pub topic: String,
}

/// Longest id taken; containerd's own limit for an identifier.
const MAX_ID_BYTES: usize = 76;

impl Flags {
    /// `-name value`, `-name=value`, with one dash or two; the action word stands anywhere.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Flags, Error> {
        let mut flags = Flags::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-') else {
                flags.action = match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "help" => Action::Help,
                    "publish" => Action::Publish,
                    _ => {
                        return Err(Error::invalid(
                            format!("action {arg:?}"),
                            "start, delete, publish or none",
                        ));
                    }
                };
                continue;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, given) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let mut value = || {
                given
                    .clone()
                    .or_else(|| args.next())
                    .ok_or_else(|| Error::invalid(format!("flag -{name}"), "it needs a value"))
            };
            match name {
                "namespace" => flags.namespace = value()?,
                "id" => flags.id = value()?,
                "address" => flags.address = value()?,
                "publish-binary" => flags.publish_binary = value()?,
                "bundle" => flags.bundle = value()?.into(),
                "front" => flags.front = value()?.into(),
                "front-option" => flags.front_options.push(value()?),
                "topic" => flags.topic = value()?,
                "debug" => flags.debug = given.as_deref() != Some("false"),
                "v" | "version" => flags.action = Action::Version,
                "info" => flags.action = Action::Info,
                "h" | "help" => flags.action = Action::Help,
                _ => {
                    return Err(Error::invalid(
                        format!("flag -{name}"),
                        "known are -namespace, -id, -address, -publish-binary, -bundle, -debug, -front, -front-option, -topic, -v, -info",
                    ));
                }
            }
        }
        if !matches!(
            flags.action,
            Action::Version | Action::Info | Action::Help | Action::Publish
        ) {
            if flags.id.is_empty() {
                return Err(Error::invalid("the command line", "it has no -id"));
            }
            check_id(&flags.id)?;
        }
        if flags.bundle.as_os_str().is_empty() {
            flags.bundle = std::env::current_dir()
                .map_err(Error::io("find the working directory, which is the bundle"))?;
        }
        Ok(flags)
    }

    /// Refuses a directory that is nobody's bundle: by hand one is easily elsewhere, and `delete` unmounts what is below.
    pub fn check_bundle(&self) -> Result<(), Error> {
        let bundle = std::path::absolute(&self.bundle).map_err(Error::io("find the bundle"))?;
        // A sandbox's bundle has no spec, and its own name.
        let is_bundle = bundle.join("config.json").exists()
            || (bundle.is_dir() && bundle.file_name().is_some_and(|name| *name == *self.id));
        if is_bundle {
            return Ok(());
        }
        Err(Error::invalid(
            format!("directory {}", bundle.display()),
            format!(
                "it is no bundle of {}: it has no config.json and another name; run this in the bundle, or name it by -bundle",
                self.id
            ),
        ))
    }

    /// The flags again, for the serving process.
    pub fn serve_args(&self) -> Vec<String> {
        let mut args = vec![
            "-namespace".into(),
            self.namespace.clone(),
            "-id".into(),
            self.id.clone(),
        ];
        if !self.address.is_empty() {
            args.extend(["-address".into(), self.address.clone()]);
        }
        if self.debug {
            args.push("-debug".into());
        }
        if !self.front.as_os_str().is_empty() {
            args.extend(["-front".into(), self.front.display().to_string()]);
            args.extend(["-publish-binary".into(), self.publish_binary.clone()]);
            for option in &self.front_options {
                args.extend(["-front-option".into(), option.clone()]);
            }
        }
        args
    }
}

/// An id becomes a file name and a part of a path: letters, digits, `_`, `-` and inner dots (SEC-CRI-09).
pub fn check_id(id: &str) -> Result<(), Error> {
    let shown: String = id.chars().take(MAX_ID_BYTES).collect();
    let reason = if id.is_empty() {
        "it is empty"
    } else if id.len() > MAX_ID_BYTES {
        "it is longer than 76 bytes"
    } else if !id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    {
        "only letters, digits, '_', '-' and '.' are allowed"
    } else if id.starts_with(['.', '-']) {
        "it starts with '.' or '-'"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("id {shown:?}"), reason))
}

/// An action's answer to its caller, on stdout.
pub fn print_message(message: &impl Message) -> Result<(), Error> {
    let bytes = message
        .write_to_bytes()
        .map_err(|error| Error::io("encode the answer")(io::Error::other(error)))?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .map_err(Error::io("print the answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, Error> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let flags = parse("-namespace k8s.io --id=a1 -debug -address /x start").unwrap();
        assert_eq!(
            (
                flags.action,
                flags.namespace.as_str(),
                flags.id.as_str(),
                flags.debug,
                flags.address.as_str()
            ),
            (Action::Start, "k8s.io", "a1", true, "/x")
        );
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-id a").unwrap().action, Action::Serve);
        for help in ["-h", "--help", "help", "-id a start --help"] {
            assert_eq!(parse(help).unwrap().action, Action::Help, "{help}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in ["-id a run", "-id", "start", "-id a -nonsense start"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_directory_is_a_bundle_by_its_spec_or_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let of = |id: &str| Flags {
            id: id.into(),
            bundle: dir.path().into(),
            ..Flags::default()
        };
        of(dir.path().file_name().unwrap().to_str().unwrap())
            .check_bundle()
            .unwrap();
        let error = of("c1").check_bundle().unwrap_err().to_string();
        assert!(error.contains("no bundle of c1"), "{error}");
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        of("c1").check_bundle().unwrap();
    }

    #[test]
    fn ids_that_climb_are_refused_sec_cri_09() {
        let long = "a".repeat(MAX_ID_BYTES + 1);
        for id in ["", "..", "a/b", "../a", "a\0", ".a", "-a", "ä", &long] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        check_id(&"0f".repeat(32)).unwrap();
    }
}
